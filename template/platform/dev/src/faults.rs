//! Faults of the surroundings, switched while the service runs: in the database, and at the door.
//!
//! There is one [`Switchboard`] for whoever switches: `cargo dev --scenario` by the clock, and the console by hand.
use std::{
    collections::{BTreeMap, VecDeque},
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

use crate::http;

/// How many ended faults are remembered.
const REMEMBERED: usize = 50;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The {{resource_plural_words}} are locked for a second and a half, again and again: latency and pool waits grow
    SlowDatabase,
    /// Someone guesses passwords: lockout, rate limit and audit trail
    LoginAttack,
}

impl Fault {
    /// Every one, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::SlowDatabase, Self::LoginAttack];

    /// As it is called on the command line and in addresses.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Why a fault cannot be switched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database cannot be reached: {0}")]
    Database(#[from] sqlx::Error),
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    #[error("an address cannot be written as a URL: {0}")]
    Url(#[from] url::ParseError),
}

/// What faults work on.
#[derive(Clone, Debug)]
pub struct Stage {
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
    player: AbortHandle,
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
    changed: watch::Sender<()>,
}

impl Drop for Board {
    fn drop(&mut self) {
        let switches = self.switches.get_mut().unwrap_or_else(PoisonError::into_inner);
        switches.active.values().for_each(|active| active.player.abort());
    }
}

impl Switchboard {
    /// With everything off.
    pub fn new(stage: Stage) -> Self {
        Self(Arc::new(Board { stage, switches: Mutex::default(), changed: watch::Sender::new(()) }))
    }

    /// Switches a fault on or off. What is so already stays so.
    pub async fn set(&self, fault: Fault, on: bool) -> Result<(), Error> {
        if self.is_on(fault) == on {
            return Ok(());
        }
        if on {
            self.begin(fault).await?;
        } else {
            self.end(fault);
        }
        self.0.changed.send_replace(());
        Ok(())
    }

    /// Back to normal: everything off.
    pub async fn clear(&self) -> Result<(), Error> {
        for fault in Fault::ALL {
            self.set(fault, false).await?;
        }
        Ok(())
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

    async fn begin(&self, fault: Fault) -> Result<(), Error> {
        let stage = &self.0.stage;
        let task = match fault {
            Fault::SlowDatabase => {
                let connection = PgConnection::connect(stage.owner_url.as_str()).await?;
                tokio::spawn(async move {
                    let _ = lock_{{resource_plural}}(connection).await;
                })
            }
            Fault::LoginAttack => {
                let (client, sessions) = (http::client(Duration::from_secs(10))?, stage.api.join("/v1/sessions")?);
                tokio::spawn(guess_passwords(client, sessions))
            }
        };
        let active = Active { began: Utc::now(), player: task.abort_handle() };
        if let Some(twin) = self.switches().active.insert(fault, active) {
            twin.player.abort();
        }
        Ok(())
    }

    fn end(&self, fault: Fault) {
        let mut switches = self.switches();
        let Some(Active { began, player }) = switches.active.remove(&fault) else { return };
        player.abort();
        switches.ended.push_back(Period { fault, began, ended: Some(Utc::now()) });
        if switches.ended.len() > REMEMBERED {
            switches.ended.pop_front();
        }
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.0.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn lock_{{resource_plural}}(mut connection: PgConnection) -> Result<(), sqlx::Error> {
    loop {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql("lock table {{resource_plural}} in access exclusive mode").execute(&mut *transaction).await?;
        sleep(Duration::from_millis(1500)).await;
        transaction.rollback().await?;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Accounts that nobody has, so that nobody's real login is locked afterwards. The service counts them alike.
async fn guess_passwords(client: reqwest::Client, sessions: Url) {
    let mut next = Instant::now();
    for guess in 0_u64.. {
        let login = json!({ "email": format!("root{}@example.com", guess % 3), "password": format!("guess-{guess}") });
        // Refusal is what is to be seen; whether this one was answered at all makes no difference.
        let _ = client.post(sessions.clone()).json(&login).send().await;
        next += Duration::from_millis(200);
        sleep_until(next).await;
    }
}
