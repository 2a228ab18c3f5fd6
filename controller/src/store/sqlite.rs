//! The database in SQLite: one file, one writer, several readers beside it (write-ahead log).
//!
//! Services, hosts on links and late answers are written and read in `extras`, paths in `paths`.
//!
//! **Invariant:** a commit is on the disk when it returns (`synchronous = FULL`): probes delete what is acknowledged.

mod captures;
mod extras;
mod paths;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use picket_wire::capture::Chunk;
use picket_wire::codec;
use picket_wire::event::Birth;
use picket_wire::ids::{JobId, LeaseId, ProbeId, SiteName, StreamId};
use picket_wire::job::{JobSpec, Technique, Transport};
use picket_wire::result::{Coverage, State, UpReason};
use picket_wire::units::UnixMillis;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::migrate::{Migration, MigrationSource, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};

use super::{
    ApiToken, BatchRow, CaptureQuery, CaptureRow, CertificateRecord, Change, Download, EnrolToken, Fate, Found, FoundCapture, FoundHost,
    FoundPath, FoundPort, Ingest, Ingested, JobRecord, JobStored, LateRow, LeaseEnding, LeaseRecord, LinkHostQuery, Observation,
    ObservationQuery, PartRecord, PathBaseline, PathQuery, PortQuery, PortRow, ProbeRecord, Projection, Projector, RawRecord, Standing,
    Store, StoreError, StoredChunk, StreamRecord, UserRecord, state_number,
};
use crate::jobs::ranges::Span;
use crate::pki::Serial;
use crate::view::JobState;
use crate::view::RebuildCounts;

/// Rows per statement: enough that the way to the database's thread is shared, few enough for its limit of variables.
const ROWS: usize = 500;
/// Raw records read at a time by a rebuild.
const REBUILD_PAGE: i64 = 500;

/// The steps from an empty database to today's, in order. What was released is never changed, only added to.
const MIGRATIONS: [(i64, &str, &str); 4] = [
    (1, "initial", include_str!("../../migrations/sqlite/0001_initial.sql")),
    (2, "surveys", include_str!("../../migrations/sqlite/0002_surveys.sql")),
    (3, "paths", include_str!("../../migrations/sqlite/0003_paths.sql")),
    (4, "captures", include_str!("../../migrations/sqlite/0004_captures.sql")),
];

/// The migrations that are part of the program; the first so many of them.
#[derive(Debug)]
struct Embedded(usize);

impl MigrationSource<'static> for Embedded {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, Box<dyn std::error::Error + Send + Sync>>> {
        let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into(), false)
        };
        let taken = self.0;
        Box::pin(async move { Ok(MIGRATIONS.into_iter().take(taken).map(migration).collect()) })
    }
}

/// A SQLite database.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Says what was tried when the database refused.
trait Doing<T> {
    fn doing(self, action: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, sqlx::Error> {
    fn doing(self, action: &'static str) -> Result<T> {
        self.map_err(|source| StoreError::Database { action, source: Box::new(source) })
    }
}

fn damaged(action: &'static str, reason: impl ToString) -> StoreError {
    StoreError::Damaged { action, reason: reason.to_string() }
}

fn number(value: u64) -> i64 {
    value as i64
}

fn unsigned(row: &SqliteRow, column: &str) -> u64 {
    row.get::<i64, _>(column) as u64
}

fn moment(row: &SqliteRow, column: &str) -> UnixMillis {
    UnixMillis(unsigned(row, column))
}

fn maybe_moment(row: &SqliteRow, column: &str) -> Option<UnixMillis> {
    row.get::<Option<i64>, _>(column).map(|at| UnixMillis(at as u64))
}

fn hash(row: &SqliteRow, column: &str) -> Result<[u8; 32]> {
    row.get::<Vec<u8>, _>(column).try_into().map_err(|_| damaged("read a hash", "it does not have 32 bytes"))
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the controller's own types have string keys and no foreign serializers")
}

fn parse_json<T: DeserializeOwned>(action: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| damaged(action, error))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(action: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|error| damaged(action, error))
}

fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => [&[4], v4.octets().as_slice()].concat(),
        IpAddr::V6(v6) => [&[6], v6.octets().as_slice()].concat(),
    }
}

fn parse_addr(bytes: &[u8]) -> Result<IpAddr> {
    match bytes.split_first() {
        Some((4, rest)) => <[u8; 4]>::try_from(rest).map(IpAddr::from).map_err(|error| damaged("read an address", error)),
        Some((6, rest)) => <[u8; 16]>::try_from(rest).map(IpAddr::from).map_err(|error| damaged("read an address", error)),
        _ => Err(damaged("read an address", "unknown family")),
    }
}

/// What made a state: the kind of answer of a host, ICMP type and code of a filtered target.
fn state_reason(state: State) -> i64 {
    match state {
        State::UpBy(by) => UP_REASONS.iter().position(|reason| *reason == by).map_or(0, |index| index as i64 + 1),
        State::Filtered { icmp_type, icmp_code } | State::FilteredBy { icmp_type, icmp_code, .. } => {
            i64::from(icmp_type) * 256 + i64::from(icmp_code)
        }
        State::Up | State::Open | State::Closed | State::Unfiltered => 0,
    }
}

/// Who said so, where that was not the target.
fn state_origin(state: State) -> Option<Vec<u8>> {
    match state {
        State::FilteredBy { from, .. } => Some(addr_bytes(from)),
        _ => None,
    }
}

/// What showed that a host is up, by its number in the database less one; 0 is an echo reply.
const UP_REASONS: [UpReason; 9] = [
    UpReason::Arp,
    UpReason::Neighbour,
    UpReason::Timestamp,
    UpReason::SynAck,
    UpReason::Reset,
    UpReason::Udp,
    UpReason::PortUnreachable,
    UpReason::Sctp,
    UpReason::IcmpError,
];

