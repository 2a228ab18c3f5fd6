//! What lies in front of a packet on links of all kinds, as capture libraries hand it out (LINKTYPE_ values of pcapng).
//!
//! It must not know what the packet means.

use super::eth::{self, Frame, Mac};

/// Ethernet.
pub const ETHERNET: u16 = 1;
/// A bare IP packet.
pub const RAW_IP: u16 = 101;
/// Linux's cooked header, version 1: what the interface `any` gave once.
pub const COOKED: u16 = 113;
/// Linux's cooked header, version 2, which tells the interface.
pub const COOKED_2: u16 = 276;

/// A packet without what its link put in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside<'a> {
    /// Hardware addresses of source and destination, where the link tells them.
    pub macs: Option<(Mac, Mac)>,
    /// Outermost VLAN.
    pub vlan: Option<u16>,
    /// The kernel's number of the interface, where the header tells it.
    pub interface: Option<u32>,
    /// EtherType of what follows.
    pub ethertype: u16,
    /// What follows; may be cut, or end in padding.
    pub payload: &'a [u8],
}

/// Takes the link's header off; `None` where it is not complete, or of a link that is not known here.
pub fn inside(link_type: u16, bytes: &[u8]) -> Option<Inside<'_>> {
    let bare = |ethertype, payload| Inside { macs: None, vlan: None, interface: None, ethertype, payload };
    match link_type {
        ETHERNET => {
            let frame = Frame::parse(bytes)?;
            let macs = Some((frame.src(), frame.dst()));
            Some(Inside { macs, vlan: frame.vlan(), ..bare(frame.ethertype(), frame.payload()) })
        }
        RAW_IP => match bytes.first()? >> 4 {
            4 => Some(bare(eth::TYPE_IPV4, bytes)),
            6 => Some(bare(eth::TYPE_IPV6, bytes)),
            _ => None,
        },
        COOKED => {
            let (header, payload) = bytes.split_first_chunk::<16>()?;
            Some(bare(u16::from_be_bytes([header[14], header[15]]), payload))
        }
        COOKED_2 => {
            let (header, payload) = bytes.split_first_chunk::<20>()?;
            let interface = Some(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
            Some(Inside { interface, ..bare(u16::from_be_bytes([header[0], header[1]]), payload) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_taken_off() {
        let ipv6 = [0x60, 1, 2, 3];
        let frame = [&eth::header(Mac::BROADCAST, Mac([2; 6]), eth::TYPE_IPV6)[..], &ipv6].concat();
        let found = inside(ETHERNET, &frame).unwrap();
        assert_eq!((found.macs, found.ethertype, found.payload), (Some((Mac([2; 6]), Mac::BROADCAST)), eth::TYPE_IPV6, &ipv6[..]));
        let found = inside(RAW_IP, &ipv6).unwrap();
        assert_eq!((found.macs, found.ethertype, found.payload), (None, eth::TYPE_IPV6, &ipv6[..]));
        let cooked = [&[0, 4, 0, 1, 0, 6, 2, 2, 2, 2, 2, 2, 0, 0, 0x86, 0xdd][..], &ipv6].concat();
        assert_eq!(inside(COOKED, &cooked), Some(found));
        let cooked = [&[0x86, 0xdd, 0, 0, 0, 0, 0, 7, 0, 1, 4, 6, 2, 2, 2, 2, 2, 2, 0, 0][..], &ipv6].concat();
        assert_eq!(inside(COOKED_2, &cooked), Some(Inside { interface: Some(7), ..found }));
        assert_eq!(inside(RAW_IP, &[0x10]), None);
        assert_eq!(inside(105, &frame), None);
    }

    proptest! {
        #[test]
        fn never_panics(link in prop::sample::select(vec![ETHERNET, RAW_IP, COOKED, COOKED_2]), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(found) = inside(link, &bytes) {
                prop_assert!(found.payload.len() <= bytes.len());
            }
        }
    }
}
