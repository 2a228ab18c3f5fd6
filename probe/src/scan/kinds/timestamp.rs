//! ICMP timestamp (RFC 792): up where a reply comes. IPv4 only.
//!
//! The cookie is the originate timestamp, which a reply repeats, 31 bits: the highest bit says that it is no time of day. 16 more
//! are the sequence number, which also errors quote. The attempt is the identifier.

use picket_wire::result::{State, UpReason};
use picket_wire::space::Target;
use std::net::IpAddr;

use super::{ProbeKind, Reply, Run, TTL};
use crate::packet::icmp::{Message, Timestamp as Stamp, TimestampRequest, TimestampTemplate};
use crate::packet::ip::Packet;

const NO_TIME_OF_DAY: u32 = 1 << 31;

pub(in crate::scan) struct Timestamp {
    run: Run,
    template: Option<TimestampTemplate>,
}

impl Timestamp {
    pub(super) fn new(run: Run) -> Self {
        Self { run, template: run.source.v4.map(|source| TimestampTemplate::new(source, TTL)) }
    }

    fn request(&self, target: Target, attempt: u8) -> Option<TimestampRequest> {
        let IpAddr::V4(dst) = target.addr else { return None };
        let cookie = self.run.cookie(target, attempt);
        Some(TimestampRequest { dst, id: self.run.mark(attempt), seq: cookie as u16, originate: (cookie >> 32) as u32 | NO_TIME_OF_DAY })
    }

    /// The attempt of a message of ours, as far as it is there.
    fn recognise(&self, target: Target, stamp: &Stamp) -> Option<u8> {
        let attempt = self.run.attempt(stamp.id)?;
        let sent = self.request(target, attempt)?;
        (stamp.seq == sent.seq && stamp.originate.is_none_or(|originate| originate == sent.originate)).then_some(attempt)
    }
}

impl ProbeKind for Timestamp {
    fn run(&self) -> &Run {
        &self.run
    }

    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        self.template.as_ref()?.write(&self.request(target, attempt)?, buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        let Message::TimestampReply(stamp) = Message::parse(packet)? else { return None };
        let target = Target { addr: packet.src(), port: None };
        let attempt = self.recognise(target, &stamp).filter(|_| stamp.originate.is_some())?;
        Some(Reply { target, attempt, state: State::UpBy(UpReason::Timestamp), ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        let Message::TimestampRequest(stamp) = Message::parse(quote)? else { return None };
        let target = Target { addr: quote.dst(), port: None };
        Some((target, self.recognise(target, &stamp)?))
    }
}
