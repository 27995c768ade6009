//! The database URL: one PostgreSQL URL that may name several hosts, and the connection to the writable primary among
//! them.
//!
//! sqlx 0.9.0 supports only one host, and has no `target_session_attrs`. sqlx also keeps the brackets of an IPv6
//! address, and ignores unknown parameters. This module accepts URLs in libpq's syntax, and rejects every parameter
//! that would have no effect.
use std::{
    borrow::Cow,
    fmt::{self, Debug, Display, Formatter},
    io,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};

use sqlx::{
    ConnectOptions, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    net::lookup_host,
    task::JoinSet,
    time::{sleep, timeout},
};
use url::form_urlencoded;

use super::sqlstate;

/// Timeout of one lookup of a host's addresses, and of one connection attempt, unless the URL has a `connect_timeout`.
/// Without a timeout, an attempt would wait for minutes for a host that does not respond. After the timeout, a new
/// attempt looks up the name again, and may reach another host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the next host or address is tried while the previous one has not responded yet (RFC 8305, section 8).
const STAGGER_INTERVAL: Duration = Duration::from_millis(250);

/// Pause before a host with a retryable error is tried again, while another host has not responded yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The parameters that sqlx applies, except `options` ([`is_option`]). This module handles `target_session_attrs`,
/// `connect_timeout`, `host`, `hostaddr` and `port`.
const SQLX_PARAMETERS: [&str; 14] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// A PostgreSQL URL. Its `Debug` and `Display` forms contain hosts and ports only.
#[derive(Clone)]
pub struct DatabaseUrl {
    first: PgConnectOptions,
    others: Vec<PgConnectOptions>,
    connect_timeout: Duration,
}

/// The reason why a database cannot be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
pub enum Unavailable {
    /// No host could be connected to, for example because of a timeout, a refused connection, or a TLS error.
    Unreachable,
    /// A host responds and rejects the connection, for example because of a wrong password, an unknown database, or too
    /// many connections.
    Rejected,
    /// The server is read-only: `transaction_read_only` is on.
    ReadOnly,
    /// The server is a standby: `pg_is_in_recovery()` is true.
    Standby,
}

impl Unavailable {
    /// Returns the reason as a fixed text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "the database is unreachable",
            Self::Rejected => "the database rejects connections",
            Self::ReadOnly => "the database is read-only",
            Self::Standby => "the database is a standby",
        }
    }

    /// Returns the reason why a connection attempt or a check for a writable primary failed.
    pub(super) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(_) => Self::Rejected,
            sqlx::Error::Io(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>());
                inner.copied().unwrap_or(Self::Unreachable)
            }
            _ => Self::Unreachable,
        }
    }
}

impl From<Unavailable> for sqlx::Error {
    fn from(reason: Unavailable) -> Self {
        Self::Io(io::Error::other(reason))
    }
}

impl DatabaseUrl {
    /// Returns the database role that the URL names.
    pub fn username(&self) -> &str {
        self.first.get_username()
    }

    pub(super) fn database(&self) -> Option<&str> {
        self.first.get_database()
    }

    /// Returns host and port, or `None` if the URL names several hosts, because the host of a connection is then
    /// unknown.
    pub(super) fn server(&self) -> Option<(&str, u16)> {
        self.others.is_empty().then(|| (self.first.get_host(), self.first.get_port()))
    }

    /// Returns whether the connection to at least one remote host is without TLS. sqlx handles `allow` like `disable`.
    pub fn is_plaintext(&self) -> bool {
        self.any_remote(|mode| matches!(mode, PgSslMode::Disable | PgSslMode::Allow))
    }

    /// Returns whether the connection to at least one remote host may be without TLS. `prefer` accepts a server without
    /// TLS.
    pub fn may_be_plaintext(&self) -> bool {
        self.any_remote(|mode| matches!(mode, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer))
    }

