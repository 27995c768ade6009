//! The database of the environment: creation, migration, and one user of the service for every user role.
use std::{path::Path, time::Duration};

use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::Error;
use crate::{
    postgres::{Presence, Rights, Server},
    process::Launch,
    project,
};

/// Deadline of a command of the service.
const COMMAND_DEADLINE: Duration = Duration::from_mins(2);

/// One user for every user role. The passwords are constant, because the database persists between runs. The passwords
/// need no secrecy, because only programs on this machine can reach the service.
pub(super) const LOGINS: [Login; 4] = [
    CUSTOMER,
    SUPPORT,
    Login { role: "auditor", email: "auditor@example.com", password: "auditor-password" },
    Login { role: "admin", email: "admin@example.com", password: "admin-password" },
];

pub(crate) const CUSTOMER: Login =
    Login { role: "customer", email: "customer@example.com", password: "customer-password" };

pub(crate) const SUPPORT: Login =
    Login { role: "support", email: "support@example.com", password: "support-password" };

/// A user of the service, as displayed on the screen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Login {
    pub(crate) role: &'static str,
    pub(crate) email: &'static str,
    pub(crate) password: &'static str,
}

/// A database that is ready for the service.
#[derive(Debug)]
pub(crate) struct Database {
    /// Connection URL with the service's PostgreSQL role, for the tools of this crate.
    pub(crate) url: Url,
    /// Connection URL with the service's PostgreSQL role, for the service. For a replicated database, this URL contains
    /// the addresses of all nodes. For a single server, this URL equals `url`.
    pub(crate) service_url: String,
    /// Connection URL with the PostgreSQL role that owns the schema.
    pub(crate) owner_url: Url,
}

/// Creates the database, its PostgreSQL roles, its schema and the users of the service. Existing parts stay, but the
/// PostgreSQL roles get new passwords. With `fresh`, an existing database is dropped first.
pub(crate) async fn prepare(
    server: &Server,
    executable: &Path,
    fresh: bool,
    progress: &dyn Fn(&str),
) -> Result<Database, Error> {
    let name = project::identifier();
    let (owner, restricted) = (format!("{name}_owner"), format!("{name}_app"));
    let (owner_password, password) = (random_password(), random_password());
    if fresh {
        server.drop_database(&name).await?;
    }
    server.create_login(&owner, &owner_password, Rights::Owner).await?;
    server.create_login(&restricted, &password, Rights::Restricted).await?;
    server.allow_to_grant(&owner, &[restricted.as_str(), "app_runtime"]).await?;
    let exists = match server.find_database(&name).await? {
        Presence::Ours => true,
        Presence::Absent => {
            progress(&format!("creating the database {name}"));
            server.create_database(&name, Some(&owner)).await?;
            false
        }
        Presence::Foreign(comment) => return Err(Error::ForeignDatabase { name, comment }),
    };
    let url = server.url(&name, &restricted, &password);
    let owner_url = server.url(&name, &owner, &owner_password);

    progress("applying the migrations");
    let migrate = Launch::new(executable)
        .args(["migrate"])
        .env("DATABASE_URL", url.as_str())
        .env("DATABASE_MIGRATION_URL", owner_url.as_str());
    run(migrate, "migrate").await.map_err(|error| match error {
        Error::Command { output, .. } if exists => Error::EarlierDatabase { name, output },
        error => error,
    })?;

    create_users(executable, &url, &owner_url, progress).await?;
    Ok(Database { service_url: url.to_string(), url, owner_url })
}

/// Creates the missing users of [`LOGINS`] in a migrated database.
pub(super) async fn create_users(
    executable: &Path,
    url: &Url,
    owner_url: &Url,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let users: Vec<String> = sqlx::query_scalar("select email from users").fetch_all(&mut connection).await?;
    connection.close().await?;
    for login in LOGINS.iter().filter(|login| !users.iter().any(|email| email == login.email)) {
        progress(&format!("creating the user {}", login.email));
        create_user(executable, url, login).await?;
    }
    Ok(())
}

async fn create_user(executable: &Path, url: &Url, login: &Login) -> Result<(), Error> {
    let create = Launch::new(executable)
        .args(["user", "create", "--email", login.email, "--role", login.role])
        .env("DATABASE_URL", url.as_str())
        .env("USER_PASSWORD", login.password);
    run(create, "user create").await
}

/// Runs a command of the service, in a directory without a `.env` file, which the service would read in development.
async fn run(launch: Launch, command: &'static str) -> Result<(), Error> {
    let child = launch
        .directory(Path::new("/"))
        .env("APP_ENV", "development")
        .env("RUST_LOG", "warn")
        .start()
        .map_err(Error::Start)?;
    if child.wait(COMMAND_DEADLINE).await?.success() {
        return Ok(());
    }
    let output = child.tail(10).into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n");
    Err(Error::Command { command, output })
}

fn random_password() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 24)
}
