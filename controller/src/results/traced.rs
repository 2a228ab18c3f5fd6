//! Rows of paths: which of those that a probe tells count, and what is known where nothing could be sent. Pure.
//!
//! Probes tell paths before the batch that covers their positions. Of a job whose probes share the work, one path to each destination counts, as one
//! answer does: that of the probe whose batch counts there. A probe that lost its lease and tells its paths late tells what another one has
//! told; the record is kept, and it is no row.
//!
//! A destination to which nothing could be sent, since there was no route or since policy forbade it, has no path, only a position in a batch. Where an
//! older path to it is known, that would go on being the latest; so such an end becomes a row of its own then, without hops.
//!
//! **Invariant:** of a job whose work is shared, a position that is covered has at most one row, of the probe that covered it.

use picket_wire::path::{PathBatch, TracedPath};
use picket_wire::result::{Coverage, EXTRAS_MAX, NotReached, ResultBatch};
use picket_wire::space::TargetSpace;
use picket_wire::trace::{Path, PathEnd, TraceOptions};
use picket_wire::units::UnixMillis;

use super::project::{Origin, inside};
use crate::jobs::ranges::{Span, Spans};
use crate::store::{Fate, LeaseRecord, PathRow, Projection, SettledPath, Trace};

/// How a job traces.
#[derive(Debug, Clone, Copy)]
pub struct Tracing<'a> {
    /// What is asked.
    pub options: &'a TraceOptions,
    /// Whether positions may have been given to several probes, one after the other.
    pub handed_on: bool,
}

/// Adds paths to `out`, but those at positions of the lease's part that are `covered` already.
pub fn paths(
    batch: &PathBatch,
    lease: &LeaseRecord,
    covered: &Spans,
    space: &TargetSpace,
    tracing: Option<Tracing<'_>>,
    origin: Origin<'_>,
    out: &mut Projection,
) -> Result<Fate, String> {
    batch.check().map_err(|error| error.to_string())?;
    let options = tracing.ok_or("paths of a job that does not trace")?.options;
    let mut rows = Vec::with_capacity(batch.paths.len());
    for path in &batch.paths {
        inside(lease, batch.lease, path.position)?;
        let target = space.target(path.position).ok_or("a position beyond the job's targets")?;
        let rank = space.index(target).ok_or("a position without a target")?;
        if covered.missing(Span { from: path.position, to: path.position + 1 }).is_empty() {
            continue;
        }
        let before = |at: UnixMillis, ms: u32| UnixMillis(at.0.saturating_sub(ms.into()));
        let seen = before(origin.moment(batch.at), path.ago_ms);
        // Quotations were packed with what the probe sent, which is what the job asks for.
        let options = TraceOptions { tos: batch.tos, ..options.clone() };
        let source = batch.sources.iter().find(|source| source.is_ipv4() == target.addr.is_ipv4()).copied();
        rows.push(PathRow {
            site: origin.site.clone(),
            job: batch.lease.job,
            rank,
            probe: origin.probe,
            dst: target.addr,
            began: before(seen, path.took_ms),
            seen,
            trace: Trace { options, source, path: path.clone() },
        });
    }
    let fate = match rows.len() {
        counted if counted == batch.paths.len() => Fate::Counted,
        0 => Fate::Superseded,
        _ => Fate::PartlySuperseded,
    };
    out.paths.extend(rows);
    Ok(fate)
}

/// Adds what a batch means for paths, of which `pieces` count: ends without a path (probes have some hundred positions in a batch; no more than
/// [`EXTRAS_MAX`] of each kind are taken), and whose paths are to stay.
pub fn ends(
    batch: &ResultBatch,
    pieces: &[(Span, Coverage)],
    space: &TargetSpace,
    tracing: Tracing<'_>,
    origin: Origin<'_>,
    out: &mut Projection,
) {
    let counts = |position: &u64| pieces.iter().any(|(span, _)| (span.from..span.to).contains(position));
    let target = |position: u64| space.target(position).and_then(|target| Some((target, space.index(target)?)));
    let no_route = |why: &NotReached| matches!(why, NotReached::NoRoute | NotReached::NoNeighbour);
    let unsent = batch.not_reached().iter().filter(|(why, _)| no_route(why)).map(|(_, runs)| (runs, PathEnd::NoRoute));
    for (runs, end) in unsent.chain([(batch.refused(), PathEnd::Refused)]) {
        for position in runs.iter().map(|offset| batch.from + offset).filter(counts).take(EXTRAS_MAX) {
            let Some((target, rank)) = target(position) else { continue };
            let path = Path { dst: target.addr, end, hops: Vec::new(), sent: 0, mtu: None };
            let path = TracedPath::path(position, core::time::Duration::ZERO, &path, tracing.options.tos);
            out.path_ends.push(PathRow {
                site: origin.site.clone(),
                job: batch.lease.job,
                rank,
                probe: origin.probe,
                dst: target.addr,
                began: origin.moment(batch.started),
                seen: origin.moment(batch.started.after(batch.took)),
                trace: Trace { options: tracing.options.clone(), source: None, path },
            });
        }
    }
    if tracing.handed_on {
        let positions = pieces.iter().flat_map(|(span, _)| span.from..span.to);
        let ranks = positions.filter_map(|position| target(position).map(|(_, rank)| rank));
        out.settled_paths.extend(ranks.map(|rank| SettledPath { job: batch.lease.job, rank, probe: origin.probe }));
    }
}
