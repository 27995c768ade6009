//! The one screen that says where everything is.
use std::{fmt, path::Path};

use url::Url;

use super::database::LOGINS;
use crate::project;

/// Braces, as JSON has them: this file has been filled in by a template, and they stay out of its way.
const OPEN: char = '{';
const CLOSE: char = '}';

/// What there is to see.
pub(super) struct Screen<'a> {
    pub(super) console: &'a str,
    pub(super) api: &'a Url,
    pub(super) ops: &'a Url,
    pub(super) owner_url: &'a Url,
    pub(super) service_log: &'a Path,
    pub(super) traffic: Option<f64>,
}

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { console, api, ops, owner_url, service_log, .. } = self;
        writeln!(f, "\n{} is up.\n", project::name())?;
        writeln!(f, "  console         {console} (all of this, to look at)")?;
        writeln!(f, "  a first trace   {console}/traces/first (of the first {{resource}} that is created)\n")?;
        writeln!(f, "  API             {api}")?;
        writeln!(f, "  its description {api}docs")?;
        writeln!(f, "  metrics         {ops}metrics")?;
        writeln!(f, "  health          {ops}health")?;
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
        writeln!(f, "\nLog in, create something, read it:\n")?;
        self.examples(f)?;
        writeln!(f, "\nCtrl-C stops everything. The data stays; --fresh begins anew.")
    }
}

impl Screen<'_> {
    /// Three lines that do what they say when they are pasted into any shell, one after the other. Only the
    /// first field of an answer is taken out of it, because nothing but `sed` can be counted on.
    fn examples(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api, .. } = self;
        let [customer, ..] = LOGINS;
        let json = "-H 'content-type: application/json'";
        let authorized = "-H \"authorization: Bearer $TOKEN\"";
        let key = "-H \"idempotency-key: $(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)\"";
        writeln!(
            f,
            "TOKEN=$(curl -s {api}v1/sessions {json} -d '{OPEN}\"email\":\"{}\",\"password\":\"{}\"{CLOSE}' \
             | sed -n 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$TOKEN\"",
            customer.email, customer.password,
        )?;
        writeln!(
            f,
            "ID=$(curl -s {api}v1/{{resource_plural}} {json} {authorized} {key} -d '{OPEN}\"name\":\"First\"{CLOSE}' \
             | sed -n 's/^{OPEN}\"id\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$ID\"",
        )?;
        writeln!(f, "curl -s {api}v1/{{resource_plural}}/$ID {authorized}; echo")
    }
}
