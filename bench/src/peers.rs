//! The peers (`bench/peers`): services with the routes `POST /v1/orders` and `GET /v1/orders/{id}`, each written in the
//! usual style of its language. The cases `write`, `read` and `latency` measure the peers. In all three cases, the
//! service and the peers have pools of [`POOL_SIZE`] connections, and sample one trace in ten. In `read`, all
//! contenders use one database. In `write` and `latency`, each contender has its own database, and these databases are
//! initially identical.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::bail;
use dev::{
    process::{Launch, Stream},
    project,
};

use crate::{
    service::Server,
    test_bed::{Database, TestBed, free_address},
};

/// Pool size of the service, the floor and the peers in the cases that compare them.
pub const POOL_SIZE: u32 = 16;

/// Deadline of a build from scratch, long enough for a slow machine.
const BUILD_DEADLINE: Duration = Duration::from_mins(30);

/// A built peer.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    executable: PathBuf,
}

/// The build command of a peer, and the path of the built executable.
struct Recipe {
    name: &'static str,
    directory: &'static str,
    tool: &'static str,
    arguments: &'static [&'static str],
    executable: &'static str,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "peer in Rust",
        directory: "rust",
        tool: "cargo",
        arguments: &["build", "--release", "--locked"],
        executable: "target/release/peer",
    },
    Recipe {
        name: "peer in Go",
        directory: "go",
        tool: "go",
        arguments: &["build", "-o", "target/peer", "."],
        executable: "target/peer",
    },
];

/// Builds the peers that are in this checkout and whose tools are installed on this machine.
pub async fn build(progress: &dyn Fn(&str)) -> anyhow::Result<Vec<Peer>> {
    let mut built = Vec::new();
    for recipe in &RECIPES {
        let directory = project::root().join("bench/peers").join(recipe.directory);
        if !directory.is_dir() {
            progress(&format!("skipped: {}, which is not in this checkout", recipe.name));
            continue;
        }
        progress(&format!("building the {}", recipe.name));
        let launch = Launch::new(recipe.tool)
            .envs(std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("CARGO_")))
            .args(recipe.arguments)
            .directory(&directory)
            .echo(&[Stream::Stderr]);
        let Ok(building) = launch.start() else {
            progress(&format!("skipped: {}, because `{}` is not installed", recipe.name, recipe.tool));
            continue;
        };
        if !building.wait(BUILD_DEADLINE).await?.success() {
            bail!("failed to build the {}", recipe.name);
        }
        built.push(Peer { name: recipe.name, executable: directory.join(recipe.executable) });
    }
    Ok(built)
}

impl Peer {
    /// Starts the peer on a database, with its log in a file.
    pub async fn start(
        &self,
        test_bed: &TestBed,
        database: &Database,
        receiver: Option<SocketAddr>,
    ) -> anyhow::Result<Server> {
        let address = free_address()?;
        let mut launch = Launch::new(&self.executable)
            .env("DATABASE_URL", database.url.as_str())
            .env("LISTEN_ADDRESS", address.to_string())
            .env("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string())
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
            .env("OTEL_TRACES_SAMPLER_ARG", "0.1")
            .log_to(&test_bed.directory.join("peer.log"))
            .uncaptured();
        if let Some(receiver) = receiver {
            launch = launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{receiver}"));
        }
        Server::launch(launch, address, None, &format!("http://{address}/healthz")).await
    }
}
