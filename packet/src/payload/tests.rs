//! Every question is read back by a second reader, and answered by an honest service.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn named(name: &str, nth: usize) -> &'static Payload {
    catalogue().filter(|payload| payload.name == name).nth(nth).unwrap_or_else(|| panic!("{name} {nth}"))
}

/// BER elements as `(depth, tag, length)`, each exactly filled by what is inside.
fn walk(bytes: &[u8], depth: usize, into: &mut Vec<(usize, u8, usize)>) {
    let mut rest = bytes;
    while let Some((&tag, tail)) = rest.split_first() {
        let (len, head) = match tail[0] {
            0x81 => (usize::from(tail[1]), 2),
            0x82 => (usize::from(tail[1]) << 8 | usize::from(tail[2]), 3),
            short => (usize::from(short), 1),
        };
        let contents = &tail[head..head + len];
        into.push((depth, tag, len));
        if tag & 0x20 != 0 {
            walk(contents, depth + 1, into);
        }
        rest = &tail[head + len..];
    }
}

/// Questions whose whole length is a chain of lengths, as their reader sees it.
fn reads_back(payload: &Payload, bytes: &[u8]) {
    let at16 = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    match payload.name {
        "dns" | "mdns" | "netbios-ns" => {
            assert_eq!((at16(2), at16(4), at16(6), at16(8), at16(10)), (0, 1, 0, 0, 0));
            let mut at = 12;
            while bytes[at] != 0 {
                at += usize::from(bytes[at]) + 1;
            }
            assert_eq!(at + 5, bytes.len(), "one question and no more");
            assert_eq!(at16(at + 3) & 0x7fff, 1);
        }
        "snmp" | "ldap" | "kerberos" => {
            let mut elements = Vec::new();
            walk(bytes, 0, &mut elements);
            assert_eq!(elements.iter().filter(|(depth, ..)| *depth == 0).count(), 1);
        }
        "ike" | "ike-nat" => {
            let bytes = if payload.name == "ike" { bytes } else { bytes.strip_prefix(&[0; 4]).unwrap() };
            let at16 = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            assert_eq!(at16(26), bytes.len());
            let (mut at, mut next) = (28, bytes[16]);
            while next != 0 {
                next = bytes[at];
                at += at16(at + 2);
            }
            assert_eq!(at, bytes.len());
        }
        "quic" => assert_eq!((bytes.len(), bytes[5], bytes[14]), (1_200, 8, 8)),
        "dtls" => {
            assert_eq!((at16(11), at16(15), at16(23)), (bytes.len() - 13, bytes.len() - 25, bytes.len() - 25));
            let ciphers = at16(61);
            let extensions = 63 + ciphers + 2;
            assert_eq!(extensions + 2 + at16(extensions), bytes.len());
            let mut at = extensions + 2;
            while at < bytes.len() {
                at += 4 + at16(at + 2);
            }
            assert_eq!(at, bytes.len());
        }
        "l2tp" => {
            assert_eq!(at16(2), bytes.len());
            let mut at = 12;
            while at < bytes.len() {
                at += at16(at) & 0x3ff;
            }
            assert_eq!(at, bytes.len());
        }
        "radius" => assert_eq!((at16(2), bytes[20], usize::from(bytes[21]) + 20), (bytes.len(), 80, bytes.len())),
        "slp" => {
            assert_eq!(usize::from(bytes[4]), bytes.len());
            assert_eq!((at16(12), at16(16), at16(18), at16(20) + 22), (2, 0, 0xffff, bytes.len()));
        }
        "bacnet" => assert_eq!(at16(2), bytes.len()),
        "rpcbind" | "nfs" => assert_eq!((bytes.len(), at16(10)), (40, 2)),
        "stun" => assert_eq!((bytes.len(), at16(2)), (20, 0)),
        "ntp" => assert_eq!((bytes.len(), bytes[0] >> 3 & 7, bytes[0] & 7), (48, 4, 3)),
        "rip" => assert_eq!((bytes.len(), at16(4)), (24, 2)),
        "rmcp" => assert_eq!((bytes.len(), bytes[11]), (12, 0)),
        "gtp" => assert_eq!(at16(2) + 8, bytes.len()),
        "openvpn" => assert_eq!((bytes.len(), bytes[0]), (14, 0x38)),
        "memcached" => assert_eq!((at16(2), at16(4), &bytes[8..]), (0, 1, &b"version\r\n"[..])),
        "coap" => {
            assert_eq!(bytes[0] & 0xf, 8);
            let (first, rest) = bytes[12..].split_first().unwrap();
            let (path, rest) = rest.split_at(usize::from(first & 0xf));
            assert_eq!((first >> 4, path, &rest[1..]), (11, &b".well-known"[..], &b"core"[..]));
            assert_eq!(rest[0], 4);
        }
        "tftp" => {
            let fields: Vec<&[u8]> = bytes[2..].split(|byte| *byte == 0).collect();
            assert_eq!((at16(0), fields.len(), fields[1]), (1, 3, &b"octet"[..]));
        }
        "sip" | "ssdp" => {
            let text = core::str::from_utf8(bytes).unwrap();
            assert!(text.ends_with("\r\n\r\n") && text.lines().skip(1).filter(|line| !line.is_empty()).all(|line| line.contains(": ")));
        }
        "ws-discovery" => {
            let text = core::str::from_utf8(bytes).unwrap();
            let uuid = text.split("urn:uuid:").nth(1).unwrap().split('<').next().unwrap();
            assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
            assert_eq!(text.matches('<').count(), text.matches('>').count());
        }
        "xdmcp" => assert_eq!((at16(0), at16(2), at16(4) + 6), (1, 2, bytes.len())),
        "ms-sql-browser" | "nat-pmp" | "ubiquiti-discovery" | "source-engine" => assert!(bytes.len() <= 25),
        other => panic!("{other} is read by nobody"),
    }
}

