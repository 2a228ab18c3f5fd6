//! Tunnels and encrypted transports: IKE, QUIC, DTLS, OpenVPN, L2TP, RADIUS.

use super::{Judgement, Payload, be16, be64, chunk, contains};

pub(super) const PAYLOADS: &[Payload] = &[
    Payload {
        name: "ike",
        ports: &[500],
        source: "RFC 7296, section 1.2: IKE_SA_INIT with one proposal, or a request for another key",
        strength: 64,
        build: ike_v2,
        judge: ike_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "ike",
        ports: &[500],
        source: "RFC 2409, section 5: main mode with two proposals by shared key",
        strength: 64,
        build: ike_v1,
        judge: ike_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "ike-nat",
        ports: &[4500],
        source: "RFC 3948, section 2.2: the same behind four zero bytes",
        strength: 64,
        build: |nonce| [&[0; 4][..], &ike_v2(nonce)].concat(),
        judge: |nonce, answer| ike_judge(nonce, answer.strip_prefix(&[0; 4])?),
        ..Payload::PLAIN
    },
    Payload {
        name: "quic",
        ports: &[443, 784, 853, 4433, 8443],
        source: "RFC 9000, section 6: a version reserved to be unknown; the server lists those that it knows",
        strength: 64,
        build: quic,
        judge: quic_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "dtls",
        ports: &[443, 853, 2221, 3391, 4433, 5061, 5349, 5684, 10000],
        source: "RFC 6347, section 4.2: a ClientHello; the server asks for it again with a cookie",
        build: dtls,
        judge: dtls_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "openvpn",
        ports: &[1194],
        source: "OpenVPN protocol (openvpn.net, wire protocol draft), section 4: a hard reset of a client without a static key",
        strength: 64,
        build: |nonce| [&[OPENVPN_RESET_CLIENT << 3][..], &nonce.to_be_bytes(), &[0], &[0; 4]].concat(),
        judge: openvpn_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "l2tp",
        ports: &[1701],
        source: "RFC 2661, section 6.1: a request for a control connection, which is left to lapse",
        strength: 16,
        build: l2tp,
        judge: l2tp_judge,
        ..Payload::PLAIN
    },
    Payload {
        name: "radius",
        ports: &[1645, 1812, 1813],
        source: "RFC 5997, section 3: Status-Server; a server answers those whose secret it shares",
        strength: 8,
        build: radius,
        judge: radius_judge,
        ..Payload::PLAIN
    },
];

/// Bytes that look like a key or a nonce and are neither: SplitMix64 from the nonce on.
fn filler(nonce: u64, len: usize) -> Vec<u8> {
    let mut state = nonce;
    let words = core::iter::from_fn(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    });
    words.flat_map(u64::to_be_bytes).take(len).collect()
}

/// A generic IKE payload: what comes next, its length, its contents (RFC 7296, section 3.2).
fn ike_payload(next: u8, contents: &[u8]) -> Vec<u8> {
    [&[next, 0], &(contents.len() as u16 + 4).to_be_bytes()[..], contents].concat()
}

fn ike_message(nonce: u64, first: u8, version: u8, exchange: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let head = [first, version, exchange, flags, 0, 0, 0, 0];
    [&nonce.to_be_bytes()[..], &[0; 8], &head, &(body.len() as u32 + 28).to_be_bytes(), body].concat()
}

