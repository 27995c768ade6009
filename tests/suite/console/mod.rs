//! The console of `cargo dev`, over sockets. Its views are tested in [`example`](crate::example), in a real browser.
mod guard;
mod receiver;
pub(crate) mod stage;
