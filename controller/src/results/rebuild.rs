//! Projections made anew from the raw records, by the same rules and in the same order as at first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use picket_wire::codec;
use picket_wire::ids::{JobId, ProbeId};
use picket_wire::job::{Mode, Transport};
use picket_wire::result::Record;
use picket_wire::space::TargetSpace;
use picket_wire::trace::TraceOptions;

use super::project::{self, Origin};
use super::traced::{self, Tracing};
use crate::jobs::ranges::Spans;
use crate::store::{Fate, JobStored, LeaseRecord, ProbeRecord, Projection, Projector, RawRecord};

struct Known {
    space: Arc<TargetSpace>,
    transport: Option<Transport>,
    trace: Option<TraceOptions>,
    /// Whether positions were given to several probes, one after the other.
    handed_on: bool,
    captures: bool,
    leases: HashMap<u32, LeaseRecord>,
    covered: BTreeMap<u32, Spans>,
}

/// Remembers what is covered while it reads all records.
pub struct Rebuild {
    jobs: HashMap<JobId, Known>,
    probes: HashMap<ProbeId, ProbeRecord>,
}

impl Rebuild {
    /// Ready to read the records of these probes for these jobs; jobs whose space cannot be built are left out.
    pub fn new(jobs: Vec<JobStored>, probes: Vec<ProbeRecord>) -> Self {
        let known = |stored: JobStored| {
            let space = Arc::new(stored.job.spec.space().ok()?);
            let handed_on = stored.job.spec.mode == Mode::Split && stored.leases.iter().any(|lease| lease.attempt > 0);
            let leases = stored.leases.into_iter().map(|lease| (lease.number, lease)).collect();
            let transport = stored.job.spec.kind.scan().technique.transport();
            let trace = stored.job.spec.kind.trace().cloned();
            let captures = stored.job.spec.kind.capture().is_some();
            Some((stored.job.spec.id, Known { space, transport, trace, handed_on, captures, leases, covered: BTreeMap::new() }))
        };
        Self {
            jobs: jobs.into_iter().filter_map(known).collect(),
            probes: probes.into_iter().map(|probe| (probe.id.clone(), probe)).collect(),
        }
    }

    fn read(&mut self, probe: &ProbeId, raw: &RawRecord, out: &mut Projection) -> Result<Fate, String> {
        let record: Record = codec::decode(&raw.bytes).map_err(|error| error.to_string())?;
        let Some(id) = project::lease_of(&record) else { return Ok(Fate::Counted) };
        let unknown = || format!("lease {id} was never granted to this probe");
        let job = self.jobs.get_mut(&id.job).ok_or_else(unknown)?;
        let lease = job.leases.get(&id.grant).filter(|lease| lease.probe == *probe).ok_or_else(unknown)?;
        let origin = self.probes.get(probe).ok_or_else(unknown)?;
        let origin = Origin {
            probe: origin.key,
            site: &origin.site,
            stream: raw.stream,
            sequence: raw.sequence,
            received: raw.received,
            transport: job.transport,
        };
        match &record {
            Record::Batch(batch) => {
                let whole = batch.check().map_err(|error| error.to_string())?;
                project::belongs(batch, lease)?;
                let covered = job.covered.entry(lease.part).or_default();
                let (fate, pieces) = project::project(batch, whole, lease.part, covered, &job.space, origin, out);
                if let Some(options) = &job.trace {
                    traced::ends(batch, &pieces, &job.space, Tracing { options, handed_on: job.handed_on }, origin, out);
                }
                pieces.into_iter().for_each(|(span, _)| covered.insert(span));
                Ok(fate)
            }
            Record::Late(late) => project::late(late, lease, &job.space, origin, out),
            Record::Services(services) => project::services(services, lease, &job.space, origin, out),
            Record::Hosts(hosts) => project::hosts(hosts, origin, out),
            Record::Paths(paths) => {
                let tracing = job.trace.as_ref().map(|options| Tracing { options, handed_on: job.handed_on });
                traced::paths(paths, lease, job.covered.entry(lease.part).or_default(), &job.space, tracing, origin, out)
            }
            Record::Captured(captured) => project::captured(captured, job.captures, origin, out),
            Record::LeaseEnded { .. } | Record::JobRefused { .. } | Record::Loss { .. } => Ok(Fate::Counted),
        }
    }
}

impl Projector for Rebuild {
    fn project(&mut self, probe: &ProbeId, record: &RawRecord, out: &mut Projection) -> (Fate, Option<String>) {
        match self.read(probe, record, out) {
            Ok(fate) => (fate, None),
            Err(reason) => (Fate::Rejected, Some(reason)),
        }
    }
}
