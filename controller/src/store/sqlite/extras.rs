//! Services, hosts on links, and answers that came late.

use std::collections::BTreeMap;

use picket_wire::codec;
use picket_wire::host::{HardwareAddress, HostSeen, SeenBy};
use picket_wire::ids::JobId;
use picket_wire::result::Record;
use picket_wire::service::ServiceOutcome;
use picket_wire::units::UnixMillis;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row};

use super::{
    Doing, ROWS, Result, addr_bytes, damaged, json, maybe_moment, moment, number, parse, parse_addr, parse_json, run, transport_number,
    unsigned, write_observations, write_ports,
};
use crate::results::project::Silence;
use crate::store::{FoundHost, FoundService, LateRow, LinkHostQuery, LinkHostRow, Observation, PortRow, ServiceRow};

/// What a row says of the service behind it.
pub(super) fn service(row: &SqliteRow) -> Result<Option<FoundService>> {
    let Some(bytes) = row.get::<Option<Vec<u8>>, _>("service") else { return Ok(None) };
    let outcome: ServiceOutcome = codec::decode(&bytes).map_err(|error| damaged("read a service", error))?;
    Ok(Some((outcome, maybe_moment(row, "asked").unwrap_or_default())))
}

/// The last of several rows with the same key: one statement may not write a row twice.
pub(super) fn last_of<K: Ord, T>(rows: &[T], key: impl Fn(&T) -> K) -> Vec<&T> {
    rows.iter().map(|row| (key(row), row)).collect::<BTreeMap<K, &T>>().into_values().collect()
}

pub(super) async fn write_services(connection: &mut SqliteConnection, services: &[ServiceRow]) -> Result<()> {
    let rows = last_of(services, |row| (row.job, row.rank, row.probe));
    for chunk in rows.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO job_services (job, rank, probe, outcome, seen) ");
        builder.push_values(chunk, |mut values, row| {
            values.push_bind(number(row.job.0)).push_bind(number(row.rank)).push_bind(row.probe);
            values.push_bind(codec::encode(&row.outcome)).push_bind(number(row.seen.0));
        });
        builder.push(" ON CONFLICT (job, rank, probe) DO UPDATE SET outcome = excluded.outcome, seen = excluded.seen");
        run(connection, builder, chunk.len(), "store a job's services").await?;
    }
    let rows = last_of(services, |row| (row.site.clone(), row.addr, row.port, row.transport));
    for chunk in rows.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO services (site, addr, port, transport, name, outcome, seen, probe, job) ");
        builder.push_values(chunk, |mut values, row| {
            let name = match &row.outcome {
                ServiceOutcome::Identified(service) => Some(service.name.clone()),
                _ => None,
            };
            values.push_bind(row.site.as_str()).push_bind(addr_bytes(row.addr)).push_bind(row.port);
            values.push_bind(transport_number(Some(row.transport))).push_bind(name).push_bind(codec::encode(&row.outcome));
            values.push_bind(number(row.seen.0)).push_bind(row.probe).push_bind(number(row.job.0));
        });
        builder.push(
            " ON CONFLICT (site, addr, port, transport) DO UPDATE SET name = excluded.name, outcome = excluded.outcome, \
             seen = excluded.seen, probe = excluded.probe, job = excluded.job WHERE excluded.seen >= services.seen",
        );
        run(connection, builder, chunk.len(), "store services").await?;
    }
    Ok(())
}

