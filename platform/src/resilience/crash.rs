//! Crash points: places in the code where a test can end the process or panic, to verify that a crash there loses
//! nothing.
//!
//! Each crash point is between two steps of work that must not be lost. If `CRASH_AT` names the crash point, the
//! process ends there as in a power failure. No destructor runs, no buffer is flushed, and no connection is closed
//! properly. If `PANIC_AT` names the crash point, the task panics there once, as with a bug. Builds without debug
//! assertions contain no crash points, so a release build cannot be crashed this way.

/// Ends the process if `CRASH_AT` names this crash point.
///
/// # Panics
/// `PANIC_AT` names this crash point. Only the first call panics.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::{
        env,
        sync::{
            LazyLock,
            atomic::{AtomicBool, Ordering},
        },
    };

    static CRASH_AT: LazyLock<Option<String>> = LazyLock::new(|| env::var("CRASH_AT").ok());
    static PANIC_AT: LazyLock<Option<String>> = LazyLock::new(|| env::var("PANIC_AT").ok());
    static PANICKED: AtomicBool = AtomicBool::new(false);
    if CRASH_AT.as_deref() == Some(name) {
        std::process::abort();
    }
    let panics = PANIC_AT.as_deref() == Some(name) && !PANICKED.swap(true, Ordering::Relaxed);
    assert!(!panics, "a test injects a panic at {name}");
}

/// Does nothing, because builds without debug assertions have no crash points.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_name: &str) {}
