//! Child processes that are stopped when their parent ends.
//!
//! Every process started here is registered with the [`Watchdog`], because destructors do not run on `kill -9`. Test
//! runners use `kill -9` after a timeout. A service or a database left running would keep its port, and the next run
//! would fail for no visible reason.
//!
//! Threads read output and detect exits, and only waiting is async. Every `#[tokio::test]` has its own runtime, which
//! ends with the test. A server that one test starts can serve later tests, so a task of a test's runtime must not
//! supervise the server.
mod child;
mod output;
mod watchdog;

pub use child::{Child, Launch, WaitError};
pub use nix::sys::signal::Signal;
pub use output::{Follower, Line, Stream};
pub use watchdog::{StopMethod, Watchdog};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex and ignores poisoning, because a panic elsewhere must not prevent the end of a child.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
