//! The possible faults, and their random selection.
use std::{fmt, time::Duration};

use rand::{Rng, RngExt as _, seq::IndexedRandom as _};

use super::locks::{Lock, TABLES};
use crate::{
    example::gateway::{Faults, Malformation, Webhooks},
    postgres::Failover,
};

/// The points in the code of payments and refunds at which a replica can crash. `platform::resilience::crash`
/// implements the crash.
pub const CRASH_POINTS: [&str; 16] = [
    "payment.beginning",
    "payment.begun",
    "payment.responded",
    "payment.settling",
    "payment.settled",
    "recovery.leased",
    "recovery.responded",
    "recovery.sending",
    "refund.beginning",
    "refund.begun",
    "refund.responded",
    "refund.settling",
    "refund.settled",
    "webhook.applied",
    "webhook.claimed",
    "webhook.received",
];

/// A component that the replicas or their callers reach through a TCP proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Api,
    Database,
    Gateway,
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Api => "replicas",
            Self::Database => "database",
            Self::Gateway => "gateway",
        })
    }
}

/// A secret that is rotated on one replica, while the gateway keeps the old value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    ApiKey,
    WebhookSecret,
}

/// A fault. Delays, stalls, rotated secrets and gateway faults last until the end of the round's fault period.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// `kill -9` of a replica.
    Kill { replica: usize },
    /// A replica that crashes when it reaches the given crash point.
    Crash { replica: usize, point: &'static str },
    /// A replica whose log is on a full disk.
    FullDisk { replica: usize },
    /// A restart of PostgreSQL with a fast shutdown, which rolls back open transactions.
    RestartDatabase,
    /// `kill -9` of PostgreSQL.
    KillDatabase,
    /// All connections to a component are cut at the same time.
    Cut(Component),
    /// All traffic to and from a component is delayed.
    Slow(Component, Duration),
    /// All traffic to and from a component stops.
    Stall(Component),
    /// Faults of the gateway itself and of its webhooks.
    Gateway(Faults),
    /// Another database session holds locks for this time.
    Lock(Lock, Duration),
    /// An export of the audit log while another transaction reads it.
    ExportDuringRead,
    /// A replica that is restarted with a secret that differs from the gateway's secret.
    Rotation { replica: usize, secret: Secret },
    /// Signed events of the gateway that are unusable, or contradict a settled payment or refund.
    OddEvents,
    /// A client that sends texts which the service must reject, such as texts that PostgreSQL cannot store.
    HostileTexts,
    /// Password changes during logins with the old password.
    PasswordChanges,
    /// Clients that send slowly, and clients that never read.
    SlowClients,
    /// Another database server becomes the primary.
    Failover(Failover),
}

impl Fault {
    /// Returns the name under which the fault is counted.
    pub fn name(&self) -> String {
        match self {
            Self::Kill { .. } => "kill -9 of a replica".to_owned(),
            Self::Crash { .. } => "replica crashes at a crash point".to_owned(),
            Self::FullDisk { .. } => "disk full for a replica's log".to_owned(),
            Self::RestartDatabase => "database restarted".to_owned(),
            Self::KillDatabase => "kill -9 of the database".to_owned(),
            Self::Cut(component) => format!("{component} cut off"),
            Self::Slow(component, _) => format!("{component} slow"),
            Self::Stall(component) => format!("{component} stalled"),
            Self::Gateway(faults) => gateway_fault_name(faults).to_owned(),
            Self::Lock(Lock::Table(_), _) => "table locked for seconds".to_owned(),
            Self::Lock(Lock::Rows(_), _) => "rows locked for seconds".to_owned(),
            Self::ExportDuringRead => "audit export during a read".to_owned(),
            Self::Rotation { secret: Secret::ApiKey, .. } => "API key rotated on one replica".to_owned(),
            Self::Rotation { secret: Secret::WebhookSecret, .. } => {
                "webhook secret rotated on one replica".to_owned()
            }
            Self::OddEvents => "odd events of the gateway".to_owned(),
            Self::HostileTexts => "hostile texts of a client".to_owned(),
            Self::PasswordChanges => "passwords changed during logins".to_owned(),
            Self::SlowClients => "slow readers and slow bodies".to_owned(),
            Self::Failover(failover) => failover_name(*failover).to_owned(),
        }
    }
}

fn failover_name(failover: Failover) -> &'static str {
    match failover {
        Failover::ProcessKilled => "primary killed, standby promoted",
        Failover::HostLost => "primary's host lost, standby promoted",
        Failover::Switchover => "switchover",
        Failover::Restore => "restored to an earlier point",
    }
}

