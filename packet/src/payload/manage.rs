//! Management and directories: SNMP, LDAP, Kerberos, all of them in BER.

use super::{Judgement, Payload, be32};

pub(super) const PAYLOADS: &[Payload] = &[
    Payload {
        name: "snmp",
        ports: &[161],
        source: "RFC 3414, section 4: discovery of the authoritative engine, which needs no name and no secret",
        strength: 31,
        build: snmp_v3,
        judge: snmp_v3_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "snmp",
        ports: &[161],
        source: "RFC 3416, section 4.2.1: sysDescr.0 by version 2c, community `public`",
        strength: 31,
        build: |nonce| snmp_get(1, nonce),
        judge: |nonce, answer| snmp_get_judge(1, nonce, answer),
        ..Payload::PLAIN
    },
    Payload {
        name: "snmp",
        ports: &[161],
        source: "RFC 1157, section 4.1.2: sysDescr.0 by version 1, community `public`",
        strength: 31,
        build: |nonce| snmp_get(0, nonce),
        judge: |nonce, answer| snmp_get_judge(0, nonce, answer),
        ..Payload::PLAIN
    },
    Payload {
        name: "ldap",
        ports: &[389],
        source: "RFC 4511, section 4.5.1, over UDP as in MS-ADTS, section 6.3.3: the versions that the root names",
        strength: 31,
        build: cldap,
        judge: cldap_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "kerberos",
        ports: &[88],
        source: "RFC 4120, section 5.4.1: an AS-REQ for a realm that cannot exist; the answer is an error",
        build: kerberos,
        judge: kerberos_judge,
        ..Payload::PLAIN
    },
];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
/// SNMP: GetRequest, Response, Report. LDAP: SearchRequest, SearchResultEntry, SearchResultDone. Kerberos: AS-REQ, KRB-ERROR.
const GET_REQUEST: u8 = 0xa0;
const RESPONSE: u8 = 0xa2;
const REPORT: u8 = 0xa8;
const SEARCH_REQUEST: u8 = 0x63;
const SEARCH_ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const PRESENT: u8 = 0x87;
const AS_REQ: u8 = 0x6a;
const AS_REP: u8 = 0x6b;
const KRB_ERROR: u8 = 0x7e;

/// 1.3.6.1.2.1.1.1.0 (RFC 3418: sysDescr).
const SYS_DESCR: &[u8] = &[0x2b, 6, 1, 2, 1, 1, 1, 0];

/// A BER element (X.690, section 8.1).
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let len = contents.len();
    let mut out = vec![tag];
    match len {
        ..0x80 => out.push(len as u8),
        0x80..0x100 => out.extend([0x81, len as u8]),
        _ => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend(contents);
    out
}

fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(3);
    let digits = bytes.get(first..).unwrap_or(&bytes);
    // A leading one bit would make it negative.
    let sign: &[u8] = if digits.first().is_some_and(|byte| *byte >= 0x80) { &[0] } else { &[] };
    element(INTEGER, &[sign, digits])
}

/// The first element of `bytes`: its tag, its contents, and what follows it.
fn take(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        _ if first < 0x80 => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0xf))?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

/// The contents of the first element, which must have this tag, and what follows it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    take(bytes).filter(|(found, ..)| *found == tag).map(|(_, contents, rest)| (contents, rest))
}

/// A number that is not negative, and what follows it.
fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = expect(INTEGER, bytes)?;
    let value = digits.iter().try_fold(0u32, |value, digit| value.checked_mul(256)?.checked_add((*digit).into()))?;
    Some((value, rest))
}

/// Request identifiers are positive: 31 bits.
fn id(nonce: u64) -> u32 {
    nonce as u32 & 0x7fff_ffff
}

fn snmp_get(version: u32, nonce: u64) -> Vec<u8> {
    let variable = element(SEQUENCE, &[&element(OID, &[SYS_DESCR]), &element(NULL, &[])]);
    let variables = element(SEQUENCE, &[&variable]);
    let pdu = element(GET_REQUEST, &[&integer(id(nonce)), &integer(0), &integer(0), &variables]);
    element(SEQUENCE, &[&integer(version), &element(OCTETS, &[b"public"]), &pdu])
}

fn snmp_get_judge(version: u32, nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let (message, _) = expect(SEQUENCE, answer)?;
    let (found, rest) = number(message)?;
    let (_, rest) = expect(OCTETS, rest)?;
    let (pdu, _) = expect(RESPONSE, rest)?;
    (found == version).then_some(Judgement::repeats(number(pdu)?.0 == id(nonce)))
}

/// An empty user asks with empty engine identifier and reportable flag (RFC 3412, section 6; RFC 3414, section 2.4).
fn snmp_v3(nonce: u64) -> Vec<u8> {
    let empty = element(OCTETS, &[]);
    let global = element(SEQUENCE, &[&integer(id(nonce)), &integer(1_472), &element(OCTETS, &[&[4]]), &integer(3)]);
    let security = element(SEQUENCE, &[&empty, &integer(0), &integer(0), &empty, &empty, &empty]);
    let pdu = element(GET_REQUEST, &[&integer(id(nonce)), &integer(0), &integer(0), &element(SEQUENCE, &[])]);
    let scoped = element(SEQUENCE, &[&empty, &empty, &pdu]);
    element(SEQUENCE, &[&integer(3), &global, &element(OCTETS, &[&security]), &scoped])
}

