//! Carries out what a customer does, holds the answer against the contract, and lets the customer remember it.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Settings,
    api::{Answer, Api, Call},
    customer::{Action, Answered, Blunder, Customer, Identity, PayRequest, Placed, Product, State},
    expectations::{
        Kept, has_status, is_order, is_page, is_payment, is_product, is_refused, keeps, list, number,
        says_whether_it_is_settled, text,
    },
    report::{Report, Unexpected},
};

/// Between two registrations or logins. The service counts those of one address, and this is the only address.
const AT_THE_DOOR: Duration = Duration::from_millis(2500);

const PRODUCTS_PAGE: usize = 20;
const ORDERS_PAGE: usize = 5;

/// The service as its customers know it.
pub(super) struct Market {
    api: Api,
    seed: u64,
    customers: Vec<Mutex<Customer>>,
    products: Mutex<BTreeMap<String, Product>>,
    door_opens: Mutex<Instant>,
    report: Mutex<Report>,
}

/// What a request came to.
enum Came {
    /// The answer that the contract promises.
    Promised(Answer),
    /// None, or one that asks to come again: what was done is not known, and the same request may be repeated.
    ComeAgain,
    /// One that the contract does not promise. It is counted, and the matter is left alone.
    Wrong,
}

impl Market {
    pub(super) fn open(settings: Settings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            api: Api::new(settings.api)?,
            seed: settings.seed,
            customers: (0..settings.customers.max(1)).map(|_| Mutex::default()).collect(),
            products: Mutex::default(),
            door_opens: Mutex::new(Instant::now()),
            report: Mutex::default(),
        })
    }

    pub(super) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Counts a request that was not sent because too many were under way.
    pub(super) fn crowded(&self) {
        lock(&self.report).not_sent += 1;
    }

    /// One request by one customer.
    pub(super) async fn visit(self: Arc<Self>, tick: u64) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ tick.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let visit = Visit { market: &self, correlation_id: format!("traffic-{}", Uuid::now_v7().simple()) };
        if let Some(customer) = self.who_may_enter() {
            visit.enter(customer).await;
            lock(customer).at_the_door = false;
            return;
        }
        let inside: Vec<_> =
            self.customers.iter().filter(|customer| lock(customer).token.is_some()).collect();
        let chosen = (!inside.is_empty()).then(|| rng.random_range(0..inside.len()));
        let Some(customer) = chosen.and_then(|index| inside.get(index).copied()) else {
            visit.browse(None, None).await;
            return;
        };
        let products: Vec<_> = lock(&self.products).values().cloned().collect();
        let stranger = inside.iter().find(|other| !std::ptr::eq(**other, customer));
        let strangers_order =
            stranger.and_then(|stranger| lock(stranger).orders.front().map(|order| order.id.clone()));
        let (action, token) = {
            let mut customer = lock(customer);
            (customer.next(&mut rng, &products, strangers_order), customer.token.clone().unwrap_or_default())
        };
        visit.carry_out(customer, &token, action).await;
    }

    /// A customer who is to register or to log in, if it is time for one.
    fn who_may_enter(&self) -> Option<&Mutex<Customer>> {
        let mut door_opens = lock(&self.door_opens);
        if Instant::now() < *door_opens {
            return None;
        }
        let outside = self.customers.iter().find(|customer| {
            let customer = lock(customer);
            customer.token.is_none() && !customer.at_the_door
        })?;
        lock(outside).at_the_door = true;
        *door_opens = Instant::now() + AT_THE_DOOR;
        Some(outside)
    }
}

/// One request under way.
struct Visit<'a> {
    market: &'a Market,
    correlation_id: String,
}

