//! Customers who retry each order until the service acknowledges it, and each payment until its outcome is known. They
//! remember each acknowledged order and payment.
//!
//! A buyer places an order, pays it, and begins with the next order. Every purchase has a unique amount, so two charges
//! of the same amount are a double charge, even if they have different idempotency keys at the gateway.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use url::Url;
use uuid::Uuid;

use super::{
    Error, SETTLE_TIMEOUT,
    failovers::{ChangeReport, FailoverReport},
    test_bed::TestBed,
};
use crate::{
    environment::database::CUSTOMER,
    example::gateway::ChargeStatus,
    http,
    postgres::{Failover, ReplicationMode},
};

/// Number of buyers.
const BUYERS: usize = 6;

/// Pause between two purchases.
const PAUSE: Duration = Duration::from_millis(200);

/// Pause between two attempts of a request. The pause is shorter than `Retry-After`, because the attempts measure the
/// duration of an outage.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Two products of 1090 and 1190 cents. The amounts of two purchases are equal only if the quantities of the first
/// product differ by a multiple of 119, which [`MAX_FIRST_QUANTITY`] prevents. An order has at most 1,000 pieces of a
/// product, so a campaign can have 100,000 purchases.
const PRODUCTS: [&str; 2] = ["BEAN-COL-250", "BEAN-ETH-250"];

/// Maximum quantity of the first product.
const MAX_FIRST_QUANTITY: i32 = 100;

/// An acknowledged order, and its payment after the payment is acknowledged too.
#[derive(Debug, Clone, Copy)]
struct Purchase {
    order: Uuid,
    payment: Option<Uuid>,
}

/// Running buyers.
pub(super) struct Buyers {
    shop: Arc<Shop>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    /// One probe for each replica after each failover.
    probes: JoinSet<Probe>,
    /// Times until a write succeeded, measured by the probes since the last review.
    recoveries: Vec<Duration>,
    /// Replicas at which no write succeeded within [`SETTLE_TIMEOUT`], since the last review.
    failed: Vec<SocketAddr>,
    failover: Option<Failover>,
}

/// The address and process id of a probed replica, and the time until a write succeeded. `None` if no write succeeded.
type Probe = ((SocketAddr, u32), Option<Duration>);

