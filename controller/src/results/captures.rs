//! Captures as people see them, and the bytes of their files as they were before they were packed. All but [`check_filter`] and [`check_bytes`] is pure.
//!
//! **Invariant:** bytes are given in order and without a gap, or not at all.

use std::time::Duration;

use picket_wire::capture::{self, ChunkError, ChunkState};
use picket_wire::ids::LeaseId;
use sha2::{Digest, Sha256};

use super::rows;
use crate::clock::rfc3339;
use crate::service::{CapturesQuery, ServiceError};
use crate::store::{CaptureQuery, CaptureRow, Download, FoundCapture, Store, StoreError, StoredChunk};
use crate::view::{CaptureState, CaptureView, DownloadView};

/// Chunks that are read at once: half a megabyte of memory for each download.
pub const CHUNKS_AT_ONCE: u32 = 4;
/// Downloads of a capture that are shown.
pub const DOWNLOADS_SHOWN: u32 = 100;
/// How long the names in a filter may take to be looked up.
const NAMES_WITHIN: Duration = Duration::from_secs(5);

/// There is no such capture.
pub fn missing(lease: LeaseId) -> ServiceError {
    ServiceError::NotFound { what: "capture", name: lease.to_string() }
}

/// A query as the database takes it.
///
/// # Errors
/// The cursor or the limit is none.
pub fn query(query: &CapturesQuery) -> Result<CaptureQuery, ServiceError> {
    let wrong = |error: String| ServiceError::InvalidInput { field: "cursor", reason: error };
    Ok(CaptureQuery {
        lease: None,
        job: query.job,
        site: query.site.clone(),
        probe: query.probe.clone(),
        untouched_since: None,
        after: query.cursor.as_deref().map(|text| text.parse::<LeaseId>().map_err(|error| wrong(error.to_string()))).transpose()?,
        limit: rows::page_size(query.limit)?,
    })
}

