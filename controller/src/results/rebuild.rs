//! Projections made anew from the raw records, by the same rules and in the same order as at first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use picket_wire::codec;
use picket_wire::ids::{JobId, ProbeId};
use picket_wire::result::Record;
use picket_wire::space::TargetSpace;

use super::project::{self, Origin};
use crate::jobs::ranges::Spans;
use crate::store::{Fate, JobStored, LeaseRecord, ProbeRecord, Projection, Projector, RawRecord};

struct Known {
    space: Arc<TargetSpace>,
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
            let space = Arc::new(TargetSpace::new(&stored.job.spec.targets).ok()?);
            let leases = stored.leases.into_iter().map(|lease| (lease.number, lease)).collect();
            Some((stored.job.spec.id, Known { space, leases, covered: BTreeMap::new() }))
        };
        Self {
            jobs: jobs.into_iter().filter_map(known).collect(),
            probes: probes.into_iter().map(|probe| (probe.id.clone(), probe)).collect(),
        }
    }

    fn read(&mut self, probe: &ProbeId, record: &RawRecord, out: &mut Projection) -> Result<Fate, String> {
        let Record::Batch(batch) = codec::decode(&record.bytes).map_err(|error| error.to_string())? else { return Ok(Fate::Counted) };
        let whole = batch.check().map_err(|error| error.to_string())?;
        let unknown = || format!("lease {} was never granted to this probe", batch.lease);
        let job = self.jobs.get_mut(&batch.lease.job).ok_or_else(unknown)?;
        let lease = job.leases.get(&batch.lease.grant).filter(|lease| lease.probe == *probe).ok_or_else(unknown)?;
        project::belongs(&batch, lease)?;
        let origin = self.probes.get(probe).ok_or_else(unknown)?;
        let origin = Origin { probe: origin.key, site: &origin.site, stream: record.stream, sequence: record.sequence };
        let covered = job.covered.entry(lease.part).or_default();
        let (fate, pieces) = project::project(&batch, whole, lease.part, covered, &job.space, origin, out);
        pieces.into_iter().for_each(|(span, _)| covered.insert(span));
        Ok(fate)
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
