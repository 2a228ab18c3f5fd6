//! Captures: what is known of them, their bytes, and who has read those.

use picket_wire::capture::Chunk;
use picket_wire::codec;
use picket_wire::ids::{JobId, LeaseId};
use picket_wire::units::UnixMillis;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::{Doing, Result, damaged, maybe_moment, moment, number, parse, unsigned};
use crate::store::{CaptureQuery, CaptureRow, Download, FoundCapture, OverRow, StoredChunk};

/// What a chunk takes besides its bytes, about.
const CHUNK_COST: u64 = 64;

/// Enters what captures came to.
pub(super) async fn write_over(connection: &mut SqliteConnection, rows: &[OverRow]) -> Result<()> {
    for row in rows {
        sqlx::query(
            "INSERT INTO captures (job, number, probe, site, stored, packed, first, last, over) VALUES (?, ?, ?, ?, 0, 0, ?, ?, ?) \
             ON CONFLICT (job, number) DO UPDATE SET over = excluded.over",
        )
        .bind(number(row.over.lease.job.0))
        .bind(row.over.lease.grant)
        .bind(row.probe)
        .bind(row.site.as_str())
        .bind(number(row.came.0))
        .bind(number(row.came.0))
        .bind(codec::encode(&row.over))
        .execute(&mut *connection)
        .await
        .doing("store the end of a capture")?;
    }
    Ok(())
}

/// Stores bytes where they follow on what is here; gives whether they did.
pub(super) async fn write_chunk(
    transaction: &mut Transaction<'static, Sqlite>,
    row: &CaptureRow,
    chunk: &Chunk,
    came: UnixMillis,
) -> Result<bool> {
    let action = "store bytes of a capture";
    let grown = sqlx::query(
        "INSERT INTO captures (job, number, probe, site, stored, packed, first, last) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7) \
         ON CONFLICT (job, number) DO UPDATE SET stored = stored + ?8, packed = packed + ?6, last = max(last, ?7) \
         WHERE stored = ?9 AND removed IS NULL",
    )
    .bind(number(chunk.lease.job.0))
    .bind(chunk.lease.grant)
    .bind(row.probe)
    .bind(row.site.as_str())
    .bind(number(chunk.end()))
    .bind(number(chunk.packed.len() as u64 + CHUNK_COST))
    .bind(number(came.0))
    .bind(chunk.len)
    .bind(number(chunk.offset))
    .execute(&mut **transaction)
    .await
    .doing(action)?;
    if grown.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO capture_chunks (job, number, start, length, packed) VALUES (?, ?, ?, ?, ?)")
        .bind(number(chunk.lease.job.0))
        .bind(chunk.lease.grant)
        .bind(number(chunk.offset))
        .bind(chunk.len)
        .bind(chunk.packed.as_slice())
        .execute(&mut **transaction)
        .await
        .doing(action)?;
    Ok(true)
}

fn found(row: &SqliteRow) -> Result<FoundCapture> {
    let action = "read captures";
    let over = row.get::<Option<Vec<u8>>, _>("over").map(|bytes| codec::decode(&bytes)).transpose();
    let capture = CaptureRow {
        lease: LeaseId { job: JobId(unsigned(row, "job")), grant: row.get("number") },
        probe: row.get("probe"),
        site: parse(action, row.get("site"))?,
        stored: unsigned(row, "stored"),
        packed: unsigned(row, "packed"),
        first: moment(row, "first"),
        last: moment(row, "last"),
        over: over.map_err(|error| damaged(action, error))?,
        checked: row.get("checked"),
        removed: maybe_moment(row, "removed").map(|at| (at, row.get::<Option<String>, _>("remover").unwrap_or_default())),
    };
    Ok(FoundCapture { row: capture, probe: parse(action, row.get("probe_id"))? })
}

pub(super) async fn read(readers: &SqlitePool, query: &CaptureQuery) -> Result<Vec<FoundCapture>> {
    let mut builder = QueryBuilder::new("SELECT c.*, p.id AS probe_id FROM captures c JOIN probes p ON p.key = c.probe WHERE 1");
    if let Some(lease) = query.lease {
        builder.push(" AND c.job = ").push_bind(number(lease.job.0)).push(" AND c.number = ").push_bind(lease.grant);
    }
    if let Some(job) = query.job {
        builder.push(" AND c.job = ").push_bind(number(job.0));
    }
    if let Some(site) = &query.site {
        builder.push(" AND c.site = ").push_bind(site.as_str());
    }
    if let Some(probe) = &query.probe {
        builder.push(" AND p.id = ").push_bind(probe.as_str());
    }
    if let Some(before) = query.untouched_since {
        // Of one that may still run the rest would not be wanted any more.
        builder.push(
            " AND c.removed IS NULL AND c.stored > 0 AND (c.over IS NOT NULL OR EXISTS (SELECT 1 FROM jobs j WHERE j.id = c.job AND j.ended IS NOT NULL)) \
             AND c.last < ",
        );
        builder.push_bind(number(before.0));
    }
    if let Some(after) = query.after {
        builder.push(" AND (c.job, c.number) < (").push_bind(number(after.job.0)).push(", ").push_bind(after.grant).push(")");
    }
    builder.push(" ORDER BY c.job DESC, c.number DESC LIMIT ").push_bind(query.limit);
    builder.build().fetch_all(readers).await.doing("read captures")?.iter().map(found).collect()
}

