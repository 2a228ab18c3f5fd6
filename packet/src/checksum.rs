//! The Internet checksum (RFC 1071), over one slice or several, and over the pseudo-headers of IPv4 and IPv6.
//!
//! Invariant: the order of [`Checksum::add`] calls does not matter as long as every slice but the last has an even length.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A running ones'-complement sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// An empty sum.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds the bytes as big-endian 16-bit words; an odd last byte is padded with zero (RFC 1071, section 4.1).
    pub fn add(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            self.0 += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        let rest = words.remainder();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.0 += u64::from(u32::from_be_bytes(last));
    }

    /// Adds one 16-bit word.
    pub const fn add_u16(&mut self, word: u16) {
        self.0 += word as u64;
    }

    /// Adds the IPv4 pseudo-header (RFC 9293, section 3.1; RFC 768).
    pub fn add_pseudo_v4(&mut self, src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) {
        self.add(&src.octets());
        self.add(&dst.octets());
        self.add_u16(u16::from(protocol));
        self.add_u16(len);
    }

    /// Adds the IPv6 pseudo-header (RFC 8200, section 8.1).
    pub fn add_pseudo_v6(&mut self, src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, len: u32) {
        self.add(&src.octets());
        self.add(&dst.octets());
        self.add(&len.to_be_bytes());
        self.add_u16(u16::from(next_header));
    }

    /// The value for the header's checksum field. Zero when the sum covers a correct checksum already.
    pub const fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

/// The checksum of one run of bytes, such as an IPv4 header or an ICMP message.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Checksum::new();
    sum.add(bytes);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    proptest! {
        #[test]
        fn same_as_pnet(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            // pnet pads an odd byte the same way; word 1000 is out of range, so nothing is skipped.
            prop_assert_eq!(checksum(&bytes), pnet_packet::util::checksum(&bytes, 1000));
        }

        #[test]
        fn a_filled_in_checksum_verifies(mut bytes in proptest::collection::vec(any::<u8>(), 2..200)) {
            bytes[0] = 0;
            bytes[1] = 0;
            let sum = checksum(&bytes);
            bytes[..2].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(checksum(&bytes), 0);
        }
    }
}
