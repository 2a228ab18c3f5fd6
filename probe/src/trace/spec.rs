//! What a trace is asked to do, checked: after [`TracePlan::new`] nothing is checked again.

use core::net::IpAddr;
use core::time::Duration;
use std::sync::Arc;

use picket_wire::space::TargetSpace;
use picket_wire::trace::{self, FEW, FLOWS_MAX, MAX_QUERIES, MAX_TTL, MTU_LEAST, MTU_MOST, Method, TraceOptions};
pub use picket_wire::trace::{DEFAULT_CONFIDENCE, DEFAULT_GAP, DEFAULT_MAX_TTL};

use super::packet::{PAYLOAD_MIN, ip_len};
use crate::packet::icmp::ECHO_HEADER_LEN;
use crate::packet::ip::V6_HEADER_LEN;
use crate::packet::{tcp, udp};

/// Bytes of payload where nobody says how many.
pub const DEFAULT_PAYLOAD: usize = trace::DEFAULT_PAYLOAD as usize;
/// Graphs at a time where nobody says how many: each may remember thousands of packets.
pub const GRAPHS: usize = 64;
/// The longest packet of an Ethernet: what is longer would be cut into fragments here.
const LENGTH_MAX: usize = 1_500;

/// Why a trace cannot be done.
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
    /// Targets with ports.
    #[error("a trace has destinations, not ports: the port that is asked is an option")]
    Ports,
    /// First or last TTL.
    #[error("hops {first} to {last}: from 1 up to {MAX_TTL} are possible")]
    Ttl {
        /// The first TTL.
        first: u8,
        /// The last TTL.
        last: u8,
    },
    /// Too many probes for each hop, or none.
    #[error("{0} probes for each hop: 1 to {MAX_QUERIES} are possible")]
    Queries(u8),
    /// No hop may be silent, or none is asked ahead.
    #[error("{what} of 0: at least 1 is needed")]
    Zero {
        /// What it is.
        what: &'static str,
    },
    /// The packet is longer than a frame.
    #[error("{0} bytes of payload make a packet longer than {LENGTH_MAX} bytes")]
    Payload(usize),
    /// A SYN has nothing in it that could be longer.
    #[error("how large a packet may be is asked by icmp or udp, since a SYN carries no data, and of one way, not of all")]
    MtuOfSyns,
    /// No size of a packet.
    #[error("packets of up to {0} bytes: {MTU_LEAST} to {MTU_MOST} are possible")]
    Mtu(u16),
    /// Too little certainty, or too much.
    #[error("a confidence of {0} %: 50 to 99 are possible")]
    Confidence(u8),
    /// Neither address family has a source address.
    #[error("the interface has no address to send from")]
    NoSource,
}

/// Nodes at one distance for which it is known how many flows they ask for.
const NODES_MAX: usize = 64;

/// How all ways to a destination are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ways {
    /// Whether the light form will do where nothing speaks against it.
    pub lite: bool,
    confidence: u8,
    /// For each number of successors, from one on, how many flows.
    flows: Arc<[u16]>,
    most_flows: u16,
}

impl Ways {
    /// As sure as `confidence` percent, 50 to 99, of each router that its successors are found. That is no statement on a whole graph: where several
    /// routers spread load, each of them may be the one of which something was missed.
    ///
    /// # Errors
    /// If the confidence is less, or certainty.
    pub fn new(lite: bool, confidence: u8) -> Result<Self, SpecError> {
        if !(50..=99).contains(&confidence) {
            return Err(SpecError::Confidence(confidence));
        }
        let failure = 1.0 - f64::from(confidence) / 100.0;
        let flows = (1..=NODES_MAX).map(|seen| flows_for(seen, failure)).collect();
        Ok(Self { lite, confidence, flows, most_flows: FLOWS_MAX })
    }

    /// How sure it is, in percent.
    pub fn confidence(&self) -> u8 {
        self.confidence
    }

    /// How many flows through a node it takes, where `successors` were seen, to know of another one: with one more, all as likely,
    /// the probability that one was missed is below what the confidence leaves (Augustin et al. 2007, section 3).
    pub(super) fn flows(&self, successors: usize) -> usize {
        self.flows.get(successors.max(1) - 1).or(self.flows.last()).map_or(0, |flows| usize::from(*flows))
    }

    /// How often one flow is asked again at a distance with so many nodes, to know that it is not sent by chance: all as likely, the
    /// probability to meet the same one each time is below what the confidence leaves.
    pub(super) fn repetitions(&self, nodes: usize) -> usize {
        let failure = 1.0 - f64::from(self.confidence) / 100.0;
        (failure.ln() / -(nodes.max(2) as f64).ln()).ceil() as usize
    }

    /// The most packets to one distance: the flows, the first one once more, and repetitions.
    pub fn most_packets(&self) -> u16 {
        self.most_flows + 1 + self.repetitions(2) as u16
    }

    /// The most flows to one destination.
    pub(super) fn most_flows(&self) -> u16 {
        self.most_flows
    }

