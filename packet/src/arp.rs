//! ARP for IPv4 over Ethernet (RFC 826), with the values of RFC 5342 and RFC 5227's reading of gratuitous packets.
//!
//! It must not know caches or timing: `net::neighbour` decides whom to ask and whom to believe.

use std::net::Ipv4Addr;

use super::eth::{self, Mac};

/// Length of the packet for Ethernet and IPv4.
pub const LEN: usize = 28;
/// How every packet starts: hardware type Ethernet. An IP packet has its version there, and never these.
pub const FIRST_BYTES: [u8; 2] = [0, 1];
const HARDWARE_ETHERNET: u16 = u16::from_be_bytes(FIRST_BYTES);
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// Hardware address of the sender.
    pub sender_mac: Mac,
    /// Protocol address of the sender.
    pub sender: Ipv4Addr,
    /// Hardware address of the target; meaningless in a request.
    pub target_mac: Mac,
    /// Protocol address of the target.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads an ARP packet (EtherType's payload); `None` for anything but IPv4 over Ethernet, requests and replies.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let p = bytes.first_chunk::<LEN>()?;
        let word = |at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
        if word(0) != HARDWARE_ETHERNET || word(2) != eth::TYPE_IPV4 || p[4] != 6 || p[5] != 4 {
            return None;
        }
        let operation = match word(6) {
            REQUEST => Operation::Request,
            REPLY => Operation::Reply,
            _ => return None,
        };
        let mac = |at: usize| Mac([p[at], p[at + 1], p[at + 2], p[at + 3], p[at + 4], p[at + 5]]);
        let ip = |at: usize| Ipv4Addr::new(p[at], p[at + 1], p[at + 2], p[at + 3]);
        Some(Self { operation, sender_mac: mac(8), sender: ip(14), target_mac: mac(18), target: ip(24) })
    }

    /// The packet's bytes, without an Ethernet header.
    pub fn emit(&self) -> [u8; LEN] {
        let mut p = [0; LEN];
        let operation = match self.operation {
            Operation::Request => REQUEST,
            Operation::Reply => REPLY,
        };
        p[0..2].copy_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        p[2..4].copy_from_slice(&eth::TYPE_IPV4.to_be_bytes());
        p[4] = 6;
        p[5] = 4;
        p[6..8].copy_from_slice(&operation.to_be_bytes());
        p[8..14].copy_from_slice(&self.sender_mac.0);
        p[14..18].copy_from_slice(&self.sender.octets());
        p[18..24].copy_from_slice(&self.target_mac.0);
        p[24..28].copy_from_slice(&self.target.octets());
        p
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::arp::{ArpOperations, ArpPacket};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Arp::parse(&bytes);
        }

        #[test]
        fn round_trip_and_pnet_agree(sender_mac: [u8; 6], sender: [u8; 4], target_mac: [u8; 6], target: [u8; 4], reply: bool, pad in 0..20usize) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let arp = Arp { operation, sender_mac: Mac(sender_mac), sender: sender.into(), target_mac: Mac(target_mac), target: target.into() };
            let mut bytes = arp.emit().to_vec();
            let oracle = ArpPacket::new(&bytes).unwrap();
            prop_assert_eq!(oracle.get_operation(), if reply { ArpOperations::Reply } else { ArpOperations::Request });
            prop_assert_eq!(oracle.get_sender_proto_addr(), arp.sender);
            prop_assert_eq!(oracle.get_target_proto_addr(), arp.target);
            prop_assert!(oracle.get_sender_hw_addr() == sender_mac);
            prop_assert_eq!(oracle.get_protocol_type().0, eth::TYPE_IPV4);
            bytes.resize(bytes.len() + pad, 0);
            prop_assert_eq!(Arp::parse(&bytes), Some(arp));
        }
    }
}
