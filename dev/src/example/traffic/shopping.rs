//! Actions on products, orders and the profile, and the dispatch from an action to its function.
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{
    choices::Action,
    expectations::{check_order, check_product},
    memory::{CompletedRequest, PlacedOrder, Product, State},
};
use crate::traffic::{
    api::{ApiResponse, Call},
    customer::Customer,
    expectations::{check, check_page, check_status, list, number, text},
    request::{ApiRequest, RequestOutcome, lock},
};

const PRODUCTS_PAGE: usize = 20;
const ORDERS_PAGE: usize = 5;

impl ApiRequest<'_> {
    pub(super) async fn perform(&self, customer: &Mutex<Customer>, token: &str, action: Action) {
        match action {
            Action::Browse { cursor } => self.browse(Some(customer), cursor).await,
            Action::ReadProduct(product) => self.read_product(&product).await,
            Action::ReadProfile => self.read_profile(customer, token).await,
            Action::Place { key, items, is_retry } => self.place(customer, token, key, items, is_retry).await,
            Action::Pay { order, request, is_retry } => {
                self.pay(customer, token, order, request, is_retry).await;
            }
            Action::PollPayment { order, payment_id, request } => {
                self.poll_payment(customer, token, order, payment_id, request).await;
            }
            Action::ReadOrder(order) => self.read_order(customer, token, order).await,
            Action::ListOrders { paid_only } => self.list_orders(customer, token, paid_only).await,
            Action::Cancel(order) => self.cancel(customer, token, order).await,
            Action::Repeat(completed) => self.repeat(customer, token, completed).await,
            Action::InvalidRequest(invalid_request) => {
                self.invalid_request(customer, token, invalid_request).await;
            }
        }
    }

    pub(super) async fn browse(&self, customer: Option<&Mutex<Customer>>, cursor: Option<String>) {
        let path = match cursor {
            Some(cursor) => format!("/v1/products?limit={PRODUCTS_PAGE}&cursor={cursor}"),
            None => format!("/v1/products?limit={PRODUCTS_PAGE}"),
        };
        let outcome = self
            .send(&Call::get(path), |response| {
                check_page(response, PRODUCTS_PAGE)?;
                list(&response.body, "data").iter().try_for_each(check_product)
            })
            .await;
        let RequestOutcome::Expected(response) = outcome else { return };
        let mut products = lock(&self.shared.products);
        for product in list(&response.body, "data") {
            let id = text(product, "id").to_owned();
            if product.get("active") == Some(&Value::Bool(true)) {
                let currency = text(product, "currency").to_owned();
                products.insert(id.clone(), Product { id, currency });
            } else {
                products.remove(&id);
            }
        }
        drop(products);
        if let Some(customer) = customer {
            lock(customer).memory.cursor =
                response.body.get("next_cursor").and_then(Value::as_str).map(ToOwned::to_owned);
        }
    }

    async fn read_product(&self, product: &Product) {
        let outcome = self
            .send(&Call::get(format!("/v1/products/{}", product.id)), |response| {
                check_status(response, 200)?;
                check_product(&response.body)?;
                check("the response is the requested product", text(&response.body, "id") == product.id)
            })
            .await;
        if let RequestOutcome::Expected(response) = outcome
            && response.body.get("active") == Some(&Value::Bool(false))
        {
            lock(&self.shared.products).remove(&product.id);
        }
    }

    async fn read_profile(&self, customer: &Mutex<Customer>, token: &str) {
        let identity = lock(customer).identity.clone();
        self.send_as(customer, &Call::get("/v1/me").with_token(token), |response| {
            check_status(response, 200)?;
            let id = identity.as_ref().map(|identity| identity.id.as_str());
            check("the response is the current user", Some(text(&response.body, "id")) == id)
        })
        .await;
    }

    async fn place(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        key: String,
        items: Value,
        is_retry: bool,
    ) {
        let call = Call::post("/v1/orders", &json!({ "items": items })).with_token(token).with_key(&key);
        let outcome = self
            .send_as(customer, &call, |response| {
                check_status(response, 201)?;
                check_order(&response.body)?;
                check("a new order is unpaid", text(&response.body, "status") == "pending_payment")?;
                let lines = items.as_array().map_or(0, Vec::len);
                check("an order has every requested item", list(&response.body, "items").len() == lines)?;
                check("a new order is not a replay", is_retry || !response.is_replayed())?;
                let location = response.header("location").unwrap_or_default();
                check("`Location` is the order's path", location.ends_with(text(&response.body, "id")))
            })
            .await;
        match outcome {
            RequestOutcome::Expected(ApiResponse { status, body, .. }) => {
                self.report().counts.orders += 1;
                let memory = &mut lock(customer).memory;
                memory.store(PlacedOrder {
                    id: text(&body, "id").to_owned(),
                    total_amount: number(&body, "total_amount").unwrap_or_default(),
                    currency: text(&body, "currency").to_owned(),
                    state: State::Unpaid { declined_before: false },
                });
                memory.completed = Some(CompletedRequest { call, status, body });
            }
            RequestOutcome::Retryable => lock(customer).memory.uncertain.push((key, items)),
            RequestOutcome::Unexpected => {}
        }
    }

    async fn read_order(&self, customer: &Mutex<Customer>, token: &str, order: PlacedOrder) {
        let call = Call::get(format!("/v1/orders/{}", order.id)).with_token(token);
        let possible: &[&str] = match order.state {
            State::Unpaid { .. } => &["pending_payment"],
            State::Paying { .. } => &["pending_payment", "paid", "partially_refunded", "refunded"],
            State::Paid => &["paid", "partially_refunded", "refunded"],
            State::Cancelled => &["cancelled"],
        };
        let outcome = self
            .send_as(customer, &call, |response| {
                check_status(response, 200)?;
                check_order(&response.body)?;
                check("the response is the requested order", text(&response.body, "id") == order.id)?;
                let total = number(&response.body, "total_amount");
                check("an order's total stays unchanged", total == Some(order.total_amount))?;
                let status = text(&response.body, "status");
                check(&format!("the order's status is one of {possible:?}"), possible.contains(&status))
            })
            .await;
        if !matches!(outcome, RequestOutcome::Unexpected) {
            lock(customer).memory.store(order);
        }
    }

    async fn list_orders(&self, customer: &Mutex<Customer>, token: &str, paid_only: bool) {
        let filter = if paid_only { "&status=paid" } else { "" };
        let call = Call::get(format!("/v1/orders?limit={ORDERS_PAGE}{filter}")).with_token(token);
        let identity = lock(customer).identity.clone();
        self.send_as(customer, &call, |response| {
            check_page(response, ORDERS_PAGE)?;
            let id = identity.as_ref().map(|identity| identity.id.as_str());
            for order in list(&response.body, "data") {
                check("a customer sees their own orders only", Some(text(order, "customer_id")) == id)?;
                check("the list respects the filter", !paid_only || text(order, "status") == "paid")?;
            }
            Ok(())
        })
        .await;
    }

    async fn cancel(&self, customer: &Mutex<Customer>, token: &str, order: PlacedOrder) {
        let call = Call { body: None, ..Call::post(format!("/v1/orders/{}/cancel", order.id), &Value::Null) };
        let outcome = self
            .send_as(customer, &call.with_token(token), |response| {
                check_status(response, 200)?;
                check_order(&response.body)?;
                check(
                    "a cancelled order has the status cancelled",
                    text(&response.body, "status") == "cancelled",
                )
            })
            .await;
        // After any other outcome the order may already be cancelled, and the service would reject a second
        // cancellation. So the order is dropped from the customer's memory.
        if let RequestOutcome::Expected(_) = outcome {
            self.report().counts.cancelled += 1;
            lock(customer).memory.store(PlacedOrder { state: State::Cancelled, ..order });
        }
    }

    /// Repeats a completed request, and checks that the response is a replay.
    async fn repeat(&self, customer: &Mutex<Customer>, token: &str, completed: CompletedRequest) {
        let outcome = self
            .send_as(customer, &completed.call.with_token(token), |response| {
                check_status(response, completed.status)?;
                check("a replay is marked as a replay", response.is_replayed())?;
                check("a replay has the body of the first response", response.body == completed.body)
            })
            .await;
        if let RequestOutcome::Expected(_) = outcome {
            self.report().replays += 1;
        }
    }
}
