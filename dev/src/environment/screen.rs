//! The text that `cargo dev` prints after the start: addresses, users with their passwords, and example commands.
use std::{fmt, path::Path};

use url::Url;

use super::database::LOGINS;
use crate::project;

/// Argument of `curl`: the content type.
pub(crate) const JSON: &str = "-H 'content-type: application/json'";
/// Argument of `curl`: the session token, which the login command stores in `TOKEN`.
pub(crate) const AUTHORIZED: &str = "-H \"authorization: Bearer $TOKEN\"";
/// Argument of `curl`: a new idempotency key.
pub(crate) const NEW_KEY: &str =
    "-H \"idempotency-key: $(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)\"";

/// Contents of the screen.
pub(super) struct Screen<'a> {
    pub(super) console: &'a str,
    pub(super) api: &'a Url,
    pub(super) ops: &'a Url,
    /// The description of the trace that `/traces/first` shows.
    pub(super) first_trace: &'static str,
    pub(super) owner_url: &'a Url,
    pub(super) standby: bool,
    pub(super) service_log: &'a Path,
    pub(super) traffic: Option<f64>,
    /// Names and URLs of the external services.
    pub(super) external_services: &'a [(&'static str, String)],
    /// The heading of the example commands, and the commands that follow the login command.
    pub(super) commands: &'a (&'static str, Vec<String>),
}

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { console, api, ops, first_trace, owner_url, standby, service_log, .. } = self;
        writeln!(f, "\n{} is up.\n", project::name())?;
        writeln!(f, "  console         {console} (all telemetry)")?;
        writeln!(f, "  first trace     {console}/traces/first ({first_trace})\n")?;
        writeln!(f, "  API             {api}")?;
        writeln!(f, "  API document    {api}docs")?;
        writeln!(f, "  metrics         {ops}metrics")?;
        writeln!(f, "  health          {ops}health")?;
        for (name, url) in self.external_services {
            writeln!(f, "  {name:<15} {url}")?;
        }
        writeln!(f, "  database        psql '{owner_url}'")?;
        if *standby {
            writeln!(
                f,
                "  standby         {console}/faults (buttons for a failover and a restore; the data is temporary)"
            )?;
        }
        writeln!(f, "  log             {}", service_log.display())?;
        match self.traffic {
            Some(rate) => writeln!(f, "  traffic         {rate} requests per second")?,
            None => writeln!(f, "  traffic         none")?,
        }
        writeln!(f)?;
        for login in LOGINS {
            writeln!(f, "  {:<15} {}  {}", login.role, login.email, login.password)?;
        }
        writeln!(f, "\n{}\n", self.commands.0)?;
        self.write_commands(f)?;
        let data = if *standby { "The data is deleted." } else { "The data persists; --fresh deletes it." };
        writeln!(f, "\nCtrl-C stops everything. {data}")
    }
}

impl Screen<'_> {
    /// Writes the login command and the commands that follow it, for any POSIX shell. The commands extract fields of
    /// responses with `sed`, which every POSIX system has.
    fn write_commands(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [customer, ..] = LOGINS;
        writeln!(
            f,
            "TOKEN=$(curl -s {}v1/sessions {JSON} -d '{{\"email\":\"{}\",\"password\":\"{}\"}}' \
             | sed -n 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$TOKEN\"",
            self.api, customer.email, customer.password,
        )?;
        self.commands.1.iter().try_for_each(|command| writeln!(f, "{command}"))
    }
}
