//! What a probe tells its controller: birth and death of sessions, heartbeats, and the records of its spool.
//!
//! Events are not signed one by one: the broker lets only the verified holder of a probe's certificate write to its topics.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::Chunk;
use crate::ids::{JobId, LeaseId, SessionId, StreamId};
use crate::job::Needs;
use crate::result::Record;
use crate::units::{BitsPerSecond, PacketsPerSecond};

/// On `probe/<id>/live`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Live {
    /// A session begins.
    Birth(Birth),
    /// A session ends: the last will, or an orderly good-bye.
    Death {
        /// The session; another session's death says nothing.
        session: SessionId,
        /// Whether the probe said it itself.
        orderly: bool,
    },
}

/// What a probe says of itself when a session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The new session.
    pub session: SessionId,
    /// Fresh randomness that the controller's welcome repeats.
    pub nonce: u64,
    /// The program's version.
    pub version: String,
    /// What it runs on, in a few words.
    pub hardware: String,
    /// How long the program has run.
    pub uptime: Duration,
    /// What it can do.
    pub self_test: SelfTest,
    /// The spool's stream.
    pub stream: StreamId,
    /// Everything of the stream up to this number was acknowledged and is deleted; a controller that was restored from a
    /// backup may lack some of it, and must not wait for it.
    pub acked: u64,
    /// Where each lease stands that it holds.
    pub leases: Vec<LeaseStatus>,
    /// The interface that it measures on, and its limits.
    pub interface: InterfaceLimits,
}

/// The interface that a probe measures on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceLimits {
    /// Its name.
    pub name: String,
    /// Packets per second over all jobs.
    pub packets: PacketsPerSecond,
    /// Bits per second of layer-2 frames over all jobs.
    pub bits: BitsPerSecond,
}

/// What a probe found when it tried what its roles need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// A raw packet socket on the measuring interface.
    pub raw_socket: Check,
    /// An IPv4 address on the measuring interface.
    pub ipv4: Check,
    /// An IPv6 address, other than link-local, on the measuring interface.
    pub ipv6: Check,
}

/// The outcome of one trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// It works.
    Works,
    /// It does not, and why.
    Fails(String),
}

impl SelfTest {
    /// Why a probe with this self-test cannot do such work; `None` where it can.
    pub fn lacks(&self, needs: &Needs) -> Option<String> {
        let wanted = [
            ("a raw packet socket", needs.raw_socket, &self.raw_socket),
            ("IPv4", needs.ipv4, &self.ipv4),
            ("IPv6", needs.ipv6, &self.ipv6),
        ];
        wanted.into_iter().find_map(|(what, needed, check)| match check {
            Check::Fails(why) if needed => Some(format!("it lacks {what}: {why}")),
            _ => None,
        })
    }
}

/// How far a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease.
    pub lease: LeaseId,
    /// One past the last position for which a batch is in the spool.
    pub position: u64,
    /// One past the last position that was asked at least once.
    pub sent: u64,
    /// What it is doing.
    pub activity: Activity,
    /// Packets sent for it since the program started.
    pub packets: u64,
    /// Answers received for it since the program started.
    pub answers: u64,
}

/// What a lease is doing on its probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activity {
    /// The job's spec has not arrived yet.
    WaitingForJob,
    /// Another lease goes first.
    Queued,
    /// Packets are being sent, or answers awaited.
    Running,
    /// The controller has not been heard for the lease's life: it may have been given to another.
    Paused,
}

/// On `probe/<id>/evt`. Later kinds are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Consecutive records of the spool, each in the form of [`crate::codec::encode`] of a [`Record`].
    Records {
        /// The stream.
        stream: StreamId,
        /// The last number before `first` that exists, 0 for none: a spool that lost its tail leaves numbers out, and one
        /// who has everything up to `after` misses nothing by going on at `first`.
        after: u64,
        /// The sequence number of the first.
        first: u64,
        /// The records.
        records: Vec<Vec<u8>>,
    },
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// A lease came whose job spec is not known here: please send it.
    NeedJob {
        /// The job.
        job: JobId,
    },
    /// How fast it sends, and what holds it back: with a heartbeat, when that has changed, and every minute.
    Pacing(Box<PacingReport>),
    /// Bytes of a capture's file.
    Chunk(Chunk),
}

/// Encodes one record for the spool.
pub fn encode_record(record: &Record) -> Vec<u8> {
    crate::codec::encode(record)
}

