//! Ctrl-C and termination: heard on a thread of its own, since whoever writes results may be held up by who should read them (a pager, a
//! terminal that is stopped, a full disk of somebody else's).
//!
//! **Invariant:** the second signal ends the program within [`GRACE`], whatever the rest of it does meanwhile.

use core::time::Duration;
use std::io;
use std::sync::mpsc as blocking;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::Outcome;

/// How long a run may take for its last words after the second signal.
const GRACE: Duration = Duration::from_secs(1);

/// What was heard and not asked for yet. As long as it lives signals end nothing by themselves but for the second.
pub(super) struct Signals(mpsc::UnboundedReceiver<()>);

impl Signals {
    /// Listens from here on.
    pub(super) fn new() -> io::Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        let (ready, started) = blocking::channel();
        std::thread::Builder::new().name("picket-signals".into()).spawn(move || listen(&tell, &ready))?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self(told))
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            core::future::pending::<()>().await;
        }
    }
}

struct Both {
    interrupt: Signal,
    terminate: Signal,
}

impl Both {
    async fn heard(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Tells the first two signals, and ends the program behind the second one. Who is not listened to any more ends itself.
fn listen(tell: &mpsc::UnboundedSender<()>, ready: &blocking::Sender<io::Result<()>>) {
    let begun = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let inside = runtime.enter();
        let both = Both { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? };
        drop(inside);
        Ok((runtime, both))
    });
    let (runtime, mut both) = match begun {
        Ok(begun) => begun,
        // Who waits for it is there.
        Err(error) => return drop(ready.send(Err(error))),
    };
    let _ = ready.send(Ok(()));
    runtime.block_on(async {
        for _ in 0..2 {
            tokio::select! {
                () = both.heard() => {}
                () = tell.closed() => return,
            }
            if tell.send(()).is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(GRACE) => {}
            () = tell.closed() => return,
        }
        // Standard error may be what holds it up: nothing is said.
        std::process::exit(Outcome::Incomplete.exit_code().into());
    });
}
