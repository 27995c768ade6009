//! Rules of the API contract for products, orders and payments. Each function returns the first violated rule, if any.
use serde_json::Value;

use crate::traffic::{
    api::ApiResponse,
    expectations::{CheckResult, check, check_status, list, number, text},
};

pub(crate) fn check_product(product: &Value) -> CheckResult {
    for field in ["id", "sku", "name", "currency"] {
        check(&format!("a product has `{field}`"), !text(product, field).is_empty())?;
    }
    check("a product has a price", number(product, "unit_amount").is_some_and(|amount| amount > 0))
}

/// Checks that an order has all fields, and that its amounts add up.
pub(crate) fn check_order(order: &Value) -> CheckResult {
    for field in ["id", "customer_id", "status", "currency", "created_at", "updated_at"] {
        check(&format!("an order has `{field}`"), !text(order, field).is_empty())?;
    }
    let mut total = Some(0_i64);
    for item in list(order, "items") {
        let amount = number(item, "amount");
        let product = number(item, "unit_amount")
            .zip(number(item, "quantity"))
            .and_then(|(unit_amount, quantity)| unit_amount.checked_mul(quantity));
        check("an item's amount is price times quantity", amount.is_some() && amount == product)?;
        total = total.zip(amount).and_then(|(total, amount)| total.checked_add(amount));
    }
    check(
        "an order's total is the sum of its items",
        total.is_some() && total == number(order, "total_amount"),
    )
}

/// Checks that a payment has an id, this order, amount and currency, and a known status. Checks that the payment has a
/// failure reason if and only if it was declined or failed. A card that is always declined must not have paid.
pub(crate) fn check_payment(
    payment: &Value,
    order_id: &str,
    amount: i64,
    currency: &str,
    method: &str,
) -> CheckResult {
    check("a payment has an id", !text(payment, "id").is_empty())?;
    check("a payment refers to its order", text(payment, "order_id") == order_id)?;
    check("a payment has its order's amount", number(payment, "amount") == Some(amount))?;
    check("a payment has its order's currency", text(payment, "currency") == currency)?;
    let status = text(payment, "status");
    let known = ["processing", "succeeded", "declined", "failed", "partially_refunded", "refunded"];
    check("a payment has a known status", known.contains(&status))?;
    let rejected = ["declined", "failed"].contains(&status);
    let reason = payment.get("failure_reason").is_some_and(|reason| !reason.is_null());
    check("a payment has a failure reason if and only if it was declined or failed", rejected == reason)?;
    let declined_card = ["pm_card_declined", "pm_card_expired", "pm_card_fraud"].contains(&method);
    check("a card that is always declined never pays", !declined_card || rejected || status == "processing")
}

/// Checks the status code of the response to a payment request: 202 while the payment is processing, otherwise 201.
pub(crate) fn check_status_of_state(response: &ApiResponse) -> CheckResult {
    match text(&response.body, "status") {
        "processing" => check_status(response, 202),
        _ => check_status(response, 201),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order() -> Value {
        json!({
            "id": "o", "customer_id": "c", "status": "pending_payment", "currency": "EUR", "total_amount": 700,
            "items": [{ "unit_amount": 100, "quantity": 3, "amount": 300 }, { "unit_amount": 400, "quantity": 1, "amount": 400 }],
            "created_at": "t", "updated_at": "t",
        })
    }

    fn payment(status: &str, failure_reason: &Value) -> Value {
        json!({
            "id": "p", "order_id": "o", "status": status, "amount": 700, "currency": "EUR",
            "failure_reason": failure_reason,
        })
    }

    #[test]
    fn an_order_has_consistent_amounts() {
        assert_eq!(check_order(&order()), Ok(()));
        let mut wrong_total = order();
        wrong_total["total_amount"] = json!(701);
        assert!(check_order(&wrong_total).is_err());
        let mut wrong_item = order();
        wrong_item["items"][0]["amount"] = json!(301);
        wrong_item["total_amount"] = json!(701);
        assert!(check_order(&wrong_item).is_err());
    }

    #[test]
    fn a_payment_matches_its_order_and_its_card() {
        let matches = |payment: &Value, method| check_payment(payment, "o", 700, "EUR", method);
        assert_eq!(matches(&payment("succeeded", &Value::Null), "pm_card_ok"), Ok(()));
        assert_eq!(matches(&payment("declined", &json!("card_expired")), "pm_card_expired"), Ok(()));
        assert_eq!(matches(&payment("processing", &Value::Null), "pm_card_expired"), Ok(()));
        assert!(matches(&payment("succeeded", &Value::Null), "pm_card_expired").is_err());
        assert!(matches(&payment("declined", &Value::Null), "pm_card_ok").is_err());
        assert!(matches(&payment("succeeded", &json!("none")), "pm_card_ok").is_err());
        assert!(matches(&payment("paid", &Value::Null), "pm_card_ok").is_err());
        assert!(check_payment(&payment("succeeded", &Value::Null), "o", 701, "EUR", "pm_card_ok").is_err());
    }
}
