//! The console of `cargo dev`, over sockets. The tests of its views are in [`example`](crate::example), with a real
//! browser.
pub(crate) mod fixture;
mod guard;
mod receiver;
