//! What is to be done: job specs and leases.
//!
//! A job spec is published once to everybody who holds its role; who really works is told by leases, each a range of
//! positions of the job's target space for one probe.
//!
//! **Invariant:** a spec never changes after it was signed; everything that changes (who, how far) is in leases.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{CaptureError, CaptureOptions};
use crate::ids::{JobId, Label, LeaseId, ProbeId, Role, SiteName};
use crate::policy::AddressPolicy;
use crate::space::{SpaceError, TargetSpace, TargetSpec};
use crate::trace::{TraceError, TraceOptions};
use crate::units::{BitsPerSecond, PacketsPerSecond, UnixMillis};

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
    /// A scan with more to it: chosen host probes, finer limits, services on what is open.
    Survey(Box<Survey>),
    /// Which way packets take to each destination.
    Trace(Box<TraceOptions>),
    /// Packets that pass an interface of each probe, kept as a file.
    Capture(Box<CaptureOptions>),
}

impl JobKind {
    /// How it asks. Of a trace: how many probes each hop gets.
    pub fn scan(&self) -> ScanOptions {
        match self {
            JobKind::Scan(options) => *options,
            JobKind::Survey(survey) => survey.scan,
            JobKind::Trace(options) => ScanOptions { technique: Technique::Trace, attempts: options.queries },
            JobKind::Capture(_) => ScanOptions { technique: Technique::Capture, attempts: 1 },
        }
    }

    /// How it traces, where it does.
    pub fn trace(&self) -> Option<&TraceOptions> {
        match self {
            JobKind::Trace(options) => Some(options),
            JobKind::Scan(_) | JobKind::Survey(_) | JobKind::Capture(_) => None,
        }
    }

    /// What it captures, where it does.
    pub fn capture(&self) -> Option<&CaptureOptions> {
        match self {
            JobKind::Capture(options) => Some(options),
            JobKind::Scan(_) | JobKind::Survey(_) | JobKind::Trace(_) => None,
        }
    }

    /// Limits beyond the job's packet rate.
    pub fn limits(&self) -> RateLimits {
        match self {
            JobKind::Scan(_) | JobKind::Capture(_) => RateLimits::default(),
            JobKind::Survey(survey) => survey.limits,
            JobKind::Trace(options) => options.limits,
        }
    }

    /// Verifies that it can be done at all.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self) -> Result<(), KindError> {
        let scan = self.scan();
        match self {
            JobKind::Trace(options) => Ok(options.check()?),
            JobKind::Capture(options) => Ok(options.check()?),
            _ if matches!(scan.technique, Technique::Trace | Technique::Capture) => Err(KindError::Bare(scan.technique.as_str())),
            _ if !(1..=MAX_ATTEMPTS).contains(&scan.attempts) => Err(KindError::Attempts(scan.attempts)),
            _ => Ok(()),
        }
    }

    /// The most packets that one target costs.
    pub fn packets_at_most(&self) -> u64 {
        match self {
            JobKind::Trace(options) => options.packets_at_most(),
            JobKind::Capture(_) => 0,
            JobKind::Scan(_) | JobKind::Survey(_) => self.scan().attempts.into(),
        }
    }

    /// About how many packets two targets cost: of those of a scan one answers the first packet and the other none.
    pub fn packets_for_two(&self) -> u64 {
        match self {
            JobKind::Trace(options) => options.packets_about().saturating_mul(2),
            JobKind::Capture(_) => 0,
            JobKind::Scan(_) | JobKind::Survey(_) => 1 + u64::from(self.scan().attempts),
        }
    }

    /// What it wants besides a plain scan, where it wants anything.
    pub fn survey(&self) -> Option<&Survey> {
        match self {
            JobKind::Scan(_) | JobKind::Trace(_) | JobKind::Capture(_) => None,
            JobKind::Survey(survey) => Some(survey),
        }
    }
}

