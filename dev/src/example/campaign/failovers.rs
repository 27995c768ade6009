//! The results of a campaign that changes the primary.
use std::{collections::BTreeMap, fmt, time::Duration};

use super::faults::Fault;
use crate::postgres::{Failover, ReplicationMode};

/// The results of all changes of the primary, and of the customers' requests meanwhile.
#[derive(Debug, Clone)]
pub struct FailoverReport {
    pub mode: ReplicationMode,
    pub changes: BTreeMap<Failover, ChangeReport>,
    /// Orders and payments that were acknowledged with a 2xx response.
    pub orders: u64,
    pub payments: u64,
    /// Charges beyond the first one for the same purchase.
    pub double_charges: usize,
    /// Lost payments that the client's retry under the same key has restored, without a second charge.
    pub restored_by_retry: u64,
    /// Charges and refunds of the gateway without a row in the database.
    pub orphans: usize,
    /// Orphans that the service itself has recorded as discrepancies.
    pub orphans_found: i64,
    /// Number of responses that request a retry, by status.
    pub turned_away: BTreeMap<u16, u64>,
    /// Requests without a response.
    pub unanswered: u64,
    /// Every other response.
    pub unexpected: Vec<String>,
}

/// The results of the changes of one kind.
#[derive(Debug, Clone, Default)]
pub struct ChangeReport {
    pub times: u32,
    /// Acknowledged orders and payments that are not in the new primary.
    pub lost_orders: usize,
    pub lost_payments: usize,
    /// Time from the promotion until a write succeeds, for each replica.
    pub recoveries: Vec<Duration>,
}

impl FailoverReport {
    pub(super) fn new(mode: ReplicationMode) -> Self {
        Self {
            mode,
            changes: BTreeMap::new(),
            orders: 0,
            payments: 0,
            double_charges: 0,
            restored_by_retry: 0,
            orphans: 0,
            orphans_found: 0,
            turned_away: BTreeMap::new(),
            unanswered: 0,
            unexpected: Vec::new(),
        }
    }

    /// Returns whether no customer was charged twice, and all responses followed the API contract.
    pub(super) fn holds(&self) -> bool {
        self.double_charges == 0 && self.unexpected.is_empty()
    }
}

impl ChangeReport {
    /// Returns the time within which this share of the writes succeeded.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.recoveries.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or_default().as_secs_f64()
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| {:?} | times | orders lost | payments lost | p50 | p99 | max |", self.mode)?;
        writeln!(formatter, "|---|--:|--:|--:|--:|--:|--:|")?;
        for (failover, change) in &self.changes {
            writeln!(
                formatter,
                "| {} | {} | {} | {} | {:.2} s | {:.2} s | {:.2} s |",
                Fault::Failover(*failover).name(),
                change.times,
                change.lost_orders,
                change.lost_payments,
                change.percentile(50),
                change.percentile(99),
                change.percentile(100),
            )?;
        }
        write!(
            formatter,
            "{} orders and {} payments acknowledged, {} double charges; {} lost payments restored by a retry; \
             {} orphans, {} of them found by the service; turned away {:?}, {} unanswered, {} unexpected",
            self.orders,
            self.payments,
            self.double_charges,
            self.restored_by_retry,
            self.orphans,
            self.orphans_found,
            self.turned_away,
            self.unanswered,
            self.unexpected.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_time_that_so_many_kept() {
        let recoveries = (1..=200).rev().map(Duration::from_secs).collect();
        let change = ChangeReport { recoveries, ..ChangeReport::default() };
        let shown = [50, 99, 100].map(|percent| change.percentile(percent).to_string());
        assert_eq!(shown, ["100", "198", "200"]);
        assert_eq!(ChangeReport::default().percentile(99).to_bits(), 0.0_f64.to_bits());
    }
}
