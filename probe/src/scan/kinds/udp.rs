//! UDP (RFC 768) with the question of the port's usual service: open where anything comes back, closed where the target itself
//! says that the port is unreachable. Silence says nothing: an open port that did not like the question is silent as well.
//!
//! What every answer repeats is little: the source port. So the cookie chooses it among all those that the receive filter
//! passes; with the default 4,096 ports and ten attempts there are 409 for each attempt, which is **8.7 bits** against who
//! knows everything but the key. The payload carries the rest, up to 64 bits, wherever the protocol makes an answer repeat
//! something ([`Payload::strength`](crate::packet::payload::Payload)), and:
//!
//! - an answer that speaks the protocol must repeat it; one that speaks anything else is an answer on the strength of its ports;
//! - an ICMP error must quote the right ports and length, and as much of the payload as it quotes must be ours. Routers that quote
//!   eight octets (RFC 792) leave it at the ports, all others quote enough;
//! - where a service answers from another port (TFTP, SSDP, WS-Discovery), an answer must speak the protocol, too.
//!
//! Port and payload are chosen by different bits. Attempts go round the questions of a port; ports without one, and those of
//! machines that an unexpected datagram may disturb, get an empty datagram.

use std::collections::HashMap;
use std::net::IpAddr;

use picket_wire::result::State;
use picket_wire::space::Target;

use super::{IcmpError, ProbeKind, Reply, Run, TTL};
use crate::packet::icmp;
use crate::packet::ip::{PROTOCOL_UDP, Packet};
use crate::packet::payload::{Judgement, Payload, catalogue};
use crate::packet::udp::{Datagram, HEADER_LEN, Start, Writer};

pub(in crate::scan) struct Udp {
    run: Run,
    writer: Writer,
    questions: HashMap<u16, Vec<&'static Payload>>,
    /// Ports whose services answer from elsewhere.
    wanderers: Vec<u16>,
}

impl Udp {
    /// `ask_fragile`: whether ports of machines are asked like all others.
    pub(super) fn new(run: Run, ask_fragile: bool) -> Self {
        let mut questions: HashMap<u16, Vec<&'static Payload>> = HashMap::new();
        for payload in catalogue().filter(|payload| ask_fragile || !payload.fragile) {
            payload.ports.iter().for_each(|port| questions.entry(*port).or_default().push(payload));
        }
        let mut wanderers: Vec<u16> =
            questions.iter().filter(|(_, payloads)| payloads.iter().any(|payload| payload.from_elsewhere)).map(|(port, _)| *port).collect();
        wanderers.sort_unstable();
        Self { run, writer: Writer { v4: run.source.v4, v6: run.source.v6, ttl: TTL }, questions, wanderers }
    }

    fn question(&self, port: u16, attempt: u8) -> Option<&'static Payload> {
        let payloads = self.questions.get(&port)?;
        payloads.get(usize::from(attempt) % payloads.len()).copied()
    }

    fn payload(&self, port: u16, attempt: u8, nonce: u64) -> Vec<u8> {
        self.question(port, attempt).map_or_else(Vec::new, |payload| payload.bytes(nonce))
    }

    /// The attempt by which `target` was asked from our port `ours`, and its cookie.
    fn asked(&self, target: Target, ours: u16) -> Option<(u8, u64)> {
        let attempt = self.run.spread_attempt(ours)?;
        let cookie = self.run.cookie(target, attempt);
        (self.run.spread_port(cookie, attempt) == ours).then_some((attempt, cookie))
    }

    /// An answer from a port that was not asked.
    fn wandered(&self, from: IpAddr, datagram: &Datagram<'_>) -> Option<(Target, u8)> {
        self.wanderers.iter().find_map(|port| {
            let target = Target { addr: from, port: Some(*port) };
            let (attempt, nonce) = self.asked(target, datagram.dst_port)?;
            let question = self.question(*port, attempt).filter(|question| question.from_elsewhere)?;
            let judged = question.judge(nonce, datagram.payload);
            matches!(judged, Judgement::Repeats | Judgement::Plausible).then_some((target, attempt))
        })
    }
}

impl ProbeKind for Udp {
    fn run(&self) -> &Run {
        &self.run
    }

    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        let dst_port = target.port?;
        let cookie = self.run.cookie(target, attempt);
        let payload = self.payload(dst_port, attempt, cookie);
        let datagram = Datagram { src_port: self.run.spread_port(cookie, attempt), dst_port, payload: &payload };
        self.writer.write(target.addr, &datagram, buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        if packet.protocol() != PROTOCOL_UDP {
            return None;
        }
        let datagram = Datagram::parse(packet.payload())?;
        let straight = Target { addr: packet.src(), port: Some(datagram.src_port) };
        let (target, attempt) = match self.asked(straight, datagram.dst_port) {
            Some((attempt, nonce)) => {
                let judged = self.question(datagram.src_port, attempt).map(|question| question.judge(nonce, datagram.payload));
                (judged != Some(Judgement::Foreign)).then_some((straight, attempt))?
            }
            None => self.wandered(packet.src(), &datagram)?,
        };
        Some(Reply { target, attempt, state: State::Open, ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        if quote.protocol() != PROTOCOL_UDP {
            return None;
        }
        let start = Start::parse(quote.payload())?;
        let target = Target { addr: quote.dst(), port: Some(start.dst_port) };
        let (attempt, nonce) = self.asked(target, start.src_port)?;
        let sent = self.payload(start.dst_port, attempt, nonce);
        let quoted = quote.payload().get(HEADER_LEN..).unwrap_or_default();
        let is_ours = usize::from(start.len) == HEADER_LEN + sent.len() && sent.iter().zip(quoted).all(|(a, b)| a == b);
        is_ours.then_some((target, attempt))
    }

    /// RFC 1122, section 4.1.3.1, and RFC 4443, section 3.1: a host without a listener says so.
    fn verdict(&self, error: &IcmpError) -> State {
        match (error.is_own(), error.icmp_type, error.icmp_code) {
            (true, icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE) if error.target.addr.is_ipv4() => State::Closed,
            (true, icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE) if error.target.addr.is_ipv6() => State::Closed,
            _ => error.state(),
        }
    }
}
