//! The console of `cargo dev`, over sockets.
mod guard;
mod receiver;
mod stage;
