//! The context of the current work, which is a request or a worker's unit of work: its correlation id and request id,
//! and for a request also its path, the client's address and the authenticated user.
//!
//! The context belongs to the task, not to a span. Log lines, audit events, problem bodies and outbound calls all read
//! the context, so they contain its ids even if no span is enabled. A spawned task does not inherit the context: its
//! future must be wrapped with [`Context::scope`].
use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use tokio::task::futures::TaskLocalFuture;
use uuid::Uuid;

tokio::task_local! {
    static CURRENT: Context;
}

/// The id that correlates work across services. The client may choose the id. If the client's id is missing or
/// malformed, the service generates one.
///
/// It has 1 to 128 characters of `[A-Za-z0-9._-]`, so that headers, log lines and queries contain it unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrelationId(Arc<str>);

impl CorrelationId {
    /// Generates a new id: a UUID, version 7.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Parses a client's id. Returns `None` if the id is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        ((1..=128).contains(&text.len()) && text.bytes().all(well_formed)).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The context of one request, including the authenticated user, or of a worker's unit of work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    correlation_id: CorrelationId,
    request_id: Uuid,
    path: Option<Box<str>>,
    client_address: Option<IpAddr>,
    user: OnceLock<User>,
}

/// The authenticated user of a request.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// The user's role, as written in JSON.
    pub role: &'static str,
}

impl Context {
    /// Returns the context of a request.
    pub fn for_request(correlation_id: CorrelationId, path: &str, client_address: Option<IpAddr>) -> Self {
        Self::new(correlation_id, Some(path.into()), client_address)
    }

    /// Returns the context of work outside of a request, such as a worker's unit of work. For work that an earlier
    /// request began, callers pass the correlation id of that request.
    pub fn for_work(correlation_id: CorrelationId) -> Self {
        Self::new(correlation_id, None, None)
    }

    fn new(correlation_id: CorrelationId, path: Option<Box<str>>, client_address: Option<IpAddr>) -> Self {
        let request_id = Uuid::now_v7();
        Self(Arc::new(Inner { correlation_id, request_id, path, client_address, user: OnceLock::new() }))
    }

    /// Returns the correlation id, which the client may choose.
    pub fn correlation_id(&self) -> &CorrelationId {
        &self.0.correlation_id
    }

    /// Returns the request id, which the client cannot choose. It distinguishes requests with the same correlation id.
    pub fn request_id(&self) -> Uuid {
        self.0.request_id
    }

    /// Returns the path of the request, without its query. Work outside of a request has none.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// Returns the client's address. Behind a trusted proxy, this is the address that the proxy reports. Work outside
    /// of a request has none.
    pub fn client_address(&self) -> Option<IpAddr> {
        self.0.client_address
    }

    /// Returns the authenticated user, if there is one.
    pub fn user(&self) -> Option<User> {
        self.0.user.get().copied()
    }

    /// Stores the authenticated user. Later calls are ignored.
    pub fn identify(&self, user: User) {
        let _already_set = self.0.user.set(user);
    }

    /// Runs `work` in this context.
    pub fn scope<F: Future>(self, work: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, work)
    }

    /// Runs `work`, which is not async, in this context, for example on a blocking thread.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}

/// Returns the context of the current task, if there is one.
pub fn current() -> Option<Context> {
    CURRENT.try_with(Context::clone).ok()
}

/// Returns the current correlation id, or a new one outside of any context.
pub fn current_id() -> CorrelationId {
    CURRENT.try_with(|context| context.correlation_id().clone()).unwrap_or_else(|_| CorrelationId::generate())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_ids_are_short_and_need_no_escaping() {
        let longest = "x".repeat(128);
        for id in ["a", "order-7_B.2", &longest, CorrelationId::generate().as_str()] {
            assert_eq!(CorrelationId::parse(id).map(|id| id.to_string()).as_deref(), Some(id));
        }
        let too_long = "x".repeat(129);
        for id in ["", " ", "a b", "a\nb", "ä", "{}", "a\"", "a/b", "a\u{1b}[0m", &too_long] {
            assert_eq!(CorrelationId::parse(id), None, "{id:?}");
        }
    }

    #[tokio::test]
    async fn a_context_belongs_to_its_task_only() {
        let context = Context::for_work(CorrelationId::generate());
        let id = context.correlation_id().clone();
        let seen = context
            .scope(async { (current_id(), tokio::spawn(async { current().is_none() }).await.unwrap()) });
        assert_eq!(seen.await, (id, true));
        assert!(current().is_none());
    }
}
