//! The console of `cargo dev`, over sockets. Its views are tested in [`example`](crate::example), in a real browser.
pub(crate) mod fixture;
mod guard;
mod receiver;
