//! Host discovery in several ways: attempt `n` of a silent host asks in way `n` modulo their number.
//!
//! Each way is a kind of its own, so its cookies, and what it takes for an answer, are those of the kind. Here only the meaning
//! changes: whatever a host itself says shows that it is there, an ICMP error of its own included. An error of somebody else
//! does not end the asking ([`ScanPlan`](crate::scan::spec::ScanPlan) insists): what does not get through in one way may in another.

use std::net::IpAddr;

use picket_wire::job::HostProbe;
use picket_wire::result::{State, UpReason};
use picket_wire::space::Target;

use super::ack::Ack;
use super::echo::Echo;
use super::sctp::Sctp;
use super::syn::Syn;
use super::timestamp::Timestamp;
use super::udp::Udp;
use super::{IcmpError, ProbeKind, Reply, Run};
use crate::packet::icmp;
use crate::packet::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet};

pub(in crate::scan) struct Discover {
    run: Run,
    /// Never empty.
    ways: Vec<HostProbe>,
    echo: Echo,
    timestamp: Timestamp,
    syn: Syn,
    ack: Ack,
    udp: Udp,
    sctp: Sctp,
}

impl Discover {
    pub(super) fn new(run: Run, ways: &[HostProbe], ask_fragile: bool) -> Self {
        let ways = if ways.is_empty() { HostProbe::DEFAULT } else { ways };
        Self {
            run,
            ways: ways.to_vec(),
            echo: Echo::new(run),
            timestamp: Timestamp::new(run),
            syn: Syn::new(run),
            ack: Ack::new(run),
            udp: Udp::new(run, ask_fragile),
            sctp: Sctp::new(run),
        }
    }

    /// How attempt number `attempt` asks a host of this address.
    fn way(&self, addr: IpAddr, attempt: u8) -> HostProbe {
        let way = self.ways.get(usize::from(attempt) % self.ways.len().max(1)).copied().unwrap_or(HostProbe::Echo);
        match way {
            HostProbe::Timestamp if addr.is_ipv6() => HostProbe::Echo,
            way => way,
        }
    }

    /// The kinds that may know a packet of this protocol.
    fn kinds(&self, protocol: u8) -> [Option<&dyn ProbeKind>; 2] {
        match protocol {
            PROTOCOL_ICMP => [Some(&self.echo), Some(&self.timestamp)],
            PROTOCOL_ICMPV6 => [Some(&self.echo), None],
            PROTOCOL_TCP => [Some(&self.syn), Some(&self.ack)],
            PROTOCOL_UDP => [Some(&self.udp), None],
            PROTOCOL_SCTP => [Some(&self.sctp), None],
            _ => [None, None],
        }
    }

    fn kind(&self, way: HostProbe) -> (&dyn ProbeKind, Option<u16>) {
        match way {
            HostProbe::Echo => (&self.echo, None),
            HostProbe::Timestamp => (&self.timestamp, None),
            HostProbe::Syn(port) => (&self.syn, Some(port)),
            HostProbe::Ack(port) => (&self.ack, Some(port)),
            HostProbe::Udp(port) => (&self.udp, Some(port)),
            HostProbe::Sctp(port) => (&self.sctp, Some(port)),
        }
    }

    /// Whether an attempt asked this port; the host is what was asked then.
    fn host(&self, target: Target, attempt: u8) -> Option<Target> {
        let (_, port) = self.kind(self.way(target.addr, attempt));
        (port == target.port).then_some(Target { port: None, ..target })
    }
}

/// What the answer of a host to one of its ways says about the host.
fn meaning(state: State, way: HostProbe) -> State {
    let by = match (state, way) {
        (State::Open, HostProbe::Syn(_)) => UpReason::SynAck,
        (State::Closed, HostProbe::Syn(_)) | (State::Unfiltered, _) => UpReason::Reset,
        (State::Open, HostProbe::Udp(_)) => UpReason::Udp,
        (State::Open | State::Closed, HostProbe::Sctp(_)) => UpReason::Sctp,
        _ => return state,
    };
    State::UpBy(by)
}

impl ProbeKind for Discover {
    fn run(&self) -> &Run {
        &self.run
    }

    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        let (kind, port) = self.kind(self.way(target.addr, attempt));
        kind.patch(Target { port, ..target }, attempt, buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        self.kinds(packet.protocol()).into_iter().flatten().find_map(|kind| {
            let reply = kind.accept_direct(packet)?;
            let target = self.host(reply.target, reply.attempt)?;
            Some(Reply { target, state: meaning(reply.state, self.way(target.addr, reply.attempt)), ..reply })
        })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        self.kinds(quote.protocol()).into_iter().flatten().find_map(|kind| {
            let (target, attempt) = kind.accept_quote(quote)?;
            Some((self.host(target, attempt)?, attempt))
        })
    }

    /// Whoever answers in the host's own name is there, or stands for it.
    fn verdict(&self, error: &IcmpError) -> State {
        if !error.is_own() {
            return error.state();
        }
        let is_port = match error.target.addr {
            IpAddr::V4(_) => error.icmp_type == icmp::V4_UNREACHABLE && error.icmp_code == icmp::V4_PORT_UNREACHABLE,
            IpAddr::V6(_) => error.icmp_type == icmp::V6_UNREACHABLE && error.icmp_code == icmp::V6_PORT_UNREACHABLE,
        };
        State::UpBy(if is_port { UpReason::PortUnreachable } else { UpReason::IcmpError })
    }
}
