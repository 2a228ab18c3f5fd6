//! Every packet parser.

use picket_probe::packet::{arp, checksum, eth, guard, icmp, ip, ndp, tcp};

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
    let _ = (ndp::Neighbour::parse(bytes), guard::destination(bytes), tcp::provoked_reset(bytes), checksum::checksum(bytes));
    let _ = (tcp::Segment::parse(bytes), tcp::Start::parse(bytes));
    for packet in [ip::Packet::parse(bytes), ip::Packet::parse_quote(bytes)].into_iter().flatten() {
        let _ = icmp::Message::parse(&packet);
        let _ = (tcp::Segment::parse(packet.payload()), tcp::Start::parse(packet.payload()));
        assert!(packet.payload().len() <= bytes.len());
    }
}
