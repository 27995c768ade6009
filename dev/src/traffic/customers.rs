//! All customers, and the selection of the customer who sends the next request.
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Settings,
    api::Api,
    customer::Customer,
    report::Report,
    request::{ApiRequest, lock},
};
use crate::example::traffic::{self as example, memory::SharedMemory};

/// Minimum interval of registrations and logins. The service limits both per address, and all customers share one
/// address.
const LOGIN_INTERVAL: Duration = Duration::from_millis(2500);

/// The service and all its customers.
pub(super) struct CustomerPool {
    api: Api,
    seed: u64,
    customers: Vec<Mutex<Customer>>,
    shared: SharedMemory,
    /// Earliest time of the next registration or login.
    next_login: Mutex<Instant>,
    report: Mutex<Report>,
}

impl CustomerPool {
    pub(super) fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            api: Api::new(settings.api)?,
            seed: settings.seed,
            customers: (0..settings.customers.max(1)).map(|_| Mutex::default()).collect(),
            shared: SharedMemory::default(),
            next_login: Mutex::new(Instant::now()),
            report: Mutex::default(),
        })
    }

    pub(super) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Counts a request that was not sent because too many requests were in flight.
    pub(super) fn count_not_sent(&self) {
        lock(&self.report).not_sent += 1;
    }

    /// Sends the registration or login that is due, if any. Otherwise sends a request of a logged-in customer, or a
    /// request without a session if no customer is logged in.
    pub(super) async fn send_request(self: Arc<Self>, tick: u64) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ tick.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let request = ApiRequest::new(&self.shared, &self.api, &self.report);
        if let Some(customer) = self.reserve_next_login() {
            request.authenticate(customer).await;
            lock(customer).is_logging_in = false;
            return;
        }
        let logged_in: Vec<_> =
            self.customers.iter().filter(|customer| lock(customer).token.is_some()).collect();
        let chosen = (!logged_in.is_empty()).then(|| rng.random_range(0..logged_in.len()));
        let Some(customer) = chosen.and_then(|index| logged_in.get(index).copied()) else {
            example::browse(&request).await;
            return;
        };
        let other_customer = logged_in.iter().find(|other| !std::ptr::eq(**other, customer));
        example::act(&request, customer, other_customer.copied(), rng).await;
    }

    /// Returns a customer who must register or log in, and marks the customer as logging in. Returns `None` until
    /// [`LOGIN_INTERVAL`] has passed since the last registration or login. Also returns `None` if every customer is
    /// logged in or logging in.
    fn reserve_next_login(&self) -> Option<&Mutex<Customer>> {
        let mut next_login = lock(&self.next_login);
        if Instant::now() < *next_login {
            return None;
        }
        let logged_out = self.customers.iter().find(|customer| {
            let customer = lock(customer);
            customer.token.is_none() && !customer.is_logging_in
        })?;
        lock(logged_out).is_logging_in = true;
        *next_login = Instant::now() + LOGIN_INTERVAL;
        Some(logged_out)
    }
}
