//! A load balancer in front of several replicas, as in any deployment with more than one replica.
//!
//! The balancer has none of the features that would hide faults of the service. The balancer probes the readiness of
//! each replica, and distributes requests round-robin over the replicas that were ready at the last probe. The balancer
//! never retries a request, and responds with 502 if a replica does not respond.
use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, task::JoinHandle};
use url::Url;

use super::{Service, User, WAIT_TIMEOUT, client::Api};

/// Interval of readiness probes of each replica.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum size of a forwarded request body, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;

/// A running balancer. Dropping the value stops the balancer.
pub struct Balancer {
    url: Url,
    pool: Arc<Pool>,
    tasks: [JoinHandle<()>; 2],
}

struct Pool {
    client: reqwest::Client,
    next_index: AtomicUsize,
    replicas: Mutex<Vec<Replica>>,
}

#[derive(Clone)]
struct Replica {
    api: Url,
    ops: Url,
    ready: bool,
}

impl Balancer {
    /// Starts a balancer without replicas.
    pub async fn start() -> Self {
        let pool = Arc::new(Pool {
            client: crate::http::client(WAIT_TIMEOUT).expect("failed to create an HTTP client"),
            next_index: AtomicUsize::new(0),
            replicas: Mutex::default(),
        });
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("failed to listen on a free port");
        let address = listener.local_addr().expect("failed to read the listener's address");
        let router = Router::new().fallback(forward).with_state(Arc::clone(&pool));
        let serving = async move {
            axum::serve(listener, router).await.expect("the server failed");
        };
        let tasks = [tokio::spawn(serving), tokio::spawn(Arc::clone(&pool).probe())];
        Self {
            url: Url::parse(&format!("http://{address}/")).expect("the address is not valid in a URL"),
            pool,
            tasks,
        }
    }

    /// Adds the current process of a service as a replica.
    pub fn add(&self, service: &Service) {
        let (api, ops) = (service.api_url().clone(), service.ops_url().clone());
        self.pool.replicas().push(Replica { api, ops, ready: false });
    }

    /// Returns the number of replicas that were ready at the last probe.
    pub fn ready(&self) -> usize {
        self.pool.replicas().iter().filter(|replica| replica.ready).count()
    }

    /// Returns a user with the same session, whose requests go through this balancer.
    pub fn user_through(&self, user: &User) -> User {
        user.at(&Arc::new(Api::new(self.url.clone(), None)))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Pool {
    fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn probe(self: Arc<Self>) {
        let mut clock = tokio::time::interval(PROBE_INTERVAL);
        loop {
            clock.tick().await;
            let replicas = self.replicas().clone();
            for replica in replicas {
                let url = replica.ops.join("/readyz").expect("the path is not valid in a URL");
                let response = self.client.get(url).send().await;
                let ready = response.is_ok_and(|response| response.status().is_success());
                let mut replicas = self.replicas();
                if let Some(replica_state) = replicas.iter_mut().find(|state| state.ops == replica.ops) {
                    replica_state.ready = ready;
                }
            }
        }
    }

    fn next(&self) -> Option<Url> {
        let replicas = self.replicas();
        let ready: Vec<_> = replicas.iter().filter(|replica| replica.ready).collect();
        let next_index = self.next_index.fetch_add(1, Ordering::Relaxed);
        ready.get(next_index.checked_rem(ready.len())?).map(|replica| replica.api.clone())
    }
}

async fn forward(State(pool): State<Arc<Pool>>, request: Request) -> Response {
    let Some(mut url) = pool.next() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    url.set_path(request.uri().path());
    url.set_query(request.uri().query());
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else { return StatusCode::BAD_REQUEST.into_response() };
    let forwarded = pool.client.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let Ok(response) = forwarded else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, headers) = (response.status(), response.headers().clone());
    let Ok(body) = response.bytes().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
