//! What a scan tells: finished chunks, and the end.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use picket_wire::host::{HardwareAddress, HostSeen};
use picket_wire::ids::LeaseId;
use picket_wire::path::TracedPath;
use picket_wire::result::{Answer, BatchHead, Coverage, LateAnswer, NotReached, ResultBatch, Runs, State};
use picket_wire::units::{RttCode, UnixMillis};

use crate::net::time::Instant;

/// What a scan yields, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A range of positions is finished. Ranges follow on each other without a gap.
    Chunk(ChunkReport),
    /// Hosts seen on the probe's own link, with their hardware addresses. What was learnt of a range of positions comes right
    /// before its chunk.
    Hosts(Vec<HostSeen>),
    /// One hardware address answered for so many addresses that it says nothing about them. Comes once for each, before the end.
    Proxy(ProxySeen),
    /// A position that a chunk has reported as silent has answered after all.
    Late(LateReport),
    /// A range of positions is finished, with the paths to them. Ranges follow on each other without a gap.
    Paths(Box<TracedChunk>),
    /// Nothing more will come.
    Done(Done),
}

/// A hardware address that answers ARP requests or neighbour solicitations for others: a proxy (RFC 1027; RFC 4389), or one host with
/// very many addresses. The addresses were asked by IP packets instead, and are up only where they answered those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySeen {
    /// Who answers.
    pub mac: HardwareAddress,
    /// For how many of the addresses asked.
    pub addresses: u64,
    /// How many of them were reported as up before it was known for a proxy; those reports stand.
    pub reported: u64,
}

impl core::fmt::Display for ProxySeen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { mac, addresses, reported } = self;
        write!(f, "{mac} answers for {addresses} addresses: a proxy, or one host with very many; they were asked by IP instead")?;
        match reported {
            0 => Ok(()),
            _ => write!(f, ", but for {reported} that were reported before this was known"),
        }
    }
}

/// What traces to a range of positions came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedChunk {
    /// Who was reached, and who was not.
    pub report: ChunkReport,
    /// The type of service that was sent.
    pub tos: u8,
    /// A path for each position to which anything was sent.
    pub paths: Vec<TracedPath>,
}

/// Results for positions `from..to`, complete: what is in no list was asked and stayed silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkReport {
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
    /// When its first packet was sent.
    pub started: Instant,
    /// When the wait for its answers was over.
    pub ended: Instant,
    /// Packets sent, repetitions included (connect: SYNs).
    pub sent_packets: u64,
    /// Their bytes from the IP header on.
    pub sent_bytes: u64,
    /// What answered, by position; offsets count from `from`.
    pub answers: Vec<Answer>,
    /// Offsets that policy refused.
    pub refused: Runs,
    /// Offsets that no packet was sent to, by reason.
    pub not_reached: Vec<(NotReached, Runs)>,
    /// Answers of this range that came a second time.
    pub duplicates: u64,
    /// Answers for ranges reported before this one, those told by [`Event::Late`] among them, counted since the last report.
    pub late: u64,
}

impl ChunkReport {
    /// How the range fared.
    pub fn coverage(&self) -> Coverage {
        // The lease is in no way part of the numbers.
        let nobody = LeaseId { job: picket_wire::ids::JobId(0), grant: 0 };
        let batch = self.clone().into_batch(nobody, UnixMillis::default());
        batch.check().expect("a report lists each position of its range at most once")
    }

    /// The report as it goes into the spool.
    pub fn into_batch(self, lease: LeaseId, started: UnixMillis) -> ResultBatch {
        let took = self.took();
        let Self { from, to, sent_packets, duplicates, answers, refused, not_reached, .. } = self;
        ResultBatch::new(BatchHead { lease, from, to, started, took, packets: sent_packets, duplicates }, answers, refused, not_reached)
    }

    /// From the first packet to the end of the wait for answers.
    pub fn took(&self) -> Duration {
        self.ended.saturating_since(self.started)
    }
}

/// An answer that came after its range was reported: it turns one silent position into an answered one.
///
/// **Invariant:** the report on its range comes first, says nothing of the position, and no second late report follows for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateReport {
    /// The position.
    pub position: u64,
    /// What it says.
    pub state: State,
    /// From the probe that was answered to the answer.
    pub rtt: Duration,
    /// TTL or hop limit of the answer.
    pub ttl: u8,
}

impl LateReport {
    /// The answer as it goes into the spool.
    pub fn into_answer(self) -> LateAnswer {
        LateAnswer { position: self.position, state: self.state, rtt: RttCode::encode(self.rtt), ttl: self.ttl }
    }
}

/// The end of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// One past the last position that was reported; below the end of the range if the scan was cut.
    pub next: u64,
    /// Sums over the whole scan.
    pub stats: Stats,
}

/// Sums over a scan, as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Positions begun.
    pub begun: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Their bytes from the IP header on.
    pub sent_bytes: u64,
    /// Positions that answered.
    pub answers: u64,
    /// Answers that came a second time.
    pub duplicates: u64,
    /// Answers for positions already reported, those told by [`Event::Late`] among them.
    pub late: u64,
    /// Positions that were refused (RST, ABORT) and accepted as well: something on the way, or before the target, speaks for it.
    pub contradicted: u64,
    /// Packets with a right cookie for what this scan has not asked.
    pub foreign: u64,
}

/// How a scan stands, readable from another thread while the packet loop runs it. Written once a turn, not once a packet.
#[derive(Debug, Default)]
pub struct Progress {
    next: AtomicU64,
    sent_packets: AtomicU64,
    answers: AtomicU64,
}

impl Progress {
    /// One past the last position that was begun.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Packets sent.
    pub fn sent_packets(&self) -> u64 {
        self.sent_packets.load(Ordering::Relaxed)
    }

    /// Positions that answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, next: u64, stats: &Stats) {
        self.next.store(next, Ordering::Relaxed);
        self.sent_packets.store(stats.sent_packets, Ordering::Relaxed);
        self.answers.store(stats.answers, Ordering::Relaxed);
    }
}
