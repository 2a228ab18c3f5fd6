//! Running measurements for the agent: each lease that runs is one task of the packet loop, or one of connects.
//!
//! **Invariant:** the packet loop and the connects together keep the interface's limits: while both run, each has half.

use core::ops::Range;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use picket_wire::capture::Captured;
use picket_wire::event::{LeasePace, Pace, Rates};
use picket_wire::host::HostSeen;
use picket_wire::ids::LeaseId;
use picket_wire::job::{JobSpec, Priority, Technique, Transport};
use picket_wire::path::{PathBatch, TracedPath};
use picket_wire::policy::{AddressPolicy, Permit};
use picket_wire::result::{Answer, BatchHead, ResultBatch, Runs, State};
use picket_wire::space::TargetSpace;
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, UnixMillis};
use tokio::sync::{mpsc, oneshot};

use super::core::TaskProgress;
use super::link::{self, LinkMeasurement, Seeds};
use super::surveys::{self, Ground};
use super::traces::TraceMeasurement;
use crate::errors::chain;
use crate::net::clock;
use crate::net::drive::{BoxEngine, DriveEvent, DriveStats, Gate, TaskId, TaskSpec, Weight};
use crate::net::engine::Source;
use crate::net::pacer::{DEFAULT_BURST, Limits, Pacer, SharedPacer};
use crate::net::ports::RawIdentity;
use crate::net::target_pacer::{TargetLimits, TargetPacer};
use crate::scan::connect::{self, ConnectOptions};
use crate::scan::engine::ScanEngine;
use crate::scan::report::{ChunkReport, Event, LateReport, Progress, ProxySeen, TracedChunk};
use crate::scan::spec::{Cut, ScanPlan};
use crate::service::fragile::SitePolicy;
use crate::station::Station;
use crate::trace::spec::TracePlan;

/// Most positions in one chunk, so that a batch in which every port is open still fits one message.
const CHUNK_POSITIONS: u32 = 32_768;
/// Most positions in a chunk whose open ports are asked what serves there: they wait for each other.
const CHUNK_POSITIONS_ASKED: u32 = 2_048;

/// What running measurements tell.
#[derive(Debug)]
pub enum TaskEvent {
    /// A chunk of a lease is finished.
    Chunk(LeaseId, ChunkReport),
    /// A chunk of a lease is finished, with its paths.
    Paths(LeaseId, Box<TracedChunk>),
    /// Hosts seen on the link by the measurement of a lease, at most a few thousand at a time.
    Hosts(LeaseId, Vec<HostSeen>),
    /// One hardware address answers for very many addresses.
    Proxy(LeaseId, ProxySeen),
    /// A position of a lease that was reported as silent has answered.
    Late(LeaseId, LateReport),
    /// The measurement of a lease is over, with what went wrong.
    Ended(LeaseId, Option<String>),
    /// The interface went down or came up.
    Link(bool),
}

enum Handle {
    Raw(TaskId, Arc<Progress>),
    /// The sender is taken when the scan is told to stop.
    Connect(Option<oneshot::Sender<Cut>>, Arc<Progress>),
}

/// What the packet loop works on: the engine, whom it may send to, how far it is.
type RawWork = (BoxEngine<Event>, Arc<dyn Gate>, Arc<Progress>);

/// Fresh randomness for the cookies of a measurement.
fn key() -> Result<[u8; 16], String> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| format!("no randomness for the scan's key: {error}"))?;
    Ok(key)
}

struct Running {
    handle: Handle,
    /// What the job asked for.
    asked: Limits,
    /// Whether the ports that it finds open are asked meanwhile.
    asks: bool,
}

/// What a connect scan tells: its events, and in the end what went wrong.
pub type ConnectEvent = (LeaseId, Result<Event, String>);

/// The running measurements.
pub struct Tasks {
    site: AddressPolicy,
    /// What the site says of fragile ports.
    fragile: SitePolicy,
    limits: Limits,
    running: BTreeMap<LeaseId, Running>,
    /// Counts engines, so that each gets source ports of its own.
    engines: u64,
    connects: SharedPacer,
    connect_events: mpsc::UnboundedSender<ConnectEvent>,
    /// Ports are being asked what serves there.
    asking: bool,
    /// Stations that measurements found on the link.
    seeds: Seeds,
    /// Jobs whose rate was clipped.
    pub clipped: u64,
}