fn parse_state(row: &SqliteRow) -> Result<State> {
    let (state, reason): (i64, i64) = (row.get("state"), row.get("reason"));
    let origin: Option<Vec<u8>> = row.get("origin");
    let (icmp_type, icmp_code) = ((reason >> 8) as u8, reason as u8);
    let up = || usize::try_from(reason - 1).ok().and_then(|index| UP_REASONS.get(index));
    Ok(match (state, origin) {
        (1, _) => up().map_or(State::Up, |by| State::UpBy(*by)),
        (2, _) => State::Open,
        (3, _) => State::Closed,
        (4, None) => State::Filtered { icmp_type, icmp_code },
        (4, Some(from)) => State::FilteredBy { icmp_type, icmp_code, from: parse_addr(&from)? },
        (5, _) => State::Unfiltered,
        (other, _) => return Err(damaged("read an answer", format!("unknown state {other}"))),
    })
}

fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Invited => "invited",
        Standing::Enrolled => "enrolled",
        Standing::Revoked => "revoked",
    }
}

fn fate_number(fate: Fate) -> i64 {
    match fate {
        Fate::Counted => 0,
        Fate::PartlySuperseded => 1,
        Fate::Superseded => 2,
        Fate::Rejected => 3,
    }
}

fn job_state_text(state: JobState) -> String {
    json(&state).trim_matches('"').to_owned()
}

impl SqliteStore {
    /// Opens the database at `path`, making it where there is none and bringing its tables up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10))
            .foreign_keys(true)
            .pragma("cache_size", "-65536")
            .pragma("temp_store", "memory");
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.doing("open the database")?;
        let migrator = Migrator::new(Embedded(MIGRATIONS.len())).await;
        let updated = async { migrator?.run(&writer).await };
        updated.await.map_err(|error| StoreError::Database { action: "bring the database up to date", source: Box::new(error) })?;
        let readers = SqlitePoolOptions::new().max_connections(3).connect_with(options.read_only(true)).await.doing("open the database")?;
        Ok(Self { writer, readers })
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.doing("begin a transaction")
    }

    async fn job_rows(&self, id: JobId) -> Result<Option<JobStored>> {
        let row =
            sqlx::query("SELECT * FROM jobs WHERE id = ?").bind(number(id.0)).fetch_optional(&self.readers).await.doing("read a job")?;
        let Some(row) = row else { return Ok(None) };
        let job = job_record(&row)?;
        let rows = |sql: &'static str| sqlx::query(sql).bind(number(id.0)).fetch_all(&self.readers);
        let mut stored = JobStored { job, parts: vec![], leases: vec![], exclusions: vec![], covered: vec![], coverage: vec![] };
        for row in rows("SELECT * FROM parts WHERE job = ? ORDER BY number").await.doing("read a job's parts")? {
            let probe: Option<String> = row.get("probe");
            let probe = probe.map(|id| parse("read a job's parts", &id)).transpose()?;
            stored.parts.push(PartRecord { number: row.get("number"), probe, abandoned: row.get("abandoned") });
        }
        for row in rows("SELECT * FROM leases WHERE job = ? ORDER BY number").await.doing("read a job's leases")? {
            stored.leases.push(lease_record(&row)?);
        }
        for row in rows("SELECT * FROM exclusions WHERE job = ? ORDER BY probe").await.doing("read a job's exclusions")? {
            stored.exclusions.push((parse("read a job's exclusions", row.get("probe"))?, row.get("reason")));
        }
        for row in rows("SELECT part, first, past FROM batches WHERE job = ? ORDER BY part, first").await.doing("read a job's batches")? {
            stored.covered.push((row.get("part"), Span { from: unsigned(&row, "first"), to: unsigned(&row, "past") }));
        }
        let sums = "SELECT p.id, sum(past - first) AS asked, sum(up) AS up, sum(open) AS open, sum(closed) AS closed, sum(filtered) AS filtered, sum(unfiltered) AS unfiltered, \
                    sum(silent) AS silent, sum(refused) AS refused, sum(not_reached) AS not_reached, sum(packets) AS packets \
                    FROM batches b JOIN probes p ON p.key = b.probe WHERE job = ? GROUP BY p.id ORDER BY p.id";
        for row in rows(sums).await.doing("sum up a job's batches")? {
            let count = |column| unsigned(&row, column);
            let coverage = Coverage {
                asked: count("asked"),
                up: count("up"),
                open: count("open"),
                closed: count("closed"),
                filtered: count("filtered"),
                unfiltered: count("unfiltered"),
                silent: count("silent"),
                refused: count("refused"),
                not_reached: count("not_reached"),
                packets: count("packets"),
            };
            stored.coverage.push((parse("sum up a job's batches", row.get("id"))?, coverage));
        }
        Ok(Some(stored))
    }
}

fn probe_record(row: &SqliteRow) -> Result<ProbeRecord> {
    let action = "read a probe";
    let standing = match row.get::<&str, _>("standing") {
        "invited" => Standing::Invited,
        "enrolled" => Standing::Enrolled,
        _ => Standing::Revoked,
    };
    // A birth of another version says nothing any more; the next one does.
    let birth: Option<Birth> = row.get::<Option<Vec<u8>>, _>("birth").and_then(|bytes| codec::decode(&bytes).ok());
    Ok(ProbeRecord {
        key: row.get("key"),
        id: parse(action, row.get("id"))?,
        site: parse(action, row.get("site"))?,
        labels: parse_json(action, row.get("labels"))?,
        roles: parse_json(action, row.get("roles"))?,
        standing,
        reason: row.get("reason"),
        since: moment(row, "since"),
        created: moment(row, "created"),
        hardware: row.get("hardware"),
        version: row.get("version"),
        last_seen: maybe_moment(row, "last_seen"),
        birth,
        certificate_expires: maybe_moment(row, "certificate_expires"),
    })
}

