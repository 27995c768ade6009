//! Placing, reading, listing and cancelling orders.
use std::collections::HashSet;

use dev::harness::{LAMP, MUG, RETIRED, Service, TEAPOT, User};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::service;

#[tokio::test]
async fn an_order_is_placed_at_the_prices_of_the_catalog() {
    let service = service().await;
    let customer = service.customer().await;

    let placed = customer.orders(&[(MUG, 2), (TEAPOT, 1)]).await.assert_status(201);

    let order = placed.json();
    assert_eq!(placed.header("location"), Some(format!("/v1/orders/{}", placed.id()).as_str()));
    assert_eq!(order["customer_id"], json!(customer.id));
    assert_eq!(order["status"], "pending_payment");
    assert_eq!(order["currency"], "EUR");
    assert_eq!(order["total_amount"], 2 * 1290 + 3450);
    assert_eq!(
        order["items"],
        json!([
            { "product_id": MUG, "name": "Mug", "unit_amount": 1290, "quantity": 2, "amount": 2580 },
            { "product_id": TEAPOT, "name": "Teapot", "unit_amount": 3450, "quantity": 1, "amount": 3450 },
        ])
    );
    assert_eq!(service.metric("orders_created_total").await, 1);
    let events = service.audit_events("resource = 'orders' and action = 'create'").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["user_id"], json!(customer.id));
    assert_eq!(events[0]["metadata"]["record_ids"], json!([placed.id()]));
}

#[tokio::test]
async fn an_order_reads_as_it_was_placed() {
    let service = service().await;
    let customer = service.customer().await;
    let placed = customer.orders(&[(TEAPOT, 3), (MUG, 1), (TEAPOT, 2)]).await.assert_status(201);
    let read = customer.get(format!("/v1/orders/{}", placed.id())).await.assert_status(200);
    assert_eq!(read.json(), placed.json());
    let listed = customer.get("/v1/orders").await.assert_status(200).json();
    assert_eq!(listed["data"], json!([placed.json()]));
}

#[tokio::test]
async fn an_order_keeps_its_prices_when_the_catalog_changes() {
    let service = service().await;
    let (customer, admin) = (service.customer().await, service.admin().await);
    let order = customer.places(&[(MUG, 1)]).await;
    let change = json!({ "unit_amount": 1490, "name": "Large mug" });
    let _changed = admin.patch(format!("/v1/products/{MUG}")).json(&change).await.assert_status(200);

    let before = order.read().await;
    assert_eq!(before["total_amount"], 1290);
    assert_eq!(before["items"][0]["name"], "Mug");
    let after = customer.orders(&[(MUG, 1)]).await.assert_status(201).json();
    assert_eq!(after["total_amount"], 1490);
    assert_eq!(after["items"][0]["name"], "Large mug");
}

#[tokio::test]
async fn every_invalid_line_of_an_order_is_reported() {
    let service = service().await;
    let customer = service.customer().await;
    let unknown = Uuid::now_v7().to_string();
    let _rejected = customer
        .orders(&[(MUG, 1), (RETIRED, 1), (&unknown, 1)])
        .await
        .assert_invalid_at(&["/items/1/product_id", "/items/2/product_id"]);
    assert_eq!(service.database().number("select count(*) from orders").await, 0);
}

#[tokio::test]
async fn an_order_has_one_currency() {
    let service = service().await;
    let _rejected =
        service.customer().await.orders(&[(MUG, 1), (LAMP, 1)]).await.assert_invalid_at(&["/items"]);
}

#[tokio::test]
async fn quantities_and_lines_have_bounds() {
    let service = service().await;
    let customer = service.customer().await;
    let largest = customer.orders(&[(MUG, 1000); 100]).await.assert_status(201);
    assert_eq!(largest.json()["total_amount"], 1290 * 1000 * 100);
    assert_eq!(largest.json()["items"].as_array().unwrap().len(), 100);

    let _too_long = customer.orders(&[(MUG, 1); 101]).await.assert_invalid_at(&["/items"]);
    let _empty = customer.orders(&[]).await.assert_invalid_at(&["/items"]);
    let _wrong = customer.orders(&[(MUG, 0), (MUG, 1), (MUG, 1001), (MUG, -1)]).await.assert_invalid_at(&[
        "/items/0/quantity",
        "/items/2/quantity",
        "/items/3/quantity",
    ]);
    let _huge = customer.orders(&[(MUG, i64::MAX)]).await.assert_invalid_at(&["/items/0/quantity"]);
}

