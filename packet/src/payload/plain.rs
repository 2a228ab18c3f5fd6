//! Protocols of few bytes: time, files, remote calls, routing, things.

use super::manage::starts_with_nonce;
use super::{Judgement, Payload, be16, be32, be64};

pub(super) const PAYLOADS: &[Payload] = &[
    Payload {
        name: "ntp",
        ports: &[123],
        source: "RFC 5905, section 7.3: a client's packet; the server returns its transmit timestamp",
        strength: 64,
        build: |nonce| [&[0x23][..], &[0; 39], &nonce.to_be_bytes()].concat(),
        judge: ntp_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "tftp",
        ports: &[69],
        source: "RFC 1350, sections 4 and 5: a file that nobody has; the error comes from a port of its own",
        from_elsewhere: true,
        build: |nonce| format!("\0\x01picket-{nonce:016x}\0octet\0").into_bytes(),
        judge: |_, answer| matches!(answer, [0, 3 | 5 | 6, _, _, ..]).then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "rpcbind",
        ports: &[111],
        source: "RFC 5531, section 9, and RFC 1833: the null procedure of the port mapper, version 2",
        strength: 32,
        build: |nonce| rpc(nonce, 100_000, 2),
        judge: rpc_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "nfs",
        ports: &[2049],
        source: "RFC 1813, section 3.3.0: the null procedure of NFS, version 3",
        strength: 32,
        build: |nonce| rpc(nonce, 100_003, 3),
        judge: rpc_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "xdmcp",
        ports: &[177],
        source: "X Display Manager Control Protocol, version 1.1, section \"Query\": without authentication names",
        build: |_| vec![0, 1, 0, 2, 0, 1, 0],
        judge: |_, answer| matches!(answer, [0, 1, 0, 5 | 6, ..]).then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "slp",
        ports: &[427],
        source: "RFC 2608, section 10.1: which service types are there",
        strength: 16,
        build: slp,
        judge: slp_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "rip",
        ports: &[520],
        source: "RFC 2453, section 3.9.1: the metric of one network, not the table",
        strength: 32,
        build: |nonce| {
            [&[1, 2, 0, 0, 0, 2, 0, 0][..], &(nonce as u32).to_be_bytes(), &[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 16]].concat()
        },
        judge: rip_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "rmcp",
        ports: &[623],
        source: "DMTF DSP0136 (ASF 2.0), section 3.2.4.3: a presence ping, which BMCs answer before any login",
        strength: 8,
        // Tag 255 would say that no answer is expected.
        build: |nonce| vec![6, 0, 255, 6, 0, 0, 0x11, 0xbe, 0x80, nonce as u8 & 0x7f, 0, 0],
        judge: rmcp_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "ms-sql-browser",
        ports: &[1434],
        source: "MS-SQLR, section 2.2.2: which instances are there",
        build: |_| vec![3],
        judge: |_, answer| (answer.len() >= 3 && answer.starts_with(&[5])).then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "gtp",
        ports: &[2123, 2152, 3386],
        source: "3GPP TS 29.060, section 7.2.1: an echo request of version 1",
        strength: 16,
        build: |nonce| [&[0x32, 1, 0, 4, 0, 0, 0, 0][..], &(nonce as u16).to_be_bytes(), &[0, 0]].concat(),
        judge: gtp_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "nat-pmp",
        ports: &[5351],
        source: "RFC 6886, section 3.2: the outside address",
        build: |_| vec![0, 0],
        judge: |_, answer| (answer.len() >= 8 && answer.starts_with(&[0, 128])).then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "coap",
        ports: &[5683],
        source: "RFC 7252, sections 3 and 7.2: GET /.well-known/core",
        strength: 64,
        build: |nonce| [&[0x48, 1][..], &(nonce as u16).to_be_bytes(), &nonce.to_be_bytes(), b"\xbb.well-known\x04core"].concat(),
        judge: coap_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "ubiquiti-discovery",
        ports: &[10001],
        source: "observed: four bytes, version 1 without contents; the answer repeats the version and lists the device's names",
        build: |_| vec![1, 0, 0, 0],
        judge: |_, answer| (answer.len() > 4 && answer.starts_with(&[1, 0])).then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "memcached",
        ports: &[11211],
        source: "memcached's protocol.txt, section \"UDP protocol\": its version",
        strength: 16,
        build: |nonce| [&(nonce as u16).to_be_bytes()[..], &[0, 0, 0, 1, 0, 0], b"version\r\n"].concat(),
        judge: memcached_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "source-engine",
        ports: &[27015],
        source: "Valve developer wiki, \"Server queries\": A2S_INFO",
        build: |_| b"\xff\xff\xff\xffTSource Engine Query\0".to_vec(),
        judge: |_, answer| {
            (answer.starts_with(&[255; 4]) && matches!(answer.get(4), Some(b'I' | b'A' | b'm'))).then_some(Judgement::Plausible)
        },
        ..Payload::PLAIN
    },
    Payload {
        name: "bacnet",
        ports: &[47808],
        source: "ASHRAE 135, annex J and clause 15.5: the object name of whatever device it is",
        strength: 8,
        fragile: true,
        // Original-Unicast-NPDU; expects a reply; confirmed request, ReadProperty of device 4194303, property 77.
        build: |nonce| vec![0x81, 0x0a, 0, 17, 1, 4, 0, 5, nonce as u8, 12, 0x0c, 0x02, 0x3f, 0xff, 0xff, 0x19, 77],
        judge: bacnet_judge,
        ..Payload::PLAIN
    },
];

