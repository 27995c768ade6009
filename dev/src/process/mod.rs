//! Child processes that never outlive their parent.
//!
//! Every process started here is registered with the [`Watchdog`] before anyone can rely on it. Destructors do not run
//! on `kill -9`, which test runners use after a timeout. A service or a database left running would keep its port, and
//! the next run would fail for no visible reason.
//!
//! Nothing here uses an async runtime: every `#[tokio::test]` has its own runtime, which ends with the test, while a
//! server may serve later tests. So plain threads read output and detect exits, and only waiting is async.
mod child;
mod output;
mod watchdog;

pub use child::{Child, Launch, WaitError};
pub use nix::sys::signal::Signal;
pub use output::{Follower, Line, Stream};
pub use watchdog::{Ending, Watchdog};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex and ignores poisoning, because a panic elsewhere must not prevent a child from being ended.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