fn job_record(row: &SqliteRow) -> Result<JobRecord> {
    let action = "read a job";
    let spec: JobSpec = codec::decode(&row.get::<Vec<u8>, _>("spec")).map_err(|error| damaged(action, error))?;
    let state: String = row.get("state");
    let outcome: Option<String> = row.get("outcome");
    Ok(JobRecord {
        spec,
        request: parse_json(action, row.get("request"))?,
        summary: row.get("summary"),
        actor: row.get("actor"),
        whole: row.get("whole"),
        state: parse_json(action, &format!("\"{state}\""))?,
        reason: row.get("reason"),
        outcome: outcome.map(|text| parse_json(action, &text)).transpose()?,
        created: moment(row, "created"),
        started: maybe_moment(row, "started"),
        ended: maybe_moment(row, "ended"),
        last_grant: row.get("last_grant"),
    })
}

fn lease_record(row: &SqliteRow) -> Result<LeaseRecord> {
    let how: Option<String> = row.get("how");
    let ended = maybe_moment(row, "ended").map(|at| LeaseEnding { at, how: how.unwrap_or_default(), reason: row.get("reason") });
    Ok(LeaseRecord {
        number: row.get("number"),
        part: row.get("part"),
        probe: parse("read a lease", row.get("probe"))?,
        span: Span { from: unsigned(row, "first"), to: unsigned(row, "past") },
        attempt: row.get("attempt"),
        expires: row.get("expires"),
        granted: moment(row, "granted"),
        ended,
    })
}

fn raw_record(row: &SqliteRow) -> RawRecord {
    let fate = match row.get::<i64, _>("outcome") {
        0 => Fate::Counted,
        1 => Fate::PartlySuperseded,
        2 => Fate::Superseded,
        _ => Fate::Rejected,
    };
    RawRecord {
        stream: row.get("stream"),
        sequence: unsigned(row, "sequence"),
        received: moment(row, "received"),
        fate,
        reason: row.get("reason"),
        bytes: row.get("bytes"),
    }
}

async fn write_probe(connection: &mut SqliteConnection, probe: &ProbeRecord) -> Result<i64> {
    let row = sqlx::query(
        "INSERT INTO probes (id, site, labels, roles, standing, reason, since, created, hardware, version, last_seen, birth) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET site = excluded.site, labels = excluded.labels, roles = excluded.roles, standing = excluded.standing, \
         reason = excluded.reason, since = excluded.since, hardware = excluded.hardware, version = excluded.version, \
         last_seen = excluded.last_seen, birth = excluded.birth RETURNING key",
    )
    .bind(probe.id.as_str())
    .bind(probe.site.as_str())
    .bind(json(&probe.labels))
    .bind(json(&probe.roles))
    .bind(standing_text(probe.standing))
    .bind(&probe.reason)
    .bind(number(probe.since.0))
    .bind(number(probe.created.0))
    .bind(&probe.hardware)
    .bind(&probe.version)
    .bind(probe.last_seen.map(|at| number(at.0)))
    .bind(probe.birth.as_ref().map(codec::encode))
    .fetch_one(connection)
    .await
    .doing("store a probe")?;
    Ok(row.get("key"))
}

async fn write_change(connection: &mut SqliteConnection, change: &Change) -> Result<()> {
    match change {
        Change::Job(job) => write_job(connection, job).await,
        Change::Part(job, part) => sqlx::query(
            "INSERT INTO parts (job, number, probe, abandoned) VALUES (?, ?, ?, ?) \
             ON CONFLICT (job, number) DO UPDATE SET abandoned = excluded.abandoned",
        )
        .bind(number(job.0))
        .bind(part.number)
        .bind(part.probe.as_ref().map(ProbeId::as_str))
        .bind(&part.abandoned)
        .execute(connection)
        .await
        .doing("store a job's part")
        .map(drop),
        Change::Lease(job, lease) => write_lease(connection, *job, lease).await,
        Change::Exclude(job, probe, reason) => sqlx::query(
            "INSERT INTO exclusions (job, probe, reason) VALUES (?, ?, ?) ON CONFLICT (job, probe) DO UPDATE SET reason = excluded.reason",
        )
        .bind(number(job.0))
        .bind(probe.as_str())
        .bind(reason)
        .execute(connection)
        .await
        .doing("store a job's exclusion")
        .map(drop),
    }
}

async fn write_job(connection: &mut SqliteConnection, job: &JobRecord) -> Result<()> {
    sqlx::query(
        "INSERT INTO jobs (id, spec, request, summary, actor, whole, state, reason, outcome, created, started, ended, last_grant) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason, outcome = excluded.outcome, \
         started = excluded.started, ended = excluded.ended, last_grant = excluded.last_grant",
    )
    .bind(number(job.spec.id.0))
    .bind(codec::encode(&job.spec))
    .bind(json(&job.request))
    .bind(&job.summary)
    .bind(&job.actor)
    .bind(job.whole)
    .bind(job_state_text(job.state))
    .bind(&job.reason)
    .bind(job.outcome.as_ref().map(json))
    .bind(number(job.created.0))
    .bind(job.started.map(|at| number(at.0)))
    .bind(job.ended.map(|at| number(at.0)))
    .bind(job.last_grant)
    .execute(connection)
    .await
    .doing("store a job")
    .map(drop)
}

async fn write_lease(connection: &mut SqliteConnection, job: JobId, lease: &LeaseRecord) -> Result<()> {
    let ended = lease.ended.as_ref();
    sqlx::query(
        "INSERT INTO leases (job, number, part, probe, first, past, attempt, expires, granted, ended, how, reason) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (job, number) DO UPDATE SET ended = excluded.ended, how = excluded.how, reason = excluded.reason",
    )
    .bind(number(job.0))
    .bind(lease.number)
    .bind(lease.part)
    .bind(lease.probe.as_str())
    .bind(number(lease.span.from))
    .bind(number(lease.span.to))
    .bind(lease.attempt)
    .bind(lease.expires)
    .bind(number(lease.granted.0))
    .bind(ended.map(|ending| number(ending.at.0)))
    .bind(ended.map(|ending| ending.how.clone()))
    .bind(ended.and_then(|ending| ending.reason.clone()))
    .execute(connection)
    .await
    .doing("store a lease")
    .map(drop)
}

