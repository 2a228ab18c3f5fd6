//! Paths through the network, as they were traced.
//!
//! What a router told is kept as it told it: addresses, codes and quoted fields; what it means (a loop, a translated address, a
//! tunnel) is for whoever compares paths.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::job::RateLimits;

/// The largest TTL that is asked for.
pub const MAX_TTL: u8 = 64;
/// Most probes for each hop.
pub const MAX_QUERIES: u8 = 16;
/// Most labels of a stack that are kept; deeper ones are not seen in practice.
pub const MPLS_MAX: usize = 8;

/// Hops that are tried where nobody says how many, as in other traceroutes.
pub const DEFAULT_MAX_TTL: u8 = 30;
/// Silent hops in a row that end a path where nobody says how many, as in scamper.
pub const DEFAULT_GAP: u8 = 5;
/// Bytes of payload where nobody says how many: with a header they are 40 bytes over IPv4, below the least frame of an Ethernet.
pub const DEFAULT_PAYLOAD: u16 = 12;
/// How sure a graph is where nobody says how much, in percent.
pub const DEFAULT_CONFIDENCE: u8 = 95;
/// Flows to one destination where all ways are looked for, at most.
pub const FLOWS_MAX: u16 = 512;
/// So many destinations are few: somebody waits for them, and every hop is asked.
pub const FEW: u64 = 16;
/// The shortest payload: what names a probe stands in it.
pub const PAYLOAD_MIN: u16 = 10;
/// The longest payload: what is longer than a frame of an Ethernet would be cut into fragments.
const PAYLOAD_MAX: u16 = 1_452;
/// The smallest packet that every link takes (RFC 791, section 3.2).
pub const MTU_LEAST: u16 = 68;
/// The largest packet of an Ethernet.
pub const MTU_MOST: u16 = 1_500;
/// The most packets to find how large one may be: halving what lies between takes eleven sizes, each of them tried twice, and again
/// where routers name others.
pub const SIZES_MOST: u64 = 40;
/// Hops of a path like most, for sharing work out.
const USUAL_HOPS: u64 = 12;

/// How a job traces. Everything that a request left open is chosen when it is submitted, so that paths of years can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceOptions {
    /// What is sent.
    pub method: Method,
    /// The destination port; 0 for ICMP.
    pub port: u16,
    /// The first TTL.
    pub first_ttl: u8,
    /// The last TTL.
    pub max_ttl: u8,
    /// Probes for each hop that answers, 1 to [`MAX_QUERIES`]. A silent one gets two at least.
    pub queries: u8,
    /// Silent hops in a row that end a path.
    pub gap: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Bytes behind the ICMP or UDP header.
    pub payload: u16,
    /// Which of the possible flows is taken: routers that spread load may send another one another way.
    pub flow: u16,
    /// Whether every hop of every path is asked, also where another path of the run has met it.
    pub all_hops: bool,
    /// Whether all ways are looked for, and not one only.
    pub ways: Option<WaysOptions>,
    /// Limits beyond the job's packet rate.
    pub limits: RateLimits,
    /// Up to which size, in bytes from the IP header on, it is asked how large a packet may be that arrives; of one way only.
    pub mtu: Option<u16>,
}

/// How all ways to a destination are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaysOptions {
    /// How sure to be that no node has a further successor, in percent: 50 to 99.
    pub confidence: u8,
    /// Whether every node is looked at one by one, also where nothing speaks for it that links are meshed or uneven.
    pub full: bool,
}

/// Why a job cannot trace so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A number that is too small or too large.
    #[error("{what} of {value}: from {least} up to {most} are possible")]
    Bounds {
        /// What it is.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// The least that is possible.
        least: u64,
        /// The most that is possible.
        most: u64,
    },
    /// A port for echo requests.
    #[error("port {0}: echo requests have no ports; trace by udp or tcp")]
    IcmpPort(u16),
    /// What is asked of packets of all sizes does not go with the rest.
    #[error("how large a packet may be is asked by icmp or udp, since a SYN carries no data, and of one way, not of all")]
    Mtu,
}

impl TraceOptions {
    /// What is usual, for few destinations or for many.
    pub fn usual(method: Method, few: bool) -> Self {
        Self {
            method,
            port: method.port(),
            first_ttl: 1,
            max_ttl: DEFAULT_MAX_TTL,
            queries: if few { 3 } else { 1 },
            gap: DEFAULT_GAP,
            tos: 0,
            payload: DEFAULT_PAYLOAD,
            flow: 0,
            all_hops: false,
            ways: None,
            limits: RateLimits::default(),
            mtu: None,
        }
    }

