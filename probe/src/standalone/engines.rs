//! The passes of a run under way: raw ones are tasks of one station's loop, connects share its limits.
//!
//! **Invariant:** loop and connections together keep the run's limits: while both send, each has half.

use std::sync::{Arc, Mutex, PoisonError};

use picket_wire::job::{HostProbe, ScanOptions, ServiceOptions, Technique, Transport};
use picket_wire::policy::Permit;
use picket_wire::units::{BitsPerSecond, PacketsPerSecond};
use tokio::sync::{mpsc, oneshot};

use super::error::{StandaloneError, system};
use super::prepare::Work;
use super::results::PassHead;
use crate::net::afpacket::LinkError;
use crate::net::clock;
use crate::net::drive::{DriveEvent, DriveGone, DriveStats, TaskId, TaskSpec, Weight};
use crate::net::engine::Source;
use crate::net::pacer::{Limits, Pacer, SharedPacer};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::target_pacer::{TargetLimits, TargetPacer};
use crate::scan::connect::{self, ConnectError, ConnectOptions};
use crate::scan::engine::ScanEngine;
use crate::scan::report::{Event, Progress};
use crate::scan::spec::{ChunkLimits, Cut, ScanPlan};
use crate::service::fragile::SitePolicy;
use crate::station::{Station, StationError};

/// Events that wait for the terminal before sending pauses.
const EVENTS: usize = 16;

/// What is told on the way.
pub(super) enum Told {
    /// A pass tells something.
    Scan(usize, Event),
    /// The interface went down or came up.
    Link { up: bool },
}

enum How {
    Raw(TaskId),
    /// The sender is taken when the pass is told to stop.
    Connect(Option<oneshot::Sender<Cut>>),
}

/// A pass under way.
struct Running {
    pass: usize,
    how: How,
    progress: Arc<Progress>,
}

/// How a pass asks.
pub(super) struct Asking<'a> {
    pub(super) attempts: u8,
    pub(super) host_probes: &'a [HostProbe],
    /// Whether, and how, services are asked.
    pub(super) services: Option<ServiceOptions>,
    /// What becomes of unfinished positions when the pass is stopped.
    pub(super) on_stop: Cut,
    /// How many passes run at the same time: they share the memory.
    pub(super) beside: usize,
}

/// All passes under way.
pub(super) struct Engines {
    station: Option<Station>,
    drive: mpsc::Receiver<DriveEvent<Event>>,
    connect_sender: mpsc::Sender<(usize, Result<Event, ConnectError>)>,
    connect_events: mpsc::Receiver<(usize, Result<Event, ConnectError>)>,
    /// What connections of all kinds are paced by.
    connects: SharedPacer,
    /// Limits towards each address and network, for all passes and the questions about services together.
    targets: Option<TargetPacer>,
    limits: Limits,
    permit: Permit,
    /// What the site says of fragile ports.
    site: SitePolicy,
    running: Vec<Running>,
    /// How passes stand, ended ones too, with their targets.
    watched: Vec<(u64, Arc<Progress>)>,
    /// Connections besides those of connect passes: services that are asked.
    talking: bool,
    /// Counts raw engines, so that each gets source ports of its own.
    engines: u64,
}

impl Engines {
    /// Opens the interface where raw packets are wanted. `targets` are the run's limits towards each address and network.
    pub(super) fn open(work: &Work, raw: bool, targets: TargetLimits) -> Result<Self, StandaloneError> {
        let (sink, drive) = mpsc::channel(EVENTS);
        let station = if raw { Some(Station::open(&work.config.interface, SourcePorts::default(), sink)?) } else { None };
        let (connect_sender, connect_events) = mpsc::channel(EVENTS);
        Ok(Self {
            station,
            drive,
            connect_sender,
            connect_events,
            connects: Arc::new(Mutex::new(Pacer::new(work.granted))),
            targets: target_pacer(targets)?,
            limits: work.granted,
            permit: work.permit.clone(),
            site: work.config.services.site.clone(),
            running: Vec::new(),
            watched: Vec::new(),
            talking: false,
            engines: 0,
        })
    }