impl Tasks {
    /// No task yet. `limits` are the interface's, which connects keep as well.
    pub fn new(site: AddressPolicy, fragile: SitePolicy, limits: Limits, connect_events: mpsc::UnboundedSender<ConnectEvent>) -> Self {
        let connects = Arc::new(Mutex::new(Pacer::new(limits)));
        Self {
            site,
            fragile,
            limits,
            running: BTreeMap::new(),
            engines: 0,
            connects,
            connect_events,
            asking: false,
            seeds: Seeds::default(),
            clipped: 0,
        }
    }

    /// Starts to measure positions, within the limits `targets` towards each address and network ([`target_pacer`]). What cannot be
    /// started is said in words.
    pub fn start(
        &mut self,
        station: Option<&Station>,
        lease: LeaseId,
        spec: &JobSpec,
        space: Arc<TargetSpace>,
        positions: Range<u64>,
        targets: Option<TargetPacer>,
    ) -> Result<(), String> {
        let (rate, asked, asks) = (job_rate(spec), asked_rate(spec), surveys::wanted(spec).is_some());
        if asked.exceeds(self.limits) {
            self.clipped += 1;
            log::info!("job {}: its rate is clipped to the interface's", spec.id);
        }
        let handle = match spec.kind.scan().technique {
            Technique::Connect => {
                let source = station.map_or(Source { v4: None, v6: None }, Station::source);
                let plan = self.plan(spec, space, positions)?;
                self.start_connect(lease, plan, rate, targets, source, self.gate(spec))
            }
            technique => {
                let station = station.ok_or("the packet socket is not open")?;
                let (engine, gate, progress) = match technique {
                    Technique::Link => self.link_engine(station, spec)?,
                    Technique::Trace => self.trace_engine(station, spec, space, positions)?,
                    _ => self.scan_engine(station, spec, self.plan(spec, space, positions)?)?,
                };
                let weight = match spec.priority {
                    Priority::Interactive => Weight::Interactive,
                    Priority::Bulk => Weight::Bulk,
                };
                let task = TaskSpec { name: lease.to_string(), engine, weight, rate, targets, gate };
                let added = station.handle().add(task).map_err(|error| error.to_string())?;
                Handle::Raw(added.id, progress)
            }
        };
        self.running.insert(lease, Running { handle, asked, asks });
        self.share(station);
        Ok(())
    }

    fn gate(&self, spec: &JobSpec) -> Arc<dyn Gate> {
        let permit = Permit::all_of([&self.site, &spec.policy]);
        Arc::new(move |dst| permit.permits(dst))
    }

    fn plan(&self, spec: &JobSpec, space: Arc<TargetSpace>, positions: Range<u64>) -> Result<ScanPlan, String> {
        let mut plan = ScanPlan::of_job(space, positions.start, positions.end, &spec.kind).map_err(|error| error.to_string())?;
        // The site has the last word: a datagram that may disturb a machine needs its leave.
        plan.spare_fragile(|port| self.fragile.spares(true, Transport::Udp, port).is_some());
        plan.chunks.positions = if surveys::wanted(spec).is_some() { CHUNK_POSITIONS_ASKED } else { CHUNK_POSITIONS };
        Ok(plan)
    }

    fn scan_engine(&mut self, station: &Station, spec: &JobSpec, plan: ScanPlan) -> Result<RawWork, String> {
        let ports = station.ports();
        let identity = RawIdentity { source: station.source(), base_port: ports.base(self.engines), ports, key: key()? };
        self.engines += 1;
        let engine = ScanEngine::new(&plan, identity).map_err(|error| error.to_string())?;
        let engine = engine.on_link(station.local_link()).on_stop(Cut::Resumable);
        let progress = engine.progress();
        Ok((Box::new(engine), self.gate(spec), progress))
    }

