//! Hosts seen on a probe's own link: who is there, with which hardware address, and how that was learnt.
//!
//! Such hosts need not be targets of a job: an echo request to all nodes finds addresses that nobody could have listed.

use core::fmt;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::LeaseId;
use crate::units::UnixMillis;

/// Hosts seen on a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBatch {
    /// The lease that asked for them.
    pub lease: LeaseId,
    /// When the last of them was seen, by the probe's trusted clock.
    pub at: UnixMillis,
    /// The hosts, at most [`crate::result::EXTRAS_MAX`].
    pub hosts: Vec<HostSeen>,
}

/// One host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostSeen {
    /// Its address.
    pub addr: IpAddr,
    /// Its hardware address, where it is known.
    pub mac: Option<HardwareAddress>,
    /// How it was learnt.
    pub how: SeenBy,
}

/// A hardware address of 48 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HardwareAddress(pub [u8; 6]);

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How a host was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeenBy {
    /// It answered an ARP request.
    Arp,
    /// It answered an ARP request, as it answers for a suspicious number of addresses: a proxy, and nothing is said about hosts
    /// behind it.
    ProxyArp,
    /// It answered a neighbour solicitation.
    Neighbour,
    /// It answered an echo request to all nodes.
    AllNodes,
    /// It sent a router advertisement.
    RouterAdvertisement,
    /// It reported membership of a multicast group.
    Multicast,
    /// An address that was guessed (from a hardware address or the other family's address) answered.
    Guessed,
}

impl SeenBy {
    /// The text form, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SeenBy::Arp => "arp",
            SeenBy::ProxyArp => "proxy-arp",
            SeenBy::Neighbour => "neighbour",
            SeenBy::AllNodes => "all-nodes",
            SeenBy::RouterAdvertisement => "router-advertisement",
            SeenBy::Multicast => "multicast",
            SeenBy::Guessed => "guessed",
        }
    }
}
