//! What a scan is asked to do, checked: after [`ScanPlan::new`] nothing is checked again.

use core::time::Duration;
use std::sync::Arc;

use picket_wire::job::{HostProbe, JobKind, MAX_ATTEMPTS, ScanOptions, ServiceOptions, Technique};
use picket_wire::space::TargetSpace;

use crate::packet::payload;

/// Why a scan cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The range is empty or reaches beyond the space.
    #[error("positions {from} to {to} are no part of a target space of {len}")]
    Range {
        /// First position.
        from: u64,
        /// One past the last position.
        to: u64,
        /// Length of the space.
        len: u64,
    },
    /// Not 1 to 10.
    #[error("{0} attempts: 1 to {MAX_ATTEMPTS} are possible")]
    Attempts(u8),
    /// A port scan without ports.
    #[error("technique `{}` needs ports", .0.as_str())]
    NoPorts(Technique),
    /// Ports for a measurement that has none.
    #[error("technique `{}` has no ports: leave them out", .0.as_str())]
    Ports(Technique),
    /// A technique of the operating system's sockets was given to the raw engine.
    #[error("technique `{}` is not one of raw packets", .0.as_str())]
    NotRaw(Technique),
    /// The reverse.
    #[error("technique `{}` is not one of connections", .0.as_str())]
    NotConnect(Technique),
    /// Neither address family has a source address.
    #[error("the interface has no address to send from")]
    NoSource,
}

/// Bounds of the wait for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Never give a target up sooner, however fast the answers were so far. Default 100 ms: a host that just woke up, or a
    /// router that had to ask for a hardware address, is not lost.
    pub floor: Duration,
    /// Never ask a target again sooner, however fast the answers were. Default 25 ms: many times a round trip on the local
    /// network, and what a busy small board may take to look at an answer.
    pub quick: Duration,
    /// Never ask a target again sooner while others have yet to be asked first. Default 400 ms: longer than most bursts of loss. It costs
    /// no time and no packets, only memory for as many more targets as are asked in it, and reports of chunks that come as much later.
    pub apart: Duration,
    /// The wait while nothing was measured. Default 1 s (RFC 6298, section 2).
    pub initial: Duration,
    /// Never wait more for one attempt. Default 3 s.
    pub ceiling: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(100),
            quick: Duration::from_millis(25),
            apart: Duration::from_millis(400),
            initial: Duration::from_secs(1),
            ceiling: Duration::from_secs(3),
        }
    }
}

impl Timing {
    /// For targets that are all on the probe's own link and asked by ARP or neighbour solicitation.
    ///
    /// Over a wire such an answer comes from the other's kernel in less than a millisecond, so that asking again soon is no haste. Two
    /// things take longer: a station that sleeps hears a broadcast only with the next beacon that announces it, every 100 ms in most
    /// wireless networks and every 200 or 300 ms in some; and a box of small means may be busy. So a target is given up no sooner
    /// than others are, and the first sleeper that answers later than it should makes the wait longer for all.
    pub const ON_LINK: Timing = Timing {
        floor: Duration::from_millis(100),
        quick: Duration::from_millis(20),
        apart: Duration::from_millis(400),
        initial: Duration::from_millis(150),
        ceiling: Duration::from_secs(1),
    };
}

/// Bounds of what is open at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Most positions of a chunk. Default 32,768: reports on their way to whoever takes them hold an answer for each.
    pub positions: u32,
    /// A chunk takes no new position after this time. Default 1 s. It bounds what is done again after a crash.
    pub span: Duration,
    /// Memory for the send times of all open chunks and of those reported ones for which late answers are taken, in bytes.
    /// Default 8 MiB: at two attempts a million positions, or
    /// 300,000 packets/s into a network that never answers.
    pub memory: usize,
}

impl Default for ChunkLimits {
    fn default() -> Self {
        Self { positions: 32_768, span: Duration::from_secs(1), memory: 8 << 20 }
    }
}

