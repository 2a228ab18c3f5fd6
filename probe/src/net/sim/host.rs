//! What simulated hosts, and who stands before them, say to a packet of ours.
//!
//! Written without the product's builders and views of protocols, so that an error there shows as a scan that finds nothing.

use core::time::Duration;
use std::net::IpAddr;

use super::{HostRule, PortState, Scenario};
use crate::packet::checksum::{Checksum, checksum};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;
const RST_ACK: u8 = 0x14;

/// A packet of ours, as a host reads it.
pub(super) struct Probe<'a> {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    pub(super) whole: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// A packet that comes back.
pub(super) struct Answer {
    pub(super) packet: Vec<u8>,
    /// When, where that is not the host's own time.
    pub(super) after: Option<Duration>,
    /// Who reports an error, and how seldom he does so.
    pub(super) error: Option<(IpAddr, Duration)>,
}

impl Answer {
    fn now(packet: Vec<u8>) -> Self {
        Self { packet, after: None, error: None }
    }
}

impl<'a> Probe<'a> {
    pub(super) fn parse(whole: &'a [u8]) -> Option<Self> {
        if whole.first()? >> 4 == 4 {
            let header = whole.first_chunk::<20>()?;
            let payload = whole.get(usize::from(header[0] & 0xf) * 4..)?;
            let ip = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            Some(Self { src: ip(12), dst: ip(16), protocol: header[9], whole, payload })
        } else {
            let (header, payload) = whole.split_first_chunk::<40>()?;
            let ip = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
            Some(Self { src: ip(&header[8..24])?, dst: ip(&header[24..40])?, protocol: header[6], whole, payload })
        }
    }

    /// Everything that comes back.
    pub(super) fn answers(&self, scenario: &Scenario, rule: &HostRule) -> Vec<Answer> {
        let mut answers = match self.protocol {
            ICMP | ICMPV6 => self.answer_icmp(rule).into_iter().collect(),
            TCP => self.answer_tcp(scenario, rule),
            UDP => self.answer_udp(scenario, rule).into_iter().collect(),
            SCTP => self.answer_sctp(scenario, rule).into_iter().collect(),
            _ => Vec::new(),
        };
        if rule.mirrors {
            answers.push(Answer::now(self.packet(self.dst, rule.ttl, self.protocol, self.payload.to_vec())));
        }
        answers
    }

    fn answer_icmp(&self, rule: &HostRule) -> Option<Answer> {
        let (request, reply) = if self.dst.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut message = self.payload.to_vec();
        let from = match *message.first()? {
            asked if asked == request && (rule.echo || rule.echo_by.is_some()) => {
                message[0] = reply;
                rule.echo_by.unwrap_or(self.dst)
            }
            13 if self.dst.is_ipv4() && rule.timestamp && message.len() >= 20 => {
                message[0] = 14;
                message[12..20].fill(7);
                self.dst
            }
            _ => return None,
        };
        Some(Answer::now(self.packet(from, rule.ttl, self.protocol, message)))
    }