/// What an honest service says to a question; `None` where only a real one could.
fn honest(payload: &Payload, nth: usize, asked: &[u8]) -> Option<Vec<u8>> {
    let with = |changes: &[(usize, u8)]| {
        let mut answer = asked.to_vec();
        changes.iter().for_each(|(at, value)| answer[*at] = *value);
        Some(answer)
    };
    match payload.name {
        "dns" | "mdns" | "netbios-ns" => with(&[(2, 0x84)]),
        // Versions 1 and 2c answer with the request's own structure; version 3 with a report.
        "snmp" if nth > 0 => with(&[(13, 0xa2)]),
        "snmp" => with(&[(asked.len() - 12 - usize::from(asked[8]), 0xa8)]),
        "ldap" => with(&[(4 + usize::from(asked[3]), 0x65)]),
        "ike" if nth == 0 => with(&[(8, 1), (19, 0x20)]),
        "ike" => with(&[(8, 1)]),
        "ike-nat" => with(&[(12, 1), (23, 0x20)]),
        "quic" => Some([&[0x80, 0, 0, 0, 0, 8], &asked[15..23], &[8], &asked[6..14], &[0, 0, 0, 1]].concat()),
        "dtls" => with(&[(13, 3)]),
        "openvpn" => Some([&[0x40][..], &[9; 8], &[1, 0, 0, 0, 0], &asked[1..9], &[0; 4]].concat()),
        "l2tp" => {
            let mut answer = asked.to_vec();
            let tunnel = [asked[asked.len() - 2], asked[asked.len() - 1]];
            answer[4..6].copy_from_slice(&tunnel);
            Some(answer)
        }
        "radius" => with(&[(0, 2)]),
        "ntp" => Some([&[0x24][..], &[0; 23], &asked[40..48], &[7; 16]].concat()),
        "tftp" => Some(b"\0\x05\0\x01File not found\0".to_vec()),
        "rpcbind" | "nfs" => Some([&asked[..4], &[0, 0, 0, 1], &[0; 16]].concat()),
        "xdmcp" => with(&[(3, 5)]),
        "slp" => with(&[(1, 10)]),
        "rip" => with(&[(0, 2)]),
        "rmcp" => with(&[(8, 0x40)]),
        "ms-sql-browser" => Some(vec![5, 1, 0, b';']),
        "gtp" => with(&[(1, 2)]),
        "nat-pmp" => Some(vec![0, 128, 0, 0, 0, 0, 0, 9, 198, 18, 0, 1]),
        "coap" => with(&[(0, 0x68), (1, 0x45)]),
        "ubiquiti-discovery" => Some(vec![1, 0, 0, 1, 9]),
        "memcached" => Some([&asked[..8], b"VERSION 1.6.0\r\n"].concat()),
        "source-engine" => Some(b"\xff\xff\xff\xffI".to_vec()),
        "bacnet" => with(&[(5, 0), (6, 0x30), (7, asked[8])]),
        "sip" => Some([b"SIP/2.0 200 OK\r\n", &asked[asked.iter().position(|byte| *byte == b'\n').unwrap() + 1..]].concat()),
        "ssdp" => Some(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        "ws-discovery" => {
            let text = String::from_utf8(asked.to_vec()).unwrap();
            Some(text.replace("MessageID", "RelatesTo").into_bytes())
        }
        "stun" => with(&[(0, 1), (1, 1)]),
        "kerberos" => None,
        other => panic!("nobody answers {other}"),
    }
}

#[test]
fn the_catalogue_is_in_order() {
    assert!(catalogue().count() >= 30, "{}", catalogue().count());
    let mut seen = BTreeSet::new();
    for payload in catalogue() {
        assert!(!payload.name.is_empty() && !payload.source.is_empty() && !payload.ports.is_empty(), "{payload:?}");
        assert!(payload.strength <= 64);
        for port in payload.ports {
            assert!(seen.insert((payload.name, payload.source, *port)), "{payload:?}");
        }
    }
    assert_eq!(payload_for(53).map(|payload| payload.name), Some("dns"));
    assert_eq!(payloads_for(161).count(), 3);
    assert_eq!(payloads_for(443).map(|payload| payload.name).collect::<Vec<_>>(), ["quic", "dtls"]);
    assert!(payload_for(514).is_none(), "syslog only listens");
}

#[test]
fn wildcard_names_are_those_of_the_rfc() {
    let bytes = named("netbios-ns", 0).bytes(0x1234);
    assert_eq!(&bytes[..2], [0x12, 0x34]);
    assert_eq!(&bytes[13..45], b"CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
}

/// The place of a payload among those of its name.
fn nth(payload: &'static Payload) -> usize {
    catalogue().filter(|other| other.name == payload.name).position(|other| core::ptr::eq(other, payload)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn questions_read_back_and_answers_fit(nonce: u64, other: u64) {
        for payload in catalogue() {
            let bytes = payload.bytes(nonce);
            prop_assert!(!bytes.is_empty() && bytes.len() <= MAX_LEN);
            prop_assert_eq!(&bytes, &payload.bytes(nonce));
            reads_back(payload, &bytes);
            let mirrored = payload.judge(nonce, &bytes);
            prop_assert!(matches!(mirrored, Judgement::Other | Judgement::Foreign), "{} takes a mirror for a service", payload.name);
            let Some(answer) = honest(payload, nth(payload), &bytes) else { continue };
            let judged = payload.judge(nonce, &answer);
            prop_assert_eq!(judged, if payload.strength > 0 { Judgement::Repeats } else { Judgement::Plausible }, "{}", payload.name);
            let mask = if payload.strength == 64 { u64::MAX } else { (1 << payload.strength) - 1 };
            // Tunnel 0 does not exist, and the highest bit of a tag of eight is not ours.
            let same = |a: u64, b: u64| (a & mask).max(1) == (b & mask).max(1) || (payload.name == "rmcp" && a & 0x7f == b & 0x7f);
            if payload.strength > 0 && !same(nonce, other) {
                prop_assert_eq!(payload.judge(other, &answer), Judgement::Foreign, "{}", payload.name);
            }
        }
    }

    #[test]
    fn no_answer_makes_a_judge_panic(nonce: u64, bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..60, at in 0usize..60, value: u8) {
        for payload in catalogue() {
            payload.judge(nonce, &bytes);
            let mut answer = honest(payload, nth(payload), &payload.bytes(nonce)).unwrap_or_default();
            payload.judge(nonce, answer.get(..cut).unwrap_or_default());
            if let Some(byte) = answer.get_mut(at) {
                *byte = value;
            }
            payload.judge(nonce, &answer);
        }
    }
}
