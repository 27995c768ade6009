//! Places where a test may make the process die, so that it is proved that dying there does not matter.
//!
//! Each stands between two steps of something that must not be lost. With `CRASH_AT` set to its name, the process
//! ends there as by a power cut: no destructor runs, nothing is flushed, no connection is closed in order. With
//! `PANIC_AT` it is the task that ends there, as by a mistake in the code, the first time that it comes by. Builds
//! without debug assertions have none of this: what is released cannot be told to die.

/// The process may die here.
///
/// # Panics
/// With `PANIC_AT` set to this place, the first time.
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
    assert!(!panics, "a test wants a panic at {name}");
}

/// The process may not die here: see the module.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_name: &str) {}