#[tokio::test]
async fn the_largest_order_has_an_exact_total() {
    let service = service().await;
    let (customer, admin) = (service.customer().await, service.admin().await);
    let yacht =
        json!({ "sku": "YACHT", "name": "Yacht", "unit_amount": 10_000_000_000_i64, "currency": "EUR" });
    let yacht = admin.post("/v1/products").json(&yacht).await.assert_status(201).text("id");
    let order = customer.orders(&[(yacht.as_str(), 1000); 100]).await.assert_status(201).json();
    assert_eq!(order["total_amount"], 1_000_000_000_000_000_i64);
}

/// Returns the orders of all pages of a list. Checks that every page except the last one is full.
async fn pages(user: &User, query: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page =
            user.get(format!("/v1/orders?limit={limit}{query}{cursor}")).await.assert_status(200).json();
        let data = page["data"].as_array().unwrap();
        all.extend(data.clone());
        let Some(next) = page["next_cursor"].as_str() else { return all };
        assert_eq!(data.len(), limit, "every page except the last one must be full");
        cursor = format!("&cursor={next}");
    }
}

fn ids(orders: &[Value]) -> Vec<&str> {
    orders.iter().map(|order| order["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_list_is_paged_newest_first_without_gaps_or_duplicates() {
    let service = service().await;
    let customer = service.customer().await;
    let mut placed = Vec::new();
    for _ in 0..7 {
        placed.push(customer.places_an_order().await.id.to_string());
    }
    placed.reverse();
    for limit in [1, 3, 7, 100] {
        let listed = pages(&customer, "", limit).await;
        assert_eq!(ids(&listed), placed, "in pages of {limit}");
    }
}

#[tokio::test]
async fn a_new_order_does_not_change_later_pages() {
    let service = service().await;
    let customer = service.customer().await;
    for _ in 0..4 {
        customer.places_an_order().await;
    }
    let first = customer.get("/v1/orders?limit=2").await.assert_status(200).json();
    customer.places_an_order().await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = customer.get(format!("/v1/orders?limit=2&cursor={cursor}")).await.assert_status(200).json();
    let distinct: HashSet<_> =
        [&first, &second].iter().flat_map(|page| ids(page["data"].as_array().unwrap())).collect();
    assert_eq!(distinct.len(), 4);
    assert_eq!(second["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_list_is_filtered_by_status_and_customer() {
    let service = service().await;
    let (one, other, support) = (service.customer().await, service.customer().await, service.support().await);
    let (open, cancelled) = (one.places_an_order().await, one.places_an_order().await);
    let others = other.places_an_order().await;
    let _cancelled = cancelled.cancel().await.assert_status(200);
    let (open, cancelled, others) = (open.id.to_string(), cancelled.id.to_string(), others.id.to_string());

    assert_eq!(ids(&pages(&one, "", 10).await), [&*cancelled, &open]);
    assert_eq!(ids(&pages(&one, "&status=cancelled", 10).await), [&*cancelled]);
    assert_eq!(ids(&pages(&one, "&status=paid", 10).await), [""; 0]);
    assert_eq!(ids(&pages(&one, &format!("&customer_id={}", one.id), 10).await), [&*cancelled, &open]);
    assert_eq!(ids(&pages(&one, &format!("&customer_id={}", other.id), 10).await), [""; 0]);

    assert_eq!(ids(&pages(&support, "", 1).await), [&*others, &cancelled, &open]);
    assert_eq!(ids(&pages(&support, "&status=pending_payment", 1).await), [&*others, &open]);
    assert_eq!(ids(&pages(&support, &format!("&customer_id={}", one.id), 1).await), [&*cancelled, &open]);
    let both = format!("&customer_id={}&status=cancelled", one.id);
    assert_eq!(ids(&pages(&support, &both, 1).await), [&*cancelled]);
}

#[tokio::test]
async fn a_page_has_twenty_orders_by_default() {
    let service = service().await;
    let customer = service.customer().await;
    for _ in 0..21 {
        customer.places(&[(MUG, 1)]).await;
    }
    let page = customer.get("/v1/orders").await.assert_status(200).json();
    assert_eq!(page["data"].as_array().unwrap().len(), 20);
    assert!(page["next_cursor"].is_string());
}

#[tokio::test]
async fn a_404_is_the_same_for_foreign_and_missing_orders() {
    let service = service().await;
    let (owner, other_customer) = (service.customer().await, service.customer().await);
    let (foreign, missing) = (owner.places_an_order().await.id, Uuid::now_v7());
    let rejections = async |id: Uuid| {
        let paths = [
            format!("/v1/orders/{id}"),
            format!("/v1/orders/{id}/cancel"),
            format!("/v1/orders/{id}/payments"),
        ];
        let requests = [
            other_customer.get(&paths[0]),
            other_customer.post(&paths[1]),
            other_customer.post(&paths[2]).json(&json!({ "payment_method": "pm_card_ok" })).new_key(),
        ];
        let mut responses = Vec::new();
        for request in requests {
            let response = request.await.assert_problem(404, "not-found");
            let mut body = response.json();
            for member in ["instance", "correlation_id", "trace_id"] {
                body.as_object_mut().unwrap().remove(member);
            }
            responses.push((body, response.headers.keys().cloned().collect::<HashSet<_>>()));
        }
        responses
    };
    assert_eq!(rejections(foreign).await, rejections(missing).await);

    for id in [foreign, missing] {
        let denied = format!(
            "event_type = 'authorization' and result = 'denied' and resource = 'orders'
             and user_id = '{}' and metadata -> 'record_ids' ? '{id}'",
            other_customer.id
        );
        assert_eq!(service.audit_events(&denied).await.len(), 3, "each rejection is audited");
    }
    assert_eq!(service.metric("authorization_denials_total{reason=\"not_owner\"}").await, 6);
}

#[tokio::test]
async fn a_read_is_audited_only_if_the_data_is_of_another_user() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let (first, second) = (customer.places_an_order().await, customer.places_an_order().await);
    first.read().await;
    let _listed = customer.get("/v1/orders").await.assert_status(200);
    assert_eq!(service.audit_events("event_type = 'data_access'").await, [Value::Null; 0]);

    let _read = support.get(first.path()).await.assert_status(200);
    let _listed = support.get("/v1/orders").await.assert_status(200);
    let accesses = service.audit_events("event_type = 'data_access'").await;
    let summary =
        |access: &Value| (access["user_id"].clone(), access["resource"].clone(), access["result"].clone());
    let by_support = (json!(support.id), json!("orders"), json!("success"));
    assert_eq!(accesses.iter().map(summary).collect::<Vec<_>>(), [by_support.clone(), by_support]);
    assert_eq!(accesses[0]["metadata"]["record_ids"], json!([first.id]));
    assert_eq!(accesses[1]["metadata"]["record_ids"], json!([second.id, first.id]));
}

#[tokio::test]
async fn the_customer_or_support_cancels_an_unpaid_order_once() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let order = customer.places_an_order().await;
    let cancelled = order.cancel().await.assert_status(200).json();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(cancelled, order.read().await);
    let _twice = order.cancel().await.assert_problem(409, "conflict");

    let order = customer.places_an_order().await;
    let cancel = support.post(format!("{}/cancel", order.path()));
    assert_eq!(cancel.await.assert_status(200).text("status"), "cancelled");
    let cancellations = service.audit_events("resource = 'orders' and action = 'cancel'").await;
    assert_eq!(
        cancellations.iter().map(|event| &event["user_id"]).collect::<Vec<_>>(),
        [&json!(customer.id), &json!(support.id)]
    );
}

#[tokio::test]
async fn a_paid_order_is_not_cancelled() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    order.pay_successfully().await;
    let _rejected = order.cancel().await.assert_problem(409, "conflict");
    assert_eq!(order.status().await, "paid");
}

#[tokio::test]
async fn an_order_with_a_declined_payment_can_be_cancelled() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    assert_eq!(order.pay("pm_card_declined").await.assert_status(201).text("status"), "declined");
    let _cancelled = order.cancel().await.assert_status(200);
    let _too_late = order.pay("pm_card_ok").await.assert_problem(409, "conflict");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_concurrent_cancel_and_payment_cannot_both_succeed() {
    let service: Service = service().await;
    let customer = service.customer().await;
    for _ in 0..10 {
        let order = customer.places_an_order().await;
        let (payment, cancellation) = tokio::join!(order.pay("pm_card_ok"), order.cancel());
        match (payment.status, cancellation.status) {
            (201, 409) => assert_eq!(order.status().await, "paid"),
            (409, 200) => assert_eq!(order.status().await, "cancelled"),
            _ => panic!("{payment}\n{cancellation}"),
        }
    }
    service.invariants_hold().await;
}