    /// The state of the port that is asked, or the error that comes instead of it.
    fn port(&self, scenario: &Scenario, rule: &HostRule) -> Result<PortState, Option<Answer>> {
        let port = self.payload.get(2..4).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])).ok_or(None)?;
        let state = match self.protocol {
            UDP => rule.udp_port(port),
            _ => rule.port(port),
        };
        match state {
            PortState::Silent => Err(None),
            PortState::Unreachable(code) => Err(Some(self.unreachable(self.dst, rule.ttl, code, rule.error_gap))),
            PortState::Prohibited(code) => {
                let gateway = if self.dst.is_ipv4() { scenario.gateway_v4.map(IpAddr::V4) } else { scenario.gateway_v6.map(IpAddr::V6) };
                Err(gateway.map(|router| self.unreachable(router, 64, code, scenario.router_error_gap)))
            }
            state => Ok(state),
        }
    }

    fn answer_tcp(&self, scenario: &Scenario, rule: &HostRule) -> Vec<Answer> {
        let Some(segment) = self.payload.first_chunk::<20>() else { return Vec::new() };
        let flags = segment[13] & 0x17;
        if flags == 0x10 {
            // Nobody has spoken to him before: a reset that takes the acknowledgement for its number (RFC 9293, section 3.10.7.1).
            let number = [segment[8], segment[9], segment[10], segment[11]];
            return match (rule.stateful, self.port(scenario, rule)) {
                (true, _) => Vec::new(),
                (false, Ok(_)) => vec![Answer::now(self.segment(rule, segment, RST, number, [0; 4]))],
                (false, Err(error)) => error.into_iter().collect(),
            };
        }
        if flags != SYN {
            return Vec::new();
        }
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let acknowledged = sequence.wrapping_add(1).to_be_bytes();
        let mut answers = Vec::new();
        if let Some(after) = rule.resets_first {
            let packet = self.segment(rule, segment, RST_ACK, [0; 4], acknowledged);
            answers.push(Answer { packet, after: Some(after), error: None });
        }
        for number in 0..rule.reset_flood {
            let wrong = sequence.wrapping_add(2 + u32::from(number)).to_be_bytes();
            answers.push(Answer::now(self.segment(rule, segment, RST_ACK, [0; 4], wrong)));
        }
        match self.port(scenario, rule) {
            Ok(PortState::Closed) => answers.push(Answer::now(self.segment(rule, segment, RST_ACK, [0; 4], acknowledged))),
            Ok(_) => answers.push(Answer::now(self.segment(rule, segment, SYN_ACK, [0x5e; 4], acknowledged))),
            Err(error) => answers.extend(error),
        }
        answers
    }

    fn segment(&self, rule: &HostRule, asked: &[u8; 20], flags: u8, seq: [u8; 4], ack: [u8; 4]) -> Vec<u8> {
        let window = if flags & SYN != 0 { 64_240_u16 } else { 0 };
        let reply = [&asked[2..4], &asked[..2], &seq, &ack, &[0x50, flags], &window.to_be_bytes(), &[0; 4]].concat();
        self.packet(self.dst, rule.ttl, TCP, reply)
    }

    /// A service says something of its own; a name service repeats the question with the response bit.
    fn answer_udp(&self, scenario: &Scenario, rule: &HostRule) -> Option<Answer> {
        let (header, asked) = self.payload.split_first_chunk::<8>()?;
        let state = match self.port(scenario, rule) {
            Ok(state) => state,
            Err(error) => return error,
        };
        let said = match (state, u16::from_be_bytes([header[2], header[3]])) {
            (PortState::Closed, _) => {
                let code = if self.dst.is_ipv4() { 3 } else { 4 };
                return Some(self.unreachable(self.dst, rule.ttl, code, rule.error_gap));
            }
            (_, 53 | 137 | 5353) => {
                let mut answer = asked.to_vec();
                *answer.get_mut(2)? |= 0x80;
                answer
            }
            (_, 69) => b"\0\x05\0\x01not here\0".to_vec(),
            _ => b"hello".to_vec(),
        };
        let port = if state == PortState::OpenElsewhere { [0xc3, 0x50] } else { [header[2], header[3]] };
        let len = (said.len() as u16 + 8).to_be_bytes();
        Some(Answer::now(self.packet(self.dst, rule.ttl, UDP, [&port, &header[..2], &len, &[0, 0], &said].concat())))
    }

    /// RFC 9260, sections 5.1 and 8.4: the tag of the INIT comes back in the header.
    fn answer_sctp(&self, scenario: &Scenario, rule: &HostRule) -> Option<Answer> {
        let asked = self.payload.first_chunk::<32>().filter(|asked| asked[12] == 1)?;
        let chunk: Vec<u8> = match self.port(scenario, rule) {
            Ok(PortState::Closed) => vec![6, 0, 0, 4],
            Ok(_) => [&[2, 0, 0, 20][..], &[9; 16]].concat(),
            Err(error) => return error,
        };
        let body = [&asked[2..4], &asked[..2], &asked[16..20], &[0; 4], &chunk].concat();
        Some(Answer::now(self.packet(self.dst, rule.ttl, SCTP, body)))
    }

    fn unreachable(&self, from: IpAddr, ttl: u8, code: u8, gap: Duration) -> Answer {
        let kind = if self.is_v4() { 3 } else { 1 };
        Answer { packet: self.error(from, ttl, (kind, code), 0, self.whole, &[]), after: None, error: Some((from, gap)) }
    }

    /// RFC 792 and RFC 4443: the message quotes the packet that it is about. RFC 4884: where something is appended, the quote is padded, and
    /// its length stated.
    pub(super) fn error(&self, from: IpAddr, ttl: u8, (kind, code): (u8, u8), mtu: u16, quote: &[u8], appended: &[u8]) -> Vec<u8> {
        let [high, low] = mtu.to_be_bytes();
        let mut message = vec![kind, code, 0, 0, 0, 0, high, low];
        message.extend(quote);
        if !appended.is_empty() {
            message.resize(8 + quote.len().max(128).next_multiple_of(8), 0);
            let words = (message.len() - 8) / if self.is_v4() { 4 } else { 8 };
            message[if self.is_v4() { 5 } else { 4 }] = u8::try_from(words).unwrap_or(0);
            message.extend(appended);
        }
        self.packet(from, ttl, if self.is_v4() { ICMP } else { ICMPV6 }, message)
    }

    pub(super) fn is_v4(&self) -> bool {
        self.dst.is_ipv4()
    }

    pub(super) fn len(&self) -> usize {
        self.whole.len()
    }

    pub(super) fn ttl(&self) -> u8 {
        self.whole.get(if self.is_v4() { 8 } else { 7 }).copied().unwrap_or(0)
    }

    /// What a router that spreads load by flow looks at.
    pub(super) fn flow(&self) -> Vec<u8> {
        let addresses = if self.is_v4() { self.whole.get(12..20) } else { self.whole.get(8..40) };
        [&[self.protocol][..], addresses.unwrap_or_default(), self.payload.get(..4).unwrap_or_default()].concat()
    }

    /// The packet as a router sees it that ends it with `ttl` hops left, its first `most` bytes behind the IP header.
    pub(super) fn quote(&self, ttl: u8, tos: Option<u8>, most: usize) -> Vec<u8> {
        let mut quote = self.whole.to_vec();
        let header = self.whole.len() - self.payload.len();
        quote.truncate(header.saturating_add(most).min(self.whole.len()));
        if self.is_v4() {
            quote[8] = ttl;
            quote[1] = tos.unwrap_or(quote[1]);
        } else {
            quote[7] = ttl;
            if let Some(tos) = tos {
                quote[0] = 0x60 | tos >> 4;
                quote[1] = tos << 4;
            }
        }
        quote
    }

    /// A packet back to us, its checksums filled in.
    fn packet(&self, from: IpAddr, ttl: u8, protocol: u8, mut body: Vec<u8>) -> Vec<u8> {
        let (at, pseudo) = match protocol {
            TCP => (16, true),
            UDP => (6, true),
            ICMPV6 => (2, true),
            ICMP => (2, false),
            _ => {
                body[8..12].fill(0);
                let sum = crc32c::crc32c(&body);
                body[8..12].copy_from_slice(&sum.to_le_bytes());
                return [&self.header(from, ttl, protocol, body.len())[..], &body[..]].concat();
            }
        };
        body[at..at + 2].fill(0);
        let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let mut sum = Checksum::new();
        match (from, self.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) if pseudo => sum.add_pseudo_v4(from, to, protocol, len),
            (IpAddr::V6(from), IpAddr::V6(to)) if pseudo => sum.add_pseudo_v6(from, to, protocol, len.into()),
            _ => {}
        }
        sum.add(&body);
        body[at..at + 2].copy_from_slice(&sum.finish().to_be_bytes());
        [&self.header(from, ttl, protocol, body.len())[..], &body[..]].concat()
    }

    fn header(&self, from: IpAddr, ttl: u8, protocol: u8, len: usize) -> Vec<u8> {
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        match (from, self.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                header[8] = ttl;
                header[9] = protocol;
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let own = checksum(&header);
                header[10..12].copy_from_slice(&own.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header[6] = protocol;
                header[7] = ttl;
                header[8..24].copy_from_slice(&from.octets());
                header[24..40].copy_from_slice(&to.octets());
                header
            }
            _ => Vec::new(),
        }
    }
}
