//! Products and their prices.
use dev::harness::{LAMP, MUG, RETIRED, TEAPOT};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::service;

#[tokio::test]
async fn every_client_reads_the_catalog_page_by_page() {
    let service = service().await;
    let anonymous = service.anonymous();
    let all = anonymous.get("/v1/products").await.assert_status(200).json();
    let ids: Vec<_> = all["data"].as_array().unwrap().iter().map(|product| product["id"].clone()).collect();
    assert_eq!(ids, [MUG, TEAPOT, LAMP, RETIRED].map(Value::from), "the oldest product must be first");
    assert_eq!(all["next_cursor"], Value::Null);

    let first = anonymous.get("/v1/products?limit=3").await.assert_status(200).json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second =
        anonymous.get(format!("/v1/products?limit=3&cursor={cursor}")).await.assert_status(200).json();
    assert_eq!(second["data"].as_array().unwrap()[0]["id"], RETIRED);
    assert_eq!(second["next_cursor"], Value::Null);

    let mug = anonymous.get(format!("/v1/products/{MUG}")).await.assert_status(200).json();
    assert_eq!(
        mug,
        json!({ "id": MUG, "sku": "MUG-01", "name": "Mug", "unit_amount": 1290, "currency": "EUR", "active": true })
    );
    let _absent =
        anonymous.get(format!("/v1/products/{}", Uuid::now_v7())).await.assert_problem(404, "not-found");
}

#[tokio::test]
async fn an_admins_changes_of_products_are_audited() {
    let service = service().await;
    let admin = service.admin().await;
    let new = json!({ "sku": "CUP-01", "name": "Cup", "unit_amount": 790, "currency": "EUR" });
    let created = admin.post("/v1/products").json(&new).await.assert_status(201);
    let path = format!("/v1/products/{}", created.id());
    assert_eq!(created.header("location"), Some(path.as_str()));
    assert_eq!(service.anonymous().get(&path).await.assert_status(200).json(), created.json());

    let changed = admin.patch(&path).json(&json!({ "unit_amount": 890 })).await.assert_status(200).json();
    assert_eq!(
        (&changed["unit_amount"], &changed["name"], &changed["active"]),
        (&json!(890), &json!("Cup"), &json!(true))
    );
    let retired = admin.patch(&path).json(&json!({ "active": false })).await.assert_status(200).json();
    assert_eq!((&retired["unit_amount"], &retired["active"]), (&json!(890), &json!(false)));
    let unchanged = admin.patch(&path).json(&json!({})).await.assert_status(200).json();
    assert_eq!(unchanged, retired);

    let of_product = format!("resource = 'products' and metadata -> 'record_ids' ? '{}'", created.id());
    let events = service.audit_events(&of_product).await;
    assert_eq!(events[0]["action"], "create");
    assert_eq!(events[1]["action"], "update");
    assert_eq!(events[1]["user_id"], json!(admin.id));
    let prices = |event: &Value| {
        [&event["metadata"]["unit_amount_before"], &event["metadata"]["unit_amount"]].map(Value::clone)
    };
    assert_eq!(prices(&events[1]), [json!(790), json!(890)]);
}

#[tokio::test]
async fn a_sku_is_used_once() {
    let service = service().await;
    let admin = service.admin().await;
    let again = json!({ "sku": "MUG-01", "name": "Another mug", "unit_amount": 1, "currency": "EUR" });
    let _conflict = admin.post("/v1/products").json(&again).await.assert_problem(409, "conflict");
}

#[tokio::test]
async fn every_field_of_a_product_has_bounds() {
    let service = service().await;
    let admin = service.admin().await;
    let valid = json!({ "sku": "CUP-01", "name": "Cup", "unit_amount": 790, "currency": "EUR" });
    for (field, values) in [
        ("sku", vec![json!(""), json!("two words"), json!("x".repeat(65)), json!("t\u{e4}sse")]),
        ("name", vec![json!(""), json!("   "), json!("x".repeat(201)), json!("a\u{0}b")]),
        ("unit_amount", vec![json!(0), json!(-1), json!(10_000_000_001_i64)]),
        (
            "currency",
            vec![
                json!("eur"),
                json!("EURO"),
                json!(""),
                json!("E1R"),
                json!("ZZZ"),
                json!("XXX"),
                json!("XTS"),
            ],
        ),
    ] {
        for value in values {
            let mut product = valid.clone();
            product[field] = value;
            let pointer = format!("/{field}");
            let _rejected = admin.post("/v1/products").json(&product).await.assert_invalid_at(&[&pointer]);
            if ["name", "unit_amount"].contains(&field) {
                let change = json!({ field: product[field] });
                let change = admin.patch(format!("/v1/products/{MUG}")).json(&change);
                let _rejected = change.await.assert_invalid_at(&[&pointer]);
            }
        }
    }
    let currency = admin.patch(format!("/v1/products/{MUG}")).json(&json!({ "currency": "USD" }));
    let _fixed = currency.await.assert_invalid_at(&["/currency"]);
    let _absent = admin
        .patch(format!("/v1/products/{}", Uuid::now_v7()))
        .json(&json!({}))
        .await
        .assert_problem(404, "not-found");
}