impl Visit<'_> {
    fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.market.report)
    }

    /// Sends a call and counts what came. `promised` says what is wrong with an answer that is neither missing
    /// nor one of those by which a busy service turns everybody away.
    async fn ask(&self, call: &Call, promised: impl FnOnce(&Answer) -> Kept) -> Came {
        self.report().requests += 1;
        let Some(answer) = self.market.api.send(call, &self.correlation_id).await else {
            self.report().unanswered += 1;
            return Came::ComeAgain;
        };
        let turned_away = turns_away(call, &answer);
        let kept = keeps(
            "the correlation id comes back",
            answer.header("x-correlation-id") == Some(self.correlation_id.as_str()),
        )
        .and_then(|()| if turned_away { is_refused_for_now(&answer) } else { promised(&answer) });
        match kept {
            Err(why) => {
                self.report().unexpected(Unexpected {
                    method: call.method.to_string(),
                    path: call.path.clone(),
                    status: answer.status,
                    why,
                    body: answer.text,
                    correlation_id: self.correlation_id.clone(),
                });
                Came::Wrong
            }
            Ok(()) if turned_away => {
                self.report().turned_away += 1;
                Came::ComeAgain
            }
            Ok(()) => Came::Promised(answer),
        }
    }

    /// The same for a customer who is logged in. A session may end at any time; then the customer logs in again
    /// before anything else, and the request may be repeated.
    async fn ask_as(
        &self,
        customer: &Mutex<Customer>,
        call: &Call,
        promised: impl FnOnce(&Answer) -> Kept,
    ) -> Came {
        let mut ended = false;
        let came = self
            .ask(call, |answer| {
                ended = answer.status == 401;
                if ended { is_refused(answer, 401) } else { promised(answer) }
            })
            .await;
        if !ended {
            return came;
        }
        let mut customer = lock(customer);
        if customer.token == call.token {
            customer.token = None;
            self.report().sessions_renewed += 1;
        }
        Came::ComeAgain
    }

    async fn enter(&self, customer: &Mutex<Customer>) {
        let known = lock(customer).identity.clone();
        let Some(identity) = known else {
            return self.register(customer).await;
        };
        let call =
            Call::post("/v1/sessions", &json!({ "email": identity.email, "password": identity.password }));
        let came = self
            .ask(&call, |answer| {
                has_status(answer, 201)?;
                keeps("a session has a token", !text(&answer.body, "token").is_empty())?;
                keeps("a session ends", !text(&answer.body, "expires_at").is_empty())?;
                let user = answer.body.get("user").unwrap_or(&Value::Null);
                keeps("a session is of who logged in", text(user, "id") == identity.id)
            })
            .await;
        match came {
            Came::Promised(answer) => lock(customer).token = Some(text(&answer.body, "token").to_owned()),
            // The service may have lost its users since: a database that was begun anew.
            Came::Wrong => *lock(customer) = Customer { at_the_door: true, ..Customer::default() },
            Came::ComeAgain => {}
        }
    }

    async fn register(&self, customer: &Mutex<Customer>) {
        let name = Uuid::now_v7().simple().to_string();
        let email = format!("traffic-{name}@example.com");
        let password = format!("open sesame {name}");
        let call =
            Call::post("/v1/users", &json!({ "email": email, "password": password, "name": "Traffic" }));
        let came = self
            .ask(&call, |answer| {
                has_status(answer, 201)?;
                keeps("a user has an id", !text(&answer.body, "id").is_empty())?;
                keeps("a user has the address that was given", text(&answer.body, "email") == email)?;
                keeps("who registers is a customer", text(&answer.body, "role") == "customer")
            })
            .await;
        if let Came::Promised(answer) = came {
            let id = text(&answer.body, "id").to_owned();
            lock(customer).identity = Some(Identity { id, email, password });
            self.report().customers += 1;
        }
    }

    async fn carry_out(&self, customer: &Mutex<Customer>, token: &str, action: Action) {
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
            Action::Blunder(blunder) => self.blunder(customer, token, blunder).await,
        }
    }

    async fn browse(&self, customer: Option<&Mutex<Customer>>, cursor: Option<String>) {
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
        let Came::Promised(answer) = came else { return };
        let mut products = lock(&self.market.products);
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
            lock(customer).cursor =
                answer.body.get("next_cursor").and_then(Value::as_str).map(ToOwned::to_owned);
        }
    }

    async fn look_at(&self, product: &Product) {
        let came = self
            .ask(&Call::get(format!("/v1/products/{}", product.id)), |answer| {
                has_status(answer, 200)?;
                is_product(&answer.body)?;
                keeps("it is the product that was asked for", text(&answer.body, "id") == product.id)
            })
            .await;
        if let Came::Promised(answer) = came
            && answer.body.get("active") == Some(&Value::Bool(false))
        {
            lock(&self.market.products).remove(&product.id);
        }
    }

    async fn who_am_i(&self, customer: &Mutex<Customer>, token: &str) {
        let identity = lock(customer).identity.clone();
        self.ask_as(customer, &Call::get("/v1/me").by(token), |answer| {
            has_status(answer, 200)?;
            let id = identity.as_ref().map(|identity| identity.id.as_str());
            keeps("the service knows who asks", Some(text(&answer.body, "id")) == id)
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
                keeps("`Location` leads to the order", location.ends_with(text(&answer.body, "id")))
            })
            .await;
        match came {
            Came::Promised(Answer { status, body, .. }) => {
                self.report().orders += 1;
                let mut customer = lock(customer);
                customer.remember(Placed {
                    id: text(&body, "id").to_owned(),
                    total_amount: number(&body, "total_amount").unwrap_or_default(),
                    currency: text(&body, "currency").to_owned(),
                    state: State::Unpaid { declined_before: false },
                });
                customer.answered = Some(Answered { call, status, body });
            }
            Came::ComeAgain => lock(customer).unsure.push((key, items)),
            Came::Wrong => {}
        }
    }

    async fn pay(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: Placed,
        request: PayRequest,
        again: bool,
    ) {
        let path = format!("/v1/orders/{}/payments", order.id);
        let call =
            Call::post(path, &json!({ "payment_method": request.method })).by(token).under(&request.key);
        let mut under_way = false;
        let came = self
            .ask_as(customer, &call, |answer| {
                under_way = again && answer.status == 409 && answer.header("retry-after").is_some();
                if under_way {
                    return is_refused(answer, 409);
                }
                keeps("a new payment is 201 or 202", [201, 202].contains(&answer.status))?;
                is_payment(&answer.body, &order.id, order.total_amount, &order.currency, request.method)?;
                says_whether_it_is_settled(answer)?;
                keeps("a new payment is not a replay", again || !answer.is_replayed())
            })
            .await;
        match came {
            Came::Promised(answer) if !under_way => {
                if answer.status == 201 {
                    lock(customer).answered =
                        Some(Answered { call, status: answer.status, body: answer.body.clone() });
                }
                self.learn(customer, order, request, &answer.body);
            }
            Came::Promised(_) | Came::ComeAgain => {
                let payment_id = match &order.state {
                    State::Paying { payment_id, .. } => payment_id.clone(),
                    _ => None,
                };
                lock(customer).remember(Placed { state: State::Paying { payment_id, request }, ..order });
            }
            Came::Wrong => {}
        }
    }

    async fn ask_for_payment(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: Placed,
        payment_id: String,
        request: PayRequest,
    ) {
        let call = Call::get(format!("/v1/payments/{payment_id}")).by(token);
        let came = self
            .ask_as(customer, &call, |answer| {
                has_status(answer, 200)?;
                keeps("it is the payment that was asked for", text(&answer.body, "id") == payment_id)?;
                is_payment(&answer.body, &order.id, order.total_amount, &order.currency, request.method)
            })
            .await;
        match came {
            Came::Promised(answer) => self.learn(customer, order, request, &answer.body),
            Came::ComeAgain => lock(customer).remember(order),
            Came::Wrong => {}
        }
    }

    /// Counts what has become of a payment, and lets the customer remember it.
    fn learn(&self, customer: &Mutex<Customer>, order: Placed, request: PayRequest, payment: &Value) {
        let was_processing = matches!(order.state, State::Paying { payment_id: Some(_), .. });
        let mut report = self.report();
        let payments = &mut report.payments;
        if was_processing {
            payments.processing -= 1;
        }
        let state = match text(payment, "status") {
            "processing" => {
                payments.processing += 1;
                State::Paying { payment_id: Some(text(payment, "id").to_owned()), request }
            }
            "declined" => {
                payments.declined += 1;
                State::Unpaid { declined_before: true }
            }
            "failed" => {
                payments.failed += 1;
                State::Unpaid { declined_before: true }
            }
            _ => {
                payments.succeeded += 1;
                State::Paid
            }
        };
        drop(report);
        lock(customer).remember(Placed { state, ..order });
    }

    async fn ask_for_order(&self, customer: &Mutex<Customer>, token: &str, order: Placed) {
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
                keeps("it is the order that was asked for", text(&answer.body, "id") == order.id)?;
                let total = number(&answer.body, "total_amount");
                keeps("an order's total stays as it was", total == Some(order.total_amount))?;
                let status = text(&answer.body, "status");
                keeps(&format!("the order's status is one of {possible:?}"), possible.contains(&status))
            })
            .await;
        if !matches!(came, Came::Wrong) {
            lock(customer).remember(order);
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
                keeps("the filter is kept to", !paid_only || text(order, "status") == "paid")?;
            }
            Ok(())
        })
        .await;
    }

    async fn cancel(&self, customer: &Mutex<Customer>, token: &str, order: Placed) {
        let call = Call { body: None, ..Call::post(format!("/v1/orders/{}/cancel", order.id), &Value::Null) };
        let came = self
            .ask_as(customer, &call.by(token), |answer| {
                has_status(answer, 200)?;
                is_order(&answer.body)?;
                keeps("a cancelled order says so", text(&answer.body, "status") == "cancelled")
            })
            .await;
        // Without an answer nobody knows whether it is cancelled, and a second try may rightly be refused: the
        // order is left alone.
        if let Came::Promised(_) = came {
            self.report().cancelled += 1;
            lock(customer).remember(Placed { state: State::Cancelled, ..order });
        }
    }

    /// Sends once more what was answered before.
    async fn repeat(&self, customer: &Mutex<Customer>, token: &str, answered: Answered) {
        let came = self
            .ask_as(customer, &answered.call.by(token), |answer| {
                has_status(answer, answered.status)?;
                keeps("a replay says that it is one", answer.is_replayed())?;
                keeps("a replay is the first answer", answer.body == answered.body)
            })
            .await;
        if let Came::Promised(_) = came {
            self.report().replays += 1;
        }
    }

    /// Does something that has to be refused.
    async fn blunder(&self, customer: &Mutex<Customer>, token: &str, blunder: Blunder) {
        let fresh = Uuid::now_v7().to_string();
        let order = |body: &Value| Call::post("/v1/orders", body).by(token).under(&fresh);
        let (call, status) = match &blunder {
            Blunder::UnknownField(items) => (order(&json!({ "items": items, "coupon": "FREE" })), 422),
            Blunder::QuantityOfZero(product) => {
                (order(&json!({ "items": [{ "product_id": product.id, "quantity": 0 }] })), 422)
            }
            Blunder::NoToken => (Call::get("/v1/orders"), 401),
            Blunder::SomebodyElsesOrder(id) => (Call::get(format!("/v1/orders/{id}")).by(token), 404),
            Blunder::NoKey(items) => (Call { key: None, ..order(&json!({ "items": items })) }, 400),
            Blunder::BrokenJson => {
                (Call { body: Some("{\"items\":".to_owned()), ..order(&Value::Null) }, 400)
            }
            Blunder::LimitTooHigh => (Call::get("/v1/orders?limit=101").by(token), 400),
            Blunder::NoSuchRoute => (Call::get("/v1/wishes"), 404),
            Blunder::WrongMethod => (Call { method: Method::DELETE, ..Call::get("/v1/products") }, 405),
            Blunder::NotAllowed => {
                let product = json!({ "sku": fresh, "name": "Mine", "unit_amount": 1, "currency": "EUR" });
                (Call::post("/v1/products", &product).by(token).under(&fresh), 403)
            }
            Blunder::KeyReused(answered) => {
                let other = json!({ "something": "else" }).to_string();
                (Call { body: Some(other), ..answered.call.clone().by(token) }, 422)
            }
            Blunder::PayTwice(paid) => {
                let card = json!({ "payment_method": "pm_card_ok" });
                (Call::post(format!("/v1/orders/{}/payments", paid.id), &card).by(token).under(&fresh), 409)
            }
        };
        let names_the_field = matches!(blunder, Blunder::UnknownField(_) | Blunder::QuantityOfZero(_));
        let promised = |answer: &Answer| {
            is_refused(answer, status)?;
            keeps("the refusal names the field", !names_the_field || !list(&answer.body, "errors").is_empty())
        };
        let came = match status {
            401 => self.ask(&call, promised).await,
            _ => self.ask_as(customer, &call, promised).await,
        };
        if let Came::Promised(_) = came {
            self.report().refusals += 1;
        }
        if let Blunder::PayTwice(order) = blunder {
            lock(customer).remember(order);
        }
    }
}

/// Whether a busy service may answer this call so. A payment is never given up at the deadline: it is 202 then.
fn turns_away(call: &Call, answer: &Answer) -> bool {
    match answer.status {
        429 | 503 => true,
        504 => !call.path.ends_with("/payments"),
        _ => false,
    }
}

fn is_refused_for_now(answer: &Answer) -> Kept {
    is_refused(answer, answer.status)?;
    keeps("it says when to come again", answer.status == 504 || answer.header("retry-after").is_some())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