pub(super) async fn write_link_hosts(connection: &mut SqliteConnection, hosts: &[LinkHostRow]) -> Result<()> {
    let mac = |row: &LinkHostRow| row.host.mac.map(|mac| mac.0.to_vec());
    let how = |row: &LinkHostRow| row.host.how.as_str();
    let rows = last_of(hosts, |row| (row.job, row.host.addr, row.probe));
    for chunk in rows.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO job_hosts (job, addr, probe, mac, how, seen) ");
        builder.push_values(chunk, |mut values, row| {
            values.push_bind(number(row.job.0)).push_bind(addr_bytes(row.host.addr)).push_bind(row.probe);
            values.push_bind(mac(row)).push_bind(how(row)).push_bind(number(row.seen.0));
        });
        builder.push(" ON CONFLICT (job, addr, probe) DO UPDATE SET mac = excluded.mac, how = excluded.how, seen = excluded.seen");
        run(connection, builder, chunk.len(), "store a job's hosts").await?;
    }
    let rows = last_of(hosts, |row| (row.site.clone(), row.host.addr));
    for chunk in rows.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO link_hosts (site, addr, mac, how, first_seen, last_seen, probe, job) ");
        builder.push_values(chunk, |mut values, row| {
            values.push_bind(row.site.as_str()).push_bind(addr_bytes(row.host.addr)).push_bind(mac(row)).push_bind(how(row));
            values.push_bind(number(row.seen.0)).push_bind(number(row.seen.0)).push_bind(row.probe).push_bind(number(row.job.0));
        });
        builder.push(
            " ON CONFLICT (site, addr) DO UPDATE SET mac = excluded.mac, how = excluded.how, \
             first_seen = min(link_hosts.first_seen, excluded.first_seen), last_seen = excluded.last_seen, probe = excluded.probe, \
             job = excluded.job WHERE excluded.last_seen >= link_hosts.last_seen",
        );
        run(connection, builder, chunk.len(), "store hosts on links").await?;
    }
    // A proxy answers for addresses behind which nobody may be.
    let hosts: Vec<&LinkHostRow> = rows.into_iter().filter(|row| row.host.how != SeenBy::ProxyArp).collect();
    for chunk in hosts.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO hosts (site, addr, first_seen, last_seen) ");
        builder.push_values(chunk, |mut values, row| {
            values.push_bind(row.site.as_str()).push_bind(addr_bytes(row.host.addr));
            values.push_bind(number(row.seen.0)).push_bind(number(row.seen.0));
        });
        builder.push(
            " ON CONFLICT (site, addr) DO UPDATE SET first_seen = min(hosts.first_seen, excluded.first_seen), \
             last_seen = max(hosts.last_seen, excluded.last_seen)",
        );
        run(connection, builder, chunk.len(), "store hosts").await?;
    }
    Ok(())
}

/// The batch that counts for a position, as far as late answers need it.
struct Reported {
    lease: u32,
    probe: i64,
    stream: i64,
    sequence: u64,
    first: u64,
    past: u64,
    ended: UnixMillis,
    silence: Silence,
}

/// Enters late answers where they count; gives those that do.
pub(super) async fn write_lates(connection: &mut SqliteConnection, lates: &[LateRow]) -> Result<Vec<LateRow>> {
    let mut counted = Vec::new();
    let mut reported: Option<Reported> = None;
    for late in lates {
        let same = |known: &Reported| known.lease == late.lease.grant && (known.first..known.past).contains(&late.position);
        if !reported.as_ref().is_some_and(same) {
            reported = find_reported(connection, late, reported.take()).await?;
        }
        let Some(known) = reported.as_ref().filter(|known| same(known) && known.probe == late.row.answer.probe) else { continue };
        if known.silence.holds(late.position) && write_late(connection, late, known).await? {
            counted.push(late.clone());
        }
    }
    Ok(counted)
}

/// Reads the batch behind a position. Several pieces may be of one record, which is read once.
async fn find_reported(connection: &mut SqliteConnection, late: &LateRow, known: Option<Reported>) -> Result<Option<Reported>> {
    let action = "look for a late answer's batch";
    let row = sqlx::query(
        "SELECT first, past, probe, lease, stream, sequence, started, took_ms FROM batches \
         WHERE job = ? AND part = ? AND first <= ? AND past > ? ORDER BY first DESC LIMIT 1",
    )
    .bind(number(late.lease.job.0))
    .bind(late.part)
    .bind(number(late.position))
    .bind(number(late.position))
    .fetch_optional(&mut *connection)
    .await
    .doing(action)?;
    let Some(row) = row else { return Ok(None) };
    let (stream, sequence): (i64, u64) = (row.get("stream"), unsigned(&row, "sequence"));
    let silence = match known.filter(|known| (known.stream, known.sequence) == (stream, sequence)) {
        Some(known) => known.silence,
        None => {
            let raw = sqlx::query("SELECT bytes FROM raw_records WHERE stream = ? AND sequence = ?")
                .bind(stream)
                .bind(number(sequence))
                .fetch_optional(&mut *connection)
                .await
                .doing(action)?;
            let Some(bytes) = raw.map(|raw| raw.get::<Vec<u8>, _>("bytes")) else { return Ok(None) };
            let Ok(Record::Batch(batch)) = codec::decode(&bytes) else { return Ok(None) };
            Silence::of(&batch)
        }
    };
    Ok(Some(Reported {
        lease: row.get("lease"),
        probe: row.get("probe"),
        stream,
        sequence,
        first: unsigned(&row, "first"),
        past: unsigned(&row, "past"),
        ended: UnixMillis(unsigned(&row, "started").saturating_add(unsigned(&row, "took_ms"))),
        silence,
    }))
}