async fn run(connection: &mut SqliteConnection, mut builder: QueryBuilder<'_, Sqlite>, rows: usize, action: &'static str) -> Result<()> {
    // Only full chunks have the same text again and again.
    builder.build().persistent(rows == ROWS).execute(connection).await.doing(action).map(drop)
}

async fn write_raw(connection: &mut SqliteConnection, records: &[RawRecord]) -> Result<()> {
    for chunk in records.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO raw_records (stream, sequence, received, outcome, reason, bytes) ");
        builder.push_values(chunk, |mut row, record| {
            row.push_bind(record.stream)
                .push_bind(number(record.sequence))
                .push_bind(number(record.received.0))
                .push_bind(fate_number(record.fate))
                .push_bind(record.reason.as_deref())
                .push_bind(record.bytes.as_slice());
        });
        run(connection, builder, chunk.len(), "store raw records").await?;
    }
    Ok(())
}

async fn write_batches(connection: &mut SqliteConnection, batches: &[BatchRow]) -> Result<()> {
    for chunk in batches.chunks(ROWS) {
        let mut builder = QueryBuilder::new(
            "INSERT INTO batches (job, part, first, past, probe, lease, stream, sequence, started, took_ms, packets, duplicates, \
             up, open, closed, filtered, unfiltered, silent, refused, not_reached) ",
        );
        builder.push_values(chunk, |mut row, batch| {
            let coverage = &batch.coverage;
            row.push_bind(number(batch.lease.job.0))
                .push_bind(batch.part)
                .push_bind(number(batch.span.from))
                .push_bind(number(batch.span.to))
                .push_bind(batch.probe)
                .push_bind(batch.lease.grant)
                .push_bind(batch.stream)
                .push_bind(number(batch.sequence))
                .push_bind(number(batch.started.0))
                .push_bind(number(batch.took_ms));
            for count in [
                coverage.packets,
                batch.duplicates,
                coverage.up,
                coverage.open,
                coverage.closed,
                coverage.filtered,
                coverage.unfiltered,
                coverage.silent,
                coverage.refused,
                coverage.not_reached,
            ] {
                row.push_bind(number(count));
            }
        });
        run(connection, builder, chunk.len(), "store batches").await?;
    }
    Ok(())
}

async fn write_observations(connection: &mut SqliteConnection, observations: &[Observation]) -> Result<()> {
    let mut sorted: Vec<&Observation> = observations.iter().collect();
    sorted.sort_unstable_by_key(|answer| (answer.job, answer.rank, answer.probe));
    for chunk in sorted.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO observations (job, rank, probe, state, reason, origin, rtt_us, ttl, seen) ");
        builder.push_values(chunk, |mut row, answer| {
            row.push_bind(number(answer.job.0))
                .push_bind(number(answer.rank))
                .push_bind(answer.probe)
                .push_bind(state_number(answer.state))
                .push_bind(state_reason(answer.state))
                .push_bind(state_origin(answer.state))
                .push_bind(number(answer.rtt_us))
                .push_bind(answer.ttl)
                .push_bind(number(answer.seen.0));
        });
        run(connection, builder, chunk.len(), "store answers").await?;
    }
    Ok(())
}

/// The protocol's number, as IP has it; 0 for a host as a whole.
fn transport_number(transport: Option<Transport>) -> i64 {
    match transport {
        None => 0,
        Some(Transport::Tcp) => 6,
        Some(Transport::Udp) => 17,
        Some(Transport::Sctp) => 132,
    }
}

fn parse_transport(row: &SqliteRow) -> Option<Transport> {
    let number: i64 = row.get("transport");
    Transport::ALL.into_iter().find(|transport| transport_number(Some(*transport)) == number)
}

/// Whether a state tells if the port is open; that a filter lets packets through says less, and does not replace it.
fn says_more(state: State) -> bool {
    matches!(state, State::Open | State::Closed)
}

async fn write_ports(connection: &mut SqliteConnection, ports: &[PortRow]) -> Result<()> {
    let mut latest: BTreeMap<(&str, Vec<u8>, i32, i64), &Observation> = BTreeMap::new();
    let mut hosts: BTreeMap<(&str, Vec<u8>), (UnixMillis, UnixMillis)> = BTreeMap::new();
    for row in ports {
        let addr = addr_bytes(row.addr);
        let answer = &row.answer;
        // An ICMP error may come from a router on the way: it says nothing of the host.
        if !answer.state.is_hearsay() {
            let seen = hosts.entry((row.site.as_str(), addr.clone())).or_insert((answer.seen, answer.seen));
            *seen = (seen.0.min(answer.seen), seen.1.max(answer.seen));
        }
        let key = (row.site.as_str(), addr, row.port.map_or(-1, i32::from), transport_number(row.transport));
        let entry = latest.entry(key).or_insert(answer);
        if answer.seen >= entry.seen && !(answer.state == State::Unfiltered && says_more(entry.state)) {
            *entry = answer;
        }
    }
    let latest: Vec<_> = latest.into_iter().collect();
    for chunk in latest.chunks(ROWS) {
        let mut builder =
            QueryBuilder::new("INSERT INTO ports (site, addr, port, transport, state, reason, origin, rtt_us, ttl, seen, probe, job) ");
        builder.push_values(chunk, |mut row, ((site, addr, port, transport), answer)| {
            row.push_bind(*site)
                .push_bind(addr.as_slice())
                .push_bind(*port)
                .push_bind(*transport)
                .push_bind(state_number(answer.state))
                .push_bind(state_reason(answer.state))
                .push_bind(state_origin(answer.state))
                .push_bind(number(answer.rtt_us))
                .push_bind(answer.ttl)
                .push_bind(number(answer.seen.0))
                .push_bind(answer.probe)
                .push_bind(number(answer.job.0));
        });
        builder.push(
            " ON CONFLICT (site, addr, port, transport) DO UPDATE SET state = excluded.state, reason = excluded.reason, \
             origin = excluded.origin, rtt_us = excluded.rtt_us, ttl = excluded.ttl, seen = excluded.seen, probe = excluded.probe, \
             job = excluded.job WHERE excluded.seen >= ports.seen AND NOT (excluded.state = 5 AND ports.state IN (2, 3))",
        );
        run(connection, builder, chunk.len(), "store ports").await?;
    }
    let hosts: Vec<_> = hosts.into_iter().collect();
    for chunk in hosts.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO hosts (site, addr, first_seen, last_seen) ");
        builder.push_values(chunk, |mut row, ((site, addr), (first, last))| {
            row.push_bind(*site).push_bind(addr.as_slice()).push_bind(number(first.0)).push_bind(number(last.0));
        });
        builder.push(
            " ON CONFLICT (site, addr) DO UPDATE SET first_seen = min(hosts.first_seen, excluded.first_seen), \
             last_seen = max(hosts.last_seen, excluded.last_seen)",
        );
        run(connection, builder, chunk.len(), "store hosts").await?;
    }
    Ok(())
}

