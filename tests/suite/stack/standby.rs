//! The standby of the stack (the profile `replicated` of `docker-compose.yml`): its scripts, run with real PostgreSQL
//! servers.
use std::{
    env, fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dev::{
    harness::{eventually, run},
    postgres::{Purpose, Server},
    process::{Child, Launch},
};
use sqlx::PgPool;

use super::{repository, tools::free_address};
use crate::{EXECUTABLE, audit::verification::Scratch};

/// Timeout of a script or program that ends by itself, and of the stop of the standby.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A primary server, and an environment for the scripts that is like their container: the programs of PostgreSQL, the
/// Unix user of the server, and a volume for the standby's copy of the data.
struct Primary {
    server: Server,
    admin: PgPool,
    data: PathBuf,
    programs: PathBuf,
    /// The user and the group of the server, if the user is not that of this process.
    user: Option<(u32, u32)>,
    volume: Scratch,
}

impl Primary {
    async fn start() -> Self {
        let server = Server::find_or_start(Purpose::Durable, &|line| eprintln!("{line}")).await.unwrap();
        let admin = PgPool::connect(server.admin_url().as_str()).await.unwrap();
        let directories =
            "select current_setting('data_directory'), setting from pg_config where name = 'BINDIR'";
        let (data, programs): (String, String) = sqlx::query_as(directories).fetch_one(&admin).await.unwrap();
        let volume = Scratch::new();
        let (owner, this) = (fs::metadata(&data).unwrap(), fs::metadata(volume.path("")).unwrap());
        let user = (owner.uid() != this.uid()).then(|| (owner.uid(), owner.gid()));
        if let Some((uid, gid)) = user {
            chown(volume.path(""), Some(uid), Some(gid)).unwrap();
        }
        Self { server, admin, data: data.into(), programs: programs.into(), user, volume }
    }

    /// Prepares a program that runs as the Unix user of the server. As in the container, its `PATH` contains the
    /// programs of PostgreSQL.
    fn program(&self, program: &str, arguments: &[&str]) -> Launch {
        let path = format!("{}:{}", self.programs.display(), env::var("PATH").unwrap());
        let launch = Launch::new(program).args(arguments).env("PATH", path).directory(Path::new("/"));
        self.user.into_iter().fold(launch, |launch, (uid, gid)| launch.run_as(uid, gid))
    }

    /// Prepares a script of `deploy/postgres`, with the address of this server.
    fn script(&self, name: &str, arguments: &[&str]) -> Launch {
        // The Unix user of the server may have no access to the repository, so the shell gets the text of the script as
        // an argument.
        let script = fs::read_to_string(repository().join("deploy/postgres").join(name)).unwrap();
        self.program("sh", &[&["-c", &script, name], arguments].concat())
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port().to_string())
    }

    fn port(&self) -> u16 {
        self.server.admin_url().port().unwrap()
    }
}

async fn succeed(launch: Launch) {
    let child: Child = launch.start().unwrap();
    let status = child.wait(SCRIPT_TIMEOUT).await.unwrap();
    assert!(status.success(), "{:#?}", child.lines());
}

#[tokio::test]
async fn a_promoted_standby_has_every_commit_and_accepts_writes() {
    let primary = Primary::start().await;
    let password = primary.server.admin_url().password().unwrap_or_default().to_owned();
    let roles = primary
        .script("roles.sh", &[])
        .env("PGPASSWORD", password)
        .env("POSTGRES_USER", primary.server.admin_url().username())
        .env("PGDATABASE", "stack")
        .env("PGUSER", "stack_owner")
        .env("PGDATA", &primary.data);
    let passwords = ["OWNER_PASSWORD", "SERVICE_PASSWORD", "MONITOR_PASSWORD", "REPLICATION_PASSWORD"];
    succeed(passwords.into_iter().fold(roles, |roles, name| roles.env(name, "demo"))).await;
    // Loads the line that `roles.sh` has added to pg_hba.conf.
    sqlx::query("select pg_reload_conf()").execute(&primary.admin).await.unwrap();

    let copy = primary.volume.path("copy");
    let address = free_address();
    let (_, port) = address.split_once(':').unwrap();
    // The primary got these settings as arguments, so a copy of its files lacks them. A standby does not start with
    // lower values than its primary.
    let settings = "select format('%s=%s', name, setting) from pg_settings
        where name like 'max%' and context = 'postmaster'";
    let mut settings: Vec<String> = sqlx::query_scalar(settings).fetch_all(&primary.admin).await.unwrap();
    settings.extend([
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
    ]);
    let arguments: Vec<_> = settings.iter().flat_map(|setting| ["-c", setting]).collect();
    let start = || {
        let script = primary.script("standby.sh", &arguments).env("PGUSER", "replicator");
        script.env("PGPASSWORD", "demo").env("PGDATA", &copy).start().unwrap()
    };
    let standby = start();
    eventually("the standby is synchronous", async || {
        assert!(standby.exited().is_none(), "{:#?}", standby.lines());
        let state = "select sync_state from pg_stat_replication where state = 'streaming'";
        let state: Option<String> = sqlx::query_scalar(state).fetch_optional(&primary.admin).await.unwrap();
        state.filter(|state| state == "sync")
    })
    .await;

    let hosts = format!("127.0.0.1:{},{address}", primary.port());
    let url = |user: &str| format!("postgres://stack_{user}:demo@{hosts}/stack");
    let (service, owner) = (url("service"), url("owner"));
    let settings = [("APP_ENV", "test"), ("DATABASE_URL", &*service), ("DATABASE_MIGRATION_URL", &*owner)];
    let applied = run(Path::new(EXECUTABLE), &["migrate"], &settings).await.succeeded();
    assert!(!applied.starts_with("applied 0"), "{applied}");

    let postmaster = fs::read_to_string(primary.data.join("postmaster.pid")).unwrap();
    let killed = Command::new("kill").args(["-QUIT", postmaster.lines().next().unwrap()]).status().unwrap();
    assert!(killed.success());
    succeed(primary.program("pg_ctl", &["promote", "--pgdata", &copy])).await;
    // The command writes to the promoted server. If that server still waited for a standby, the commit would never end.
    let repeated = run(Path::new(EXECUTABLE), &["migrate"], &settings).await.succeeded();
    assert!(repeated.starts_with("applied 0"), "{repeated}");
    standby.stop(SCRIPT_TIMEOUT).await.unwrap();

    // A restart of the container must not need the lost primary.
    let restarted = start();
    let repeated = run(Path::new(EXECUTABLE), &["migrate"], &settings).await.succeeded();
    assert!(repeated.starts_with("applied 0"), "{repeated}\n{:#?}", restarted.lines());
    restarted.stop(SCRIPT_TIMEOUT).await.unwrap();
}
