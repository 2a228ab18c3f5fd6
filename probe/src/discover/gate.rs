//! Whether policy lets all nodes of the link be asked.
//!
//! ff02::1 is nobody's address: whoever is on the link answers, from addresses that policy may or may not permit. It may be asked where
//! **every** policy (the fleet's and the site's) either names the group itself, or permits one and the same on-link prefix as a
//! whole: who may ask each host of a prefix by itself may ask them all at once. That hosts of another prefix on the same link may
//! answer too is accepted; they are sent nothing else. Unicast addresses are judged each by itself, as always.

use std::net::IpAddr;

use picket_wire::addr::{AddrSet, IpNet};
use picket_wire::policy::{AddressPolicy, Permit};

use super::ALL_NODES;
use crate::net::onlink::LocalLink;

/// What a run of link discovery may send to.
pub fn permits(policies: &[&AddressPolicy], link: &LocalLink) -> impl Fn(IpAddr) -> bool + Send + Sync + use<> {
    let permit = Permit::all_of(policies.iter().copied());
    let whole = |set: &AddrSet| policies.iter().all(|policy| policy.permitted(set) == *set);
    let networks = link.networks_v6().filter(|(addr, _, _)| !addr.is_unicast_link_local());
    let prefixes = networks.filter_map(|(addr, len, _)| IpNet::new(addr.into(), len)).map(|net| AddrSet::from_nets([&net]));
    let all_nodes = permit.permits(ALL_NODES.into()) || prefixes.into_iter().any(|prefix| whole(&prefix));
    move |addr| if addr == IpAddr::V6(ALL_NODES) { all_nodes } else { permit.permits(addr) }
}
