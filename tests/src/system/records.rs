//! What is in the controller's database that no interface shows: the raw records as probes sent them. Opened read-only.
//!
//! Invariant: nothing here changes the database.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use picket_wire::codec;
use picket_wire::ids::{JobId, LeaseId};
use picket_wire::job::JobSpec;
use picket_wire::result::{Record, ResultBatch};
use picket_wire::space::TargetSpace;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Row as _};

/// One raw record.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The probe that sent it.
    pub probe: String,
    /// The life of its spool.
    pub stream: i64,
    /// Its number there.
    pub sequence: i64,
    /// 0 counted, 1 superseded in part, 2 superseded, 3 rejected.
    pub outcome: i64,
    /// What it says.
    pub record: Record,
}

/// All that is looked at.
#[derive(Clone, Debug)]
pub struct Records {
    /// The raw records, in the order of their arrival.
    pub raw: Vec<Raw>,
    /// Which part of its job a lease belongs to, and to whom it was granted.
    pub leases: BTreeMap<(u64, u32), (u32, String)>,
    /// What counts: job, part, first position and one past the last.
    pub counted: Vec<(u64, u32, u64, u64)>,
    /// The jobs as they were signed.
    pub specs: BTreeMap<u64, JobSpec>,
}

impl Records {
    /// Reads the database of a controller, which may be running.
    ///
    /// # Errors
    /// When it cannot be read, or a raw record is not one.
    pub fn read(data: &Path) -> Result<Self> {
        let file = data.join("picket.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Self::read_file(&file)).with_context(|| format!("read {}", file.display()))
    }

    async fn read_file(file: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let mut db = SqliteConnection::connect_with(&options).await?;
        let mut raw = Vec::new();
        let sql = "SELECT p.id AS probe, r.stream, r.sequence, r.outcome, r.bytes FROM raw_records r \
                   JOIN streams s ON s.key = r.stream JOIN probes p ON p.key = s.probe ORDER BY r.arrival";
        for row in sqlx::query(sql).fetch_all(&mut db).await? {
            let bytes: Vec<u8> = row.get("bytes");
            let record = codec::decode(&bytes).context("a raw record")?;
            raw.push(Raw {
                probe: row.get("probe"),
                stream: row.get("stream"),
                sequence: row.get("sequence"),
                outcome: row.get("outcome"),
                record,
            });
        }
        let mut leases = BTreeMap::new();
        for row in sqlx::query("SELECT job, number, part, probe FROM leases").fetch_all(&mut db).await? {
            leases.insert((row.get::<i64, _>("job").cast_unsigned(), row.get("number")), (row.get("part"), row.get("probe")));
        }
        let mut counted = Vec::new();
        for row in sqlx::query("SELECT job, part, first, past FROM batches ORDER BY job, part, first").fetch_all(&mut db).await? {
            let number = |column| row.get::<i64, _>(column).cast_unsigned();
            counted.push((number("job"), row.get("part"), number("first"), number("past")));
        }
        let mut specs = BTreeMap::new();
        for row in sqlx::query("SELECT id, spec FROM jobs").fetch_all(&mut db).await? {
            let spec: JobSpec = codec::decode(&row.get::<Vec<u8>, _>("spec")).context("a job spec")?;
            specs.insert(row.get::<i64, _>("id").cast_unsigned(), spec);
        }
        db.close().await?;
        Ok(Self { raw, leases, counted, specs })
    }

    /// The target space of a job.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn space(&self, job: JobId) -> Result<TargetSpace> {
        let spec = self.specs.get(&job.0).with_context(|| format!("no job {job}"))?;
        spec.space().context("the job's space")
    }

    /// The batches of a job as the probes sent them.
    pub fn batches(&self, job: JobId) -> impl Iterator<Item = (&Raw, &ResultBatch)> + '_ {
        self.raw.iter().filter_map(move |raw| match &raw.record {
            Record::Batch(batch) if batch.lease.job == job => Some((raw, batch)),
            _ => None,
        })
    }

    /// Checks that every unit of a job counts exactly once, whatever was reported: what counts is disjoint and complete in each of
    /// `parts` parts.
    ///
    /// # Errors
    /// When something counts twice or is missing.
    pub fn counted_once(&self, job: JobId, parts: u32) -> Result<()> {
        let len = self.space(job)?.len();
        for part in 0..parts {
            let mut end = 0;
            for (_, _, first, past) in self.counted.iter().filter(|(id, number, ..)| *id == job.0 && *number == part) {
                ensure!(*first == end, "part {part}: {first}..{past} counts, but what is before it reaches to {end}");
                end = *past;
            }
            ensure!(end == len, "what counts of part {part} reaches to {end} of {len}");
        }
        Ok(())
    }

    /// Checks that every unit of a job was reported exactly once: the names of the records are unique, no two raw batches of one
    /// part overlap, none was put aside, and what counts covers each of `parts` parts without a gap.
    ///
    /// # Errors
    /// When something was reported twice or never.
    pub fn reported_once(&self, job: JobId, parts: u32) -> Result<()> {
        let len = self.space(job)?.len();
        let mut names: Vec<_> = self.raw.iter().map(|raw| (raw.probe.as_str(), raw.stream, raw.sequence)).collect();
        names.sort_unstable();
        self.counted_once(job, parts)?;
        let unique = names.windows(2).all(|pair| pair[0] != pair[1]);
        ensure!(unique, "two raw records have one name");
        let mut spans: BTreeMap<u32, Vec<(u64, u64, String)>> = BTreeMap::new();
        for (raw, batch) in self.batches(job) {
            let LeaseId { job, grant } = batch.lease;
            let (part, holder) =
                self.leases.get(&(job.0, grant)).with_context(|| format!("a batch of a lease that was never granted: {}", batch.lease))?;
            ensure!(*holder == raw.probe, "lease {} of {holder} was reported by {}", batch.lease, raw.probe);
            ensure!(
                raw.outcome == 0,
                "the batch {}..{} of {} ({}) has outcome {}",
                batch.from,
                batch.to,
                batch.lease,
                raw.probe,
                raw.outcome
            );
            let who = format!("{} under {} as record {}", raw.probe, batch.lease, raw.sequence);
            spans.entry(*part).or_default().push((batch.from, batch.to, who));
        }
        ensure!(spans.len() == parts as usize, "results for {} parts, {parts} expected", spans.len());
        for (part, mut spans) in spans {
            spans.sort();
            let mut end = 0;
            for (from, to, who) in spans {
                ensure!(from == end, "part {part}: {who} reported {from}..{to}, but positions up to {end} were reported before it");
                end = to;
            }
            ensure!(end == len, "part {part} was reported up to {end} of {len}");
        }
        Ok(())
    }
}
