//! What was found: result batches in positions of the target space, and the coverage that adds up.
//!
//! A batch covers a range of positions completely: what answered is listed with its state, round trip and TTL; what policy
//! refused and what could not be reached is listed as runs; every other position of the range was asked and stayed silent.
//! An answer costs its distance from the one before (1 or 2 bytes), a round trip (1 or 2) and a TTL (1).
//!
//! **Invariant:** of a batch that passed [`ResultBatch::check`], answered + silent + refused + not reached = `to - from`.

use core::net::IpAddr;
use core::time::Duration;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::capture::Captured;
use crate::host::HostBatch;
use crate::ids::{JobId, LeaseId};
use crate::job::Technique;
use crate::path::PathBatch;
use crate::service::ServiceBatch;
use crate::units::{RttCode, UnixMillis};

/// What a target's answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// The host answers (echo reply).
    Up,
    /// The port accepts connections (SYN-ACK, or a completed connect).
    Open,
    /// The port is refused (RST).
    Closed,
    /// A router or the host said that it does not let packets through.
    Filtered {
        /// ICMP or ICMPv6 type.
        icmp_type: u8,
        /// ICMP or ICMPv6 code.
        icmp_code: u8,
    },
    /// The host answers something else than an echo request.
    UpBy(UpReason),
    /// The port is reachable, and whether it is open is not known (RST to an ACK).
    Unfiltered,
    /// As [`State::Filtered`], said by somebody else than the target: a router or a firewall before it.
    FilteredBy {
        /// ICMP or ICMPv6 type.
        icmp_type: u8,
        /// ICMP or ICMPv6 code.
        icmp_code: u8,
        /// Who said it.
        from: IpAddr,
    },
}

/// What showed that a host is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UpReason {
    /// An ARP reply.
    Arp,
    /// A neighbour advertisement.
    Neighbour,
    /// An ICMP timestamp reply.
    Timestamp,
    /// A SYN-ACK.
    SynAck,
    /// A RST.
    Reset,
    /// An answer to a UDP payload.
    Udp,
    /// Port unreachable, from the host itself.
    PortUnreachable,
    /// An SCTP INIT-ACK or ABORT.
    Sctp,
    /// Another ICMP error, from the host itself: it refuses us, and is there.
    IcmpError,
}

impl UpReason {
    /// The name that operators know from other scanners.
    pub fn as_str(self) -> &'static str {
        match self {
            UpReason::Arp => "arp-response",
            UpReason::Neighbour => "nd-response",
            UpReason::Timestamp => "timestamp-reply",
            UpReason::SynAck => "syn-ack",
            UpReason::Reset => "reset",
            UpReason::Udp => "udp-response",
            UpReason::PortUnreachable => "port-unreach",
            UpReason::Sctp => "sctp-response",
            UpReason::IcmpError => "icmp-error",
        }
    }
}

impl State {
    /// The name that operators know from other scanners.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Up | State::UpBy(_) => "up",
            State::Open => "open",
            State::Closed => "closed",
            State::Filtered { .. } | State::FilteredBy { .. } => "filtered",
            State::Unfiltered => "unfiltered",
        }
    }

    /// Whether it rests on an ICMP error, which anybody on the way could have sent.
    pub fn is_hearsay(self) -> bool {
        matches!(self, State::Filtered { .. } | State::FilteredBy { .. })
    }

    /// What made a scan by `technique` say so: `syn-ack`, `reset`, `icmp 3/13 from 192.0.2.1`.
    pub fn reason(self, technique: Technique) -> String {
        let text = match (self, technique) {
            (State::Up, Technique::Trace) => "trace",
            (State::Up, Technique::Capture) => "captured",
            (State::Up, _) => "echo-reply",
            (State::UpBy(by), _) => by.as_str(),
            (State::Open, Technique::Connect) => "connected",
            (State::Open, Technique::Udp) => "udp-response",
            (State::Open, Technique::Sctp) => "init-ack",
            (State::Open, _) => "syn-ack",
            (State::Closed, Technique::Connect) => "refused",
            (State::Closed, Technique::Udp) => "port-unreach",
            (State::Closed, Technique::Sctp) => "abort",
            (State::Closed | State::Unfiltered, _) => "reset",
            (State::Filtered { icmp_type, icmp_code }, _) => return format!("icmp {icmp_type}/{icmp_code}"),
            (State::FilteredBy { icmp_type, icmp_code, from }, _) => return format!("icmp {icmp_type}/{icmp_code} from {from}"),
        };
        text.to_owned()
    }
}

