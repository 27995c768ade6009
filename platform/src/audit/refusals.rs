//! Refusals, so many from one address: a flood of them must not become a flood of writes, nor bury the trail.
//!
//! The first hundred of an address in a minute are events of their own; those beyond are counted, and become one
//! event when the minute is over. Nothing is lost but their details.
use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Event, EventResult, EventType, record};
use crate::{database::Database, http::client_address::network};

/// Events of one address in a minute; those beyond are counted.
const WRITTEN: u64 = 100;

/// Addresses that are told apart; those beyond are counted together.
const ADDRESSES: usize = 10_000;

/// Writes refusals. Cheap to clone.
#[derive(Clone)]
pub struct Refusals {
    database: Database,
    seen: Arc<Mutex<Seen>>,
}

/// Refusals of the present minute, by address; `None` is everybody for whom there was no place.
type Seen = HashMap<Option<IpAddr>, u64>;

impl Refusals {
    /// Writes them to `database`.
    pub fn new(database: Database) -> Self {
        Self { database, seen: Arc::default() }
    }

    /// Writes a refusal, or counts it.
    ///
    /// # Errors
    /// The statement's.
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

    /// Begins another minute, and writes what was only counted in the last one.
    ///
    /// # Errors
    /// The statement's; what could not be written is kept for the next time.
    pub async fn tell(&self) -> Result<(), sqlx::Error> {
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

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
