//! Engines under hostile answers: packets made up from nothing, and honest answers bent by the input.
//!
//! The input is a list of instructions, so that the fuzzer can reach behind the cookie: it may turn a packet that the engine
//! sent into its echo, or into the quote of an ICMP error, with bytes of its own choice written over it.

use core::net::Ipv6Addr;
use core::time::Duration;

use picket_packet::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, v4_header, v6_header};
use picket_probe::net::engine::{Engine, NotSent, Transmit};
use picket_probe::net::time::Instant;

/// Longest packet that an instruction makes up.
const MADE_UP_MAX: usize = 255;
/// Instructions without errors of others.
pub(crate) const DIRECT: u8 = 6;
/// All instructions.
pub(crate) const QUOTED: u8 = 7;

/// Reads instructions off the input; nothing is left at its end.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Swaps source and destination, so that a packet sent looks like one that came back.
fn reflect(packet: &mut [u8]) {
    let (from, len) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12, 4),
        Some(6) => (8, 16),
        _ => return,
    };
    if let Some(both) = packet.get_mut(from..from + 2 * len) {
        let (source, destination) = both.split_at_mut(len);
        source.swap_with_slice(destination);
    }
}

/// An ICMP error about a packet, by a router: IP header, type and code, the quote, and what is appended to it.
fn error(packet: &[u8], kind: u8, code: u8, stated: u8, appended: &[u8]) -> Vec<u8> {
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message[if v4 { 5 } else { 4 }] = stated;
    message.extend(packet);
    let unit = if v4 { 4 } else { 8 };
    let quote = (usize::from(stated) * unit).max(packet.len());
    message.resize(8 + quote, 0);
    message.extend(appended);
    let len = message.len() as u16;
    match v4 {
        true => [&v4_header([192, 0, 2, 99].into(), [192, 0, 2, 1].into(), PROTOCOL_ICMP, 250, len)[..], &message].concat(),
        false => {
            let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
            let to = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
            [&v6_header(from, to, PROTOCOL_ICMPV6, 250, len)[..], &message].concat()
        }
    }
}

/// Drives an engine through the instructions, of which there are `kinds`; `events` is called after each.
pub(crate) fn instruct<N: Engine + ?Sized>(engine: &mut N, mut input: Reader<'_>, kinds: u8, mut events: impl FnMut(&mut N)) {
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut sent: Vec<(Transmit, Vec<u8>)> = Vec::new();
    let mut buf = [0; 1500];
    while let Some(instruction) = input.byte() {
        match instruction % kinds {
            0 | 1 => {
                if let Some(transmit) = engine.poll_transmit(now, &mut buf) {
                    let packet = buf.get(..transmit.len).expect("no longer than the buffer").to_vec();
                    sent.push((transmit, packet));
                }
            }
            2 => {
                let wait = Duration::from_millis(u64::from(input.byte().unwrap_or(0)) * 10);
                now += wait;
                if engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
                    engine.on_timeout(now);
                }
            }
            3 => {
                let len = usize::from(input.byte().unwrap_or(0)).min(MADE_UP_MAX);
                engine.on_packet(now, input.take(len));
            }
            4 => {
                let which = usize::from(input.byte().unwrap_or(0));
                let at = usize::from(input.byte().unwrap_or(0));
                let over = usize::from(input.byte().unwrap_or(0) % 24);
                if let Some((_, packet)) = sent.get(which % sent.len().max(1)) {
                    let mut packet = packet.clone();
                    reflect(&mut packet);
                    for (byte, new) in packet.iter_mut().skip(at).zip(input.take(over)) {
                        *byte = *new;
                    }
                    engine.on_packet(now, &packet);
                }
            }
            6 => {
                let [which, kind, code, stated, appended] = [(); 5].map(|()| input.byte().unwrap_or(0));
                if let Some((_, packet)) = sent.get(usize::from(which) % sent.len().max(1)) {
                    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
                    let kinds: &[u8] = if v4 { &[11, 3, 12] } else { &[3, 1, 2, 4] };
                    let kind = kinds[usize::from(kind) % kinds.len()];
                    engine.on_packet(now, &error(packet, kind, code % 16, stated % 64, input.take(usize::from(appended % 64))));
                }
            }
            _ => {
                let which = input.byte().unwrap_or(0);
                let until = now + Duration::from_millis(u64::from(which));
                let why = [
                    NotSent::NeighbourPending,
                    NotSent::NoNeighbour,
                    NotSent::Refused,
                    NotSent::LinkError,
                    NotSent::TooSoon { until, lane: 0 },
                ];
                let why = why[usize::from(which) % why.len()];
                // Only the packet just handed out may be told, and before any answer.
                if let Some(transmit) = engine.poll_transmit(now, &mut buf) {
                    engine.on_not_sent(now, transmit.token, why);
                }
            }
        }
        events(engine);
    }
}