    /// Whether the system refused raw packets.
    pub(super) fn is_permission(error: &StationError) -> bool {
        matches!(error, StationError::Link(LinkError::Permission { .. }))
    }

    /// Begins a pass at a position of its space.
    pub(super) fn begin(&mut self, number: usize, head: &PassHead, from: u64, asking: &Asking<'_>) -> Result<(), StandaloneError> {
        let Some(space) = &head.space else { return Ok(()) };
        let options = ScanOptions { technique: head.technique, attempts: asking.attempts };
        let mut plan = ScanPlan::new(Arc::clone(space), from, space.len(), options)?.with_host_probes(asking.host_probes);
        plan = plan.with_services(asking.services);
        // Both must agree, as for the questions about services; the site has the last word.
        plan.spare_fragile(|port| self.site.spares(true, Transport::Udp, port).is_some());
        plan.chunks.memory = ChunkLimits::default().memory / asking.beside.max(1);
        let running = match head.technique {
            Technique::Connect => self.begin_connect(number, plan),
            _ => self.begin_raw(number, &plan, asking.on_stop)?,
        };
        self.watched.push((space.len(), Arc::clone(&running.progress)));
        self.running.push(running);
        self.share();
        Ok(())
    }

    fn begin_raw(&mut self, pass: usize, plan: &ScanPlan, on_stop: Cut) -> Result<Running, StandaloneError> {
        let station = self.station.as_ref().ok_or(DriveGone)?;
        let ports = station.ports();
        let identity = RawIdentity { source: station.source(), base_port: ports.base(self.engines), ports, key: random()? };
        self.engines += 1;
        let engine = ScanEngine::new(plan, identity)?.on_link(station.local_link()).on_stop(on_stop);
        let progress = engine.progress();
        let permit = self.permit.clone();
        let task = TaskSpec {
            name: plan.technique().as_str().to_owned(),
            engine: Box::new(engine),
            weight: Weight::Interactive,
            // The limit of the run is the interface's while it lasts.
            rate: Limits::UNLIMITED,
            targets: self.targets.clone(),
            gate: Arc::new(move |addr| permit.permits(addr)),
        };
        let added = station.handle().add(task)?;
        Ok(Running { pass, how: How::Raw(added.id), progress })
    }

    fn begin_connect(&mut self, pass: usize, plan: ScanPlan) -> Running {
        let progress: Arc<Progress> = Arc::default();
        let options = ConnectOptions {
            interface: Arc::clone(&self.connects),
            rate: Limits::UNLIMITED,
            targets: self.targets.clone(),
            source: Source { v4: None, v6: None },
            max_open: connect::open_limit(),
            progress: Arc::clone(&progress),
        };
        let (stop, stopped) = oneshot::channel::<Cut>();
        let (permit, tell) = (self.permit.clone(), self.connect_sender.clone());
        tokio::spawn(async move {
            let (events, mut received) = mpsc::channel(EVENTS);
            let stopped = async { if let Ok(how) = stopped.await { how } else { core::future::pending().await } };
            let forward = async {
                while let Some(event) = received.recv().await {
                    // Nobody asks any more: the program is ending.
                    let _ = tell.send((pass, Ok(event))).await;
                }
            };
            let (ended, ()) = tokio::join!(connect::run(&plan, options, move |addr| permit.permits(addr), events, stopped), forward);
            if let Err(error) = ended {
                let _ = tell.send((pass, Err(error))).await;
            }
        });
        Running { pass, how: How::Connect(Some(stop)), progress }
    }

