//! Every packet parser.

use picket_packet::{arp, checksum, eth, extension, guard, icmp, ip, ndp, payload, provoked, sctp, tcp, udp};

/// A frame as it comes from a link.
pub(crate) fn frame(bytes: &[u8]) {
    if let Some(frame) = eth::Frame::parse(bytes) {
        packet(frame.payload());
    }
}

/// A packet without its link-layer header, read in every way that a packet may be read.
pub(crate) fn packet(bytes: &[u8]) {
    if let Some(message) = arp::Arp::parse(bytes) {
        let again = arp::Arp::parse(&message.emit());
        assert_eq!(again, Some(message), "what was built reads as it was meant");
    }
    let _ = (ndp::Neighbour::parse(bytes), guard::destination(bytes), provoked::provoked_reply(bytes), checksum::checksum(bytes));
    let _ = (
        tcp::Segment::parse(bytes),
        tcp::Start::parse(bytes),
        udp::Datagram::parse(bytes),
        sctp::Answer::parse(bytes),
        sctp::Start::parse(bytes),
    );
    for packet in [ip::Packet::parse(bytes), ip::Packet::parse_quote(bytes)].into_iter().flatten() {
        let _ = (icmp::Message::parse(&packet), extension::Extensions::parse(&packet));
        let _ = (tcp::Segment::parse(packet.payload()), tcp::Start::parse(packet.payload()));
        assert!(packet.payload().len() <= bytes.len());
    }
}

/// What answers a UDP question: the first bytes choose the question and its nonce.
pub(crate) fn answer(bytes: &[u8]) {
    let Some((head, answer)) = bytes.split_first_chunk::<9>() else { return };
    let [which, nonce @ ..] = *head;
    let Some(question) = payload::catalogue().nth(usize::from(which)) else { return };
    let nonce = u64::from_be_bytes(nonce);
    let _ = question.judge(nonce, answer);
    // A host that sends back what it got has not answered, or has, but nothing breaks.
    let _ = question.judge(nonce, &question.bytes(nonce));
}
