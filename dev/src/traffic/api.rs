//! One request to the service, and its response.
use std::time::Duration;

use reqwest::{Method, header::HeaderMap};
use serde_json::Value;
use url::Url;

/// Timeout that exceeds the service's own deadline, so that the service times out first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// The path with the query.
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) body: Option<String>,
    /// True if the service never responds with 504 to this call.
    pub(crate) never_times_out: bool,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            token: None,
            key: None,
            body: None,
            never_times_out: false,
        }
    }

    pub(crate) fn post(path: impl Into<String>, body: &Value) -> Self {
        Self { method: Method::POST, body: Some(body.to_string()), ..Self::get(path) }
    }

    /// Sets the session token.
    #[must_use]
    pub(crate) fn with_token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// Sets the idempotency key.
    #[must_use]
    pub(crate) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }
}

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct ApiResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The body as JSON, or null if the body is not JSON.
    pub(crate) body: Value,
}

impl ApiResponse {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns whether the response is a replay of an earlier response with the same idempotency key.
    pub(crate) fn is_replayed(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }
}

/// A client of the service.
pub(crate) struct Api {
    url: Url,
    client: reqwest::Client,
}

impl Api {
    pub(crate) fn new(url: Url) -> Result<Self, reqwest::Error> {
        Ok(Self { url, client: crate::http::client(REQUEST_TIMEOUT)? })
    }

    /// Sends a call. Returns `None` without a complete response.
    pub(crate) async fn send(&self, call: &Call, correlation_id: &str) -> Option<ApiResponse> {
        let url = self.url.join(&call.path).ok()?;
        let mut request =
            self.client.request(call.method.clone(), url).header("x-correlation-id", correlation_id);
        if let Some(token) = &call.token {
            request = request.bearer_auth(token);
        }
        if let Some(key) = &call.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = &call.body {
            request = request.header("content-type", "application/json").body(body.clone());
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.ok()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Some(ApiResponse { status, headers, text, body })
    }
}
