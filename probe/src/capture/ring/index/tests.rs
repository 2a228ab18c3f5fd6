use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::capture::pcapng::{Packet, write};
use crate::capture::ring::Question;
use crate::packet::ip::{PROTOCOL_UDP, v4_header};
use crate::packet::link::RAW_IP;

const HEAD: &[u8] = b"a head of a segment";
const KEY: Key = Key([7; 16]);

fn header() -> Header {
    Header::new(KEY, 3, HEAD)
}

fn addr(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + n)
}

fn packet(from: u32, to: u32, payload: usize) -> Vec<u8> {
    [&v4_header(addr(from), addr(to), PROTOCOL_UDP, 64, payload as u16)[..], &vec![0; payload]].concat()
}

/// Packets as (time, from, to, bytes of payload), with the index of them.
fn index(packets: &[(u64, u32, u32, usize)]) -> (Vec<u8>, u64) {
    let (mut builder, mut len) = (Builder::new(&header()), HEAD.len() as u64);
    for (time, from, to, payload) in packets {
        let data = packet(*from, *to, *payload);
        let packet = Packet { interface: 0, time: UnixNanos(*time), original_len: data.len() as u32, data: &data };
        let block = write::packet_len(data.len());
        builder.block(RAW_IP, &Block::Packet(packet), block);
        len += block as u64;
    }
    builder.finish(len, Some(5));
    (std::mem::take(builder.out()), len)
}

fn extents(index: &[u8]) -> Vec<Extent<'_>> {
    let only = |record| match record {
        Record::Extent(extent) => Some(extent),
        Record::End(_) => None,
    };
    Records::new(&header(), index).filter_map(only).collect()
}

fn different(count: u32, payload: usize) -> Vec<(u64, u32, u32, usize)> {
    (0..count).map(|n| (n.into(), 2 * n, 2 * n + 1, payload)).collect()
}

#[test]
fn a_header_is_bound_to_its_segment() {
    let bytes = header().bytes();
    assert_eq!(Header::parse(&bytes), Some(header()));
    for at in 0..HEADER {
        let mut damaged = bytes;
        damaged[at] ^= 4;
        assert_eq!(Header::parse(&damaged), None, "byte {at}");
        assert_eq!(Header::parse(&bytes[..at]), None);
    }
}

#[test]
fn extents_follow_each_other_and_tell_times() {
    let mut packets = different(3_000, 72);
    packets[2_000].0 = 1_000_000;
    let (bytes, len) = index(&packets);
    let found = extents(&bytes);
    // 124 bytes each.
    assert_eq!((found.len(), found[0].packets, found[0].offset), (6, 528, HEAD.len() as u64));
    for pair in found.windows(2) {
        assert_eq!(pair[0].offset + u64::from(pair[0].len), pair[1].offset);
        assert!(u64::from(pair[0].len) <= EXTENT && u64::from(pair[0].len) > EXTENT - 124);
    }
    assert_eq!((found[0].first, found[0].last, found[3].last), (UnixNanos(0), UnixNanos(527), UnixNanos(1_000_000)));
    let end = End::parse(&bytes).unwrap();
    let Some(Record::End(last)) = Records::new(&header(), &bytes).last() else { panic!("the end is missing") };
    assert_eq!(end, last);
    assert_eq!((end.packets, end.first, end.last, end.len, end.dropped), (3_000, UnixNanos(0), UnixNanos(1_000_000), len, Some(5)));
    assert_eq!(Records::new(&header(), &bytes[..bytes.len() - 1]).count(), 6);
    assert_eq!(End::parse(&bytes[..bytes.len() - 1]), None);
}

/// How many of 20,000 who are not within seem to be.
fn wrongly(index: &[u8]) -> usize {
    let first = extents(index)[0];
    (1_000_000..1_020_000).filter(|n| first.who.may_have(KEY.hash(addr(*n).into()))).count()
}

#[test]
fn who_is_not_within_seldom_seems_to_be() {
    // A hundred hosts, and the worst case: packets of 60 bytes, and no two of the same host.
    let few: Vec<_> = (0..600u32).map(|n| (n.into(), n % 50, 50 + n % 50, 72)).collect();
    assert!(wrongly(&index(&few).0) <= 30);
    assert!(wrongly(&index(&different(712, 40)).0) <= 900);
}

#[test]
fn an_index_has_two_percent_of_its_segment() {
    for payload in [8, 26, 40, 100, 1_400] {
        for kilobytes in [128, 1_024] {
            let block = write::packet_len(20 + payload);
            let (bytes, len) = index(&different((kilobytes * 1_024 / block) as u32 + 1, payload));
            assert!(bytes.len() as f64 <= 0.02 * len as f64, "{payload} bytes: {} of {len}", bytes.len());
        }
    }
}

proptest! {
    #[test]
    fn what_is_within_is_wanted(
        packets in proptest::collection::vec((0u64..1_000, 0u32..40, 0u32..40, 0usize..9_000), 1..80),
        host in 0u32..45, from in 0u64..1_000, length in 0u64..400,
    ) {
        let (bytes, len) = index(&packets);
        let question = Question { from: UnixNanos(from), to: UnixNanos(from + length), hosts: vec![addr(host).into()], ..Question::default() };
        let hashes = question.hashes(&KEY);
        let found = extents(&bytes);
        let (mut at, mut extents) = (HEAD.len() as u64, found.iter());
        let mut extent = extents.next().unwrap();
        for (time, from, to, payload) in &packets {
            let data = packet(*from, *to, *payload);
            if at >= extent.offset + u64::from(extent.len) {
                extent = extents.next().unwrap();
            }
            let packet = Packet { interface: 0, time: UnixNanos(*time), original_len: 9, data: &data };
            let expected = (question.from.0..question.to.0).contains(time) && [from, to].contains(&&host);
            prop_assert_eq!(question.matches(RAW_IP, &packet), expected);
            prop_assert!(!expected || question.wants_extent(extent, &hashes));
            at += write::packet_len(data.len()) as u64;
        }
        prop_assert!(at == len && extents.next().is_none());
    }

    #[test]
    fn what_is_damaged_is_not_believed(
        packets in proptest::collection::vec((0u64..1_000, 0u32..40, 0u32..40, 5_000usize..9_000), 20..60),
        at in any::<prop::sample::Index>(), bit in 0u8..8, cut: bool,
    ) {
        let (bytes, _) = index(&packets);
        let whole: Vec<Record<'_>> = Records::new(&header(), &bytes).collect();
        let mut damaged = bytes.clone();
        let at = HEADER + at.index(bytes.len() - HEADER);
        if cut {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 1 << bit;
        }
        let mut records = Records::new(&header(), &damaged);
        let left: Vec<Record<'_>> = records.by_ref().collect();
        prop_assert!(left.len() < whole.len() && left[..] == whole[..left.len()]);
        prop_assert!(left.last().is_none_or(|last| matches!(last, Record::Extent(e) if e.offset + u64::from(e.len) == records.covered())));
        // Nor is it where another one's stood.
        prop_assert_eq!(Records::new(&Header::new(KEY, 4, HEAD), &bytes).count(), 0);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let header = Header::parse(&bytes).unwrap_or_else(header);
        let mut records = Records::new(&header, &bytes);
        let count = records.by_ref().count();
        prop_assert!(count * FRAMING <= bytes.len() && records.covered() >= header.head_len.into());
        End::parse(&bytes);
    }
}