/// Why a kind of job cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// Not 1 to 10.
    #[error("{0} attempts are asked for: 1 to {MAX_ATTEMPTS} are possible")]
    Attempts(u8),
    /// The technique of another kind of job without its options.
    #[error("a scan does not {0}: that is a job of its own kind")]
    Bare(&'static str),
    /// A trace that cannot be.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A capture that cannot be.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// A scan with more to it. Everything left at its default makes it the same as a plain [`JobKind::Scan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// What is sent, and how often.
    pub scan: ScanOptions,
    /// For [`Technique::Discover`]: what hosts are asked, in this order; attempt `n` of a silent host sends entry `n` modulo
    /// their number. Empty: [`HostProbe::DEFAULT`].
    pub host_probes: Vec<HostProbe>,
    /// Limits beyond the job's packet rate.
    pub limits: RateLimits,
    /// Whether, and how, open ports are asked what serves there.
    pub services: Option<ServiceOptions>,
}

/// One way to ask whether a host is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostProbe {
    /// ICMP or ICMPv6 echo request.
    Echo,
    /// ICMP timestamp request (RFC 792); IPv4 only, IPv6 targets get an echo request instead.
    Timestamp,
    /// TCP SYN to a port: SYN-ACK and RST both say that the host is there.
    Syn(u16),
    /// TCP ACK to a port: passes packet filters that keep no state, and a RST says that the host is there.
    Ack(u16),
    /// UDP to a port: an answer or port unreachable from the host itself says that it is there.
    Udp(u16),
    /// SCTP INIT to a port: INIT-ACK and ABORT both say that the host is there.
    Sctp(u16),
}

impl HostProbe {
    /// What is asked where nothing was chosen: echo finds most hosts; a web server behind a filter that drops ICMP answers SYN;
    /// a filter without state lets ACK through; timestamp passes filters that drop only echo.
    pub const DEFAULT: &'static [HostProbe] = &[HostProbe::Echo, HostProbe::Syn(443), HostProbe::Ack(80), HostProbe::Timestamp];
}

/// Why a text is no host probe or no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not a host probe.
    #[error("`{0}` is not a way to ask a host: use echo, timestamp, syn:PORT, ack:PORT, udp:PORT or sctp:PORT, such as syn:443")]
    HostProbe(String),
    /// Not a limit for networks.
    #[error(
        "`{0}` is not a limit for networks: write a packet rate and the size of the networks, such as 100pps/24, or with that of IPv6 \
         networks 100pps/24,48"
    )]
    NetworkLimit(String),
}

impl FromStr for HostProbe {
    type Err = OptionError;
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (kind, port) = text.split_once(':').map_or((text, None), |(kind, port)| (kind, Some(port)));
        let number = |port: &str| port.parse::<u16>().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()));
        match (kind, port.map(number)) {
            ("echo", None) => Ok(HostProbe::Echo),
            ("timestamp", None) => Ok(HostProbe::Timestamp),
            ("syn", Some(Some(port))) => Ok(HostProbe::Syn(port)),
            ("ack", Some(Some(port))) => Ok(HostProbe::Ack(port)),
            ("udp", Some(Some(port))) => Ok(HostProbe::Udp(port)),
            ("sctp", Some(Some(port))) => Ok(HostProbe::Sctp(port)),
            _ => Err(OptionError::HostProbe(text.to_owned())),
        }
    }
}

impl fmt::Display for HostProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostProbe::Echo => f.write_str("echo"),
            HostProbe::Timestamp => f.write_str("timestamp"),
            HostProbe::Syn(port) => write!(f, "syn:{port}"),
            HostProbe::Ack(port) => write!(f, "ack:{port}"),
            HostProbe::Udp(port) => write!(f, "udp:{port}"),
            HostProbe::Sctp(port) => write!(f, "sctp:{port}"),
        }
    }
}

/// The size of IPv6 networks where only that of IPv4 ones is named: a link's.
const V6_PREFIX_DEFAULT: u8 = 64;

