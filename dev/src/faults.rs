//! Faults of the surroundings, switched while the service runs: in the gateway, in the database, and at the door.
//!
//! There is one [`Switchboard`] for whoever switches: `cargo dev --scenario` by the clock, and the console by hand.
//! The gateway's faults are set through its own API, so that what is switched here is what anybody may look up there.
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

use crate::{gateway, http};

/// How many ended faults are remembered.
const REMEMBERED: usize = 50;

const GATEWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The payment gateway answers 503 to everything: the circuit breaker opens, payments are refused and
    /// those under way wait for its return
    GatewayOutage,
    /// The payment gateway takes a second and a half for each answer
    GatewaySlow,
    /// Half of the payment gateway's answers are lost after the charge was made: the outcome is unknown, and
    /// has to be asked for
    LostAnswers,
    /// Four of five payments are declined, and no alarm of an outage may sound
    DeclineStorm,
    /// The orders are locked for a second and a half, again and again: latency and pool waits grow
    SlowDatabase,
    /// Someone guesses passwords: lockout, rate limit and audit trail
    LoginAttack,
}

impl Fault {
    /// Every one, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::GatewayOutage,
        Self::GatewaySlow,
        Self::LostAnswers,
        Self::DeclineStorm,
        Self::SlowDatabase,
        Self::LoginAttack,
    ];

    /// As it is called on the command line and in addresses.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn strikes_the_gateway(self) -> bool {
        !matches!(self, Self::SlowDatabase | Self::LoginAttack)
    }
}

/// Why a fault cannot be switched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the gateway does not take its faults: {0}")]
    Gateway(#[from] reqwest::Error),
    #[error("an address cannot be written as a URL: {0}")]
    Url(#[from] url::ParseError),
}

/// What faults work on.
#[derive(Clone, Debug)]
pub struct Stage {
    pub gateway: Url,
    pub owner_url: Url,
    pub api: Url,
}

/// A time for which a fault was on.
#[derive(Clone, Debug, Serialize)]
pub struct Period {
    pub fault: Fault,
    pub began: DateTime<Utc>,
    /// Nothing, as long as it is on.
    pub ended: Option<DateTime<Utc>>,
}

struct Active {
    began: DateTime<Utc>,
    /// What plays it, where that is not the gateway.
    player: Option<AbortHandle>,
}

#[derive(Default)]
struct Switches {
    active: BTreeMap<Fault, Active>,
    ended: VecDeque<Period>,
}

/// The switches. Clones switch the same faults; all of them end with the last clone.
#[derive(Clone)]
pub struct Switchboard(Arc<Board>);

struct Board {
    stage: Stage,
    switches: Mutex<Switches>,
    /// Held while the gateway is told, so that what it was told last is what is on.
    telling: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
}

impl Drop for Board {
    fn drop(&mut self) {
        let switches = self.switches.get_mut().unwrap_or_else(PoisonError::into_inner);
        switches.active.values().filter_map(|active| active.player.as_ref()).for_each(AbortHandle::abort);
    }
}

impl Switchboard {
    /// With everything off.
    pub fn new(stage: Stage) -> Self {
        let (telling, changed) = (tokio::sync::Mutex::default(), watch::Sender::new(()));
        Self(Arc::new(Board { stage, switches: Mutex::default(), telling, changed }))
    }

    /// Switches a fault on or off. What is so already stays so.
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
        if fault.strikes_the_gateway() { self.tell_the_gateway().await } else { Ok(()) }
    }

    /// Back to normal: everything off, also what was set at the gateway by others.
    pub async fn clear(&self) -> Result<(), Error> {
        for fault in Fault::ALL {
            self.end(fault);
        }
        self.0.changed.send_replace(());
        self.tell_the_gateway().await
    }

    /// Whether it is on.
    pub fn is_on(&self, fault: Fault) -> bool {
        self.switches().active.contains_key(&fault)
    }

    /// What was on, and what is, oldest first.
    pub fn periods(&self) -> Vec<Period> {
        let switches = self.switches();
        let active = switches.active.iter();
        let active = active.map(|(fault, active)| Period { fault: *fault, began: active.began, ended: None });
        switches.ended.iter().cloned().chain(active).collect()
    }

    /// Told about every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn begin(&self, fault: Fault) {
        let stage = self.0.stage.clone();
        let player = match fault {
            Fault::SlowDatabase => Some(tokio::spawn(async move {
                let _ = lock_orders(&stage.owner_url).await;
            })),
            Fault::LoginAttack => Some(tokio::spawn(async move {
                let _ = guess_passwords(&stage.api).await;
            })),
            _ => None,
        };
        let active = Active { began: Utc::now(), player: player.map(|task| task.abort_handle()) };
        self.switches().active.insert(fault, active);
    }

    fn end(&self, fault: Fault) {
        let mut switches = self.switches();
        let Some(Active { began, player }) = switches.active.remove(&fault) else { return };
        if let Some(player) = player {
            player.abort();
        }
        switches.ended.push_back(Period { fault, began, ended: Some(Utc::now()) });
        if switches.ended.len() > REMEMBERED {
            switches.ended.pop_front();
        }
    }

    async fn tell_the_gateway(&self) -> Result<(), Error> {
        let _telling = self.0.telling.lock().await;
        let faults = self.gateway_faults();
        let url = self.0.stage.gateway.join("/faults")?;
        let told = http::client(GATEWAY_TIMEOUT)?.put(url).json(&faults).send().await?;
        told.error_for_status()?;
        Ok(())
    }

    fn gateway_faults(&self) -> gateway::Faults {
        let mut faults = gateway::Faults::default();
        if self.is_on(Fault::GatewayOutage) {
            (faults.error_rate, faults.error_status) = (1.0, 503);
        }
        if self.is_on(Fault::GatewaySlow) {
            faults.latency_ms = 1500;
        }
        if self.is_on(Fault::LostAnswers) {
            faults.cut_rate = 0.5;
        }
        if self.is_on(Fault::DeclineStorm) {
            faults.decline_rate = 0.8;
        }
        faults
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.0.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn lock_orders(owner_url: &Url) -> Result<Infallible, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    loop {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql("lock table orders in access exclusive mode").execute(&mut *transaction).await?;
        sleep(Duration::from_millis(1500)).await;
        transaction.rollback().await?;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Accounts that nobody has, so that nobody's real login is locked afterwards. The service counts them alike.
async fn guess_passwords(api: &Url) -> Result<Infallible, Error> {
    let client = http::client(Duration::from_secs(10))?;
    let sessions = api.join("/v1/sessions")?;
    let mut next = Instant::now();
    let mut guess = 0_u64;
    loop {
        let login = json!({ "email": format!("root{}@example.com", guess % 3), "password": format!("guess-{guess}") });
        // Refusal is what is to be seen; whether this one was answered at all makes no difference.
        let _ = client.post(sessions.clone()).json(&login).send().await;
        guess += 1;
        next += Duration::from_millis(200);
        sleep_until(next).await;
    }
}
