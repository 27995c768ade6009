//! The far end of alerting: a page that shows every alert that arrived, and the runbooks that alerts link to.
//!
//! In production this is a pager, a queue and an outside service that waits for a heartbeat; here it is a place to
//! look at. It keeps the latest alerts in memory, whoever sent them: Alertmanager, or the service itself.
mod page;
mod routes;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// How many alerts are remembered.
const REMEMBERED: usize = 1000;

/// What an inbox is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen; port 0 picks a free one.
    pub address: SocketAddr,
    /// The directory of the runbooks; without it their links lead nowhere.
    pub runbooks: Option<PathBuf>,
}

/// An alert, as it was when it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    pub received_at: DateTime<Utc>,
    /// `alertmanager` or `service`.
    pub source: String,
    /// `firing` or `resolved`.
    pub status: String,
    /// When it began, by the clock of its sender.
    pub started_at: Option<DateTime<Utc>>,
    pub name: String,
    pub severity: String,
    pub summary: String,
    pub description: String,
    pub runbook_url: Option<String>,
    pub dashboard_url: Option<String>,
}

/// What has arrived.
#[derive(Debug, Default)]
struct Arrivals {
    alerts: VecDeque<Received>,
    heartbeat_at: Option<DateTime<Utc>>,
}

/// What the routes share.
struct Shared {
    arrivals: Mutex<Arrivals>,
    runbooks: Option<PathBuf>,
}

impl Shared {
    fn look<T>(&self, at: impl FnOnce(&mut Arrivals) -> T) -> T {
        at(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, alert: Received) {
        self.look(|arrivals| {
            arrivals.alerts.push_front(alert);
            arrivals.alerts.truncate(REMEMBERED);
        });
    }
}

/// A running inbox. Dropping it stops it.
pub struct Inbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Inbox {
    /// Starts an inbox; when this returns, it answers.
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { arrivals: Mutex::default(), runbooks: settings.runbooks });
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let router = routes::router(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            // It has nothing to lose: what breaks off is sent again.
            let _ = axum::serve(listener, router).with_graceful_shutdown(until).await;
        });
        Ok(Self { address, shared, stop, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived, newest first.
    pub fn alerts(&self) -> Vec<Received> {
        self.shared.look(|arrivals| arrivals.alerts.iter().cloned().collect())
    }

    /// When Alertmanager last said that alerting works from end to end.
    pub fn heartbeat_at(&self) -> Option<DateTime<Utc>> {
        self.shared.look(|arrivals| arrivals.heartbeat_at)
    }

    /// Stops it.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}
