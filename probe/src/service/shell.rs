//! The shell: takes targets, asks many at a time, tells what was found, and closes what was opened.

use core::net::IpAddr;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use picket_wire::service::ServiceOutcome;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::conn::{Port, Shared};
use super::inquiry::{self, Notes, WIDTH};
use super::toll::Toll;
use super::{DetectOptions, Detected, ServiceTarget};
use crate::net::clock;
use crate::net::drive::Gate;

/// Ports of one address that are asked at a time: a small box need not bear more.
pub(super) const PER_ADDRESS: usize = 16;
/// Targets that wait for their address's turn while those of others are asked.
const BACKLOG_MAX: usize = 1024;
/// Answers that wait for the caller at most, before no more targets are taken.
const OUTBOX_MAX: usize = 64;

/// Asks every target that comes, and tells each exactly once, in the order in which they are done. Ends when `targets` is closed
/// and all are told, or when nobody takes what was found.
///
/// It may be dropped at any time: what is open is closed then.
pub async fn detect(
    options: DetectOptions,
    gate: Arc<dyn Gate>,
    mut targets: mpsc::Receiver<ServiceTarget>,
    found: mpsc::Sender<Detected>,
) {
    let (closing, mut partings) = mpsc::unbounded_channel();
    let max_open = options.max_open.max(WIDTH);
    let shared = Arc::new(Shared {
        toll: Toll::new(options.interface.clone(), options.rate, options.targets.clone()),
        room: Arc::new(Semaphore::new(max_open)),
        begun: clock::now(),
        options,
        gate,
        closing,
    });
    let mut asked = FuturesUnordered::new();
    let mut closed = FuturesUnordered::new();
    let mut outbox = VecDeque::new();
    let mut backlog = Backlog::default();
    let mut more = true;
    while more || !backlog.waiting.is_empty() || !asked.is_empty() || !outbox.is_empty() || !closed.is_empty() || !partings.is_empty() {
        // Each port keeps one connection while it waits for others: half of the room is left for those.
        while asked.len() < max_open.div_ceil(2)
            && outbox.len() < OUTBOX_MAX
            && let Some(target) = backlog.next()
        {
            asked.push(ask(shared.clone(), target));
        }
        tokio::select! {
            target = targets.recv(), if more && backlog.waiting.len() < BACKLOG_MAX => match target {
                Some(target) => backlog.waiting.push_back(target),
                None => more = false,
            },
            Some(detected) = asked.next() => {
                backlog.done(detected.target.addr);
                outbox.push_back(detected);
            }
            permit = found.reserve(), if !outbox.is_empty() => match (permit, outbox.pop_front()) {
                (Ok(permit), Some(detected)) => permit.send(detected),
                _ => return,
            },
            Some(parting) = partings.recv() => closed.push(parting.close()),
            Some(()) = closed.next() => {}
        }
    }
}

/// Targets that are not asked yet, and how many of each address are.
#[derive(Default)]
struct Backlog {
    waiting: VecDeque<ServiceTarget>,
    asked: HashMap<IpAddr, usize>,
}

impl Backlog {
    /// The first target whose address is not being asked enough already.
    fn next(&mut self) -> Option<ServiceTarget> {
        let may = |target: &ServiceTarget| self.asked.get(&target.addr).is_none_or(|count| *count < PER_ADDRESS);
        let target = self.waiting.iter().position(may).and_then(|at| self.waiting.remove(at))?;
        *self.asked.entry(target.addr).or_default() += 1;
        Some(target)
    }

    fn done(&mut self, addr: IpAddr) {
        if let Some(count) = self.asked.get_mut(&addr) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&addr);
            }
        }
    }
}

/// Asks one target.
async fn ask(shared: Arc<Shared>, target: ServiceTarget) -> Detected {
    let begun = clock::now();
    let port = Arc::new(Port::new(shared.clone(), target));
    let notes = Notes::default();
    let told = {
        let inquiry = inquiry::inquire(&port, &notes);
        tokio::pin!(inquiry);
        let begun = Instant::now();
        loop {
            // The time that pacing took is no fault of the port's.
            let until = begun + shared.options.deadlines.port + port.waited();
            tokio::select! {
                outcome = &mut inquiry => break Some(outcome),
                () = sleep_until(until) => if begun + shared.options.deadlines.port + port.waited() <= Instant::now() {
                    break None;
                },
            }
        }
    };
    let mut outcome = told.unwrap_or_else(|| notes.outcome(&shared.options));
    clip(&mut outcome);
    Detected { id: target.id, target, outcome, took: clock::now().saturating_since(begun) }
}

/// What leaves is within the bounds of what is believed elsewhere.
fn clip(outcome: &mut ServiceOutcome) {
    use picket_wire::service::{BANNER_MAX, TEXT_MAX};
    match outcome {
        ServiceOutcome::Identified(service) => service.clip(),
        ServiceOutcome::Unidentified { banner } => banner.truncate(BANNER_MAX),
        ServiceOutcome::Lost(why) => why.truncate(why.floor_char_boundary(TEXT_MAX)),
        ServiceOutcome::Silent | ServiceOutcome::Spared | ServiceOutcome::Refused => {}
    }
}
