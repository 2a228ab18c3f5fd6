//! What a capture on this box needs to know of the box: the interface, the probe's own traffic there, and how a file says where it comes
//! from. Shared by the command line and the agent, as [`crate::station`] is by measurements.
//!
//! It must not know who wants the capture, or what becomes of its packets.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use crate::capture::filter::Own;
use crate::capture::pcapng::{Interface, Section, write};
use crate::capture::source::{ANY, Listen};
use crate::identity::Identity;
use crate::net::netlink::{NetlinkError, snapshot_blocking};
use crate::net::ports::SourcePorts;
use crate::station::{self, StationError};

/// Why there is no interface to listen to.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel does not tell its interfaces.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is none of that name.
    #[error(transparent)]
    Station(#[from] StationError),
}

/// The interface's name, and the addresses that are this box's there. Not to be called inside an asynchronous runtime.
///
/// # Errors
/// There is no such interface, or the kernel does not tell.
pub fn interface(name: Option<&str>) -> Result<(String, Vec<IpAddr>), TapError> {
    let snapshot = snapshot_blocking()?;
    if name == Some(ANY) {
        let all = snapshot.interfaces.iter().flat_map(|interface| &interface.addresses);
        return Ok((ANY.to_owned(), all.map(|address| address.ip).filter(|ip| !ip.is_loopback()).collect()));
    }
    let interface = station::choose(&snapshot, name)?;
    Ok((interface.name.clone(), interface.addresses.iter().map(|address| address.ip).collect()))
}

/// What the probe's own traffic is, and places of the controller whose names cannot be looked up now, each with the reason: the
/// connections there are not known.
pub fn own(addresses: Vec<IpAddr>, identity: Option<&Identity>) -> (Own, Vec<(String, std::io::Error)>) {
    let ports = SourcePorts::default();
    let mut controllers: Vec<SocketAddr> = Vec::new();
    let mut unknown = Vec::new();
    for place in identity.into_iter().flat_map(|identity| identity.brokers().iter().chain(identity.urls())) {
        let place = place.trim_start_matches("https://").trim_end_matches('/');
        match place.to_socket_addrs() {
            Ok(found) => controllers.extend(found),
            Err(error) => unknown.push((place.to_owned(), error)),
        }
    }
    controllers.sort();
    controllers.dedup();
    (Own { addresses, ports: Some((ports.first(), ports.last())), controllers }, unknown)
}

/// What every file begins with: this box, and the interface; `comment` says on whose behalf it was made.
pub fn head(listen: &Listen, link_type: u16, comment: String) -> (Section, Interface) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let section = Section {
        hardware: crate::health::hardware(),
        os: format!("Linux {}", release.trim()).trim_end().to_owned(),
        application: concat!("picket-probe ", env!("CARGO_PKG_VERSION")).to_owned(),
        comment,
    };
    let interface = Interface { link_type, snap_len: listen.snap_len, name: listen.interface.clone(), filter: listen.filter.clone() };
    (section, interface)
}

/// As bytes.
pub fn begun(section: &Section, interface: &Interface) -> Vec<u8> {
    let mut head = Vec::new();
    write::section(section, &mut head);
    write::interface(interface, &mut head);
    head
}
