//! What a run has found, pass by pass: rows for the formats, and the coverage that adds up.
//!
//! It must not know formats, files, terminals or where the results come from: live from the engines, or again from a resume file.
//!
//! **Invariant:** of each pass, answered + silent + refused + not reached = its targets once [`PassState::close`] was called.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use picket_wire::addr::AddrSet;
use picket_wire::host::HostSeen;
use picket_wire::job::{Technique, Transport};
use picket_wire::result::{Answer, BatchError, Coverage, LateAnswer, NotReached, ResultBatch, State};
use picket_wire::service::ServiceOutcome;
use picket_wire::space::{Target, TargetSpace};
use picket_wire::units::PortSet;

use super::Outcome;
use crate::scan::report::ProxySeen;

/// What one pass does: one technique at one target space.
#[derive(Debug, Clone)]
pub(super) struct PassHead {
    /// What is sent.
    pub(super) technique: Technique,
    /// Whether it only serves to find the hosts whose ports are asked afterwards.
    pub(super) discovery: bool,
    /// Its ports, where it has any.
    pub(super) ports: Option<PortSet>,
    /// Its targets. `None` where discovery left none.
    pub(super) space: Option<Arc<TargetSpace>>,
}

impl PassHead {
    /// How many ports each of its hosts has; 1 where it asks hosts.
    pub(super) fn width(&self) -> u64 {
        self.ports.as_ref().map_or(1, |ports| ports.len().into())
    }

    /// What is asked: `hosts`, `tcp`, `udp`, `sctp`.
    pub(super) fn what(&self) -> &'static str {
        self.technique.transport().map_or("hosts", Transport::as_str)
    }

    /// Whether an address is among its targets.
    pub(super) fn holds(&self, addr: IpAddr) -> bool {
        let port = self.ports.as_ref().and_then(|ports| ports.nth(0));
        self.space.as_ref().is_some_and(|space| space.index(Target { addr, port }).is_some())
    }

    /// Where the target of a row stands in its order.
    pub(super) fn position(&self, row: &Row) -> Option<u64> {
        self.space.as_ref()?.position(Target { addr: row.addr, port: row.port })
    }

    /// How many targets it has.
    pub(super) fn len(&self) -> u64 {
        self.space.as_ref().map_or(0, |space| space.len())
    }
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) addr: IpAddr,
    pub(super) port: Option<u16>,
    pub(super) technique: Technique,
    pub(super) state: State,
    pub(super) rtt: Duration,
    /// 0 where it is not known.
    pub(super) ttl: u8,
    /// When it was found, to the second or so.
    pub(super) at: SystemTime,
    /// What was seen of it on the probe's own link.
    pub(super) seen: Option<HostSeen>,
}

impl Row {
    /// The transport protocol, where it speaks of a port.
    pub(super) fn transport(&self) -> Option<Transport> {
        self.technique.transport()
    }

    /// Whether the host says by this answer that it is there.
    pub(super) fn shows_host(&self) -> bool {
        !matches!(self.state, State::FilteredBy { .. })
    }
}

/// What serves on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The open port.
    pub(super) row: Row,
    /// What asking it came to.
    pub(super) outcome: ServiceOutcome,
}

/// How a number of targets fared, with the reasons.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) coverage: Coverage,
    pub(super) not_reached: BTreeMap<NotReached, u64>,
    pub(super) duplicates: u64,
    pub(super) late: u64,
}

impl Tally {
    /// Counts targets that were never asked.
    pub(super) fn never(&mut self, why: NotReached, count: u64) {
        if count > 0 {
            self.coverage += Coverage { asked: count, not_reached: count, ..Coverage::default() };
            *self.not_reached.entry(why).or_default() += count;
        }
    }

    fn add(&mut self, batch: &ResultBatch) -> Result<(), BatchError> {
        self.coverage += batch.check()?;
        for (why, runs) in batch.not_reached() {
            *self.not_reached.entry(*why).or_default() += runs.count();
        }
        self.duplicates += batch.duplicates;
        Ok(())
    }