/// Why a target was never asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NotReached {
    /// On the probe's own link, and nobody answers to that address (ARP, neighbour discovery).
    NoNeighbour,
    /// The probe has no route to it.
    NoRoute,
    /// The interface did not take the packet.
    LinkError,
    /// The job was stopped, or its deadline passed, before its turn came.
    Stopped,
    /// Host discovery came first, and the host answered none of its questions: its ports were not asked.
    HostDown,
}

impl NotReached {
    /// A few words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            NotReached::NoNeighbour => "no neighbour answers",
            NotReached::NoRoute => "no route",
            NotReached::LinkError => "link error",
            NotReached::Stopped => "stopped before its turn",
            NotReached::HostDown => "host did not answer discovery",
        }
    }
}

/// One answer, its position counted from the batch's `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Position minus the batch's `from`.
    pub offset: u64,
    /// What it says.
    pub state: State,
    /// From the probe that was answered to the answer.
    pub rtt: Duration,
    /// TTL or hop limit of the answer.
    pub ttl: u8,
}

/// A set of offsets as gap and length pairs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// The runs of ascending offsets; others are ignored.
    pub fn from_ascending(offsets: impl IntoIterator<Item = u64>) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        // One past the last offset taken.
        let mut end = 0;
        for offset in offsets {
            match runs.last_mut() {
                Some((_, length)) if offset == end => *length += 1,
                _ if offset < end => continue,
                _ => runs.push((offset - end, 1)),
            }
            end = offset + 1;
        }
        Self(runs)
    }

    /// How many offsets; saturates on nonsense.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length))
    }

    /// The runs as half-open ranges of offsets; `None` in place of one that overflows, which ends the iteration.
    fn ranges(&self) -> impl Iterator<Item = Option<(u64, u64)>> + '_ {
        let mut end = 0u64;
        self.0.iter().map(move |(gap, length)| {
            let start = end.checked_add(*gap)?;
            end = start.checked_add(*length)?;
            Some((start, end))
        })
    }

    /// The runs as half-open ranges of offsets, ascending; stops before one that overflows.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges().map_while(|range| range)
    }

    /// All offsets, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges().map_while(|range| range).flat_map(|(start, end)| start..end)
    }
}

/// The answers of one state: distance from the answer before, round trip, TTL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    state: State,
    answers: Vec<(u64, RttCode, u8)>,
}

/// Results for positions `from..to`, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultBatch {
    /// The lease it was done under.
    pub lease: LeaseId,
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
    /// When its first packet was sent, by the probe's trusted clock.
    pub started: UnixMillis,
    /// From the first packet to the end of the wait for answers.
    pub took: Duration,
    /// Packets sent, repetitions included.
    pub packets: u64,
    /// Answers that came a second time.
    pub duplicates: u64,
    groups: Vec<Group>,
    refused: Runs,
    not_reached: Vec<(NotReached, Runs)>,
}

/// The parts of a batch besides its lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    /// The lease it was done under.
    pub lease: LeaseId,
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
    /// When its first packet was sent.
    pub started: UnixMillis,
    /// From the first packet to the end of the wait for answers.
    pub took: Duration,
    /// Packets sent, repetitions included.
    pub packets: u64,
    /// Answers that came a second time.
    pub duplicates: u64,
}

/// Why a batch is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The range is empty or reversed.
    #[error("batch of lease {lease} covers nothing: positions {from} to {to}")]
    Range {
        /// The lease.
        lease: LeaseId,
        /// First position.
        from: u64,
        /// One past the last position.
        to: u64,
    },
    /// An offset lies outside the range, or in two lists.
    #[error("batch of lease {lease}, positions {from} to {to}: offset {offset} lies outside or is listed twice")]
    Offset {
        /// The lease.
        lease: LeaseId,
        /// First position.
        from: u64,
        /// One past the last position.
        to: u64,
        /// The offset in question.
        offset: u64,
    },
    /// A count that cannot be.
    #[error("batch of lease {lease} claims {packets} packets or repeated answers")]
    Packets {
        /// The lease.
        lease: LeaseId,
        /// The count.
        packets: u64,
    },
}

