//! A test campaign against a service of several replicas, of any length: no payment is lost, and none is made twice.
//!
//! A round has two halves. In the first half faults drawn from the seed occur, while customers order and pay and a
//! clerk issues refunds. In the second half all faults end. Within a fixed time every outcome must then be known, and
//! the reconciliation must find no difference. The same seed draws the same faults in the same order; their effect
//! depends on timing.
//!
//! - [`faults`]: the possible faults, and their random selection
//! - `failovers`: the results of changes of the primary
//! - `buyers`: customers who remember what the service has acknowledged
//! - `fleet`: the replicas, which are restarted when they die
//! - `full_disk`: a directory in which nothing can be written
//! - `hostile_clients`: texts that cannot be stored, slow bodies and slow readers
//! - `locks`: locks of other sessions, and an export of the audit log beside a reader
//! - `odd_events`: events of the gateway that are unusable, or contradict a settled payment
//! - `orphans`: charges and refunds whose rows are lost
//! - `passwords`: password changes beside logins
//! - `test_bed`: all components, and the execution of faults
//! - `refunder`: issues refunds and retries them
//! - `report`: the faults and the results
mod buyers;
mod failovers;
pub mod faults;
mod fleet;
mod full_disk;
mod hostile_clients;
mod locks;
mod odd_events;
mod orphans;
mod passwords;
mod refunder;
mod report;
mod test_bed;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use rand::{SeedableRng as _, rngs::StdRng};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

use self::{
    buyers::Buyers,
    faults::{Fault, ScheduledFault},
    refunder::Refunder,
    test_bed::TestBed,
};
pub use self::{failovers::FailoverReport, report::Report};
use crate::{
    environment,
    example::{gateway, invariants},
    failover,
    postgres::{self, ReplicationMode},
    process::WaitError,
    traffic::{self, Traffic},
};

/// Duration of the faults in a round.
const STRIKES: Duration = Duration::from_secs(8);

/// Minimum duration of the faults in a round of failovers. It lasts until writes succeed at every replica.
const FAILOVER_STRIKES: Duration = Duration::from_secs(4);

/// Number of rounds of failovers until every outcome must be known. So primaries also change while outcomes of earlier
/// rounds are unknown.
const FAILOVERS_PER_SETTLEMENT: u32 = 3;

/// Interval of checks for due faults.
const TICK: Duration = Duration::from_millis(50);

/// Time after the end of all faults within which every outcome must be known and every replica ready.
const SETTLE_TIME: Duration = Duration::from_mins(1);

/// Number of rounds between two verifications of the audit log. Each reads the whole log.
const ROUNDS_PER_VERIFICATION: u32 = 10;

/// The tested service, and the length of the campaign.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service's executable, built with debug assertions. Crash points exist only in such a build.
    pub executable: PathBuf,
    /// Seed of the faults and the traffic.
    pub seed: u64,
    pub length: Length,
    pub replicas: usize,
    /// Customer requests per second. Buyers have a rate of their own.
    pub rate_per_second: f64,
    /// Changes the primary in every round, with buyers as customers. `None` for a database without a standby.
    pub failover: Option<ReplicationMode>,
}

/// Length of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Rounds(u32),
    /// All rounds that begin within this time.
    Time(Duration),
}

/// The reason why a campaign was aborted. Findings about the service are in the [`Report`].
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
    #[error("PostgreSQL error: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("failed to create an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("an address is not a valid URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    Failover(#[from] failover::Error),
}

