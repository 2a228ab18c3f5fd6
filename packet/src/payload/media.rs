//! Calls, discovery of devices, and what lets them through address translation: SIP, SSDP, WS-Discovery, STUN.

use super::{Judgement, Payload, be32, be64, contains};

pub(super) const PAYLOADS: &[Payload] = &[
    Payload {
        name: "sip",
        ports: &[5060],
        source: "RFC 3261, section 11 (OPTIONS), and RFC 3581 (`rport`: the answer comes back to our port)",
        strength: 64,
        build: sip,
        judge: sip_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "ssdp",
        ports: &[1900],
        source: "UPnP Device Architecture 2.0, section 1.3.2: a unicast M-SEARCH for root devices",
        from_elsewhere: true,
        build: |_| b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nST: upnp:rootdevice\r\n\r\n".to_vec(),
        judge: |_, answer| answer.starts_with(b"HTTP/1.").then_some(Judgement::Plausible),
        ..Payload::PLAIN
    },
    Payload {
        name: "ws-discovery",
        ports: &[3702],
        source: "OASIS WS-Discovery 1.1, section 5.2: a Probe for any device; the match relates to its identifier",
        strength: 64,
        from_elsewhere: true,
        build: ws_discovery,
        judge: ws_discovery_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "stun",
        ports: &[3478, 3479, 19302],
        source: "RFC 8489, section 5: a Binding request; its transaction identifier has 96 bits",
        strength: 64,
        build: |nonce| [&[0, 1, 0, 0], &STUN_COOKIE.to_be_bytes()[..], b"pckt", &nonce.to_be_bytes()].concat(),
        judge: stun_judge,
        ..Payload::PLAIN
    },
];

const STUN_COOKIE: u32 = 0x2112_a442;

fn sip(nonce: u64) -> Vec<u8> {
    // The branch begins with the cookie of section 8.1.1.7; a name of RFC 2606 stands for an address that we do not give away.
    format!(
        "OPTIONS sip:picket.invalid SIP/2.0\r\n\
         Via: SIP/2.0/UDP picket.invalid;branch=z9hG4bK{nonce:016x};rport\r\n\
         Max-Forwards: 70\r\n\
         To: <sip:picket.invalid>\r\n\
         From: <sip:picket.invalid>;tag={nonce:016x}\r\n\
         Call-ID: {nonce:016x}@picket.invalid\r\n\
         CSeq: 1 OPTIONS\r\n\
         Accept: application/sdp\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

fn sip_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    answer.starts_with(b"SIP/2.0 ").then(|| Judgement::repeats(contains(answer, format!("{nonce:016x}").as_bytes())))
}

/// A name-based identifier is as good as any: the nonce in the form of a UUID (RFC 9562, section 5.8: for experiments).
fn uuid(nonce: u64) -> String {
    let hex = format!("{nonce:016x}");
    let (a, b) = hex.split_at(8);
    let (b, c) = b.split_at(4);
    format!("{a}-{b}-8{}-8{}-7069636b6574", c.get(..3).unwrap_or("000"), c.get(1..).unwrap_or("000"))
}

fn ws_discovery(nonce: u64) -> Vec<u8> {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
         <s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\">\
         <s:Header><a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action>\
         <a:MessageID>urn:uuid:{}</a:MessageID>\
         <a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To></s:Header>\
         <s:Body><d:Probe/></s:Body></s:Envelope>",
        uuid(nonce)
    )
    .into_bytes()
}

fn ws_discovery_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    // A match, or a fault, relates to the question; a question does not.
    contains(answer, b"RelatesTo").then(|| Judgement::repeats(contains(answer, uuid(nonce).as_bytes())))
}

/// Success or error responses of Binding have the class bits 1 0 and 1 1 (RFC 8489, section 5).
fn stun_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_answer =
        answer.len() >= 20 && (answer.starts_with(&[1, 1]) || answer.starts_with(&[1, 0x11])) && be32(answer, 4)? == STUN_COOKIE;
    is_answer.then_some(Judgement::repeats(answer.get(8..12) == Some(b"pckt") && be64(answer, 12)? == nonce))
}
