//! The seam between measurements and the packet loop.
//!
//! An engine is a pure state machine: it owns no socket, thread or clock. The one loop (`net::drive`) asks it for the next
//! packet, tells it what arrived and that time passed, and takes its events. Engines speak IP packets (layer 3); frames,
//! routes, neighbours, pacing and policy belong to the loop, which is also the last one to check every address.
//!
//! On links with hardware addresses an engine may also ask who has an address: it writes an ARP request (told from IP by its first two
//! bytes, hardware type 1, where IP has its version) or a neighbour solicitation, and names the address asked for as the
//! destination. The loop frames it, judges that address, and keeps what is answered in its own cache of neighbours too.
//!
//! **Invariant:** for each packet an engine hands out it may be told [`Engine::on_not_sent`] at most once, before any
//! answer to that packet can arrive; a packet that is not reported so has left on the wire.

use core::time::Duration;
use std::net::IpAddr;

use super::time::Instant;
use crate::packet::eth::Mac;

/// What `poll_transmit` put into the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where the packet goes: the destination address in its IP header; the address asked for, of an ARP request or of a neighbour
    /// solicitation to a group. The loop checks policy and finds the next hop by it.
    pub dst: IpAddr,
    /// The engine's own name for this packet, returned by [`Engine::on_not_sent`].
    pub token: u64,
    /// Length of the IP packet in the buffer, in bytes.
    pub len: usize,
}

/// Why a packet that an engine handed out did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotSent {
    /// The next hop's hardware address is being asked for, or the interface has just gone down: offer the packet again later,
    /// others may go meanwhile.
    NeighbourPending,
    /// A limit towards the packet's address or network is used up. Others may go meanwhile; this one is to be offered again at
    /// the time given, on the engine's clock. Packets of one lane wait for the same limit: it is enough to offer one of them.
    TooSoon {
        /// When the next packet of the lane may go.
        until: Instant,
        /// Which limit it is.
        lane: u32,
    },
    /// The next hop did not answer ARP or neighbour solicitation: final.
    NoNeighbour,
    /// The kernel has no route to the address: final.
    NoRoute,
    /// The site's or the fleet's policy forbids the address: final.
    Refused,
    /// The kernel refused the frame for good: final for this attempt.
    LinkError,
}

/// Addresses that the loop resolves for an engine before its packets are built: checksums need the source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Source address for IPv4 packets, where the interface has one.
    pub v4: Option<std::net::Ipv4Addr>,
    /// Source address for IPv6 packets to global and unique-local destinations, where the interface has one.
    pub v6: Option<std::net::Ipv6Addr>,
}

/// What an engine noticed of the network's state since it was asked last. Only positions that have answered count: they are
/// known to be alive, so a first packet without an answer was lost, or its answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signs {
    /// Answers of the targets themselves to a position's first packet.
    pub first: u64,
    /// Answers of the targets themselves to a position's second packet, where the first had left and no answer to it came.
    pub repeated: u64,
    /// ICMP errors about a position's first packet.
    pub errors_first: u64,
    /// ICMP errors about a position's second packet, where the first had left and no answer to it came.
    pub errors_repeated: u64,
    /// How long it takes until the answer to a second packet is there: what a change of the rate does is not seen sooner.
    pub wait: Duration,
}

/// A measurement as a state machine.
pub trait Engine {
    /// What the engine reports.
    type Event;

    /// Writes the next IP packet into `buf` and says where it goes; `None` when there is nothing to send now.
    /// `buf` holds at least 1500 bytes. After `None` the engine is asked again only when something has happened to it: a packet,
    /// a timeout, a refusal. While the interface is down `now` stands still.
    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit>;

    /// The packet named `token` did not leave, and why.
    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent);

    /// An IP packet (without link-layer header) arrived. It may be anything: foreign, truncated, hostile.
    fn on_packet(&mut self, now: Instant, packet: &[u8]);

    /// An IP or ARP packet arrived from the hardware address `from`, where the link has such. The loop calls this; an engine that has
    /// no use for hardware addresses leaves it as it is.
    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        let _ = from;
        self.on_packet(now, packet);
    }

    /// The interface was down and has just come up: what was on its way is lost, and others may not find back to it at once.
    fn on_link_up(&mut self, now: Instant) {
        let _ = now;
    }

    /// Whether packets to multicast groups that this machine has not joined are wanted, for as long as the engine runs.
    fn wants_all_multicast(&self) -> bool {
        false
    }

    /// The next moment at which [`Engine::on_timeout`] must be called, and what for.
    fn poll_timeout(&self) -> Option<(Instant, &'static str)>;

    /// Time has passed.
    fn on_timeout(&mut self, now: Instant);

    /// The next event, in order.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// What was noticed of the network since the last call; the loop slows down by it.
    fn signs(&mut self) -> Signs {
        Signs::default()
    }

    /// The measurement is ended from outside, now: nothing more is sent, and what can still be told follows at once from
    /// [`Engine::poll_event`].
    fn stop(&mut self) {}
}

/// An engine whose events are told in other words, or not at all.
#[derive(Debug)]
pub struct Mapped<N, F> {
    engine: N,
    map: F,
}

impl<N, F> Mapped<N, F> {
    /// `engine` with `map` between its events and whoever takes them; an event that becomes `None` is not told.
    pub const fn new(engine: N, map: F) -> Self {
        Self { engine, map }
    }
}

impl<N: Engine, E, F: FnMut(N::Event) -> Option<E>> Engine for Mapped<N, F> {
    type Event = E;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        self.engine.poll_transmit(now, buf)
    }

    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent) {
        self.engine.on_not_sent(now, token, why);
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        self.engine.on_packet(now, packet);
    }

    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        self.engine.on_frame(now, from, packet);
    }

    fn on_link_up(&mut self, now: Instant) {
        self.engine.on_link_up(now);
    }

    fn wants_all_multicast(&self) -> bool {
        self.engine.wants_all_multicast()
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.engine.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.engine.on_timeout(now);
    }

    fn poll_event(&mut self) -> Option<E> {
        loop {
            if let Some(event) = (self.map)(self.engine.poll_event()?) {
                return Some(event);
            }
        }
    }

    fn signs(&mut self) -> Signs {
        self.engine.signs()
    }

    fn stop(&mut self) {
        self.engine.stop();
    }
}
