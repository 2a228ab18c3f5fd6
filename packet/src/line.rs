//! Packets of a capture in lines, for people and for programs, and how many of them a second.
//!
//! It must not know where lines go, nor read a clock: time is a parameter.
//!
//! **Invariants:**
//! - A line has no control characters but its end, whatever the packet holds.
//! - Numbers in lines only grow; what is between two of them is said not to be shown.

use core::fmt::Write;
use core::time::Duration;

use serde::Serialize;

use crate::UnixNanos;
use crate::pcapng::Packet;
use crate::summary::{Summary, summary};

/// Lines of a second, unless something else is asked for: what a terminal scrolls and a slow link carries.
pub const LINES_DEFAULT: u32 = 100;

/// What is kept of a packet for its line, in bytes: more than the headers that a line tells of.
pub const SHOWN_BYTES: usize = 256;

/// A packet that is to have a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number in the capture, from 1.
    pub number: u64,
    /// When it was seen.
    pub time: UnixNanos,
    /// Its length on the wire, in bytes.
    pub original_len: u32,
    /// What was kept of it, [`SHOWN_BYTES`] at most.
    pub data: Vec<u8>,
}

impl Shown {
    /// The packet of this number.
    pub fn new(number: u64, packet: &Packet<'_>) -> Self {
        let data = packet.data.get(..SHOWN_BYTES.min(packet.data.len())).unwrap_or_default().to_vec();
        Self { number, time: packet.time, original_len: packet.original_len, data }
    }
}

/// A packet as a program reads it: one object of NDJSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "packet")]
pub struct Object {
    /// Its number in the capture, from 1.
    pub number: u64,
    /// Seconds since 1970 with nine decimals, as text: more digits than a number of JSON holds.
    pub time: String,
    /// Who sent it.
    pub source: String,
    /// To whom.
    pub destination: String,
    /// The innermost protocol that was recognised.
    pub protocol: String,
    /// Bytes on the wire.
    pub length: u32,
    /// What it says.
    pub info: String,
}

impl Object {
    /// Of a packet on a link of this type (LINKTYPE_).
    pub fn new(link_type: u16, shown: &Shown) -> Self {
        let Summary { source, destination, protocol, info } = summary(link_type, &shown.data);
        Self { number: shown.number, time: shown.time.to_string(), source, destination, protocol, length: shown.original_len, info }
    }
}

/// The lines of a capture for people, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The number that the next line should have.
    next: u64,
    /// When the first packet was seen that has a line.
    first: Option<UnixNanos>,
}

impl Default for Table {
    fn default() -> Self {
        Self { next: 1, first: None }
    }
}

impl Table {
    /// Number, seconds since the first packet, and the summary; before it, how many packets in between have no line. Ends its lines.
    pub fn line(&mut self, link_type: u16, shown: &Shown) -> String {
        let Shown { number, time, original_len, ref data } = *shown;
        let mut out = String::new();
        if number > self.next {
            let _ = writeln!(out, "      ... {} packets are not shown", number - self.next);
        }
        self.next = number.saturating_add(1);
        let first = *self.first.get_or_insert(time);
        let Summary { source, destination, protocol, info } = summary(link_type, data);
        let seconds = time.saturating_since(first).as_secs_f64();
        let _ = writeln!(out, "{number:>5} {seconds:>11.6} {source} → {destination} {protocol} {original_len} {info}");
        out
    }

    /// What is said behind the last line of a capture of `packets`: how many have none. Empty where all have one, or none has.
    pub fn end(&self, packets: u64) -> String {
        match packets.saturating_sub(self.next - 1) {
            skipped if self.next > 1 && skipped > 0 => format!("      ... {skipped} packets are not shown\n"),
            _ => String::new(),
        }
    }
}

/// How many lines may still be shown in this second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    per_second: u32,
    left: u32,
    since: Duration,
}

impl Allowance {
    /// So many lines a second, from time zero on.
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, left: per_second, since: Duration::ZERO }
    }

    /// It is so late now: a second behind the last one, all lines are there again.
    pub fn tick(&mut self, elapsed: Duration) {
        if elapsed.saturating_sub(self.since) >= Duration::from_secs(1) {
            (self.left, self.since) = (self.per_second, elapsed);
        }
    }

    /// Whether there is a line left.
    pub const fn is_left(&self) -> bool {
        self.left > 0
    }

    /// A line was shown.
    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::{ETHERNET, RAW_IP};

    fn packet(number: u64, nanos: u64, data: &[u8]) -> Shown {
        let time = UnixNanos(1_700_000_000_000_000_000 + nanos);
        Shown::new(number, &Packet { interface: 0, time, original_len: 60, data })
    }

    const ECHO: [u8; 28] = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2, 8, 0, 0, 0, 0x12, 0x34, 0, 5];

    #[test]
    fn lines_say_what_lies_between_them() {
        let mut table = Table::default();
        assert_eq!(table.end(9), "");
        let line = table.line(RAW_IP, &packet(1, 0, &ECHO));
        assert_eq!(line, "    1    0.000000 198.18.0.1 → 198.18.0.2 ICMP 60 Echo (ping) request id=0x1234, seq=5, ttl=64\n");
        let line = table.line(RAW_IP, &packet(4, 1_500_000, &ECHO));
        assert!(line.starts_with("      ... 2 packets are not shown\n    4    0.001500 198.18.0.1 "), "{line}");
        assert_eq!((table.end(4), table.end(6)), (String::new(), "      ... 2 packets are not shown\n".into()));
    }

    #[test]
    fn an_object_is_the_line_for_programs() {
        let object = serde_json::to_value(Object::new(RAW_IP, &packet(7, 5, &ECHO))).unwrap();
        let expected = serde_json::json!({
            "type": "packet", "number": 7, "time": "1700000000.000000005", "source": "198.18.0.1", "destination": "198.18.0.2",
            "protocol": "ICMP", "length": 60, "info": "Echo (ping) request id=0x1234, seq=5, ttl=64",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn a_second_has_its_lines_and_no_more() {
        let mut allowance = Allowance::new(2);
        let mut shown = 0;
        for tenth in 0..30u64 {
            allowance.tick(Duration::from_millis(tenth * 100));
            if allowance.is_left() {
                allowance.spend();
                shown += 1;
            }
        }
        assert_eq!(shown, 6);
        assert!(!Allowance::new(0).is_left());
    }

    proptest! {
        #[test]
        fn no_packet_breaks_a_line(number: u64, ethernet: bool, original_len: u32, data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let link_type = if ethernet { ETHERNET } else { RAW_IP };
            let mut table = Table { next: number, first: None };
            let line = table.line(link_type, &Shown { number, time: UnixNanos(0), original_len, data });
            prop_assert!(line.ends_with('\n') && !line.trim_end_matches('\n').chars().any(char::is_control));
        }
    }
}