    /// No more flows than there are ports.
    pub(super) fn clipped(self, ports: usize) -> Self {
        Self { most_flows: self.most_flows.min(u16::try_from(ports).unwrap_or(u16::MAX)), ..self }
    }
}

/// The fewest draws of `seen + 1` things, all as likely, after which one is missing with a probability of at most `failure`.
fn flows_for(seen: usize, failure: f64) -> u16 {
    let all = seen + 1;
    // The probabilities that so many were drawn.
    let mut drawn = vec![0.0; all + 1];
    drawn[0] = 1.0;
    for draws in 0..FLOWS_MAX {
        if 1.0 - drawn[all] <= failure {
            return draws;
        }
        for known in (0..=all).rev() {
            let new = if known == 0 { 0.0 } else { drawn[known - 1] * (all + 1 - known) as f64 / all as f64 };
            drawn[known] = drawn[known] * known as f64 / all as f64 + new;
        }
    }
    FLOWS_MAX
}

/// Bounds of the wait for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Never ask a silent hop again sooner. Default 25 ms: what a busy router may take for an error.
    pub quick: Duration,
    /// Never give a silent hop up sooner after it was asked last. Default 100 ms.
    pub floor: Duration,
    /// Beyond the farthest answer: never give up sooner. Default 1 s (RFC 6298, section 2).
    pub beyond: Duration,
    /// Never wait more. Default 3 s.
    pub ceiling: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quick: Duration::from_millis(25),
            floor: Duration::from_millis(100),
            beyond: Duration::from_secs(1),
            ceiling: Duration::from_secs(3),
        }
    }
}

impl Timing {
    /// When a silent hop is asked again, and how much later it is given up. `slowest` is the longest round trip of the path so far;
    /// `inside` says that a hop behind this one has answered.
    pub fn waits(&self, slowest: Option<Duration>, inside: bool) -> (Duration, Duration) {
        let (quick, floor) = (self.quick.min(self.ceiling), self.floor.min(self.ceiling));
        match slowest {
            // Whoever is nearer than somebody who has answered should not be slower.
            Some(slowest) if inside => ((slowest * 5 / 4).clamp(quick, self.ceiling), (slowest * 3 / 2).clamp(floor, self.ceiling)),
            _ => {
                let least = self.beyond.min(self.ceiling);
                let long = slowest.map_or(least, |slowest| (slowest * 4).clamp(least, self.ceiling));
                (long / 3, long)
            }
        }
    }
}

/// A checked plan.
#[derive(Debug, Clone)]
pub struct TracePlan {
    /// The destinations, by position.
    pub space: Arc<TargetSpace>,
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
    /// What is sent.
    pub method: Method,
    /// Destination port; nothing for ICMP.
    pub port: u16,
    /// The first TTL.
    pub first_ttl: u8,
    /// The last TTL.
    pub max_ttl: u8,
    /// Probes for each hop that answers.
    pub queries: u8,
    /// Silent hops in a row that end a path.
    pub gap: u8,
    /// How many hops are asked at once at the start; later ones are asked as far beyond the farthest answer as the gap is wide.
    pub window: u8,
    /// How many hops are asked beyond the farthest answer as long as they answer in time; no more than the gap.
    pub ahead: u8,
    /// Whether paths take nearer hops from each other, where they meet; only where each hop is asked once, for one way.
    pub shared: bool,
    /// Paths at a time.
    pub paths: usize,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Bytes behind the ICMP or UDP header; at least 10.
    pub payload: usize,
    /// Which of the possible flows is taken: routers that spread load may send another one another way.
    pub flow: u16,
    /// Whether a silent hop is asked a second time where only one probe is wanted for each.
    pub retry: bool,
    /// Bounds of waiting.
    pub timing: Timing,
    /// Whether each answer is told when it comes.
    pub live: bool,
    /// Whether all ways are looked for, and not one only.
    pub multipath: Option<Ways>,
    /// Up to which size, in bytes from the IP header on, it is asked how large a packet may be that arrives; of one way only.
    pub mtu: Option<u16>,
}

impl TracePlan {
    /// A plan for positions `from` to `to` of a space of destinations, with what is usual for the rest: for a few destinations, that somebody waits for, as
    /// many hops at once as most paths are long; for many one hop at a time, and none that others have found.
    pub fn new(space: Arc<TargetSpace>, from: u64, to: u64, method: Method) -> Result<Self, SpecError> {
        let len = space.len();
        if from >= to || to > len {
            return Err(SpecError::Range { from, to, len });
        }
        if space.target(from).is_some_and(|target| target.port.is_some()) {
            return Err(SpecError::Ports);
        }
        let few = to - from <= FEW;
        Ok(Self {
            space,
            from,
            to,
            method,
            port: method.port(),
            first_ttl: 1,
            max_ttl: DEFAULT_MAX_TTL,
            queries: if few { 3 } else { 1 },
            gap: DEFAULT_GAP,
            window: if few { 16 } else { 1 },
            ahead: if few { MAX_TTL } else { 1 },
            shared: !few,
            paths: 1_024,
            tos: 0,
            payload: DEFAULT_PAYLOAD,
            flow: 0,
            retry: true,
            timing: Timing::default(),
            live: false,
            multipath: None,
            mtu: None,
        })
    }