impl FromStr for NetworkLimit {
    type Err = OptionError;
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let bad = || OptionError::NetworkLimit(text.to_owned());
        let (rate, sizes) = text.split_once('/').ok_or_else(bad)?;
        let prefix = |text: &str, max: u8| {
            let digits = text.strip_prefix('/').unwrap_or(text);
            digits.parse::<u8>().ok().filter(|bits| (1..=max).contains(bits) && digits.bytes().all(|b| b.is_ascii_digit()))
        };
        let (v4, v6) = sizes.split_once(',').map_or((sizes, None), |(v4, v6)| (v4, Some(v6)));
        Ok(Self {
            rate: rate.parse().map_err(|_| bad())?,
            v4_prefix: prefix(v4, 32).ok_or_else(bad)?,
            v6_prefix: v6.map_or(Some(V6_PREFIX_DEFAULT), |v6| prefix(v6, 128)).ok_or_else(bad)?,
        })
    }
}

impl fmt::Display for NetworkLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{},{}", self.rate, self.v4_prefix, self.v6_prefix)
    }
}

/// Limits of a job beyond its packet rate. `None`: no limit but the interface's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Bits per second of layer-2 frames.
    pub bits: Option<BitsPerSecond>,
    /// Packets per second towards any one address.
    pub per_address: Option<PacketsPerSecond>,
    /// Packets per second towards any one network.
    pub per_network: Option<NetworkLimit>,
}

/// A limit for every network of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkLimit {
    /// Packets per second towards one network.
    pub rate: PacketsPerSecond,
    /// Prefix length of an IPv4 network, 1 to 32.
    pub v4_prefix: u8,
    /// Prefix length of an IPv6 network, 1 to 128.
    pub v6_prefix: u8,
}

/// How open ports are asked what serves there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceOptions {
    /// Whether ports of fragile devices (printers, controllers of machines) are asked like all others. Without it they get a
    /// bare handshake and an orderly close.
    pub ask_fragile: bool,
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
    /// ICMP timestamp request (RFC 792): is the host there? IPv4 only.
    Timestamp,
    /// TCP ACK by raw packets: does a filter stand before the port?
    Ack,
    /// UDP with a payload that the port's usual service answers (RFC 768).
    Udp,
    /// SCTP INIT (RFC 9260).
    Sctp,
    /// ARP (RFC 826) or neighbour solicitation (RFC 4861) on the probe's own link: is the host there?
    Neighbour,
    /// Several ways of asking whether a host is there, one after the other: [`Survey::host_probes`]. Addresses on the probe's
    /// own link are asked by ARP or neighbour solicitation.
    Discover,
    /// The IPv6 hosts of the probe's own link, where there are too many addresses to ask for each: all nodes at once, others
    /// overheard, addresses guessed. Its space is the link, one position ([`TargetSpace::link`]); the targets say which of its
    /// addresses are wanted, and what is found is told as [`crate::result::Record::Hosts`].
    Link,
    /// Packets whose TTL ends on the way: which routers lead to the host? Only as [`JobKind::Trace`].
    Trace,
    /// Nothing: packets of others are captured. Its space is one position ([`TargetSpace::single`]), and it has no targets. Only as
    /// [`JobKind::Capture`].
    Capture,
}

/// The largest range of IPv6 addresses that a discovery asks for one by one, unless somebody says how: a quarter of an hour at 1000
/// packets per second. What is larger is discovered as a link.
pub const SWEEP_MAX: u128 = 1 << 20;
/// How often link discovery asks: all nodes, and each address that a host may have. A job cannot choose.
pub const LINK_ATTEMPTS: u8 = 2;
/// Most single addresses that one run of link discovery asks for.
pub const LINK_QUESTIONS_MAX: u16 = 16_384;
/// Most of its own addresses from which one run of link discovery asks all nodes.
pub const LINK_SOURCES_MAX: u16 = 64;
/// Most packets of one run of link discovery.
pub const LINK_PACKETS_MAX: u64 = LINK_ATTEMPTS as u64 * (LINK_QUESTIONS_MAX as u64 + LINK_SOURCES_MAX as u64);

