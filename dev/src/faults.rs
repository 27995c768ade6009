//! Faults that are switched on and off at run time: of the database, of the login, and of the external services
//! ([`example::FAULTS`]).
//!
//! `cargo dev --scenario` switches one fault at fixed intervals. The console switches each fault at the user's request.
//! Both use one [`Switchboard`].
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::{ValueEnum, builder::PossibleValue};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

pub use crate::example::FaultError as Error;
use crate::{
    example::{self, Addresses},
    http,
};

/// Maximum number of stored periods of ended faults.
const MAX_PERIODS: usize = 50;

/// A fault, identified by its name on the command line and in URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault(&'static str);

/// The faults that do not depend on the domain, each with its line in `--help`.
const COMMON: [(Fault, &str); 2] = [
    (
        Fault::SLOW_DATABASE,
        "A frequently used table is locked repeatedly for 1.5 seconds: latency and pool waits grow",
    ),
    (Fault::LOGIN_ATTACK, "A client guesses passwords: lockout, rate limit and audit log respond"),
];

static ALL: LazyLock<Vec<Fault>> = LazyLock::new(|| {
    let external = example::FAULTS.iter().map(|(name, _)| Fault(name));
    external.chain(COMMON.map(|(fault, _)| fault)).collect()
});

impl Fault {
    pub const SLOW_DATABASE: Self = Self("slow-database");
    pub const LOGIN_ATTACK: Self = Self("login-attack");
    /// A failover, which has a button in place of a switch.
    pub(crate) const FAILOVER: Self = Self("failover");
    /// A restore, which has a button in place of a switch.
    pub(crate) const RESTORE: Self = Self("restore");

    /// Returns every fault that has a switch, in display order.
    pub fn all() -> &'static [Self] {
        &ALL
    }

    /// Returns the fault with this name, if the fault has a switch.
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|fault| fault.0 == name)
    }

    /// Returns the name on the command line and in URLs.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Returns whether the fault affects an external service.
    fn is_external(self) -> bool {
        example::FAULTS.iter().any(|(name, _)| *name == self.0)
    }
}

impl ValueEnum for Fault {
    fn value_variants<'a>() -> &'a [Self] {
        Self::all()
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let common = COMMON.iter().find(|(fault, _)| fault == self).map(|(_, help)| *help);
        let help = common.or_else(|| Some(example::FAULTS.iter().find(|(name, _)| *name == self.0)?.1));
        Some(PossibleValue::new(self.0).help(help?))
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom(format!("unknown fault {name}")))
    }
}

/// The targets of faults.
#[derive(Clone, Debug)]
pub struct FaultTargets {
    pub external_services: Addresses,
    pub owner_url: Url,
    pub api: Url,
}

/// A period during which a fault was on.
#[derive(Clone, Debug, Serialize)]
pub struct Period {
    pub fault: Fault,
    pub began: DateTime<Utc>,
    /// `None` while the fault is on.
    pub ended: Option<DateTime<Utc>>,
}

struct ActiveFault {
    began: DateTime<Utc>,
    /// The task that causes the fault; `None` if an external service causes it.
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct Switches {
    active: BTreeMap<Fault, ActiveFault>,
    ended: VecDeque<Period>,
}

/// The switches of all faults. Clones share the switches. Dropping the last clone ends the faults that this process
/// causes itself.
#[derive(Clone)]
pub struct Switchboard(Arc<SwitchboardState>);

struct SwitchboardState {
    targets: FaultTargets,
    switches: Mutex<Switches>,
    /// Held while the active faults are read and sent to the external services, so that the last sent set is current.
    send_lock: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
}

impl Drop for SwitchboardState {
    fn drop(&mut self) {
        let switches = self.switches.get_mut().unwrap_or_else(PoisonError::into_inner);
        switches.active.values().filter_map(|active| active.task.as_ref()).for_each(AbortHandle::abort);
    }
}

impl Switchboard {
    /// Creates a switchboard with all faults off.
    pub fn new(targets: FaultTargets) -> Self {
        let (send_lock, changed) = (tokio::sync::Mutex::default(), watch::Sender::new(()));
        Self(Arc::new(SwitchboardState { targets, switches: Mutex::default(), send_lock, changed }))
    }

