//! What a trace tells.

use core::ops::Add;

use picket_wire::trace::{Graph, Path, Reply};

use crate::net::time::Instant;

/// What happens, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A hop answered; only told where the plan wants it.
    Hop {
        /// Position of the destination.
        position: u64,
        /// The hop.
        ttl: u8,
        /// What it said.
        reply: Box<Reply>,
    },
    /// A path is over.
    Path {
        /// Position of the destination.
        position: u64,
        /// When its first packet left; never, where none did.
        begun: Option<Instant>,
        /// Bytes of its packets, from the IP header on.
        bytes: u64,
        /// The path.
        path: Box<Path>,
    },
    /// All ways to a destination were looked for.
    Graph {
        /// Position of the destination.
        position: u64,
        /// Bytes of its packets, from the IP header on.
        bytes: u64,
        /// The ways.
        graph: Box<Graph>,
    },
    /// Nothing more follows.
    Done(Summary),
}

/// Sums over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Paths and graphs that were told.
    pub paths: u64,
    /// Of these, whose destination answered.
    pub reached: u64,
    /// Destinations that were not begun, since the run was ended before.
    pub left: u64,
    /// Packets that left.
    pub sent_packets: u64,
    /// Their bytes, from the IP header on.
    pub sent_bytes: u64,
    /// Answers, without repetitions.
    pub answers: u64,
    /// Answers to a probe that had been answered.
    pub duplicates: u64,
}

impl Add for Summary {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            paths: self.paths + other.paths,
            reached: self.reached + other.reached,
            left: self.left + other.left,
            sent_packets: self.sent_packets + other.sent_packets,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            answers: self.answers + other.answers,
            duplicates: self.duplicates + other.duplicates,
        }
    }
}
