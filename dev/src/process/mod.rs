//! Child processes that never outlive their parent.
//!
//! The rule: whatever is started here is told to the [`Watchdog`] before anyone can rely on it. Destructors
//! do not run on `kill -9`, and a test runner that loses patience uses just that; a service or a database
//! that is left behind then holds its port, and the next run fails for a reason that nobody sees.
//!
//! Nothing here lives in an async runtime: every `#[tokio::test]` has its own, which ends with the test,
//! while a server may serve the tests after it. So output is read and exits are noticed by plain threads,
//! and only waiting is async.
mod child;
mod output;
mod watchdog;

pub use child::{Child, Launch, WaitError};
pub use nix::sys::signal::Signal;
pub use output::{Follower, Line, Stream};
pub use watchdog::{Ending, Watchdog};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic elsewhere must not keep a child from being ended, so a poisoned lock is taken all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
