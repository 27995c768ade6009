//! The results of a campaign that changes the primary.
use std::{collections::BTreeMap, fmt, time::Duration};

use super::{faults::Fault, orphans::OrphanReport, percentile::percentile};
use crate::postgres::{Failover, ReplicationMode};

/// The results of all changes of the primary, and of the buyers' requests during the campaign.
#[derive(Debug, Clone)]
pub struct FailoverReport {
    pub mode: ReplicationMode,
    pub changes: BTreeMap<Failover, ChangeReport>,
    /// Number of orders that the service acknowledged with a 2xx response.
    pub orders: u64,
    /// Number of payments that the service acknowledged with a 2xx response.
    pub payments: u64,
    /// Charges beyond the first one for the same purchase.
    pub double_charges: usize,
    /// Number of lost payments that a retry with the same idempotency key has restored.
    pub restored_by_retry: u64,
    /// Charges and refunds of the gateway whose rows are lost.
    pub orphans: OrphanReport,
    /// Number of responses that request a retry, by status.
    pub retry_responses: BTreeMap<u16, u64>,
    /// Requests without a response.
    pub without_response: u64,
    /// Responses that the API contract does not allow.
    pub unexpected: Vec<String>,
}

/// The results of all changes of the primary by one kind of [`Failover`].
#[derive(Debug, Clone, Default)]
pub struct ChangeReport {
    pub times: u32,
    /// Number of acknowledged orders that are not in the new primary.
    pub lost_orders: usize,
    /// Number of acknowledged payments that are not in the new primary.
    pub lost_payments: usize,
    /// Time from the moment at which the new primary accepts writes until a write succeeds, for each change and each
    /// replica. Replicas that were restarted meanwhile, or at which no write succeeded, are left out.
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
            orphans: OrphanReport::default(),
            retry_responses: BTreeMap::new(),
            without_response: 0,
            unexpected: Vec::new(),
        }
    }

    /// Returns whether no customer was charged twice, and all responses followed the API contract.
    pub(super) fn holds(&self) -> bool {
        self.double_charges == 0 && self.unexpected.is_empty()
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
                percentile(&change.recoveries, 50),
                percentile(&change.recoveries, 99),
                percentile(&change.recoveries, 100),
            )?;
        }
        let all: Vec<_> = self.changes.values().flat_map(|change| change.recoveries.clone()).collect();
        writeln!(
            formatter,
            "{} changes of the primary, writes succeed within {:.2} s at p99 of {} measurements",
            self.changes.values().map(|change| change.times).sum::<u32>(),
            percentile(&all, 99),
            all.len(),
        )?;
        write!(
            formatter,
            "{} orders and {} payments acknowledged, {} double charges; {} lost payments restored by a retry; \
             {}; responses that request a retry: {:?}; {} requests without a response; {} unexpected \
             responses",
            self.orders,
            self.payments,
            self.double_charges,
            self.restored_by_retry,
            self.orphans,
            self.retry_responses,
            self.without_response,
            self.unexpected.len(),
        )
    }
}
