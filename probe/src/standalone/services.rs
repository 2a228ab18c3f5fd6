//! Open ports into service detection while the scan still runs, and what serves there out again.

use std::collections::VecDeque;
use std::sync::Arc;

use picket_wire::job::ServiceOptions;
use picket_wire::policy::Permit;
use picket_wire::service::ServiceOutcome;
use tokio::sync::mpsc;

use super::ledger::unix;
use super::results::Row;
use crate::net::clock;
use crate::net::engine::Source;
use crate::net::pacer::{Limits, SharedPacer};
use crate::net::target_pacer::TargetPacer;
use crate::scan::connect;
use crate::service::fragile::SitePolicy;
use crate::service::recog::Fingerprints;
use crate::service::{self, Deadlines, DetectOptions, Detected, ServiceTarget};

/// Targets and answers on their way.
const QUEUE: usize = 64;

/// An open port by the pass that found it and its position there.
pub(super) type OpenPort = (u8, u64);

/// A detection under way. Dropping it closes what is open.
pub(super) struct Detection {
    to: mpsc::Sender<ServiceTarget>,
    from: mpsc::Receiver<Detected>,
    task: tokio::task::JoinHandle<()>,
    /// Open ports that wait for room.
    waiting: VecDeque<ServiceTarget>,
    /// Asked ports by the number they were given, which is their place here; `None` once told.
    asked: Vec<Option<OpenPort>>,
    /// How many are not told yet.
    left: usize,
}

impl Detection {
    /// Begins, with nothing to ask yet, within the limits `targets` towards each address and network. Ports of fragile devices are
    /// asked where `options` want it and the site permits it.
    pub(super) fn begin(
        options: ServiceOptions,
        site: SitePolicy,
        interface: SharedPacer,
        targets: Option<TargetPacer>,
        permit: &Permit,
        fingerprints: Fingerprints,
    ) -> Self {
        let options = DetectOptions {
            interface,
            rate: Limits::UNLIMITED,
            targets,
            max_open: connect::open_limit(),
            options,
            site,
            fingerprints: Arc::new(fingerprints),
            source: Source { v4: None, v6: None },
            mark: Some(crate::net::link::SHAPER_MARK),
            wall: Some(unix(clock::wall())),
            deadlines: Deadlines::default(),
        };
        let (to, targets) = mpsc::channel(QUEUE);
        let (found, from) = mpsc::channel(QUEUE);
        let permit = permit.clone();
        let gate = Arc::new(move |addr| permit.permits(addr));
        let task = tokio::spawn(service::detect(options, gate, targets, found));
        Self { to, from, task, waiting: VecDeque::new(), asked: Vec::new(), left: 0 }
    }

    /// Asks what serves on an open port.
    pub(super) fn ask(&mut self, port: OpenPort, row: &Row) {
        let (Some(number), Some(transport)) = (row.port, row.transport()) else { return };
        let id = self.asked.len() as u64;
        self.asked.push(Some(port));
        self.left += 1;
        self.waiting.push_back(ServiceTarget { id, addr: row.addr, port: number, transport });
    }

    /// Whether any port is asked, or waits to be.
    pub(super) fn is_busy(&self) -> bool {
        self.left > 0
    }

    /// How many ports were asked, and how many of them are told.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.asked.len() as u64, (self.asked.len() - self.left) as u64)
    }

    /// What serves on the next port that is told. Ends never where nothing is asked.
    pub(super) async fn next(&mut self) -> Option<(OpenPort, ServiceOutcome)> {
        loop {
            tokio::select! {
                permit = self.to.reserve(), if !self.waiting.is_empty() => {
                    if let (Some(target), permit) = (self.waiting.pop_front(), permit.ok()?) {
                        permit.send(target);
                    }
                }
                detected = self.from.recv() => {
                    let Detected { id, outcome, .. } = detected?;
                    let port = usize::try_from(id).ok().and_then(|id| self.asked.get_mut(id)).and_then(Option::take);
                    if let Some(port) = port {
                        self.left -= 1;
                        return Some((port, outcome));
                    }
                }
            }
        }
    }
}

impl Drop for Detection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
