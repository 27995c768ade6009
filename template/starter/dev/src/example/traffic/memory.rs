//! The state of simulated customers, and the number of notes that they created.
use std::{fmt, sync::atomic::AtomicU64};

use serde::Serialize;

use crate::traffic::api::Call;

/// State of one customer: the note that the customer created last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(super) last: Option<CreatedNote>,
}

/// A created note, with the request that created it and the response.
#[derive(Debug, Clone)]
pub(super) struct CreatedNote {
    pub(super) id: String,
    pub(super) call: Call,
    pub(super) response: String,
}

/// State that all customers share: the number of generated names.
#[derive(Debug, Default)]
pub(crate) struct SharedMemory {
    pub(super) names: AtomicU64,
}

/// Number of notes that all customers created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub created: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} notes", self.created)
    }
}
