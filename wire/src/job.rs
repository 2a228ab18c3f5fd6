//! What is to be done: job specs and leases.
//!
//! A job spec is published once to everybody who holds its role; who really works is told by leases, each a range of
//! positions of the job's target space for one probe.
//!
//! **Invariant:** a spec never changes after it was signed; everything that changes (who, how far) is in leases.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, Label, LeaseId, ProbeId, Role, SiteName};
use crate::policy::AddressPolicy;
use crate::space::TargetSpec;
use crate::units::{PacketsPerSecond, UnixMillis};

/// A job as the controller signs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its identity.
    pub id: JobId,
    /// What is measured, and how.
    pub kind: JobKind,
    /// What is measured at.
    pub targets: TargetSpec,
    /// Whether probes share the work or each does all of it.
    pub mode: Mode,
    /// The rate that each probe is asked to keep; its interface's limit holds in any case.
    pub rate: Option<PacketsPerSecond>,
    /// How soon this work is served beside other work on the same interface.
    pub priority: Priority,
    /// No packet is sent for the job after this moment.
    pub deadline: Option<UnixMillis>,
    /// The fleet's address policy when the job was signed. The site's own policy applies as well.
    pub policy: AddressPolicy,
}

/// What is measured. Later kinds are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// Host discovery or a port scan.
    Scan(ScanOptions),
}

/// How a scan asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanOptions {
    /// What is sent.
    pub technique: Technique,
    /// How often a silent target is asked in all, 1 to 10.
    pub attempts: u8,
}

/// Most attempts a spec may ask for.
pub const MAX_ATTEMPTS: u8 = 10;

/// What a scan sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Technique {
    /// ICMP or ICMPv6 echo request (RFC 792, RFC 4443): is the host there?
    Echo,
    /// TCP SYN by raw packets (RFC 9293): half-open, needs a raw socket.
    Syn,
    /// TCP connect by the operating system: needs no privilege.
    Connect,
}

impl Technique {
    /// Whether it works on ports.
    pub fn has_ports(self) -> bool {
        !matches!(self, Technique::Echo)
    }

    /// The text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Technique::Echo => "echo",
            Technique::Syn => "syn",
            Technique::Connect => "connect",
        }
    }
}

/// How the work is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The probes share one space: each unit is done once.
    Split,
    /// Each probe does the whole space: one view from each vantage point.
    Each,
}

/// How soon work is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Large work that takes what is left.
    Bulk,
    /// Somebody waits for it.
    Interactive,
}

/// Which probes may do a job. Empty lists do not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// One of these probes.
    pub probes: Vec<ProbeId>,
    /// At one of these sites.
    pub sites: Vec<SiteName>,
    /// Carrying all of these labels.
    pub labels: Vec<Label>,
    /// At most so many of them.
    pub count: Option<u32>,
}

/// What a job asks of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The role it must hold.
    pub role: Role,
    /// A raw packet socket.
    pub raw_socket: bool,
    /// IPv4 on the measuring interface.
    pub ipv4: bool,
    /// IPv6 on the measuring interface.
    pub ipv6: bool,
}

impl JobSpec {
    /// What a probe must be able to do for this job.
    pub fn needs(&self) -> Needs {
        let (ipv4, ipv6) = self.targets.include.families();
        match &self.kind {
            JobKind::Scan(options) => Needs { role: Role::Scan, raw_socket: options.technique != Technique::Connect, ipv4, ipv6 },
        }
    }
}

/// Work for one probe: positions `from..to` of the job's space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its identity.
    pub id: LeaseId,
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
    /// How often this range, or the one it was cut from, was leased before; 0 the first time.
    pub attempt: u16,
    /// How long it holds without a word from the controller; `None` where nobody else could do the work.
    pub ttl: Option<Duration>,
}
