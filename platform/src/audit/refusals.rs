//! Denials, aggregated by address. A flood of denials must not cause a flood of writes, or hide other events.
//!
//! The first hundred denials of an address in a minute are separate events. Further denials are counted and become
//! one event at the end of the minute. Only their details are lost.
use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Event, EventResult, EventType, record};
use crate::{database::Database, http::client_address::network};

/// Maximum number of separate events per address and minute. Further denials are only counted.
const WRITTEN: u64 = 100;

/// Maximum number of addresses that are counted separately. Further addresses share one count.
const ADDRESSES: usize = 10_000;

/// The writer of denials. Cheap to clone.
#[derive(Clone)]
pub struct Refusals {
    database: Database,
    seen: Arc<Mutex<RefusalCounts>>,
}

/// Denials of the current minute, by address. `None` counts the addresses beyond the maximum.
type RefusalCounts = HashMap<Option<IpAddr>, u64>;

impl Refusals {
    /// Writes denials to `database`.
    pub fn new(database: Database) -> Self {
        Self { database, seen: Arc::default() }
    }

    /// Writes a denial, or counts it.
    pub async fn record(&self, event: Event) -> Result<(), sqlx::Error> {
        if self.count(event.ip_address.map(network)) { record(&self.database, event).await } else { Ok(()) }
    }

    fn count(&self, address: Option<IpAddr>) -> bool {
        let mut seen = self.seen();
        let known = seen.contains_key(&address) || seen.len() < ADDRESSES;
        let count = seen.entry(address.filter(|_| known)).or_insert(0);
        *count += 1;
        *count <= WRITTEN
    }

    /// Starts a new minute, and writes the denials that were only counted in the previous one.
    ///
    /// # Errors
    /// The statement failed. The counts that could not be written are kept for the next call.
    pub async fn flush(&self) -> Result<(), sqlx::Error> {
        let mut counted: Vec<_> = mem::take(&mut *self.seen()).into_iter().collect();
        counted.retain(|(_, count)| *count > WRITTEN);
        while let Some((address, count)) = counted.pop() {
            let event = Event::new(EventType::Authorization, "requests", "refuse", EventResult::Denied)
                .from(address)
                .with("count", count - WRITTEN);
            if let Err(error) = record(&self.database, event).await {
                counted.push((address, count));
                let mut seen = self.seen();
                for (address, count) in counted {
                    *seen.entry(address).or_insert(0) += count;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, RefusalCounts> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