impl Technique {
    /// Whether it works on ports.
    pub fn has_ports(self) -> bool {
        self.transport().is_some()
    }

    /// Whether it asks addresses one by one: what it does not is of a probe's link or interface as a whole.
    pub fn has_targets(self) -> bool {
        !matches!(self, Technique::Link | Technique::Capture)
    }

    /// The transport protocol whose ports it works on.
    pub fn transport(self) -> Option<Transport> {
        match self {
            Technique::Syn | Technique::Connect | Technique::Ack => Some(Transport::Tcp),
            Technique::Udp => Some(Transport::Udp),
            Technique::Sctp => Some(Transport::Sctp),
            Technique::Echo
            | Technique::Timestamp
            | Technique::Neighbour
            | Technique::Discover
            | Technique::Link
            | Technique::Trace
            | Technique::Capture => None,
        }
    }

    /// The text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Technique::Echo => "echo",
            Technique::Syn => "syn",
            Technique::Connect => "connect",
            Technique::Timestamp => "timestamp",
            Technique::Ack => "ack",
            Technique::Udp => "udp",
            Technique::Sctp => "sctp",
            Technique::Neighbour => "neighbour",
            Technique::Discover => "discover",
            Technique::Link => "link",
            Technique::Trace => "trace",
            Technique::Capture => "capture",
        }
    }

    /// What it means that a target was asked and stayed silent, in the words of other scanners.
    pub fn silence(self) -> &'static str {
        match self {
            Technique::Udp => "open|filtered",
            Technique::Syn | Technique::Connect | Technique::Ack | Technique::Sctp => "filtered",
            Technique::Echo | Technique::Timestamp | Technique::Neighbour | Technique::Discover | Technique::Link => "down",
            Technique::Trace => "not reached by a trace",
            Technique::Capture => "not captured",
        }
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// The text form, as in `80/tcp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
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
    /// What a probe must be able to do for this job. Whether its link has IPv6 at all is for the probe to say where that is what
    /// the job asks: a link-local address would do.
    pub fn needs(&self) -> Needs {
        let technique = self.kind.scan().technique;
        let (ipv4, ipv6) = if technique.has_targets() { self.targets.include.families() } else { (false, false) };
        let role = match technique {
            Technique::Trace => Role::Trace,
            Technique::Capture => Role::Capture,
            _ => Role::Scan,
        };
        Needs { role, raw_socket: technique != Technique::Connect, ipv4, ipv6 }
    }

    /// The space that its leases and results speak of.
    ///
    /// # Errors
    /// When the targets have none.
    pub fn space(&self) -> Result<TargetSpace, SpaceError> {
        TargetSpace::of(self.kind.scan().technique, &self.targets)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_probes_and_network_limits_are_read_as_shown() {
        for text in ["echo", "timestamp", "syn:443", "ack:80", "udp:53", "sctp:36412"] {
            assert_eq!(text.parse::<HostProbe>().unwrap().to_string(), text);
        }
        for wrong in ["", "ping", "echo:7", "syn", "syn:", "syn:65536", "syn:+1", "Syn:1"] {
            assert!(wrong.parse::<HostProbe>().is_err(), "{wrong}");
        }
        for (text, shown) in [("100pps/24", "100pps/24,64"), ("5kpps/16,48", "5kpps/16,48"), ("1pps/32,/128", "1pps/32,128")] {
            assert_eq!(text.parse::<NetworkLimit>().unwrap().to_string(), shown);
        }
        for wrong in ["", "100pps", "100/24", "100pps/0", "100pps/33", "100pps/24,0", "100pps/24,129", "100pps/+24", "1Mbit/24"] {
            assert!(wrong.parse::<NetworkLimit>().is_err(), "{wrong}");
        }
    }
}
