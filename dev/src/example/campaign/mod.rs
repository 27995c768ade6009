//! An attack on a service of several replicas, for as long as one likes: no payment is lost, none is made twice.
//!
//! A round has two halves. First faults strike, drawn by the seed, while customers order and pay and a clerk gives
//! money back. Then everything is made well again, and within a stated time every outcome must be known and the
//! books must agree. The same seed draws the same faults in the same order; what they hit depends on the moment.
//!
//! - [`faults`]: what can go wrong, and the draw
//! - `fleet`: the replicas, which are started again when they die
//! - `full_disk`: a directory in which nothing can be written
//! - `stage`: everything that takes part, and what a fault does to it
//! - `clerk`: gives money back, and insists
//! - `report`: what was done, and what came of it
mod clerk;
pub mod faults;
mod fleet;
mod full_disk;
mod report;
mod stage;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use rand::{SeedableRng as _, rngs::StdRng};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

pub use self::report::Report;
use self::{clerk::Clerk, faults::Strike, stage::Stage};
use crate::{
    environment,
    example::{gateway, invariants},
    postgres,
    process::WaitError,
    traffic::{self, Traffic},
};

/// How long faults strike in a round.
const STRIKES: Duration = Duration::from_secs(8);

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// Once everything is well, every outcome is known within this time, and every replica is ready.
const SETTLING: Duration = Duration::from_mins(1);

/// What is attacked, and for how long.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service's executable, with debug assertions: only then can it be told where to die.
    pub executable: PathBuf,
    /// Draws the faults and the traffic.
    pub seed: u64,
    pub length: Length,
    pub replicas: usize,
    /// Requests of the customers, a second.
    pub rate_per_second: f64,
}

/// How long a campaign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Rounds(u32),
    /// As many rounds as begin within this time.
    Time(Duration),
}

/// Why a campaign could not be carried on. What it finds out about the service is in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Environment(#[from] environment::Error),
    #[error(transparent)]
    Gateway(#[from] gateway::Error),
    #[error(transparent)]
    Invariants(#[from] invariants::Error),
    #[error("PostgreSQL says: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    #[error("an address cannot be written as a URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wait(#[from] WaitError),
}

/// Carries a campaign out. It ends early at the first round that leaves something that must not be.
pub async fn run(settings: Settings, progress: &dyn Fn(&str)) -> Result<Report, Error> {
    let mut stage = Stage::set(&settings, progress).await?;
    let traffic = Traffic::start(traffic::Settings {
        rate_per_second: settings.rate_per_second,
        seed: settings.seed,
        ..traffic::Settings::new(stage.api_url()?)
    })?;
    let clerk = Clerk::start(stage.api_url()?, stage.owner_url().clone(), settings.seed)?;

    let mut dice = StdRng::seed_from_u64(settings.seed);
    let mut report = Report::new(settings.seed);
    let started = Instant::now();
    for round in 1.. {
        let over = match settings.length {
            Length::Rounds(rounds) => round > rounds,
            Length::Time(time) => started.elapsed() >= time,
        };
        if over {
            break;
        }
        let strikes = faults::draw(&mut dice, settings.replicas, STRIKES);
        let told: Vec<_> = strikes.iter().map(ToString::to_string).collect();
        progress(&format!("round {round}: {}", told.join(", ")));
        report.begins(&strikes);
        strike(&mut stage, &strikes, progress).await?;
        stage.heal();
        let violations = settle(&mut stage, progress).await?;
        report.ends(violations);
        if !report.holds() {
            break;
        }
    }

    report.clerk = clerk.stop().await;
    report.traffic = traffic.stop().await;
    report.died = stage.deaths();
    report.verdict = Some(stage.check().await?);
    stage.strike_down().await?;
    Ok(report)
}

/// Lets each fault strike at its moment. Whoever dies is started again.
async fn strike(stage: &mut Stage, strikes: &[Strike], progress: &dyn Fn(&str)) -> Result<(), Error> {
    let started = Instant::now();
    let mut due = strikes.iter().peekable();
    while started.elapsed() < STRIKES {
        while let Some(strike) = due.next_if(|strike| strike.after <= started.elapsed()) {
            stage.suffer(&strike.fault, progress).await?;
        }
        stage.revive()?;
        sleep(TICK).await;
    }
    Ok(())
}

/// Waits until every replica is ready and every outcome is known that was not when everything became well. What
/// is still missing when the time is over, and whatever does not agree in the books, is a violation.
async fn settle(stage: &mut Stage, progress: &dyn Fn(&str)) -> Result<Vec<String>, Error> {
    let healed = DateTime::<Utc>::from(SystemTime::now());
    let deadline = Instant::now() + SETTLING;
    let mut missing = String::new();
    while Instant::now() < deadline {
        stage.revive()?;
        missing = match (stage.are_ready().await, stage.unknown_since(healed).await?) {
            (true, 0) => break,
            (ready, unknown) => format!("replicas ready: {ready}; outcomes unknown: {unknown}"),
        };
        sleep(TICK * 4).await;
    }
    let mut violations = Vec::new();
    if Instant::now() >= deadline {
        violations.push(format!("not settled within {} s: {missing}", SETTLING.as_secs()));
        violations.extend(stage.condition().await);
    }
    let verdict = stage.check().await?;
    progress(&format!("  {verdict}"));
    violations.extend(verdict.violations.iter().map(ToString::to_string));
    violations.extend(stage.verify_trail().await?);
    Ok(violations)
}

/// Payments and refunds that were begun before `moment` and whose outcome is not known.
async fn unknown_since(owner_url: &str, moment: DateTime<Utc>) -> Result<i64, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let unknown = sqlx::query_scalar(
        "select (select count(*) from payments where status = 'processing' and created_at < $1)
              + (select count(*) from refunds where status = 'processing' and created_at < $1)",
    )
    .bind(moment)
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(unknown)
}
