//! Who talks with whom, and how much: packets of both directions of a five-tuple counted together.
//!
//! It must not know where packets come from, nor who reads the records. Time is the packets' own, and a parameter.
//!
//! **Invariants:**
//! - The table never holds more flows than it was made for. Whoever is put out of it early is told of at once, marked as such.
//! - What the records say adds up to the packets that were shown: nothing is counted twice or forgotten.

use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::collections::HashMap;
use std::net::IpAddr;

use super::UnixNanos;
use super::view::{Transport, View, addresses, view};
use crate::packet::tcp::{Flags, Segment};

/// Share of a full table that is put out at once, so that finding the most idle is paid for by many newcomers.
const PUT_OUT: usize = 8;

/// One end of a flow. Protocols without ports have port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What went in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire, with the link's header.
    pub bytes: u64,
    /// All TCP control bits that were seen.
    pub tcp_flags: u8,
}

/// Why a flow is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The interval is over, and the flow may go on.
    Interval,
    /// Both sides have ended the connection, or one has reset it.
    Closed,
    /// The table was full; if it goes on it is told of as a new one.
    PutOut,
    /// The capture ends.
    End,
}

impl Why {
    /// As records have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interval => "interval",
            Self::Closed => "closed",
            Self::PutOut => "put_out",
            Self::End => "end",
        }
    }
}

/// What one flow did since it was told of last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// IP protocol.
    pub protocol: u8,
    /// Who was seen to send first; of a TCP handshake, who asked.
    pub from: End,
    /// The other one.
    pub to: End,
    /// What `from` sent.
    pub forward: Direction,
    /// What `to` sent.
    pub backward: Direction,
    /// When the flow's first packet was seen, in an earlier interval perhaps.
    pub first: UnixNanos,
    /// When its last packet was seen.
    pub last: UnixNanos,
    /// Round trip from the SYN to the acknowledgement of its answer: the whole way between both ends, wherever this box is. `None`
    /// where the handshake was not seen, or its SYN was sent twice.
    pub rtt: Option<Duration>,
    /// Why it is told of.
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    protocol: u8,
    low: End,
    high: End,
}

impl Key {
    /// Of two ends, and whether the first one is the low one.
    fn new(protocol: u8, src: End, dst: End) -> (Self, bool) {
        if src <= dst { (Self { protocol, low: src, high: dst }, true) } else { (Self { protocol, low: dst, high: src }, false) }
    }
}

impl Hash for Key {
    /// In few and large pieces: this is done for each packet, and a hash that nobody outside can foresee is slow in small ones.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [low, high] = [self.low.port, self.high.port].map(u64::from);
        state.write_u64(u64::from(self.protocol) << 32 | low << 16 | high);
        match (self.low.addr, self.high.addr) {
            (IpAddr::V4(low), IpAddr::V4(high)) => state.write_u64(u64::from(low.to_bits()) << 32 | u64::from(high.to_bits())),
            ends => [ends.0, ends.1].map(six).into_iter().for_each(|bits| state.write_u128(bits)),
        }
    }
}

/// An address as one of IPv6.
fn six(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// How far the handshake was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Unseen,
    Asked {
        at: UnixNanos,
        seq: u32,
    },
    Answered {
        asked: UnixNanos,
        ack: u32,
    },
    Done(Duration),
    /// A SYN that was sent twice: nobody knows which one was answered.
    Ambiguous,
}

#[derive(Debug)]
struct Flow {
    /// Whether the key's low end is who sent first.
    low_first: bool,
    forward: Direction,
    backward: Direction,
    first: UnixNanos,
    last: UnixNanos,
    handshake: Handshake,
}

impl Flow {
    fn record(&self, key: &Key, why: Why) -> Record {
        let (from, to) = if self.low_first { (key.low, key.high) } else { (key.high, key.low) };
        let rtt = if let Handshake::Done(rtt) = self.handshake { Some(rtt) } else { None };
        let (forward, backward) = (self.forward, self.backward);
        Record { protocol: key.protocol, from, to, forward, backward, first: self.first, last: self.last, rtt, why }
    }