    fn trace_engine(&self, station: &Station, spec: &JobSpec, space: Arc<TargetSpace>, positions: Range<u64>) -> Result<RawWork, String> {
        let options = spec.kind.trace().ok_or("the job does not say how to trace")?;
        let plan = TracePlan::of_job(space, positions.start, positions.end, options).map_err(|error| error.to_string())?;
        let ports = station.ports();
        // All traces use the same flows, so that paths of different jobs can be compared; their keys tell them apart.
        let identity = RawIdentity { source: station.source(), base_port: ports.first(), ports, key: key()? };
        let engine = TraceMeasurement::new(plan, identity).map_err(|error| error.to_string())?;
        let progress = engine.progress();
        Ok((Box::new(engine), self.gate(spec), progress))
    }

    fn link_engine(&self, station: &Station, spec: &JobSpec) -> Result<RawWork, String> {
        let link = station.local_link();
        let gate = link.as_ref().map_or_else(|| self.gate(spec), |link| link::gate(&self.site, spec, link));
        let engine = LinkMeasurement::new(spec, link, self.seeds.with(station.neighbours()), key()?);
        let progress = engine.progress();
        Ok((Box::new(engine), gate, progress))
    }

    fn start_connect(
        &self,
        lease: LeaseId,
        plan: ScanPlan,
        rate: Limits,
        targets: Option<TargetPacer>,
        source: Source,
        gate: Arc<dyn Gate>,
    ) -> Handle {
        let (stop, stopped) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let options = ConnectOptions {
            interface: Arc::clone(&self.connects),
            rate: rate.clipped_to(self.limits),
            targets,
            source,
            max_open: connect::open_limit(),
            progress: Arc::clone(&progress),
        };
        let tell = self.connect_events.clone();
        tokio::spawn(async move {
            let (events, mut received) = mpsc::channel(16);
            let stop = async move {
                match stopped.await {
                    Ok(how) => how,
                    // Nobody will ask any more.
                    Err(_) => std::future::pending().await,
                }
            };
            let forward = async {
                while let Some(event) = received.recv().await {
                    // The receiver lives as long as the agent.
                    let _ = tell.send((lease, Ok(event)));
                }
            };
            let (ended, ()) = tokio::join!(connect::run(&plan, options, move |dst| gate.permits(dst), events, stop), forward);
            if let Err(error) = ended {
                let _ = tell.send((lease, Err(chain(&error))));
            }
        });
        Handle::Connect(Some(stop), progress)
    }

    /// What the questions about services of a job stand on; `targets` are those of its scan.
    pub fn ground(&self, station: Option<&Station>, spec: &JobSpec, targets: Option<TargetPacer>, wall: Option<UnixMillis>) -> Ground {
        Ground {
            interface: Arc::clone(&self.connects),
            rate: job_rate(spec).clipped_to(self.limits),
            targets,
            source: station.map_or(Source { v4: None, v6: None }, Station::source),
            wall,
        }
    }

    /// Ports are being asked what serves there, or are no more: the interface is shared accordingly.
    pub fn set_asking(&mut self, station: Option<&Station>, asking: bool) {
        if self.asking != asking {
            self.asking = asking;
            self.share(station);
        }
    }

    /// Divides the interface's limits between the packet loop and the connects, where both run.
    fn share(&self, station: Option<&Station>) {
        let raw = self.running.values().any(|running| matches!(running.handle, Handle::Raw(..)));
        let connect = self.asking || self.running.values().any(|running| matches!(running.handle, Handle::Connect(..)));
        let granted = if raw && connect { half(self.limits) } else { self.limits };
        self.connects.lock().unwrap_or_else(PoisonError::into_inner).set_limits(clock::now(), granted);
        if let Some(station) = station {
            // A loop that has ended sends nothing.
            let _ = station.handle().set_limits(granted);
        }
    }

    /// Asks a measurement to end; what it finished follows.
    pub fn cut(&mut self, station: Option<&Station>, lease: LeaseId) {
        match self.running.get_mut(&lease).map(|running| &mut running.handle) {
            Some(Handle::Raw(id, _)) => {
                if let Some(station) = station {
                    // A loop that has ended reports its tasks' end by itself.
                    let _ = station.handle().cancel(*id);
                }
            }
            Some(Handle::Connect(stop, _)) => {
                if let Some(stop) = stop.take() {
                    // A scan that has just ended needs no asking.
                    let _ = stop.send(Cut::Resumable);
                }
            }
            None => {}
        }
    }

