//! Rules that the database enforces for orders, payments and refunds. No money moves without an audit event. Requests
//! continue while a migration waits for a lock, and no statement of the service scans all orders.
use std::time::{Duration, Instant};

use dev::harness::{MUG, PASSWORD};
use serde_json::json;

use crate::{
    audit::WRITABLE,
    database::{INSUFFICIENT_PRIVILEGE, assert_no_full_scan},
    service,
};

#[tokio::test]
async fn no_money_moves_that_cannot_be_audited() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let (unpaid, paid) = (customer.places_an_order().await, customer.places_an_order().await);
    let payment = paid.pay_successfully().await;
    let sessions = service.database().number("select count(*) from sessions").await;
    service.database().execute("revoke insert on audit_events from app_runtime").await;

    let order = customer.orders(&[(MUG, 1)]);
    let log_in = |password: &str| {
        let credentials = json!({ "email": customer.email, "password": password });
        service.anonymous().post("/v1/sessions").json(&credentials)
    };
    for (operation, request) in [
        ("placing", order.clone()),
        ("cancelling", unpaid.cancel()),
        ("paying", unpaid.pay("pm_card_ok")),
        ("refunding", support.refund(payment, None)),
        ("logging in", log_in(PASSWORD)),
        ("failing to log in", log_in("not the password of any user")),
        ("staff's reading an order", support.get(paid.path())),
        ("staff's reading a list", support.get("/v1/orders")),
        ("staff's reading a payment", support.get(format!("/v1/payments/{payment}"))),
    ] {
        let rejected = request.await;
        assert_eq!(rejected.status, 500, "{operation}: {rejected}");
    }
    // The service sends a 403 even if its audit event cannot be recorded, because a 403 changes no data and grants
    // nothing.
    let _rejected = support.orders(&[(MUG, 1)]).await.assert_problem(403, "forbidden");
    assert!(service.metric("audit_write_failures_total").await >= 5);

    service.database().execute(format!("grant insert ({WRITABLE}) on audit_events to app_runtime")).await;
    assert_eq!(unpaid.status().await, "pending_payment");
    assert_eq!(paid.status().await, "paid");
    assert_eq!(service.database().number("select count(*) from orders").await, 2);
    assert_eq!(service.database().number("select count(*) from refunds").await, 0);
    assert_eq!(service.database().number("select count(*) from sessions").await, sessions);
    assert_eq!(service.gateway().ledger().counts().charges_succeeded, 1);
    assert!(!order.await.assert_status(201).is_replayed());
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_service_cannot_rewrite_orders_payments_or_refunds() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let _refunded = service.support().await.refund(payment, Some(1)).await.assert_status(201);
    for statement in [
        "delete from orders",
        "update orders set total_amount = 1",
        "update orders set customer_id = gen_random_uuid()",
        "update orders set currency = 'USD'",
        "delete from order_items",
        "update order_items set quantity = 1",
        "delete from payments",
        "update payments set amount = 1",
        "update payments set order_id = gen_random_uuid()",
        "update payments set gateway_request = ''",
        "update payments set first_sent_at = now()",
        "delete from refunds",
        "update refunds set amount = 1",
        "update refunds set payment_id = gen_random_uuid()",
        "truncate orders, order_items, payments, refunds",
        "update products set currency = 'USD'",
        "delete from products",
        "drop table orders",
        "alter table orders add column loot integer",
        "drop trigger order_status_moves_forward on orders",
    ] {
        let rejected = service.database().try_as_service(statement).await;
        assert_eq!(rejected, Err(INSUFFICIENT_PRIVILEGE.to_owned()), "{statement}");
    }
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_database_itself_enforces_the_rules_of_payments() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let check_violation = Err("23514".to_owned());
    for statement in [
        &format!("update orders set status = 'pending_payment' where id = '{}'", order.id),
        &format!("update orders set status = 'cancelled' where id = '{}'", order.id),
        &format!("update payments set status = 'declined', failure_reason = 'x' where id = '{payment}'"),
        &format!("update payments set status = 'processing' where id = '{payment}'"),
        &format!("update payments set refund_reserved_amount = amount + 1 where id = '{payment}'"),
        &format!("update payments set refunded_amount = 1 where id = '{payment}'"),
        &format!("update payments set refund_reserved_amount = -1 where id = '{payment}'"),
    ] {
        assert_eq!(service.database().try_as_service(statement).await, check_violation, "{statement}");
    }
    let second = format!(
        "insert into payments (id, order_id, gateway_key, amount, currency, gateway_request, correlation_id)
         values (gen_random_uuid(), '{}', gen_random_uuid(), 2580, 'EUR', '', 'x')",
        order.id
    );
    assert_eq!(service.database().try_as_service(&second).await, Err("23505".to_owned()), "a second payment");
    let unpaid = service.customer().await.places_an_order().await;
    let live = second.replace(&order.id.to_string(), &unpaid.id.to_string());
    assert_eq!(service.database().try_as_service(&live).await, Ok(()));
    for (ours, others) in [("2580", "2581"), ("EUR", "USD")] {
        let differs = live.replace(ours, others);
        assert_eq!(service.database().try_as_service(&differs).await, Err("23503".to_owned()), "{others}");
    }
    let known = |column: &str| format!("(select {column} from payments where id = '{payment}')");
    let of_its_key = live.replace("gen_random_uuid(), 2580", &format!("{}, 2580", known("gateway_key")));
    let of_its_charge =
        format!("{live}; update payments set gateway_charge_id = {}", known("gateway_charge_id"));
    for twice in [of_its_key, of_its_charge] {
        assert_eq!(service.database().try_as_service(&twice).await, Err("23505".to_owned()), "{twice}");
    }
}

