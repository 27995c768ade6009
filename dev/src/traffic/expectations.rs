//! What the contract promises about an answer: each a pure function that says what is wrong with it.
use serde_json::Value;

use super::api::Answer;

/// Nothing, or the promise that was not kept.
pub(super) type Kept = Result<(), String>;

pub(super) fn keeps(promise: &str, kept: bool) -> Kept {
    if kept { Ok(()) } else { Err(promise.to_owned()) }
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(value: &Value, field: &str) -> Option<i64> {
    value.get(field).and_then(Value::as_i64)
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn has_status(answer: &Answer, status: u16) -> Kept {
    keeps(&format!("the status is {status}"), answer.status == status)
}

/// RFC 9457, with what the service adds.
pub(super) fn is_problem(answer: &Answer) -> Kept {
    let media_type = answer.header("content-type").unwrap_or_default();
    keeps("a refusal is application/problem+json", media_type.starts_with("application/problem+json"))?;
    keeps("a problem repeats its status", number(&answer.body, "status") == Some(i64::from(answer.status)))?;
    for field in ["type", "title", "correlation_id"] {
        keeps(&format!("a problem has `{field}`"), !text(&answer.body, field).is_empty())?;
    }
    Ok(())
}

/// A refusal with this status and everything that belongs to it.
pub(super) fn is_refused(answer: &Answer, status: u16) -> Kept {
    has_status(answer, status)?;
    is_problem(answer)?;
    match status {
        401 => keeps("a 401 has WWW-Authenticate", answer.header("www-authenticate").is_some()),
        405 => keeps("a 405 has Allow", answer.header("allow").is_some()),
        _ => Ok(()),
    }
}

/// A page of a list, of at most `limit`.
pub(super) fn is_page(answer: &Answer, limit: usize) -> Kept {
    has_status(answer, 200)?;
    keeps("a page has `data`", answer.body.get("data").is_some_and(Value::is_array))?;
    keeps("a page keeps to its limit", list(&answer.body, "data").len() <= limit)?;
    let cursor = answer.body.get("next_cursor");
    keeps(
        "`next_cursor` is text or null",
        cursor.is_some_and(|cursor| cursor.is_string() || cursor.is_null()),
    )
}

pub(super) fn is_product(product: &Value) -> Kept {
    for field in ["id", "sku", "name", "currency"] {
        keeps(&format!("a product has `{field}`"), !text(product, field).is_empty())?;
    }
    keeps("a product has a price", number(product, "unit_amount").is_some_and(|amount| amount > 0))
}

/// An order that adds up.
pub(super) fn is_order(order: &Value) -> Kept {
    for field in ["id", "customer_id", "status", "currency", "created_at", "updated_at"] {
        keeps(&format!("an order has `{field}`"), !text(order, field).is_empty())?;
    }
    let mut total = Some(0_i64);
    for item in list(order, "items") {
        let amount = number(item, "amount");
        let product = number(item, "unit_amount")
            .zip(number(item, "quantity"))
            .and_then(|(unit_amount, quantity)| unit_amount.checked_mul(quantity));
        keeps("an item's amount is price times quantity", amount.is_some() && amount == product)?;
        total = total.zip(amount).and_then(|(total, amount)| total.checked_add(amount));
    }
    keeps(
        "an order's total is the sum of its items",
        total.is_some() && total == number(order, "total_amount"),
    )
}

/// A payment of this order, in a state that is possible for its method.
pub(super) fn is_payment(payment: &Value, order_id: &str, amount: i64, currency: &str, method: &str) -> Kept {
    keeps("a payment has an id", !text(payment, "id").is_empty())?;
    keeps("a payment is of its order", text(payment, "order_id") == order_id)?;
    keeps("a payment is of its order's amount", number(payment, "amount") == Some(amount))?;
    keeps("a payment is of its order's currency", text(payment, "currency") == currency)?;
    let status = text(payment, "status");
    let known = ["processing", "succeeded", "declined", "failed", "partially_refunded", "refunded"];
    keeps("a payment's status is a known one", known.contains(&status))?;
    let refused = ["declined", "failed"].contains(&status);
    let reason = payment.get("failure_reason").is_some_and(|reason| !reason.is_null());
    keeps("a refused payment has a reason, and no other has one", refused == reason)?;
    let bad_card = ["pm_card_declined", "pm_card_expired", "pm_card_fraud"].contains(&method);
    keeps("a bad card never pays", !bad_card || refused || status == "processing")
}

/// The status of a payment's answer says whether it is settled.
pub(super) fn says_whether_it_is_settled(answer: &Answer) -> Kept {
    match text(&answer.body, "status") {
        "processing" => has_status(answer, 202),
        _ => has_status(answer, 201),
    }
}
