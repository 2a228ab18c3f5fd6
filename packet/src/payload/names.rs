//! Name services: DNS, multicast DNS, NetBIOS.

use super::{Judgement, Payload, be16, chunk};

/// Type PTR, SOA and NBSTAT; class IN; multicast DNS asks for a unicast answer by the class's highest bit.
const TYPE_SOA: u16 = 6;
const TYPE_PTR: u16 = 12;
const TYPE_NBSTAT: u16 = 0x21;
const CLASS_IN: u16 = 1;
const UNICAST_WANTED: u16 = 0x8000;

pub(super) const PAYLOADS: &[Payload] = &[
    Payload {
        name: "dns",
        ports: &[53, 5355],
        source: "RFC 1035, section 4: the authority of the root, without recursion; whoever serves DNS says something",
        strength: 16,
        build: |nonce| question(nonce as u16, b"\0", TYPE_SOA, CLASS_IN),
        judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "mdns",
        ports: &[5353],
        source: "RFC 6762, sections 5.5 and 6.7; RFC 6763, section 9: which kinds of services are there",
        strength: 16,
        build: |nonce| question(nonce as u16, b"\x09_services\x07_dns-sd\x04_udp\x05local\0", TYPE_PTR, CLASS_IN | UNICAST_WANTED),
        judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "netbios-ns",
        ports: &[137],
        source: "RFC 1002, section 4.2.17: node status of the wildcard name",
        strength: 16,
        build: |nonce| question(nonce as u16, &wildcard(), TYPE_NBSTAT, CLASS_IN),
        judge,
        ..Payload::PLAIN
    },
];

/// A header with one question (RFC 1035, section 4.1).
fn question(id: u16, name: &[u8], kind: u16, class: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let head = [high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&head[..], name, &kind.to_be_bytes(), &class.to_be_bytes()].concat()
}

/// The name `*`, padded with zeros to 16 bytes, each half of a byte as a letter from A on (RFC 1001, section 14.1).
fn wildcard() -> Vec<u8> {
    let mut name = vec![32];
    let padded = core::iter::once(b'*').chain([0; 15]);
    name.extend(padded.flat_map(|byte| [b'A' + (byte >> 4), b'A' + (byte & 0xf)]));
    name.push(0);
    name
}

/// A response (the highest bit of the flags) with a plausible number of questions repeats the identifier.
fn judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let flags: [u8; 2] = chunk(answer, 2)?;
    let is_response = answer.len() >= 12 && flags[0] & 0x80 != 0 && be16(answer, 4)? <= 1;
    is_response.then_some(Judgement::repeats(be16(answer, 0)? == nonce as u16))
}
