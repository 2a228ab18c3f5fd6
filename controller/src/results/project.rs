//! What records mean: which positions of a batch count, and which answers, services and hosts they give. Pure.
//!
//! **Invariant:** a position of a part counts once: the batch that came first has it.
//! **Invariant:** nothing is taken for a position that lies outside the lease it came under.

use std::collections::HashSet;
use std::net::IpAddr;

use picket_wire::addr::canonical;
use picket_wire::capture::Captured;
use picket_wire::host::{HostBatch, HostSeen};
use picket_wire::ids::{LeaseId, SiteName};
use picket_wire::job::Transport;
use picket_wire::result::{Coverage, EXTRAS_MAX, LateBatch, Record, ResultBatch};
use picket_wire::service::ServiceBatch;
use picket_wire::space::{Target, TargetSpace};
use picket_wire::units::UnixMillis;

use crate::jobs::ranges::{Span, Spans};
use crate::store::{BatchRow, Fate, LateRow, LeaseRecord, LinkHostRow, Observation, OverRow, PortRow, Projection, ServiceRow};

/// Where a batch came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The probe's key in the database.
    pub probe: i64,
    /// Its site.
    pub site: &'a SiteName,
    /// The stream's key in the database.
    pub stream: i64,
    /// The record's number there.
    pub sequence: u64,
    /// When it came.
    pub received: UnixMillis,
    /// The protocol of the job's ports.
    pub transport: Option<Transport>,
}

/// The lease whose findings a record tells; none for records about other things.
pub fn lease_of(record: &Record) -> Option<LeaseId> {
    match record {
        Record::Batch(batch) => Some(batch.lease),
        Record::Late(late) => Some(late.lease),
        Record::Services(services) => Some(services.lease),
        Record::Hosts(hosts) => Some(hosts.lease),
        Record::Paths(paths) => Some(paths.lease),
        Record::Captured(captured) => Some(captured.lease),
        Record::LeaseEnded { .. } | Record::JobRefused { .. } | Record::Loss { .. } => None,
    }
}

/// What a capture came to. The job captures; the inner error says why it is not believed.
pub fn captured(captured: &Captured, captures: bool, origin: Origin<'_>, out: &mut Projection) -> Result<Fate, String> {
    if !captures {
        return Err(format!("lease {} is of no capture", captured.lease));
    }
    captured.check().map_err(|error| error.to_string())?;
    let over = Captured { began: origin.moment(captured.began), ended: origin.moment(captured.ended), ..captured.clone() };
    out.overs.push(OverRow { probe: origin.probe, site: origin.site.clone(), came: origin.received, over });
    Ok(Fate::Counted)
}

/// Whether a batch may count under a lease at all; the reason why not.
pub fn belongs(batch: &ResultBatch, lease: &LeaseRecord) -> Result<(), String> {
    if batch.from < lease.span.from || batch.to > lease.span.to {
        return Err(format!(
            "positions {} to {} are not all in lease {} ({} to {})",
            batch.from, batch.to, batch.lease, lease.span.from, lease.span.to
        ));
    }
    Ok(())
}

/// Adds what counts of a batch to `out`: the positions of it that are not in `covered`. The batch has passed its own check,
/// which gave `whole`. Gives the pieces that count.
pub fn project(
    batch: &ResultBatch,
    whole: Coverage,
    part: u32,
    covered: &Spans,
    space: &TargetSpace,
    origin: Origin<'_>,
    out: &mut Projection,
) -> (Fate, Vec<(Span, Coverage)>) {
    let range = Span { from: batch.from, to: batch.to };
    let missing = covered.missing(range);
    let fate = match missing.as_slice() {
        [] => return (Fate::Superseded, Vec::new()),
        [all] if *all == range => Fate::Counted,
        _ => Fate::PartlySuperseded,
    };
    let mut pieces: Vec<(Span, Coverage)> = missing.iter().map(|span| (*span, clip(batch, *span))).collect();
    if fate == Fate::Counted {
        pieces = vec![(range, whole)];
    }
    // What was sent for the batch is counted once, with its first piece.
    for (index, (_, coverage)) in pieces.iter_mut().enumerate() {
        coverage.packets = if index == 0 { batch.packets } else { 0 };
    }
    let counts = |position: u64| missing.iter().any(|span| span.from <= position && position < span.to);
    let seen = batch.started.after(batch.took);
    for answer in batch.answers() {
        let position = batch.from + answer.offset;
        let target = space.target(position).filter(|_| fate == Fate::Counted || counts(position));
        let Some((target, rank)) = target.and_then(|target| Some((target, space.index(target)?))) else { continue };
        let observation = Observation {
            job: batch.lease.job,
            rank,
            probe: origin.probe,
            state: answer.state,
            rtt_us: u64::try_from(answer.rtt.as_micros()).unwrap_or(u64::MAX >> 1),
            ttl: answer.ttl,
            seen,
        };
        out.observations.push(observation);
        out.ports.push(origin.port_row(target, observation));
    }
    for (index, (span, coverage)) in pieces.iter().enumerate() {
        out.batches.push(BatchRow {
            lease: batch.lease,
            part,
            span: *span,
            probe: origin.probe,
            stream: origin.stream,
            sequence: origin.sequence,
            started: batch.started,
            took_ms: u64::try_from(batch.took.as_millis()).unwrap_or(u64::MAX >> 1),
            duplicates: if index == 0 { batch.duplicates } else { 0 },
            coverage: *coverage,
        });
    }
    (fate, pieces)
}