    /// Verifies that a probe can do it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<(), TraceError> {
        let bound = |what, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(TraceError::Bounds { what, value, least, most }),
        };
        bound("a first hop", self.first_ttl.into(), 1, MAX_TTL.into())?;
        bound("a last hop", self.max_ttl.into(), self.first_ttl.into(), MAX_TTL.into())?;
        bound("probes for each hop", self.queries.into(), 1, MAX_QUERIES.into())?;
        bound("a gap", self.gap.into(), 1, MAX_TTL.into())?;
        bound("a payload", self.payload.into(), PAYLOAD_MIN.into(), PAYLOAD_MAX.into())?;
        match (self.method, self.port) {
            (Method::Icmp, 0) => {}
            (Method::Icmp, port) => return Err(TraceError::IcmpPort(port)),
            (Method::Udp | Method::Tcp, port) => bound("a port", port.into(), 1, u16::MAX.into())?,
        }
        if let Some(mtu) = self.mtu {
            bound("packets of up to so many bytes", mtu.into(), MTU_LEAST.into(), MTU_MOST.into())?;
            if self.method == Method::Tcp || self.ways.is_some() {
                return Err(TraceError::Mtu);
            }
        }
        self.ways.map_or(Ok(()), |ways| bound("a confidence in percent", ways.confidence.into(), 50, 99))
    }

    /// Probes that a silent hop gets.
    pub fn attempts(&self) -> u8 {
        self.queries.max(2)
    }

    /// The most packets that one destination can cost.
    pub fn packets_at_most(&self) -> u64 {
        let hops = u64::from(self.max_ttl.saturating_sub(self.first_ttl)) + 1;
        // All flows, the first one once more, and repetitions of one to know that it is not sent by chance.
        let each = if self.ways.is_some() { u64::from(FLOWS_MAX) + 8 } else { self.attempts().into() };
        hops * each + if self.mtu.is_some() { SIZES_MOST } else { 0 }
    }

    /// About how many packets a destination costs.
    pub fn packets_about(&self) -> u64 {
        let each = if self.ways.is_some() { 8 } else { u64::from(self.queries) };
        (USUAL_HOPS * each).min(self.packets_at_most())
    }
}

/// What a traced packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Echo requests: what most hosts answer.
    #[default]
    Icmp,
    /// Datagrams to a port where nobody listens.
    Udp,
    /// SYNs: what passes where a service is let through.
    Tcp,
}

impl Method {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Icmp => "icmp",
            Method::Udp => "udp",
            Method::Tcp => "tcp",
        }
    }

    /// The destination port that it asks where none is named: the first of the Unix traceroute's for datagrams, HTTP for TCP. For ICMP it
    /// means nothing.
    pub const fn port(self) -> u16 {
        match self {
            Method::Icmp => 0,
            Method::Udp => 33_434,
            Method::Tcp => 80,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownMethod(String);

impl fmt::Display for UnknownMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a way to trace: use icmp, udp or tcp", self.0)
    }
}

impl core::error::Error for UnknownMethod {}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, UnknownMethod> {
        [Method::Icmp, Method::Udp, Method::Tcp]
            .into_iter()
            .find(|method| method.as_str() == text)
            .ok_or_else(|| UnknownMethod(text.to_owned()))
    }
}

/// How a path ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathEnd {
    /// The destination answered.
    Reached,
    /// Somebody said that it cannot be reached; the last hop has the code.
    Unreachable,
    /// An address came again behind another one.
    Loop,
    /// As many hops in a row as were to be tried said nothing.
    Silent,
    /// The last TTL that was to be tried was answered by a router.
    TooFar,
    /// Policy forbids the address: nothing was sent.
    Refused,
    /// There is no route, or no neighbour that leads there.
    NoRoute,
    /// It was ended from outside.
    Stopped,
}

impl PathEnd {
    /// A few words for people and tools.
    pub const fn as_str(self) -> &'static str {
        match self {
            PathEnd::Reached => "reached",
            PathEnd::Unreachable => "unreachable",
            PathEnd::Loop => "loop",
            PathEnd::Silent => "silent",
            PathEnd::TooFar => "too-far",
            PathEnd::Refused => "refused",
            PathEnd::NoRoute => "no-route",
            PathEnd::Stopped => "stopped",
        }
    }
}

/// A path from the probe to a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The destination.
    pub dst: IpAddr,
    /// How it ended.
    pub end: PathEnd,
    /// The hops, by TTL without a gap; silent ones at the end are left out.
    pub hops: Vec<Hop>,
    /// Packets that were sent for it.
    pub sent: u32,
    /// How large a packet may be that arrives, where that was asked.
    pub mtu: Option<PathMtu>,
}

/// How large a packet may be that arrives unbroken (path MTU, RFC 1191, RFC 8201), in bytes from its IP header on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMtu {
    /// The largest one that arrived.
    pub bytes: u16,
    /// The TTL (IPv6: hop limit) where it was to arrive: the last hop that answers, or [`MAX_TTL`] for the destination.
    pub ttl: u8,
    /// Who said that a larger one is too large, in the order of the answers.
    pub limits: Vec<MtuLimit>,
    /// Whether larger ones were lost without a word: whoever relies on being told stalls there (RFC 2923, section 2.1).
    pub silent: bool,
}

/// A router that does not forward larger packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtuLimit {
    /// The router.
    pub from: IpAddr,
    /// What the link behind it takes, where it says so.
    pub bytes: Option<u16>,
}

