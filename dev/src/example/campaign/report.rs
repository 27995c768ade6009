//! The report of a campaign: its faults and its results.
use std::{collections::BTreeMap, fmt};

use super::{failovers::FailoverReport, faults::ScheduledFault, refunder::RefundReport};
use crate::{example::invariants::CheckReport, traffic};

/// The results of a campaign.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    pub rounds: u32,
    /// Number of occurrences of each fault.
    pub faults: BTreeMap<String, u32>,
    /// Number of replica processes that were killed, crashed or exited, and were then replaced.
    pub replica_exits: u32,
    /// Violations, with the round of each.
    pub violations: Vec<String>,
    pub refunds: RefundReport,
    pub traffic: traffic::Report,
    /// The results of the changes of the primary, in a campaign with failovers.
    pub failovers: Option<FailoverReport>,
    /// The reconciliation at the end.
    pub reconciliation: Option<CheckReport>,
    /// The faults of each round, printed if [`Self::holds`] is false.
    history: Vec<String>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            rounds: 0,
            faults: BTreeMap::new(),
            replica_exits: 0,
            violations: Vec::new(),
            refunds: RefundReport::default(),
            traffic: traffic::Report::default(),
            failovers: None,
            reconciliation: None,
            history: Vec::new(),
        }
    }

    pub(super) fn start_round(&mut self, scheduled_faults: &[ScheduledFault]) {
        self.rounds += 1;
        for scheduled in scheduled_faults {
            *self.faults.entry(scheduled.fault.name()).or_default() += 1;
        }
        let descriptions: Vec<_> = scheduled_faults.iter().map(ToString::to_string).collect();
        self.history.push(format!("round {}: {}", self.rounds, descriptions.join(", ")));
    }

    pub(super) fn add_violations(&mut self, violations: Vec<String>) {
        let round = self.rounds;
        self.violations.extend(violations.into_iter().map(|what| format!("round {round}: {what}")));
    }

    /// Returns whether all invariants held and all responses followed the API contract.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
            && self.refunds.unexpected.is_empty()
            && self.traffic.unexpected == 0
            && self.failovers.as_ref().is_none_or(FailoverReport::holds)
            && self.reconciliation.as_ref().is_none_or(CheckReport::holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.holds() { "no violation" } else { "VIOLATED" };
        writeln!(formatter, "seed {}, {} rounds: {result}", self.seed, self.rounds)?;
        for (fault, count) in &self.faults {
            writeln!(formatter, "  {count:>5}  {fault}")?;
        }
        writeln!(formatter, "replicas killed or crashed: {}", self.replica_exits)?;
        let refunds = &self.refunds;
        writeln!(
            formatter,
            "refunds: {} succeeded, {} failed, {} rejected, {} retries",
            refunds.succeeded, refunds.failed, refunds.rejected, refunds.retries
        )?;
        match &self.failovers {
            Some(failovers) => writeln!(formatter, "{failovers}")?,
            None => writeln!(formatter, "traffic: {}", self.traffic)?,
        }
        if let Some(reconciliation) = &self.reconciliation {
            write!(formatter, "{reconciliation}")?;
        }
        if self.holds() {
            return Ok(());
        }
        for what in self.violations.iter().chain(&refunds.unexpected) {
            write!(formatter, "\n- {what}")?;
        }
        write!(formatter, "\nfaults so far (the same seed reproduces them):")?;
        self.history.iter().try_for_each(|round| write!(formatter, "\n  {round}"))
    }
}
