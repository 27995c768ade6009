//! The number of database round trips of the hot routes of products, orders and payments. A request for another
//! customer's order costs the same as a request for a missing order.
use dev::harness::{MUG, TEAPOT};
use serde_json::json;
use uuid::Uuid;

use crate::database::round_trips::{counted_service, measure_cost};

/// Routes with their expected status and number of round trips. A change that raises a number makes the route more
/// expensive, and must state the reason here.
const ROUND_TRIPS: [(&str, u16, usize); 7] = [
    ("GET /v1/products", 200, 1),
    ("POST /v1/orders", 201, 2),
    ("POST /v1/orders, again", 201, 4),
    ("GET /v1/orders/{id}", 200, 2),
    ("GET /v1/orders", 200, 2),
    ("POST /v1/orders/{id}/payments", 201, 7),
    ("GET /v1/payments/{id}", 200, 2),
];

#[tokio::test]
async fn order_routes_make_the_documented_number_of_round_trips() {
    let service = counted_service().await;
    service.disable_webhooks();
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let paid = order.pay("pm_card_ok").await.assert_status(201);
    let body = json!({ "items": [{ "product_id": MUG, "quantity": 1 }] });
    let _placed = customer.post("/v1/orders").json(&body).key("again").await.assert_status(201);

    let mut counted = Vec::new();
    for (route, status, _) in ROUND_TRIPS {
        let request = async || match route {
            "GET /v1/products" => service.anonymous().get("/v1/products"),
            "POST /v1/orders" => customer.orders(&[(MUG, 2), (TEAPOT, 1)]),
            "POST /v1/orders, again" => customer.post("/v1/orders").json(&body).key("again"),
            "GET /v1/orders/{id}" => customer.get(order.path()),
            "GET /v1/orders" => customer.get("/v1/orders"),
            "POST /v1/orders/{id}/payments" => customer.places_an_order().await.pay("pm_card_ok"),
            "GET /v1/payments/{id}" => customer.get(format!("/v1/payments/{}", paid.id())),
            route => unreachable!("{route}"),
        };
        counted.push((route, status, measure_cost(&service, status, request).await.round_trips));
    }
    assert_eq!(counted, ROUND_TRIPS);
}

/// A difference in time would reveal which orders exist. Two defects would cause it: reading a large order before the
/// rejection, or an additional statement.
#[tokio::test]
async fn a_404_costs_the_same_for_missing_and_foreign_orders() {
    let service = counted_service().await;
    let (owner, other_customer) = (service.customer().await, service.customer().await);
    service
        .database()
        .execute(
            "insert into products (id, sku, name, unit_amount, currency, active)
             select gen_random_uuid(), 'MANY-' || n, 'Many', 100, 'EUR', true from generate_series(1, 100) as n",
        )
        .await;
    let products = service.database().rows("select id from products where sku like 'MANY-%'").await;
    let items: Vec<_> =
        products.iter().map(|product| json!({ "product_id": product["id"], "quantity": 1 })).collect();
    let placed = owner.post("/v1/orders").json(&json!({ "items": items })).new_key().await.assert_status(201);

    let rejected = async |id: Uuid| {
        let pay = json!({ "payment_method": "pm_card_ok" });
        [
            measure_cost(&service, 404, async || other_customer.get(format!("/v1/orders/{id}"))).await,
            measure_cost(&service, 404, async || other_customer.post(format!("/v1/orders/{id}/cancel")))
                .await,
            measure_cost(&service, 404, async || {
                other_customer.post(format!("/v1/orders/{id}/payments")).json(&pay).new_key()
            })
            .await,
        ]
    };
    assert_eq!(rejected(placed.id()).await, rejected(Uuid::now_v7()).await);
}
