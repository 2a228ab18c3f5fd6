//! Paths that were traced, and the ways that were accepted.

use std::net::IpAddr;

use picket_wire::codec;
use picket_wire::ids::JobId;
use sqlx::query_builder::Separated;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::extras::last_of;
use super::{Doing, ROWS, Result, addr_bytes, damaged, moment, number, parse, parse_addr, run, unsigned};
use crate::results::ways::Way;
use crate::store::{FoundPath, KnownWay, PathAfter, PathBaseline, PathQuery, PathRow, SettledPath, Trace};

/// The values of a row.
fn bind(mut values: Separated<'_, '_, Sqlite, &'static str>, row: &PathRow) {
    values.push_bind(number(row.job.0)).push_bind(number(row.rank)).push_bind(row.probe).push_bind(row.site.as_str().to_owned());
    values.push_bind(addr_bytes(row.dst)).push_bind(row.trace.flow()).push_bind(number(row.began.0));
    values.push_bind(number(row.seen.0)).push_bind(codec::encode(&row.trace));
}

/// Stores paths. One that was told again, since its batch was lost with a crash, takes the place of the one before.
pub(super) async fn write(connection: &mut SqliteConnection, paths: &[PathRow]) -> Result<()> {
    let rows = last_of(paths, |row| (row.job, row.rank, row.probe));
    for chunk in rows.chunks(ROWS) {
        let mut builder = QueryBuilder::new("INSERT INTO paths (job, rank, probe, site, addr, flow, began, seen, trace) ");
        builder.push_values(chunk, |values, row| bind(values, row));
        builder.push(
            " ON CONFLICT (job, rank, probe) DO UPDATE SET site = excluded.site, flow = excluded.flow, began = excluded.began, \
             seen = excluded.seen, trace = excluded.trace",
        );
        run(connection, builder, chunk.len(), "store paths").await?;
    }
    Ok(())
}

/// Stores ends without a path where an older path to the destination is known.
pub(super) async fn write_ends(connection: &mut SqliteConnection, ends: &[PathRow]) -> Result<()> {
    for chunk in ends.chunks(ROWS) {
        let mut builder = QueryBuilder::new("WITH n (job, rank, probe, site, addr, flow, began, seen, trace) AS (");
        builder.push_values(chunk, bind);
        builder.push(
            ") INSERT INTO paths (job, rank, probe, site, addr, flow, began, seen, trace) SELECT * FROM n WHERE EXISTS \
             (SELECT 1 FROM paths e WHERE e.addr = n.addr AND e.probe = n.probe AND e.flow = n.flow AND e.site = n.site \
             AND (e.seen, e.job) < (n.seen, n.job)) ON CONFLICT (job, rank, probe) DO NOTHING",
        );
        run(connection, builder, chunk.len(), "store ends of paths").await?;
    }
    Ok(())
}

/// Takes away what other probes told of places that are one probe's.
pub(super) async fn settle(connection: &mut SqliteConnection, settled: &[SettledPath]) -> Result<()> {
    for chunk in settled.chunks(ROWS) {
        let mut builder = QueryBuilder::new("WITH n (job, rank, probe) AS (");
        builder.push_values(chunk, |mut values, place| {
            values.push_bind(number(place.job.0)).push_bind(number(place.rank)).push_bind(place.probe);
        });
        builder.push(
            ") DELETE FROM paths WHERE (job, rank, probe) IN \
             (SELECT p.job, p.rank, p.probe FROM n CROSS JOIN paths p ON p.job = n.job AND p.rank = n.rank AND p.probe <> n.probe)",
        );
        run(connection, builder, chunk.len(), "settle whose paths count").await?;
    }
    Ok(())
}

/// What is newer comes first.
const ORDER: &str = "t.addr, t.probe, t.flow, -t.seen, -t.job";

