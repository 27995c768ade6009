//! A test campaign that injects faults into several replicas of the service. The campaign checks that no payment is
//! charged twice, and that none is lost except in a failover that may lose confirmed commits.
//!
//! A round has two parts. In the first part the campaign injects faults drawn from the seed. The second part begins
//! when the delays, stalls, rotated secrets and gateway faults have ended. Every replica must then be ready within a
//! minute, and every earlier payment and refund must have an outcome. The reconciliation of the service's tables with
//! the gateway's ledger must find no violation. A campaign with failovers makes these checks only at its start, after
//! every third round and at its end. Customers order and pay, and a support user refunds payments, in both parts. The
//! same seed draws the same faults in the same order, but their effect depends on timing.
//!
//! - [`faults`]: the possible faults, and their random selection
//! - `failovers`: the results of changes of the database primary
//! - `buyers`: customers who retry requests, and remember every acknowledged order and payment
//! - `fleet`: the replicas, which are restarted after an exit
//! - `full_disk`: a directory whose log files cannot be written
//! - `hostile_clients`: texts that the service must reject, slow bodies, and clients that never read
//! - `locks`: locks of other database sessions, and an export of the audit log during a read
//! - `odd_events`: events of the gateway that are unusable, or contradict a settled payment or refund
//! - `orphans`: charges and refunds of the gateway whose rows in the database are lost
//! - `passwords`: password changes during logins
//! - `percentile`: percentiles of measured times
//! - `test_bed`: the database, the gateway, the replicas and the proxies, and the execution of faults
//! - `refunder`: a support user who issues refunds and retries them
//! - `report`: the faults and the results of a campaign
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
mod percentile;
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

/// Minimum duration of the first part of a round without a failover.
const FAULT_PERIOD: Duration = Duration::from_secs(8);

/// Minimum duration of the first part of a round with a failover. The first part continues until a write has succeeded
/// at each replica or has timed out.
const FAILOVER_FAULT_PERIOD: Duration = Duration::from_secs(4);

/// Number of rounds between two calls of [`settle`] in a campaign with failovers. After the other rounds, the next
/// failover happens while outcomes of earlier rounds can still be unknown.
const FAILOVERS_PER_SETTLEMENT: u32 = 3;

/// Interval of checks for due faults and dead replicas. [`settle`] checks replicas and outcomes once in four intervals.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time after the end of a round's faults until every outcome is known and every replica is ready.
const SETTLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Number of rounds between two verifications of the audit log. Verifications are rare, because each reads the whole
/// audit log.
const ROUNDS_PER_VERIFICATION: u32 = 10;

/// Settings of a campaign: the tested service, the length, the seed, the traffic and the failovers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service's executable, built with debug assertions. Crash points exist only in such a build.
    pub executable: PathBuf,
    /// Seed of the faults and the traffic.
    pub seed: u64,
    pub length: Length,
    pub replicas: usize,
    /// Requests of the traffic per second. Unused in a campaign with failovers, in which buyers with their own rate
    /// replace the traffic.
    pub rate_per_second: f64,
    /// Replication mode of a campaign that changes the primary in every round. `None` for a database without a standby.
    pub failover: Option<ReplicationMode>,
}

/// Length of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Rounds(u32),
    /// All rounds that start within this time.
    Time(Duration),
}

/// The reason why a campaign was aborted. Violations by the service are in the [`Report`].
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

