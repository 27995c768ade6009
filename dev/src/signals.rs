//! The signals that end a tool of this crate.
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A receiver of SIGINT (Ctrl-C) and SIGTERM. From its creation on, these signals no longer end the process.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal of either kind.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