/// All that is known of one hop.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hop {
    /// The TTL (IPv6: hop limit) that ends there.
    pub ttl: u8,
    /// Packets that were sent with it.
    pub sent: u8,
    /// What came back, in the order of the packets.
    pub replies: Vec<Reply>,
    /// Whether the reply is what another path of the same run got there: this one met somebody farther who stands behind it there.
    pub inherited: bool,
}

/// All ways to a destination that were found, as a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// The destination.
    pub dst: IpAddr,
    /// How the first way ended.
    pub end: PathEnd,
    /// How sure it was to be, in percent, that no further successor of a node exists, if the node spreads flows evenly.
    pub confidence: u8,
    /// The hops, by TTL without a gap; silent ones at the end are left out.
    pub hops: Vec<GraphHop>,
    /// Which node follows which, in order.
    pub links: Vec<Link>,
    /// Packets that were sent for it.
    pub sent: u32,
}

impl Graph {
    /// The addresses that a link joins, the nearer one first; `None` where it names a node that is not there.
    pub fn ends(&self, link: &Link) -> Option<(IpAddr, IpAddr)> {
        let hop = |ttl: u8| self.hops.iter().find(|hop| hop.ttl == ttl);
        let node = |hop: &GraphHop, place: u16| hop.nodes.get(usize::from(place)).map(|node| node.reply.from);
        Some((node(hop(link.ttl)?, link.from)?, node(hop(link.ttl.checked_add(1)?)?, link.to)?))
    }
}

/// Who answers at one distance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GraphHop {
    /// The TTL (IPv6: hop limit) that ends there.
    pub ttl: u8,
    /// Whether as many flows were answered as the confidence asks for, with so many nodes.
    pub sure: bool,
    /// Whether one flow was answered by several nodes: then load is spread by packet, there or nearer, and no links are told.
    pub by_packet: bool,
    /// Flows that got no answer.
    pub silent: u16,
    /// The nodes, by address.
    pub nodes: Vec<Node>,
}

/// A node of a graph: an address at a distance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Flows that lead there, of those that were tried; none where only a repetition met it, which happens where load is spread by packet.
    pub flows: u16,
    /// The shortest of the round trips, in microseconds.
    pub least_rtt_us: u32,
    /// Its first answer.
    pub reply: Reply,
}

/// A link of a graph: one hop, and two nodes by their place in it and in the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The TTL of the nearer node.
    pub ttl: u8,
    /// The nearer node.
    pub from: u16,
    /// The farther node.
    pub to: u16,
}

/// What kind of answer a hop gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplyKind {
    /// The TTL ended there.
    TimeExceeded,
    /// The destination answered as it does: an echo reply, a datagram, a port that is open or closed.
    Answer,
    /// An ICMP error that ends the path.
    Unreachable {
        /// ICMP type, in its family.
        icmp_type: u8,
        /// ICMP code.
        icmp_code: u8,
    },
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Who answered.
    pub from: IpAddr,
    /// Round trip, in microseconds.
    pub rtt_us: u32,
    /// TTL of the answer as it arrived: how long the way back may be.
    pub ttl: u8,
    /// What was said.
    pub kind: ReplyKind,
    /// What the packet looked like where it ended, as far as the answer quotes it.
    pub quoted: Option<Quoted>,
    /// The label stack that the packet came with (RFC 4950), at most [`MPLS_MAX`], top first.
    pub mpls: Vec<MplsLabel>,
    /// Interfaces that the router named (RFC 5837).
    pub interfaces: Vec<InterfaceInfo>,
    /// What the next link takes, in bytes, where the packet was too large for it (RFC 1191, section 4; RFC 4443, section 3.2).
    pub mtu: Option<u32>,
}

/// Fields of a packet as a router quoted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quoted {
    /// Its TTL: 1 (or 0) where the router counts as all do; more where the packet was in a tunnel.
    pub ttl: u8,
    /// Its type of service or traffic class: other than what was sent where somebody marks.
    pub tos: u8,
}

/// An entry of an MPLS label stack (RFC 3032, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MplsLabel {
    /// Label, 20 bits.
    pub label: u32,
    /// Traffic class (RFC 5462), 3 bits.
    pub tc: u8,
    /// Whether it is the last of the stack.
    pub bottom: bool,
    /// Its TTL.
    pub ttl: u8,
}

/// What an interface is to the packet that is answered (RFC 5837, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceRole {
    /// It came in there.
    Incoming,
    /// Part of where it came in.
    SubIncoming,
    /// It would have left there.
    Outgoing,
    /// The address of the next hop.
    NextHop,
}

impl InterfaceRole {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            InterfaceRole::Incoming => "incoming",
            InterfaceRole::SubIncoming => "sub-incoming",
            InterfaceRole::Outgoing => "outgoing",
            InterfaceRole::NextHop => "next-hop",
        }
    }
}

/// An interface as a router names it (RFC 5837).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceInfo {
    /// What it is to the packet.
    pub role: InterfaceRole,
    /// Its index.
    pub index: Option<u32>,
    /// Its address.
    pub addr: Option<IpAddr>,
    /// Its name.
    pub name: Option<String>,
    /// Its MTU.
    pub mtu: Option<u32>,
}