/// More packets than a batch can have cost: at a million in a second, two weeks. Sums of it fit every counter.
const PACKETS_MAX: u64 = 1 << 40;

impl ResultBatch {
    /// Packs a batch. `answers` in any order; `refused` and each list of `not_reached` as runs.
    pub fn new(head: BatchHead, answers: Vec<Answer>, refused: Runs, not_reached: Vec<(NotReached, Runs)>) -> Self {
        // Many answers have few states, and mostly come in order.
        let mut by_state: BTreeMap<State, Vec<Answer>> = BTreeMap::new();
        for answer in answers {
            by_state.entry(answer.state).or_default().push(answer);
        }
        let group = |(state, mut answers): (State, Vec<Answer>)| {
            answers.sort_unstable_by_key(|answer| answer.offset);
            let mut last = 0;
            let delta = |Answer { offset, rtt, ttl, .. }| (offset - core::mem::replace(&mut last, offset), RttCode::encode(rtt), ttl);
            Group { state, answers: answers.into_iter().map(delta).collect() }
        };
        let groups = by_state.into_iter().map(group).collect();
        let BatchHead { lease, from, to, started, took, packets, duplicates } = head;
        let not_reached = not_reached.into_iter().filter(|(_, runs)| runs.count() > 0).collect();
        Self { lease, from, to, started, took, packets, duplicates, groups, refused, not_reached }
    }

    /// The answers, by state and then by position.
    pub fn answers(&self) -> impl Iterator<Item = Answer> + '_ {
        self.groups.iter().flat_map(|group| {
            let mut offset = 0u64;
            group.answers.iter().map(move |(delta, rtt, ttl)| {
                offset = offset.saturating_add(*delta);
                Answer { offset, state: group.state, rtt: rtt.decode(), ttl: *ttl }
            })
        })
    }

    /// Positions (as offsets) that policy refused.
    pub fn refused(&self) -> &Runs {
        &self.refused
    }

    /// Positions (as offsets) that were never asked, by reason.
    pub fn not_reached(&self) -> &[(NotReached, Runs)] {
        &self.not_reached
    }

    /// Verifies that every list lies inside the range and that no position is listed twice; gives the coverage.
    pub fn check(&self) -> Result<Coverage, BatchError> {
        let (lease, from, to) = (self.lease, self.from, self.to);
        let asked = to.checked_sub(from).filter(|asked| *asked > 0).ok_or(BatchError::Range { lease, from, to })?;
        let fail = |offset| BatchError::Offset { lease, from, to, offset };
        if self.packets > PACKETS_MAX || self.duplicates > PACKETS_MAX {
            return Err(BatchError::Packets { lease, packets: self.packets.max(self.duplicates) });
        }
        let mut seen: Vec<(u64, u64)> = Vec::new();
        for answer in self.answers() {
            seen.push((answer.offset, answer.offset.saturating_add(1)));
        }
        for runs in core::iter::once(&self.refused).chain(self.not_reached.iter().map(|(_, runs)| runs)) {
            for range in runs.ranges() {
                seen.push(range.ok_or(fail(u64::MAX))?);
            }
        }
        seen.sort_unstable();
        let mut end = 0;
        for (start, stop) in seen {
            if start < end || stop > asked {
                return Err(fail(start));
            }
            end = stop;
        }
        let mut coverage = Coverage { asked, refused: self.refused.count(), packets: self.packets, ..Coverage::default() };
        for group in &self.groups {
            let count = group.answers.len() as u64;
            coverage.add_answers(group.state, count);
        }
        coverage.not_reached = self.not_reached.iter().map(|(_, runs)| runs.count()).sum();
        coverage.silent = asked - coverage.answered() - coverage.refused - coverage.not_reached;
        Ok(coverage)
    }
}

