//! The console of `cargo dev`, in a real browser where one sees it, and over sockets where nobody does.
mod guard;
mod pictures;
mod receiver;
mod stage;
mod views;
