//! The views of the console, with orders and payments.
mod screenshots;
mod views;

use dev::harness::{Order, eventually};

use crate::console::fixture::{ConsoleFixture, get};

impl ConsoleFixture {
    /// Places an order of a new customer, and pays it with a request that has this correlation id. Returns the order.
    pub(crate) async fn paid_order(&self, correlation_id: &str) -> Order {
        let order = self.service.customer().await.places_an_order().await;
        let _paid =
            order.pay("pm_card_ok").header("x-correlation-id", correlation_id).await.assert_status(201);
        order
    }

    /// Waits until the console has more than five spans of the trace of the payment with this correlation id. Returns
    /// the id of the trace.
    pub(crate) async fn wait_for_payment_trace(&self, correlation_id: &str) -> String {
        let path = format!("/api/traces?correlation_id={correlation_id}&route=POST%20%2Fv1%2Forders");
        eventually("the trace is received", async || {
            let traces = get(&self.console, &path).await;
            let trace = traces.as_array()?.iter().find(|trace| trace["spans"].as_u64() > Some(5))?.clone();
            Some(trace["trace_id"].as_str()?.to_owned())
        })
        .await
    }
}