    /// Translates what the packet loop tells.
    pub fn on_drive(&mut self, station: Option<&Station>, event: DriveEvent<Event>) -> Option<TaskEvent> {
        match event {
            DriveEvent::Task(id, event) => {
                let lease = *self.running.iter().find(|(_, running)| matches!(running.handle, Handle::Raw(task, _) if task == id))?.0;
                if let (Event::Done(_), Some(station)) = (&event, station) {
                    let _ = station.handle().cancel(id);
                }
                self.on_scan(station, lease, event)
            }
            DriveEvent::Ended(..) => None,
            DriveEvent::Link { up } => Some(TaskEvent::Link(up)),
        }
    }

    /// Translates what a connect scan tells.
    pub fn on_connect(&mut self, station: Option<&Station>, (lease, event): ConnectEvent) -> Option<TaskEvent> {
        match event {
            Ok(event) => self.on_scan(station, lease, event),
            Err(failure) => self.ended(station, lease, Some(failure)),
        }
    }

    fn on_scan(&mut self, station: Option<&Station>, lease: LeaseId, event: Event) -> Option<TaskEvent> {
        match event {
            Event::Chunk(report) => Some(TaskEvent::Chunk(lease, report)),
            Event::Paths(chunk) => Some(TaskEvent::Paths(lease, chunk)),
            Event::Hosts(hosts) => {
                self.seeds.take(&hosts);
                Some(TaskEvent::Hosts(lease, hosts))
            }
            Event::Proxy(proxy) => Some(TaskEvent::Proxy(lease, proxy)),
            Event::Late(report) => Some(TaskEvent::Late(lease, report)),
            Event::Done(_) => self.ended(station, lease, None),
        }
    }

    fn ended(&mut self, station: Option<&Station>, lease: LeaseId, failure: Option<String>) -> Option<TaskEvent> {
        self.running.remove(&lease)?;
        self.share(station);
        Some(TaskEvent::Ended(lease, failure))
    }

    /// How fast each measurement sends, and what holds it back; `stats` are the packet loop's. Where open ports are asked meanwhile,
    /// that counts as well.
    pub fn pacing(&self, stats: Option<&DriveStats>) -> Vec<LeasePace> {
        let connects = self.connects.lock().unwrap_or_else(PoisonError::into_inner).limits();
        let of = |(lease, running): (&LeaseId, &Running)| {
            let part = if running.asks { half(running.asked) } else { running.asked };
            let by_connects = part.clipped_to(connects);
            let (scan, slowed) = match running.handle {
                Handle::Connect(..) => (by_connects, None),
                Handle::Raw(id, _) => {
                    let (_, task) = stats?.tasks.iter().find(|(task, _)| *task == id)?;
                    (task.current?, task.slowed)
                }
            };
            let current = if running.asks { sum(rates(scan), rates(by_connects)) } else { rates(scan) };
            let granted = rates(running.asked.clipped_to(self.limits));
            // Both ways share the interface: neither has more than all of it.
            let current = Rates { packets: current.packets.min(granted.packets), bits: current.bits.min(granted.bits) };
            Some(LeasePace { lease: *lease, pace: Pace { asked: rates(running.asked), granted, current, slowed } })
        };
        self.running.iter().filter_map(of).collect()
    }

    /// How each measurement stands.
    pub fn progress(&self) -> Vec<(LeaseId, TaskProgress)> {
        let read =
            |progress: &Progress| TaskProgress { sent: progress.next(), packets: progress.sent_packets(), answers: progress.answers() };
        let of = |handle: &Handle| match handle {
            Handle::Raw(_, progress) => read(progress),
            Handle::Connect(_, progress) => read(progress),
        };
        self.running.iter().map(|(lease, running)| (*lease, of(&running.handle))).collect()
    }
}

/// A job's limits towards each address and network, for its scan and the questions about services together. `None` where it has
/// none; what fails is said in words.
pub fn target_pacer(spec: &JobSpec) -> Result<Option<TargetPacer>, String> {
    TargetPacer::random(TargetLimits::from(spec.kind.limits()))
        .map_err(|error| format!("no randomness for the limits towards targets: {error}"))
}