impl Origin<'_> {
    fn port_row(&self, Target { addr, port }: Target, answer: Observation) -> PortRow {
        PortRow { site: self.site.clone(), addr, port, transport: self.transport.filter(|_| port.is_some()), answer }
    }

    /// A moment that a probe told, which may be wrong: never after the record came.
    pub(super) fn moment(&self, told: UnixMillis) -> UnixMillis {
        told.min(self.received)
    }
}

pub(super) fn inside(lease: &LeaseRecord, id: LeaseId, position: u64) -> Result<(), String> {
    match (lease.span.from..lease.span.to).contains(&position) {
        true => Ok(()),
        false => Err(format!("position {position} is not in lease {id} ({} to {})", lease.span.from, lease.span.to)),
    }
}

fn not_too_many(what: &str, count: usize) -> Result<(), String> {
    if count > EXTRAS_MAX { Err(format!("{count} {what} in one record, at most {EXTRAS_MAX} are allowed")) } else { Ok(()) }
}

/// Adds late answers to `out`. Which of them count, the database decides: where the batch on their position reported silence.
pub fn late(batch: &LateBatch, lease: &LeaseRecord, space: &TargetSpace, origin: Origin<'_>, out: &mut Projection) -> Result<Fate, String> {
    not_too_many("late answers", batch.answers.len())?;
    let mut rows = Vec::with_capacity(batch.answers.len());
    for answer in &batch.answers {
        inside(lease, batch.lease, answer.position)?;
        let target = space.target(answer.position).ok_or("a position beyond the job's targets")?;
        let rank = space.index(target).ok_or("a position without a target")?;
        let observation = Observation {
            job: batch.lease.job,
            rank,
            probe: origin.probe,
            state: answer.state,
            rtt_us: u64::try_from(answer.rtt.decode().as_micros()).unwrap_or(u64::MAX >> 1),
            ttl: answer.ttl,
            seen: origin.received,
        };
        rows.push(LateRow { lease: batch.lease, part: lease.part, position: answer.position, row: origin.port_row(target, observation) });
    }
    out.lates.extend(rows);
    Ok(Fate::Counted)
}

/// Adds services to `out`.
pub fn services(
    batch: &ServiceBatch,
    lease: &LeaseRecord,
    space: &TargetSpace,
    origin: Origin<'_>,
    out: &mut Projection,
) -> Result<Fate, String> {
    batch.check().map_err(|error| error.to_string())?;
    let transport = origin.transport.ok_or("services of a job without ports")?;
    let mut rows = Vec::with_capacity(batch.found.len());
    for found in &batch.found {
        inside(lease, batch.lease, found.position)?;
        let target = space.target(found.position).ok_or("a position beyond the job's targets")?;
        let (rank, port) = space.index(target).zip(target.port).ok_or("a position without a port")?;
        rows.push(ServiceRow {
            site: origin.site.clone(),
            addr: target.addr,
            port,
            transport,
            job: batch.lease.job,
            rank,
            probe: origin.probe,
            outcome: found.outcome.clone(),
            seen: origin.moment(batch.at),
        });
    }
    out.services.extend(rows);
    Ok(Fate::Counted)
}

/// Adds hosts seen on a link to `out`. They need not be targets of the job.
pub fn hosts(batch: &HostBatch, origin: Origin<'_>, out: &mut Projection) -> Result<Fate, String> {
    not_too_many("hosts", batch.hosts.len())?;
    if let Some(host) = batch.hosts.iter().find(|host| !is_host(host.addr)) {
        return Err(format!("{} is no address of a host", host.addr));
    }
    let row = |host: &HostSeen| LinkHostRow {
        site: origin.site.clone(),
        host: HostSeen { addr: canonical(host.addr), ..*host },
        job: batch.lease.job,
        probe: origin.probe,
        seen: origin.moment(batch.at),
    };
    out.link_hosts.extend(batch.hosts.iter().map(row));
    Ok(Fate::Counted)
}

fn is_host(addr: IpAddr) -> bool {
    let addr = canonical(addr);
    let broadcast = matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    !addr.is_unspecified() && !addr.is_multicast() && !addr.is_loopback() && !broadcast
}

/// The positions that a batch reported as silent.
#[derive(Debug, Clone)]
pub struct Silence {
    from: u64,
    to: u64,
    answered: HashSet<u64>,
    /// Refused or never asked: half-open ranges of offsets.
    not_asked: Vec<(u64, u64)>,
}