fn ike_v2(nonce: u64) -> Vec<u8> {
    const SA: u8 = 33;
    const KEY_EXCHANGE: u8 = 34;
    const NONCE: u8 = 40;
    // AES-CBC of 128 bits, HMAC-SHA-256 as function and integrity, the 2048-bit group (RFC 7296, section 3.3.2).
    let transforms: [&[u8]; 4] =
        [&[3, 0, 0, 12, 1, 0, 0, 12, 0x80, 14, 0, 128], &[3, 0, 0, 8, 2, 0, 0, 5], &[3, 0, 0, 8, 3, 0, 0, 12], &[0, 0, 0, 8, 4, 0, 0, 14]];
    let transforms = transforms.concat();
    let proposal = [&[0, 0], &(transforms.len() as u16 + 8).to_be_bytes()[..], &[1, 1, 0, 4], &transforms].concat();
    // A first byte that keeps the value below the group's prime.
    let mut key = filler(nonce, 256);
    if let Some(first) = key.first_mut() {
        *first = 0x01;
    }
    let body = [
        ike_payload(KEY_EXCHANGE, &proposal),
        ike_payload(NONCE, &[&[0, 14, 0, 0][..], &key].concat()),
        ike_payload(0, &filler(!nonce, 32)),
    ]
    .concat();
    ike_message(nonce, SA, 0x20, 34, 0x08, &body)
}

fn ike_v1(nonce: u64) -> Vec<u8> {
    // Attributes (RFC 2409, appendix A): cipher, hash, group, shared key, life in seconds; AES with its key length.
    let attributes: [&[u8]; 2] = [
        &[0x80, 1, 0, 7, 0x80, 14, 0, 128, 0x80, 2, 0, 2, 0x80, 4, 0, 14, 0x80, 3, 0, 1, 0x80, 11, 0, 1, 0x80, 12, 0x0e, 0x10],
        &[0x80, 1, 0, 5, 0x80, 2, 0, 2, 0x80, 4, 0, 2, 0x80, 3, 0, 1, 0x80, 11, 0, 1, 0x80, 12, 0x0e, 0x10],
    ];
    let transform = |number: u8, next: u8, attributes: &[u8]| ike_payload(next, &[&[number, 1, 0, 0][..], attributes].concat());
    let transforms = [transform(1, 3, attributes[0]), transform(2, 0, attributes[1])].concat();
    let proposal = ike_payload(0, &[&[1, 1, 0, 2][..], &transforms].concat());
    // IPsec domain of interpretation, situation "identity only" (RFC 2407, section 4.6.1).
    let sa = ike_payload(0, &[&[0, 0, 0, 1, 0, 0, 0, 1][..], &proposal].concat());
    ike_message(nonce, 1, 0x10, 2, 0, &sa)
}

/// The initiator's number comes back; of version 2 the response bit, of version 1 only the responder's number tells an answer from
/// a mirror.
fn ike_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let version: [u8; 1] = chunk(answer, 17)?;
    let flags: [u8; 1] = chunk(answer, 19)?;
    let is_answer = match version[0] >> 4 {
        2 => flags[0] & 0x20 != 0,
        1 => be64(answer, 8)? != 0 || answer.get(18) == Some(&5),
        _ => return None,
    };
    (answer.len() >= 28 && is_answer).then_some(Judgement::repeats(be64(answer, 0)? == nonce))
}

/// A long header (RFC 9000, section 17.2) whose version is of the pattern that stays reserved (section 15).
fn quic(nonce: u64) -> Vec<u8> {
    let mut packet = [&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8][..], &(!nonce).to_be_bytes(), &[8], &nonce.to_be_bytes()].concat();
    packet.resize(super::MAX_LEN, 0);
    packet
}

/// Version negotiation (section 17.2.1) exchanges our two connection identifiers.
fn quic_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_negotiation = answer.first()? & 0x80 != 0 && answer.get(1..5)? == [0; 4] && answer.get(5) == Some(&8);
    is_negotiation.then_some(Judgement::repeats(be64(answer, 6)? == nonce && answer.get(14) == Some(&8) && be64(answer, 15)? == !nonce))
}

