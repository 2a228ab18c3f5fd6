//! The last look at a packet before it leaves: where does it really go?
//!
//! Invariant: an address is only ever returned for a packet that ends at that address: its lengths are consistent and it
//! carries no source route that would send it on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// The destination of an IP packet that is about to leave; `None` where the packet is malformed or source-routed
/// (RFC 791, section 3.1; RFC 8200, section 4.4).
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => destination_v4(packet).map(IpAddr::V4),
        6 => destination_v6(packet).map(IpAddr::V6),
        _ => None,
    }
}

fn destination_v4(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    if usize::from(u16::from_be_bytes([header[2], header[3]])) != packet.len() {
        return None;
    }
    let mut options = packet.get(20..header_len)?;
    while let Some((kind, rest)) = options.split_first() {
        options = match *kind {
            OPTION_END => break,
            OPTION_NOP => rest,
            OPTION_LSRR | OPTION_SSRR => return None,
            _ => options.get(usize::from(*rest.first()?).max(2)..)?,
        };
    }
    Some(Ipv4Addr::new(header[16], header[17], header[18], header[19]))
}

fn destination_v6(packet: &[u8]) -> Option<Ipv6Addr> {
    let (header, mut rest) = packet.split_first_chunk::<40>()?;
    if usize::from(u16::from_be_bytes([header[4], header[5]])) != rest.len() {
        return None;
    }
    let mut next = header[6];
    while matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
        next = *rest.first()?;
        rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
    }
    let address: [u8; 16] = header[24..40].try_into().ok()?;
    (next != ROUTING).then_some(Ipv6Addr::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(options: &[u8]) -> Vec<u8> {
        let len = 20 + options.len();
        let mut packet = vec![0; 20];
        packet[0] = 0x40 | u8::try_from(len / 4).unwrap();
        packet[3] = u8::try_from(len).unwrap();
        packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
        packet.extend(options);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[5] = u8::try_from(payload.len()).unwrap();
        packet[6] = next;
        packet[39] = 1;
        packet.extend(payload);
        packet
    }

    #[test]
    fn plain_packets() {
        assert_eq!(destination(&v4(&[])), "192.0.2.1".parse().ok());
        assert_eq!(destination(&v4(&[1, 1, 68, 4, 0, 0, 0, 0])), "192.0.2.1".parse().ok());
        assert_eq!(destination(&v6(58, &[])), "::1".parse().ok());
        assert_eq!(destination(&v6(0, &[58, 0, 0, 0, 0, 0, 0, 0])), "::1".parse().ok());
    }

    #[test]
    fn source_routes_and_wrong_lengths_go_nowhere() {
        assert_eq!(destination(&v4(&[1, 131, 7, 4, 198, 18, 0, 1])), None);
        assert_eq!(destination(&v4(&[137, 7, 4, 198, 18, 0, 1, 0])), None);
        assert_eq!(destination(&v6(43, &[58, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(destination(&v6(60, &[43, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(destination(&v4(&[])[..19]), None);
        assert_eq!(destination(&[&v4(&[])[..], &[0]].concat()), None);
        assert_eq!(destination(&[]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), version in prop_oneof![Just(4u8), Just(6u8)]) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = version << 4 | *first & 0xf; }
            let _ = destination(&bytes);
        }
    }
}