impl Silence {
    /// Those of a batch.
    pub fn of(batch: &ResultBatch) -> Self {
        let runs = core::iter::once(batch.refused()).chain(batch.not_reached().iter().map(|(_, runs)| runs));
        Self {
            from: batch.from,
            to: batch.to,
            answered: batch.answers().map(|answer| answer.offset).collect(),
            not_asked: runs.flat_map(|runs| runs.spans()).collect(),
        }
    }

    /// Whether a position was asked and stayed silent.
    pub fn holds(&self, position: u64) -> bool {
        let Some(offset) = position.checked_sub(self.from).filter(|_| position < self.to) else { return false };
        !self.answered.contains(&offset) && !self.not_asked.iter().any(|(from, to)| (*from..*to).contains(&offset))
    }
}

/// The coverage of one piece of a batch, packets left out.
fn clip(batch: &ResultBatch, piece: Span) -> Coverage {
    let inside = |from: u64, to: u64| {
        let (from, to) = (batch.from.saturating_add(from), batch.from.saturating_add(to));
        Span { from: from.max(piece.from), to: to.min(piece.to) }.len()
    };
    let mut coverage = Coverage { asked: piece.len(), ..Coverage::default() };
    for answer in batch.answers().filter(|answer| inside(answer.offset, answer.offset + 1) == 1) {
        coverage.add_answers(answer.state, 1);
    }
    coverage.refused = batch.refused().spans().map(|(from, to)| inside(from, to)).sum();
    coverage.not_reached = batch.not_reached().iter().flat_map(|(_, runs)| runs.spans()).map(|(from, to)| inside(from, to)).sum();
    coverage.silent = coverage.asked - coverage.answered() - coverage.refused - coverage.not_reached;
    coverage
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use picket_wire::result::State;

    use picket_wire::addr::parse_set;
    use picket_wire::ids::{JobId, LeaseId};
    use picket_wire::result::{Answer, BatchHead, NotReached, Runs};
    use picket_wire::space::TargetSpec;
    use picket_wire::units::UnixMillis;
    use proptest::prelude::*;

    use super::*;

    fn space() -> TargetSpace {
        let spec = TargetSpec {
            include: parse_set("198.18.0.0/24").unwrap(),
            exclude: Default::default(),
            ports: Some("1-10".parse().unwrap()),
            seed: 5,
        };
        TargetSpace::new(&spec).unwrap()
    }

    fn batch(from: u64, to: u64) -> ResultBatch {
        let answer = |offset| Answer { offset, state: State::Open, rtt: Duration::from_micros(80), ttl: 64 };
        let lease = LeaseId { job: JobId(1), grant: 1 };
        let head = BatchHead {
            lease,
            from,
            to,
            started: UnixMillis(1000),
            took: Duration::from_millis(50),
            packets: 2 * (to - from),
            duplicates: 1,
        };
        let answers = (0..to - from).filter(|offset| offset % 3 == 0).map(answer).collect();
        let refused = Runs::from_ascending((0..to - from).filter(|offset| offset % 3 == 1 && offset % 2 == 0));
        let lost = Runs::from_ascending((0..to - from).filter(|offset| offset % 9 == 5 && offset % 2 == 1));
        ResultBatch::new(head, answers, refused, vec![(NotReached::NoRoute, lost)])
    }

    #[test]
    fn silence_is_what_nothing_else_was_said_of() {
        let batch = batch(100, 160);
        let silence = Silence::of(&batch);
        let silent = (0..300).filter(|position| silence.holds(*position)).count() as u64;
        assert_eq!(silent, batch.check().unwrap().silent);
        assert!(!silence.holds(99) && !silence.holds(160) && !silence.holds(100));
    }

    proptest! {
        #[test]
        fn pieces_add_up_whatever_came_before(earlier in proptest::collection::vec((0u64..200, 1u64..40), 0..6), from in 0u64..150, len in 1u64..60) {
            let (space, site) = (space(), "attic".parse().unwrap());
            let origin = Origin { probe: 1, site: &site, stream: 1, sequence: 1, received: UnixMillis(5000), transport: Some(Transport::Tcp) };
            let mut covered = Spans::default();
            let mut out = Projection::default();
            let mut total = Coverage::default();
            for batch in earlier.into_iter().map(|(from, len)| batch(from, from + len)).chain([batch(from, from + len)]) {
                let whole = batch.check().unwrap();
                let (fate, pieces) = project(&batch, whole, 0, &covered, &space, origin, &mut out);
                for (span, coverage) in pieces {
                    prop_assert!(coverage.adds_up() && coverage.asked == span.len());
                    prop_assert!(fate != Fate::Counted || coverage == whole);
                    covered.insert(span);
                    total += coverage;
                }
            }
            prop_assert_eq!(total.asked, covered.len());
            prop_assert_eq!(total.open, out.observations.len() as u64);
            let mut ranks: Vec<u64> = out.observations.iter().map(|answer| answer.rank).collect();
            ranks.sort_unstable();
            ranks.dedup();
            prop_assert_eq!(ranks.len(), out.observations.len());
        }
    }
}
