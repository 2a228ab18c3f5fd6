//! The probe's own link as engines see it: which addresses are neighbours, and from which address to ask for them.
//!
//! Made from the kernel's tables (`RouteTable::local_link`) when a measurement starts; the loop looks at the tables of the moment
//! again for every packet.
//!
//! It must not know sockets or time.
//!
//! **Invariant:** [`LocalLink::source_for`] answers for an address only if the kernel, too, would ask for its hardware address itself.

use std::net::{IpAddr, Ipv6Addr};

use crate::packet::eth::Mac;

/// A network, and whether its addresses are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) addr: IpAddr,
    pub(super) prefix: u8,
    /// The address to ask from; `None`: not on the link (behind a gateway, forbidden, or this machine itself), or a neighbour whose
    /// hardware address is written down.
    pub(super) source: Option<IpAddr>,
    /// Whether it is an address of this machine.
    pub(super) own: bool,
}

impl Network {
    fn covers(&self, addr: IpAddr) -> bool {
        super::route::covers(self.addr, self.prefix, addr)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLink {
    mac: Mac,
    /// Best first, IPv4 before IPv6; before them the neighbours that nobody is asked for.
    networks: Vec<Network>,
}

impl LocalLink {
    pub(super) fn new(mac: Mac, networks: Vec<Network>) -> Self {
        Self { mac, networks }
    }

    /// Our own hardware address.
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// The address to ask for `addr` from, where `addr` is a neighbour. An IPv4 address may be unspecified (RFC 5227: from nobody).
    pub fn source_for(&self, addr: IpAddr) -> Option<IpAddr> {
        self.networks.iter().find(|network| network.covers(addr))?.source
    }

    /// Whether all of `first..=last` are neighbours, or this machine itself.
    pub fn holds(&self, first: IpAddr, last: IpAddr) -> bool {
        let best = self.networks.iter().find(|network| !network.own && network.covers(first));
        let inside = |network: &&Network| first <= network.addr && network.addr <= last;
        best.is_some_and(|network| network.source.is_some() && network.covers(last))
            && self.networks.iter().filter(inside).all(|network| network.own || network.source.is_some())
    }

    /// The IPv6 networks whose addresses are neighbours, link-local ones included: each once, with its prefix length and the address
    /// to ask from.
    pub fn networks_v6(&self) -> impl Iterator<Item = (Ipv6Addr, u8, Ipv6Addr)> + '_ {
        self.networks.iter().filter_map(|network| match (network.addr, network.source) {
            (IpAddr::V6(addr), Some(IpAddr::V6(source))) if !addr.is_multicast() => Some((addr, network.prefix, source)),
            _ => None,
        })
    }

    /// The IPv4 networks whose addresses are neighbours, with their prefix lengths.
    pub fn networks_v4(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.networks.iter().filter(|n| n.addr.is_ipv4() && n.source.is_some() && n.prefix < 32).map(|n| (n.addr, n.prefix))
    }
}
