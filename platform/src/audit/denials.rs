//! Audit events of denied requests, aggregated by client address. A flood of denials must not cause a flood of writes,
//! or hide other events. An IPv6 address counts as its /64 network.
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

/// Number of denials in the current minute, by address. The key `None` counts the denials of all addresses beyond
/// [`MAX_ADDRESSES`], and the denials without an address.
type DenialCounts = HashMap<Option<IpAddr>, u64>;

impl Denials {
    /// Creates a writer of denials to `database`.
    pub fn new(database: Database) -> Self {
        Self { database, counts: Arc::default() }
    }

    /// Writes a denial as an event. After the first hundred denials of an address in a minute, further denials are only
    /// counted.
    pub async fn record(&self, event: Event) -> Result<(), sqlx::Error> {
        if count_denial(&mut self.counts(), event.ip_address.map(network)) {
            record(&self.database, event).await
        } else {
            Ok(())
        }
    }

    /// Starts a new minute, and writes one event per address for the denials that were only counted in the previous
    /// minute. The caller calls this function once a minute.
    ///
    /// # Errors
    /// An event could not be written. The counts that are not written yet are kept for the next call.
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

/// Counts a denial. Returns whether the denial becomes a separate event.
fn count_denial(counts: &mut DenialCounts, address: Option<IpAddr>) -> bool {
    let known = counts.contains_key(&address) || counts.len() < MAX_ADDRESSES;
    let count = counts.entry(address.filter(|_| known)).or_insert(0);
    *count += 1;
    *count <= MAX_EVENTS_PER_MINUTE
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into()
    }

    fn is_event(counts: &mut DenialCounts, number: usize) -> bool {
        count_denial(counts, Some(address(number)))
    }

    #[test]
    fn a_hundred_denials_of_an_address_are_separate_events() {
        let mut counts = DenialCounts::new();
        let separate = (0..200).filter(|_| is_event(&mut counts, 1)).count();
        assert_eq!((separate, counts[&Some(address(1))]), (100, 200));
        assert!(is_event(&mut counts, 2));
    }

    #[test]
    fn addresses_beyond_the_maximum_share_one_count() {
        let mut counts = DenialCounts::new();
        assert!((0..MAX_ADDRESSES).all(|number| is_event(&mut counts, number)));
        let others = MAX_ADDRESSES..2 * MAX_ADDRESSES;
        assert_eq!(others.filter(|number| is_event(&mut counts, *number)).count(), 100);
        assert_eq!(counts.len(), MAX_ADDRESSES + 1);
        assert!(is_event(&mut counts, 0), "an address that is counted already");
    }
}
