//! Reads [`Snapshot`]s from the kernel by rtnetlink, and watches for changes on a thread of its own.
//!
//! Invariant: decides nothing; what a route means is `net::route`'s.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHopFlags, RouteType, RouteVia};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::oneshot;

use super::route::{Interface, InterfaceAddress, InterfaceKind, KernelNeighbour, Route, RouteAction, Snapshot, Vouched};
use crate::packet::eth::Mac;

/// How often the neighbours are read again even if nothing was reported: they change without notice to us.
const REFRESH: Duration = Duration::from_secs(15);
/// A change seldom comes alone.
const SETTLE: Duration = Duration::from_millis(50);

/// Why the kernel's tables cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("open a netlink socket to read interfaces and routes")]
    Open(#[source] std::io::Error),
    /// The kernel refused a question.
    #[error("read {what} from the kernel")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Reads everything once. Takes some milliseconds; must be called inside a tokio runtime with IO.
///
/// # Errors
/// When the socket cannot be opened or the kernel refuses a dump.
pub async fn snapshot() -> Result<Snapshot, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
    let task = tokio::spawn(connection);
    let result = read(&handle).await;
    task.abort();
    result
}

/// [`snapshot`] for callers without a runtime. It opens its socket in the calling thread's network namespace.
///
/// # Errors
/// As [`snapshot`].
pub fn snapshot_blocking() -> Result<Snapshot, NetlinkError> {
    runtime()?.block_on(snapshot())
}

fn runtime() -> Result<tokio::runtime::Runtime, NetlinkError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NetlinkError::Open)
}

