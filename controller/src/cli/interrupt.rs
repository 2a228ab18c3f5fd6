//! Ctrl-C and the polite end, as events instead of the end of the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Interrupts of this process, from the moment it was made.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one; never, where the system does not tell any more.
    pub(super) async fn next(&mut self) {
        let heard = tokio::select! {
            heard = self.interrupt.recv() => heard,
            heard = self.terminate.recv() => heard,
        };
        if heard.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
