//! Kinds of probes, one file each: the constant bytes, what is patched per target, whose answer a packet is, what it says.
//!
//! To add one: a file with a [`ProbeKind`], its lines in [`Kind`], a scenario file in `probe/tests/scenarios`.
//!
//! How hard an answer is to forge for somebody who sees none of our packets, in bits besides addresses and ports:
//!
//! | kind | the target's own answer | ICMP error |
//! |---|---|---|
//! | echo | 64 (payload) | 16, or 64 where it quotes all |
//! | timestamp | 47 (originate timestamp, sequence number) | 16, or 47 |
//! | syn, ack | 32 (acknowledgement or sequence number) | 32 (sequence number) |
//! | sctp | 32 (verification tag) + 8.7 (source port) | 8.7, or 40.7 where it quotes the initiate tag |
//! | udp | 8.7 (source port), and up to 64 where the protocol repeats something | 8.7, and the payload as far as it is quoted |

mod ack;
mod discover;
mod echo;
pub(super) mod neighbour;
mod sctp;
mod syn;
mod timestamp;
mod udp;

#[cfg(test)]
mod tests;

use core::hash::Hasher;
use core::net::IpAddr;

use picket_wire::job::{MAX_ATTEMPTS, Technique};
use picket_wire::result::State;
use picket_wire::space::Target;
use siphasher::sip::SipHasher13;

use super::spec::ScanPlan;
use crate::net::engine::Source;
use crate::net::ports::{RawIdentity, SourcePorts};
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

    /// What makes its probes ours.
    fn run(&self) -> &Run;

    /// What an ICMP error about a probe of ours says.
    fn verdict(&self, error: &IcmpError) -> State {
        error.state()
    }
}

/// An ICMP error about a probe of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct IcmpError {
    from: IpAddr,
    target: Target,
    icmp_type: u8,
    icmp_code: u8,
}

impl IcmpError {
    /// Whether the target itself says so.
    fn is_own(&self) -> bool {
        self.from == self.target.addr
    }

    /// Filtered, by whom it says.
    fn state(&self) -> State {
        let Self { from, icmp_type, icmp_code, .. } = *self;
        match self.is_own() {
            true => State::Filtered { icmp_type, icmp_code },
            false => State::FilteredBy { icmp_type, icmp_code, from },
        }
    }
}

/// All kinds.
pub(super) enum Kind {
    Syn(syn::Syn),
    Echo(echo::Echo),
    Timestamp(timestamp::Timestamp),
    Ack(ack::Ack),
    Udp(udp::Udp),
    Sctp(sctp::Sctp),
    Discover(discover::Discover),
}

/// Does the same for each kind.
macro_rules! of_kind {
    ($self:expr, $kind:ident => $do:expr) => {
        match $self {
            Kind::Syn($kind) => $do,
            Kind::Echo($kind) => $do,
            Kind::Timestamp($kind) => $do,
            Kind::Ack($kind) => $do,
            Kind::Udp($kind) => $do,
            Kind::Sctp($kind) => $do,
            Kind::Discover($kind) => $do,
        }
    };
}

impl Kind {
    /// The kind for a plan; `None` for a technique that needs no raw packets, and for one that is
    /// not about single targets.
    pub(super) fn new(plan: &ScanPlan, identity: RawIdentity) -> Option<Self> {
        let run = Run::new(identity, plan.attempts);
        Some(match plan.technique {
            Technique::Syn => Kind::Syn(syn::Syn::new(run)),
            // Behind a proxy there is no asking but by IP.
            Technique::Echo | Technique::Neighbour => Kind::Echo(echo::Echo::new(run)),
            Technique::Timestamp => Kind::Timestamp(timestamp::Timestamp::new(run)),
            Technique::Ack => Kind::Ack(ack::Ack::new(run)),
            Technique::Udp => Kind::Udp(udp::Udp::new(run, plan.ask_fragile)),
            Technique::Sctp => Kind::Sctp(sctp::Sctp::new(run)),
            Technique::Discover => Kind::Discover(discover::Discover::new(run, &plan.host_probes, plan.ask_fragile)),
            Technique::Connect | Technique::Link | Technique::Trace | Technique::Capture => return None,
        })
    }

    #[inline]
    pub(super) fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        of_kind!(self, kind => kind.patch(target, attempt, buf))
    }

    /// The answer in a packet, if it is one to this run.
    pub(super) fn accept(&self, bytes: &[u8]) -> Option<Reply> {
        of_kind!(self, kind => accept(kind, bytes))
    }
}

fn accept(kind: &impl ProbeKind, bytes: &[u8]) -> Option<Reply> {
    let run = kind.run();
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
    let state = kind.verdict(&IcmpError { from: packet.src(), target, icmp_type, icmp_code });
    Some(Reply { target, attempt, state, ttl: packet.ttl() })
}

/// Whether an ICMP error says that packets do not get through: unreachable for whatever reason, caught in a routing loop, or of a
/// protocol that nobody speaks there (which is a code of "unreachable" in ICMP and a parameter problem in ICMPv6).
fn is_verdict(from: IpAddr, icmp_type: u8, icmp_code: u8) -> bool {
    match (from.is_ipv4(), icmp_type) {
        (true, icmp::V4_UNREACHABLE) => icmp_code != icmp::V4_FRAGMENTATION_NEEDED,
        (true, icmp::V4_TIME_EXCEEDED) | (false, icmp::V6_UNREACHABLE | icmp::V6_TIME_EXCEEDED) => true,
        (false, icmp::V6_PARAMETER_PROBLEM) => icmp_code == icmp::V6_UNKNOWN_NEXT_HEADER,
        _ => false,
    }
}

/// What makes the probes of one run its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    source: Source,
    base: u16,
    ports: SourcePorts,
    attempts: u8,
    keyed: SipHasher13,
}

impl Run {
    fn new(identity: RawIdentity, attempts: u8) -> Self {
        Self {
            source: identity.source,
            base: identity.base_port,
            ports: identity.ports,
            attempts,
            keyed: SipHasher13::new_with_key(&identity.key),
        }
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

    /// The source port of a probe whose answers are sure to repeat nothing else: an attempt's share of all ports, chosen by the
    /// cookie's upper half.
    fn spread_port(&self, cookie: u64, attempt: u8) -> u16 {
        let attempts = u64::from(MAX_ATTEMPTS);
        let groups = u64::from(self.ports.count()) / attempts;
        let group = ((cookie >> 32) * groups) >> 32;
        self.ports.first() + (group * attempts) as u16 + u16::from(attempt)
    }

    /// The attempt that such a port stands for.
    fn spread_attempt(&self, port: u16) -> Option<u8> {
        let offset = port.checked_sub(self.ports.first()).filter(|offset| *offset < self.ports.count())?;
        let attempt = (offset % u16::from(MAX_ATTEMPTS)) as u8;
        (attempt < self.attempts).then_some(attempt)
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