/// Keeps telling `changed` the newest snapshot, from a thread of its own; dropping it ends the thread.
#[derive(Debug)]
pub struct Watcher {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    /// Starts to watch, in the calling thread's network namespace, and tells the first snapshot before it returns.
    ///
    /// # Errors
    /// When the first snapshot cannot be read.
    pub fn start(mut changed: impl FnMut(Arc<Snapshot>) + Send + 'static) -> Result<Watcher, NetlinkError> {
        let (stop, stopped) = oneshot::channel();
        // A new thread inherits the caller's namespace, so the sockets may be opened there.
        let (first, started) = std::sync::mpsc::channel();
        let run = move || {
            let work = runtime().and_then(|runtime| {
                let newest = Arc::new(runtime.block_on(snapshot())?);
                changed(newest.clone());
                let _ = first.send(Ok(()));
                runtime.block_on(watch(newest, &mut changed, stopped))
            });
            if let Err(error) = work
                && let Err(std::sync::mpsc::SendError(Err(error))) = first.send(Err(error))
            {
                log::error!("stopped watching interfaces and routes: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("picket-netlink".into()).spawn(run).map_err(NetlinkError::Open)?;
        match started.recv() {
            Ok(Ok(())) => Ok(Watcher { stop: Some(stop), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(NetlinkError::Open(std::io::Error::other("the watching thread ended"))),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn watch(
    mut newest: Arc<Snapshot>,
    changed: &mut (impl FnMut(Arc<Snapshot>) + Send),
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), NetlinkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    loop {
        tokio::select! {
            _ = &mut stopped => return Ok(()),
            message = messages.next() => {
                if message.is_none() {
                    return Err(NetlinkError::Open(std::io::Error::other("the kernel closed the netlink socket")));
                }
                tokio::time::sleep(SETTLE).await;
                while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, messages.next()).await {}
            }
            () = tokio::time::sleep(REFRESH) => {}
        }
        match read(&handle).await {
            Ok(snapshot) if snapshot != *newest => {
                newest = Arc::new(snapshot);
                changed(newest.clone());
            }
            Ok(_) => {}
            Err(error) => log::warn!("keeping the old interfaces and routes: {error}"),
        }
    }
}

async fn read(handle: &Handle) -> Result<Snapshot, NetlinkError> {
    let failed = |what| move |source| NetlinkError::Read { what, source };
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed("interfaces"))?;
    let mut interfaces: Vec<Interface> = links.iter().map(interface).collect();
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    for message in &addresses {
        if let Some(interface) = interfaces.iter_mut().find(|interface| interface.index == message.header.index) {
            interface.addresses.extend(address(message));
        }
    }
    let mut routes = Vec::new();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for (family, unspecified) in [(v4, IpAddr::from([0; 4])), (v6, IpAddr::from([0; 16]))] {
        let dump: Vec<RouteMessage> = handle.route().get(family).execute().try_collect().await.map_err(failed("routes"))?;
        for message in &dump {
            routes_of(message, unspecified, &mut routes);
        }
    }
    let dump: Vec<NeighbourMessage> = handle.neighbours().get().execute().try_collect().await.map_err(failed("neighbours"))?;
    let neighbours = dump.iter().filter_map(neighbour).collect();
    Ok(Snapshot { interfaces, routes, neighbours })
}

fn interface(message: &LinkMessage) -> Interface {
    let kind = match message.header.link_layer_type {
        LinkLayerType::Ether => InterfaceKind::Ethernet,
        LinkLayerType::Loopback => InterfaceKind::Loopback,
        LinkLayerType::None | LinkLayerType::Ppp | LinkLayerType::Rawip => InterfaceKind::RawIp,
        other => InterfaceKind::Other(other.into()),
    };
    let up = LinkFlags::Up | LinkFlags::LowerUp;
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        kind,
        mac: None,
        mtu: 1500,
        up: message.header.flags.contains(up),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) if kind == InterfaceKind::Ethernet => {
                interface.mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac);
            }
            _ => {}
        }
    }
    interface
}

fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let (mut local, mut peer, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    let bad = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    local.or(peer).map(|ip| InterfaceAddress { ip, prefix: message.header.prefix_len, usable: !flags.intersects(bad) })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn hop(attributes: &[RouteAttribute]) -> (Option<IpAddr>, Option<u32>) {
    let (mut gateway, mut interface) = (None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    (gateway, interface)
}

/// The routes of one message: a multipath route becomes one route per live hop, of which the first on an interface wins.
fn routes_of(message: &RouteMessage, unspecified: IpAddr, routes: &mut Vec<Route>) {
    const TABLE_DEFAULT: u32 = 253;
    const TABLE_LOCAL: u32 = 255;
    let (mut network, mut source, mut metric, mut table) = (unspecified, None, 0, u32::from(message.header.table));
    let mut paths: Vec<(Option<IpAddr>, Option<u32>)> = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => network = ip_of(address).unwrap_or(network),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::MultiPath(hops) => {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                let live = hops.iter().filter(|hop| !hop.flags.intersects(dead));
                paths.extend(live.map(|next| (hop(&next.attributes).0, Some(next.interface_index))));
            }
            _ => {}
        }
    }
    if !(TABLE_DEFAULT..=TABLE_LOCAL).contains(&table) {
        return;
    }
    if paths.is_empty() {
        paths.push(hop(&message.attributes));
    }
    for (gateway, interface) in paths {
        let action = match (message.header.kind, gateway) {
            (RouteType::Unicast, Some(gateway)) => RouteAction::Via(gateway),
            (RouteType::Unicast, None) => RouteAction::OnLink,
            (RouteType::Local | RouteType::Anycast, _) => RouteAction::Local,
            (RouteType::Broadcast, _) => RouteAction::Broadcast,
            (RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit, _) => RouteAction::Deny,
            _ => continue,
        };
        routes.push(Route { network, prefix: message.header.destination_prefix_length, action, interface, source, metric });
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<KernelNeighbour> {
    let vouched = match message.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => Vouched::Fixed,
        NeighbourState::Reachable => Vouched::Confirmed,
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => Vouched::Seen,
        _ => return None,
    };
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::V6(*address)),
            NeighbourAttribute::LinkLocalAddress(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
            _ => {}
        }
    }
    let mac = mac.filter(|mac| mac.is_unicast())?;
    Some(KernelNeighbour { interface: message.header.ifindex, ip: ip?, mac, vouched })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_a_loopback_interface() {
        let snapshot = snapshot_blocking().unwrap();
        let lo = snapshot.interface("lo").expect("every namespace has one");
        assert_eq!((lo.kind, lo.mac), (InterfaceKind::Loopback, None));
    }

    #[test]
    fn a_watcher_tells_the_first_snapshot_and_ends() {
        let (tell, told) = std::sync::mpsc::channel();
        let watcher = Watcher::start(move |snapshot| tell.send(snapshot).unwrap()).unwrap();
        assert!(told.try_recv().unwrap().interface("lo").is_some());
        drop(watcher);
    }
}
