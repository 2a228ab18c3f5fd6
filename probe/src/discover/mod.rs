//! Finding the IPv6 hosts of the probe's own link, where there are too many addresses to ask for each.
//!
//! ```text
//!  engine   what is sent and heard, as net::engine::Engine          guess   addresses that a host may have, from what is known of it
//!  gate     whether policy lets all nodes be asked                  tests   whole runs on a simulated link
//! ```
//!
//! Three ways at once, for a second and a half (longer while answers come):
//!
//! 1. **All nodes are asked** by an echo request to ff02::1, from the link-local address and from one of each on-link prefix: a host
//!    answers with an address that fits the source, so that both kinds show. Twice, since a multicast is never repeated by the link.
//! 2. **Others are overheard**: routers by their advertisements (RFC 4861, section 6), with prefixes and flags; hosts by reports of the groups
//!    they listen to (RFC 2710, RFC 3810), for which the interface takes all multicasts while this runs; addresses by announcements
//!    (unsolicited neighbour advertisements). None of it is provoked: it is what happens to be sent meanwhile.
//! 3. **Addresses are guessed** from what is known of a station, under each on-link prefix: from its hardware address (RFC 4291, appendix
//!    A), from the interface identifier of another address of it, from its IPv4 address (`::5`, `::192.0.2.5`), from the solicited-node
//!    groups that it listens to. A guess is asked for by a neighbour solicitation and told only if it is answered.
//!
//! **What is believed.** An echo reply must repeat a keyed cookie, so it comes from somebody who heard the request. All else
//! on a link can be said by anybody there, and is told as what it is ([`SeenBy`](picket_wire::host::SeenBy)); nothing of it makes us
//! send to an address that policy forbids, nor to more than [`engine::QUESTIONS_MAX`].
//!
//! **Proxies.** A router that answers solicitations for whole prefixes (RFC 4389) would make every guess a host. Under each
//! prefix an address is asked for that nobody can have, made from the run's key: who answers for that one, or for suspiciously many
//! ([`crate::net::proxy`]), is not believed as to guesses. They are told at the end for that reason.
//!
//! Hosts with privacy addresses (RFC 8981) and names for stable ones (RFC 7217) are found by the first two ways alone: no guess hits
//! them. Hosts that answer no echo to groups (Windows by default) are found by the other two.
//!
//! It must not know links, clocks, routes, the controller or scans.
//!
//! **Invariant:** an address is told at most once, and `Guessed` or `Neighbour` only if it answered a solicitation of ours.

pub mod engine;
pub mod gate;

mod guess;

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use picket_wire::addr::AddrSet;
use picket_wire::host::{HardwareAddress, HostSeen};
use picket_wire::job::LINK_SOURCES_MAX;

use crate::net::onlink::LocalLink;
use crate::packet::eth::Mac;
use crate::packet::ndp::PrefixInfo;

/// All nodes of a link (RFC 4291, section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct LinkPlan {
    /// The link.
    pub link: LocalLink,
    /// Only addresses of this set are told, guessed or asked for; `None`: all of the link.
    pub within: Option<AddrSet>,
    /// Stations that are known already: addresses of either family with hardware addresses, from the kernel's neighbours or a scan.
    pub seeds: Vec<(IpAddr, Mac)>,
    /// How long is listened at least. Default 1.5 s.
    pub listen: Duration,
    /// Random, fresh for each run: it makes the cookies and the addresses that nobody has.
    pub key: [u8; 16],
}

impl LinkPlan {
    /// The whole link, nothing known of it.
    pub fn new(link: LocalLink, key: [u8; 16]) -> Self {
        Self { link, within: None, seeds: Vec::new(), listen: Duration::from_millis(1_500), key }
    }

    /// Whether an address is one that is wanted.
    fn wants(&self, addr: Ipv6Addr) -> bool {
        self.within.as_ref().is_none_or(|within| within.contains(IpAddr::V6(addr)))
    }

    /// Our own addresses to ask all nodes from: one for each network, the link-local one first, and sixty-four at most.
    fn sources(&self) -> Vec<Ipv6Addr> {
        let sources: BTreeSet<(bool, Ipv6Addr)> =
            self.link.networks_v6().map(|(_, _, source)| (!source.is_unicast_link_local(), source)).collect();
        sources.into_iter().map(|(_, source)| source).take(LINK_SOURCES_MAX.into()).collect()
    }

    /// The on-link prefixes under which addresses are guessed: those of 64 bits and shorter, but for the link-local one, whose hosts all
    /// answer to all nodes or not at all.
    fn prefixes(&self) -> Vec<Ipv6Addr> {
        let networks = self.link.networks_v6().filter(|(addr, len, _)| *len > 0 && *len <= 64 && !addr.is_unicast_link_local());
        networks.map(|(addr, _, _)| addr).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Hosts, each address once.
    Hosts(Vec<HostSeen>),
    /// A router, each once.
    Router(RouterSeen),
    /// A hardware address that answers for others: its answers to guesses are not told. Comes before the end.
    Proxy {
        /// Who answers.
        mac: HardwareAddress,
        /// For how many of the addresses asked.
        addresses: u64,
    },
    /// Nothing more will come.
    Done(Summary),
}

/// A router that announced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterSeen {
    /// Its link-local address.
    pub addr: Ipv6Addr,
    /// Its hardware address.
    pub mac: Option<HardwareAddress>,
    /// For how many seconds it serves as a default router; 0: it does not.
    pub lifetime: u16,
    /// Whether addresses are given out by DHCPv6.
    pub managed: bool,
    /// Whether other configuration is given out by DHCPv6.
    pub other: bool,
    /// The prefixes that it announces.
    pub prefixes: Vec<PrefixInfo>,
}

impl core::fmt::Display for RouterSeen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "router {}", self.addr)?;
        if let Some(mac) = self.mac {
            write!(f, " ({mac})")?;
        }
        let flags = [(self.lifetime == 0, "not a default router"), (self.managed, "DHCPv6"), (self.other, "DHCPv6 for other settings")];
        flags.iter().filter(|(set, _)| *set).try_for_each(|(_, text)| write!(f, ", {text}"))?;
        self.prefixes.iter().try_for_each(|info| {
            let on_link = if info.on_link { "on the link" } else { "not on the link" };
            let autonomous = if info.autonomous { ", autonomous" } else { "" };
            write!(f, "; {}/{} {on_link}{autonomous}", info.prefix, info.len)
        })
    }
}

/// Sums over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Packets sent.
    pub sent_packets: u64,
    /// Their bytes from the IP header on.
    pub sent_bytes: u64,
    /// Hosts told.
    pub hosts: u64,
    /// Addresses asked for by solicitation.
    pub asked: u64,
    /// Of those, how many answered.
    pub answered: u64,
    /// Addresses, and rounds of all nodes, that policy forbade to ask.
    pub refused: u64,
    /// Hosts and guesses that there was no room for.
    pub dropped: u64,
}
