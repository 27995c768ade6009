//! A support user who issues full and partial refunds, and retries each until a response requires no retry.
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use url::Url;
use uuid::Uuid;

use super::Error;
use crate::{environment, http};

/// Pause between two refunds.
const PAUSE: Duration = Duration::from_millis(400);

/// Pause between two attempts at the same refund.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Results of the refunds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefundReport {
    pub succeeded: u32,
    pub failed: u32,
    /// Refunds that the service rejected, for example because they exceed the refundable amount or the payment is lost.
    pub rejected: u32,
    /// Number of repeated requests.
    pub retries: u32,
    /// Responses that the API contract does not allow.
    pub unexpected: Vec<String>,
}

/// A running task that issues refunds.
pub(super) struct Refunder {
    stop: watch::Sender<bool>,
    task: JoinHandle<RefundReport>,
}

impl Refunder {
    /// Starts the refunds. If rows may be lost, a 404 counts as a rejection.
    pub(super) fn start(api: Url, owner_url: Url, seed: u64, rows_may_be_lost: bool) -> Result<Self, Error> {
        let client = http::client(Duration::from_secs(15))?;
        let (stop, rng) = (watch::Sender::new(false), StdRng::seed_from_u64(seed));
        let (report, stop_signal) = (RefundReport::default(), stop.subscribe());
        let refund_loop = RefundLoop { client, api, owner_url, rows_may_be_lost, report, stop: stop_signal };
        let task = tokio::spawn(refund_loop.run(rng));
        Ok(Self { stop, task })
    }

    pub(super) async fn stop(self) -> RefundReport {
        self.stop.send_replace(true);
        self.task.await.unwrap_or_default()
    }
}

struct RefundLoop {
    client: Client,
    api: Url,
    owner_url: Url,
    rows_may_be_lost: bool,
    report: RefundReport,
    stop: watch::Receiver<bool>,
}

impl RefundLoop {
    async fn run(mut self, mut rng: StdRng) -> RefundReport {
        let mut token = None;
        while !*self.stop.borrow() {
            sleep(PAUSE).await;
            let Some(bearer) = token.clone() else {
                token = self.log_in().await;
                continue;
            };
            // The database may be down, or may have no refundable payment. The next iteration retries.
            let Ok(Some(payment)) = self.random_payment().await else { continue };
            let amount = rng.random_bool(0.5).then(|| rng.random_range(1..500));
            if self.refund(&bearer, payment, amount).await == Some(StatusCode::UNAUTHORIZED) {
                token = None;
            }
        }
        self.report
    }

    async fn log_in(&self) -> Option<String> {
        let support = environment::database::SUPPORT;
        let login = json!({ "email": support.email, "password": support.password });
        let request = self.client.post(self.api.join("v1/sessions").ok()?).json(&login);
        let session: Value = request.send().await.ok()?.json().await.ok()?;
        session.get("token")?.as_str().map(ToOwned::to_owned)
    }

    async fn random_payment(&self) -> Result<Option<Uuid>, sqlx::Error> {
        let mut connection = PgConnection::connect(self.owner_url.as_str()).await?;
        let payment = sqlx::query_scalar(
            "select id from payments where status in ('succeeded', 'partially_refunded') order by random() limit 1",
        )
        .fetch_optional(&mut connection)
        .await?;
        connection.close().await?;
        Ok(payment)
    }

    /// Issues one refund, and retries it with the same idempotency key until a response requires no retry. Returns the
    /// status of this response, or `None` if the refunder is stopped first.
    async fn refund(&mut self, token: &str, payment: Uuid, amount: Option<i64>) -> Option<StatusCode> {
        let key = Uuid::now_v7().to_string();
        let body = amount.map_or_else(|| json!({}), |amount| json!({ "amount": amount }));
        let url = self.api.join(&format!("v1/payments/{payment}/refunds")).ok()?;
        while !*self.stop.borrow() {
            let request = self.client.post(url.clone()).bearer_auth(token).json(&body);
            if let Ok(response) = request.header("idempotency-key", &key).send().await {
                let status = response.status();
                let text = response.text().await.unwrap_or_default();
                match status.as_u16() {
                    201 if text.contains("\"succeeded\"") => self.report.succeeded += 1,
                    201 => self.report.failed += 1,
                    401 => {}
                    409 if text.contains("request-under-way") => {
                        self.wait_before_retry().await;
                        continue;
                    }
                    409 | 422 => self.report.rejected += 1,
                    404 if self.rows_may_be_lost => self.report.rejected += 1,
                    202 | 429 | 503 | 504 => {
                        self.wait_before_retry().await;
                        continue;
                    }
                    _ => self.report.unexpected.push(format!("refund of {payment}: {status} {text}")),
                }
                return Some(status);
            }
            self.wait_before_retry().await;
        }
        None
    }

    async fn wait_before_retry(&mut self) {
        self.report.retries += 1;
        sleep(RETRY_DELAY).await;
    }
}
