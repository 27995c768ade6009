//! Requests to the API and their answers.
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

use super::{Answer, Service};

/// Longer than the service's own deadline, so that it is the service that gives up.
const PATIENCE: Duration = Duration::from_mins(2);

/// What was asked, and what was answered, for a [`Witness`].
#[derive(Debug)]
pub struct Exchange<'a> {
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    pub answer: &'a Answer,
}

/// Sees every exchange of a whole run, and panics at one that breaks a rule.
pub type Witness = fn(&Exchange<'_>);

/// The way to a service; it stays the same when the service is started again on another port.
#[derive(Debug)]
pub(super) struct Api {
    client: reqwest::Client,
    url: RwLock<Url>,
    witness: Option<Witness>,
}

impl Api {
    pub(super) fn new(url: Url, witness: Option<Witness>) -> Self {
        let client = crate::http::client(PATIENCE).expect("a client can be made");
        Self { client, url: RwLock::new(url), witness }
    }

    pub(super) fn url(&self) -> Url {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The way to another replica, with the same witness.
    pub(super) fn moved_to(&self, url: Url) -> Self {
        Self { client: self.client.clone(), url: RwLock::new(url), witness: self.witness }
    }

    pub(super) fn move_to(&self, url: Url) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

/// Somebody who sends requests: with a session, or without one.
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

    /// The same client, sending a header with every request.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(known, _)| known != name);
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// The same client with this session.
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

    /// A request of any method; `path` may have a query.
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

/// A request. It is sent when it is awaited, and a clone of it is the same request once more.
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
    /// With this body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// With these bytes as the body, and no media type.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Under this idempotency key.
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// Under an idempotency key that was never used before.
    pub fn new_key(self) -> Self {
        self.key(&Uuid::now_v7().to_string())
    }

    /// With this header in place of an earlier one.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.without_header(name).also_header(name, value)
    }

    /// With this header beside earlier ones of the same name.
    pub fn also_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without this header.
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// The same request to another replica.
    pub fn at(mut self, service: &Service) -> Self {
        self.api = service.api();
        self
    }

    /// Sends it, and goes on before it is answered.
    pub fn in_background(self) -> Attempt {
        let task = tokio::spawn(self.clone().try_send());
        Attempt { request: self, task }
    }

    /// Sends it again and again until it has a final answer, as a careful client does whose server may be killed:
    /// whatever says "not yet" (202, 409, 503, 504), or nothing, is followed by the same request under the same key.
    pub async fn insist(self) -> Answer {
        let started = Instant::now();
        loop {
            let answer = self.clone().try_send().await;
            match answer {
                Ok(answer) if ![202, 409, 503, 504].contains(&answer.status) => return answer,
                _ if started.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
                last => panic!("{} {} has no final answer: {last:?}", self.method, self.path),
            }
        }
    }

    /// Sends it; the error is that no whole answer came.
    pub async fn try_send(self) -> Result<Answer, reqwest::Error> {
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
        let answer = Answer { status, headers, text: response.text().await? };
        if let Some(witness) = self.api.witness {
            witness(&Exchange { method: &self.method, path, answer: &answer });
        }
        Ok(answer)
    }
}

impl IntoFuture for Request {
    type Output = Answer;
    type IntoFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let what = format!("{} {}", self.method, self.path);
        Box::pin(async move {
            self.try_send().await.unwrap_or_else(|error| panic!("{what} was not answered: {error:?}"))
        })
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct Attempt {
    request: Request,
    task: JoinHandle<Result<Answer, reqwest::Error>>,
}

impl Attempt {
    /// Its answer.
    pub async fn answer(self) -> Answer {
        let answer = self.task.await.expect("the request's task ends by itself");
        answer.unwrap_or_else(|error| panic!("there was no answer: {error:?}"))
    }

    /// Its answer; `None` if the connection ended without one.
    pub async fn try_answer(self) -> Option<Answer> {
        self.task.await.expect("the request's task ends by itself").ok()
    }

    /// Breaks the connection off before there is an answer.
    pub async fn give_up(self) -> Request {
        self.task.abort();
        // Its connection is closed when the task has ended.
        self.task.await.ok();
        self.request
    }

    /// The same request once more.
    pub fn again(&self) -> Request {
        self.request.clone()
    }
}
