//! Limits on the connections and in-flight requests of one client network.
//!
//! A slot is one open connection or one request in flight. With only a global limit, one client could use all slots.
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Extension,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    client_address::ClientAddress,
    problem::{self, Problem},
};

/// The number of slots that each network uses. Networks that use no slot are removed.
type SlotCounts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Per-network counters with a common maximum. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NetworkSlots {
    counts: SlotCounts,
    max: usize,
}

/// One slot of a network. The slot is freed when this value is dropped.
#[derive(Debug)]
#[must_use = "the slot is freed when this value is dropped"]
pub struct NetworkSlot {
    counts: SlotCounts,
    network: IpAddr,
}

impl NetworkSlots {
    /// Creates counters that allow each network to use `max` slots at the same time. 0 disables the limit.
    pub fn new(max: usize) -> Self {
        Self { counts: SlotCounts::default(), max: if max == 0 { usize::MAX } else { max } }
    }

    /// Takes a slot for a [network](ClientAddress::network). Returns `None` if the network has no free slot.
    pub fn take(&self, network: IpAddr) -> Option<NetworkSlot> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        (*count < self.max).then(|| {
            *count += 1;
            NetworkSlot { counts: Arc::clone(&self.counts), network }
        })
    }
}

impl Drop for NetworkSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.network) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Rejects a request with 429 if its network already has the maximum number of requests in flight.
pub async fn limit_in_flight_by_address(
    State(slots): State<NetworkSlots>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    match slots.take(client.network()) {
        Some(_slot) => next.run(request).await,
        None => Problem::new(problem::TOO_MANY_REQUESTS).retry_after(1).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::StatusCode, middleware::from_fn_with_state, routing::get};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_network_without_a_free_slot_is_rejected() {
        let slots = NetworkSlots::new(1);
        let router = Router::new()
            .route("/", get(async || StatusCode::NO_CONTENT))
            .layer(from_fn_with_state(slots.clone(), limit_in_flight_by_address));
        let status = async || {
            let client = ClientAddress {
                address: [192, 0, 2, 1].into(),
                through_trusted_proxy: false,
                scheme: "http",
            };
            let request = Request::get("/").extension(client).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status()
        };
        assert_eq!(status().await, StatusCode::NO_CONTENT);
        let held = slots.take([192, 0, 2, 1].into());
        assert_eq!(status().await, StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        assert_eq!(status().await, StatusCode::NO_CONTENT);
    }

    #[test]
    fn networks_have_separate_slots() {
        let slots = NetworkSlots::new(2);
        let [one, other] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let held = [slots.take(one), slots.take(one)];
        assert!(held.iter().all(Option::is_some));
        assert!(slots.take(one).is_none());
        assert!(slots.take(other).is_some());
        drop(held);
        assert!(slots.take(one).is_some());
    }

    #[test]
    fn only_networks_with_requests_are_stored() {
        let slots = NetworkSlots::new(1);
        let held: Vec<_> = (0..100).map(|last| slots.take([192, 0, 2, last].into())).collect();
        assert_eq!(slots.counts.lock().unwrap().len(), 100);
        drop(held);
        assert_eq!(slots.counts.lock().unwrap().len(), 0);
    }

    #[test]
    fn zero_disables_the_limit() {
        let slots = NetworkSlots::new(0);
        let held: Vec<_> = (0..1000).map(|_| slots.take([192, 0, 2, 1].into())).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
