//! What the harness knows of what the service is for: orders, and the gateway that takes the money.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by a panic, in its helpers too"
)]
mod order;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use url::Url;
use uuid::Uuid;

pub use self::order::Order;
use super::{
    gateway::{Charge, Faults, Settings, Simulator, Timings, Webhooks},
    invariants,
    neighbours::Addresses,
};
use crate::harness::{Answer, Builder, Database, Request, Service, User};

/// What services show their gateway.
pub const GATEWAY_API_KEY: &str = "sk_for_tests";
const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZQ==";

/// A product of every new database: 12.90 EUR.
pub const MUG: &str = "01900000-0000-7000-8000-000000000001";
/// Another one: 34.50 EUR.
pub const TEAPOT: &str = "01900000-0000-7000-8000-000000000002";
/// A product in another currency: 19.00 USD.
pub const LAMP: &str = "01900000-0000-7000-8000-000000000003";
/// A product that cannot be ordered any more.
pub const RETIRED: &str = "01900000-0000-7000-8000-000000000004";

/// The table on which tests act that are about no slice: customers create and read what is theirs.
pub const TABLE: &str = "orders";
/// Where that is created and listed.
pub const PATH: &str = "/v1/orders";
/// Where one of them is read.
pub const ROUTE: &str = "/v1/orders/{id}";
/// The statement that creates one, as it is named in metrics.
pub const CREATES: &str = "orders.insert";
/// The statement that lists a customer's.
pub const LISTS: &str = "orders.list_of_customer";

/// Settings without which the service does not start, besides the database; nothing of them is reached.
pub const REQUIRED: [(&str, &str); 3] = [
    ("GATEWAY_URL", "http://127.0.0.1:1"),
    ("GATEWAY_API_KEY", "an-api-key"),
    ("GATEWAY_WEBHOOK_SECRET", "whsec_YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw=="),
];
/// Settings that are never shown, besides the platform's.
pub const SECRETS: [&str; 2] = ["GATEWAY_API_KEY", "GATEWAY_WEBHOOK_SECRET"];
/// What readiness looks at besides the service itself.
pub const NEIGHBOUR_CHECKS: [&str; 1] = ["external_api"];
/// Series that are there from the first scrape, besides the platform's.
pub const SERIES: [&str; 10] = [
    "orders_created_total 0",
    "payments_total{outcome=\"succeeded\"} 0",
    "payments_total{outcome=\"declined\"} 0",
    "payments_total{outcome=\"failed\"} 0",
    "payment_failures_total{reason=\"gateway_timeout\"} 0",
    "payments_parked 0",
    "payment_discrepancies_open 0",
    "payments_processing 0",
    "payment_oldest_processing_seconds 0",
    "circuit_breaker_state{service=\"payment_gateway\"} 0",
];

/// What a body says that creates one.
pub fn body() -> serde_json::Value {
    json!({ "items": [{ "product_id": MUG, "quantity": 1 }] })
}

/// The services that ours calls: a payment gateway.
pub(crate) struct Neighbours {
    gateway: Simulator,
}

impl Neighbours {
    /// Starts them.
    pub(crate) async fn start() -> Self {
        let settings = Settings {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            api_key: GATEWAY_API_KEY.to_owned(),
            webhook_secret: GATEWAY_WEBHOOK_SECRET.to_owned(),
            webhook_url: None,
            ledger_file: None,
        };
        let timings = Timings { webhook_delay: Duration::from_millis(20), ..Timings::default() };
        let started = Simulator::start_with(settings, timings).await;
        Self { gateway: started.unwrap_or_else(|error| panic!("{error}")) }
    }

    /// How the service finds them, unless a test says otherwise.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GATEWAY_URL", self.gateway.url().to_string()),
            ("GATEWAY_API_KEY", GATEWAY_API_KEY.to_owned()),
            ("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET.to_owned()),
            // Long for a gateway on this machine, and short for a test that waits for it to pass.
            ("GATEWAY_TIMEOUT_MS", "2500".to_owned()),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1".to_owned()),
        ]
    }

    /// Returns their addresses.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses { gateway: self.gateway.url() }
    }

    /// How they find the service: where it has the gateway's webhooks sent.
    pub(crate) fn find_the_service_at(&self, api: &Url) {
        let url = api.join("/v1/gateway/events").expect("a path makes a URL");
        self.gateway.set_webhook_url(url);
    }
}

/// Puts into a new database what every test finds there: a few products.
pub(crate) async fn stock(database: &Database) {
    database
        .execute(format!(
            "insert into products (id, sku, name, unit_amount, currency, active)
         values
           ('{MUG}', 'MUG-01', 'Mug', 1290, 'EUR', true),
           ('{TEAPOT}', 'TEAPOT-01', 'Teapot', 3450, 'EUR', true),
           ('{LAMP}', 'LAMP-01', 'Lamp', 1900, 'USD', true),
           ('{RETIRED}', 'RETIRED-01', 'Gramophone', 9900, 'EUR', false)"
        ))
        .await;
}