/// A capture as people see it.
pub fn view(found: &FoundCapture) -> CaptureView {
    let row = &found.row;
    let over = row.over.as_ref();
    let state = match row.state() {
        ChunkState::Removed => CaptureState::Removed,
        ChunkState::Whole => CaptureState::Whole,
        _ if over.is_none() => CaptureState::Running,
        _ => CaptureState::Arriving,
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    CaptureView {
        job: row.lease.job,
        lease: row.lease.grant,
        probe: found.probe.clone(),
        site: row.site.clone(),
        state,
        stored: row.stored,
        bytes: over.map(|over| over.len),
        sha256: over.map(|over| hex::encode(over.sha256)),
        began: over.map(|over| rfc3339(over.began)),
        ended: over.map(|over| rfc3339(over.ended)),
        end: over.map(|over| over.end.as_str().to_owned()),
        reason: over.and_then(|over| over.end.reason()).map(str::to_owned),
        interface: over.and_then(|over| text(&over.interface)),
        filter: over.and_then(|over| text(&over.filter)),
        sections: over.map(|over| over.sections),
        counts: over.map(|over| over.counts),
        last: rfc3339(row.last),
        removed: row.removed.as_ref().map(|(at, _)| rfc3339(*at)),
        remover: row.removed.as_ref().map(|(_, remover)| remover.clone()),
        downloads: None,
    }
}

/// A download as people see it.
pub fn download(download: &Download) -> DownloadView {
    DownloadView { at: rfc3339(download.at), actor: download.actor.clone(), from: download.start }
}

/// The bytes of chunks from `from` on, as far as they follow on each other.
///
/// # Errors
/// What is stored does not unpack.
pub fn bytes(chunks: &[StoredChunk], from: u64) -> Result<Vec<u8>, ChunkError> {
    let (mut out, mut at) = (Vec::new(), from);
    for chunk in chunks {
        let (start, end) = (chunk.start, chunk.start + u64::from(chunk.len));
        if start > at || end <= at {
            break;
        }
        let unpacked = capture::unpack(&chunk.packed, chunk.len)?;
        out.extend_from_slice(unpacked.get((at - start) as usize..).unwrap_or_default());
        at = end;
    }
    Ok(out)
}

/// Looks whether the bytes that are here of a capture are those that its probe wrote, and enters it; those that are not are removed, so that
/// they come again. Takes its time: a gigabyte some seconds.
///
/// # Errors
/// The database fails.
pub async fn check_bytes(store: &dyn Store, row: &CaptureRow) -> Result<(), StoreError> {
    let Some(over) = &row.over else { return Ok(()) };
    let (mut digest, mut at) = (Sha256::new(), 0);
    while at < row.stored {
        let chunks = store.capture_chunks(row.lease, at, CHUNKS_AT_ONCE).await?;
        match bytes(&chunks, at) {
            Ok(bytes) if !bytes.is_empty() => {
                at += bytes.len() as u64;
                // Hashing half a megabyte is a millisecond: others have their turn between two of them.
                digest.update(&bytes);
                tokio::task::yield_now().await;
            }
            // A hole, or damage: they are not what the probe wrote.
            _ => break,
        }
    }
    let right = at == over.len && digest.finalize().as_slice() == over.sha256;
    if !right {
        log::error!("the bytes of capture {} are not those that its probe wrote: they are removed, and asked for again", row.lease);
    }
    store.capture_checked(row.lease, row.stored, right).await.map(drop)
}

/// Looks whether a filter compiles. Names in it are looked up here, which may take a while; each probe looks them up again.
///
/// # Errors
/// It does not; the message has a mark at the place.
pub async fn check_filter(filter: &str) -> Result<(), ServiceError> {
    let text = filter.to_owned();
    let wrong = |reason: String| ServiceError::InvalidInput { field: "capture.filter", reason };
    let checked = tokio::time::timeout(NAMES_WITHIN, tokio::task::spawn_blocking(move || compile(&text))).await;
    match checked {
        Err(_) => Err(wrong(format!("`{filter}`: its names could not be looked up within {} s", NAMES_WITHIN.as_secs()))),
        Ok(Err(panic)) => Err(ServiceError::Internal { action: "look at a filter", source: Box::new(panic) }),
        Ok(Ok(compiled)) => compiled.map_err(wrong),
    }
}

#[cfg(feature = "libpcap")]
fn compile(filter: &str) -> Result<(), String> {
    let dead = pcap::Capture::dead(pcap::Linktype::ETHERNET).map_err(|error| error.to_string())?;
    let words = |error: pcap::Error| match error {
        pcap::Error::PcapError(text) => text.trim_end_matches('.').to_owned(),
        other => other.to_string(),
    };
    let compile = |text: &str, optimised| dead.compile(text, optimised).map(drop).map_err(words);
    match picket_wire::filter::check(filter, compile) {
        // A name may be known at the probe's site alone: the probe says.
        Err(error) if error.reason.contains("unknown host") || error.reason.contains("unknown network") => Ok(()),
        checked => checked.map_err(|error| error.to_string()),
    }
}

/// Without libpcap the probes alone look.
#[cfg(not(feature = "libpcap"))]
fn compile(_: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use picket_wire::capture::Chunk;
    use picket_wire::ids::JobId;

    use super::*;

    fn chunks(lens: &[usize]) -> (Vec<u8>, Vec<StoredChunk>) {
        let whole: Vec<u8> = (0..lens.iter().sum::<usize>()).map(|n| n as u8).collect();
        let lease = LeaseId { job: JobId(1), grant: 1 };
        let mut start = 0;
        let stored = lens.iter().map(|len| {
            let chunk = Chunk::pack(lease, start as u64, &whole[start..start + len]);
            start += len;
            StoredChunk { start: chunk.offset, len: chunk.len, packed: chunk.packed }
        });
        let stored = stored.collect();
        (whole, stored)
    }

    #[test]
    fn bytes_are_given_from_anywhere_and_never_across_a_gap() {
        let (whole, stored) = chunks(&[10, 1, 300]);
        for from in 0..10 {
            assert_eq!(bytes(&stored, from).unwrap(), whole[from as usize..]);
        }
        assert_eq!(bytes(&stored[1..], 3).unwrap(), [0; 0], "the beginning is missing");
        let gap = [stored[0].clone(), stored[2].clone()];
        assert_eq!(bytes(&gap, 0).unwrap(), whole[..10]);
        assert_eq!(bytes(&[], 0).unwrap(), [0; 0]);
        let damaged = [StoredChunk { packed: vec![7; 9], ..stored[0].clone() }];
        assert!(bytes(&damaged, 0).is_err());
    }

    #[cfg(feature = "libpcap")]
    #[tokio::test]
    async fn filters_are_looked_at_with_the_place_of_what_is_wrong() {
        check_filter("tcp port 443 and not host 192.0.2.1").await.unwrap();
        let wrong = check_filter("tcp prot 80").await.unwrap_err().to_string();
        assert!(wrong.starts_with("filter is wrong at character 5, `prot`"), "{wrong}");
    }
}