/// How a scan is ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Somebody goes on where this scan ends: report the longest prefix of decided positions, forget the rest.
    Resumable,
    /// Nobody goes on: report all that was begun. Positions whose wait is not over count as stopped.
    Final,
}

/// A scan of positions `from..to`, ready to be done.
#[derive(Debug, Clone)]
pub struct ScanPlan {
    pub(super) space: Arc<TargetSpace>,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) technique: Technique,
    pub(super) attempts: u8,
    pub(super) host_probes: Vec<HostProbe>,
    pub(super) ask_fragile: bool,
    /// Bounds of the wait for an answer.
    pub timing: Timing,
    /// Bounds of what is open at a time.
    pub chunks: ChunkLimits,
}

impl ScanPlan {
    /// Checks the options against the space and the range against its length.
    pub fn new(space: Arc<TargetSpace>, from: u64, to: u64, options: ScanOptions) -> Result<Self, SpecError> {
        let len = space.len();
        let ScanOptions { technique, attempts } = options;
        if from >= to || to > len {
            return Err(SpecError::Range { from, to, len });
        }
        if attempts == 0 || attempts > MAX_ATTEMPTS {
            return Err(SpecError::Attempts(attempts));
        }
        let has_ports = space.target(0).is_some_and(|target| target.port.is_some());
        match (technique.has_ports(), has_ports) {
            (true, false) => Err(SpecError::NoPorts(technique)),
            (false, true) => Err(SpecError::Ports(technique)),
            _ => Ok(Self {
                space,
                from,
                to,
                technique,
                attempts,
                host_probes: HostProbe::DEFAULT.to_vec(),
                ask_fragile: false,
                timing: Timing::default(),
                chunks: ChunkLimits::default(),
            }),
        }
    }

    /// The same for a job, with what a survey adds.
    pub fn of_job(space: Arc<TargetSpace>, from: u64, to: u64, kind: &JobKind) -> Result<Self, SpecError> {
        let mut plan = Self::new(space, from, to, kind.scan())?;
        if let Some(survey) = kind.survey() {
            plan = plan.with_host_probes(&survey.host_probes).with_services(survey.services);
        }
        Ok(plan)
    }

    /// Whether a datagram that may disturb a machine is sent: where services are asked that may be fragile. The site's leave is
    /// still to be had, see [`ScanPlan::spare_fragile`].
    #[must_use]
    pub fn with_services(mut self, services: Option<ServiceOptions>) -> Self {
        self.ask_fragile = services.is_some_and(|services| services.ask_fragile);
        self
    }

    /// Takes back the leave to send datagrams that may disturb machines, where one of their ports is to be spared.
    pub fn spare_fragile(&mut self, spared: impl Fn(u16) -> bool) {
        let mut ports = payload::catalogue().filter(|payload| payload.fragile).flat_map(|payload| payload.ports);
        self.ask_fragile &= !ports.any(|port| spared(*port));
    }

    /// What hosts are asked, for [`Technique::Discover`]; an empty list leaves it at [`HostProbe::DEFAULT`].
    #[must_use]
    pub fn with_host_probes(mut self, probes: &[HostProbe]) -> Self {
        if !probes.is_empty() {
            self.host_probes = probes.to_vec();
        }
        self
    }

    /// Whether an ICMP error leaves a target asked for: where the next attempt asks in another way.
    pub(super) fn insists(&self) -> bool {
        self.round() > 1
    }

    /// Attempts that ask in different ways.
    pub(super) fn round(&self) -> u8 {
        match self.technique {
            Technique::Discover => u8::try_from(self.host_probes.len()).unwrap_or(u8::MAX),
            _ => 1,
        }
    }

    /// The space that positions refer to.
    pub fn space(&self) -> &Arc<TargetSpace> {
        &self.space
    }

    /// First position and one past the last.
    pub fn range(&self) -> (u64, u64) {
        (self.from, self.to)
    }

    /// How often a silent target is asked in all.
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// What is sent.
    pub fn technique(&self) -> Technique {
        self.technique
    }
}
