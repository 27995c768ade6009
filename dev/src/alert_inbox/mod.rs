//! The receiver of alerts. It serves the latest alerts as a page and as JSON, and the runbooks that the alerts link to.
//!
//! The inbox stores the latest alerts of Alertmanager and of the service in memory. In production, a pager, a queue of
//! tickets and an external heartbeat monitor replace the inbox.
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

/// Maximum number of stored alerts.
const MAX_ALERTS: usize = 1000;

/// Settings of an inbox.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The listen address; port 0 selects a free port.
    pub address: SocketAddr,
    /// Directory of the runbooks. Without a directory, links to runbooks respond with 404.
    pub runbooks: Option<PathBuf>,
}

/// A received alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedAlert {
    pub received_at: DateTime<Utc>,
    /// `alertmanager` or `service`.
    pub source: String,
    /// `firing` or `resolved`.
    pub status: String,
    /// Start time according to the sender's clock.
    pub started_at: Option<DateTime<Utc>>,
    pub name: String,
    pub severity: String,
    pub summary: String,
    pub description: String,
    pub runbook_url: Option<String>,
    pub dashboard_url: Option<String>,
}

/// The received alerts, newest first, and the time of the last heartbeat.
#[derive(Debug, Default)]
struct InboxContents {
    alerts: VecDeque<ReceivedAlert>,
    heartbeat_at: Option<DateTime<Utc>>,
}

/// State shared by the routes.
struct InboxState {
    contents: Mutex<InboxContents>,
    runbooks: Option<PathBuf>,
}

impl InboxState {
    fn with_contents<T>(&self, action: impl FnOnce(&mut InboxContents) -> T) -> T {
        action(&mut self.contents.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, alert: ReceivedAlert) {
        self.with_contents(|contents| {
            contents.alerts.push_front(alert);
            contents.alerts.truncate(MAX_ALERTS);
        });
    }
}

/// A running inbox. Dropping the value stops the inbox.
pub struct Inbox {
    address: SocketAddr,
    shared: Arc<InboxState>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Inbox {
    /// Starts an inbox. The inbox accepts requests when this function returns.
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(InboxState { contents: Mutex::default(), runbooks: settings.runbooks });
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let router = routes::router(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            // `axum::serve` never returns an error.
            let _ = axum::serve(listener, router).with_graceful_shutdown(until).await;
        });
        Ok(Self { address, shared, stop, task })
    }

    /// Returns the listen address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the received alerts, newest first.
    pub fn alerts(&self) -> Vec<ReceivedAlert> {
        self.shared.with_contents(|contents| contents.alerts.iter().cloned().collect())
    }

    /// Returns the time of Alertmanager's last heartbeat, which shows that alerting works end to end.
    pub fn heartbeat_at(&self) -> Option<DateTime<Utc>> {
        self.shared.with_contents(|contents| contents.heartbeat_at)
    }

    /// Stops the inbox.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}