    /// Adds what another one counts.
    pub(super) fn sum(&mut self, other: &Tally) {
        self.coverage += other.coverage;
        for (why, count) in &other.not_reached {
            *self.not_reached.entry(*why).or_default() += count;
        }
        self.duplicates += other.duplicates;
        self.late += other.late;
    }
}

/// How a pass stands.
#[derive(Debug, Clone)]
pub(super) struct PassState {
    pub(super) head: PassHead,
    pub(super) tally: Tally,
    /// One past the last position that was reported.
    pub(super) next: u64,
}

impl PassState {
    pub(super) fn new(head: PassHead) -> Self {
        Self { head, tally: Tally::default(), next: 0 }
    }

    /// Counts a batch; those of its answers whose state is `wanted` as rows, in natural order.
    pub(super) fn take(&mut self, batch: &ResultBatch, late: u64, wanted: impl Fn(State) -> bool) -> Result<Vec<Row>, BatchError> {
        self.tally.add(batch)?;
        self.tally.late += late;
        self.next = batch.to;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(batch.started.0) + batch.took;
        let answers = batch.answers().filter(|answer| wanted(answer.state));
        let mut rows: Vec<Row> = answers.filter_map(|answer| self.row(batch.from, &answer, at)).collect();
        rows.sort_unstable_by_key(|row| (row.addr, row.port));
        Ok(rows)
    }

    fn row(&self, from: u64, answer: &Answer, at: SystemTime) -> Option<Row> {
        let target = self.head.space.as_ref()?.target(from.checked_add(answer.offset)?)?;
        let Answer { state, rtt, ttl, .. } = *answer;
        Some(Row { addr: target.addr, port: target.port, technique: self.head.technique, state, rtt, ttl, at, seen: None })
    }

    /// Counts an answer that came after its range was reported as silent.
    pub(super) fn take_late(&mut self, answer: &LateAnswer, at: SystemTime) -> Option<Row> {
        let LateAnswer { position, state, rtt, ttl } = *answer;
        let row = self.row(0, &Answer { offset: position, state, rtt: rtt.decode(), ttl }, at)?;
        self.tally.coverage.silent = self.tally.coverage.silent.checked_sub(1)?;
        self.tally.coverage.add_answers(state, 1);
        Some(row)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_complete(&self) -> bool {
        self.next >= self.head.len()
    }

    /// Counts what was not begun as stopped, and what discovery kept out by its own reasons.
    pub(super) fn close(&mut self, discovery: Option<&Tally>) {
        self.tally.never(NotReached::Stopped, self.head.len().saturating_sub(self.next));
        let Some(discovery) = discovery else { return };
        let width = self.head.width();
        self.tally.coverage +=
            Coverage { asked: discovery.coverage.refused * width, refused: discovery.coverage.refused * width, ..Coverage::default() };
        for (why, count) in &discovery.not_reached {
            self.tally.never(*why, count * width);
        }
        let reached = self.head.space.as_ref().map_or(0, |space| space.addresses());
        let rest = discovery.coverage.asked - discovery.coverage.refused - discovery.coverage.not_reached;
        self.tally.never(NotReached::HostDown, rest.saturating_sub(reached) * width);
    }
}

/// How the open ports fared that services were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ServiceTally {
    pub(super) open: u64,
    pub(super) identified: u64,
    pub(super) unidentified: u64,
    pub(super) silent: u64,
    pub(super) spared: u64,
    pub(super) lost: u64,
    pub(super) refused: u64,
    /// Open, and the run was stopped before they were asked.
    pub(super) stopped: u64,
}

