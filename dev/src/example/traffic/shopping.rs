//! Actions on products and orders, and the dispatch from an action to its function.
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{
    choices::Action,
    expectations::{is_order, is_product},
    memory::{CompletedRequest, PlacedOrder, Product, State},
};
use crate::traffic::{
    api::{ApiResponse, Call},
    customer::Customer,
    expectations::{has_status, is_page, keeps, list, number, text},
    request::{ApiRequest, RequestOutcome, lock},
};

const PRODUCTS_PAGE: usize = 20;
const ORDERS_PAGE: usize = 5;

impl ApiRequest<'_> {
    pub(super) async fn carry_out(&self, customer: &Mutex<Customer>, token: &str, action: Action) {
        match action {
            Action::Browse { cursor } => self.browse(Some(customer), cursor).await,
            Action::LookAt(product) => self.look_at(&product).await,
            Action::WhoAmI => self.who_am_i(customer, token).await,
            Action::Place { key, items, again } => self.place(customer, token, key, items, again).await,
            Action::Pay { order, request, again } => self.pay(customer, token, order, request, again).await,
            Action::AskForPayment { order, payment_id, request } => {
                self.ask_for_payment(customer, token, order, payment_id, request).await;
            }
            Action::AskForOrder(order) => self.ask_for_order(customer, token, order).await,
            Action::ListOrders { paid_only } => self.list_orders(customer, token, paid_only).await,
            Action::Cancel(order) => self.cancel(customer, token, order).await,
            Action::Repeat(answered) => self.repeat(customer, token, answered).await,
            Action::InvalidRequest(blunder) => self.blunder(customer, token, blunder).await,
        }
    }

    pub(super) async fn browse(&self, customer: Option<&Mutex<Customer>>, cursor: Option<String>) {
        let path = match cursor {
            Some(cursor) => format!("/v1/products?limit={PRODUCTS_PAGE}&cursor={cursor}"),
            None => format!("/v1/products?limit={PRODUCTS_PAGE}"),
        };
        let came = self
            .ask(&Call::get(path), |answer| {
                is_page(answer, PRODUCTS_PAGE)?;
                list(&answer.body, "data").iter().try_for_each(is_product)
            })
            .await;
        let RequestOutcome::Promised(answer) = came else { return };
        let mut products = lock(&self.shared.products);
        for product in list(&answer.body, "data") {
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
                answer.body.get("next_cursor").and_then(Value::as_str).map(ToOwned::to_owned);
        }
    }

    async fn look_at(&self, product: &Product) {
        let came = self
            .ask(&Call::get(format!("/v1/products/{}", product.id)), |answer| {
                has_status(answer, 200)?;
                is_product(&answer.body)?;
                keeps("the response is the requested product", text(&answer.body, "id") == product.id)
            })
            .await;
        if let RequestOutcome::Promised(answer) = came
            && answer.body.get("active") == Some(&Value::Bool(false))
        {
            lock(&self.shared.products).remove(&product.id);
        }
    }

    async fn who_am_i(&self, customer: &Mutex<Customer>, token: &str) {
        let identity = lock(customer).identity.clone();
        self.ask_as(customer, &Call::get("/v1/me").by(token), |answer| {
            has_status(answer, 200)?;
            let id = identity.as_ref().map(|identity| identity.id.as_str());
            keeps("the response is the current user", Some(text(&answer.body, "id")) == id)
        })
        .await;
    }

    async fn place(&self, customer: &Mutex<Customer>, token: &str, key: String, items: Value, again: bool) {
        let call = Call::post("/v1/orders", &json!({ "items": items })).by(token).under(&key);
        let came = self
            .ask_as(customer, &call, |answer| {
                has_status(answer, 201)?;
                is_order(&answer.body)?;
                keeps("a new order is unpaid", text(&answer.body, "status") == "pending_payment")?;
                let lines = items.as_array().map_or(0, Vec::len);
                keeps("an order has every line", list(&answer.body, "items").len() == lines)?;
                keeps("a new order is not a replay", again || !answer.is_replayed())?;
                let location = answer.header("location").unwrap_or_default();
                keeps("`Location` is the order's path", location.ends_with(text(&answer.body, "id")))
            })
            .await;
        match came {
            RequestOutcome::Promised(ApiResponse { status, body, .. }) => {
                self.report().counts.orders += 1;
                let memory = &mut lock(customer).memory;
                memory.remember(PlacedOrder {
                    id: text(&body, "id").to_owned(),
                    total_amount: number(&body, "total_amount").unwrap_or_default(),
                    currency: text(&body, "currency").to_owned(),
                    state: State::Unpaid { declined_before: false },
                });
                memory.answered = Some(CompletedRequest { call, status, body });
            }
            RequestOutcome::ComeAgain => lock(customer).memory.unsure.push((key, items)),
            RequestOutcome::Wrong => {}
        }
    }

    async fn ask_for_order(&self, customer: &Mutex<Customer>, token: &str, order: PlacedOrder) {
        let call = Call::get(format!("/v1/orders/{}", order.id)).by(token);
        let possible: &[&str] = match order.state {
            State::Unpaid { .. } => &["pending_payment"],
            State::Paying { .. } => &["pending_payment", "paid", "partially_refunded", "refunded"],
            State::Paid => &["paid", "partially_refunded", "refunded"],
            State::Cancelled => &["cancelled"],
        };
        let came = self
            .ask_as(customer, &call, |answer| {
                has_status(answer, 200)?;
                is_order(&answer.body)?;
                keeps("the response is the requested order", text(&answer.body, "id") == order.id)?;
                let total = number(&answer.body, "total_amount");
                keeps("an order's total stays unchanged", total == Some(order.total_amount))?;
                let status = text(&answer.body, "status");
                keeps(&format!("the order's status is one of {possible:?}"), possible.contains(&status))
            })
            .await;
        if !matches!(came, RequestOutcome::Wrong) {
            lock(customer).memory.remember(order);
        }
    }

    async fn list_orders(&self, customer: &Mutex<Customer>, token: &str, paid_only: bool) {
        let filter = if paid_only { "&status=paid" } else { "" };
        let call = Call::get(format!("/v1/orders?limit={ORDERS_PAGE}{filter}")).by(token);
        let identity = lock(customer).identity.clone();
        self.ask_as(customer, &call, |answer| {
            is_page(answer, ORDERS_PAGE)?;
            let id = identity.as_ref().map(|identity| identity.id.as_str());
            for order in list(&answer.body, "data") {
                keeps("a customer sees their own orders only", Some(text(order, "customer_id")) == id)?;
                keeps("the list respects the filter", !paid_only || text(order, "status") == "paid")?;
            }
            Ok(())
        })
        .await;
    }

    async fn cancel(&self, customer: &Mutex<Customer>, token: &str, order: PlacedOrder) {
        let call = Call { body: None, ..Call::post(format!("/v1/orders/{}/cancel", order.id), &Value::Null) };
        let came = self
            .ask_as(customer, &call.by(token), |answer| {
                has_status(answer, 200)?;
                is_order(&answer.body)?;
                keeps(
                    "a cancelled order has the status cancelled",
                    text(&answer.body, "status") == "cancelled",
                )
            })
            .await;
        // Without a response the cancellation is uncertain, and a second attempt may be rejected correctly. The
        // customer leaves the order alone.
        if let RequestOutcome::Promised(_) = came {
            self.report().counts.cancelled += 1;
            lock(customer).memory.remember(PlacedOrder { state: State::Cancelled, ..order });
        }
    }

    /// Sends an already answered request once more.
    async fn repeat(&self, customer: &Mutex<Customer>, token: &str, answered: CompletedRequest) {
        let came = self
            .ask_as(customer, &answered.call.by(token), |answer| {
                has_status(answer, answered.status)?;
                keeps("a replay is marked as a replay", answer.is_replayed())?;
                keeps("a replay is the first response", answer.body == answered.body)
            })
            .await;
        if let RequestOutcome::Promised(_) = came {
            self.report().replays += 1;
        }
    }
}