/// Runs a campaign. The campaign ends early at the first round with a violation.
pub async fn run(settings: Settings, progress: &dyn Fn(&str)) -> Result<Report, Error> {
    let mut stage = TestBed::set(&settings, progress).await?;
    let fails_over = settings.failover.is_some();
    let mut buyers = match settings.failover {
        Some(mode) => Some(Buyers::start(&stage, mode).await?),
        None => None,
    };
    let traffic = traffic::Settings {
        rate_per_second: settings.rate_per_second,
        seed: settings.seed,
        ..traffic::Settings::new(stage.api_url()?)
    };
    let traffic = (!fails_over).then(|| Traffic::start(traffic)).transpose()?;
    let clerk = Refunder::start(stage.api_url()?, stage.owner_url().clone(), settings.seed, fails_over)?;

    let mut dice = StdRng::seed_from_u64(settings.seed);
    let mut report = Report::new(settings.seed);
    // The first round begins when every replica is ready.
    report.ends(settle(&mut stage, progress).await?);
    let started = Instant::now();
    for round in 1.. {
        let over = match settings.length {
            Length::Rounds(rounds) => round > rounds,
            Length::Time(time) => started.elapsed() >= time,
        };
        if over {
            break;
        }
        let strikes = if fails_over {
            faults::draw_failover(&mut dice, settings.replicas, FAILOVER_STRIKES)
        } else {
            faults::draw(&mut dice, settings.replicas, STRIKES)
        };
        let told: Vec<_> = strikes.iter().map(ToString::to_string).collect();
        progress(&format!("round {round}: {}", told.join(", ")));
        report.begins(&strikes);
        stage.prepare(&strikes).await?;
        strike(&mut stage, &strikes, buyers.as_mut(), progress).await?;
        stage.heal(progress).await?;
        let mut violations = Vec::new();
        if !fails_over || round % FAILOVERS_PER_SETTLEMENT == 0 {
            violations.extend(settle(&mut stage, progress).await?);
        }
        if let Some(buyers) = &mut buyers {
            violations.extend(buyers.review(&stage).await?);
        }
        if round % ROUNDS_PER_VERIFICATION == 0 {
            violations.extend(stage.verify_audit_log().await?);
        }
        report.ends(violations);
        if !report.holds() {
            break;
        }
    }

    report.ends(settle(&mut stage, progress).await?);
    report.clerk = clerk.stop().await;
    if let Some(traffic) = traffic {
        report.traffic = traffic.stop().await;
    }
    report.died = stage.deaths();
    if let Some(buyers) = buyers {
        let (violations, orphans) = stage.wait_for_orphans().await?;
        report.ends(violations);
        report.failovers = Some(FailoverReport { orphans, ..buyers.stop().await });
    }
    report.ends(stage.verify_audit_log().await?.into_iter().collect());
    report.verdict = Some(stage.check().await?);
    stage.strike_down().await?;
    Ok(report)
}

/// Executes each fault at its time. Restarts dead replicas.
async fn strike(
    stage: &mut TestBed,
    strikes: &[ScheduledFault],
    mut buyers: Option<&mut Buyers>,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    let started = Instant::now();
    let mut due = strikes.iter().peekable();
    let length = if buyers.is_some() { FAILOVER_STRIKES } else { STRIKES };
    while started.elapsed() < length || buyers.as_mut().is_some_and(|buyers| buyers.are_probing(stage)) {
        while let Some(strike) = due.next_if(|strike| strike.after <= started.elapsed()) {
            stage.suffer(&strike.fault, progress).await?;
            if let (Fault::Failover(failover), Some(buyers)) = (&strike.fault, &mut buyers) {
                buyers.failed_over(*failover, stage);
            }
        }
        stage.revive(progress)?;
        sleep(TICK).await;
    }
    Ok(())
}

/// Waits until every replica is ready and every outcome that was unknown at the end of the faults is known. Missing
/// outcomes at the deadline, and differences found by the reconciliation, are violations.
async fn settle(stage: &mut TestBed, progress: &dyn Fn(&str)) -> Result<Vec<String>, Error> {
    let healed = DateTime::<Utc>::from(SystemTime::now());
    let deadline = Instant::now() + SETTLE_TIME;
    let mut missing = String::new();
    while Instant::now() < deadline {
        stage.revive(progress)?;
        missing = match (stage.are_ready().await, stage.unknown_since(healed).await?) {
            (true, 0) => {
                missing.clear();
                break;
            }
            (ready, unknown) => format!("replicas ready: {ready}; outcomes unknown: {unknown}"),
        };
        sleep(TICK * 4).await;
    }
    let mut violations = stage.findings().await;
    if !missing.is_empty() {
        violations.push(format!("not settled within {} s: {missing}", SETTLE_TIME.as_secs()));
        violations.extend(stage.condition().await);
    }
    let verdict = stage.check().await?;
    progress(&format!("  {verdict}"));
    violations.extend(verdict.violations.iter().map(ToString::to_string));
    violations.extend(stage.review_orphans(&verdict, healed).await?);
    Ok(violations)
}

/// Counts payments and refunds from before `moment` with an unknown outcome.
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