impl ServiceTally {
    pub(super) fn add(&mut self, outcome: &ServiceOutcome) {
        *match outcome {
            ServiceOutcome::Identified(_) => &mut self.identified,
            ServiceOutcome::Unidentified { .. } => &mut self.unidentified,
            ServiceOutcome::Silent => &mut self.silent,
            ServiceOutcome::Spared => &mut self.spared,
            ServiceOutcome::Lost(_) => &mut self.lost,
            ServiceOutcome::Refused => &mut self.refused,
        } += 1;
    }

    /// Open ports with an outcome.
    pub(super) fn done(&self) -> u64 {
        self.identified + self.unidentified + self.silent + self.spared + self.lost + self.refused
    }

    /// The parts with their names, in the order in which they are shown.
    pub(super) fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("identified", self.identified),
            ("unidentified", self.unidentified),
            ("silent", self.silent),
            ("spared", self.spared),
            ("lost", self.lost),
            ("refused", self.refused),
            ("stopped", self.stopped),
        ]
    }
}

/// What is known before the first packet.
#[derive(Debug, Clone)]
pub(super) struct RunHead {
    /// The command line, for those formats that keep it.
    pub(super) arguments: String,
    pub(super) started: SystemTime,
    /// The addresses asked for, exclusions taken out.
    pub(super) targets: AddrSet,
    /// Names that targets were given by, with their addresses.
    pub(super) names: Vec<(String, Vec<IpAddr>)>,
    /// Whether open ports are asked what serves there.
    pub(super) services: bool,
    /// Whether the aim is ports.
    pub(super) ports: bool,
    /// Whether people want to see closed and filtered ports too.
    pub(super) all: bool,
}

impl RunHead {
    /// The name that an address was given by.
    pub(super) fn name_of(&self, addr: IpAddr) -> Option<&str> {
        self.names.iter().find(|(_, addrs)| addrs.contains(&addr)).map(|(name, _)| name.as_str())
    }
}

/// How the whole run ended.
#[derive(Debug, Clone)]
pub(super) struct Summary {
    pub(super) passes: Vec<PassState>,
    pub(super) services: Option<ServiceTally>,
    /// Hardware addresses that answered for very many addresses.
    pub(super) proxies: Vec<ProxySeen>,
    /// Targets taken out by exclusions.
    pub(super) excluded: u64,
    pub(super) took: Duration,
    pub(super) ended: SystemTime,
    pub(super) outcome: Outcome,
}

impl Summary {
    /// The passes that are the aim of the run: without a discovery that only served them.
    pub(super) fn aims(&self) -> impl Iterator<Item = &PassState> {
        self.passes.iter().filter(|pass| !pass.head.discovery)
    }

    /// The discovery that came first.
    pub(super) fn discovery(&self) -> Option<&PassState> {
        self.passes.iter().find(|pass| pass.head.discovery)
    }

    /// The targets asked for and how they fared; packets over everything.
    pub(super) fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.aims().for_each(|pass| total.sum(&pass.tally));
        if let Some(discovery) = self.discovery() {
            total.coverage.packets += discovery.tally.coverage.packets;
            total.duplicates += discovery.tally.duplicates;
            total.late += discovery.tally.late;
        }
        total
    }
}

/// What a format is told on the way.
pub(super) enum News<'a> {
    /// A range of a pass is finished; all its answers, in natural order.
    Chunk { pass: &'a PassHead, batch: &'a ResultBatch, rows: &'a [Row] },
    /// Answers that came after their range was reported.
    Late { pass: &'a PassHead, rows: &'a [Row] },
    /// What serves on an open port.
    Service(&'a Found),
    /// Open ports that were never asked what serves there, right before the end.
    Unserved(&'a [Row]),
    /// Hosts on the probe's own link that were no targets.
    Hosts(&'a [HostSeen]),
}

/// A machine-readable name for a reason.
pub(super) fn reason_key(why: NotReached) -> &'static str {
    match why {
        NotReached::NoNeighbour => "no_neighbour",
        NotReached::NoRoute => "no_route",
        NotReached::LinkError => "link_error",
        NotReached::Stopped => "stopped",
        NotReached::HostDown => "host_down",
    }
}
