//! The database as the rest of the controller sees it: one trait in the controller's own types.
//!
//! Nothing outside this module knows SQL. Each database has a file of its own ([`sqlite`]); one suite of tests
//! (`contract.rs`) says what all of them must do.
//!
//! **Invariant:** every method is one transaction: all of it is stored, or nothing.
//! **Invariant:** raw records are only ever added; everything made from them can be made again ([`Store::rebuild`]).

#[cfg(test)]
pub(crate) mod contract;
pub mod sqlite;

use std::net::IpAddr;

use async_trait::async_trait;
use picket_wire::capture::{Captured, Chunk, ChunkState};
use picket_wire::event::Birth;
use picket_wire::host::HostSeen;
use picket_wire::ids::{JobId, Label, LeaseId, ProbeId, Role, SiteName, StreamId};
use picket_wire::job::{JobSpec, Technique, Transport};
use picket_wire::path::TracedPath;
use picket_wire::result::{Coverage, State};
use picket_wire::service::ServiceOutcome;
use picket_wire::trace::TraceOptions;
use picket_wire::units::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::jobs::plan::Outcome;
use crate::jobs::ranges::Span;
use crate::pki::Serial;
use crate::results::ways::Way;
use crate::view::{JobRequest, JobState};
use crate::view::{RebuildCounts, Scope};

/// Why the database could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is not there.
    #[error("{action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is stored cannot be read any more.
    #[error("{action}: what is stored is damaged: {reason}")]
    Damaged {
        /// What was tried.
        action: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// How a probe stands in the books, whether connected or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A token was made; no box has used it.
    Invited,
    /// It has a certificate.
    Enrolled,
    /// It had one.
    Revoked,
}

/// A probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRecord {
    /// The database's name for it; 0 until it is stored.
    pub key: i64,
    /// Its id.
    pub id: ProbeId,
    /// Where it stands.
    pub site: SiteName,
    /// Its labels.
    pub labels: Vec<Label>,
    /// Its roles.
    pub roles: Vec<Role>,
    /// How it stands.
    pub standing: Standing,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// Since when.
    pub since: UnixMillis,
    /// When it was invited.
    pub created: UnixMillis,
    /// What it runs on.
    pub hardware: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// When it was last heard; stored now and then.
    pub last_seen: Option<UnixMillis>,
    /// The beginning of its last session.
    pub birth: Option<Birth>,
    /// When its newest certificate ends.
    pub certificate_expires: Option<UnixMillis>,
}

/// A certificate that was issued to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRecord {
    /// Its serial number.
    pub serial: Serial,
    /// When it ends.
    pub not_after: UnixMillis,
}

/// What became of a one-time token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnrolToken {
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// When it ends.
    pub expires: UnixMillis,
    /// When it was used.
    pub used: Option<UnixMillis>,
}

/// An API token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiToken {
    /// Its name.
    pub name: String,
    /// SHA-256 of its text.
    pub hash: [u8; 32],
    /// What it allows.
    pub scope: Scope,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends by itself.
    pub expires: Option<UnixMillis>,
}

/// A user of the dashboards' listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// The user name.
    pub name: String,
    /// SHA-256 of the password.
    pub hash: [u8; 32],
    /// When it was made.
    pub created: UnixMillis,
}

/// A job's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    /// Its spec, as it is signed.
    pub spec: JobSpec,
    /// The request that it was made from.
    pub request: JobRequest,
    /// Targets and ports in a line.
    pub summary: String,
    /// Who submitted it.
    pub actor: String,
    /// Whether one probe does all of it.
    pub whole: bool,
    /// Its state.
    pub state: JobState,
    /// Why it is in that state.
    pub reason: Option<String>,
    /// How it ends once its leases have ended.
    pub outcome: Option<Outcome>,
    /// When it was submitted.
    pub created: UnixMillis,
    /// When the first lease was granted.
    pub started: Option<UnixMillis>,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// The number of the last grant.
    pub last_grant: u32,
}

