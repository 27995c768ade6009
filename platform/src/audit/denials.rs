//! Denials, aggregated by client address. A flood of denials must not cause a flood of writes, or hide other events. An
//! IPv6 address counts as its /64 network.
//!
//! The first hundred denials of an address in a minute are separate events. Further denials of that address are only
//! counted, and become one event at the end of the minute, so only their details are lost.
use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Event, EventResult, EventType, record};
use crate::{database::Database, http::client_address::network};

/// Maximum number of separate events per address and minute. Further denials are only counted.
const MAX_EVENTS_PER_MINUTE: u64 = 100;

/// Maximum number of addresses that are counted separately. Further addresses share one count.
const MAX_ADDRESSES: usize = 10_000;

/// The writer of denials. Cheap to clone.
#[derive(Clone)]
pub struct Denials {
    database: Database,
    counts: Arc<Mutex<DenialCounts>>,
}

/// Number of denials in the current minute, by address. The key `None` counts the denials of all addresses beyond the
/// maximum, and those without an address.
type DenialCounts = HashMap<Option<IpAddr>, u64>;

impl Denials {
    /// Creates a writer of denials to `database`.
    pub fn new(database: Database) -> Self {
        Self { database, counts: Arc::default() }
    }

    /// Writes a denial as an event, or only counts it.
    pub async fn record(&self, event: Event) -> Result<(), sqlx::Error> {
        if self.count(event.ip_address.map(network)) { record(&self.database, event).await } else { Ok(()) }
    }

    /// Counts a denial. Returns whether the denial is to be written as a separate event.
    fn count(&self, address: Option<IpAddr>) -> bool {
        let mut counts = self.counts();
        let has_own_count = counts.contains_key(&address) || counts.len() < MAX_ADDRESSES;
        let count = counts.entry(address.filter(|_| has_own_count)).or_insert(0);
        *count += 1;
        *count <= MAX_EVENTS_PER_MINUTE
    }

    /// Starts a new minute, and writes one event per address for the denials that were only counted in the previous
    /// minute. The caller calls this function once a minute.
    ///
    /// # Errors
    /// A statement failed. The counts that could not be written are kept for the next call.
    pub async fn flush(&self) -> Result<(), sqlx::Error> {
        let mut counted: Vec<_> = mem::take(&mut *self.counts()).into_iter().collect();
        counted.retain(|(_, count)| *count > MAX_EVENTS_PER_MINUTE);
        while let Some((address, count)) = counted.pop() {
            let event = Event::new(EventType::Authorization, "requests", "refuse", EventResult::Denied)
                .from(address)
                .with("count", count - MAX_EVENTS_PER_MINUTE);
            if let Err(error) = record(&self.database, event).await {
                counted.push((address, count));
                let mut counts = self.counts();
                for (address, count) in counted {
                    *counts.entry(address).or_insert(0) += count;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn counts(&self) -> MutexGuard<'_, DenialCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