/// Runs a campaign. The campaign ends after the first round with a violation.
pub async fn run(settings: Settings, progress: &dyn Fn(&str)) -> Result<Report, Error> {
    let mut test_bed = TestBed::start(&settings, progress).await?;
    let has_failovers = settings.failover.is_some();
    let mut buyers = match settings.failover {
        Some(mode) => Some(Buyers::start(&test_bed, mode).await?),
        None => None,
    };
    let traffic = traffic::Settings {
        rate_per_second: settings.rate_per_second,
        seed: settings.seed,
        ..traffic::Settings::new(test_bed.api_url()?)
    };
    let traffic = (!has_failovers).then(|| Traffic::start(traffic)).transpose()?;
    let refunder =
        Refunder::start(test_bed.api_url()?, test_bed.owner_url().clone(), settings.seed, has_failovers)?;

    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut report = Report::new(settings.seed);
    // Waits until every replica is ready, before the first round. A timeout is a violation.
    report.add_violations(settle(&mut test_bed, progress).await?);
    let started = Instant::now();
    for round in 1.. {
        let is_done = match settings.length {
            Length::Rounds(rounds) => round > rounds,
            Length::Time(time) => started.elapsed() >= time,
        };
        if is_done {
            break;
        }
        let scheduled_faults = if has_failovers {
            faults::draw_failover(&mut rng, settings.replicas, FAILOVER_FAULT_PERIOD)
        } else {
            faults::draw(&mut rng, settings.replicas, FAULT_PERIOD)
        };
        let descriptions: Vec<_> = scheduled_faults.iter().map(ToString::to_string).collect();
        progress(&format!("round {round}: {}", descriptions.join(", ")));
        report.start_round(&scheduled_faults);
        test_bed.prepare(&scheduled_faults).await?;
        inject_faults(&mut test_bed, &scheduled_faults, buyers.as_mut(), progress).await?;
        test_bed.end_faults(progress).await?;
        let mut violations = Vec::new();
        if !has_failovers || round % FAILOVERS_PER_SETTLEMENT == 0 {
            violations.extend(settle(&mut test_bed, progress).await?);
        }
        if let Some(buyers) = &mut buyers {
            violations.extend(buyers.review(&test_bed).await?);
        }
        if round % ROUNDS_PER_VERIFICATION == 0 {
            violations.extend(test_bed.verify_audit_log().await?);
        }
        report.add_violations(violations);
        if !report.holds() {
            break;
        }
    }

    report.add_violations(settle(&mut test_bed, progress).await?);
    report.refunds = refunder.stop().await;
    if let Some(traffic) = traffic {
        report.traffic = traffic.stop().await;
    }
    report.replica_exits = test_bed.replica_exits();
    if let Some(buyers) = buyers {
        let (violations, orphans) = test_bed.wait_for_orphans().await?;
        report.add_violations(violations);
        report.failovers = Some(FailoverReport { orphans, ..buyers.stop().await });
    }
    report.add_violations(test_bed.verify_audit_log().await?.into_iter().collect());
    report.reconciliation = Some(test_bed.reconcile().await?);
    test_bed.stop().await?;
    Ok(report)
}

/// Injects each fault at its scheduled time, and restarts dead replicas. Returns once the fault period is over and all
/// faults are injected. After a failover, also waits until a write has succeeded or timed out at every replica.
async fn inject_faults(
    test_bed: &mut TestBed,
    scheduled_faults: &[ScheduledFault],
    mut buyers: Option<&mut Buyers>,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    let started = Instant::now();
    let mut upcoming = scheduled_faults.iter().peekable();
    let length = if buyers.is_some() { FAILOVER_FAULT_PERIOD } else { FAULT_PERIOD };
    while started.elapsed() < length
        || upcoming.peek().is_some()
        || buyers.as_mut().is_some_and(|buyers| buyers.collect_probes(test_bed))
    {
        while let Some(scheduled) = upcoming.next_if(|scheduled| scheduled.after <= started.elapsed()) {
            test_bed.inject(&scheduled.fault, progress).await?;
            if let (Fault::Failover(failover), Some(buyers)) = (&scheduled.fault, &mut buyers) {
                buyers.start_probes(*failover, test_bed);
            }
        }
        test_bed.restart_dead_replicas(progress)?;
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Waits until every replica is ready, and every payment and refund from before this call has an outcome. Restarts dead
/// replicas meanwhile. Returns a violation and the state of each replica if [`SETTLE_TIMEOUT`] passes first. Also
/// returns the violations found by the concurrent faults and by the reconciliation, and one violation for each orphan
/// (`orphans`) that the service has not recorded in time.
async fn settle(test_bed: &mut TestBed, progress: &dyn Fn(&str)) -> Result<Vec<String>, Error> {
    let faults_ended = DateTime::<Utc>::from(SystemTime::now());
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut missing = String::new();
    while Instant::now() < deadline {
        test_bed.restart_dead_replicas(progress)?;
        missing = match (test_bed.are_ready().await, test_bed.count_unknown_from_before(faults_ended).await?)
        {
            (true, 0) => {
                missing.clear();
                break;
            }
            (ready, unknown) => format!("replicas ready: {ready}; outcomes unknown: {unknown}"),
        };
        sleep(POLL_INTERVAL * 4).await;
    }
    let mut violations = test_bed.finish_concurrent_faults().await;
    if !missing.is_empty() {
        violations.push(format!("not settled within {} s: {missing}", SETTLE_TIMEOUT.as_secs()));
        violations.extend(test_bed.describe_replicas().await);
    }
    let reconciliation = test_bed.reconcile().await?;
    progress(&format!("  {reconciliation}"));
    violations.extend(reconciliation.violations.iter().map(ToString::to_string));
    violations.extend(test_bed.review_orphans(&reconciliation, faults_ended).await?);
    Ok(violations)
}

/// Counts payments and refunds from before `moment` with an unknown outcome.
async fn count_unknown_from_before(owner_url: &str, moment: DateTime<Utc>) -> Result<i64, sqlx::Error> {
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
