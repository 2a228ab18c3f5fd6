//! Traces as the measurement of a lease: paths end in any order, and are told in that of their positions.
//!
//! One path is one position. Who was reached has answered; who was not, whatever ended the path, is silent; who policy forbids is refused; and
//! where there is no way to send at all, the destination was not reached. Chunks of finished paths follow on each other
//! without a gap, so that a chunk in the spool is the checkpoint, as it is for scans. A path behind one that is still open waits,
//! packed as it will travel; whoever is cut, or killed, traces it again.
//!
//! It must not know the spool, the controller or sockets.
//!
//! **Invariant:** memory is bounded: no more than [`engine::AHEAD_MAX`] finished paths wait for one that is open.
//! **Invariant:** a path that was broken off is not told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use picket_wire::path::{Found, TracedPath};
use picket_wire::result::{Answer, NotReached, Runs, State};
use picket_wire::trace::{Path, PathEnd};

use crate::net::engine::{Engine, NotSent, Signs, Transmit};
use crate::net::ports::RawIdentity;
use crate::net::time::Instant;
use crate::packet::eth::Mac;
use crate::scan::report::{ChunkReport, Done, Event, Progress, Stats, TracedChunk};
use crate::trace::engine;
use crate::trace::report;
use crate::trace::spec::{SpecError, TracePlan};

/// Paths in one chunk, at most.
const CHUNK_PATHS: usize = 256;
/// A chunk is told when its paths have so many bytes.
const CHUNK_BYTES: usize = 32 * 1024;
/// No finished path waits longer for others to share a chunk with.
const CHUNK_EVERY: Duration = Duration::from_secs(1);

type TraceEngine = Box<dyn Engine<Event = report::Event> + Send>;

/// How a position fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Reached { rtt: Duration, ttl: u8 },
    Silent,
    Refused,
    NoRoute,
}

/// A path that is over, as it waits to be told.
#[derive(Debug)]
struct Finished {
    begun: Option<Instant>,
    ended: Instant,
    fate: Fate,
    sent: u32,
    /// Bytes of these packets.
    bytes: u64,
    /// The path as postcard has it, which takes a quarter of the memory; nothing where nothing was sent.
    packed: Vec<u8>,
}

/// The measurement, in the words of a scan. See the module.
pub struct TraceMeasurement {
    engine: TraceEngine,
    tos: u8,
    /// When the first packet of each open exploration left, where the engine does not tell.
    begun: Option<HashMap<IpAddr, Instant>>,
    /// The first position that is not told.
    next: u64,
    /// The finished paths from there on.
    ready: Vec<Finished>,
    /// Since when they wait.
    since: Instant,
    bytes: usize,
    /// Finished paths behind one that is open.
    waiting: BTreeMap<u64, Finished>,
    events: VecDeque<Event>,
    progress: Arc<Progress>,
    stats: Stats,
    seen: Instant,
}

impl TraceMeasurement {
    /// Traces to the destinations of a plan.
    ///
    /// # Errors
    /// See [`engine::trace`].
    pub fn new(plan: TracePlan, identity: RawIdentity) -> Result<Self, SpecError> {
        let (next, tos) = (plan.from, plan.tos);
        let begun = plan.multipath.as_ref().map(|_| HashMap::new());
        let progress = Arc::<Progress>::default();
        progress.publish(next, &Stats::default());
        Ok(Self {
            engine: engine::trace(plan, identity)?,
            tos,
            begun,
            next,
            ready: Vec::new(),
            since: Instant::ZERO,
            bytes: 0,
            waiting: BTreeMap::new(),
            events: VecDeque::new(),
            progress,
            stats: Stats::default(),
            seen: Instant::ZERO,
        })
    }