/// Gives the late answers that count.
async fn write_projection(connection: &mut SqliteConnection, projection: &Projection) -> Result<Vec<LateRow>> {
    write_batches(connection, &projection.batches).await?;
    write_observations(connection, &projection.observations).await?;
    write_ports(connection, &projection.ports).await?;
    extras::write_services(connection, &projection.services).await?;
    extras::write_link_hosts(connection, &projection.link_hosts).await?;
    paths::write(connection, &projection.paths).await?;
    paths::write_ends(connection, &projection.path_ends).await?;
    paths::settle(connection, &projection.settled_paths).await?;
    captures::write_over(connection, &projection.overs).await?;
    extras::write_lates(connection, &projection.lates).await
}

async fn count(connection: &mut SqliteConnection, sql: &'static str) -> Result<u64> {
    let row = sqlx::query(sql).fetch_one(connection).await.doing("count rows")?;
    Ok(row.get::<i64, _>(0) as u64)
}

fn observation(row: &SqliteRow, rank: u64) -> Result<Observation> {
    Ok(Observation {
        job: JobId(unsigned(row, "job")),
        rank,
        probe: row.get("probe"),
        state: parse_state(row)?,
        rtt_us: unsigned(row, "rtt_us"),
        ttl: row.get("ttl"),
        seen: moment(row, "seen"),
    })
}

/// `AND (column BETWEEN a AND b OR ...)`; nothing at all matches an empty list.
fn push_between(builder: &mut QueryBuilder<'_, Sqlite>, column: &str, ranges: impl IntoIterator<Item = (i64, i64)>) {
    builder.push(" AND (0");
    for (first, last) in ranges {
        builder.push(" OR ").push(column).push(" BETWEEN ").push_bind(first).push(" AND ").push_bind(last);
    }
    builder.push(")");
}