/// A sign of life with what people ask first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The session.
    pub session: SessionId,
    /// Counts heartbeats of the session from 1.
    pub number: u64,
    /// How long the program has run.
    pub uptime: Duration,
    /// The program's processor time since its start.
    pub cpu: Duration,
    /// The program's resident memory, in KiB.
    pub memory_kib: u64,
    /// The box's load over one minute, in hundredths.
    pub load_percent: u32,
    /// Records and bytes in the spool that are not acknowledged.
    pub spool_records: u64,
    /// See `spool_records`.
    pub spool_bytes: u64,
    /// Records that the spool could not keep, since its creation.
    pub lost_records: u64,
    /// The leases it holds.
    pub leases: Vec<LeaseStatus>,
    /// What its interface sent and received.
    pub traffic: Traffic,
    /// Commands that it refused.
    pub refusals: Refusals,
}

/// What the packet loop did since the program started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames received that passed the filter.
    pub received_packets: u64,
    /// Frames that the kernel dropped before they were read.
    pub kernel_drops: u64,
    /// Sends that the kernel refused for want of buffers and that were repeated.
    pub send_retries: u64,
    /// Packets that policy held back.
    pub policy_refused: u64,
    /// Jobs whose rate was clipped to the interface's limit.
    pub clipped: u64,
}

/// Commands refused since the program started, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refusals {
    /// The signature is missing or wrong.
    pub unsigned: u64,
    /// Not meant for this probe or its roles.
    pub misaddressed: u64,
    /// Its time is over, or has not come.
    pub expired: u64,
    /// Its serial was seen before.
    pub replayed: u64,
    /// Not a command of this version.
    pub malformed: u64,
}

impl Refusals {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.unsigned + self.misaddressed + self.expired + self.replayed + self.malformed
    }
}

/// A pair of limits; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Frames per second.
    pub packets: Option<PacketsPerSecond>,
    /// Bits per second of layer-2 frames.
    pub bits: Option<BitsPerSecond>,
}

impl core::fmt::Display for Rates {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.packets, self.bits) {
            (Some(packets), Some(bits)) => write!(f, "{packets}, {bits}"),
            (Some(packets), None) => packets.fmt(f),
            (None, Some(bits)) => bits.fmt(f),
            (None, None) => f.write_str("unlimited"),
        }
    }
}

/// Why a rate was lowered below what is granted. Later reasons are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Slowdown {
    /// Hosts that are there answer only when they are asked again: something on the way drops packets.
    Loss,
    /// ICMP errors come at their sender's own limited rate, however fast one asks.
    IcmpLimited,
    /// A router asked for less (ICMP source quench, RFC 792).
    SourceQuench,
    /// Answers came faster than they could be read.
    ReceiveOverload,
    /// The kernel had no room to send (`ENOBUFS`).
    SendQueueFull,
}

impl Slowdown {
    /// The text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Slowdown::Loss => "loss",
            Slowdown::IcmpLimited => "icmp-limited",
            Slowdown::SourceQuench => "source-quench",
            Slowdown::ReceiveOverload => "receive-overload",
            Slowdown::SendQueueFull => "send-queue-full",
        }
    }

    /// What it means, in a sentence's end: "sending slower because ...".
    pub fn because(self) -> &'static str {
        match self {
            Slowdown::Loss => "hosts that are there answer only when asked again: packets are lost on the way",
            Slowdown::IcmpLimited => "ICMP errors come at a limited rate",
            Slowdown::SourceQuench => "a router asked for less (ICMP source quench)",
            Slowdown::ReceiveOverload => "answers come faster than they can be read",
            Slowdown::SendQueueFull => "the kernel has no room to send",
        }
    }
}

/// How fast somebody may send: asked for, granted, and at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pace {
    /// What was asked for.
    pub asked: Rates,
    /// That, clipped to what holds it.
    pub granted: Rates,
    /// What is sent at most at present: less than granted while slowed down.
    pub current: Rates,
    /// Why, where it is less.
    pub slowed: Option<Slowdown>,
}

/// The pace of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasePace {
    /// The lease.
    pub lease: LeaseId,
    /// Its pace.
    pub pace: Pace,
}

/// The kernel's shaper on the measuring interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Shaper {
    /// The site does not want one.
    #[default]
    Off,
    /// There is none, and why.
    Absent(String),
    /// It is installed.
    Holds(ShaperCounters),
}

/// What the kernel's shaper has counted since it was installed: marked packets only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShaperCounters {
    /// Bytes that it let pass.
    pub bytes: u64,
    /// Packets that it let pass.
    pub packets: u64,
    /// Packets that it had no room for; their senders were told.
    pub drops: u64,
    /// How often it made a packet wait.
    pub overlimits: u64,
}

/// How fast a probe sends, and what holds it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacingReport {
    /// The session.
    pub session: SessionId,
    /// The whole interface; what was asked for is the site's limit.
    pub interface: Pace,
    /// The leases that run.
    pub leases: Vec<LeasePace>,
    /// The kernel's shaper.
    pub shaper: Shaper,
}
