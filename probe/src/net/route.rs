//! Interfaces, routes and neighbours as the kernel has them, as one pure table: where does a packet for an address go, and
//! from which address. `net::netlink` fills it in.
//!
//! It must not know sockets or time.
//!
//! Only the tables that every system has (local, main, default) are read; policy rules (`ip rule`) are not.
//!
//! Invariant: [`RouteTable::lookup`] never names a next hop that is not on the table's own interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::engine::Source;
use super::onlink::{LocalLink, Network};
use crate::packet::eth::Mac;

/// What kind of link an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceKind {
    /// Ethernet and what behaves like it: frames have hardware addresses.
    Ethernet,
    /// The loopback interface.
    Loopback,
    /// No link-layer header at all: tun, ppp, WireGuard.
    RawIp,
    /// Something else, with its `ARPHRD_` number.
    Other(u16),
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Whether packets may be sent from it: neither tentative nor failed, and not deprecated.
    pub usable: bool,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind of link.
    pub kind: InterfaceKind,
    /// Its hardware address, where it has one.
    pub mac: Option<Mac>,
    /// Largest packet without link-layer header, in bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// What a route says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteAction {
    /// The destination is a neighbour.
    OnLink,
    /// Packets go to a gateway.
    Via(IpAddr),
    /// Blackhole, unreachable, prohibit: nothing goes there.
    Deny,
    /// The destination is this machine.
    Local,
    /// The destination is everybody on the link.
    Broadcast,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The network, host bits zero.
    pub network: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// What it says.
    pub action: RouteAction,
    /// Interface, where the route is bound to one.
    pub interface: Option<u32>,
    /// Source address that the route prefers.
    pub source: Option<IpAddr>,
    /// Lower is better.
    pub metric: u32,
}

/// A neighbour that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelNeighbour {
    /// Its interface.
    pub interface: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
    /// How far the kernel answers for it.
    pub vouched: Vouched,
}

/// How far the kernel answers for a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// Somebody wrote it down to stay (`nud permanent`, `nud noarp`): the kernel itself never asks for it.
    Fixed,
    /// It answered a moment ago.
    Confirmed,
    /// It was seen at some time.
    Seen,
}

/// All of it at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// All routes.
    pub routes: Vec<Route>,
    /// The usable neighbours.
    pub neighbours: Vec<KernelNeighbour>,
}

impl Snapshot {
    /// The interface of that name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface that the kernel would use towards `dst`.
    pub fn interface_towards(&self, dst: IpAddr) -> Option<&Interface> {
        let mut routes: Vec<&Route> = self.routes.iter().filter(|route| route.covers(dst)).collect();
        routes.sort_by_key(|route| route.rank());
        let index = routes.first()?.interface?;
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    /// The interface that measurements use where none is configured: that of the default route (IPv4 before IPv6), else the
    /// first that is up, has an address and is not loopback.
    pub fn default_interface(&self) -> Option<&Interface> {
        let usable = |interface: &&Interface| interface.kind != InterfaceKind::Loopback && interface.up;
        let mut defaults: Vec<&Route> = self.routes.iter().filter(|route| route.prefix == 0).collect();
        defaults.retain(|route| matches!(route.action, RouteAction::OnLink | RouteAction::Via(_)));
        defaults.sort_by_key(|route| (route.network.is_ipv6(), route.metric));
        let by_route = |route: &Route| self.interfaces.iter().filter(usable).find(|i| Some(i.index) == route.interface);
        defaults
            .into_iter()
            .find_map(by_route)
            .or_else(|| self.interfaces.iter().filter(usable).find(|interface| interface.addresses.iter().any(|a| a.usable)))
    }

    /// What concerns the interface of that name.
    pub fn table(self: &Arc<Self>, name: &str) -> Option<RouteTable> {
        self.interface(name).map(|interface| RouteTable::new(interface.clone(), self.routes.clone(), &self.neighbours))
    }
}

impl Route {
    fn covers(&self, dst: IpAddr) -> bool {
        covers(self.network, self.prefix, dst)
    }

    /// Longest prefix first; then the local table as the kernel asks it first; then the metric.
    fn rank(&self) -> (core::cmp::Reverse<u8>, bool, u32) {
        (core::cmp::Reverse(self.prefix), !matches!(self.action, RouteAction::Local | RouteAction::Broadcast), self.metric)
    }
}

/// Whether `dst` lies in the network of `prefix` bits around `network`.
pub(super) fn covers(network: IpAddr, prefix: u8, dst: IpAddr) -> bool {
    match (network, dst) {
        (IpAddr::V4(network), IpAddr::V4(dst)) => same_prefix(u32::from(network).into(), u32::from(dst).into(), prefix, 32),
        (IpAddr::V6(network), IpAddr::V6(dst)) => same_prefix(network.into(), dst.into(), prefix, 128),
        _ => false,
    }
}

fn same_prefix(a: u128, b: u128, prefix: u8, width: u8) -> bool {
    let host_bits = u32::from(width.saturating_sub(prefix));
    (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// Straight to the destination, a neighbour.
    OnLink(IpAddr),
    /// To this gateway, a neighbour.
    Via(IpAddr),
    /// To a group or to all: the hardware address follows from the address.
    Group(Mac),
    /// Nowhere: no route on this interface, or one that forbids it, or the machine itself.
    NoRoute,
}

/// What concerns one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    interface: Interface,
    /// Best first.
    v4: Vec<Route>,
    v6: Vec<Route>,
    neighbours: Vec<KernelNeighbour>,
}

impl RouteTable {
    /// The table of `interface`: its own routes, those that deny, and those that name this machine.
    pub fn new(interface: Interface, mut routes: Vec<Route>, neighbours: &[KernelNeighbour]) -> Self {
        routes.retain(|route| route.interface == Some(interface.index) || matches!(route.action, RouteAction::Deny | RouteAction::Local));
        routes.sort_by_key(Route::rank);
        let (v4, v6) = routes.into_iter().partition(|route| route.network.is_ipv4());
        let neighbours = neighbours.iter().filter(|n| n.interface == interface.index).copied().collect();
        Self { interface, v4, v6, neighbours }
    }