/// A part of a job: the whole space once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRecord {
    /// Its number within the job.
    pub number: u32,
    /// The one probe that does it, for `each`.
    pub probe: Option<ProbeId>,
    /// Why nothing more is expected of it.
    pub abandoned: Option<String>,
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEnding {
    /// When.
    pub at: UnixMillis,
    /// In one word: `done`, `revoked`, `cancelled`, `deadline`, `failed`, `expired`.
    pub how: String,
    /// Why, where there is more to say.
    pub reason: Option<String>,
}

/// A lease's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its number within the job.
    pub number: u32,
    /// Of which part.
    pub part: u32,
    /// Whose.
    pub probe: ProbeId,
    /// Which positions.
    pub span: Span,
    /// How often the range was leased before.
    pub attempt: u16,
    /// Whether it ends without a word.
    pub expires: bool,
    /// When it was granted.
    pub granted: UnixMillis,
    /// How it ended; `None` while it is alive.
    pub ended: Option<LeaseEnding>,
}

/// A job with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobStored {
    /// Its row.
    pub job: JobRecord,
    /// Its parts, by number.
    pub parts: Vec<PartRecord>,
    /// Its leases, by number.
    pub leases: Vec<LeaseRecord>,
    /// Probes that it is not offered to again, and why.
    pub exclusions: Vec<(ProbeId, String)>,
    /// Covered ranges with their part, adjacent ones not merged.
    pub covered: Vec<(u32, Span)>,
    /// What is accounted for, by probe.
    pub coverage: Vec<(ProbeId, Coverage)>,
}

/// A change of what should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A job is new or its row has changed.
    Job(Box<JobRecord>),
    /// A part is new or has changed.
    Part(JobId, PartRecord),
    /// A lease is new or has changed.
    Lease(JobId, LeaseRecord),
    /// A job is not offered to a probe again.
    Exclude(JobId, ProbeId, String),
}

/// A stream's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRecord {
    /// The database's name for it.
    pub key: i64,
    /// Everything up to this number is stored.
    pub stored: u64,
}

/// What became of a raw record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It counts.
    Counted,
    /// Some of its positions had results already.
    PartlySuperseded,
    /// All of its positions had.
    Superseded,
    /// It is not believed.
    Rejected,
}

/// A raw record with its effects.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRecord {
    /// The stream.
    pub stream: i64,
    /// Its number there.
    pub sequence: u64,
    /// When it came.
    pub received: UnixMillis,
    /// What became of it.
    pub fate: Fate,
    /// Why, for those that are rejected.
    pub reason: Option<String>,
    /// As it came.
    pub bytes: Vec<u8>,
}

/// What counts of a batch: a range that had no results before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// The lease it was done under.
    pub lease: LeaseId,
    /// The part.
    pub part: u32,
    /// The positions.
    pub span: Span,
    /// The probe.
    pub probe: i64,
    /// Which record it came in.
    pub stream: i64,
    /// See `stream`.
    pub sequence: u64,
    /// When its first packet was sent.
    pub started: UnixMillis,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Answers that came a second time.
    pub duplicates: u64,
    /// How its positions fared.
    pub coverage: Coverage,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The job.
    pub job: JobId,
    /// Rank of the target in the natural order of the job's space.
    pub rank: u64,
    /// The probe.
    pub probe: i64,
    /// What it says.
    pub state: State,
    /// Round trip in microseconds.
    pub rtt_us: u64,
    /// TTL or hop limit; 0 where the operating system hides it.
    pub ttl: u8,
    /// When its batch ended.
    pub seen: UnixMillis,
}

/// The latest answer of a port, or of a host as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// The site.
    pub site: SiteName,
    /// The address.
    pub addr: IpAddr,
    /// The port; `None` for the host as a whole.
    pub port: Option<u16>,
    /// The port's protocol; `None` for the host as a whole.
    pub transport: Option<Transport>,
    /// The answer; its rank means nothing here.
    pub answer: Observation,
}

/// An answer to a position that a batch reported as silent. It counts where that batch is the one that counts, and where the
/// position has no answer yet: only the database can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateRow {
    /// The lease that the position was asked under.
    pub lease: LeaseId,
    /// The part.
    pub part: u32,
    /// The position.
    pub position: u64,
    /// The answer; when it was seen is the end of the batch.
    pub row: PortRow,
}