    /// What a pass tells next.
    pub(super) async fn next(&mut self) -> Result<Told, StandaloneError> {
        loop {
            tokio::select! {
                event = self.drive.recv(), if self.station.is_some() => match event.ok_or(DriveGone)? {
                    DriveEvent::Task(id, event) => {
                        let pass = self.running.iter().find(|running| matches!(running.how, How::Raw(task) if task == id)).map(|r| r.pass);
                        if let Some(pass) = pass {
                            return Ok(Told::Scan(pass, event));
                        }
                    }
                    DriveEvent::Link { up } => return Ok(Told::Link { up }),
                    DriveEvent::Ended(..) => {}
                },
                Some((pass, event)) = self.connect_events.recv() => return Ok(Told::Scan(pass, event?)),
            }
        }
    }

    /// Forgets a pass that has told its end.
    pub(super) fn ended(&mut self, pass: usize) {
        if let (Some(station), Some(Running { how: How::Raw(id), .. })) = (&self.station, self.running.iter().find(|r| r.pass == pass)) {
            // A loop that has ended has no task.
            let _ = station.handle().cancel(*id);
        }
        self.running.retain(|running| running.pass != pass);
        self.share();
    }

    /// Asks all passes to end; what they have follows.
    pub(super) fn stop(&mut self, how: Cut) {
        for running in &mut self.running {
            match &mut running.how {
                How::Raw(id) => {
                    // If the loop has ended, so has the pass.
                    let _ = self.station.as_ref().map(|station| station.handle().cancel(*id));
                }
                How::Connect(stop) => {
                    // If it has ended already, that is what is wanted.
                    let _ = stop.take().map(|stop| stop.send(how));
                }
            }
        }
    }

    /// Whether any pass is under way.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// The pacer of everything that opens connections.
    pub(super) fn connects(&self) -> SharedPacer {
        Arc::clone(&self.connects)
    }

    /// The run's limits towards each address and network.
    pub(super) fn targets(&self) -> Option<TargetPacer> {
        self.targets.clone()
    }

    /// Whether connections are opened besides those of the passes.
    pub(super) fn set_talking(&mut self, talking: bool) {
        if core::mem::replace(&mut self.talking, talking) != talking {
            self.share();
        }
    }

    /// Divides the limits between the loop and all connections, where both send.
    fn share(&self) {
        let raw = self.running.iter().any(|running| matches!(running.how, How::Raw(_)));
        let connect = self.talking || self.running.iter().any(|running| matches!(running.how, How::Connect(_)));
        let granted = if raw && connect { half(self.limits) } else { self.limits };
        self.connects.lock().unwrap_or_else(PoisonError::into_inner).set_limits(clock::now(), granted);
        if let Some(station) = &self.station {
            // A loop that has ended sends nothing.
            let _ = station.handle().set_limits(granted);
        }
    }

    /// Targets, targets begun, packets sent and answers of the passes begun since [`Engines::forget`].
    pub(super) fn progress(&self) -> (u64, u64, u64, u64) {
        let sum = |of: fn(&Progress) -> u64| self.watched.iter().map(|(_, progress)| of(progress)).sum();
        let total = self.watched.iter().map(|(total, _)| total).sum();
        (total, sum(Progress::next), sum(Progress::sent_packets), sum(Progress::answers))
    }

    /// Forgets how ended passes stood.
    pub(super) fn forget(&mut self) {
        self.watched.clear();
    }

    /// Counters of the loop.
    pub(super) fn stats(&self) -> Option<DriveStats> {
        self.station.as_ref().map(|station| station.handle().stats())
    }
}

fn target_pacer(limits: TargetLimits) -> Result<Option<TargetPacer>, StandaloneError> {
    TargetPacer::random(limits).map_err(|error| std::io::Error::other(error.to_string())).map_err(system("draw random numbers"))
}

fn half(limits: Limits) -> Limits {
    let packets = limits.packets.map(|rate| PacketsPerSecond::new(rate.get() / 2).unwrap_or(rate));
    let bits = limits.bits.map(|rate| BitsPerSecond::new(rate.get() / 2).unwrap_or(rate));
    Limits { packets, bits, ..limits }
}

/// Random bytes of the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], StandaloneError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string())).map_err(system("draw random numbers"))?;
    Ok(bytes)
}