pub(super) async fn read(readers: &SqlitePool, query: &PathQuery) -> Result<Vec<FoundPath>> {
    let mut builder = QueryBuilder::new(match query.known {
        false => "SELECT t.*, p.id AS probe_id FROM paths t JOIN probes p ON p.key = t.probe WHERE 1",
        true => {
            "SELECT t.*, p.id AS probe_id, b.way, b.accepted, b.actor, f.trace AS first, f.seen AS first_seen FROM paths t \
             JOIN probes p ON p.key = t.probe \
             LEFT JOIN path_baselines b ON b.site = t.site AND b.addr = t.addr AND b.probe = t.probe AND b.flow = t.flow \
             JOIN paths f ON (f.job, f.rank, f.probe) = (SELECT e.job, e.rank, e.probe FROM paths e \
             WHERE e.addr = t.addr AND e.probe = t.probe AND e.flow = t.flow AND e.site = t.site ORDER BY e.seen, e.job LIMIT 1) WHERE 1"
        }
    });
    if let Some(job) = query.job {
        builder.push(" AND t.job = ").push_bind(number(job.0));
    }
    match &query.after {
        Some(PathAfter::Rank(rank, probe)) => {
            builder.push(" AND (t.rank, t.probe) > (").push_bind(number(*rank)).push(", ").push_bind(*probe).push(")");
        }
        Some(PathAfter::Path { dst, probe, flow, seen, job }) => {
            builder.push(format!(" AND ({ORDER}) > (")).push_bind(addr_bytes(*dst)).push(", ").push_bind(*probe);
            builder
                .push(", ")
                .push_bind(flow.clone())
                .push(", ")
                .push_bind(number(seen.0).wrapping_neg())
                .push(", ")
                .push_bind(number(job.0).wrapping_neg())
                .push(")");
        }
        None => {}
    }
    if let Some((first, last)) = query.addrs {
        builder.push(" AND t.addr BETWEEN ").push_bind(addr_bytes(first)).push(" AND ").push_bind(addr_bytes(last));
    }
    if let Some(site) = &query.site {
        builder.push(" AND t.site = ").push_bind(site.as_str());
    }
    if let Some(probe) = &query.probe {
        builder.push(" AND p.id = ").push_bind(probe.as_str());
    }
    if query.latest {
        builder.push(
            " AND NOT EXISTS (SELECT 1 FROM paths n WHERE n.addr = t.addr AND n.probe = t.probe AND n.flow = t.flow AND n.site = t.site \
             AND (n.seen, n.job) > (t.seen, t.job))",
        );
    }
    let order = if query.job.is_some() { "t.rank, t.probe" } else { ORDER };
    builder.push(format!(" ORDER BY {order} LIMIT ")).push_bind(query.limit);
    builder.build().fetch_all(readers).await.doing("read paths")?.iter().map(|row| found(row, query.known)).collect()
}

/// Stores ways that somebody accepts.
pub(super) async fn write_baselines(connection: &mut SqliteConnection, baselines: &[PathBaseline]) -> Result<()> {
    for baseline in baselines {
        sqlx::query(
            "INSERT INTO path_baselines (site, addr, probe, flow, way, accepted, actor) VALUES (?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (site, addr, probe, flow) DO UPDATE SET way = excluded.way, accepted = excluded.accepted, actor = excluded.actor",
        )
        .bind(baseline.site.as_str())
        .bind(addr_bytes(baseline.dst))
        .bind(baseline.probe)
        .bind(&baseline.flow)
        .bind(codec::encode(&baseline.way))
        .bind(number(baseline.accepted.0))
        .bind(&baseline.actor)
        .execute(&mut *connection)
        .await
        .doing("accept a way")?;
    }
    Ok(())
}

/// What was accepted; the first path where nothing was.
fn known(row: &SqliteRow, dst: IpAddr) -> Result<KnownWay> {
    let action = "read what is known of a way";
    if let Some(way) = row.get::<Option<Vec<u8>>, _>("way") {
        let way = codec::decode(&way).map_err(|error| damaged(action, error))?;
        return Ok(KnownWay { way, since: moment(row, "accepted"), actor: Some(row.get("actor")) });
    }
    let first: Trace = codec::decode(&row.get::<Vec<u8>, _>("first")).map_err(|error| damaged(action, error))?;
    Ok(KnownWay { way: Way::of(&first.found(dst)), since: moment(row, "first_seen"), actor: None })
}

fn found(row: &SqliteRow, with_known: bool) -> Result<FoundPath> {
    let action = "read paths";
    let trace: Trace = codec::decode(&row.get::<Vec<u8>, _>("trace")).map_err(|error| damaged(action, error))?;
    let path = PathRow {
        site: parse(action, row.get("site"))?,
        job: JobId(unsigned(row, "job")),
        rank: unsigned(row, "rank"),
        probe: row.get("probe"),
        dst: parse_addr(row.get("addr"))?,
        began: moment(row, "began"),
        seen: moment(row, "seen"),
        trace,
    };
    let known = if with_known { Some(known(row, path.dst)?) } else { None };
    Ok(FoundPath { row: path, known, probe: parse(action, row.get("probe_id"))? })
}