/// How a number of targets fared. `answered() + silent + refused + not_reached = asked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Coverage {
    /// Targets of the range.
    pub asked: u64,
    /// Hosts that answered.
    pub up: u64,
    /// Open ports.
    pub open: u64,
    /// Closed ports.
    pub closed: u64,
    /// Targets for which an ICMP error came.
    pub filtered: u64,
    /// Ports that are reachable, open or not.
    #[serde(default)]
    pub unfiltered: u64,
    /// Asked, and no answer came.
    pub silent: u64,
    /// Not asked because policy forbids.
    pub refused: u64,
    /// Not asked for another reason.
    pub not_reached: u64,
    /// Packets sent for them.
    pub packets: u64,
}

impl Coverage {
    /// Targets that answered in any way.
    pub fn answered(&self) -> u64 {
        self.up + self.open + self.closed + self.filtered + self.unfiltered
    }

    /// Counts answers of a state.
    pub fn add_answers(&mut self, state: State, count: u64) {
        let counter = match state {
            State::Up | State::UpBy(_) => &mut self.up,
            State::Open => &mut self.open,
            State::Closed => &mut self.closed,
            State::Filtered { .. } | State::FilteredBy { .. } => &mut self.filtered,
            State::Unfiltered => &mut self.unfiltered,
        };
        *counter += count;
    }

    /// Whether the parts add up to the whole.
    pub fn adds_up(&self) -> bool {
        self.answered() + self.silent + self.refused + self.not_reached == self.asked
    }
}

impl core::ops::AddAssign for Coverage {
    fn add_assign(&mut self, other: Coverage) {
        self.asked += other.asked;
        self.up += other.up;
        self.open += other.open;
        self.closed += other.closed;
        self.filtered += other.filtered;
        self.unfiltered += other.unfiltered;
        self.silent += other.silent;
        self.refused += other.refused;
        self.not_reached += other.not_reached;
        self.packets += other.packets;
    }
}

/// What stands in a probe's spool, one sequence number each. Later kinds are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Results.
    Batch(ResultBatch),
    /// A lease is over on this probe; nothing more will come for it.
    LeaseEnded {
        /// The lease.
        lease: LeaseId,
        /// One past the last position for which there is a batch.
        position: u64,
        /// Why.
        end: LeaseEnd,
    },
    /// The probe cannot do the job at all.
    JobRefused {
        /// The job.
        job: JobId,
        /// Why, in words.
        reason: String,
    },
    /// Records that the spool could not keep, since its creation.
    Loss {
        /// How many.
        records: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Answers that came after their range was reported: each turns a silent position into an answered one.
    Late(LateBatch),
    /// What serves on open ports. Stands before the batch that reports those ports, so that the batch is the checkpoint of both.
    Services(ServiceBatch),
    /// Hosts seen on the probe's own link, with their hardware addresses.
    Hosts(HostBatch),
    /// Paths that were traced. Stands before the batch that says who was reached, so that the batch is the checkpoint of both.
    Paths(PathBatch),
    /// What a capture came to. Stands before the batch of its one position.
    Captured(Box<Captured>),
}

/// Answers to positions that a batch has reported as silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateBatch {
    /// The lease that they were asked under.
    pub lease: LeaseId,
    /// The answers.
    pub answers: Vec<LateAnswer>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateAnswer {
    /// The position in the job's space.
    pub position: u64,
    /// What it says.
    pub state: State,
    /// From the probe that was answered to the answer.
    pub rtt: RttCode,
    /// TTL or hop limit of the answer.
    pub ttl: u8,
}

/// Most entries in a [`LateBatch`], a [`ServiceBatch`], a [`HostBatch`] or a [`PathBatch`].
pub const EXTRAS_MAX: usize = 1_024;

