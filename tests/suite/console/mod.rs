//! The console of `cargo dev`, tested over sockets. The tests of the console's views are in
//! [`example`](crate::example), and use a real browser.
pub(crate) mod fixture;
mod guard;
mod receiver;