    /// The interface.
    pub const fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The neighbours that the kernel knows on this interface.
    pub fn neighbours(&self) -> &[KernelNeighbour] {
        &self.neighbours
    }

    fn route(&self, dst: IpAddr) -> Option<&Route> {
        let routes = if dst.is_ipv4() { &self.v4 } else { &self.v6 };
        routes.iter().find(|route| route.covers(dst))
    }

    /// Where a packet for `dst` goes.
    pub fn lookup(&self, dst: IpAddr) -> NextHop {
        let broadcast = dst == IpAddr::V4(Ipv4Addr::BROADCAST);
        if dst.is_multicast() {
            return NextHop::Group(Mac::multicast(dst));
        }
        if broadcast {
            return NextHop::Group(Mac::BROADCAST);
        }
        match self.route(dst).map(|route| route.action) {
            Some(RouteAction::OnLink) => NextHop::OnLink(dst),
            Some(RouteAction::Via(gateway)) => NextHop::Via(gateway),
            Some(RouteAction::Broadcast) => NextHop::Group(Mac::BROADCAST),
            Some(RouteAction::Deny | RouteAction::Local) | None => NextHop::NoRoute,
        }
    }

    /// The address to send from to `dst`: the route's own preference, else one in the next hop's network, else the first
    /// usable one of the same scope.
    pub fn source_for(&self, dst: IpAddr) -> Option<IpAddr> {
        let route = self.route(dst);
        if let Some(source) = route.and_then(|route| route.source) {
            return Some(source);
        }
        let near = match route.map(|route| route.action) {
            Some(RouteAction::Via(gateway)) if !is_link_local(gateway) => gateway,
            _ => dst,
        };
        let fits = |address: &&InterfaceAddress| address.usable && address.ip.is_ipv4() == dst.is_ipv4();
        let candidates = || self.interface.addresses.iter().filter(fits);
        let covers = |a: &InterfaceAddress| {
            Route { network: a.ip, prefix: a.prefix, action: RouteAction::OnLink, interface: None, source: None, metric: 0 }.covers(near)
        };
        candidates()
            .find(|address| covers(address))
            .or_else(|| candidates().find(|address| is_link_local(address.ip) == is_link_local(dst)))
            .or_else(|| candidates().next())
            .map(|address| address.ip)
    }

    /// The addresses that engines build their packets with: towards the default route where there is one, else the first of
    /// each family.
    pub fn source(&self) -> Source {
        let pick = |outside: IpAddr, routes: &[Route]| {
            let first = routes.iter().rev().find(|r| matches!(r.action, RouteAction::Via(_) | RouteAction::OnLink));
            let dst = if self.route(outside).is_some() { Some(outside) } else { first.map(|route| route.network) };
            dst.and_then(|dst| self.source_for(dst)).or_else(|| self.source_for(outside))
        };
        // Any address that no site uses would do; these are the documentation prefixes (RFC 5737, RFC 3849).
        let v4 = pick(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), &self.v4);
        let v6 =
            self.source_for(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1))).filter(|address| !is_link_local(*address));
        let v4 = v4.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        let v6 = v6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
        Source { v4, v6 }
    }

    /// The link as engines see it; `None` where links have no hardware addresses.
    pub fn local_link(&self) -> Option<LocalLink> {
        let mac = self.interface.mac.filter(|_| self.interface.kind == InterfaceKind::Ethernet)?;
        let network = |route: &Route| {
            // Nobody answers for a broadcast address, but to ask for it is no mistake.
            let neighbours = matches!(route.action, RouteAction::OnLink | RouteAction::Broadcast);
            let source = if neighbours { self.asking_address(route.network) } else { None };
            Network { addr: route.network, prefix: route.prefix, source, own: route.action == RouteAction::Local }
        };
        // The kernel asks for none of those that were written down, and they may answer nobody who does.
        let fixed = self.neighbours.iter().filter(|neighbour| neighbour.vouched == Vouched::Fixed).map(|neighbour| {
            let prefix = if neighbour.ip.is_ipv4() { 32 } else { 128 };
            Network { addr: neighbour.ip, prefix, source: None, own: false }
        });
        Some(LocalLink::new(mac, fixed.chain(self.v4.iter().chain(&self.v6).map(network)).collect()))
    }

    /// The address to ask for neighbour `ip` from.
    pub fn asking_address(&self, ip: IpAddr) -> Option<IpAddr> {
        // RFC 5227: an ARP probe may come from nobody.
        self.source_for(ip).or(ip.is_ipv4().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
