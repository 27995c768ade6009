//! Faults that can be watched: in the metrics, the traces, the logs and the alerts.
//!
//! Each comes and goes, so that the way back can be seen too.
use std::{convert::Infallible, time::Duration};

use clap::ValueEnum;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use crate::{
    gateway::{Faults, Simulator},
    http,
};

const CALM: Duration = Duration::from_secs(45);
const FAULT: Duration = Duration::from_mins(2);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The payment gateway answers 503 to everything: the circuit breaker opens, payments are refused and
    /// those under way wait for its return
    GatewayOutage,
    /// The orders are locked for a second and a half, again and again: latency and pool waits grow
    SlowDatabase,
    /// Four of five payments are declined, and no alarm of an outage may sound
    DeclineStorm,
    /// Someone guesses passwords: lockout, rate limit and audit trail
    LoginAttack,
}

/// What a scenario works on.
pub(super) struct Stage<'a> {
    pub(super) gateway: &'a Simulator,
    pub(super) owner_url: &'a Url,
    pub(super) api: &'a Url,
}

impl Scenario {
    /// Plays calm and fault in turns until it is dropped.
    pub(super) async fn play(self, stage: &Stage<'_>, progress: &dyn Fn(&str)) -> Infallible {
        let name = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        loop {
            progress(&format!("{name}: begins in {} s", CALM.as_secs()));
            sleep(CALM).await;
            progress(&format!("{name}: now, for {} s", FAULT.as_secs()));
            // The end of the time is the end of the fault; what is left of an error is only for the eye.
            if let Ok(Err(error)) = timeout(FAULT, self.fault(stage)).await {
                progress(&format!("{name}: {error}"));
            }
            stage.gateway.faults().clear();
            progress(&format!("{name}: over"));
        }
    }

    async fn fault(self, stage: &Stage<'_>) -> Result<Infallible, Box<dyn std::error::Error>> {
        match self {
            Self::GatewayOutage => {
                stage.gateway.faults().set(Faults {
                    error_rate: 1.0,
                    error_status: 503,
                    ..Faults::default()
                });
                Ok(std::future::pending().await)
            }
            Self::DeclineStorm => {
                stage.gateway.faults().set(Faults { decline_rate: 0.8, ..Faults::default() });
                Ok(std::future::pending().await)
            }
            Self::SlowDatabase => lock_orders(stage.owner_url).await,
            Self::LoginAttack => guess_passwords(stage.api).await,
        }
    }
}

async fn lock_orders(owner_url: &Url) -> Result<Infallible, Box<dyn std::error::Error>> {
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
async fn guess_passwords(api: &Url) -> Result<Infallible, Box<dyn std::error::Error>> {
    let client = http::client(Duration::from_secs(10))?;
    let sessions = api.join("/v1/sessions")?;
    let started = Instant::now();
    for guess in 0_u64.. {
        let login = json!({ "email": format!("root{}@example.com", guess % 3), "password": format!("guess-{guess}") });
        // Refusal is what is to be seen; whether this one was answered at all makes no difference.
        let _ = client.post(sessions.clone()).json(&login).send().await;
        tokio::time::sleep_until(started + Duration::from_millis(200) * u32::try_from(guess + 1)?).await;
    }
    Ok(std::future::pending().await)
}