pub(super) async fn read_chunks(readers: &SqlitePool, lease: LeaseId, from: u64, limit: u32) -> Result<Vec<StoredChunk>> {
    // The one that holds the first byte begins before it.
    let rows = sqlx::query(
        "SELECT start, length, packed FROM capture_chunks WHERE job = ?1 AND number = ?2 AND start >= coalesce((SELECT max(start) FROM \
         capture_chunks WHERE job = ?1 AND number = ?2 AND start <= ?3), 0) AND start + length > ?3 ORDER BY start LIMIT ?4",
    )
    .bind(number(lease.job.0))
    .bind(lease.grant)
    .bind(number(from))
    .bind(limit)
    .fetch_all(readers)
    .await
    .doing("read bytes of a capture")?;
    Ok(rows.iter().map(|row| StoredChunk { start: unsigned(row, "start"), len: row.get("length"), packed: row.get("packed") }).collect())
}

/// Bytes that all captures take.
pub(super) async fn size(readers: &SqlitePool) -> Result<u64> {
    let row = sqlx::query("SELECT coalesce(sum(packed), 0) AS size FROM captures WHERE removed IS NULL").fetch_one(readers).await;
    Ok(unsigned(&row.doing("sum up captures")?, "size"))
}

async fn remove_chunks(transaction: &mut Transaction<'static, Sqlite>, lease: LeaseId) -> Result<()> {
    sqlx::query("DELETE FROM capture_chunks WHERE job = ? AND number = ?")
        .bind(number(lease.job.0))
        .bind(lease.grant)
        .execute(&mut **transaction)
        .await
        .doing("remove the bytes of a capture")?;
    Ok(())
}

/// Enters that the bytes of a capture are the probe's, or removes them, so that they come again.
pub(super) async fn write_checked(
    transaction: &mut Transaction<'static, Sqlite>,
    lease: LeaseId,
    stored: u64,
    right: bool,
) -> Result<bool> {
    let action = "enter what the digest of a capture says";
    let sql = match right {
        true => "UPDATE captures SET checked = 1 WHERE job = ? AND number = ? AND stored = ? AND removed IS NULL",
        false => "UPDATE captures SET checked = 0, stored = 0, packed = 0 WHERE job = ? AND number = ? AND stored = ? AND removed IS NULL",
    };
    let done = sqlx::query(sql)
        .bind(number(lease.job.0))
        .bind(lease.grant)
        .bind(number(stored))
        .execute(&mut **transaction)
        .await
        .doing(action)?;
    if !right && done.rows_affected() > 0 {
        remove_chunks(transaction, lease).await?;
    }
    Ok(done.rows_affected() > 0)
}

/// Removes the bytes of a capture; false where they were removed before.
pub(super) async fn remove(transaction: &mut Transaction<'static, Sqlite>, lease: LeaseId, at: UnixMillis, remover: &str) -> Result<bool> {
    let action = "remove a capture";
    let done = sqlx::query("UPDATE captures SET removed = ?, remover = ? WHERE job = ? AND number = ? AND removed IS NULL")
        .bind(number(at.0))
        .bind(remover)
        .bind(number(lease.job.0))
        .bind(lease.grant)
        .execute(&mut **transaction)
        .await
        .doing(action)?;
    remove_chunks(transaction, lease).await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn write_download(writer: &SqlitePool, lease: LeaseId, download: &Download) -> Result<()> {
    sqlx::query("INSERT INTO capture_downloads (job, number, at, actor, start) VALUES (?, ?, ?, ?, ?)")
        .bind(number(lease.job.0))
        .bind(lease.grant)
        .bind(number(download.at.0))
        .bind(&download.actor)
        .bind(number(download.start))
        .execute(writer)
        .await
        .doing("enter a download")?;
    Ok(())
}

pub(super) async fn read_downloads(readers: &SqlitePool, lease: LeaseId, limit: u32) -> Result<Vec<Download>> {
    let rows =
        sqlx::query("SELECT at, actor, start FROM capture_downloads WHERE job = ? AND number = ? ORDER BY at DESC, rowid DESC LIMIT ?")
            .bind(number(lease.job.0))
            .bind(lease.grant)
            .bind(limit)
            .fetch_all(readers)
            .await
            .doing("read downloads")?;
    Ok(rows.iter().map(|row| Download { at: moment(row, "at"), actor: row.get("actor"), start: unsigned(row, "start") }).collect())
}
