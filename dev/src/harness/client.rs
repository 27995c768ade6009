//! Requests to the API, and their responses.
use std::{
    future::IntoFuture,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinHandle;
use url::Url;
use uuid::Uuid;

use super::{HttpResponse, Service};

/// Timeout that exceeds the service's own deadline, so that the service times out first.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// A request and its response, for an [`ExchangeCheck`].
#[derive(Debug)]
pub struct Exchange<'a> {
    pub method: &'a Method,
    /// The path without the query.
    pub path: &'a str,
    pub response: &'a HttpResponse,
}

/// A check that runs on every exchange of a test, and panics if an exchange violates a rule.
pub type ExchangeCheck = fn(&Exchange<'_>);

/// Client of a service. The URL is updated when the service restarts on another port.
#[derive(Debug)]
pub(super) struct Api {
    client: reqwest::Client,
    url: RwLock<Url>,
    exchange_check: Option<ExchangeCheck>,
}

impl Api {
    pub(super) fn new(url: Url, exchange_check: Option<ExchangeCheck>) -> Self {
        let client = crate::http::client(REQUEST_TIMEOUT).expect("failed to create an HTTP client");
        Self { client, url: RwLock::new(url), exchange_check }
    }

    pub(super) fn url(&self) -> Url {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a client of another replica, with the same check of exchanges.
    pub(super) fn for_replica(&self, url: Url) -> Self {
        Self { client: self.client.clone(), url: RwLock::new(url), exchange_check: self.exchange_check }
    }

    pub(super) fn set_url(&self, url: Url) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

/// A sender of requests, with or without a session.
#[derive(Debug, Clone)]
pub struct Client {
    api: Arc<Api>,
    headers: Vec<(String, String)>,
}

impl Client {
    pub(super) fn new(api: Arc<Api>) -> Self {
        Self { api, headers: Vec::new() }
    }

    pub(super) fn at(&self, api: &Arc<Api>) -> Self {
        Self { api: Arc::clone(api), headers: self.headers.clone() }
    }

    /// Returns the same client with this header in every request, in place of an earlier value.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(existing, _)| existing != name);
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// Returns the same client with this session.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        self.with_header("authorization", &format!("Bearer {token}"))
    }

    pub fn get(&self, path: impl Into<String>) -> Request {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: impl Into<String>) -> Request {
        self.request(Method::POST, path)
    }

    pub fn put(&self, path: impl Into<String>) -> Request {
        self.request(Method::PUT, path)
    }

    pub fn patch(&self, path: impl Into<String>) -> Request {
        self.request(Method::PATCH, path)
    }

    pub fn delete(&self, path: impl Into<String>) -> Request {
        self.request(Method::DELETE, path)
    }

    /// Returns a request of any method; `path` may have a query.
    pub fn request(&self, method: Method, path: impl Into<String>) -> Request {
        Request {
            api: Arc::clone(&self.api),
            method,
            path: path.into(),
            headers: self.headers.clone(),
            body: Vec::new(),
        }
    }
}

/// A request. Awaiting a request sends the request. A clone can send the same request again.
#[derive(Debug, Clone)]
#[must_use = "a request is sent when it is awaited"]
pub struct Request {
    api: Arc<Api>,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Sets the JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// Sets these bytes as the body. Sets no `Content-Type`.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the idempotency key.
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// Sets a new idempotency key.
    pub fn new_key(self) -> Self {
        self.key(&Uuid::now_v7().to_string())
    }

    /// Sets a header, replacing an earlier value.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.without_header(name).also_header(name, value)
    }

    /// Adds a header, and keeps earlier headers of the same name.
    pub fn also_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a header.
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(existing, _)| existing != name);
        self
    }

    /// Addresses the request to another replica.
    pub fn at(mut self, service: &Service) -> Self {
        self.api = service.api();
        self
    }

    /// Sends the request without waiting for the response.
    pub fn in_background(self) -> Attempt {
        let task = tokio::spawn(self.clone().try_send());
        Attempt { request: self, task }
    }

    /// Sends the request repeatedly, with the same idempotency key, until a response is final. A missing response, or a
    /// response 202, 409, 503 or 504, is not final.
    pub async fn send_until_final(self) -> HttpResponse {
        let started = Instant::now();
        loop {
            let response = self.clone().try_send().await;
            match response {
                Ok(response) if ![202, 409, 503, 504].contains(&response.status) => return response,
                _ if started.elapsed() < REQUEST_TIMEOUT => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                last => panic!("{} {} has no final response: {last:?}", self.method, self.path),
            }
        }
    }

    /// Sends the request. The error means that there was no complete response.
    pub async fn try_send(self) -> Result<HttpResponse, reqwest::Error> {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let mut url = self.api.url();
        url.set_path(path);
        url.set_query((!query.is_empty()).then_some(query));
        let mut request = self.api.client.request(self.method.clone(), url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request.body(self.body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let response = HttpResponse { status, headers, text: response.text().await? };
        if let Some(exchange_check) = self.api.exchange_check {
            exchange_check(&Exchange { method: &self.method, path, response: &response });
        }
        Ok(response)
    }
}

impl IntoFuture for Request {
    type Output = HttpResponse;
    type IntoFuture = Pin<Box<dyn Future<Output = HttpResponse> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let what = format!("{} {}", self.method, self.path);
        Box::pin(async move {
            self.try_send().await.unwrap_or_else(|error| panic!("{what} has no response: {error:?}"))
        })
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Attempt {
    request: Request,
    task: JoinHandle<Result<HttpResponse, reqwest::Error>>,
}

impl Attempt {
    /// Waits for the response.
    pub async fn response(self) -> HttpResponse {
        let response = self.task.await.expect("the request's task panicked or was aborted");
        response.unwrap_or_else(|error| panic!("there was no response: {error:?}"))
    }

    /// Waits for the response; `None` without a complete response.
    pub async fn try_response(self) -> Option<HttpResponse> {
        self.task.await.expect("the request's task panicked or was aborted").ok()
    }

    /// Closes the connection without waiting for the response, and returns the request for a retry.
    pub async fn give_up(self) -> Request {
        self.task.abort();
        // The connection is closed once the task has ended.
        self.task.await.ok();
        self.request
    }

    /// Returns the same request, for a retry.
    pub fn again(&self) -> Request {
        self.request.clone()
    }
}