#[tokio::test]
async fn requests_continue_while_a_migration_waits_for_a_reader() {
    let service = service().await;
    let customer = service.customer().await;
    let payment = customer.places_an_order().await.pay_successfully().await;
    // This undoes a migration that changes tables which requests use.
    service
        .database()
        .execute(
            "drop table reconciliations;
             alter table payments drop column listed_at;
             alter table refunds drop column listed_at;
             delete from _sqlx_migrations where version = 11",
        )
        .await;
    // This transaction reads `payments` and stays open, like the transaction of a backup.
    let reader = service.database().hold("select count(*) from payments").await;
    let (migrated, ()) = tokio::join!(service.command(&["migrate"], &[]), async {
        service.database().wait_for_blocked_statements(1).await;
        for _ in 0..5 {
            let started = Instant::now();
            let _shown = customer.get(format!("/v1/payments/{payment}")).await.assert_status(200);
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
        reader.release().await;
    });
    assert!(migrated.succeeded().starts_with("applied 1 migrations"));
}

#[tokio::test]
async fn no_statement_scans_the_orders_of_all_customers() {
    let service = service().await;
    // The trigger compares the total of each order with its items, which would take most of the test's time. The
    // trigger is therefore disabled, and the orders have no items.
    service
        .database()
        .execute(
            "alter table orders disable trigger total_amount_is_the_sum_of_the_items;
             insert into users (id, email, name, password_hash, role)
             select gen_random_uuid(), format('u%s@example.com', n), 'U', '', 'customer'
             from generate_series(1, 500) n;
             insert into orders (id, customer_id, status, currency, total_amount)
             select
               gen_random_uuid(), users.id, case when n % 5 = 0 then 'cancelled' else 'pending_payment' end, 'EUR', 100
             from generate_series(1, 200) n, users;
             analyze orders",
        )
        .await;
    assert!(service.database().number("select count(*) from orders").await >= 100_000);
    assert!(assert_no_full_scan(&service, "orders").await >= 5, "too few statements were checked");
}