/// What serves on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// The site.
    pub site: SiteName,
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
    /// The job.
    pub job: JobId,
    /// Rank of the target in the natural order of the job's space.
    pub rank: u64,
    /// The probe.
    pub probe: i64,
    /// What asking came to.
    pub outcome: ServiceOutcome,
    /// When it was asked.
    pub seen: UnixMillis,
}

/// A host seen on a probe's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkHostRow {
    /// The site.
    pub site: SiteName,
    /// The host.
    pub host: HostSeen,
    /// The job that asked.
    pub job: JobId,
    /// The probe.
    pub probe: i64,
    /// When it was seen.
    pub seen: UnixMillis,
}

/// A path that was traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRow {
    /// The site.
    pub site: SiteName,
    /// The job.
    pub job: JobId,
    /// Rank of the destination in the natural order of the job's space.
    pub rank: u64,
    /// The probe.
    pub probe: i64,
    /// The destination.
    pub dst: IpAddr,
    /// When its first packet was sent.
    pub began: UnixMillis,
    /// When it was over.
    pub seen: UnixMillis,
    /// How it was asked, and what was found.
    pub trace: Trace,
}

/// A path with what belongs to it, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// How it was asked.
    pub options: TraceOptions,
    /// Where its packets were sent from.
    pub source: Option<IpAddr>,
    /// The path, packed as it came.
    pub path: TracedPath,
}

impl Trace {
    /// What its packets looked like to routers: only paths of the same flow can be compared.
    pub fn flow(&self) -> String {
        let TraceOptions { method, port, flow, tos, ways, .. } = &self.options;
        let mut text = method.to_string();
        let mut add = |name: &str, value: u64| text.push_str(&format!("{name}{value}"));
        if *port != 0 {
            add("/", (*port).into());
        }
        if *flow != 0 {
            add("+", (*flow).into());
        }
        if *tos != 0 {
            add(" tos ", (*tos).into());
        }
        if ways.is_some() { text + " all ways" } else { text }
    }

    /// What was found of the way to `dst`, its destination.
    pub fn found(&self, dst: IpAddr) -> picket_wire::path::Found {
        self.path.found(dst, self.options.tos)
    }
}

/// What raw records mean, ready to be stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Projection {
    /// What counts of batches.
    pub batches: Vec<BatchRow>,
    /// Single answers.
    pub observations: Vec<Observation>,
    /// The same by site and address.
    pub ports: Vec<PortRow>,
    /// Answers that came late, stored after all of the above.
    pub lates: Vec<LateRow>,
    /// What serves on ports.
    pub services: Vec<ServiceRow>,
    /// Hosts seen on links.
    pub link_hosts: Vec<LinkHostRow>,
    /// Paths.
    pub paths: Vec<PathRow>,
    /// Ends without a path, for those that have an older one; stored after all paths.
    pub path_ends: Vec<PathRow>,
    /// Whose paths are to stay, in their places; heeded after all of the above.
    pub settled_paths: Vec<SettledPath>,
    /// What captures came to.
    pub overs: Vec<OverRow>,
}

/// The place of a path in a job whose probes share the work, and the one probe whose path it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledPath {
    /// The job.
    pub job: JobId,
    /// Rank of the destination in the natural order of the job's space.
    pub rank: u64,
    /// The probe.
    pub probe: i64,
}

/// Raw records with everything that follows from them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ingest {
    /// The records, in the order in which they came.
    pub records: Vec<RawRecord>,
    /// New high-water marks: stream, number.
    pub stored: Vec<(i64, u64)>,
    /// Losses told: stream, records, bytes (since the stream's creation).
    pub losses: Vec<(i64, u64, u64)>,
    /// What they mean.
    pub projection: Projection,
    /// What changes in what should run.
    pub changes: Vec<Change>,
}

/// What storing records came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// The late answers that count: each has turned a silent position into an answered one.
    pub lates: Vec<LateRow>,
}

