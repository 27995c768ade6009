//! Light, realistic traffic of customers, who register, log in, use the service, and send invalid requests.
//!
//! The traffic is open-loop: requests start at a fixed rate regardless of the service's speed, like real users. A
//! closed loop would send fewer requests to a slow service and hide the slowness. Every response is checked against the
//! service's API contract. Responses that violate the contract are counted, and the first of them are stored.
//!
//! At each tick at most one request is sent: a registration or login, a request of a logged-in customer, or a request
//! without a session while no customer is logged in. The seed, the number of the tick and the state of the customers
//! determine the request.
//!
//! - [`api`]: one request and its response
//! - [`customer`]: the state of a customer
//! - [`expectations`]: checks of the rules of the API contract that apply to all resources
//! - [`request`]: one request of one customer: sending it, and counting the response
//! - [`login`]: registration and login
//! - [`customers`]: all customers, and the selection of the next one
//! - [`example::traffic`](crate::example): the actions of customers
//! - [`report`]: the statistics so far
pub(crate) mod api;
pub(crate) mod customer;
mod customers;
pub(crate) mod expectations;
mod login;
mod report;
pub(crate) mod request;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::MissedTickBehavior,
};
use url::Url;

use self::customers::CustomerPool;
pub use self::report::{Report, UnexpectedResponse};

/// Maximum number of requests in flight. Further requests are not sent, because they would only queue.
const MAX_IN_FLIGHT: usize = 64;

/// Deadline of the requests in flight after [`Traffic::stop`].
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Settings of the traffic.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL of the service's API.
    pub api: Url,
    pub rate_per_second: f64,
    /// Seed of all choices. The same seed makes the same choices as long as the responses and their times are the same.
    pub seed: u64,
    /// Number of customers. Customers register one by one, because the service limits registrations from one address.
    pub customers: usize,
}

impl Settings {
    /// Returns default settings, with a low rate that is visible on a dashboard.
    pub fn new(api: Url) -> Self {
        Self { api, rate_per_second: 5.0, seed: 1, customers: 8 }
    }
}

/// A switch that pauses and resumes the traffic. Clones switch the same traffic.
#[derive(Clone, Debug)]
pub struct Switch(watch::Sender<bool>);

impl Switch {
    /// Returns whether the traffic is on.
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// Starts or stops sending new requests.
    pub fn set(&self, on: bool) {
        self.0.send_replace(on);
    }
}

/// Running traffic. Dropping the value ends the traffic; [`Traffic::stop`] also returns the report.
pub struct Traffic {
    pool: Arc<CustomerPool>,
    switch: Switch,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Traffic {
    /// Starts the traffic, even if the service is not reachable yet.
    pub fn start(settings: Settings) -> Result<Self, reqwest::Error> {
        let interval = Duration::from_secs_f64(1.0 / settings.rate_per_second.clamp(0.01, 1000.0));
        let pool = Arc::new(CustomerPool::new(settings)?);
        let switch = Switch(watch::Sender::new(true));
        let stop = watch::Sender::new(false);
        let task = tokio::spawn(run(Arc::clone(&pool), interval, switch.clone(), stop.subscribe()));
        Ok(Self { pool, switch, stop, task })
    }

    /// Returns the switch that pauses and resumes the traffic.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// Returns the report so far.
    pub fn report(&self) -> Report {
        self.pool.report()
    }

    /// Sends no further requests, waits briefly for the requests in flight, and returns the report.
    pub async fn stop(self) -> Report {
        self.stop.send_replace(true);
        let _ = self.task.await;
        self.pool.report()
    }
}

async fn run(pool: Arc<CustomerPool>, interval: Duration, switch: Switch, mut stop: watch::Receiver<bool>) {
    let mut requests = JoinSet::new();
    let mut clock = tokio::time::interval(interval);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for tick in 0.. {
        tokio::select! {
            () = stopped(&mut stop) => break,
            _ = clock.tick() => {}
        }
        while requests.try_join_next().is_some() {}
        if !switch.is_on() {
            continue;
        }
        if requests.len() < MAX_IN_FLIGHT {
            requests.spawn(Arc::clone(&pool).send_request(tick));
        } else {
            pool.count_not_sent();
        }
    }
    let _ =
        tokio::time::timeout(STOP_DEADLINE, async { while requests.join_next().await.is_some() {} }).await;
    requests.shutdown().await;
}

/// Waits until the traffic is stopped, or until the sender of the stop signal is dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
