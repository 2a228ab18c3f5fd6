//! The way to the controller. Here: what every transport shares, as pure decisions: how long to wait before the next
//! attempt, and which records of the spool to send when. [`mqtt`] moves bytes.
//!
//! It knows nothing of sockets or clocks: `now` is a [`Duration`] since any fixed origin (monotonic), randomness is given.
//!
//! **Invariant:** every connection is a new session: all that is not acknowledged is sent again, whatever the broker kept.
//! **Invariant:** at most the window's bytes are on their way at any time, so a slow controller fills spools, not memory.

pub mod mqtt;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::spool::Entry;

/// Waiting between attempts, with full jitter: anything from nothing to a doubling ceiling, so that thousands of probes do
/// not come back in step when their controller does.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// From 1 s, up to 60 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60))
    }
}

impl Backoff {
    /// A session must last this long to count as a success: one that is thrown out at once (a copied card, a revoked
    /// certificate) must not be tried in a tight loop.
    pub const STABLE: Duration = Duration::from_secs(30);

    /// Ceilings from `base`, doubling with each failure up to `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The wait after one more failure; `random` is uniform over all of `u64`.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
    }

    /// A session ended that had lasted `lived`.
    pub fn session_ended(&mut self, lived: Duration) {
        if lived >= Self::STABLE {
            self.failures = 0;
        }
    }
}

/// Host (without the brackets of an IPv6 address) and port of `host:port`.
pub(crate) fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let host = match bare {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok().then_some(inner)?,
        None => host,
    };
    let well_formed = !host.is_empty() && (bare.is_some() || !host.contains([':', '/', '@', '[', ']']));
    // A sign would be taken for part of the number.
    let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten().filter(|port| *port > 0)?;
    well_formed.then_some((host, port))
}

/// What a [`Delivery`] may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryConfig {
    /// Most bytes of records that are sent and not acknowledged. Default 1 MiB.
    pub window_bytes: usize,
    /// Most bytes of records in one message: small, so that a slow link is not silent for long. Default 64 KiB.
    pub message_bytes: usize,
    /// Without any acknowledgement for this long, everything is sent again. Default 30 s.
    pub stall: Duration,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self { window_bytes: 1024 * 1024, message_bytes: 64 * 1024, stall: Duration::from_secs(30) }
    }
}

/// Consecutive records for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The number of the record before the first: whoever has everything up to here lacks nothing before `first`.
    pub after: u64,
    /// The number of the first record; the others follow without a gap.
    pub first: u64,
    /// Their bytes.
    pub records: Vec<Vec<u8>>,
}

impl Batch {
    /// The number of the last record.
    pub fn last(&self) -> u64 {
        self.first + (self.records.len() as u64).saturating_sub(1)
    }

    /// Bytes of the records.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(Vec::len).sum()
    }
}

/// What to read from the spool next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// From this number on.
    pub from: u64,
    /// At most this many bytes.
    pub max_bytes: usize,
}

/// Which records are on their way. One for each life of a spool; sessions come and go.
///
/// On each session [`Delivery::begin`], then while [`Delivery::want`] says so: read the spool, [`Delivery::batches`], publish each and
/// say [`Delivery::sent`]. Acknowledgements go to the spool and to [`Delivery::acked`].
#[derive(Debug, Clone)]
pub struct Delivery {
    config: DeliveryConfig,
    live: bool,
    acked: u64,
    next: u64,
    /// Last number and bytes of each message that is on its way.
    flying: VecDeque<(u64, usize)>,
    flying_bytes: usize,
    progress: Duration,
    resent: u64,
}

impl Delivery {
    /// Nothing is sent before a session begins. `acked` is the spool's acknowledged position.
    pub fn new(config: DeliveryConfig, acked: u64) -> Self {
        Self { config, live: false, acked, next: acked + 1, flying: VecDeque::new(), flying_bytes: 0, progress: Duration::ZERO, resent: 0 }
    }

    /// A session begins: everything unacknowledged is to be sent (again).
    pub fn begin(&mut self, now: Duration) {
        self.live = true;
        self.rewind(now);
    }

    /// The session ended.
    pub fn end(&mut self) {
        self.live = false;
    }

    fn rewind(&mut self, now: Duration) {
        self.next = self.acked + 1;
        self.flying.clear();
        self.flying_bytes = 0;
        self.progress = now;
    }

    /// What to read and send now, where `synced` is the spool's newest number that may be published; `None` where there is
    /// nothing, or the window is full.
    pub fn want(&self, synced: u64) -> Option<Want> {
        let room = self.config.window_bytes.saturating_sub(self.flying_bytes);
        // A record longer than what is left still goes when nothing else does.
        let open = self.flying.is_empty() || room >= self.config.message_bytes.min(self.config.window_bytes / 2);
        (self.live && open && self.next <= synced).then_some(Want { from: self.next, max_bytes: room.max(1) })
    }

    /// The batches of what was read for [`Delivery::want`]: each within the message limit, none across a gap.
    pub fn batches(&self, entries: Vec<Entry>) -> Vec<Batch> {
        let mut out: Vec<Batch> = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            match out.last_mut() {
                Some(batch) if batch.last() + 1 == entry.seq && bytes + entry.payload.len() <= self.config.message_bytes => {
                    bytes += entry.payload.len();
                    batch.records.push(entry.payload);
                }
                _ => {
                    bytes = entry.payload.len();
                    out.push(Batch { after: entry.after, first: entry.seq, records: vec![entry.payload] });
                }
            }
        }
        out
    }

    /// A batch was handed to the transport.
    pub fn sent(&mut self, now: Duration, batch: &Batch) {
        if self.flying.is_empty() {
            self.progress = now;
        }
        self.next = batch.last() + 1;
        self.flying.push_back((batch.last(), batch.bytes()));
        self.flying_bytes += batch.bytes();
    }

    /// Everything up to `up_to` is acknowledged, also when this never sent it (an earlier life did).
    pub fn acked(&mut self, now: Duration, up_to: u64) {
        if up_to <= self.acked {
            return;
        }
        self.acked = up_to;
        self.next = self.next.max(up_to + 1);
        self.progress = now;
        while let Some(&(last, bytes)) = self.flying.front() {
            if last > up_to {
                break;
            }
            self.flying.pop_front();
            self.flying_bytes -= bytes;
        }
    }

    /// When [`Delivery::on_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.live && !self.flying.is_empty()).then(|| self.progress + self.config.stall)
    }

    /// Where acknowledgements have stalled: a broker may have dropped what it had taken, so all is sent again. Says whether.
    pub fn on_timeout(&mut self, now: Duration) -> bool {
        let stalled = self.poll_timeout().is_some_and(|due| now >= due);
        if stalled {
            self.resent += self.flying.len() as u64;
            self.rewind(now);
        }
        stalled
    }

    /// Messages that were sent again after a stall.
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Bytes of records on their way.
    pub fn in_flight(&self) -> usize {
        self.flying_bytes
    }
}