/// Which observations of a job to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservationQuery {
    /// The job.
    pub job: JobId,
    /// Ranks, inclusive; all where `None`.
    pub ranks: Option<Vec<(u64, u64)>>,
    /// Ports per address and which of them by their rank, to select ports; `None` for all.
    pub columns: Option<(u64, Vec<(u64, u64)>)>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Only in this state: 1 up, 2 open, 3 closed, 4 filtered, 5 unfiltered.
    pub state: Option<u8>,
    /// Only after this rank and probe.
    pub after: Option<(u64, i64)>,
    /// At most so many.
    pub limit: u32,
}

/// Which latest answers to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortQuery {
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Addresses from the first to the second.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// Ports, inclusive ranges.
    pub ports: Option<Vec<(u16, u16)>>,
    /// Only in this state: 1 up, 2 open, 3 closed, 4 filtered, 5 unfiltered.
    pub state: Option<u8>,
    /// Only after this.
    pub after: Option<(SiteName, IpAddr, Option<u16>, Option<Transport>)>,
    /// At most so many.
    pub limit: u32,
}

/// Which hosts on links to read: those of a job, or the latest of every site.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkHostQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Addresses from the first to the second.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// Only after this.
    pub after: Option<(SiteName, IpAddr, ProbeId)>,
    /// At most so many.
    pub limit: u32,
}

/// A host on a link with the names that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundHost {
    /// The host, as it was seen last.
    pub row: LinkHostRow,
    /// When it was seen first; within a job the same as last.
    pub first_seen: UnixMillis,
    /// The probe.
    pub probe: ProbeId,
}

/// Which paths to read: those of a job by rank and probe, or all by destination, probe and flow, the newest of each first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Destinations from the first to the second.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// Only the newest of each destination, probe and flow.
    pub latest: bool,
    /// Read what is known of each way as well.
    pub known: bool,
    /// Only after this.
    pub after: Option<PathAfter>,
    /// At most so many.
    pub limit: u32,
}

/// Where a page of paths ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathAfter {
    /// Within a job: rank and probe.
    Rank(u64, i64),
    /// Over all jobs.
    Path {
        /// The destination.
        dst: IpAddr,
        /// The probe.
        probe: i64,
        /// See [`Trace::flow`].
        flow: String,
        /// When it was over.
        seen: UnixMillis,
        /// The job.
        job: JobId,
    },
}

/// A path with the name that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPath {
    /// The path.
    pub row: PathRow,
    /// The probe.
    pub probe: ProbeId,
    /// What is known of its way, where that was asked.
    pub known: Option<KnownWay>,
}

/// What paths to a destination are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownWay {
    /// The way.
    pub way: Way,
    /// When it was accepted, or first seen.
    pub since: UnixMillis,
    /// Who accepted it; `None` for the first path that was seen.
    pub actor: Option<String>,
}

/// A way that somebody accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathBaseline {
    /// The site in which the address means something.
    pub site: SiteName,
    /// The destination.
    pub dst: IpAddr,
    /// The probe.
    pub probe: i64,
    /// See [`Trace::flow`].
    pub flow: String,
    /// The way.
    pub way: Way,
    /// When.
    pub accepted: UnixMillis,
    /// Who.
    pub actor: String,
}

/// What serves on a port, and when that was asked.
pub type FoundService = (ServiceOutcome, UnixMillis);

/// An answer with the names that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The answer.
    pub answer: Observation,
    /// The probe.
    pub probe: ProbeId,
    /// The site.
    pub site: SiteName,
    /// What serves there, where that was asked and the port is open.
    pub service: Option<FoundService>,
}

/// A latest answer with the names that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPort {
    /// The answer.
    pub row: PortRow,
    /// The probe.
    pub probe: ProbeId,
    /// What was sent.
    pub technique: Technique,
    /// What serves there, where that was asked and the port is open.
    pub service: Option<FoundService>,
}

/// What a capture came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverRow {
    /// The probe's key.
    pub probe: i64,
    /// Its site.
    pub site: SiteName,
    /// When the record came.
    pub came: UnixMillis,
    /// What it says.
    pub over: Captured,
}

