//! Kinds of probes, one file each: the constant bytes, what is patched per target, whose answer a packet is, what it says.
//!
//! To add one: a file with a [`ProbeKind`], a line in [`Kind`], a scenario in the tests.

mod echo;
pub(super) mod neighbour;
mod syn;

use core::hash::Hasher;
use core::net::IpAddr;

use picket_wire::job::Technique;
use picket_wire::result::State;
use picket_wire::space::Target;
use siphasher::sip::SipHasher13;

use super::spec::RawIdentity;
use crate::net::engine::Source;
use crate::packet::icmp::{self, Message};
use crate::packet::ip::Packet;

/// Hops that a probe may take; what most systems start with.
const TTL: u8 = 64;

/// A packet that was recognised as an answer to a probe of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) target: Target,
    pub(super) attempt: u8,
    pub(super) state: State,
    pub(super) ttl: u8,
}

/// What a kind of probe offers.
pub(super) trait ProbeKind {
    /// Writes the packet for a target into `buf` and gives its length; `None` where there is no source address for it.
    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize>;

    /// Recognises an answer of a target itself: cookie, addresses and ports must fit.
    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply>;

    /// Recognises a probe of ours in the quote of an ICMP error: the target and attempt that it was for.
    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)>;
}

/// All kinds.
pub(super) enum Kind {
    Syn(syn::Syn),
    Echo(echo::Echo),
}

impl Kind {
    /// The kind for a technique; `None` for one that needs no raw packets.
    pub(super) fn new(technique: Technique, identity: RawIdentity, attempts: u8) -> Option<Self> {
        let run = Run::new(identity, attempts);
        match technique {
            Technique::Syn => Some(Kind::Syn(syn::Syn::new(run))),
            Technique::Echo => Some(Kind::Echo(echo::Echo::new(run))),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        match self {
            Kind::Syn(kind) => kind.patch(target, attempt, buf),
            Kind::Echo(kind) => kind.patch(target, attempt, buf),
        }
    }

    /// The answer in a packet, if it is one to this run.
    pub(super) fn accept(&self, bytes: &[u8]) -> Option<Reply> {
        match self {
            Kind::Syn(kind) => accept(kind, &kind.run, bytes),
            Kind::Echo(kind) => accept(kind, &kind.run, bytes),
        }
    }
}

fn accept(kind: &impl ProbeKind, run: &Run, bytes: &[u8]) -> Option<Reply> {
    let packet = Packet::parse(bytes)?;
    if !run.is_own(packet.dst()) {
        return None;
    }
    if let Some(reply) = kind.accept_direct(&packet) {
        return Some(reply);
    }
    let Message::Error { icmp_type, icmp_code, quote } = Message::parse(&packet)? else { return None };
    if !is_verdict(packet.src(), icmp_type, icmp_code) || !run.is_own(quote.src()) {
        return None;
    }
    let (target, attempt) = kind.accept_quote(&quote)?;
    let state = match packet.src() {
        from if from == target.addr => State::Filtered { icmp_type, icmp_code },
        from => State::FilteredBy { icmp_type, icmp_code, from },
    };
    Some(Reply { target, attempt, state, ttl: packet.ttl() })
}

/// Whether an ICMP error says that packets do not get through: unreachable for whatever reason, or caught in a routing loop.
fn is_verdict(from: IpAddr, icmp_type: u8, icmp_code: u8) -> bool {
    match (from.is_ipv4(), icmp_type) {
        (true, icmp::V4_UNREACHABLE) => icmp_code != icmp::V4_FRAGMENTATION_NEEDED,
        (true, icmp::V4_TIME_EXCEEDED) | (false, icmp::V6_UNREACHABLE | icmp::V6_TIME_EXCEEDED) => true,
        _ => false,
    }
}

/// What makes the probes of one run its own.
#[derive(Debug, Clone, Copy)]
struct Run {
    source: Source,
    base: u16,
    attempts: u8,
    keyed: SipHasher13,
}

impl Run {
    fn new(identity: RawIdentity, attempts: u8) -> Self {
        Self { source: identity.source, base: identity.base_port, attempts, keyed: SipHasher13::new_with_key(&identity.key) }
    }

    /// The port or identifier of an attempt.
    #[inline]
    fn mark(&self, attempt: u8) -> u16 {
        self.base.wrapping_add(u16::from(attempt))
    }

    /// The attempt that a port or identifier stands for.
    fn attempt(&self, mark: u16) -> Option<u8> {
        u8::try_from(mark.wrapping_sub(self.base)).ok().filter(|attempt| *attempt < self.attempts)
    }

    fn is_own(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => self.source.v4 == Some(addr),
            IpAddr::V6(addr) => self.source.v6 == Some(addr),
        }
    }

    /// SipHash-1-3 over the target and the mark: what an honest answer to this probe carries, and nobody else knows.
    #[inline]
    fn cookie(&self, target: Target, attempt: u8) -> u64 {
        let mut hasher = self.keyed;
        match target.addr {
            IpAddr::V4(addr) => hasher.write(&addr.octets()),
            IpAddr::V6(addr) => hasher.write(&addr.octets()),
        }
        // Lengths differ by family, so that no IPv4 target hashes like an IPv6 one.
        hasher.write_u32(u32::from(target.port.unwrap_or(0)) << 16 | u32::from(self.mark(attempt)));
        hasher.finish()
    }
}
