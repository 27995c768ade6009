//! The search order for a server.
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;
use url::Url;

use super::{Error, MIN_MAJOR_VERSION, Purpose, binaries, cluster::Cluster, download, unix_user::UnixUser};

/// A running server.
#[derive(Debug)]
pub(super) enum RunningServer {
    /// The server of `DEV_DATABASE_URL` or `DATABASE_URL`, which runs independently of this process.
    Configured(Url),
    /// A server that this process has started.
    Started(Cluster),
}

pub(super) async fn find(purpose: &Purpose, progress: &dyn Fn(&str)) -> Result<RunningServer, Error> {
    if purpose.allows_configured_server()
        && let Some(url) = configured(progress).await?
    {
        return Ok(RunningServer::Configured(url));
    }
    let unix_user = UnixUser::choose()?;
    let mut installed = binaries::installed(&unix_user, progress).await;
    if installed.is_empty() {
        let not_found = |download| Error::NotFound { download, install: download::install_command() };
        installed.push(download::download(&unix_user, progress).await.map_err(not_found)?);
    }
    Ok(RunningServer::Started(Cluster::start(&installed, &unix_user, purpose, progress).await?))
}

/// Returns the server of `DEV_DATABASE_URL`, which must be usable, or of `DATABASE_URL`. An unusable `DATABASE_URL` is
/// skipped, because it was most likely meant for another purpose. A `.env` file is not read, because it contains the
/// settings of the service.
async fn configured(progress: &dyn Fn(&str)) -> Result<Option<Url>, Error> {
    let setting = "DEV_DATABASE_URL";
    if let Some(value) = variable(setting) {
        let url = check_url(&value).await.map_err(|reason| Error::Setting { setting, reason })?;
        progress(&format!("using the PostgreSQL of {setting}, {}", host_and_port(&url)));
        return Ok(Some(url));
    }
    let setting = "DATABASE_URL";
    let Some(value) = variable(setting) else { return Ok(None) };
    match check_url(&value).await {
        Ok(url) => {
            progress(&format!("using the PostgreSQL of {setting}, {}", host_and_port(&url)));
            Ok(Some(url))
        }
        Err(reason) => {
            progress(&format!("skipped {setting}: {reason}"));
            Ok(None)
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Connects to a server, and checks its version and the rights of the role. The error is the reason to reject the URL.
async fn check_url(value: &str) -> Result<Url, String> {
    let url = Url::parse(value).map_err(|error| format!("it is not a URL ({error})"))?;
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(format!("its scheme is {}, not postgres", url.scheme()));
    }
    let connect = timeout(Duration::from_secs(5), PgConnection::connect(value));
    let mut connection = connect
        .await
        .map_err(|_| "it timed out after five seconds".to_owned())?
        .map_err(|error| error.to_string())?;
    let (version, may_create): (i32, bool) = sqlx::query_as(
        "select current_setting('server_version_num')::int, rolsuper or (rolcreatedb and rolcreaterole)
         from pg_roles
         where rolname = current_user",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(|error| error.to_string())?;
    connection.close().await.ok();

    let major = u32::try_from(version / 10_000).unwrap_or_default();
    if major < MIN_MAJOR_VERSION {
        return Err(format!("it is PostgreSQL {major}, and {MIN_MAJOR_VERSION} or newer is required"));
    }
    if !may_create {
        return Err("its role has no right to create databases and roles".to_owned());
    }
    Ok(url)
}

/// Returns the host and the port of a URL, without its password.
fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or("a local socket");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
