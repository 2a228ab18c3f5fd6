//! The controller's ear and mouth: what probes say comes in here, what they are told goes out here.
//!
//! `core` knows what to do, [`mqtt`] how messages travel; between them are two queues. The one that comes in is bounded:
//! when the database is slow, the connection is read more slowly, and what waits, waits in the spools of the probes.

pub(crate) mod core;
pub mod mqtt;
mod serial;
#[cfg(test)]
mod tests;

use bytes::Bytes;

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// On which topic: who wrote it.
    pub topic: String,
    /// Its bytes.
    pub payload: Bytes,
}

/// A message to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// On which topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}