/// `false` where the position has an answer already.
async fn write_late(connection: &mut SqliteConnection, late: &LateRow, known: &Reported) -> Result<bool> {
    let answer = Observation { seen: known.ended, ..late.row.answer };
    let job = number(late.lease.job.0);
    let there = sqlx::query("SELECT 1 FROM observations WHERE job = ? AND rank = ? AND probe = ?")
        .bind(job)
        .bind(number(answer.rank))
        .bind(answer.probe)
        .fetch_optional(&mut *connection)
        .await
        .doing("look for an answer")?;
    if there.is_some() {
        return Ok(false);
    }
    // One of five names, none of them from outside.
    let column = match crate::store::state_number(answer.state) {
        1 => "up",
        2 => "open",
        3 => "closed",
        4 => "filtered",
        _ => "unfiltered",
    };
    let sql =
        format!("UPDATE batches SET silent = silent - 1, {column} = {column} + 1 WHERE job = ? AND part = ? AND first = ? AND silent > 0");
    let changed = sqlx::query(&sql)
        .bind(job)
        .bind(late.part)
        .bind(number(known.first))
        .execute(&mut *connection)
        .await
        .doing("count a late answer")?;
    if changed.rows_affected() != 1 {
        return Ok(false);
    }
    write_observations(connection, &[answer]).await?;
    write_ports(connection, &[PortRow { answer, ..late.row.clone() }]).await?;
    Ok(true)
}

pub(super) async fn link_hosts(readers: &SqlitePool, query: &LinkHostQuery) -> Result<Vec<FoundHost>> {
    let mut builder = QueryBuilder::new(match query.job {
        Some(_) => {
            "SELECT h.job, h.addr, h.mac, h.how, h.seen AS first_seen, h.seen AS last_seen, h.probe AS key, p.id AS probe, p.site AS site \
             FROM job_hosts h JOIN probes p ON p.key = h.probe WHERE 1"
        }
        None => {
            "SELECT h.job, h.addr, h.mac, h.how, h.first_seen, h.last_seen, h.probe AS key, p.id AS probe, h.site AS site \
             FROM link_hosts h JOIN probes p ON p.key = h.probe WHERE 1"
        }
    });
    if let Some(job) = query.job {
        builder.push(" AND h.job = ").push_bind(number(job.0));
    }
    let site = if query.job.is_some() { "p.site" } else { "h.site" };
    if let Some((after, addr, probe)) = &query.after {
        builder.push(format!(" AND ({site}, h.addr, p.id) > (")).push_bind(after.as_str());
        builder.push(", ").push_bind(addr_bytes(*addr)).push(", ").push_bind(probe.as_str()).push(")");
    }
    if let Some((first, last)) = query.addrs {
        builder.push(" AND h.addr BETWEEN ").push_bind(addr_bytes(first)).push(" AND ").push_bind(addr_bytes(last));
    }
    if let Some(wanted) = &query.site {
        builder.push(format!(" AND {site} = ")).push_bind(wanted.as_str());
    }
    if let Some(probe) = &query.probe {
        builder.push(" AND p.id = ").push_bind(probe.as_str());
    }
    builder.push(format!(" ORDER BY {site}, h.addr, p.id LIMIT ")).push_bind(query.limit);
    let rows = builder.build().fetch_all(readers).await.doing("read hosts on links")?;
    rows.iter().map(found_host).collect()
}

fn found_host(row: &SqliteRow) -> Result<FoundHost> {
    let action = "read hosts on links";
    let mac = row.get::<Option<Vec<u8>>, _>("mac").map(|bytes| <[u8; 6]>::try_from(bytes).map(HardwareAddress));
    let mac = mac.transpose().map_err(|_| damaged(action, "a hardware address has not 6 bytes"))?;
    let how: SeenBy = parse_json(action, &json(&row.get::<String, _>("how")))?;
    let host = HostSeen { addr: parse_addr(row.get("addr"))?, mac, how };
    let seen = moment(row, "last_seen");
    let row_found =
        LinkHostRow { site: parse(action, row.get("site"))?, host, job: JobId(unsigned(row, "job")), probe: row.get("key"), seen };
    Ok(FoundHost { row: row_found, first_seen: moment(row, "first_seen"), probe: parse(action, row.get("probe"))? })
}
