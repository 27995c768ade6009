//! Content negotiation. The API responds with JSON only, so a request whose `Accept` excludes JSON is rejected with
//! 406.
use axum::{
    extract::Request,
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem::{NOT_ACCEPTABLE, Problem};

/// Rejects requests whose `Accept` header excludes JSON.
pub async fn require_json(request: Request, next: Next) -> Response {
    if accepts_json(request.headers()) {
        next.run(request).await
    } else {
        Problem::new(NOT_ACCEPTABLE).detail("This service responds with application/json.").into_response()
    }
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let mut values =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    values.peek().is_none() || values.flat_map(|value| value.split(',')).any(range_covers_json)
}

/// Returns whether a media range (RFC 9110, section 12.5.1) covers JSON and is not excluded by `q=0`.
fn range_covers_json(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let is_excluded =
        parts.any(|parameter| parameter.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32)));
    !is_excluded
        && matches!(
            media_type.as_str(),
            "*/*" | "application/*" | "application/json" | "application/problem+json"
        )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_client_that_excludes_json_is_rejected() {
        let accepts = |accept: &'static str| {
            accepts_json(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(accepts_json(&HeaderMap::new()));
        assert!(accepts("*/*"));
        assert!(accepts("text/html, application/json;q=0.5"));
        assert!(accepts("application/*"));
        assert!(!accepts("text/html"));
        assert!(!accepts("application/json;q=0"));
    }
}
