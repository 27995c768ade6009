//! A support employee who issues partial refunds and retries each until its outcome is known.
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
const BEFORE_RETRY: Duration = Duration::from_millis(250);

/// Results of the refunds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefundReport {
    pub succeeded: u32,
    pub failed: u32,
    /// Refunds rejected because another refund was faster or nothing was refundable.
    pub refused: u32,
    /// Number of retries.
    pub repeated: u32,
    /// Responses that the API contract does not allow.
    pub unexpected: Vec<String>,
}

/// A running clerk.
pub(super) struct Refunder {
    stop: watch::Sender<bool>,
    work: JoinHandle<RefundReport>,
}

impl Refunder {
    /// Starts the refunds. If rows may be lost, a payment may be unknown to the service.
    pub(super) fn start(api: Url, owner_url: Url, seed: u64, rows_may_be_lost: bool) -> Result<Self, Error> {
        let client = http::client(Duration::from_secs(15))?;
        let (stop, stopped) = (watch::Sender::new(false), StdRng::seed_from_u64(seed));
        let (told, stop_signal) = (RefundReport::default(), stop.subscribe());
        let desk = RefundLoop { client, api, owner_url, rows_may_be_lost, told, stop: stop_signal };
        let work = tokio::spawn(desk.work(stopped));
        Ok(Self { stop, work })
    }

    pub(super) async fn stop(self) -> RefundReport {
        self.stop.send_replace(true);
        self.work.await.unwrap_or_default()
    }
}

struct RefundLoop {
    client: Client,
    api: Url,
    owner_url: Url,
    rows_may_be_lost: bool,
    told: RefundReport,
    stop: watch::Receiver<bool>,
}

impl RefundLoop {
    async fn work(mut self, mut dice: StdRng) -> RefundReport {
        let mut token = None;
        while !*self.stop.borrow() {
            sleep(PAUSE).await;
            let Some(bearer) = token.clone() else {
                token = self.log_in().await;
                continue;
            };
            // The database may be down. The next iteration tries again.
            let Ok(Some(payment)) = self.some_payment().await else { continue };
            let amount = dice.random_bool(0.5).then(|| dice.random_range(1..500));
            if self.refund(&bearer, payment, amount).await == Some(StatusCode::UNAUTHORIZED) {
                token = None;
            }
        }
        self.told
    }

    async fn log_in(&self) -> Option<String> {
        let support = environment::database::SUPPORT;
        let login = json!({ "email": support.email, "password": support.password });
        let request = self.client.post(self.api.join("v1/sessions").ok()?).json(&login);
        let session: Value = request.send().await.ok()?.json().await.ok()?;
        session.get("token")?.as_str().map(ToOwned::to_owned)
    }

    async fn some_payment(&self) -> Result<Option<Uuid>, sqlx::Error> {
        let mut connection = PgConnection::connect(self.owner_url.as_str()).await?;
        let payment = sqlx::query_scalar(
            "select id from payments where status in ('succeeded', 'partially_refunded') order by random() limit 1",
        )
        .fetch_optional(&mut connection)
        .await?;
        connection.close().await?;
        Ok(payment)
    }

    /// Issues one refund, retried under the same key until the response states the outcome.
    async fn refund(&mut self, token: &str, payment: Uuid, amount: Option<i64>) -> Option<StatusCode> {
        let key = Uuid::now_v7().to_string();
        let body = amount.map_or_else(|| json!({}), |amount| json!({ "amount": amount }));
        let url = self.api.join(&format!("v1/payments/{payment}/refunds")).ok()?;
        while !*self.stop.borrow() {
            let request = self.client.post(url.clone()).bearer_auth(token).json(&body);
            if let Ok(answer) = request.header("idempotency-key", &key).send().await {
                let status = answer.status();
                let text = answer.text().await.unwrap_or_default();
                match status.as_u16() {
                    201 if text.contains("\"succeeded\"") => self.told.succeeded += 1,
                    201 => self.told.failed += 1,
                    401 => {}
                    409 if text.contains("request-under-way") => {
                        self.insist().await;
                        continue;
                    }
                    409 | 422 => self.told.refused += 1,
                    404 if self.rows_may_be_lost => self.told.refused += 1,
                    202 | 429 | 503 | 504 => {
                        self.insist().await;
                        continue;
                    }
                    _ => self.told.unexpected.push(format!("refund of {payment}: {status} {text}")),
                }
                return Some(status);
            }
            self.insist().await;
        }
        None
    }

    async fn insist(&mut self) {
        self.told.repeated += 1;
        sleep(BEFORE_RETRY).await;
    }
}