#[async_trait]
impl Store for SqliteStore {
    async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").fetch_one(&self.readers).await.doing("ask the database").map(drop)
    }

    async fn number(&self, name: &str) -> Result<u64> {
        let row =
            sqlx::query("SELECT value FROM meta WHERE name = ?").bind(name).fetch_optional(&self.writer).await.doing("read a number")?;
        Ok(row.map_or(0, |row| unsigned(&row, "value")))
    }

    async fn raise_number(&self, name: &str, value: u64) -> Result<()> {
        sqlx::query("INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)")
            .bind(name)
            .bind(number(value))
            .execute(&self.writer)
            .await
            .doing("keep a number")
            .map(drop)
    }

    async fn probes(&self) -> Result<Vec<ProbeRecord>> {
        let sql = "SELECT p.*, (SELECT max(not_after) FROM certificates c WHERE c.probe = p.key AND c.revoked = 0) AS certificate_expires \
                   FROM probes p ORDER BY p.id";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await.doing("read the probes")?;
        rows.iter().map(probe_record).collect()
    }

    async fn put_probe(&self, probe: &ProbeRecord) -> Result<i64> {
        let mut transaction = self.begin().await?;
        let key = write_probe(&mut transaction, probe).await?;
        transaction.commit().await.doing("store a probe")?;
        Ok(key)
    }

    async fn invite(&self, probe: &ProbeRecord, token: &EnrolToken) -> Result<i64> {
        let mut transaction = self.begin().await?;
        let key = write_probe(&mut transaction, probe).await?;
        sqlx::query(
            "INSERT INTO enrol_tokens (probe, hash, expires, used) VALUES (?, ?, ?, NULL) \
             ON CONFLICT (probe) DO UPDATE SET hash = excluded.hash, expires = excluded.expires, used = NULL",
        )
        .bind(key)
        .bind(token.hash.as_slice())
        .bind(number(token.expires.0))
        .execute(&mut *transaction)
        .await
        .doing("store a token")?;
        transaction.commit().await.doing("store a token")?;
        Ok(key)
    }

    async fn enrol_token(&self, probe: i64) -> Result<Option<EnrolToken>> {
        let row = sqlx::query("SELECT * FROM enrol_tokens WHERE probe = ?")
            .bind(probe)
            .fetch_optional(&self.writer)
            .await
            .doing("read a token")?;
        row.map(|row| Ok(EnrolToken { hash: hash(&row, "hash")?, expires: moment(&row, "expires"), used: maybe_moment(&row, "used") }))
            .transpose()
    }

    async fn enrol(&self, probe: &ProbeRecord, hash: &[u8; 32], certificate: &CertificateRecord, now: UnixMillis) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let used = sqlx::query("UPDATE enrol_tokens SET used = ? WHERE probe = ? AND hash = ? AND used IS NULL AND expires >= ?")
            .bind(number(now.0))
            .bind(probe.key)
            .bind(hash.as_slice())
            .bind(number(now.0))
            .execute(&mut *transaction)
            .await
            .doing("use up a token")?;
        if used.rows_affected() != 1 {
            return Ok(false);
        }
        write_probe(&mut transaction, probe).await?;
        sqlx::query("INSERT INTO certificates (serial, probe, not_after) VALUES (?, ?, ?)")
            .bind(certificate.serial.to_string())
            .bind(probe.key)
            .bind(number(certificate.not_after.0))
            .execute(&mut *transaction)
            .await
            .doing("store a certificate")?;
        transaction.commit().await.doing("store an enrolment")?;
        Ok(true)
    }

    async fn revoke(&self, probe: &ProbeRecord) -> Result<()> {
        let mut transaction = self.begin().await?;
        write_probe(&mut transaction, probe).await?;
        for sql in ["UPDATE certificates SET revoked = 1 WHERE probe = ?", "DELETE FROM enrol_tokens WHERE probe = ?"] {
            sqlx::query(sql).bind(probe.key).execute(&mut *transaction).await.doing("revoke certificates")?;
        }
        transaction.commit().await.doing("revoke a probe")
    }

    async fn revoked(&self, now: UnixMillis) -> Result<Vec<Serial>> {
        let sql = "SELECT serial FROM certificates WHERE revoked = 1 AND not_after >= ? ORDER BY serial";
        let rows = sqlx::query(sql).bind(number(now.0)).fetch_all(&self.readers).await.doing("read revoked certificates")?;
        rows.iter().map(|row| parse("read revoked certificates", row.get("serial"))).collect()
    }

    async fn add_api_token(&self, token: &ApiToken) -> Result<bool> {
        let done =
            sqlx::query("INSERT INTO api_tokens (name, hash, scope, created, expires) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(&token.name)
                .bind(token.hash.as_slice())
                .bind(token.scope.as_str())
                .bind(number(token.created.0))
                .bind(token.expires.map(|at| number(at.0)))
                .execute(&self.writer)
                .await
                .doing("store an API token")?;
        Ok(done.rows_affected() == 1)
    }

    async fn api_tokens(&self) -> Result<Vec<ApiToken>> {
        let rows = sqlx::query("SELECT * FROM api_tokens ORDER BY name").fetch_all(&self.readers).await.doing("read the API tokens")?;
        let token = |row: &SqliteRow| {
            Ok(ApiToken {
                name: row.get("name"),
                hash: hash(row, "hash")?,
                scope: parse("read an API token", row.get("scope"))?,
                created: moment(row, "created"),
                expires: maybe_moment(row, "expires"),
            })
        };
        rows.iter().map(token).collect()
    }

    async fn remove_api_token(&self, name: &str) -> Result<bool> {
        let done =
            sqlx::query("DELETE FROM api_tokens WHERE name = ?").bind(name).execute(&self.writer).await.doing("remove an API token")?;
        Ok(done.rows_affected() == 1)
    }

    async fn put_user(&self, user: &UserRecord) -> Result<()> {
        sqlx::query(
            "INSERT INTO dashboard_users (name, hash, created) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET hash = excluded.hash",
        )
        .bind(&user.name)
        .bind(user.hash.as_slice())
        .bind(number(user.created.0))
        .execute(&self.writer)
        .await
        .doing("store a dashboard user")
        .map(drop)
    }

    async fn users(&self) -> Result<Vec<UserRecord>> {
        let rows =
            sqlx::query("SELECT * FROM dashboard_users ORDER BY name").fetch_all(&self.readers).await.doing("read the dashboard users")?;
        let user = |row: &SqliteRow| Ok(UserRecord { name: row.get("name"), hash: hash(row, "hash")?, created: moment(row, "created") });
        rows.iter().map(user).collect()
    }

    async fn remove_user(&self, name: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM dashboard_users WHERE name = ?")
            .bind(name)
            .execute(&self.writer)
            .await
            .doing("remove a dashboard user")?;
        Ok(done.rows_affected() == 1)
    }

    async fn active_jobs(&self) -> Result<Vec<JobStored>> {
        let sql = "SELECT id FROM jobs WHERE state IN ('pending', 'running', 'cancelling') ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await.doing("read the jobs")?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            jobs.extend(self.job_rows(JobId(unsigned(&row, "id"))).await?);
        }
        Ok(jobs)
    }

    async fn job(&self, id: JobId) -> Result<Option<JobStored>> {
        self.job_rows(id).await
    }

    async fn job_ids(&self, states: &[JobState], before: Option<JobId>, limit: u32) -> Result<Vec<JobId>> {
        let mut builder = QueryBuilder::new("SELECT id FROM jobs WHERE 1");
        if !states.is_empty() {
            builder.push(" AND state IN (");
            let mut list = builder.separated(", ");
            for state in states {
                list.push_bind(job_state_text(*state));
            }
            builder.push(")");
        }
        if let Some(before) = before {
            builder.push(" AND id < ").push_bind(number(before.0));
        }
        builder.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
        let rows = builder.build().fetch_all(&self.readers).await.doing("list the jobs")?;
        Ok(rows.iter().map(|row| JobId(unsigned(row, "id"))).collect())
    }

    async fn apply(&self, changes: &[Change]) -> Result<()> {
        let mut transaction = self.begin().await?;
        for change in changes {
            write_change(&mut transaction, change).await?;
        }
        transaction.commit().await.doing("store changes of jobs")
    }

    async fn stream(&self, probe: i64, stream: StreamId) -> Result<StreamRecord> {
        let sql = "INSERT INTO streams (probe, stream, stored) VALUES (?, ?, 0) \
                   ON CONFLICT (probe, stream) DO UPDATE SET stored = stored RETURNING key, stored";
        let row = sqlx::query(sql).bind(probe).bind(number(stream.0)).fetch_one(&self.writer).await.doing("look up a stream")?;
        Ok(StreamRecord { key: row.get("key"), stored: unsigned(&row, "stored") })
    }

    async fn ingest(&self, ingest: &Ingest) -> Result<Ingested> {
        let mut transaction = self.begin().await?;
        write_raw(&mut transaction, &ingest.records).await?;
        let lates = write_projection(&mut transaction, &ingest.projection).await?;
        for (stream, stored) in &ingest.stored {
            sqlx::query("UPDATE streams SET stored = max(stored, ?) WHERE key = ?")
                .bind(number(*stored))
                .bind(stream)
                .execute(&mut *transaction)
                .await
                .doing("store a stream's mark")?;
        }
        for (stream, records, bytes) in &ingest.losses {
            sqlx::query("UPDATE streams SET lost_records = max(lost_records, ?), lost_bytes = max(lost_bytes, ?) WHERE key = ?")
                .bind(number(*records))
                .bind(number(*bytes))
                .bind(stream)
                .execute(&mut *transaction)
                .await
                .doing("store a stream's losses")?;
        }
        for change in &ingest.changes {
            write_change(&mut transaction, change).await?;
        }
        transaction.commit().await.doing("store results")?;
        Ok(Ingested { lates })
    }

    async fn rebuild(&self, projector: &mut dyn Projector) -> Result<RebuildCounts> {
        let mut transaction = self.begin().await?;
        for table in ["batches", "observations", "ports", "hosts", "services", "job_services", "link_hosts", "job_hosts", "paths"] {
            sqlx::query(&format!("DELETE FROM {table}")).execute(&mut *transaction).await.doing("clear the projections")?;
        }
        sqlx::query("UPDATE captures SET over = NULL").execute(&mut *transaction).await.doing("clear the projections")?;
        let mut counts = RebuildCounts::default();
        let mut last = 0i64;
        loop {
            let rows = sqlx::query(
                "SELECT r.*, p.id AS probe FROM raw_records r JOIN streams s ON s.key = r.stream JOIN probes p ON p.key = s.probe \
                 WHERE r.arrival > ? ORDER BY r.arrival LIMIT ?",
            )
            .bind(last)
            .bind(REBUILD_PAGE)
            .fetch_all(&mut *transaction)
            .await
            .doing("read raw records")?;
            if rows.is_empty() {
                break;
            }
            let mut projection = Projection::default();
            for row in &rows {
                last = row.get("arrival");
                let record = raw_record(row);
                let probe: ProbeId = parse("read raw records", row.get("probe"))?;
                let (fate, reason) = projector.project(&probe, &record, &mut projection);
                counts.records += 1;
                counts.rejected += u64::from(fate == Fate::Rejected);
                if fate != record.fate || reason != record.reason {
                    sqlx::query("UPDATE raw_records SET outcome = ?, reason = ? WHERE arrival = ?")
                        .bind(fate_number(fate))
                        .bind(reason)
                        .bind(last)
                        .execute(&mut *transaction)
                        .await
                        .doing("store a raw record's outcome")?;
                }
            }
            write_projection(&mut transaction, &projection).await?;
        }
        counts.batches = count(&mut transaction, "SELECT count(*) FROM batches").await?;
        counts.observations = count(&mut transaction, "SELECT count(*) FROM observations").await?;
        counts.hosts = count(&mut transaction, "SELECT count(*) FROM hosts").await?;
        counts.ports = count(&mut transaction, "SELECT count(*) FROM ports").await?;
        counts.services = count(&mut transaction, "SELECT count(*) FROM services").await?;
        counts.link_hosts = count(&mut transaction, "SELECT count(*) FROM link_hosts").await?;
        counts.paths = count(&mut transaction, "SELECT count(*) FROM paths").await?;
        transaction.commit().await.doing("store the projections")?;
        Ok(counts)
    }

    async fn observations(&self, query: &ObservationQuery) -> Result<Vec<Found>> {
        let mut builder = QueryBuilder::new(
            "SELECT o.*, p.id AS probe_id, p.site AS site, s.outcome AS service, s.seen AS asked FROM observations o \
             JOIN probes p ON p.key = o.probe \
             LEFT JOIN job_services s ON o.state = 2 AND s.job = o.job AND s.rank = o.rank AND s.probe = o.probe WHERE o.job = ",
        );
        builder.push_bind(number(query.job.0));
        if let Some((rank, probe)) = query.after {
            builder.push(" AND (o.rank, o.probe) > (").push_bind(number(rank)).push(", ").push_bind(probe).push(")");
        }
        if let Some(ranks) = &query.ranks {
            push_between(&mut builder, "o.rank", ranks.iter().map(|(first, last)| (number(*first), number(*last))));
        }
        if let Some((width, columns)) = &query.columns {
            let column = format!("o.rank % {width}");
            push_between(&mut builder, &column, columns.iter().map(|(first, last)| (number(*first), number(*last))));
        }
        if let Some(state) = query.state {
            builder.push(" AND o.state = ").push_bind(state);
        }
        if let Some(site) = &query.site {
            builder.push(" AND p.site = ").push_bind(site.as_str());
        }
        if let Some(probe) = &query.probe {
            builder.push(" AND p.id = ").push_bind(probe.as_str());
        }
        builder.push(" ORDER BY o.rank, o.probe LIMIT ").push_bind(query.limit);
        let rows = builder.build().fetch_all(&self.readers).await.doing("read answers")?;
        let found = |row: &SqliteRow| {
            Ok(Found {
                answer: observation(row, unsigned(row, "rank"))?,
                probe: parse("read answers", row.get("probe_id"))?,
                site: parse("read answers", row.get("site"))?,
                service: extras::service(row)?,
            })
        };
        rows.iter().map(found).collect()
    }

    async fn ports(&self, query: &PortQuery) -> Result<Vec<FoundPort>> {
        let mut builder = QueryBuilder::new(
            "SELECT o.*, p.id AS probe_id, s.outcome AS service, s.seen AS asked FROM ports o JOIN probes p ON p.key = o.probe \
             LEFT JOIN services s ON o.state = 2 AND s.site = o.site AND s.addr = o.addr AND s.port = o.port \
             AND s.transport = o.transport WHERE 1",
        );
        if let Some((site, addr, port, transport)) = &query.after {
            builder.push(" AND (o.site, o.addr, o.port, o.transport) > (").push_bind(site.as_str()).push(", ").push_bind(addr_bytes(*addr));
            builder.push(", ").push_bind(port.map_or(-1, i32::from)).push(", ").push_bind(transport_number(*transport)).push(")");
        }
        if let Some((first, last)) = query.addrs {
            builder.push(" AND o.addr BETWEEN ").push_bind(addr_bytes(first)).push(" AND ").push_bind(addr_bytes(last));
        }
        if let Some(ports) = &query.ports {
            push_between(&mut builder, "o.port", ports.iter().map(|(first, last)| (i64::from(*first), i64::from(*last))));
        }
        if let Some(state) = query.state {
            builder.push(" AND o.state = ").push_bind(state);
        }
        if let Some(site) = &query.site {
            builder.push(" AND o.site = ").push_bind(site.as_str());
        }
        if let Some(probe) = &query.probe {
            builder.push(" AND p.id = ").push_bind(probe.as_str());
        }
        builder.push(" ORDER BY o.site, o.addr, o.port, o.transport LIMIT ").push_bind(query.limit);
        let rows = builder.build().fetch_all(&self.readers).await.doing("read ports")?;
        let mut techniques: HashMap<JobId, Technique> = HashMap::new();
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let job = JobId(unsigned(row, "job"));
            let technique = match techniques.get(&job) {
                Some(technique) => *technique,
                None => {
                    let row = sqlx::query("SELECT spec FROM jobs WHERE id = ?")
                        .bind(number(job.0))
                        .fetch_one(&self.readers)
                        .await
                        .doing("read a job")?;
                    let spec: JobSpec = codec::decode(&row.get::<Vec<u8>, _>("spec")).map_err(|error| damaged("read a job", error))?;
                    let options = spec.kind.scan();
                    techniques.insert(job, options.technique);
                    options.technique
                }
            };
            let site: SiteName = parse("read ports", row.get("site"))?;
            let addr = parse_addr(row.get("addr"))?;
            let port = u16::try_from(row.get::<i64, _>("port")).ok();
            let probe = parse("read ports", row.get("probe_id"))?;
            let transport = parse_transport(row);
            let row_found = PortRow { site, addr, port, transport, answer: observation(row, 0)? };
            found.push(FoundPort { row: row_found, probe, technique, service: extras::service(row)? });
        }
        Ok(found)
    }

    async fn link_hosts(&self, query: &LinkHostQuery) -> Result<Vec<FoundHost>> {
        extras::link_hosts(&self.readers, query).await
    }

    async fn paths(&self, query: &PathQuery) -> Result<Vec<FoundPath>> {
        paths::read(&self.readers, query).await
    }

    async fn put_path_baselines(&self, baselines: &[PathBaseline]) -> Result<()> {
        let mut transaction = self.begin().await?;
        paths::write_baselines(&mut transaction, baselines).await?;
        transaction.commit().await.doing("accept ways")
    }

    async fn put_chunk(&self, row: &CaptureRow, chunk: &Chunk, came: UnixMillis) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let taken = captures::write_chunk(&mut transaction, row, chunk, came).await?;
        transaction.commit().await.doing("store bytes of a capture")?;
        Ok(taken)
    }

    async fn captures(&self, query: &CaptureQuery) -> Result<Vec<FoundCapture>> {
        captures::read(&self.readers, query).await
    }

    async fn capture_chunks(&self, lease: LeaseId, from: u64, limit: u32) -> Result<Vec<StoredChunk>> {
        captures::read_chunks(&self.readers, lease, from, limit).await
    }

    async fn captures_size(&self) -> Result<u64> {
        captures::size(&self.readers).await
    }

    async fn capture_checked(&self, lease: LeaseId, stored: u64, right: bool) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let done = captures::write_checked(&mut transaction, lease, stored, right).await?;
        transaction.commit().await.doing("enter what the digest of a capture says")?;
        Ok(done)
    }

    async fn remove_capture(&self, lease: LeaseId, at: UnixMillis, remover: &str) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let done = captures::remove(&mut transaction, lease, at, remover).await?;
        transaction.commit().await.doing("remove a capture")?;
        Ok(done)
    }

    async fn note_download(&self, lease: LeaseId, download: &Download) -> Result<()> {
        captures::write_download(&self.writer, lease, download).await
    }

    async fn downloads(&self, lease: LeaseId, limit: u32) -> Result<Vec<Download>> {
        captures::read_downloads(&self.readers, lease, limit).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn sqlite_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picket.db");
        super::super::contract::suite(Arc::new(SqliteStore::open(&path).await.unwrap())).await;
        let again = SqliteStore::open(&path).await.unwrap();
        assert_eq!(again.probes().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn commits_are_on_the_disk_and_keys_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("picket.db")).await.unwrap();
        for (pragma, value) in [("synchronous", 2), ("foreign_keys", 1)] {
            let row = sqlx::query(&format!("PRAGMA {pragma}")).fetch_one(&store.writer).await.unwrap();
            assert_eq!(row.get::<i64, _>(0), value, "{pragma}");
        }
        let row = sqlx::query("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap();
        assert_eq!(row.get::<String, _>(0), "wal");
    }

    #[tokio::test]
    async fn a_database_of_the_first_version_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picket.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let old = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        Migrator::new(Embedded(1)).await.unwrap().run(&old).await.unwrap();
        for port in [-1, 80] {
            let row = "INSERT INTO ports (site, addr, port, state, reason, rtt_us, ttl, seen, probe, job) VALUES ('hq', x'04c6120001', ?, 2, 0, 1, 2, 3, 4, 5)";
            sqlx::query(row).bind(port).execute(&old).await.unwrap();
        }
        old.close().await;

        let store = SqliteStore::open(&path).await.unwrap();
        let rows = sqlx::query("SELECT port, transport FROM ports ORDER BY port").fetch_all(&store.readers).await.unwrap();
        let kept: Vec<(i64, i64)> = rows.iter().map(|row| (row.get("port"), row.get("transport"))).collect();
        assert_eq!(kept, [(-1, 0), (80, 6)]);
        let schema = async |store: &SqliteStore| {
            let rows =
                sqlx::query("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name").fetch_all(&store.readers).await.unwrap();
            rows.iter().map(|row| row.get::<String, _>("sql")).collect::<Vec<_>>()
        };
        let fresh = SqliteStore::open(&dir.path().join("fresh.db")).await.unwrap();
        assert_eq!(schema(&store).await, schema(&fresh).await);
    }
}