/// The report repeats the message identifier (RFC 3412, section 7.1).
fn snmp_v3_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let (message, _) = expect(SEQUENCE, answer)?;
    let (version, rest) = number(message)?;
    let (global, rest) = expect(SEQUENCE, rest)?;
    let (_, rest) = expect(OCTETS, rest)?;
    let (scoped, _) = expect(SEQUENCE, rest)?;
    let (_, scoped) = expect(OCTETS, scoped)?;
    let (_, scoped) = expect(OCTETS, scoped)?;
    let answers = matches!(take(scoped)?.0, REPORT | RESPONSE);
    (version == 3 && answers).then_some(Judgement::repeats(number(global)?.0 == id(nonce)))
}

fn cldap(nonce: u64) -> Vec<u8> {
    let empty = element(OCTETS, &[]);
    let (base, never) = (element(ENUMERATED, &[&[0]]), element(ENUMERATED, &[&[0]]));
    let types_only = [1, 1, 0];
    let filter = element(PRESENT, &[b"objectClass"]);
    let attributes = element(SEQUENCE, &[&element(OCTETS, &[b"supportedLDAPVersion"])]);
    let search = element(SEARCH_REQUEST, &[&empty, &base, &never, &integer(1), &integer(5), &types_only, &filter, &attributes]);
    element(SEQUENCE, &[&integer(id(nonce)), &search])
}

fn cldap_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let (message, _) = expect(SEQUENCE, answer)?;
    let (found, rest) = number(message)?;
    matches!(take(rest)?.0, SEARCH_ENTRY | SEARCH_DONE).then_some(Judgement::repeats(found == id(nonce)))
}

fn kerberos(nonce: u64) -> Vec<u8> {
    // KerberosString is a GeneralString, times are GeneralizedTime (RFC 4120, sections 5.2.1 and 5.2.3).
    let text = |text: &[u8]| element(0x1b, &[text]);
    let tagged = |tag: u8, value: &[u8]| element(0xa0 | tag, &[value]);
    let name = |kind: u32, parts: &[&[u8]]| {
        let parts: Vec<u8> = parts.iter().flat_map(|part| text(part)).collect();
        element(SEQUENCE, &[&tagged(0, &integer(kind)), &tagged(1, &element(SEQUENCE, &[&parts]))])
    };
    let realm: &[u8] = b"PICKET.INVALID";
    let options = element(0x03, &[&[0, 0, 0, 0, 0]]);
    let until = element(0x18, &[b"19700101000000Z"]);
    let ciphers = element(SEQUENCE, &[&integer(18), &integer(17)]);
    let body = element(
        SEQUENCE,
        &[
            &tagged(0, &options),
            &tagged(1, &name(1, &[b"picket"])),
            &tagged(2, &text(realm)),
            &tagged(3, &name(2, &[b"krbtgt", realm])),
            &tagged(5, &until),
            &tagged(7, &integer(id(nonce))),
            &tagged(8, &ciphers),
        ],
    );
    let request = element(SEQUENCE, &[&tagged(1, &integer(5)), &tagged(2, &integer(10)), &tagged(4, &body)]);
    element(AS_REQ, &[&request])
}

/// An error repeats nothing that must be there (RFC 4120, section 5.9.1).
fn kerberos_judge(_: u64, answer: &[u8]) -> Option<Judgement> {
    let (tag, contents, _) = take(answer)?;
    let (body, _) = expect(SEQUENCE, contents)?;
    let (version, _) = expect(0xa0, body)?;
    (matches!(tag, KRB_ERROR | AS_REP) && number(version)?.0 == 5).then_some(Judgement::Plausible)
}

/// The number of an RPC or any other protocol whose answers begin with the nonce's low half.
pub(super) fn starts_with_nonce(nonce: u64, answer: &[u8]) -> Option<bool> {
    Some(be32(answer, 0)? == nonce as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_elements_read_back(value in 0u32..0x8000_0000, contents in proptest::collection::vec(any::<u8>(), 0..400)) {
            let bytes = integer(value);
            prop_assert_eq!(number(&bytes), Some((value, &[][..])));
            let bytes = [element(OCTETS, &[&contents]), vec![7]].concat();
            prop_assert_eq!(take(&bytes), Some((OCTETS, &contents[..], &[7][..])));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = take(&bytes);
            let _ = number(&bytes);
        }
    }

    #[test]
    fn answers_of_agents_are_recognised() {
        // What net-snmp answers to a discovery: a report with the identifier, and its engine.
        let empty = element(OCTETS, &[]);
        let report = |nonce: u64| {
            let global = element(SEQUENCE, &[&integer(id(nonce)), &integer(65_507), &element(OCTETS, &[&[0]]), &integer(3)]);
            let pdu = element(REPORT, &[&integer(id(nonce)), &integer(0), &integer(0), &element(SEQUENCE, &[])]);
            let scoped = element(SEQUENCE, &[&element(OCTETS, &[b"engine"]), &empty, &pdu]);
            element(SEQUENCE, &[&integer(3), &global, &element(OCTETS, &[b"..."]), &scoped])
        };
        assert_eq!(snmp_v3_judge(77, &report(77)), Some(Judgement::Repeats));
        assert_eq!(snmp_v3_judge(78, &report(77)), Some(Judgement::Foreign));
        let error = element(KRB_ERROR, &[&element(SEQUENCE, &[&element(0xa0, &[&integer(5)])])]);
        assert_eq!(kerberos_judge(1, &error), Some(Judgement::Plausible));
        let done = element(SEQUENCE, &[&integer(9), &element(SEARCH_DONE, &[])]);
        assert_eq!((cldap_judge(9, &done), cldap_judge(8, &done)), (Some(Judgement::Repeats), Some(Judgement::Foreign)));
    }
}