    fn any_remote(&self, mode: impl Fn(PgSslMode) -> bool) -> bool {
        self.servers().any(|server| !is_local(server) && mode(server.get_ssl_mode()))
    }

    /// Sets the application name, unless the URL or `PGAPPNAME` sets one.
    #[must_use]
    pub(crate) fn application_name(self, name: &str) -> Self {
        self.map(|server| match server.get_application_name() {
            Some(_) => server,
            None => server.application_name(name),
        })
    }

    /// Appends ` monitor` to the application name, to identify the monitor's connection in `pg_stat_activity`.
    pub(super) fn for_monitor(self) -> Self {
        self.map(|server| {
            let name = format!("{} monitor", server.get_application_name().unwrap_or_default());
            server.application_name(&name)
        })
    }

    /// Disables the statement timeout of connections that are opened with the URL.
    #[must_use]
    pub(crate) fn without_statement_timeout(self) -> Self {
        self.map(|server| server.options([("statement_timeout", "0")]))
    }

    fn map(self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        Self {
            first: change(self.first),
            others: self.others.into_iter().map(&change).collect(),
            connect_timeout: self.connect_timeout,
        }
    }

    fn servers(&self) -> impl Iterator<Item = &PgConnectOptions> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Connects to a host that is a writable primary. The hosts are tried in the order of the URL ([`race`]). Names are
    /// resolved at each call, so that a changed DNS record takes effect.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let connect_timeout = self.connect_timeout;
        race(self.servers().cloned().collect(), |server| connect_to_server(server, connect_timeout)).await
    }
}

