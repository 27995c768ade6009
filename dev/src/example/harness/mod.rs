//! The domain part of the test harness: orders, and the payment gateway.
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
    external_services::Addresses,
    gateway::{Charge, Faults, Settings, Simulator, Timings, Webhooks},
    invariants,
};
use crate::harness::{Builder, Database, HttpResponse, Request, Service, User};

/// The API key that services send to their gateway.
pub const GATEWAY_API_KEY: &str = "sk_for_tests";
const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZQ==";

/// A product in every new database: 12.90 EUR.
pub const MUG: &str = "01900000-0000-7000-8000-000000000001";
/// A second product: 34.50 EUR.
pub const TEAPOT: &str = "01900000-0000-7000-8000-000000000002";
/// A product in another currency: 19.00 USD.
pub const LAMP: &str = "01900000-0000-7000-8000-000000000003";
/// A product that is no longer for sale.
pub const RETIRED: &str = "01900000-0000-7000-8000-000000000004";

/// The table used by tests of the platform, and locked by the fault `slow-database`. Customers create rows, and read
/// their own rows.
pub const TABLE: &str = "orders";
/// The path where rows of the table are created and listed.
pub const PATH: &str = "/v1/orders";
/// The route of a single row.
pub const ROUTE: &str = "/v1/orders/{id}";
/// The statement that creates a row, as named in metrics.
pub const INSERT_STATEMENT: &str = "orders.insert";
/// The statement that lists a customer's rows, as named in metrics.
pub const LIST_STATEMENT: &str = "orders.list_of_customer";

/// Required settings of the service, in addition to the database URL. No gateway listens at the address in
/// `GATEWAY_URL`.
pub const REQUIRED: [(&str, &str); 3] = [
    ("GATEWAY_URL", "http://127.0.0.1:1"),
    ("GATEWAY_API_KEY", "an-api-key"),
    ("GATEWAY_WEBHOOK_SECRET", "whsec_YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw=="),
];
/// Secret settings, in addition to the platform's.
pub const SECRETS: [&str; 2] = ["GATEWAY_API_KEY", "GATEWAY_WEBHOOK_SECRET"];
/// Readiness checks of external services.
pub const EXTERNAL_CHECKS: [&str; 1] = ["external_api"];
/// Series that exist from the first scrape, in addition to the platform's.
pub const SERIES: [&str; 11] = [
    "orders_created_total 0",
    "payments_total{outcome=\"succeeded\"} 0",
    "payments_total{outcome=\"declined\"} 0",
    "payments_total{outcome=\"failed\"} 0",
    "payment_failures_total{reason=\"gateway_timeout\"} 0",
    "payments_parked 0",
    "payment_discrepancies_open 0",
    "reconciliation_discrepancies_total{kind=\"orphan\"} 0",
    "payments_processing 0",
    "payment_oldest_processing_seconds 0",
    "circuit_breaker_state{service=\"payment_gateway\"} 0",
];

/// Returns the body of a request that creates a row.
pub fn body() -> serde_json::Value {
    json!({ "items": [{ "product_id": MUG, "quantity": 1 }] })
}

/// The external services: a payment gateway.
pub(crate) struct ExternalServices {
    gateway: Simulator,
}

impl ExternalServices {
    /// Starts the external services.
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

    /// Returns the service's settings for the external services. A test can override these settings.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GATEWAY_URL", self.gateway.url().to_string()),
            ("GATEWAY_API_KEY", GATEWAY_API_KEY.to_owned()),
            ("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET.to_owned()),
            // Long enough for a gateway on this machine, and short enough for tests of the timeout.
            ("GATEWAY_TIMEOUT_MS", "2500".to_owned()),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1".to_owned()),
            // The reconciliation runs at the start of the service. Only tests of the reconciliation need a further run.
            ("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "600".to_owned()),
        ]
    }

    /// Returns the addresses of the external services.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses { gateway: self.gateway.url() }
    }

    /// Sets the URL to which the gateway sends its webhooks.
    pub(crate) fn set_service_address(&self, api: &Url) {
        let url = api.join("/v1/gateway/events").expect("the path is not valid in a URL");
        self.gateway.set_webhook_url(url);
    }
}

/// Creates the products [`MUG`], [`TEAPOT`], [`LAMP`] and [`RETIRED`] in a new database.
pub(crate) async fn seed_data(database: &Database) {
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

/// Creates rows of [`TABLE`] for a customer, each with its audit event, in one transaction.
pub async fn seed_rows(database: &Database, customer: Uuid, count: u32) {
    database
        .execute(format!(
            "with placed as (
               insert into orders (id, customer_id, currency, total_amount)
               select gen_random_uuid(), '{customer}', 'EUR', 1290 from generate_series(1, {count})
               returning id
             ), lines as (
               insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
               select id, 1, '{MUG}', 'Mug', 1290, 1, 1290 from placed
             )
             insert into audit_events
               (id, timestamp, event_type, user_id, role, resource, action, result, service_version, metadata)
             select gen_random_uuid(), now(), 'data_change', '{customer}', 'customer', 'orders', 'create', 'success', '0',
                    jsonb_build_object('record_ids', jsonb_build_array(id), 'lines', 1)
             from placed"
        ))
        .await;
}

