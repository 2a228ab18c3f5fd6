//! An engine on the station, from its first packet to its last word, whoever listens.
//!
//! **Invariant:** every destination is told once for each engine, also of a run that was interrupted.

use core::time::Duration;
use std::sync::Arc;

use picket_wire::trace::{Graph, PathEnd};
use tokio::sync::mpsc;

use super::output::{End, Printer, Traced};
use crate::net::clock;
use crate::net::drive::{DriveEvent, DriveGone, TaskSpec, Weight};
use crate::net::ports::RawIdentity;
use crate::standalone::Outcome;
use crate::standalone::engines::random;
use crate::standalone::error::StandaloneError;
use crate::standalone::prepare::Work;
use crate::standalone::progress::{ProgressLine, Standing};
use crate::standalone::signals::Signals;
use crate::station::Station;
use crate::trace::engine;
use crate::trace::report::{Event, Summary};
use crate::trace::spec::TracePlan;

/// How often the line on the progress changes.
const TICK: Duration = Duration::from_millis(250);

/// What takes what an engine tells.
pub(super) trait Listener {
    /// A path is over.
    fn path(&mut self, traced: &Traced<'_>) -> Result<(), StandaloneError>;

    /// All ways to a destination were looked for.
    fn graph(&mut self, graph: &Graph) -> Result<(), StandaloneError>;

    /// Time has passed; so many frames have left.
    fn tick(&mut self, sent: u64) {
        let _ = sent;
    }

    /// Something is said on standard error now.
    fn clear(&mut self) {}
}

/// The station, and who may stop it.
pub(super) struct Run {
    pub(super) station: Station<Event>,
    pub(super) events: mpsc::Receiver<DriveEvent<Event>>,
    pub(super) work: Work,
    pub(super) signals: Signals,
    /// Somebody wants it to end.
    pub(super) stopping: bool,
}

impl Run {
    /// Traces once, and writes what comes.
    pub(super) async fn once(mut self, plan: TracePlan, printer: Printer) -> Result<Outcome, StandaloneError> {
        let started = clock::now();
        let mut all = Once { total: plan.to - plan.from, done: 0, reached: 0, line: ProgressLine::new(started, None), printer };
        let sums = self.trace(plan, &mut all).await?;
        all.line.clear();
        let outcome = if self.stopping { Outcome::Incomplete } else { Outcome::Complete };
        all.printer.end(&End { outcome, sums, took: clock::now().saturating_since(started), at: clock::wall() })?;
        Ok(outcome)
    }

    /// Runs an engine to its end, or until somebody stops it.
    pub(super) async fn trace(&mut self, plan: TracePlan, listener: &mut impl Listener) -> Result<Summary, StandaloneError> {
        let ports = self.station.ports();
        // Each engine has a key of its own, so that no answer to another one is taken for one of its.
        let identity = RawIdentity { source: self.station.source(), base_port: ports.first(), ports, key: random()? };
        let permit = self.work.permit.clone();
        let task = TaskSpec {
            name: "trace".to_owned(),
            engine: engine::trace(plan, identity)?,
            weight: Weight::Interactive,
            rate: self.work.granted,
            targets: None,
            gate: Arc::new(move |addr| permit.permits(addr)),
        };
        let added = self.station.handle().add(task)?;
        let mut tick = tokio::time::interval(TICK);
        let mut sums = Summary::default();
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event.ok_or(DriveGone)?,
                () = self.signals.next(), if !self.stopping => {
                    listener.clear();
                    eprintln!("stopping");
                    self.stopping = true;
                    self.station.handle().cancel(added.id)?;
                    continue;
                }
                _ = tick.tick() => {
                    listener.tick(self.station.handle().stats().sent_packets);
                    continue;
                }
            };
            match event {
                DriveEvent::Task(_, Event::Path { path, begun, .. }) => {
                    let ended = clock::wall();
                    let lasted = begun.map_or(Duration::ZERO, |begun| clock::now().saturating_since(begun));
                    listener.path(&Traced { path: &path, began: ended.checked_sub(lasted).unwrap_or(ended), ended })?;
                }
                DriveEvent::Task(_, Event::Graph { graph, .. }) => listener.graph(&graph)?,
                DriveEvent::Task(_, Event::Done(summary)) => {
                    sums = summary;
                    if !self.stopping {
                        self.station.handle().cancel(added.id)?;
                    }
                }
                DriveEvent::Ended(id, _) if id == added.id => return Ok(sums),
                _ => {}
            }
        }
    }
}

/// Writes what comes, and shows how far it is.
struct Once {
    total: u64,
    done: u64,
    reached: u64,
    line: ProgressLine,
    printer: Printer,
}

impl Listener for Once {
    fn path(&mut self, traced: &Traced<'_>) -> Result<(), StandaloneError> {
        self.done += 1;
        self.reached += u64::from(traced.path.end == PathEnd::Reached);
        self.line.clear();
        Ok(self.printer.path(traced)?)
    }

    fn graph(&mut self, graph: &Graph) -> Result<(), StandaloneError> {
        self.done += 1;
        self.reached += u64::from(graph.end == PathEnd::Reached);
        self.line.clear();
        Ok(self.printer.graph(graph)?)
    }

    fn tick(&mut self, sent: u64) {
        let (total, begun, answers) = (self.total, self.done, self.reached);
        self.line.show(clock::now(), || Standing { stage: "paths", total, begun, packets: sent, answers, slow: Vec::new() });
    }

    fn clear(&mut self) {
        self.line.clear();
    }
}