fn gateway_fault_name(faults: &Faults) -> &'static str {
    let defaults = Faults::default();
    match faults.webhooks {
        Webhooks::Normal => {}
        Webhooks::Late => return "webhooks late",
        Webhooks::Twice => return "webhooks twice",
        Webhooks::Never => return "webhooks never",
    }
    if faults.error_rate > defaults.error_rate {
        "gateway fails before charging"
    } else if faults.error_rate_after_charge > defaults.error_rate_after_charge {
        "gateway fails after charging"
    } else if faults.cut_rate > defaults.cut_rate {
        "gateway cuts connections after charging"
    } else if faults.decline_rate > defaults.decline_rate {
        "gateway declines"
    } else if faults.list_omit_rate > defaults.list_omit_rate {
        "gateway lists objects late, twice, in the wrong order, or not"
    } else if faults.malformation_rate > defaults.malformation_rate {
        match faults.malformation {
            Malformation::Garbage => "gateway responds with garbage",
            Malformation::Huge => "gateway responds with too much data",
            Malformation::Amount => "gateway responds with another amount",
            Malformation::Currency => "gateway responds with another currency",
            Malformation::Reference => "gateway responds with another payment",
            Malformation::Nul | Malformation::Surrogate => "gateway responds with an invalid id",
            Malformation::Record => "gateway has records with an unknown status",
            Malformation::Long => "gateway responds with an over-long id",
            Malformation::Missing => "gateway responds without some fields",
            Malformation::Second => "gateway lists second charges and refunds",
        }
    } else {
        "gateway responds late"
    }
}

/// A fault, and its time since the start of the round.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledFault {
    pub after: Duration,
    pub fault: Fault,
}

impl fmt::Display for ScheduledFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (", self.fault.name())?;
        match &self.fault {
            Fault::Kill { replica } | Fault::FullDisk { replica } | Fault::Rotation { replica, .. } => {
                write!(formatter, "{replica}, ")?;
            }
            Fault::Lock(Lock::Table(table) | Lock::Rows(table), time) => {
                write!(formatter, "{table}, {} ms, ", time.as_millis())?;
            }
            Fault::Crash { replica, point } => write!(formatter, "{replica}, {point}, ")?,
            Fault::Slow(_, delay) => write!(formatter, "{} ms, ", delay.as_millis())?,
            _ => {}
        }
        write!(formatter, "after {:.1} s)", self.after.as_secs_f64())
    }
}

/// Draws the faults of one round: a kill or crash, a gateway fault, a fault of clients, locks or secrets
/// (`docs/campaign.md`), and often a fourth fault. The fourth fault is a network fault, a database fault, a full disk
/// or a kill. Returns the faults in chronological order.
pub fn draw(rng: &mut impl Rng, replicas: usize, length: Duration) -> Vec<ScheduledFault> {
    let mut faults = vec![
        kill_or_crash(rng, replicas),
        Fault::Gateway(gateway_faults(rng)),
        client_or_lock_fault(rng, replicas),
    ];
    if rng.random_bool(0.6) {
        faults.push(network_or_database_fault(rng, replicas));
    }
    schedule(rng, faults, length, Vec::new())
}

/// Draws the faults of one round with a failover: a change of the primary, a gateway fault, and sometimes a kill or
/// crash. Returns the faults in chronological order.
pub fn draw_failover(rng: &mut impl Rng, replicas: usize, length: Duration) -> Vec<ScheduledFault> {
    let failover = match rng.random_range(0..8) {
        0..=2 => Failover::ProcessKilled,
        3 | 4 => Failover::HostLost,
        5 | 6 => Failover::Switchover,
        _ => Failover::Restore,
    };
    let mut faults = vec![Fault::Gateway(gateway_faults(rng))];
    if rng.random_bool(0.3) {
        faults.push(kill_or_crash(rng, replicas));
    }
    // A restore occurs as late as possible, so that many rows since the base backup are lost.
    let share = if failover == Failover::Restore { 1.0 } else { rng.random() };
    let after = latest_time(length).mul_f64(share);
    let failover = ScheduledFault { after, fault: Fault::Failover(failover) };
    schedule(rng, faults, length, vec![failover])
}

/// Returns the latest time at which a fault starts. The rest of the fault period gives the fault time to take effect.
fn latest_time(length: Duration) -> Duration {
    length.mul_f64(0.6)
}

/// Draws the time of each fault. Returns these faults with the already scheduled ones, in chronological order.
fn schedule(
    rng: &mut impl Rng,
    faults: Vec<Fault>,
    length: Duration,
    mut scheduled: Vec<ScheduledFault>,
) -> Vec<ScheduledFault> {
    let drawn = faults.into_iter().map(|fault| {
        let after = latest_time(length).mul_f64(rng.random());
        ScheduledFault { after, fault }
    });
    scheduled.extend(drawn);
    scheduled.sort_by_key(|fault| fault.after);
    scheduled
}