    /// How it stands, readable from other threads.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn at(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
    }

    /// Takes in what the engine tells.
    fn collect(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                report::Event::Path { position, begun, bytes, path } => self.path(position, begun, bytes, &path),
                report::Event::Graph { position, bytes, graph } => {
                    let begun = self.begun.as_mut().and_then(|begun| begun.remove(&graph.dst));
                    let (end, sent) = (graph.end, graph.sent);
                    let found = Found::Ways(graph);
                    let fate = fate(&found);
                    let Found::Ways(graph) = found else { continue };
                    let packed = |took| TracedPath::ways(position, took, *graph);
                    self.finished(position, (end, fate), begun, (sent, bytes), packed);
                }
                report::Event::Hop { .. } => {}
                report::Event::Done(_) => {
                    self.tell();
                    self.publish();
                    self.events.push_back(Event::Done(Done { next: self.next, stats: self.stats }));
                }
            }
        }
        if self.is_due() {
            self.tell();
        }
        self.publish();
    }

    fn path(&mut self, position: u64, begun: Option<Instant>, bytes: u64, path: &Path) {
        let found = Found::Path(path.clone());
        let tos = self.tos;
        let packed = |took| TracedPath::path(position, took, path, tos);
        self.finished(position, (path.end, fate(&found)), begun, (path.sent, bytes), packed);
    }

    fn finished(
        &mut self,
        position: u64,
        (end, fate): (PathEnd, Fate),
        begun: Option<Instant>,
        (sent, bytes): (u32, u64),
        packed: impl FnOnce(Duration) -> TracedPath,
    ) {
        if end == PathEnd::Stopped {
            return;
        }
        let ended = self.seen;
        let took = begun.map_or(Duration::ZERO, |begun| ended.saturating_since(begun));
        let is_told = sent > 0 || !matches!(fate, Fate::Refused | Fate::NoRoute);
        // Growing memory takes whatever postcard writes of such types.
        let packed = if is_told { postcard::to_allocvec(&packed(took)).unwrap_or_default() } else { Vec::new() };
        self.stats.answers += u64::from(matches!(fate, Fate::Reached { .. }));
        self.waiting.insert(position, Finished { begun, ended, fate, sent, bytes, packed });
        while let Some(finished) = self.waiting.remove(&(self.next + self.ready.len() as u64)) {
            if self.ready.is_empty() {
                self.since = self.seen;
            }
            self.bytes += finished.packed.len();
            self.ready.push(finished);
            if self.ready.len() >= CHUNK_PATHS || self.bytes >= CHUNK_BYTES {
                self.tell();
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        (!self.ready.is_empty()).then(|| self.since + CHUNK_EVERY)
    }

    fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= self.seen)
    }

    fn publish(&mut self) {
        let finished = (self.ready.len() + self.waiting.len()) as u64;
        self.progress.publish(self.next + finished, &self.stats);
    }

    /// Tells the finished paths that no open one stands before.
    fn tell(&mut self) {
        let finished = core::mem::take(&mut self.ready);
        self.bytes = 0;
        let Some(started) = finished.iter().map(|path| path.begun.unwrap_or(path.ended)).min() else { return };
        let ended = finished.iter().map(|path| path.ended).max().unwrap_or(started);
        let (from, to) = (self.next, self.next + finished.len() as u64);
        self.next = to;
        let offsets = |wanted: Fate| Runs::from_ascending((0..).zip(&finished).filter(|(_, path)| path.fate == wanted).map(|(at, _)| at));
        let answers = (0..).zip(&finished).filter_map(|(offset, path)| match path.fate {
            Fate::Reached { rtt, ttl } => Some(Answer { offset, state: State::Up, rtt, ttl }),
            Fate::Silent | Fate::Refused | Fate::NoRoute => None,
        });
        let ago = |path: &Finished| u32::try_from(self.seen.saturating_since(path.ended).as_millis()).unwrap_or(u32::MAX);
        let unpacked = |path: &Finished| {
            let mut traced: TracedPath = postcard::from_bytes(&path.packed).ok()?;
            traced.ago_ms = ago(path);
            Some(traced)
        };
        let report = ChunkReport {
            from,
            to,
            started,
            ended,
            sent_packets: finished.iter().map(|path| u64::from(path.sent)).sum(),
            sent_bytes: finished.iter().map(|path| path.bytes).sum(),
            answers: answers.collect(),
            refused: offsets(Fate::Refused),
            not_reached: vec![(NotReached::NoRoute, offsets(Fate::NoRoute))],
            duplicates: 0,
            late: 0,
        };
        self.stats.sent_bytes += report.sent_bytes;
        let paths = finished.iter().filter_map(unpacked).collect();
        self.events.push_back(Event::Paths(Box::new(TracedChunk { report, tos: self.tos, paths })));
    }
}

fn fate(found: &Found) -> Fate {
    match found.end() {
        PathEnd::Reached => {
            let answer = found.answer();
            let rtt = Duration::from_micros(answer.map_or(0, |reply| reply.rtt_us).into());
            Fate::Reached { rtt, ttl: answer.map_or(0, |reply| reply.ttl) }
        }
        PathEnd::Refused => Fate::Refused,
        PathEnd::NoRoute => Fate::NoRoute,
        PathEnd::Unreachable | PathEnd::Loop | PathEnd::Silent | PathEnd::TooFar | PathEnd::Stopped => Fate::Silent,
    }
}

impl Engine for TraceMeasurement {
    type Event = Event;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        self.at(now);
        let transmit = self.engine.poll_transmit(now, buf)?;
        self.stats.sent_packets += 1;
        if let Some(begun) = &mut self.begun {
            begun.entry(transmit.dst).or_insert(now);
        }
        Some(transmit)
    }

    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent) {
        self.at(now);
        self.stats.sent_packets = self.stats.sent_packets.saturating_sub(1);
        self.engine.on_not_sent(now, token, why);
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        self.on_frame(now, None, packet);
    }

    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        self.at(now);
        self.engine.on_frame(now, from, packet);
    }

    fn on_link_up(&mut self, now: Instant) {
        self.at(now);
        self.engine.on_link_up(now);
    }

    fn wants_all_multicast(&self) -> bool {
        self.engine.wants_all_multicast()
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let own = self.due().map(|due| (due, "finished paths are told"));
        self.engine.poll_timeout().into_iter().chain(own).min_by_key(|(due, _)| *due)
    }

    fn on_timeout(&mut self, now: Instant) {
        self.at(now);
        self.engine.on_timeout(now);
    }

    fn poll_event(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            self.collect();
        }
        self.events.pop_front()
    }

    fn signs(&mut self) -> Signs {
        self.engine.signs()
    }

    fn stop(&mut self) {
        self.engine.stop();
    }
}

#[cfg(test)]
mod tests;