impl Builder {
    /// With workers that leave the database alone for longer than a test takes.
    pub fn with_idle_workers(self) -> Self {
        self.setting("AUDIT_SEAL_INTERVAL_SECONDS", "600").setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
    }

    /// With a deadline of requests, and whatever has to end before it.
    pub fn with_a_deadline_of_ms(self, milliseconds: u32) -> Self {
        self.setting("REQUEST_TIMEOUT_MS", &milliseconds.to_string())
            .setting("GATEWAY_TIMEOUT_MS", &(milliseconds - milliseconds / 10).to_string())
    }
}

impl User {
    /// What is theirs.
    pub fn lists(&self) -> Request {
        self.get(PATH)
    }

    /// Creates something that is theirs, for tests that are about no slice; under a new key, and not sent yet.
    pub fn creates(&self) -> Request {
        self.orders(&[(MUG, 1)])
    }

    /// Does once whatever customers do: how many requests were answered as they should be.
    ///
    /// # Errors
    /// What was not.
    pub async fn does_what_customers_do(&self) -> Result<usize, String> {
        let placed = self.orders(&[(MUG, 1)]).await;
        if placed.status != 201 {
            return Err(placed.to_string());
        }
        let paid = self.pay(placed.id(), "pm_card_ok").await;
        let read = self.get(format!("/v1/orders/{}", placed.id())).await;
        if [201, 202].contains(&paid.status) && read.status == 200 {
            Ok(3)
        } else {
            Err(format!("{paid}\n{read}"))
        }
    }

    /// An order of these products and quantities, under a new key; not sent yet.
    pub fn orders(&self, items: &[(&str, i64)]) -> Request {
        let items: Vec<_> = items
            .iter()
            .map(|(product, quantity)| json!({ "product_id": product, "quantity": quantity }))
            .collect();
        self.post("/v1/orders").json(&json!({ "items": items })).new_key()
    }

    /// Places an order of two mugs, for 25.80 EUR.
    pub async fn places_an_order(&self) -> Order {
        self.places(&[(MUG, 2)]).await
    }

    /// Places an order of these products and quantities.
    pub async fn places(&self, items: &[(&str, i64)]) -> Order {
        let placed = self.orders(items).await.is(201);
        Order::new(self.clone(), Arc::clone(&self.database), &placed)
    }

    /// Pays an order under a new key.
    pub async fn pays(&self, order: &Order, payment_method: &str) -> Answer {
        self.pay(order.id, payment_method).await
    }

    /// A payment of an order under a new key; not sent yet.
    pub fn pay(&self, order: Uuid, payment_method: &str) -> Request {
        let body = json!({ "payment_method": payment_method });
        self.post(format!("/v1/orders/{order}/payments")).json(&body).new_key()
    }

    /// A refund of a payment under a new key; not sent yet. Without an amount it is of all that is left.
    pub fn refund(&self, payment: Uuid, amount: Option<i64>) -> Request {
        let body = amount.map_or_else(|| json!({}), |amount| json!({ "amount": amount }));
        self.post(format!("/v1/payments/{payment}/refunds")).json(&body).new_key()
    }
}

impl Service {
    /// The payment gateway.
    pub fn gateway(&self) -> &Simulator {
        &self.surroundings.neighbours.gateway
    }

    /// From now on the gateway tells nothing by itself: it has to be asked.
    pub fn gateway_sends_no_webhooks(&self) {
        let faults = self.gateway().faults();
        faults.set(Faults { webhooks: Webhooks::Never, ..faults.get() });
    }

    /// The idempotency key and reference at the gateway of a payment or refund.
    pub async fn gateway_key(&self, id: Uuid) -> Uuid {
        let key = format!(
            "select gateway_key from payments where id = '{id}'
             union all select gateway_key from refunds where id = '{id}'"
        );
        let row = self.database().rows(key).await.remove(0);
        row["gateway_key"].as_str().and_then(|key| key.parse().ok()).expect("a gateway key is a UUID")
    }

    /// The gateway's charges for a payment, declined ones included.
    pub async fn charges_for(&self, payment: Uuid) -> Vec<Charge> {
        self.gateway().charges_for(self.gateway_key(payment).await)
    }

    /// The number of requests that were sent for a payment or refund, among the gateway's latest.
    pub async fn sends_of(&self, id: Uuid) -> usize {
        self.gateway().calls_for(&self.gateway_key(id).await.to_string())
    }

    /// Compares the service's tables with the gateway's ledger: every rule about money holds.
    pub async fn invariants_hold(&self) {
        let verdict = invariants::check(self.database().owner_url().as_str(), &self.gateway().url()).await;
        let verdict = verdict.unwrap_or_else(|error| panic!("{error}"));
        assert!(verdict.holds(), "{verdict}");
    }
}
