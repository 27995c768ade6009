//! Work that was begun by a request and must reach its end although the caller went away: money that is on its way
//! does not care who is still listening. Shutdown waits for it.
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::spawn_in_present_context;

/// Work that must reach its end although its caller went away. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracked(TaskTracker);

impl Tracked {
    /// No work yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` in a task of its own, with the present correlation context and span. Dropping the handle
    /// does not end it.
    pub fn run<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        spawn_in_present_context(self.0.track_future(work))
    }

    /// Waits until all work has reached its end: how much had not at the deadline.
    ///
    /// To be called when nothing begins new work any more.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.0.close();
        match timeout_at(deadline, self.0.wait()).await {
            Ok(()) => 0,
            Err(_) => self.0.len(),
        }
    }
}
