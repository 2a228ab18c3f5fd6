//! The agent's storage on a real disk: the spool, and the file of its memory.

use std::path::PathBuf;
use std::time::Duration;

use picket_wire::codec;
use picket_wire::ids::StreamId;

use super::core::{Journal, Unacked};
use super::state::{self, Saved};
use crate::net::clock;
use crate::net::time::Instant;
use crate::spool::{Spool, SpoolError};

/// Spool and memory file.
pub struct DiskJournal {
    /// The spool.
    pub spool: Spool,
    state: PathBuf,
}

/// Time as the spool takes it.
pub fn spool_time(now: Instant) -> Duration {
    now.saturating_since(Instant::ZERO)
}

impl DiskJournal {
    /// Storage that keeps the agent's memory in `state`.
    pub fn new(spool: Spool, state: PathBuf) -> Self {
        Self { spool, state }
    }

    /// What the records say that the controller has not acknowledged, for the agent's start: folded while they are read, since
    /// a spool may be larger than the memory. What cannot be read as a record was written by another version: it is sent as
    /// it is and means nothing to this agent.
    pub fn unacked(&mut self) -> Result<Unacked, SpoolError> {
        let mut seen = Unacked::default();
        self.spool.for_each_unacked(spool_time(clock::now()), |entry| {
            if let Ok(record) = codec::decode(&entry.payload) {
                seen.take(entry.seq, &record);
            }
        })?;
        Ok(seen)
    }
}

impl Journal for DiskJournal {
    fn append(&mut self, record: &[u8]) -> Option<u64> {
        match self.spool.offer(spool_time(clock::now()), record) {
            Ok(seq) => Some(seq),
            Err(error) => {
                log::debug!("a record is not spooled: {}", crate::errors::chain(&error));
                None
            }
        }
    }

    fn save(&mut self, saved: &Saved) -> bool {
        // Positions and ends must never be ahead of the records that they stand for: a power cut would leave a hole.
        if let Err(error) = self.spool.sync(spool_time(clock::now())) {
            log::error!("{}", crate::errors::chain(&error));
            return false;
        }
        match state::save(&self.state, saved) {
            Ok(()) => true,
            Err(error) => {
                log::error!("{}", crate::errors::chain(&error));
                false
            }
        }
    }

    fn ack(&mut self, stream: StreamId, up_to: u64) {
        self.spool.ack(spool_time(clock::now()), stream, up_to);
    }

    fn stream(&self) -> StreamId {
        self.spool.stream()
    }

    fn acked(&self) -> u64 {
        self.spool.acked()
    }
}