impl Buyers {
    pub(super) async fn start(test_bed: &TestBed, mode: ReplicationMode) -> Result<Self, Error> {
        let mut connection = PgConnection::connect(test_bed.owner_url().as_str()).await?;
        let products = sqlx::query_scalar("select id from products where sku = any ($1) order by sku")
            .bind(PRODUCTS)
            .fetch_all(&mut connection)
            .await?;
        connection.close().await?;
        let stop_signal = watch::Sender::new(false);
        let shop = Arc::new(Shop {
            client: http::client(Duration::from_secs(15))?,
            api: test_bed.api_url()?,
            products,
            next: AtomicI32::new(0),
            token: tokio::sync::Mutex::default(),
            purchases: Mutex::default(),
            report: Mutex::new(FailoverReport::new(mode)),
            stopped: stop_signal.subscribe(),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..BUYERS {
            tasks.spawn(Arc::clone(&shop).buy());
        }
        Ok(Self {
            shop,
            stop: stop_signal,
            tasks,
            probes: JoinSet::new(),
            recoveries: Vec::new(),
            failed: Vec::new(),
            failover: None,
        })
    }

    /// Starts to measure, at each replica, the time until a write succeeds. Called when the new primary accepts writes.
    pub(super) fn start_probes(&mut self, failover: Failover, test_bed: &TestBed) {
        self.failover = Some(failover);
        for replica in test_bed.replicas() {
            let shop = Arc::clone(&self.shop);
            self.probes.spawn(async move {
                let began = Instant::now();
                let url = Url::parse(&format!("http://{}/", replica.0)).ok();
                let placed = async { shop.place(&url?).await };
                let placed = timeout(SETTLE_TIMEOUT, placed).await.ok().flatten();
                (replica, placed.map(|_placed| began.elapsed()))
            });
        }
    }

    /// Compares all acknowledged orders and payments with the database, and retries each lost payment with its
    /// idempotency key. Returns the violations: losses that the round's failover cannot have caused, double charges,
    /// failed probes, and responses that the API contract does not allow.
    pub(super) async fn review(&mut self, test_bed: &TestBed) -> Result<Vec<String>, Error> {
        let mut violations: Vec<_> =
            self.failed.drain(..).map(|replica| format!("no write succeeds at {replica}")).collect();
        let recoveries = std::mem::take(&mut self.recoveries);
        let mut change = ChangeReport { times: 1, recoveries, ..ChangeReport::default() };

        let acknowledged = self.shop.purchases().clone();
        let (orders, payments) = stored(test_bed.owner_url(), &acknowledged).await?;
        let mut unpaid = Vec::new();
        for (key, purchase) in acknowledged {
            let is_lost = !orders.contains(&purchase.order);
            if is_lost {
                change.lost_orders += 1;
                self.shop.purchases().remove(&key);
            }
            if purchase.payment.is_some_and(|payment| !payments.contains(&payment)) {
                change.lost_payments += 1;
                unpaid.push((key, purchase.order));
            }
        }
        for (key, order) in unpaid {
            let retried = timeout(SETTLE_TIMEOUT, self.shop.pay(order, &key)).await.ok().flatten();
            self.shop.report().restored_by_retry += u64::from(retried.is_some());
        }

        let (lost_orders, lost_payments) = (change.lost_orders, change.lost_payments);
        if lost_orders + lost_payments > 0
            && self.failover.is_none_or(|failover| !test_bed.may_lose(failover))
        {
            violations
                .push(format!("acknowledged, but lost: {lost_orders} orders, {lost_payments} payments"));
        }
        let mut report = self.shop.report();
        if let Some(failover) = self.failover.take() {
            let total = report.changes.entry(failover).or_default();
            total.times += 1;
            total.lost_orders += lost_orders;
            total.lost_payments += lost_payments;
            total.recoveries.append(&mut change.recoveries);
        }
        report.double_charges = double_charges(test_bed);
        if report.double_charges > 0 {
            violations.push(format!("{} double charges", report.double_charges));
        }
        violations.extend(report.unexpected.iter().cloned());
        Ok(violations)
    }

    /// Collects the results of the finished probes. Returns whether a probe still waits for a write to succeed.
    pub(super) fn collect_probes(&mut self, test_bed: &TestBed) -> bool {
        while let Some(Ok((replica, recovery))) = self.probes.try_join_next() {
            match recovery {
                // If the replica was restarted meanwhile, the measured time includes the start of the new process. So
                // the time is not counted.
                Some(recovery) if test_bed.replicas().contains(&replica) => self.recoveries.push(recovery),
                Some(_) => {}
                None => self.failed.push(replica.0),
            }
        }
        !self.probes.is_empty()
    }

    /// Stops the buyers and returns the results.
    pub(super) async fn stop(mut self) -> FailoverReport {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        self.shop.report().clone()
    }
}

/// Returns the ids of the purchases' orders and payments that are in the database.
async fn stored(
    owner_url: &Url,
    purchases: &HashMap<String, Purchase>,
) -> Result<(BTreeSet<Uuid>, BTreeSet<Uuid>), sqlx::Error> {
    let orders: Vec<_> = purchases.values().map(|purchase| purchase.order).collect();
    let payments: Vec<_> = purchases.values().filter_map(|purchase| purchase.payment).collect();
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let select = sqlx::query_scalar("select id from orders where id = any ($1)").bind(orders);
    let orders: Vec<Uuid> = select.fetch_all(&mut connection).await?;
    let select = sqlx::query_scalar("select id from payments where id = any ($1)").bind(payments);
    let payments: Vec<Uuid> = select.fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok((orders.into_iter().collect(), payments.into_iter().collect()))
}

/// Counts the successful charges beyond the first one of each purchase. The amount identifies the purchase.
fn double_charges(test_bed: &TestBed) -> usize {
    let mut charges: BTreeMap<i64, usize> = BTreeMap::new();
    for charge in test_bed.ledger().charges {
        *charges.entry(charge.amount).or_default() += usize::from(charge.status == ChargeStatus::Succeeded);
    }
    charges.values().map(|count| count.saturating_sub(1)).sum()
}

/// The client of the service, and the results, shared by all buyers.
struct Shop {
    client: Client,
    api: Url,
    products: Vec<Uuid>,
    /// Number of the next purchase, which determines its amount.
    next: AtomicI32,
    token: tokio::sync::Mutex<Option<String>>,
    /// Acknowledged purchases by the idempotency key of the payment.
    purchases: Mutex<HashMap<String, Purchase>>,
    report: Mutex<FailoverReport>,
    stopped: watch::Receiver<bool>,
}

impl Shop {
    fn purchases(&self) -> MutexGuard<'_, HashMap<String, Purchase>> {
        self.purchases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, FailoverReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn buy(self: Arc<Self>) {
        while !*self.stopped.borrow() {
            if let Some((key, order)) = self.place(&self.api).await {
                self.pay(order, &key).await;
            }
            sleep(PAUSE).await;
        }
    }

    /// Places an order. Returns the idempotency key for the order's payment, and the order's id. Returns `None` if
    /// [`Self::send_until_acknowledged`] returns `None`.
    async fn place(&self, api: &Url) -> Option<(String, Uuid)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let quantities = [number % MAX_FIRST_QUANTITY + 1, number / MAX_FIRST_QUANTITY + 1];
        let items: Vec<_> = self
            .products
            .iter()
            .zip(quantities)
            .map(|(product, quantity)| json!({ "product_id": product, "quantity": quantity }))
            .collect();
        let key = Uuid::now_v7().to_string();
        let (_status, placed) = self
            .send_until_acknowledged(api, "v1/orders", &format!("order-{key}"), &json!({ "items": items }))
            .await?;
        let order = id_of(&placed)?;
        self.report().orders += 1;
        self.purchases().insert(key.clone(), Purchase { order, payment: None });
        Some((key, order))
    }

    /// Pays an order, and retries until the outcome is known. Returns `None` if [`Self::send_until_acknowledged`]
    /// returns `None`, for example for an order that is unknown to the service.
    async fn pay(&self, order: Uuid, key: &str) -> Option<Uuid> {
        let (path, card) = (format!("v1/orders/{order}/payments"), json!({ "payment_method": "pm_card_ok" }));
        let mut acknowledged = false;
        loop {
            let (status, paid) = self.send_until_acknowledged(&self.api, &path, key, &card).await?;
            let payment = id_of(&paid)?;
            if let Some(purchase) = self.purchases().get_mut(key) {
                purchase.payment = Some(payment);
            }
            self.report().payments += u64::from(!acknowledged);
            acknowledged = true;
            if status == 201 {
                return Some(payment);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Sends a request, and retries it until it succeeds. Returns `None` at the end of the campaign, if the resource is
    /// unknown to the service, and for a response that the API contract does not allow.
    async fn send_until_acknowledged(
        &self,
        api: &Url,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Option<(u16, Value)> {
        let url = api.join(path).ok()?;
        let mut refused = None;
        while !*self.stopped.borrow() {
            let Some(token) = self.token(refused.as_deref()).await else {
                sleep(RETRY_PAUSE).await;
                continue;
            };
            let request = self.client.post(url.clone()).bearer_auth(&token).header("idempotency-key", key);
            let Ok(response) = request.json(body).send().await else {
                self.report().without_response += 1;
                sleep(RETRY_PAUSE).await;
                continue;
            };
            let status = response.status().as_u16();
            match status {
                201 | 202 => match response.json().await {
                    Ok(body) => return Some((status, body)),
                    Err(_) => self.report().without_response += 1,
                },
                401 => refused = Some(token),
                404 => return None,
                _ if requests_retry(&response) => {
                    *self.report().retry_responses.entry(status).or_default() += 1;
                }
                _ => {
                    let text = response.text().await.unwrap_or_default();
                    self.report().unexpected.push(format!("POST {path}: {status} {text}"));
                    return None;
                }
            }
            sleep(RETRY_PAUSE).await;
        }
        None
    }

    /// Returns the token of the buyers' common session. Logs in if there is no session, or if the service has refused
    /// its token.
    async fn token(&self, refused: Option<&str>) -> Option<String> {
        let mut token = self.token.lock().await;
        if token.as_deref() == refused {
            let login = json!({ "email": CUSTOMER.email, "password": CUSTOMER.password });
            let request = self.client.post(self.api.join("v1/sessions").ok()?).json(&login);
            let session: Value = request.send().await.ok()?.json().await.ok()?;
            *token = Some(session.get("token")?.as_str()?.to_owned());
        }
        token.clone()
    }
}

/// Returns whether the response requests a retry. Reasons are, for example, a rate limit, an unavailable database or
/// gateway, an earlier request with the same key that is still in progress, and the service's deadline (504).
fn requests_retry(response: &Response) -> bool {
    match response.status().as_u16() {
        409 | 429 | 503 => response.headers().contains_key("retry-after"),
        504 => true,
        _ => false,
    }
}

fn id_of(body: &Value) -> Option<Uuid> {
    body.get("id")?.as_str()?.parse().ok()
}
