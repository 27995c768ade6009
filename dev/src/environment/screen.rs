//! The one screen that says where everything is.
use std::{fmt, path::Path};

use url::Url;

use super::database::LOGINS;
use crate::project;

/// Arguments of `curl`: the type of a body, the session of the login above, and a new idempotency key.
pub(crate) const JSON: &str = "-H 'content-type: application/json'";
pub(crate) const AUTHORIZED: &str = "-H \"authorization: Bearer $TOKEN\"";
pub(crate) const NEW_KEY: &str =
    "-H \"idempotency-key: $(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)\"";

/// What there is to see.
pub(super) struct Screen<'a> {
    pub(super) console: &'a str,
    pub(super) api: &'a Url,
    pub(super) ops: &'a Url,
    /// The trace that `/traces/first` shows.
    pub(super) first_trace: &'static str,
    pub(super) owner_url: &'a Url,
    pub(super) service_log: &'a Path,
    pub(super) traffic: Option<f64>,
    /// Of the services that ours calls: a name, and what is there.
    pub(super) neighbours: &'a [(&'static str, String)],
    /// Commands that follow the login: a heading, and lines for any shell.
    pub(super) commands: &'a (&'static str, Vec<String>),
}

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { console, api, ops, first_trace, owner_url, service_log, .. } = self;
        writeln!(f, "\n{} is up.\n", project::name())?;
        writeln!(f, "  console         {console} (all of this, to look at)")?;
        writeln!(f, "  a first trace   {console}/traces/first ({first_trace})\n")?;
        writeln!(f, "  API             {api}")?;
        writeln!(f, "  its description {api}docs")?;
        writeln!(f, "  metrics         {ops}metrics")?;
        writeln!(f, "  health          {ops}health")?;
        for (name, place) in self.neighbours {
            writeln!(f, "  {name:<15} {place}")?;
        }
        writeln!(f, "  database        psql '{owner_url}'")?;
        writeln!(f, "  log             {}", service_log.display())?;
        match self.traffic {
            Some(rate) => writeln!(f, "  traffic         {rate} requests a second")?,
            None => writeln!(f, "  traffic         none")?,
        }
        writeln!(f)?;
        for login in LOGINS {
            writeln!(f, "  {:<15} {}  {}", login.role, login.email, login.password)?;
        }
        writeln!(f, "\n{}\n", self.commands.0)?;
        self.write_commands(f)?;
        writeln!(f, "\nCtrl-C stops everything. The data stays; --fresh begins anew.")
    }
}

impl Screen<'_> {
    /// Writes lines that do what they say when they are pasted into any shell, one after the other. Only the first
    /// field of an answer is taken out of it, because nothing but `sed` can be counted on.
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
