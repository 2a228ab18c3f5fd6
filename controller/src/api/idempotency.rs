//! `Idempotency-Key`: a submission that is repeated because its answer was lost is answered again, not done again.
//!
//! Keys are remembered for a day, per token, in memory: a restart of the controller forgets them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::problem::ApiError;
use crate::view::Submitted;

/// How long a key is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// Most keys remembered; beyond that the oldest are forgotten.
const KEYS_MAX: usize = 10_000;
/// Longest key in bytes.
const KEY_MAX: usize = 128;

/// The header's name.
pub(super) const HEADER: &str = "idempotency-key";

/// What one key stands for.
#[derive(Debug, Clone)]
struct Entry {
    request: [u8; 32],
    since: Instant,
    answer: Arc<OnceCell<Submitted>>,
}

/// The remembered keys.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<HashMap<(String, String), Entry>>);

impl Replays {
    /// The place for the answer to `request` under `key`; the same one for every repetition.
    pub(super) fn entry(&self, actor: &str, key: &str, request: &[u8]) -> Result<Arc<OnceCell<Submitted>>, ApiError> {
        let request: [u8; 32] = Sha256::digest(request).into();
        let now = Instant::now();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= KEYS_MAX {
            entries.retain(|_, entry| now.duration_since(entry.since) < MEMORY);
        }
        if entries.len() >= KEYS_MAX {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.since).map(|(name, _)| name.clone());
            oldest.map(|name| entries.remove(&name));
        }
        let fresh = Entry { request, since: now, answer: Arc::default() };
        let entry = entries.entry((actor.to_owned(), key.to_owned())).or_insert(fresh);
        if entry.request != request {
            let detail = format!("{HEADER}: the key `{key}` was used for another request");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "The key was used for another request", detail));
        }
        Ok(Arc::clone(&entry.answer))
    }
}

/// The key of a request, where it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= KEY_MAX && text.bytes().all(|b| b.is_ascii_graphic()));
    text.map(|text| Some(text.to_owned()))
        .ok_or_else(|| ApiError::input(HEADER, format!("1 to {KEY_MAX} visible ASCII characters are expected")))
}
