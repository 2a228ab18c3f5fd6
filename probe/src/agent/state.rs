//! What the agent must remember across a restart, in one file that is replaced as a whole.

use std::path::{Path, PathBuf};

use picket_wire::codec;
use picket_wire::envelope::Serials;
use picket_wire::ids::{LeaseId, Role, StreamId};
use picket_wire::job::{JobSpec, Lease};
use picket_wire::units::UnixMillis;
use serde::{Deserialize, Serialize};

/// A lease as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLease {
    /// What was granted.
    pub lease: Lease,
    /// One past the last position for which a batch was appended to the spool.
    pub position: u64,
    /// Set once its end is in the spool: the sequence number of that record.
    pub ended: Option<u64>,
}

/// The agent's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Saved {
    /// The highest serials accepted.
    pub serials: Serials,
    /// The latest time that an authenticated controller told.
    pub trusted_time: UnixMillis,
    /// The roles that the controller last confirmed.
    pub roles: Vec<Role>,
    /// The spool's stream that positions and ends refer to.
    pub stream: Option<StreamId>,
    /// The specs of the jobs of all leases.
    pub jobs: Vec<JobSpec>,
    /// The leases.
    pub leases: Vec<SavedLease>,
}

impl Saved {
    /// The lease with this id.
    pub fn lease(&mut self, id: LeaseId) -> Option<&mut SavedLease> {
        self.leases.iter_mut().find(|saved| saved.lease.id == id)
    }
}

/// Why the agent's memory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("{operation} agent state {}", path.display())]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("agent state {} is damaged ({reason}); it was set aside as {}", path.display(), aside.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it was moved.
        aside: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the memory; an absent file is an empty one. A damaged file is set aside, so that the next start is a fresh one.
pub fn load(path: &Path) -> Result<Saved, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Saved::default()),
        Err(source) => return Err(StateError::Io { operation: "read", path: path.to_owned(), source }),
    };
    let parsed = match bytes.split_last_chunk::<4>() {
        Some((body, sum)) if crc32c::crc32c(body) == u32::from_le_bytes(*sum) => postcard_of(body),
        _ => Err("its checksum is wrong".to_owned()),
    };
    parsed.map_err(|reason| {
        let aside = path.with_extension("damaged");
        // Nothing more can be done where even the renaming fails: the error is reported in any case.
        let _ = std::fs::rename(path, &aside);
        StateError::Damaged { path: path.to_owned(), aside, reason }
    })
}

fn postcard_of(body: &[u8]) -> Result<Saved, String> {
    let (version, rest) = body.split_first().ok_or("it is empty")?;
    if *version != codec::VERSION {
        return Err(format!("its version is {version}, this program reads {}", codec::VERSION));
    }
    postcard::from_bytes(rest).map_err(|error| error.to_string())
}

/// Writes the memory and makes it durable before it returns.
pub fn save(path: &Path, saved: &Saved) -> Result<(), StateError> {
    let io = |source| StateError::Io { operation: "write", path: path.to_owned(), source };
    let mut bytes = codec::encode(saved);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    crate::durable::replace(path, &bytes, 0o600).map_err(io)
}