/// Mode server or, of an old one, symmetric passive.
fn ntp_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_answer = answer.len() >= 48 && matches!(answer.first()? & 7, 2 | 4);
    is_answer.then_some(Judgement::repeats(be64(answer, 24)? == nonce))
}

/// A call without credentials (RFC 5531, section 9).
fn rpc(nonce: u64, program: u32, version: u32) -> Vec<u8> {
    [nonce as u32, 0, 2, program, version, 0, 0, 0, 0, 0].into_iter().flat_map(u32::to_be_bytes).collect()
}

fn rpc_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_reply = answer.len() >= 12 && be32(answer, 4)? == 1 && be32(answer, 8)? <= 1;
    is_reply.then_some(Judgement::repeats(starts_with_nonce(nonce, answer)?))
}

fn slp(nonce: u64) -> Vec<u8> {
    // Service Type Request, 29 bytes: language `en`, no previous responders, all naming authorities, the default scope.
    let body = [&[0, 0, 0xff, 0xff, 0, 7][..], b"DEFAULT"].concat();
    let head = [&[2, 9, 0, 0, 16 + body.len() as u8, 0, 0, 0, 0, 0][..], &(nonce as u16).to_be_bytes(), &[0, 2], b"en"].concat();
    [head, body].concat()
}

fn slp_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_reply = answer.len() >= 14 && answer.starts_with(&[2, 10]);
    is_reply.then_some(Judgement::repeats(be16(answer, 10)? == nonce as u16))
}

/// The entry comes back with its metric filled in.
fn rip_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_response = answer.len() >= 24 && matches!(answer, [2, 1 | 2, 0, 0, ..]);
    is_response.then_some(Judgement::repeats(be32(answer, 8)? == nonce as u32))
}

/// A presence pong has the ping's tag.
fn rmcp_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_pong = answer.starts_with(&[6, 0]) && answer.get(3) == Some(&6) && be32(answer, 4)? == 0x11be && answer.get(8) == Some(&0x40);
    is_pong.then_some(Judgement::repeats(answer.get(9) == Some(&(nonce as u8 & 0x7f))))
}

fn gtp_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_response = answer.len() >= 12 && answer.first()? >> 5 == 1 && answer.get(1) == Some(&2);
    is_response.then_some(Judgement::repeats(be16(answer, 8)? == nonce as u16))
}

/// An acknowledgement or a message of its own with our token, or a reset with our message number (RFC 7252, section 4.2).
fn coap_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    const RESET: u8 = 3;
    let [first, code, ..] = *answer else { return None };
    if first >> 6 != 1 {
        return None;
    }
    if first >> 4 & 3 == RESET {
        return Some(Judgement::repeats(be16(answer, 2)? == nonce as u16));
    }
    // Responses are of classes 2 to 5.
    let is_response = (2..=5).contains(&(code >> 5)) && first & 0xf == 8;
    is_response.then_some(Judgement::repeats(be64(answer, 4)? == nonce))
}

fn memcached_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let text = answer.get(8..)?;
    let is_answer = text.starts_with(b"VERSION ") || text.starts_with(b"ERROR") || text.starts_with(b"SERVER_ERROR");
    is_answer.then_some(Judgement::repeats(be16(answer, 0)? == nonce as u16))
}

/// Complex acknowledgement, error, reject or abort with our invoke identifier.
fn bacnet_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_bacnet = answer.len() >= 9 && answer.starts_with(&[0x81]) && answer.get(4) == Some(&1);
    // The network layer may name a source (four bytes and an address); without one the application layer begins at 6.
    let is_answer = is_bacnet && answer.get(5)? & 0x28 == 0 && matches!(answer.get(6)? >> 4, 3 | 5 | 6 | 7);
    is_answer.then_some(Judgement::repeats(answer.get(7) == Some(&(nonce as u8))))
}
