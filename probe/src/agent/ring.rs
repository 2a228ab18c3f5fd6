//! The ring of captures of a box: a rolling capture that the site's configuration wants, running as long as the program does, to be asked
//! afterwards by jobs ([`super::captures`]) or by hands on the box (`picket-probe ring ask`).
//!
//! It has threads of its own and competes with nothing. Where the interface goes away, or the disk takes nothing, it begins again after a
//! while; what it had stays. It must not know the controller: no command begins, changes or ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::capture::filter;
use crate::capture::ring::{self, Options};
use crate::capture::run::{self, End};
use crate::capture::session::{Limits, Nowhere, Session, Telling};
use crate::capture::source::{Listen, Source};
use crate::config::RingConfig;
use crate::errors::chain;
use crate::identity::Identity;
use crate::tap;

/// How long it waits before it begins again.
const AGAIN: Duration = Duration::from_secs(30);
/// The kernel's buffer, in bytes.
const BUFFER: u32 = 4 << 20;

/// A running ring. Ends, in order, when it is dropped.
pub struct Ring {
    stop: Arc<AtomicBool>,
    /// Ends the wait when it is dropped.
    awake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ring {
    /// Begins to fill the ring in `dir`. `measuring` is the interface that the configuration names for measurements.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(dir: PathBuf, config: RingConfig, measuring: Option<String>, identity: Arc<Identity>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (awake, asleep) = channel();
        let work = move || {
            while !stopped.load(Ordering::Relaxed) {
                match fill(&dir, &config, measuring.as_deref(), &identity, &stopped) {
                    Ok(()) => {}
                    Err(reason) => log::error!("the ring of captures: {reason}; it begins again in {} s", AGAIN.as_secs()),
                }
                // Nothing is ever said: it is over, or time has passed.
                let _ = asleep.recv_timeout(AGAIN);
            }
        };
        let thread = std::thread::Builder::new().name("picket-ring".into()).spawn(work)?;
        Ok(Self { stop, awake: Some(awake), thread: Some(thread) })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.awake.take();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Fills the ring until it is stopped, or cannot be filled.
fn fill(dir: &std::path::Path, config: &RingConfig, measuring: Option<&str>, identity: &Identity, stop: &AtomicBool) -> Result<(), String> {
    let (interface, addresses) = tap::interface(config.interface.as_deref().or(measuring)).map_err(|error| chain(&error))?;
    let own = (!config.with_own).then(|| tap::own(addresses, Some(identity)).0);
    let filter = filter::complete(&config.filter, own.as_ref());
    let listen = Listen { interface, snap_len: config.snap_len, promiscuous: true, buffer: BUFFER, filter };
    let source = Source::open(&listen).map_err(|error| chain(&error))?;
    let options = Options { budget: config.bytes, keep: config.keep, keep_free: config.keep_free };
    let (section, interface) = tap::head(&listen, source.link_type(), format!("ring of probe {}", identity.probe()));
    let files = ring::keep(dir, options, section, interface).map_err(|error| chain(&error))?;
    let session = Session::new(source.link_type(), Limits::default(), options.rotation(), Telling::NOTHING, 0);
    log::info!(
        "the ring of captures listens on {}, {} bytes of each packet, {} bytes at most",
        listen.interface,
        config.snap_len,
        config.bytes
    );
    let outcome = run::capture(source, session, Some(files), &mut Nowhere, stop, |_| 0);
    match (outcome.end, outcome.written.and_then(|written| written.problem)) {
        (_, Some(problem)) => Err(chain(&problem)),
        (End::Source(error), None) => Err(chain(&error)),
        _ => Ok(()),
    }
}
