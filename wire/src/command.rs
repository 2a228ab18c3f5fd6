//! What the controller tells probes. Every command travels in a signed [`crate::envelope`].
//!
//! **Invariant:** commands are idempotent: the ids in them say whether they were carried out already.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::ChunkState;
use crate::ids::{JobId, LeaseId, Role, SessionId, StreamId};
use crate::job::{JobSpec, Lease};
use crate::units::UnixMillis;

/// One command. Later kinds are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The answer to a probe's birth: the first command of every session. It alone is believed before the probe has a
    /// trusted clock, because it repeats the probe's fresh nonce.
    Welcome {
        /// The session that it answers.
        session: SessionId,
        /// The nonce of that session's birth.
        nonce: u64,
        /// The controller's clock.
        now: UnixMillis,
        /// How often heartbeats are wanted while the probe is idle.
        heartbeat: Duration,
        /// The roles that the probe holds.
        roles: Vec<Role>,
        /// The leases that the controller believes the probe to hold; all others are to be dropped.
        leases: Vec<LeaseId>,
        /// The last sequence number of the stream that is safe in the database; 0 for none.
        stored: u64,
    },
    /// Everything of the stream up to `up_to` is safe in the database and may be deleted.
    Ack {
        /// The spool's stream.
        stream: StreamId,
        /// The last sequence number that is safe.
        up_to: u64,
    },
    /// The heartbeat with this number was received; running leases hold on from when it was sent.
    HeartbeatAck {
        /// The session.
        session: SessionId,
        /// The heartbeat's number.
        number: u64,
    },
    /// A job spec.
    Job(JobSpec),
    /// Work.
    Grant(Lease),
    /// A lease is taken back; what is done of it is still reported.
    Revoke {
        /// The lease.
        lease: LeaseId,
    },
    /// A job is cancelled; all its leases end, what is done is still reported.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// The answer to a chunk of a capture's file.
    ChunkAck {
        /// Whose file.
        lease: LeaseId,
        /// How many of its bytes are safe in the database: the next chunk begins there.
        stored: u64,
        /// What becomes of the rest.
        state: ChunkState,
    },
}

impl Command {
    /// Its name in logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Welcome { .. } => "welcome",
            Command::Ack { .. } => "ack",
            Command::HeartbeatAck { .. } => "heartbeat-ack",
            Command::Job(_) => "job",
            Command::Grant(_) => "grant",
            Command::Revoke { .. } => "revoke",
            Command::Cancel { .. } => "cancel",
            Command::ChunkAck { .. } => "chunk-ack",
        }
    }
}
