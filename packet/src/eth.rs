//! Ethernet II frames, with 802.1Q tags on the way in (IEEE 802.3, clause 3; IEEE 802.1Q, clause 9).
//!
//! It must not know what the payload means.

use core::fmt;

/// Length of the header that we write: no tag.
pub const HEADER_LEN: usize = 14;
/// Length of the shortest frame, without its check sequence: what is shorter is padded on the wire (IEEE 802.3, clause 3.2.8).
pub const FRAME_MIN: usize = 60;
/// EtherType of IPv4 (RFC 894).
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6 (RFC 2464).
pub const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_QINQ: u16 = 0x88a8;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether it names one station: neither a group address nor all zero.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// The group address of an IP multicast group (RFC 1112, section 6.4; RFC 2464, section 7).
    pub const fn multicast(group: std::net::IpAddr) -> Mac {
        match group {
            std::net::IpAddr::V4(group) => {
                let [_, b, c, d] = group.octets();
                Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d])
            }
            std::net::IpAddr::V6(group) => {
                let o = group.octets();
                Mac([0x33, 0x33, o[12], o[13], o[14], o[15]])
            }
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A frame whose header is known to be complete.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    dst: Mac,
    src: Mac,
    vlan: Option<u16>,
    ethertype: u16,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Looks at `bytes` as a frame with at most two VLAN tags; `None` where the header is not complete.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (dst, rest) = bytes.split_first_chunk::<6>()?;
        let (src, mut rest) = rest.split_first_chunk::<6>()?;
        let mut vlan = None;
        for _ in 0..3 {
            let (ethertype, payload) = rest.split_first_chunk::<2>()?;
            let ethertype = u16::from_be_bytes(*ethertype);
            if !matches!(ethertype, TYPE_VLAN | TYPE_QINQ) {
                return Some(Self { dst: Mac(*dst), src: Mac(*src), vlan, ethertype, payload });
            }
            let (tag, inner) = payload.split_first_chunk::<2>()?;
            vlan = vlan.or(Some(u16::from_be_bytes(*tag) & 0x0fff));
            rest = inner;
        }
        None
    }

    /// Destination address.
    pub const fn dst(&self) -> Mac {
        self.dst
    }

    /// Source address.
    pub const fn src(&self) -> Mac {
        self.src
    }

    /// VLAN of the outermost tag, where there is one; 0 is a priority tag.
    pub const fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    /// EtherType behind all tags.
    pub const fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// What follows the header; may end in padding.
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The header of a frame that we send.
pub const fn header(dst: Mac, src: Mac, ethertype: u16) -> [u8; HEADER_LEN] {
    let (d, s, t) = (dst.0, src.0, ethertype.to_be_bytes());
    [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5], t[0], t[1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::{Packet, ethernet::EthernetPacket};
    use proptest::prelude::*;

    #[test]
    fn multicast_groups() {
        assert_eq!(Mac::multicast("224.129.2.3".parse().unwrap()).to_string(), "01:00:5e:01:02:03");
        assert_eq!(Mac::multicast("ff02::1:ff01:203".parse().unwrap()).to_string(), "33:33:ff:01:02:03");
    }

    #[test]
    fn tags_are_taken_off() {
        let mut bytes = vec![2; 12];
        bytes.extend([0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x20, 0x05, 0x08, 0x00, 0x45]);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.vlan(), frame.ethertype(), frame.payload()), (Some(7), TYPE_IPV4, &[0x45][..]));
    }

    proptest! {
        #[test]
        fn never_panics_and_agrees_with_pnet(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(frame) = Frame::parse(&bytes)
                && frame.vlan().is_none()
            {
                let oracle = EthernetPacket::new(&bytes).unwrap();
                prop_assert_eq!(frame.ethertype(), oracle.get_ethertype().0);
                prop_assert_eq!(frame.payload(), oracle.payload());
                let mac = oracle.get_source();
                prop_assert_eq!(frame.src(), Mac([mac.0, mac.1, mac.2, mac.3, mac.4, mac.5]));
            }
        }

        #[test]
        fn what_is_written_reads_back(dst: [u8; 6], src: [u8; 6], payload: Vec<u8>) {
            let mut bytes = header(Mac(dst), Mac(src), TYPE_IPV6).to_vec();
            bytes.extend(&payload);
            let frame = Frame::parse(&bytes).unwrap();
            prop_assert_eq!((frame.dst(), frame.src(), frame.ethertype()), (Mac(dst), Mac(src), TYPE_IPV6));
            prop_assert_eq!(frame.payload(), &payload[..]);
        }
    }
}