/// What is known of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureRow {
    /// Its lease.
    pub lease: LeaseId,
    /// The probe's key.
    pub probe: i64,
    /// The probe's site at the time.
    pub site: SiteName,
    /// Bytes of its file that are here, counted from its beginning.
    pub stored: u64,
    /// Bytes that they take.
    pub packed: u64,
    /// When something of it came first.
    pub first: UnixMillis,
    /// When bytes of it came last.
    pub last: UnixMillis,
    /// What it came to, once it is over.
    pub over: Option<Captured>,
    /// Whether the digest of its bytes is the one that the probe told.
    pub checked: bool,
    /// When its bytes were removed, and by whom or why.
    pub removed: Option<(UnixMillis, String)>,
}

impl CaptureRow {
    /// Whether as many bytes are here as it came to, and nobody has looked at their digest.
    pub fn is_to_be_checked(&self) -> bool {
        self.removed.is_none() && !self.checked && self.over.as_ref().is_some_and(|over| over.len <= self.stored)
    }

    /// How far it is.
    pub fn state(&self) -> ChunkState {
        match &self.over {
            _ if self.removed.is_some() => ChunkState::Removed,
            Some(over) if self.checked && over.len == self.stored => ChunkState::Whole,
            Some(_) | None => ChunkState::Open,
        }
    }
}

/// A capture with its probe's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCapture {
    /// The capture.
    pub row: CaptureRow,
    /// The probe.
    pub probe: ProbeId,
}

/// Which captures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaptureQuery {
    /// Only this one.
    pub lease: Option<LeaseId>,
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Only those with bytes, of which none came since then.
    pub untouched_since: Option<UnixMillis>,
    /// Those that come after this one.
    pub after: Option<LeaseId>,
    /// At most so many.
    pub limit: u32,
}

/// Bytes of a capture's file, as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// Bytes of the file before these.
    pub start: u64,
    /// Bytes of the file in these.
    pub len: u32,
    /// The bytes, packed.
    pub packed: Vec<u8>,
}

/// Somebody has read a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// When.
    pub at: UnixMillis,
    /// Who: a token's name.
    pub actor: String,
    /// From which byte on.
    pub start: u64,
}

/// Makes projections from raw records, in the order of their arrival.
pub trait Projector: Send {
    /// What a record of a probe's stream means.
    fn project(&mut self, probe: &ProbeId, record: &RawRecord, out: &mut Projection) -> (Fate, Option<String>);
}

/// The database.
#[async_trait]
pub trait Store: Send + Sync {
    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// A number kept under a name; 0 where there is none.
    async fn number(&self, name: &str) -> Result<u64, StoreError>;
    /// Keeps a number under a name, unless it is lower than what is there.
    async fn raise_number(&self, name: &str, value: u64) -> Result<(), StoreError>;

    /// All probes, by id.
    async fn probes(&self) -> Result<Vec<ProbeRecord>, StoreError>;
    /// Stores a probe, new or changed; gives its key.
    async fn put_probe(&self, probe: &ProbeRecord) -> Result<i64, StoreError>;
    /// Stores a probe, and a token in place of any it had.
    async fn invite(&self, probe: &ProbeRecord, token: &EnrolToken) -> Result<i64, StoreError>;
    /// The token of a probe.
    async fn enrol_token(&self, probe: i64) -> Result<Option<EnrolToken>, StoreError>;
    /// Uses up the token with this hash and stores the probe and its certificate; `false`, and nothing is done, where it
    /// was used before.
    async fn enrol(
        &self,
        probe: &ProbeRecord,
        hash: &[u8; 32],
        certificate: &CertificateRecord,
        now: UnixMillis,
    ) -> Result<bool, StoreError>;
    /// Stores a probe as revoked, with all its certificates and its token.
    async fn revoke(&self, probe: &ProbeRecord) -> Result<(), StoreError>;
    /// Revoked certificates that have not ended at `now`.
    async fn revoked(&self, now: UnixMillis) -> Result<Vec<Serial>, StoreError>;

    /// Adds an API token; `false` where the name is taken.
    async fn add_api_token(&self, token: &ApiToken) -> Result<bool, StoreError>;
    /// All API tokens, by name.
    async fn api_tokens(&self) -> Result<Vec<ApiToken>, StoreError>;
    /// Removes an API token; `false` where there is none.
    async fn remove_api_token(&self, name: &str) -> Result<bool, StoreError>;

