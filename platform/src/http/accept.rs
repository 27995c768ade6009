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

/// The media ranges that cover JSON, most specific first.
const JSON_RANGES: [&[&str]; 3] =
    [&["application/json", "application/problem+json"], &["application/*"], &["*/*"]];

/// Returns whether the most specific media range that covers JSON (RFC 9110, section 12.5.1) is not excluded by `q=0`.
/// Without any media range, every type is acceptable.
fn accepts_json(headers: &HeaderMap) -> bool {
    let ranges = || {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|range| !range.is_empty())
    };
    let accepts = |media_types: &[&str]| {
        let covering = ranges().filter(|range| {
            let media_type = range.split(';').next().unwrap_or_default().trim_end();
            media_types.iter().any(|covering| media_type.eq_ignore_ascii_case(covering))
        });
        covering.map(|range| !is_excluded(range)).reduce(|one, other| one || other)
    };
    ranges().next().is_none() || JSON_RANGES.into_iter().find_map(accepts).unwrap_or(false)
}

/// Returns whether a media range has the weight 0.
fn is_excluded(range: &str) -> bool {
    range
        .split(';')
        .skip(1)
        .filter_map(|parameter| parameter.split_once('='))
        .any(|(name, value)| name.trim().eq_ignore_ascii_case("q") && value.trim().parse() == Ok(0.0_f32))
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
        assert!(!accepts("application/json; Q=0.0, */*"));
        assert!(!accepts("application/*;q=0, */*"));
        assert!(accepts("application/json, */*;q=0"));
        assert!(accepts("Application/JSON ; charset=utf-8"));
        assert!(accepts(""));
    }
}
