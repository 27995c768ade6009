//! The API contract of every response: pure functions that return the violation.
use serde_json::Value;

use super::api::ApiResponse;

/// The result of a check: success, or the violated rule.
pub(crate) type CheckResult = Result<(), String>;

pub(crate) fn keeps(promise: &str, kept: bool) -> CheckResult {
    if kept { Ok(()) } else { Err(promise.to_owned()) }
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn number(value: &Value, field: &str) -> Option<i64> {
    value.get(field).and_then(Value::as_i64)
}

pub(crate) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn has_status(answer: &ApiResponse, status: u16) -> CheckResult {
    keeps(&format!("the status is {status}"), answer.status == status)
}

/// Checks a problem response: RFC 9457 and the service's extensions.
pub(crate) fn is_problem(answer: &ApiResponse) -> CheckResult {
    let media_type = answer.header("content-type").unwrap_or_default();
    keeps("a rejection is application/problem+json", media_type.starts_with("application/problem+json"))?;
    keeps("a problem contains its status", number(&answer.body, "status") == Some(i64::from(answer.status)))?;
    for field in ["type", "title", "correlation_id"] {
        keeps(&format!("a problem has `{field}`"), !text(&answer.body, field).is_empty())?;
    }
    Ok(())
}

/// Checks an error response with this status and its required parts.
pub(crate) fn is_refused(answer: &ApiResponse, status: u16) -> CheckResult {
    has_status(answer, status)?;
    is_problem(answer)?;
    match status {
        401 => keeps("a 401 has WWW-Authenticate", answer.header("www-authenticate").is_some()),
        405 => keeps("a 405 has Allow", answer.header("allow").is_some()),
        _ => Ok(()),
    }
}

/// Checks a page of a list with at most `limit` entries.
pub(crate) fn is_page(answer: &ApiResponse, limit: usize) -> CheckResult {
    has_status(answer, 200)?;
    keeps("a page has `data`", answer.body.get("data").is_some_and(Value::is_array))?;
    keeps("a page respects its limit", list(&answer.body, "data").len() <= limit)?;
    let cursor = answer.body.get("next_cursor");
    keeps(
        "`next_cursor` is text or null",
        cursor.is_some_and(|cursor| cursor.is_string() || cursor.is_null()),
    )
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, HeaderValue};
    use serde_json::json;

    use super::*;

    fn problem(media_type: &'static str, body: Value) -> ApiResponse {
        let headers =
            HeaderMap::from_iter([(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(media_type))]);
        ApiResponse { status: 422, headers, text: body.to_string(), body }
    }

    #[test]
    fn a_rejection_must_be_a_complete_problem() {
        let body = json!({ "type": "/problems/x", "title": "X", "status": 422, "correlation_id": "c" });
        assert_eq!(is_refused(&problem("application/problem+json", body.clone()), 422), Ok(()));
        assert!(is_refused(&problem("application/problem+json", body.clone()), 400).is_err());
        assert!(is_refused(&problem("application/json", body.clone()), 422).is_err());
        let mut other_status = body;
        other_status["status"] = json!(500);
        assert!(is_refused(&problem("application/problem+json", other_status), 422).is_err());
    }
}
