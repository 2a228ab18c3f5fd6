//! A measuring interface in operation: the packet socket, the loop on its thread, and the kernel's tables kept fresh.
//!
//! The agent and the standalone commands both measure through this, so that there is one way a packet can leave.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use picket_wire::event::{Check, SelfTest, Shaper};

use crate::config::{InterfaceConfig, ShaperUse};
use crate::discover;
use crate::net::afpacket::{AfPacket, LinkConfig, LinkError};
use crate::net::afxdp::AfXdp;
use crate::net::drive::{self, DriveHandle, EventSink};
use crate::net::engine::Source;
use crate::net::link::SHAPER_MARK;
use crate::net::netlink::{NetlinkError, Watcher, snapshot_blocking};
use crate::net::onlink::LocalLink;
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::ports::SourcePorts;
use crate::net::route::{Interface, RouteTable, Snapshot};
use crate::packet::eth::Mac;
use crate::scan::report::{Done, Event, ProxySeen, Stats};
use crate::shaper;

/// Why an interface cannot be measured on.
#[derive(Debug, thiserror::Error)]
pub enum StationError {
    /// The kernel's tables cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is no such interface.
    #[error("there is no interface `{name}`; there are {known}")]
    NoSuchInterface {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// None is configured and none offers itself.
    #[error("no interface has an address; name one with `interface.name` or --interface")]
    NoInterface,
    /// The site demands a shaper that is not there.
    #[error("the site demands the kernel's shaper (`interface.shaper`), and there is none: {0}")]
    Unshaped(String),
    /// The socket cannot be opened.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The loop's thread cannot be started.
    #[error("start the packet loop's thread")]
    Thread(#[source] std::io::Error),
}

/// The interface's limits as the pacer takes them.
pub fn limits(config: &InterfaceConfig) -> Limits {
    Limits { packets: Some(config.packets), bits: Some(config.bits), burst: DEFAULT_BURST }
}

/// The interface of that name, or the one that measurements use where none is named.
pub fn choose<'a>(snapshot: &'a Snapshot, name: Option<&str>) -> Result<&'a Interface, StationError> {
    match name {
        None => snapshot.default_interface().ok_or(StationError::NoInterface),
        Some(name) => snapshot.interface(name).ok_or_else(|| StationError::NoSuchInterface {
            name: name.to_owned(),
            known: snapshot.interfaces.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// What the interface offers; the raw socket is judged by opening it.
pub fn self_test(interface: &Interface, raw_socket: Check) -> SelfTest {
    let has = |wanted: fn(&IpAddr) -> bool, family: &str| {
        let found = interface.addresses.iter().any(|address| address.usable && wanted(&address.ip));
        if found { Check::Works } else { Check::Fails(format!("{} has no {family} address to send from", interface.name)) }
    };
    SelfTest {
        raw_socket,
        ipv4: has(IpAddr::is_ipv4, "IPv4"),
        ipv6: has(|ip| matches!(ip, IpAddr::V6(v6) if !v6.is_unicast_link_local()), "global or unique-local IPv6"),
    }
}

/// What link discovery tells, in the words of a scan, which all tasks of a station share; a router, for which those have no word, is
/// given back.
///
/// # Errors
/// A router that announced itself.
pub fn scan_event(event: discover::Event) -> Result<Event, discover::RouterSeen> {
    match event {
        discover::Event::Hosts(hosts) => Ok(Event::Hosts(hosts)),
        discover::Event::Proxy { mac, addresses } => Ok(Event::Proxy(ProxySeen { mac, addresses, reported: 0 })),
        discover::Event::Router(router) => Err(router),
        discover::Event::Done(sums) => {
            let discover::Summary { sent_packets, sent_bytes, hosts: answers, .. } = sums;
            Ok(Event::Done(Done { next: 0, stats: Stats { sent_packets, sent_bytes, answers, ..Stats::default() } }))
        }
    }
}

/// An interface in operation. Dropping it ends the loop and waits for its thread. All its tasks tell events of one kind.
pub struct Station<E: Send + 'static = Event> {
    handle: DriveHandle<E>,
    thread: Option<std::thread::JoinHandle<()>>,
    routes: Arc<Mutex<Arc<RouteTable>>>,
    ports: SourcePorts,
    /// Ends before the loop does.
    watcher: Option<Watcher>,
}

impl<E: Send + 'static> Station<E> {
    /// Opens the interface and starts its loop. What the loop tells goes to `sink`.
    pub fn open(config: &InterfaceConfig, ports: SourcePorts, sink: impl EventSink<E> + 'static) -> Result<Self, StationError> {
        let snapshot = Arc::new(snapshot_blocking()?);
        let name = choose(&snapshot, config.name.as_deref())?.name.clone();
        let table = Arc::new(snapshot.table(&name).ok_or(StationError::NoInterface)?);
        if config.shaper == ShaperUse::Demand
            && let Shaper::Absent(why) = shaper::status(&name, config.shaper)
        {
            return Err(StationError::Unshaped(why));
        }
        let mark = (config.shaper != ShaperUse::Off).then_some(SHAPER_MARK);
        let (link, limits) = (LinkConfig { mark, ..LinkConfig::for_ports(ports.first(), ports.last()) }, limits(config));
        let (handle, thread) = match config.wants_xdp().then(|| AfXdp::open(table.interface(), &link)) {
            Some(Ok(link)) => drive::spawn(link, limits, Arc::clone(&table), sink),
            other => {
                if let Some(Err(error)) = other {
                    log::debug!("sending by AF_PACKET, since {error}");
                }
                drive::spawn(AfPacket::open(table.interface(), &link)?, limits, Arc::clone(&table), sink)
            }
        }
        .map_err(StationError::Thread)?;
        let routes = Arc::new(Mutex::new(table));
        let (newest, teller) = (Arc::clone(&routes), handle.clone());
        let watcher = Watcher::start(move |snapshot| {
            // An interface that vanished keeps its last table; the socket reports that it is down.
            if let Some(table) = snapshot.table(&name).map(Arc::new) {
                *newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&table);
                // The loop ends only together with this watcher.
                let _ = teller.set_routes(table);
            }
        })?;
        Ok(Self { handle, thread: Some(thread), routes, ports, watcher: Some(watcher) })
    }

    /// The way to the loop.
    pub fn handle(&self) -> &DriveHandle<E> {
        &self.handle
    }

    /// The interface as it is now.
    pub fn interface(&self) -> Interface {
        self.table().interface().clone()
    }

    /// Addresses to send from, as they are now.
    pub fn source(&self) -> Source {
        self.table().source()
    }

    /// The neighbours that the kernel knows.
    pub fn neighbours(&self) -> Vec<(IpAddr, Mac)> {
        self.table().neighbours().iter().map(|neighbour| (neighbour.ip, neighbour.mac)).collect()
    }

    /// The interface's own link, where it has hardware addresses.
    pub fn local_link(&self) -> Option<LocalLink> {
        self.table().local_link()
    }

    /// The source ports that pass the receive filter.
    pub fn ports(&self) -> SourcePorts {
        self.ports
    }

    fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<E: Send + 'static> Drop for Station<E> {
    fn drop(&mut self) {
        drop(self.watcher.take());
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the loop was printed by its thread already.
            let _ = thread.join();
        }
    }
}
