//! Ctrl-C and the polite end: noted here, acted upon where the demo waits, so that everything it holds is dropped in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Somebody asked the demo to end.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes SIGINT, SIGTERM and SIGHUP from now on.
pub(crate) fn listen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = {
        let _inside = runtime.enter();
        kinds.map(signal).into_iter().collect::<io::Result<Vec<_>>>()?
    };
    let wait = move || {
        runtime.block_on(async {
            let [one, two, three] = signals.as_mut_slice() else { return };
            loop {
                tokio::select! {
                    _ = one.recv() => {}
                    _ = two.recv() => {}
                    _ = three.recv() => {}
                }
                ASKED.store(true, Ordering::Relaxed);
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// Whether somebody asked.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error when somebody asked.
pub(crate) fn check() -> Result<(), Interrupted> {
    if asked() { Err(Interrupted) } else { Ok(()) }
}