/// Returns whether a server is reached without a network, by a Unix socket or a loopback address.
fn is_local(server: &PgConnectOptions) -> bool {
    let host = server.get_host();
    server.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Connects to one host, trying each address of its name.
///
/// With `sslmode=require` and stricter modes, sqlx receives the name instead of an address. The reason is that TLS
/// sends the name to the server, and that `verify-full` compares the name with the certificate. In these modes, tokio
/// tries the addresses of the name, one after the other.
async fn connect_to_server(
    server: PgConnectOptions,
    connect_timeout: Duration,
) -> Result<PgConnection, sqlx::Error> {
    let tls_needs_name =
        !matches!(server.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
    if server.get_socket().is_some() || server.get_host().starts_with('/') || tls_needs_name {
        return connect_to_address(server, connect_timeout).await;
    }
    let resolved = timeout(connect_timeout, lookup_host((server.get_host(), server.get_port()))).await;
    let addresses = resolved.map_err(|_elapsed| Unavailable::Unreachable)??;
    let servers = addresses.map(|address| server.clone().host(&address.ip().to_string())).collect();
    race(servers, |server| connect_to_address(server, connect_timeout)).await
}

/// Opens a connection, and accepts it only if the server is a writable primary.
async fn connect_to_address(
    server: PgConnectOptions,
    connect_timeout: Duration,
) -> Result<PgConnection, sqlx::Error> {
    let connect = async {
        let mut connection = server.connect().await?;
        require_writable_primary(&mut connection).await.map(|()| connection)
    };
    timeout(connect_timeout, connect)
        .await
        .unwrap_or_else(|_elapsed| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// Checks in one round trip that the server is a writable primary.
///
/// # Errors
/// [`Unavailable::Standby`] or [`Unavailable::ReadOnly`] inside of [`sqlx::Error::Io`], or the statement's error.
pub(super) async fn require_writable_primary(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = "select pg_is_in_recovery(), current_setting('transaction_read_only')::boolean";
    let state = sqlx::raw_sql(statement).fetch_one(connection).await?;
    if state.try_get(0)? {
        Err(Unavailable::Standby.into())
    } else if state.try_get(1)? {
        Err(Unavailable::ReadOnly.into())
    } else {
        Ok(())
    }
}

/// Connects to one of `servers`, which are tried in order. The next server is tried when an attempt has failed, or
/// after [`STAGGER_INTERVAL`]. Returns the first connection, or the most informative error.
///
/// While a server has not responded yet, servers with a retryable error are tried again every [`RETRY_INTERVAL`]. A
/// lost host never responds, so without these retries a promoted standby would be noticed only after the lost host's
/// timeout.
async fn race<S, C, F>(servers: Vec<S>, connect: impl Fn(S) -> F) -> Result<C, sqlx::Error>
where
    S: Clone + Send + 'static,
    C: Send + 'static,
    F: Future<Output = Result<C, sqlx::Error>> + Send + 'static,
{
    let attempt = |server: S, pause: Duration| {
        let connecting = connect(server.clone());
        async move {
            sleep(pause).await;
            (server, pause.is_zero(), connecting.await)
        }
    };
    let mut untried = servers.into_iter();
    let mut running = JoinSet::new();
    let mut without_response = 0_usize;
    let mut failure = sqlx::Error::from(Unavailable::Unreachable);
    loop {
        if let Some(server) = untried.next() {
            without_response += 1;
            running.spawn(attempt(server, Duration::ZERO));
        } else if without_response == 0 {
            return Err(failure);
        }
        tokio::select! {
            Some(finished) = running.join_next() => {
                let Ok((server, is_first, result)) = finished else { return Err(failure) };
                without_response -= usize::from(is_first);
                let error = match result {
                    Ok(connection) => return Ok(connection),
                    Err(error) => error,
                };
                if is_retryable(&error) {
                    running.spawn(attempt(server, RETRY_INTERVAL));
                }
                if rank(&error) >= rank(&failure) {
                    failure = error;
                }
            }
            () = sleep(STAGGER_INTERVAL), if untried.len() > 0 => {}
        }
    }
}

/// Returns whether a later attempt may succeed. This holds if the connection was refused, or if the server is starting
/// (57P03) or has no free connection slot (53300). It also holds if the server is not writable, because a standby may
/// be promoted later.
pub(super) fn is_retryable(error: &sqlx::Error) -> bool {
    if matches!(Unavailable::of(error), Unavailable::ReadOnly | Unavailable::Standby) {
        return true;
    }
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        other => sqlstate(other).is_some_and(|code| code == "57P03" || code == "53300"),
    }
}

/// Returns the rank of an error. If all hosts fail, [`race`] returns the error with the highest rank, because that
/// error is the most informative. A server that is starting (57P03) ranks like an unreachable one.
fn rank(error: &sqlx::Error) -> u8 {
    match Unavailable::of(error) {
        Unavailable::Standby | Unavailable::ReadOnly => 2,
        Unavailable::Rejected if sqlstate(error).is_none_or(|code| code != "57P03") => 1,
        Unavailable::Rejected | Unavailable::Unreachable => 0,
    }
}

impl Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let host =
                server.get_socket().map_or(Cow::Borrowed(server.get_host()), |path| path.to_string_lossy());
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            write!(formatter, "{separator}{open}{host}{close}:{}", server.get_port())?;
        }
        Ok(())
    }
}