/// Gauges of the reconciliation, one for each scope. Each gauge is zero until a run of its scope is complete. The
/// harness waits until the gauges are positive. A worker's success does not show a complete run, because the worker of
/// a scope reports success after each page.
pub const FIRST_RUN_GAUGES: [&str; 2] = [
    "reconciliation_last_success_timestamp_seconds{scope=\"recent\"}",
    "reconciliation_last_success_timestamp_seconds{scope=\"window\"}",
];

impl Builder {
    /// Sets worker intervals longer than any test, so that these workers use the database only at the service's start.
    pub fn with_idle_workers(self) -> Self {
        self.setting("AUDIT_SEAL_INTERVAL_SECONDS", "600").setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
    }

    /// Sets the deadline of requests, and a shorter gateway timeout.
    pub fn with_a_deadline_of_ms(self, milliseconds: u32) -> Self {
        self.setting("REQUEST_TIMEOUT_MS", &milliseconds.to_string())
            .setting("GATEWAY_TIMEOUT_MS", &(milliseconds - milliseconds / 10).to_string())
    }
}

impl User {
    /// Returns a request that lists the customer's own rows.
    pub fn lists(&self) -> Request {
        self.get(PATH)
    }

    /// Returns an unsent request that creates a row and has a new idempotency key, for tests of the platform.
    pub fn creates(&self) -> Request {
        self.orders(&[(MUG, 1)])
    }

    /// Places, pays and reads an order. Returns the requests with their responses.
    ///
    /// # Errors
    /// Returns the text of the responses if one of them has an unexpected status.
    pub async fn uses_every_customer_route(&self) -> Result<Vec<(Request, HttpResponse)>, String> {
        let order = self.orders(&[(MUG, 1)]);
        let placed = order.clone().await;
        if placed.status != 201 {
            return Err(placed.to_string());
        }
        let payment = self.pay(placed.id(), "pm_card_ok");
        let paid = payment.clone().await;
        let reading = self.get(format!("/v1/orders/{}", placed.id()));
        let read = reading.clone().await;
        if [201, 202].contains(&paid.status) && read.status == 200 {
            Ok(vec![(order, placed), (payment, paid), (reading, read)])
        } else {
            Err(format!("{paid}\n{read}"))
        }
    }

    /// Returns an unsent order of these products and quantities, with a new idempotency key.
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
        let placed = self.orders(items).await.assert_status(201);
        Order::new(self.clone(), Arc::clone(&self.database), &placed)
    }

    /// Pays an order with a new idempotency key.
    pub async fn pays(&self, order: &Order, payment_method: &str) -> HttpResponse {
        self.pay(order.id, payment_method).await
    }

    /// Returns an unsent payment of an order, with a new idempotency key.
    pub fn pay(&self, order: Uuid, payment_method: &str) -> Request {
        let body = json!({ "payment_method": payment_method });
        self.post(format!("/v1/orders/{order}/payments")).json(&body).new_key()
    }

    /// Returns an unsent refund of a payment, with a new idempotency key. Without an amount, the whole remaining amount
    /// is refunded.
    pub fn refund(&self, payment: Uuid, amount: Option<i64>) -> Request {
        let body = amount.map_or_else(|| json!({}), |amount| json!({ "amount": amount }));
        self.post(format!("/v1/payments/{payment}/refunds")).json(&body).new_key()
    }
}

impl Service {
    /// Returns the payment gateway.
    pub fn gateway(&self) -> &Simulator {
        &self.dependencies.external_services.gateway
    }

    /// Disables the gateway's webhooks, so that the service must poll the gateway.
    pub fn disable_webhooks(&self) {
        let faults = self.gateway().faults();
        faults.set(Faults { webhooks: Webhooks::Never, ..faults.get() });
    }

    /// Returns the gateway key of a payment or refund, which is its idempotency key and its reference at the gateway.
    pub async fn gateway_key(&self, id: Uuid) -> Uuid {
        let key = format!(
            "select gateway_key from payments where id = '{id}'
             union all select gateway_key from refunds where id = '{id}'"
        );
        let row = self.database().rows(key).await.remove(0);
        row["gateway_key"].as_str().and_then(|key| key.parse().ok()).expect("the gateway key is not a UUID")
    }

    /// Returns the gateway's charges for a payment, including declined ones.
    pub async fn charges_for(&self, payment: Uuid) -> Vec<Charge> {
        self.gateway().charges_for(self.gateway_key(payment).await)
    }

    /// Returns the number of requests with the gateway key of a payment or refund as the idempotency key, among the
    /// gateway's latest requests. Polls are not counted, because they have no idempotency key.
    pub async fn count_requests_for(&self, id: Uuid) -> usize {
        self.gateway().calls_for(&self.gateway_key(id).await.to_string())
    }

    /// Compares the service's tables with the gateway's ledger, and checks that all invariants hold.
    pub async fn invariants_hold(&self) {
        let report = invariants::check(self.database().owner_url().as_str(), &self.gateway().url()).await;
        let report = report.unwrap_or_else(|error| panic!("{error}"));
        assert!(report.holds(), "{report}");
    }
}
