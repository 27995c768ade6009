//! What customers remember, what all of them know, and what they have achieved.
use std::{fmt, sync::atomic::AtomicU64};

use serde::Serialize;

use crate::traffic::api::Call;

/// What one customer remembers: the note that they created last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(super) last: Option<Created>,
}

/// A note, and how it was created.
#[derive(Debug, Clone)]
pub(super) struct Created {
    pub(super) id: String,
    pub(super) call: Call,
    pub(super) response: String,
}

/// What all customers know: how many names they have given.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(super) names: AtomicU64,
}

/// What customers have achieved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub created: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} notes", self.created)
    }
}