    fn is_quiet(&self) -> bool {
        self.forward.packets + self.backward.packets == 0
    }

    fn segment(&mut self, forward: bool, segment: &Segment, time: UnixNanos) {
        let (flags, syn, ack) = (segment.flags(), Flags::SYN, Flags::ACK);
        let side = if forward { &mut self.forward } else { &mut self.backward };
        side.tcp_flags |= flags.0;
        self.handshake = match (self.handshake, flags.has(syn), flags.has(ack)) {
            (Handshake::Unseen, true, false) if forward => Handshake::Asked { at: time, seq: segment.seq() },
            (Handshake::Asked { .. }, true, false) => Handshake::Ambiguous,
            (Handshake::Asked { at, seq }, true, true) if !forward && segment.ack() == seq.wrapping_add(1) => {
                Handshake::Answered { asked: at, ack: segment.seq().wrapping_add(1) }
            }
            (Handshake::Answered { asked, ack }, false, true) if forward && segment.ack() == ack => {
                Handshake::Done(time.saturating_since(asked))
            }
            (unchanged, ..) => unchanged,
        };
    }
}

/// Flows that are being counted.
#[derive(Debug)]
pub struct Flows {
    table: HashMap<Key, Flow>,
    most: usize,
    early: Vec<Record>,
    put_out: u64,
    others: Direction,
}