/// Why a lease ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseEnd {
    /// All of it was done.
    Done,
    /// The controller took it back.
    Revoked,
    /// The job was cancelled.
    Cancelled,
    /// The job's deadline passed.
    Deadline,
    /// The probe could not go on.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(from: u64, to: u64) -> BatchHead {
        BatchHead {
            lease: LeaseId { job: JobId(1), grant: 1 },
            from,
            to,
            started: UnixMillis(0),
            took: Duration::from_millis(1200),
            packets: to - from,
            duplicates: 0,
        }
    }

    fn answer(offset: u64, state: State) -> Answer {
        Answer { offset, state, rtt: Duration::from_micros(300), ttl: 64 }
    }

    #[test]
    fn coverage_adds_up() {
        let answers = vec![
            answer(9, State::Open),
            answer(0, State::Closed),
            answer(4, State::Open),
            answer(5, State::Filtered { icmp_type: 3, icmp_code: 13 }),
        ];
        let batch =
            ResultBatch::new(head(100, 110), answers, Runs::from_ascending([1, 2]), vec![(NotReached::NoRoute, Runs::from_ascending([3]))]);
        let coverage = batch.check().unwrap();
        assert!(coverage.adds_up());
        assert_eq!(
            (coverage.open, coverage.closed, coverage.filtered, coverage.silent, coverage.refused, coverage.not_reached),
            (2, 1, 1, 3, 2, 1)
        );
    }

    #[test]
    fn contradictory_batches_are_refused() {
        let twice = ResultBatch::new(head(0, 10), vec![answer(3, State::Open), answer(3, State::Closed)], Runs::default(), vec![]);
        assert_eq!(
            twice.check().unwrap_err().to_string(),
            "batch of lease 0000000000000001.1, positions 0 to 10: offset 3 lies outside or is listed twice"
        );
        assert!(ResultBatch::new(head(0, 10), vec![answer(10, State::Open)], Runs::default(), vec![]).check().is_err());
        assert!(ResultBatch::new(head(0, 10), vec![answer(2, State::Open)], Runs::from_ascending([2]), vec![]).check().is_err());
        assert!(ResultBatch::new(head(5, 5), vec![], Runs::default(), vec![]).check().is_err());
        let overflow = Runs(vec![(u64::MAX, u64::MAX)]);
        assert!(ResultBatch::new(head(0, 10), vec![], overflow, vec![]).check().is_err());
        let boast = BatchHead { packets: u64::MAX, ..head(0, 10) };
        assert!(ResultBatch::new(boast, vec![], Runs::default(), vec![]).check().is_err());
    }

    #[test]
    fn a_bulk_answer_takes_five_bytes() {
        // One port in fifty is open: every delta fits one byte, every round trip two.
        let answers =
            (0..4000).map(|i| Answer { offset: i * 50, state: State::Open, rtt: Duration::from_micros(18_000 + i), ttl: 57 }).collect();
        let batch = ResultBatch::new(head(0, 200_000), answers, Runs::default(), vec![]);
        let bytes = postcard::to_allocvec(&batch).unwrap().len();
        assert!(bytes <= 4000 * 4 + 64, "{bytes}");
    }

    proptest! {
        #[test]
        fn runs_hold_what_was_put_in(mut offsets in proptest::collection::vec(0u64..500, 0..60)) {
            offsets.sort_unstable();
            offsets.dedup();
            let runs = Runs::from_ascending(offsets.iter().copied());
            prop_assert_eq!(runs.count(), offsets.len() as u64);
            prop_assert_eq!(runs.iter().collect::<Vec<_>>(), offsets);
        }

        #[test]
        fn batches_survive_the_wire(states in proptest::collection::vec((0u64..3000, 0u8..4, 0u64..5_000_000, any::<u8>()), 0..200)) {
            let mut states = states;
            states.sort_unstable();
            states.dedup_by_key(|(offset, ..)| *offset);
            let answers: Vec<Answer> = states.into_iter().map(|(offset, state, us, ttl)| Answer {
                offset,
                state: [State::Up, State::Open, State::Closed, State::Filtered { icmp_type: 3, icmp_code: 1 }][usize::from(state)],
                rtt: RttCode::encode(Duration::from_micros(us)).decode(),
                ttl,
            }).collect();
            let batch = ResultBatch::new(head(7, 3007), answers.clone(), Runs::default(), vec![]);
            let back: ResultBatch = postcard::from_bytes(&postcard::to_allocvec(&batch).unwrap()).unwrap();
            prop_assert!(back.check().unwrap().adds_up());
            let mut unpacked: Vec<Answer> = back.answers().collect();
            unpacked.sort_unstable_by_key(|a| a.offset);
            prop_assert_eq!(unpacked, answers);
        }

        #[test]
        fn any_bytes_decode_or_fail_and_check_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = postcard::from_bytes::<ResultBatch>(&bytes) {
                let _ = batch.check();
            }
        }
    }
}
