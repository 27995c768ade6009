//! Work that must finish even if the request or the worker that started it ends first. Shutdown waits for such work
//! until a deadline.
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::spawn_in_current_context;

/// The set of tasks that must finish even if the request or the worker that started them ends first. Cheap to clone.
#[derive(Clone, Default)]
pub struct BackgroundTasks(TaskTracker);

impl BackgroundTasks {
    /// Returns an empty set of tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` in a separate task, with the current correlation context and span. Dropping the handle does not
    /// abort the task.
    pub fn run<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        spawn_in_current_context(self.0.track_future(work))
    }

    /// Waits until all work has finished, or until `deadline`. Returns the number of tasks that still run then.
    ///
    /// Must be called when no new work can start any more. Work that starts after this function has returned might
    /// still run when the process ends.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.0.close();
        match timeout_at(deadline, self.0.wait()).await {
            Ok(()) => 0,
            Err(_) => self.0.len(),
        }
    }
}
