//! What was done to the system, and what came of it.
use std::{collections::BTreeMap, fmt};

use super::{clerk::Told, faults::Strike};
use crate::{example::invariants::Verdict, traffic};

/// What a campaign has found out.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    pub rounds: u32,
    /// How often each fault has struck.
    pub faults: BTreeMap<String, u32>,
    /// Replicas that were killed or died where they were told to.
    pub died: u32,
    /// What must not be, and in which round it was found.
    pub violations: Vec<String>,
    pub clerk: Told,
    pub traffic: traffic::Report,
    /// The books at the end.
    pub verdict: Option<Verdict>,
    /// What has struck in each round, for whoever looks for the cause.
    history: Vec<String>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            rounds: 0,
            faults: BTreeMap::new(),
            died: 0,
            violations: Vec::new(),
            clerk: Told::default(),
            traffic: traffic::Report::default(),
            verdict: None,
            history: Vec::new(),
        }
    }

    pub(super) fn begins(&mut self, strikes: &[Strike]) {
        self.rounds += 1;
        for strike in strikes {
            *self.faults.entry(strike.fault.name()).or_default() += 1;
        }
        let told: Vec<_> = strikes.iter().map(ToString::to_string).collect();
        self.history.push(format!("round {}: {}", self.rounds, told.join(", ")));
    }

    pub(super) fn ends(&mut self, violations: Vec<String>) {
        let round = self.rounds;
        self.violations.extend(violations.into_iter().map(|what| format!("round {round}: {what}")));
    }

    /// Whether everything that must be true was, and every answer was one that the contract promises.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
            && self.clerk.unexpected.is_empty()
            && self.traffic.unexpected == 0
            && self.verdict.as_ref().is_none_or(Verdict::holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds() { "no violation" } else { "VIOLATED" };
        writeln!(formatter, "seed {}, {} rounds: {verdict}", self.seed, self.rounds)?;
        for (fault, count) in &self.faults {
            writeln!(formatter, "  {count:>5}  {fault}")?;
        }
        writeln!(formatter, "replicas that died: {}", self.died)?;
        let clerk = &self.clerk;
        writeln!(
            formatter,
            "refunds: {} succeeded, {} failed, {} refused, {} attempts made again",
            clerk.succeeded, clerk.failed, clerk.refused, clerk.repeated
        )?;
        writeln!(formatter, "traffic: {}", self.traffic)?;
        if let Some(verdict) = &self.verdict {
            write!(formatter, "{verdict}")?;
        }
        if self.holds() {
            return Ok(());
        }
        for what in self.violations.iter().chain(&clerk.unexpected) {
            write!(formatter, "\n- {what}")?;
        }
        write!(formatter, "\nwhat struck, up to there (the same seed draws it again):")?;
        self.history.iter().try_for_each(|round| write!(formatter, "\n  {round}"))
    }
}