fn dtls(nonce: u64) -> Vec<u8> {
    // ECDHE and RSA with AES-GCM or AES-CBC, PSK with AES-CCM (what constrained devices speak).
    let ciphers: [u16; 8] = [0xc02b, 0xc02f, 0xc02c, 0xc030, 0xc013, 0x009c, 0x002f, 0xc0a8];
    let ciphers: Vec<u8> = ciphers.into_iter().flat_map(u16::to_be_bytes).collect();
    // Supported groups: x25519, P-256; uncompressed points; signatures by RSA and ECDSA with SHA-256 and SHA-1.
    let extensions: [&[u8]; 3] = [&[0, 10, 0, 6, 0, 4, 0, 29, 0, 23], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 10, 0, 8, 4, 1, 4, 3, 2, 1, 2, 3]];
    let extensions = extensions.concat();
    let hello = [
        &[0xfe, 0xfd][..],
        &filler(nonce, 32),
        // Neither session nor cookie.
        &[0, 0],
        &(ciphers.len() as u16).to_be_bytes(),
        &ciphers,
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let len = (hello.len() as u32).to_be_bytes();
    let handshake = [&[1][..], &len[1..], &[0, 0, 0, 0, 0], &len[1..], &hello].concat();
    [&[22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0][..], &(handshake.len() as u16).to_be_bytes(), &handshake].concat()
}

/// An alert, or a handshake that is a HelloVerifyRequest or ServerHello.
fn dtls_judge(_: u64, answer: &[u8]) -> Option<Judgement> {
    let is_dtls = answer.get(1) == Some(&0xfe) && matches!(answer.get(2), Some(0xff | 0xfd | 0xfc));
    let is_answer = match answer.first()? {
        21 => true,
        22 => matches!(answer.get(13), Some(2 | 3)),
        _ => false,
    };
    (is_dtls && is_answer).then_some(Judgement::Plausible)
}

const OPENVPN_RESET_CLIENT: u8 = 7;
const OPENVPN_RESET_SERVER: u8 = 8;

/// The server's reset acknowledges ours by our session's identifier.
fn openvpn_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_answer = answer.first()? >> 3 == OPENVPN_RESET_SERVER;
    is_answer.then(|| Judgement::repeats(contains(answer.get(9..).unwrap_or_default(), &nonce.to_be_bytes())))
}

/// Attributes of a SCCRQ (RFC 2661, section 6.1), all mandatory.
fn l2tp(nonce: u64) -> Vec<u8> {
    let attribute = |kind: u8, value: &[u8]| [&[0x80, value.len() as u8 + 6, 0, 0, 0, kind], value].concat();
    // No tunnel has the number 0.
    let tunnel = (nonce as u16).max(1).to_be_bytes();
    let attributes =
        [attribute(0, &[0, 1]), attribute(2, &[1, 0]), attribute(3, &[0, 0, 0, 3]), attribute(7, b"picket.invalid"), attribute(9, &tunnel)]
            .concat();
    [&[0xc8, 2], &(attributes.len() as u16 + 12).to_be_bytes()[..], &[0; 8], &attributes].concat()
}

/// Answers are sent to the tunnel number that we assigned.
fn l2tp_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_control = answer.len() >= 12 && answer.starts_with(&[0xc8, 2]);
    // Tunnel 0 is that of requests.
    let tunnel = be16(answer, 4)?;
    (is_control && tunnel != 0).then_some(Judgement::repeats(tunnel == (nonce as u16).max(1)))
}

fn radius(nonce: u64) -> Vec<u8> {
    const STATUS_SERVER: u8 = 12;
    // Message-Authenticator (RFC 3579, section 3.2), without a secret to make it right.
    let authenticator = [&[80, 18][..], &filler(!nonce, 16)].concat();
    [&[STATUS_SERVER, nonce as u8, 0, 38][..], &filler(nonce, 16), &authenticator].concat()
}

fn radius_judge(nonce: u64, answer: &[u8]) -> Option<Judgement> {
    let is_answer = matches!(answer.first()?, 2 | 3 | 5 | 11) && usize::from(be16(answer, 2)?) == answer.len() && answer.len() >= 20;
    is_answer.then_some(Judgement::repeats(answer.get(1) == Some(&(nonce as u8))))
}
