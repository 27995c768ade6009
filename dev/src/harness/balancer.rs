//! A load balancer before several replicas: what stands before the service wherever there is more than one of it.
//!
//! It does what the common ones do, and nothing to make the service look better: it asks each replica whether it is
//! ready, gives each request to one that was ready when last asked, in turn, and never sends a request twice. A
//! request that its replica does not answer is a 502.
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

use super::{SOON, Service, User, client::Api};

/// How often each replica is asked whether it is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The largest body that is passed on.
const BODY_LIMIT: usize = 1024 * 1024;

/// A balancer at work. It ends when this is dropped.
pub struct Balancer {
    url: Url,
    pool: Arc<Pool>,
    tasks: [JoinHandle<()>; 2],
}

struct Pool {
    client: reqwest::Client,
    turn: AtomicUsize,
    replicas: Mutex<Vec<Replica>>,
}

#[derive(Clone)]
struct Replica {
    api: Url,
    ops: Url,
    ready: bool,
}

impl Balancer {
    /// Before nobody yet.
    pub async fn start() -> Self {
        let pool = Arc::new(Pool {
            client: crate::http::client(SOON).expect("a client can be made"),
            turn: AtomicUsize::new(0),
            replicas: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&pool));
        let serving = async move { axum::serve(listener, router).await.expect("it serves without end") };
        let tasks = [tokio::spawn(serving), tokio::spawn(Arc::clone(&pool).probe())];
        Self { url: Url::parse(&format!("http://{address}/")).expect("an address makes a URL"), pool, tasks }
    }

    /// Puts the present process of a service behind it.
    pub fn add(&self, service: &Service) {
        let (api, ops) = (service.api_url().clone(), service.ops_url().clone());
        self.pool.replicas().push(Replica { api, ops, ready: false });
    }

    /// How many replicas were ready when they were last asked.
    pub fn ready(&self) -> usize {
        self.pool.replicas().iter().filter(|replica| replica.ready).count()
    }

    /// A user with the same session, whose requests come here.
    pub fn serves(&self, user: &User) -> User {
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
            let known = self.replicas().clone();
            for replica in known {
                let url = replica.ops.join("/readyz").expect("a path makes a URL");
                let answer = self.client.get(url).send().await;
                let ready = answer.is_ok_and(|answer| answer.status().is_success());
                let mut replicas = self.replicas();
                if let Some(known) = replicas.iter_mut().find(|known| known.ops == replica.ops) {
                    known.ready = ready;
                }
            }
        }
    }

    fn next(&self) -> Option<Url> {
        let replicas = self.replicas();
        let ready: Vec<_> = replicas.iter().filter(|replica| replica.ready).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        ready.get(turn.checked_rem(ready.len())?).map(|replica| replica.api.clone())
    }
}

async fn pass_on(State(pool): State<Arc<Pool>>, request: Request) -> Response {
    let Some(mut url) = pool.next() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    url.set_path(request.uri().path());
    url.set_query(request.uri().query());
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else { return StatusCode::BAD_REQUEST.into_response() };
    let passed_on = pool.client.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let Ok(answer) = passed_on else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let Ok(body) = answer.bytes().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
