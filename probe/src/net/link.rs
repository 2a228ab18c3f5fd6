//! Where frames leave and arrive: AF_PACKET ([`super::afpacket`]) or a simulation ([`super::sim`]).
//!
//! It must not know engines, routes or limits.

use std::sync::Arc;

use super::time::Instant;
use crate::packet::eth::Mac;

/// The firewall mark of measuring packets (`pi` in ASCII), by which the kernel's shaper knows them.
pub const SHAPER_MARK: u32 = 0x7069;
/// Most frames in a batch.
pub const BATCH: usize = 64;
/// Longest frame, link-layer header included.
pub const FRAME_LEN: usize = 1_536;

/// How packets are dressed on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// With an Ethernet header; neighbours must be resolved.
    Ethernet {
        /// Our own hardware address.
        mac: Mac,
    },
    /// IP packets as they are; the kernel knows where they go (loopback, tun, ppp).
    Bare,
}

/// Frames on their way out, in order, in memory that is allocated once.
#[derive(Debug)]
pub struct Batch {
    storage: Box<[u8]>,
    lens: [usize; BATCH],
    first: usize,
    end: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { storage: vec![0; BATCH * FRAME_LEN].into_boxed_slice(), lens: [0; BATCH], first: 0, end: 0 }
    }
}

impl Batch {
    /// Frames that have not left yet.
    pub const fn len(&self) -> usize {
        self.end - self.first
    }

    /// Whether all have left.
    pub const fn is_empty(&self) -> bool {
        self.first == self.end
    }

    /// Whether no frame can be added before the present ones have left.
    pub const fn is_full(&self) -> bool {
        self.end == BATCH
    }

    /// The frame `at` places behind the first.
    pub fn frame(&self, at: usize) -> &[u8] {
        let slot = self.first + at;
        let start = slot * FRAME_LEN;
        &self.storage[start..start + self.lens[slot]]
    }

    /// The memory of the next frame, to be written before [`Self::push`].
    pub fn slot(&mut self) -> &mut [u8] {
        let start = self.end.min(BATCH - 1) * FRAME_LEN;
        &mut self.storage[start..start + FRAME_LEN]
    }

    /// Adds the frame in [`Self::slot`], `len` bytes long. Nothing happens when the batch is full.
    pub fn push(&mut self, len: usize) {
        if !self.is_full() {
            self.lens[self.end] = len.min(FRAME_LEN);
            self.end += 1;
        }
    }

    /// The first `count` frames are done with.
    pub fn advance(&mut self, count: usize) {
        self.first = (self.first + count).min(self.end);
        if self.is_empty() {
            (self.first, self.end) = (0, 0);
        }
    }
}

/// Why a link stopped in the middle of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// No room now (`ENOBUFS`, `EAGAIN`): the same frames again a little later.
    Full,
    /// The interface is down.
    Down,
    /// The kernel has no route for the next frame (bare links only).
    NoRoute,
    /// The kernel will not have the next frame, ever: its `errno`.
    Rejected(i32),
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Frames from the front of the batch that the kernel has taken.
    pub count: usize,
    /// Why not all, where not all were.
    pub stop: Option<Stop>,
    /// When the last of them had been taken.
    pub done: Instant,
}

/// A packet that arrived, link-layer header taken off.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// EtherType of the payload.
    pub ethertype: u16,
    /// The sender's hardware address, where the link has such.
    pub src: Option<Mac>,
    /// The packet; may end in padding.
    pub payload: &'a [u8],
    /// When the kernel got it, where it says so: earlier than it was looked at.
    pub at: Option<Instant>,
}

/// What a link counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets that the kernel received for us and had no room for.
    pub receive_drops: u64,
}

/// Wakes a loop that waits, from any thread.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// A waker that does `wake`.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Wakes the loop; it is enough that it looks once more after this call.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl core::fmt::Debug for Waker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Waker")
    }
}

/// An interface, as the loop sees it. No method blocks but [`Link::wait`], and [`Link::listen`] for the milliseconds that a kernel takes to close
/// a socket.
pub trait Link {
    /// How packets are dressed.
    fn framing(&self) -> Framing;

    /// Hands the first `count` frames to the kernel, in order.
    fn send(&mut self, now: Instant, batch: &Batch, count: usize) -> Sent;

    /// Gives at most [`BATCH`] packets that have arrived to `each`, and returns how many; packets that left this machine
    /// are not among them.
    fn receive(&mut self, each: &mut dyn FnMut(Received<'_>)) -> usize;

    /// Waits until something arrives, `until` is reached, or the waker is used; returns the time.
    fn wait(&mut self, until: Instant) -> Instant;

    /// Whether anything is to be received, as it is from the beginning: memory for what arrives is held only while somebody wants it.
    /// Returns whether it is as wanted.
    fn listen(&mut self, wanted: bool) -> bool;

    /// Whether the interface is up, asked while it was found down.
    fn is_up(&mut self) -> bool;

    /// Counters so far.
    fn counters(&mut self) -> LinkCounters;

    /// Whether packets to all multicast groups are to be received, or only those that this machine has joined. What cannot be had is
    /// logged: then less is seen.
    fn all_multicast(&mut self, wanted: bool) {
        let _ = wanted;
    }

    /// Wakes [`Self::wait`].
    fn waker(&self) -> Waker;
}