fn kill_or_crash(rng: &mut impl Rng, replicas: usize) -> Fault {
    let replica = rng.random_range(0..replicas);
    match CRASH_POINTS.choose(rng) {
        Some(point) if rng.random_bool(0.5) => Fault::Crash { replica, point },
        _ => Fault::Kill { replica },
    }
}

fn gateway_faults(rng: &mut impl Rng) -> Faults {
    let seed = rng.random();
    let defaults = Faults { seed, ..Faults::default() };
    match rng.random_range(0..11) {
        0 => Faults { error_rate: 0.5, error_status: 503, ..defaults },
        1 => Faults { error_rate_after_charge: 0.5, ..defaults },
        2 => Faults { cut_rate: 0.5, ..defaults },
        3 => Faults { decline_rate: 0.5, ..defaults },
        4 => Faults { latency_ms: 1_500, ..defaults },
        5 => Faults { webhooks: Webhooks::Late, ..defaults },
        6 => Faults { webhooks: Webhooks::Twice, ..defaults },
        7 | 8 => Faults { malformation_rate: 0.5, malformation: malformation(rng), ..defaults },
        9 => Faults {
            list_omit_rate: 0.5,
            list_lost_page_rate: 0.5,
            list_repeat_rate: 0.5,
            list_reorder_rate: 0.5,
            list_delay_ms: 2_000,
            ..defaults
        },
        _ => Faults { webhooks: Webhooks::Never, ..defaults },
    }
}

fn malformation(rng: &mut impl Rng) -> Malformation {
    match rng.random_range(0..11) {
        0 => Malformation::Garbage,
        1 => Malformation::Huge,
        2 => Malformation::Amount,
        3 => Malformation::Currency,
        4 => Malformation::Nul,
        5 => Malformation::Surrogate,
        6 => Malformation::Record,
        7 => Malformation::Long,
        8 => Malformation::Missing,
        9 => Malformation::Second,
        _ => Malformation::Reference,
    }
}

fn client_or_lock_fault(rng: &mut impl Rng, replicas: usize) -> Fault {
    let replica = rng.random_range(0..replicas);
    let table = TABLES.choose(rng).copied().unwrap_or_default();
    let time = Duration::from_millis(rng.random_range(1_000..5_000));
    match rng.random_range(0..9) {
        0 => Fault::Lock(Lock::Table(table), time),
        1 => Fault::Lock(Lock::Rows(table), time),
        2 => Fault::ExportDuringRead,
        3 => Fault::Rotation { replica, secret: Secret::ApiKey },
        4 => Fault::Rotation { replica, secret: Secret::WebhookSecret },
        5 => Fault::OddEvents,
        6 => Fault::HostileTexts,
        7 => Fault::PasswordChanges,
        _ => Fault::SlowClients,
    }
}

fn network_or_database_fault(rng: &mut impl Rng, replicas: usize) -> Fault {
    let component = match rng.random_range(0..3) {
        0 => Component::Api,
        1 => Component::Database,
        _ => Component::Gateway,
    };
    match rng.random_range(0..7) {
        0 => Fault::RestartDatabase,
        1 => Fault::KillDatabase,
        2 => Fault::Cut(component),
        3 => Fault::Slow(component, Duration::from_millis(rng.random_range(5..200))),
        4 => Fault::Stall(component),
        5 => Fault::FullDisk { replica: rng.random_range(0..replicas) },
        _ => Fault::Kill { replica: rng.random_range(0..replicas) },
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_faults() {
        let drawn = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..20).map(|_| draw(&mut rng, 3, Duration::from_secs(8))).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn a_round_of_failovers_changes_the_primary_exactly_once() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut drawn = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let faults = draw_failover(&mut rng, 3, Duration::from_secs(8));
            let is_failover = |fault: &&ScheduledFault| matches!(fault.fault, Fault::Failover(_));
            let mut failovers = faults.iter().filter(is_failover);
            drawn.insert(failovers.next().unwrap().fault.name());
            assert!(failovers.next().is_none(), "{faults:?}");
        }
        assert_eq!(drawn.len(), 4, "{drawn:?}");
    }

    #[test]
    fn every_fault_is_drawn() {
        let mut rng = StdRng::seed_from_u64(7);
        let drawn: std::collections::BTreeSet<_> = (0..2_000)
            .flat_map(|_| draw(&mut rng, 3, Duration::from_secs(8)))
            .map(|scheduled| match scheduled.fault {
                Fault::Crash { point, .. } => point.to_owned(),
                fault => fault.name(),
            })
            .collect();
        // A kill, a full disk, two database faults, three network faults for each of three components, nineteen gateway
        // faults, nine faults of clients, locks and secrets, and one fault for each crash point.
        assert_eq!(drawn.len(), 1 + 1 + 2 + 9 + 19 + 9 + CRASH_POINTS.len(), "{drawn:#?}");
    }
}
