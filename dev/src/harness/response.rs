//! The API's response, with assertions for tests.
use reqwest::header::HeaderMap;
use serde_json::Value;
use uuid::Uuid;

/// A complete response.
#[derive(Debug, Clone)]
pub struct HttpResponse {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl HttpResponse {
    /// Asserts that the response has this status, and returns the response.
    #[track_caller]
    #[must_use]
    pub fn assert_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Asserts that the response is a problem of this kind (the last part of its `type`) and status, and returns the
    /// response.
    #[track_caller]
    #[must_use]
    pub fn assert_problem(self, status: u16, kind: &str) -> Self {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        assert_eq!(self.text("type"), format!("/problems/{kind}"), "{self}");
        self
    }

    /// Asserts that the response is a 422 whose errors have exactly these JSON pointers, in this order. Returns the
    /// response.
    #[track_caller]
    #[must_use]
    pub fn assert_invalid_at(self, pointers: &[&str]) -> Self {
        let problem = self.assert_problem(422, "invalid-request");
        let errors = problem.json()["errors"].clone();
        let found: Vec<_> =
            errors.as_array().into_iter().flatten().map(|error| error["pointer"].as_str()).collect();
        assert_eq!(found, pointers.iter().copied().map(Some).collect::<Vec<_>>(), "{problem}");
        problem
    }

    /// Returns the body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Returns a text member of the body.
    #[track_caller]
    pub fn text(&self, member: &str) -> String {
        let json = self.json();
        json[member].as_str().unwrap_or_else(|| panic!("no text `{member}`: {self}")).to_owned()
    }

    /// Returns the `id` in the body.
    #[track_caller]
    pub fn id(&self) -> Uuid {
        self.text("id").parse().unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Returns a header, if the header is present and valid text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns whether the response is a replay of an earlier response with the same idempotency key.
    pub fn is_replayed(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }
}

impl std::fmt::Display for HttpResponse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {:?}\n{}", self.status, self.headers, self.text)
    }
}
