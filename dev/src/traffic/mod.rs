//! Gentle, realistic traffic: customers who register, log in, do what the service is for, and make mistakes.
//!
//! It is open-loop: requests begin at their rate whether or not the service keeps up, as people do, so that a
//! slow service is seen to be slow instead of being asked less. Every answer is held against the service's
//! contract; what the contract does not promise is counted and kept as an unexpected answer.
//!
//! One tick of the clock is one request by one customer, chosen by the seed and by what that customer is about.
//!
//! - [`api`]: one request and its answer
//! - [`customer`]: who a customer is
//! - [`expectations`]: what the contract promises about every answer
//! - [`visit`]: one request of one customer: it is sent, and what comes back is counted
//! - [`door`]: registering and logging in
//! - [`market`]: where customers and the service meet: who comes, and when
//! - [`example::traffic`](crate::example): what customers do
//! - [`report`]: what has happened so far
pub(crate) mod api;
pub(crate) mod customer;
mod door;
pub(crate) mod expectations;
mod market;
mod report;
pub(crate) mod visit;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::MissedTickBehavior,
};
use url::Url;

use self::market::Market;
pub use self::report::{Report, Unexpected};

/// Requests under way at once. More than this are not begun; they would only pile up.
const AT_ONCE: usize = 64;

/// How long requests under way may take to end after [`Traffic::stop`].
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// What traffic there is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service's API.
    pub api: Url,
    pub rate_per_second: f64,
    /// The same seed makes the same choices, as far as the answers are the same.
    pub seed: u64,
    /// How many customers come. They come one by one: the service limits logins from one address.
    pub customers: usize,
}

impl Settings {
    /// What one machine hardly notices and a dashboard shows well.
    pub fn new(api: Url) -> Self {
        Self { api, rate_per_second: 5.0, seed: 1, customers: 8 }
    }
}

/// Whether requests are begun at the moment. Clones switch the same traffic.
#[derive(Clone, Debug)]
pub struct Switch(watch::Sender<bool>);

impl Switch {
    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// From now on requests are begun, or none.
    pub fn set(&self, on: bool) {
        self.0.send_replace(on);
    }
}

/// Traffic under way. Dropping it ends it; [`Traffic::stop`] also says what has happened.
pub struct Traffic {
    market: Arc<Market>,
    switch: Switch,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Traffic {
    /// Begins at once, whether or not the service is there yet.
    pub fn start(settings: Settings) -> Result<Self, reqwest::Error> {
        let pause = Duration::from_secs_f64(1.0 / settings.rate_per_second.clamp(0.01, 1000.0));
        let market = Arc::new(Market::open(settings)?);
        let switch = Switch(watch::Sender::new(true));
        let stop = watch::Sender::new(false);
        let task = tokio::spawn(run(Arc::clone(&market), pause, switch.clone(), stop.subscribe()));
        Ok(Self { market, switch, stop, task })
    }

    /// To pause it, and to let it go on.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// What has happened so far.
    pub fn report(&self) -> Report {
        self.market.report()
    }

    /// Begins no more requests, gives those under way a moment, and says what has happened.
    pub async fn stop(self) -> Report {
        self.stop.send_replace(true);
        let _ = self.task.await;
        self.market.report()
    }
}

async fn run(market: Arc<Market>, pause: Duration, switch: Switch, mut stop: watch::Receiver<bool>) {
    let mut requests = JoinSet::new();
    let mut clock = tokio::time::interval(pause);
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
        if requests.len() < AT_ONCE {
            requests.spawn(Arc::clone(&market).visit(tick));
        } else {
            market.crowded();
        }
    }
    let _ =
        tokio::time::timeout(STOP_DEADLINE, async { while requests.join_next().await.is_some() {} }).await;
    requests.shutdown().await;
}

/// Ends when the traffic is to stop, or when nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