/// What a job asks for.
fn asked_rate(spec: &JobSpec) -> Limits {
    Limits { packets: spec.rate, bits: spec.kind.limits().bits, burst: DEFAULT_BURST }
}

/// What a job may send by each of its ways: where open ports are asked while the scan goes on, each has half.
fn job_rate(spec: &JobSpec) -> Limits {
    let rate = asked_rate(spec);
    if surveys::wanted(spec).is_some() { half(rate) } else { rate }
}

/// Two rates together. What is not limited has no sum.
fn sum(one: Rates, other: Rates) -> Rates {
    let packets = one.packets.zip(other.packets).and_then(|(one, other)| PacketsPerSecond::new(one.get().saturating_add(other.get())));
    let bits = one.bits.zip(other.bits).and_then(|(one, other)| BitsPerSecond::new(one.get().saturating_add(other.get())));
    Rates { packets, bits }
}

/// Limits as the controller is told them.
pub fn rates(limits: Limits) -> Rates {
    Rates { packets: limits.packets, bits: limits.bits }
}

fn half(limits: Limits) -> Limits {
    let packets = limits.packets.map(|rate| PacketsPerSecond::new(rate.get() / 2).unwrap_or(rate));
    let bits = limits.bits.map(|rate| BitsPerSecond::new(rate.get() / 2).unwrap_or(rate));
    Limits { packets, bits, ..limits }
}

/// The clock that the controller told, or the box's own before that.
pub fn unix_now(trusted_now: Option<UnixMillis>) -> UnixMillis {
    let wall = || clock::wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    trusted_now.unwrap_or_else(|| UnixMillis(u64::try_from(wall().as_millis()).unwrap_or(u64::MAX)))
}

/// Paths as they go into the spool before the batch of their chunk.
pub fn path_batch(lease: LeaseId, at: UnixMillis, source: Source, tos: u8, paths: Vec<TracedPath>) -> PathBatch {
    let sources = source.v4.map(IpAddr::V4).into_iter().chain(source.v6.map(IpAddr::V6)).collect();
    PathBatch { lease, at, sources, tos, paths }
}

/// The one position of a capture: it was captured.
pub fn captured_batch(captured: &Captured) -> ResultBatch {
    let took = Duration::from_millis(captured.ended.0.saturating_sub(captured.began.0));
    let head = BatchHead { lease: captured.lease, from: 0, to: 1, started: captured.began, took, packets: 0, duplicates: 0 };
    let answer = Answer { offset: 0, state: State::Up, rtt: Duration::ZERO, ttl: 0 };
    ResultBatch::new(head, vec![answer], Runs::default(), Vec::new())
}

/// The report as a batch, its start on the clock that the controller told, or on the box's own before that.
///
/// The start is counted back from now by how long the chunk took, not from the report's own moments: the engines' clock stands
/// still while the interface is down, and stays behind ever after.
pub fn batch(lease: LeaseId, report: ChunkReport, trusted_now: Option<UnixMillis>) -> ResultBatch {
    let unix_now = unix_now(trusted_now);
    let ago = u64::try_from(report.took().as_millis()).unwrap_or(u64::MAX);
    let started = UnixMillis(unix_now.0.saturating_sub(ago));
    report.into_batch(lease, started)
}

#[cfg(test)]
mod tests {
    use picket_wire::ids::JobId;
    use picket_wire::result::Runs;

    use super::*;
    use crate::net::time::Instant;

    #[test]
    fn time_that_the_link_was_down_moves_no_results_into_the_past() {
        let started = Instant::ZERO + Duration::from_secs(5);
        let report = ChunkReport {
            from: 0,
            to: 1,
            started,
            ended: started + Duration::from_millis(1_250),
            sent_packets: 1,
            sent_bytes: 40,
            answers: Vec::new(),
            refused: Runs::default(),
            not_reached: Vec::new(),
            duplicates: 0,
            late: 0,
        };
        // The box has run for an hour by now, most of it without a link.
        let batch = batch(LeaseId { job: JobId(1), grant: 1 }, report, Some(UnixMillis(3_600_000)));
        assert_eq!((batch.started, batch.took), (UnixMillis(3_598_750), Duration::from_millis(1_250)));
    }
}