    /// Stores a user, new or with a new password.
    async fn put_user(&self, user: &UserRecord) -> Result<(), StoreError>;
    /// All users, by name.
    async fn users(&self) -> Result<Vec<UserRecord>, StoreError>;
    /// Removes a user; `false` where there is none.
    async fn remove_user(&self, name: &str) -> Result<bool, StoreError>;

    /// All jobs that are not over, by id.
    async fn active_jobs(&self) -> Result<Vec<JobStored>, StoreError>;
    /// One job.
    async fn job(&self, id: JobId) -> Result<Option<JobStored>, StoreError>;
    /// Ids of jobs, newest first, in one of `states` (all where empty), older than `before`.
    async fn job_ids(&self, states: &[JobState], before: Option<JobId>, limit: u32) -> Result<Vec<JobId>, StoreError>;
    /// Stores changes of what should run.
    async fn apply(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// A probe's stream, made where it is new.
    async fn stream(&self, probe: i64, stream: StreamId) -> Result<StreamRecord, StoreError>;
    /// Stores records and everything that follows from them.
    async fn ingest(&self, ingest: &Ingest) -> Result<Ingested, StoreError>;
    /// Makes all projections anew.
    async fn rebuild(&self, projector: &mut dyn Projector) -> Result<RebuildCounts, StoreError>;

    /// Answers of a job, by rank and probe.
    async fn observations(&self, query: &ObservationQuery) -> Result<Vec<Found>, StoreError>;
    /// Latest answers, by site, address and port.
    async fn ports(&self, query: &PortQuery) -> Result<Vec<FoundPort>, StoreError>;
    /// Hosts on links, by site, address and probe.
    async fn link_hosts(&self, query: &LinkHostQuery) -> Result<Vec<FoundHost>, StoreError>;
    /// Paths; see [`PathQuery`] for their order.
    async fn paths(&self, query: &PathQuery) -> Result<Vec<FoundPath>, StoreError>;
    /// Accepts ways, in place of those that were accepted before.
    async fn put_path_baselines(&self, baselines: &[PathBaseline]) -> Result<(), StoreError>;

    /// Stores bytes of a capture's file, durably, where they follow on what is here of it; `row` says whose it is where nothing is known
    /// of it yet. `false`, and nothing is done, where they do not, or the file was removed.
    async fn put_chunk(&self, row: &CaptureRow, chunk: &Chunk, came: UnixMillis) -> Result<bool, StoreError>;
    /// Captures, the newest first.
    async fn captures(&self, query: &CaptureQuery) -> Result<Vec<FoundCapture>, StoreError>;
    /// Bytes of a capture's file from `from` on, in order and without a gap; the first may begin before it.
    async fn capture_chunks(&self, lease: LeaseId, from: u64, limit: u32) -> Result<Vec<StoredChunk>, StoreError>;
    /// Bytes that all captures take.
    async fn captures_size(&self) -> Result<u64, StoreError>;
    /// The digest of a capture's bytes, which are so many, is the probe's, or is not: then they are removed, and come again. `false`, and nothing
    /// is done, where they are not so many any more.
    async fn capture_checked(&self, lease: LeaseId, stored: u64, right: bool) -> Result<bool, StoreError>;
    /// Removes the bytes of a capture; `false` where they were removed before, or there is none.
    async fn remove_capture(&self, lease: LeaseId, at: UnixMillis, remover: &str) -> Result<bool, StoreError>;
    /// Remembers who reads a capture.
    async fn note_download(&self, lease: LeaseId, download: &Download) -> Result<(), StoreError>;
    /// Who has read a capture, the latest first.
    async fn downloads(&self, lease: LeaseId, limit: u32) -> Result<Vec<Download>, StoreError>;
}

/// The number that stands for a state in the database and its queries.
pub fn state_number(state: State) -> u8 {
    match state {
        State::Up | State::UpBy(_) => 1,
        State::Open => 2,
        State::Closed => 3,
        State::Filtered { .. } | State::FilteredBy { .. } => 4,
        State::Unfiltered => 5,
    }
}