    /// The plan for a lease of a job. Whether its destinations are few is the whole job's to say, not the lease's.
    pub fn of_job(space: Arc<TargetSpace>, from: u64, to: u64, options: &TraceOptions) -> Result<Self, SpecError> {
        let few = space.len() <= FEW;
        let plan = Self::new(space, from, to, options.method)?;
        let multipath = options.ways.map(|ways| Ways::new(!ways.full, ways.confidence)).transpose()?;
        let plan = Self {
            port: options.port,
            first_ttl: options.first_ttl,
            max_ttl: options.max_ttl,
            queries: options.queries,
            gap: options.gap,
            window: if few { 16 } else { 1 },
            ahead: if few { MAX_TTL } else { 1 },
            shared: !few && !options.all_hops,
            paths: if multipath.is_some() { GRAPHS } else { plan.paths },
            tos: options.tos,
            payload: options.payload.into(),
            flow: options.flow,
            multipath,
            mtu: options.mtu,
            ..plan
        };
        plan.checked()
    }

    /// The plan, if what was changed in it is possible.
    pub fn checked(self) -> Result<Self, SpecError> {
        if self.first_ttl == 0 || self.first_ttl > self.max_ttl || self.max_ttl > MAX_TTL {
            return Err(SpecError::Ttl { first: self.first_ttl, last: self.max_ttl });
        }
        if !(1..=MAX_QUERIES).contains(&self.queries) {
            return Err(SpecError::Queries(self.queries));
        }
        for (what, count) in [
            ("a gap", usize::from(self.gap)),
            ("a window", self.window.into()),
            ("a look ahead", self.ahead.into()),
            ("a number of paths at a time", self.paths),
        ] {
            if count == 0 {
                return Err(SpecError::Zero { what });
            }
        }
        if V6_HEADER_LEN + ECHO_HEADER_LEN + self.payload.max(PAYLOAD_MIN) > LENGTH_MAX {
            return Err(SpecError::Payload(self.payload));
        }
        if let Some(mtu) = self.mtu {
            if self.method == Method::Tcp || self.multipath.is_some() {
                return Err(SpecError::MtuOfSyns);
            }
            if !(MTU_LEAST..=MTU_MOST).contains(&mtu) {
                return Err(SpecError::Mtu(mtu));
            }
        }
        // Hops of which more than one answer is wanted are measured, and so are those of all ways.
        let shared = self.shared && self.queries == 1 && self.multipath.is_none();
        Ok(Self { shared, ..self })
    }

    /// The plan, with no more flows than there are ports.
    pub(super) fn with_ports(self, ports: usize) -> Self {
        Self { multipath: self.multipath.map(|ways| ways.clipped(ports)), ..self }
    }

    /// Bytes behind the headers of its packets.
    pub fn payload_len(&self) -> usize {
        if self.method == Method::Tcp { 0 } else { self.payload.max(PAYLOAD_MIN) }
    }

    /// Bytes of its packets behind the IP header.
    pub(super) fn transport_len(&self) -> usize {
        match self.method {
            Method::Icmp => ECHO_HEADER_LEN + self.payload_len(),
            Method::Udp => udp::HEADER_LEN + self.payload_len(),
            Method::Tcp => tcp::HEADER_LEN,
        }
    }

    /// Bytes of a packet to `dst`, from the IP header on: checked to be no more than a frame takes.
    pub(super) fn packet_len(&self, dst: IpAddr) -> u16 {
        (ip_len(dst) + self.transport_len()) as u16
    }

    /// Probes that a silent hop gets.
    pub fn attempts(&self) -> u8 {
        if self.retry { self.queries.max(2) } else { self.queries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_flows_are_needed_as_the_authors_say() {
        let flows = |confidence| (1..=9).map(|seen| Ways::new(true, confidence).unwrap().flows(seen)).collect::<Vec<_>>();
        // Augustin et al. 2007, and `mda.c` of others who follow them.
        assert_eq!(flows(95), [6, 11, 16, 21, 27, 33, 38, 44, 51]);
        assert_eq!(flows(99), [8, 15, 21, 28, 36, 43, 51, 58, 66]);
        assert_eq!(Ways::new(true, 49), Err(SpecError::Confidence(49)));
        assert_eq!(Ways::new(true, 100), Err(SpecError::Confidence(100)));
        let ways = Ways::new(true, 95).unwrap();
        assert_eq!((ways.flows(0), ways.flows(1_000)), (6, 462));
        assert_eq!([0, 2, 4, 64].map(|nodes| ways.repetitions(nodes)), [5, 5, 3, 1]);
    }
}