impl Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({self})")
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    /// Parses a URL. The error contains no text of the URL except the name of an unsupported parameter, because the
    /// text may contain a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || "must be a PostgreSQL URL, such as postgres://user:password@host:5432/database".to_owned();
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(expected)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let (user, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));

        let mut parameters = Parameters::parse(query)?;
        let hosts = match parameters.hosts.take() {
            Some(hosts) => hosts,
            None => hosts.split(',').map(split_port).collect::<Option<_>>().ok_or_else(expected)?,
        };
        let ports = parameters.ports.take().unwrap_or_default();
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err("must name as many ports as hosts, or one port".into());
        }

        let user = user.map_or_else(String::new, |user| format!("{user}@"));
        let servers = hosts.into_iter().enumerate().map(|(index, (host, port))| {
            let host = if host.is_empty() { default_host() } else { host };
            let port = ports.get(index).or_else(|| ports.first()).copied().or(port);
            let encoded_host = if host.contains(':') {
                format!("[{host}]")
            } else {
                form_urlencoded::byte_serialize(host.as_bytes()).collect()
            };
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            let url = format!("postgres://{user}{encoded_host}{port}{path}?{}", parameters.for_sqlx);
            let options: PgConnectOptions = url.parse().map_err(|_| expected())?;
            // PgBouncer and similar poolers reject the start-up parameter `extra_float_digits`. PostgreSQL 12 and later
            // do not need it for exact numbers, and sqlx reads numbers in binary form anyway.
            let options = options.extra_float_digits(None);
            // sqlx keeps the brackets of an IPv6 address, and then cannot resolve the address.
            Ok(if host.starts_with('/') { options } else { options.host(&host) })
        });
        let mut servers = servers.collect::<Result<Vec<_>, String>>()?.into_iter();
        let first = servers.next().ok_or_else(expected)?;
        let others = servers.collect();
        Ok(Self { first, others, connect_timeout: parameters.connect_timeout.unwrap_or(CONNECT_TIMEOUT) })
    }
}

/// Returns the host that sqlx uses for a URL without a host: `PGHOSTADDR`, `PGHOST`, an existing socket in a default
/// directory, or `localhost`.
fn default_host() -> String {
    PgConnectOptions::new_without_pgpass().get_host().to_owned()
}

/// Splits `host`, `host:port`, `[address]` or `[address]:port`. Percent-encoded socket paths are decoded.
fn split_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(address) => {
            let (address, port) = address.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let host = if host.contains('%') {
        let encoded = host.replace('+', "%2B");
        form_urlencoded::parse(encoded.as_bytes()).next().map(|(host, _)| host.into_owned())?
    } else {
        host.to_owned()
    };
    let port = port.filter(|port| !port.is_empty());
    Some((host, port.map(str::parse).transpose().ok()?))
}

/// The parameters of a URL.
#[derive(Default)]
struct Parameters {
    hosts: Option<Vec<(String, Option<u16>)>>,
    ports: Option<Vec<u16>>,
    connect_timeout: Option<Duration>,
    /// The parameters that sqlx applies, as a query string.
    for_sqlx: String,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut for_sqlx = form_urlencoded::Serializer::new(String::new());
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "host" | "hostaddr" => {
                    parsed.hosts = Some(value.split(',').map(|host| (host.to_owned(), None)).collect());
                }
                "port" => {
                    let ports: Result<_, _> = value.split(',').map(str::parse).collect();
                    parsed.ports = Some(ports.map_err(|_| "has a port that is not a number".to_owned())?);
                }
                "connect_timeout" => {
                    let seconds: Option<u64> =
                        value.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
                    let seconds = seconds.ok_or("has a connect_timeout that is not 1 to 3600 seconds")?;
                    parsed.connect_timeout = Some(Duration::from_secs(seconds));
                }
                // These values need no further code, because this module always requires a writable primary.
                "target_session_attrs" if matches!(&*value, "read-write" | "primary") => {}
                "target_session_attrs" => {
                    return Err(
                        "must have read-write or primary for target_session_attrs, because the service writes".into(),
                    );
                }
                known if SQLX_PARAMETERS.contains(&known) || is_option(known) => {
                    for_sqlx.append_pair(known, &value);
                }
                // A query with `@` is probably the rest of a password that is not percent-encoded, so the error must
                // not contain any part of the query.
                unknown if !query.contains('@') => {
                    return Err(format!("has the parameter `{unknown}`, which is not supported"));
                }
                _ => return Err("has a parameter that is not supported".into()),
            }
        }
        parsed.for_sqlx = for_sqlx.finish();
        Ok(parsed)
    }
}

/// Returns whether the name is `options` or `options[name]`.
fn is_option(name: &str) -> bool {
    name == "options" || name.strip_prefix("options[").is_some_and(|name| name.ends_with(']'))
}

#[cfg(test)]
mod tests;
