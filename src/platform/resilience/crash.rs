//! Places where a test may make the process die, so that it is proved that dying there does not matter.
//!
//! Each stands between two steps of something that must not be lost. With `CRASH_AT` set to its name, the process
//! ends there as by a power cut: no destructor runs, nothing is flushed, no connection is closed in order. Builds
//! without debug assertions have none of this: what is released cannot be told to die.

/// The process may die here.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    static WHERE: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("CRASH_AT").ok());
    if WHERE.as_deref() == Some(name) {
        std::process::abort();
    }
}

/// The process may not die here: see the module.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_name: &str) {}