impl Flows {
    /// A table of at most `most` flows, at least one.
    pub fn new(most: usize) -> Self {
        Self { table: HashMap::new(), most: most.max(1), early: Vec::new(), put_out: 0, others: Direction::default() }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many were put out because the table was full.
    pub fn put_out(&self) -> u64 {
        self.put_out
    }

    /// Packets that belong to no flow, such as ARP.
    pub fn others(&self) -> Direction {
        self.others
    }

    /// Counts a packet of `original_len` bytes on the wire, of which `bytes` were kept.
    pub fn packet(&mut self, link_type: u16, time: UnixNanos, original_len: u32, bytes: &[u8]) {
        let view = view(link_type, bytes);
        let Some((src, dst)) = addresses(&view) else {
            self.others.packets += 1;
            self.others.bytes += u64::from(original_len);
            return;
        };
        let (protocol, transport) = match view {
            View::Ip(ip) => (ip.packet.protocol(), ip.transport),
            View::Part(head) => (head.protocol, Transport::None),
            View::Arp(_) | View::Other(_) | View::Unknown => (0, Transport::None),
        };
        let (src_port, dst_port) = transport.ports().unwrap_or_default();
        let (src, dst) = (End { addr: src, port: src_port }, End { addr: dst, port: dst_port });
        let (key, from_low) = Key::new(protocol, src, dst);
        // Of a connection whose beginning was not seen, an answer to a SYN tells who asked.
        let answers = matches!(transport, Transport::Tcp(segment) if segment.flags().has(Flags::SYN | Flags::ACK));
        if self.table.len() >= self.most && !self.table.contains_key(&key) {
            self.put_out_idle();
        }
        let flow = self.table.entry(key).or_insert_with(|| Flow {
            low_first: from_low != answers,
            forward: Direction::default(),
            backward: Direction::default(),
            first: time,
            last: time,
            handshake: Handshake::Unseen,
        });
        let forward = from_low == flow.low_first;
        let side = if forward { &mut flow.forward } else { &mut flow.backward };
        side.packets += 1;
        side.bytes += u64::from(original_len);
        flow.last = flow.last.max(time);
        if let Transport::Tcp(segment) = &transport {
            flow.segment(forward, segment, time);
        }
    }

    /// Tells of those that had to leave early.
    fn put_out_idle(&mut self) {
        let mut idle: Vec<(UnixNanos, Key)> = self.table.iter().map(|(key, flow)| (flow.last, *key)).collect();
        let leave = (idle.len() / PUT_OUT).max(1);
        idle.select_nth_unstable(leave - 1);
        for (_, key) in idle.into_iter().take(leave) {
            let Some(flow) = self.table.remove(&key) else { continue };
            self.put_out += 1;
            if !flow.is_quiet() {
                self.early.push(flow.record(&key, Why::PutOut));
            }
        }
    }

    /// Records of flows that were put out since this was asked last.
    pub fn early(&mut self) -> Vec<Record> {
        core::mem::take(&mut self.early)
    }

    /// Records of all flows that did something since the last interval, the busiest first; `end` where the capture ends. Flows that
    /// are closed, and those that did nothing, are forgotten.
    pub fn interval(&mut self, end: bool) -> Vec<Record> {
        let mut records = self.early();
        self.table.retain(|key, flow| {
            if flow.is_quiet() {
                return false;
            }
            let both = flow.forward.tcp_flags & flow.backward.tcp_flags & Flags::FIN != 0;
            let reset = (flow.forward.tcp_flags | flow.backward.tcp_flags) & Flags::RST != 0;
            let why = match (both || reset, end) {
                (true, _) => Why::Closed,
                (false, true) => Why::End,
                (false, false) => Why::Interval,
            };
            records.push(flow.record(key, why));
            (flow.forward, flow.backward) = (Direction::default(), Direction::default());
            why == Why::Interval
        });
        records.sort_by_key(|record| {
            let bytes = record.forward.bytes + record.backward.bytes;
            (core::cmp::Reverse(bytes), record.protocol, record.from, record.to)
        });
        records
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::ip::{PROTOCOL_TCP, PROTOCOL_UDP, v4_header};
    use crate::packet::link::{ETHERNET, RAW_IP};

    fn end(n: u8, port: u16) -> End {
        End { addr: Ipv4Addr::new(198, 18, 0, n).into(), port }
    }

    fn v4(from: End, to: End, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.addr, to.addr) else { panic!("IPv4 is wanted") };
        [&v4_header(src, dst, protocol, 64, payload.len() as u16)[..], payload].concat()
    }

    fn segment(from: End, to: End, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
        let ports = [from.port.to_be_bytes(), to.port.to_be_bytes()].concat();
        let numbers = [seq.to_be_bytes(), ack.to_be_bytes()].concat();
        v4(from, to, PROTOCOL_TCP, &[&ports[..], &numbers, &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat())
    }

    fn datagram(from: End, to: End) -> Vec<u8> {
        let ports = [from.port.to_be_bytes(), to.port.to_be_bytes()].concat();
        v4(from, to, PROTOCOL_UDP, &[&ports[..], &[0, 8, 0, 0]].concat())
    }

    fn see(flows: &mut Flows, at: u64, bytes: &[u8]) {
        flows.packet(RAW_IP, UnixNanos(at), bytes.len() as u32, bytes);
    }

    const SYN: u8 = Flags::SYN;
    const ACK: u8 = Flags::ACK;
    const FIN: u8 = Flags::FIN;

    #[test]
    fn a_connection_is_one_flow_with_its_round_trip() {
        let (client, server) = (end(9, 50_000), end(1, 80));
        let mut flows = Flows::new(10);
        see(&mut flows, 1_000, &segment(client, server, SYN, 7, 0));
        see(&mut flows, 3_000, &segment(server, client, SYN | ACK, 70, 8));
        see(&mut flows, 3_500, &segment(client, server, ACK, 8, 71));
        let [record] = flows.interval(false)[..] else { panic!("one flow is expected") };
        assert_eq!((record.from, record.to, record.protocol, record.why), (client, server, PROTOCOL_TCP, Why::Interval));
        assert_eq!(record.forward, Direction { packets: 2, bytes: 80, tcp_flags: SYN | ACK });
        assert_eq!(record.backward, Direction { packets: 1, bytes: 40, tcp_flags: SYN | ACK });
        assert_eq!((record.first, record.last, record.rtt), (UnixNanos(1_000), UnixNanos(3_500), Some(Duration::from_nanos(2_500))));
        // The next interval counts anew; the connection ends in it, and is forgotten.
        see(&mut flows, 9_000, &segment(client, server, FIN | ACK, 8, 71));
        see(&mut flows, 9_001, &segment(server, client, FIN | ACK, 71, 9));
        let [record] = flows.interval(false)[..] else { panic!("one flow is expected") };
        assert_eq!((record.forward.packets, record.backward.packets, record.why), (1, 1, Why::Closed));
        assert_eq!((record.first, record.rtt), (UnixNanos(1_000), Some(Duration::from_nanos(2_500))));
        assert!(flows.is_empty());
    }

    #[test]
    fn a_syn_sent_twice_tells_no_round_trip() {
        let (client, server) = (end(9, 50_000), end(1, 80));
        let mut flows = Flows::new(10);
        for at in [1, 2] {
            see(&mut flows, at, &segment(client, server, SYN, 7, 0));
        }
        see(&mut flows, 3, &segment(server, client, SYN | ACK, 70, 8));
        see(&mut flows, 4, &segment(client, server, ACK, 8, 71));
        assert_eq!(flows.interval(true)[0].rtt, None);
    }

    #[test]
    fn who_answers_a_syn_that_was_not_seen_did_not_ask() {
        let (client, server) = (end(9, 50_000), end(1, 80));
        let mut flows = Flows::new(10);
        see(&mut flows, 3, &segment(server, client, SYN | ACK, 70, 8));
        let [record] = flows.interval(true)[..] else { panic!("one flow is expected") };
        assert_eq!((record.from, record.backward.packets, record.why), (client, 1, Why::End));
    }

    #[test]
    fn the_most_idle_leave_a_full_table() {
        let mut flows = Flows::new(16);
        for n in 0..16u8 {
            see(&mut flows, n.into(), &datagram(end(n, 1000), end(200, 53)));
        }
        // The first one speaks again; the next two are the most idle now.
        see(&mut flows, 50, &datagram(end(200, 53), end(0, 1000)));
        see(&mut flows, 60, &datagram(end(100, 1000), end(200, 53)));
        assert_eq!((flows.len(), flows.put_out()), (15, 2));
        let mut early: Vec<_> = flows.early().into_iter().map(|record| (record.from, record.why)).collect();
        early.sort_by_key(|(from, _)| *from);
        assert_eq!(early, [(end(1, 1000), Why::PutOut), (end(2, 1000), Why::PutOut)]);
    }

    proptest! {
        #[test]
        fn records_add_up(
            most in 1usize..12,
            packets in proptest::collection::vec((0u8..6, 0u8..6, 0u16..3, any::<u8>(), any::<bool>(), any::<bool>()), 0..200),
        ) {
            let (mut flows, mut records) = (Flows::new(most), Vec::new());
            let (mut seen, mut bytes) = (0, 0);
            for (at, (from, to, port, flags, tcp, interval)) in packets.into_iter().enumerate() {
                let (from, to) = (end(from, port), end(to, 7));
                let packet = if tcp { segment(from, to, flags, 1, 2) } else { datagram(from, to) };
                see(&mut flows, at as u64, &packet);
                (seen, bytes) = (seen + 1, bytes + packet.len() as u64);
                prop_assert!(flows.len() <= most);
                if interval {
                    records.extend(flows.interval(false));
                }
            }
            records.extend(flows.interval(true));
            let sides = || records.iter().flat_map(|record| [record.forward, record.backward]);
            prop_assert_eq!(sides().map(|side| side.packets).sum::<u64>(), seen);
            prop_assert_eq!(sides().map(|side| side.bytes).sum::<u64>(), bytes);
            prop_assert!(flows.is_empty() && records.iter().all(|record| record.first <= record.last));
        }

        #[test]
        fn any_bytes_are_counted(link in prop::sample::select(vec![ETHERNET, RAW_IP]), bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut flows = Flows::new(4);
            flows.packet(link, UnixNanos(1), 1500, &bytes);
            let told: u64 = flows.interval(true).iter().map(|record| record.forward.packets + record.backward.packets).sum();
            prop_assert_eq!(told + flows.others().packets, 1);
        }
    }
}
