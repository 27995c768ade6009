//! The problem responses (RFC 9457) to invalid bodies, queries and ids.
use dev::harness::MUG;
use serde_json::json;

use crate::service;

#[tokio::test]
async fn invalid_fields_have_pointers() {
    let service = service().await;
    let customer = service.customer().await;
    for (body, pointer) in [
        (json!({}), "/items"),
        (json!({ "items": null }), "/items"),
        (json!({ "items": "a mug" }), "/items"),
        (json!({ "items": [{ "product_id": MUG }] }), "/items/0/quantity"),
        (json!({ "items": [{ "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": 7, "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": "a mug", "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": MUG, "quantity": "1" }] }), "/items/0/quantity"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1.5 }] }), "/items/0/quantity"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1, "price": 1 }] }), "/items/0/price"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1 }], "coupon": "FREE" }), "/coupon"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1 }], "a/b~c": 1 }), "/a~1b~0c"),
        (json!([]), ""),
        (json!("an order"), ""),
    ] {
        let rejected = customer.post("/v1/orders").new_key().json(&body).await;
        assert_eq!(rejected.status, 422, "{body}: {rejected}");
        let _rejected = rejected.assert_invalid_at(&[pointer]);
    }
    assert_eq!(service.database().number("select count(*) from orders").await, 0);
}

#[tokio::test]
async fn a_malformed_filter_of_orders_gets_400() {
    let service = service().await;
    let customer = service.customer().await;
    // The tests in `http::problems` cover the malformed limits and cursors of this route.
    for query in ["status=lost", "status=", "status=PAID", "customer_id=me"] {
        let rejected = customer.get(format!("/v1/orders?{query}")).await;
        assert_eq!(rejected.status, 400, "{query}: {rejected}");
        let _rejected = rejected.assert_problem(400, "malformed-request");
    }
    for query in ["limit=0", "limit=101", "cursor=nonsense"] {
        let _rejected =
            customer.get(format!("/v1/products?{query}")).await.assert_problem(400, "malformed-request");
    }
}

#[tokio::test]
async fn an_invalid_id_in_any_path_gets_404() {
    let service = service().await;
    let (customer, admin) = (service.customer().await, service.admin().await);
    for id in ["7", "me", "00000000-0000-0000-0000-00000000000g", "%00", "..%2f..%2fetc"] {
        let card = json!({ "payment_method": "pm_card_ok" });
        for request in [
            customer.get(format!("/v1/products/{id}")),
            customer.get(format!("/v1/orders/{id}")),
            customer.post(format!("/v1/orders/{id}/cancel")),
            customer.post(format!("/v1/orders/{id}/payments")).json(&card).new_key(),
            customer.get(format!("/v1/payments/{id}")),
            admin.post(format!("/v1/payments/{id}/refunds")).json(&json!({})).new_key(),
            admin.patch(format!("/v1/products/{id}")).json(&json!({})),
        ] {
            let description = format!("{request:?}");
            let rejected = request.await;
            assert_eq!(rejected.status, 404, "{description}: {rejected}");
            let _rejected = rejected.assert_problem(404, "not-found");
        }
    }
}
