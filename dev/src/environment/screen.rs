//! The one screen that says where everything is.
use std::{fmt, path::Path};

use url::Url;
use uuid::Uuid;

use super::database::LOGINS;
use crate::project;

/// What there is to see.
pub(super) struct Screen<'a> {
    pub(super) console: &'a str,
    pub(super) api: &'a Url,
    pub(super) ops: &'a Url,
    pub(super) gateway: &'a Url,
    pub(super) owner_url: &'a Url,
    pub(super) service_log: &'a Path,
    pub(super) product: Uuid,
    pub(super) traffic: Option<f64>,
}

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { console, api, ops, gateway, owner_url, service_log, .. } = self;
        writeln!(f, "\n{} is up.\n", project::name())?;
        writeln!(f, "  console         {console} (all of this, to look at)")?;
        writeln!(f, "  a paid order    {console}/traces/first (the trace of the first one)\n")?;
        writeln!(f, "  API             {api}")?;
        writeln!(f, "  its description {api}docs")?;
        writeln!(f, "  metrics         {ops}metrics")?;
        writeln!(f, "  health          {ops}health")?;
        writeln!(f, "  gateway         {gateway}ledger (what it charged), {gateway}faults")?;
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
        writeln!(f, "\nLog in, place an order, pay it:\n")?;
        self.examples(f)?;
        writeln!(f, "\nCtrl-C stops everything and checks the books. The data stays; --fresh begins anew.")
    }
}

impl Screen<'_> {
    /// Three lines that do what they say when they are pasted into any shell, one after the other. Only the
    /// first field of an answer is taken out of it, because nothing but `sed` can be counted on.
    fn examples(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api, product, .. } = self;
        let [customer, ..] = LOGINS;
        let json = "-H 'content-type: application/json'";
        let authorized = "-H \"authorization: Bearer $TOKEN\"";
        let key = "-H \"idempotency-key: $(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)\"";
        writeln!(
            f,
            "TOKEN=$(curl -s {api}v1/sessions {json} -d '{{\"email\":\"{}\",\"password\":\"{}\"}}' \
             | sed -n 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$TOKEN\"",
            customer.email, customer.password,
        )?;
        writeln!(
            f,
            "ORDER=$(curl -s {api}v1/orders {json} {authorized} {key} \
             -d '{{\"items\":[{{\"product_id\":\"{product}\",\"quantity\":2}}]}}' \
             | sed -n 's/^{{\"id\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$ORDER\"",
        )?;
        writeln!(
            f,
            "curl -s {api}v1/orders/$ORDER/payments {json} {authorized} {key} \
             -d '{{\"payment_method\":\"pm_card_ok\"}}'; echo",
        )
    }
}