    /// Switches a fault on or off. Has no effect if the fault already has that state.
    pub async fn set(&self, fault: Fault, on: bool) -> Result<(), Error> {
        if self.is_on(fault) == on {
            return Ok(());
        }
        if on {
            self.begin(fault);
        } else {
            self.end(fault);
        }
        self.0.changed.send_replace(());
        if fault.is_external() { self.send().await } else { Ok(()) }
    }

    /// Switches all faults off, including faults that another client has set at the external services.
    pub async fn clear(&self) -> Result<(), Error> {
        for fault in Fault::all() {
            self.end(*fault);
        }
        self.0.changed.send_replace(());
        self.send().await
    }

    /// Returns whether the fault is on.
    pub fn is_on(&self, fault: Fault) -> bool {
        self.switches().active.contains_key(&fault)
    }

    /// Returns the ended periods in the order of their ends, and then the current periods.
    pub fn periods(&self) -> Vec<Period> {
        let switches = self.switches();
        let active = switches.active.iter();
        let active = active.map(|(fault, active)| Period { fault: *fault, began: active.began, ended: None });
        switches.ended.iter().cloned().chain(active).collect()
    }

    /// Returns a receiver that is notified of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn begin(&self, fault: Fault) {
        let targets = self.0.targets.clone();
        let task = match fault {
            Fault::SLOW_DATABASE => Some(tokio::spawn(async move {
                let _ = lock_table(&targets.owner_url).await;
            })),
            Fault::LOGIN_ATTACK => Some(tokio::spawn(async move {
                let _ = guess_passwords(&targets.api).await;
            })),
            _ => None,
        };
        let active = ActiveFault { began: Utc::now(), task: task.map(|task| task.abort_handle()) };
        self.switches().active.insert(fault, active);
    }

    fn end(&self, fault: Fault) {
        let mut switches = self.switches();
        let Some(ActiveFault { began, task }) = switches.active.remove(&fault) else { return };
        if let Some(task) = task {
            task.abort();
        }
        switches.ended.push_back(Period { fault, began, ended: Some(Utc::now()) });
        if switches.ended.len() > MAX_PERIODS {
            switches.ended.pop_front();
        }
    }

    /// Sends the active faults to the external services.
    async fn send(&self) -> Result<(), Error> {
        let _sending = self.0.send_lock.lock().await;
        let on: Vec<&str> = self.switches().active.keys().map(|fault| fault.name()).collect();
        example::set_faults(&self.0.targets.external_services, &on).await
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.0.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn lock_table(owner_url: &Url) -> Result<Infallible, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let lock = format!("lock table {} in access exclusive mode", example::TABLE);
    loop {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(AssertSqlSafe(lock.as_str())).execute(&mut *transaction).await?;
        sleep(Duration::from_millis(1500)).await;
        transaction.rollback().await?;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Guesses passwords of nonexistent accounts, so that no real account is locked afterwards. The service counts these
/// attempts like attempts at real accounts.
async fn guess_passwords(api: &Url) -> Option<Infallible> {
    let client = http::client(Duration::from_secs(10)).ok()?;
    let sessions = api.join("/v1/sessions").ok()?;
    let mut next = Instant::now();
    let mut guess = 0_u64;
    loop {
        let login = json!({ "email": format!("root{}@example.com", guess % 3), "password": format!("guess-{guess}") });
        // The responses are ignored, because only the attempts matter.
        let _ = client.post(sessions.clone()).json(&login).send().await;
        guess += 1;
        next += Duration::from_millis(200);
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_unique_name_and_a_description() {
        for fault in Fault::all() {
            assert_eq!(Fault::named(fault.name()), Some(*fault));
            assert!(fault.to_possible_value().unwrap().get_help().is_some(), "{}", fault.name());
        }
        assert_eq!(Fault::named("no-such-fault"), None);
        assert!(serde_json::from_str::<Fault>("\"no-such-fault\"").is_err());
    }
}
