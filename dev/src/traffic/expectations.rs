//! Checks of the rules of the API contract that apply to all resources, and readers of JSON fields. Each check returns
//! the first violated rule, if any.
use serde_json::Value;

use super::api::ApiResponse;

/// The result of a check: success, or the violated rule.
pub(crate) type CheckResult = Result<(), String>;

pub(crate) fn check(rule: &str, holds: bool) -> CheckResult {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
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

pub(crate) fn check_status(response: &ApiResponse, status: u16) -> CheckResult {
    check(&format!("the status is {status}"), response.status == status)
}

/// Checks a problem response: RFC 9457 and the service's extensions.
pub(crate) fn check_problem(response: &ApiResponse) -> CheckResult {
    let media_type = response.header("content-type").unwrap_or_default();
    check("a rejection is application/problem+json", media_type.starts_with("application/problem+json"))?;
    check(
        "a problem contains its status",
        number(&response.body, "status") == Some(i64::from(response.status)),
    )?;
    for field in ["type", "title", "correlation_id"] {
        check(&format!("a problem has `{field}`"), !text(&response.body, field).is_empty())?;
    }
    Ok(())
}

/// Checks that a response is a problem with this status, and has the headers that the status requires.
pub(crate) fn check_rejection(response: &ApiResponse, status: u16) -> CheckResult {
    check_status(response, status)?;
    check_problem(response)?;
    match status {
        401 => check("a 401 has WWW-Authenticate", response.header("www-authenticate").is_some()),
        405 => check("a 405 has Allow", response.header("allow").is_some()),
        _ => Ok(()),
    }
}

/// Checks a page of a list with at most `limit` entries.
pub(crate) fn check_page(response: &ApiResponse, limit: usize) -> CheckResult {
    check_status(response, 200)?;
    check("a page has `data`", response.body.get("data").is_some_and(Value::is_array))?;
    check("a page respects its limit", list(&response.body, "data").len() <= limit)?;
    let cursor = response.body.get("next_cursor");
    check(
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
        assert_eq!(check_rejection(&problem("application/problem+json", body.clone()), 422), Ok(()));
        assert!(check_rejection(&problem("application/problem+json", body.clone()), 400).is_err());
        assert!(check_rejection(&problem("application/json", body.clone()), 422).is_err());
        let mut other_status = body;
        other_status["status"] = json!(500);
        assert!(check_rejection(&problem("application/problem+json", other_status), 422).is_err());
    }
}
