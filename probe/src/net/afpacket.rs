//! An interface through the kernel's packet sockets.
//!
//! Sending and receiving have sockets of their own: the sending one is bound to no protocol, so the kernel copies nothing
//! into it. On Ethernet frames leave by `sendmmsg` on AF_PACKET. On links without hardware addresses (loopback, tun, ppp)
//! IP packets leave by raw sockets bound to the interface, since the kernel accepts nothing else there; receiving is the
//! same everywhere, without link-layer headers (`net::receiver`).
//!
//! Needs CAP_NET_RAW. It must not know engines or limits.
//!
//! Invariant: the only unsafe code of the program is here, in `net::receiver`, `net::mapping` and `net::afxdp`: system calls whose
//! arguments the safe wrappers do not offer, and memory shared with the kernel. Every pointer given to the kernel points into memory
//! that outlives the call.
#![allow(unsafe_code, reason = "sendmmsg and packet socket options have no safe wrapper that fits")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use super::clock;
use super::filter::Filter;
use super::link::{BATCH, Batch, Framing, Link, LinkCounters, Received, Sent, Stop, Waker};
use super::receiver::Receiver;
use super::route::{Interface, InterfaceKind};
use super::time::Instant;
use crate::packet::eth::Mac;
use crate::packet::guard;

/// How to open an interface.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// What may pass the receive filter.
    pub filter: Filter,
    /// Memory for packets that have arrived and were not looked at, in bytes, 512 for each: default 4 MiB, which is 8,192 packets, four
    /// tenths of a second at 20,000 per second.
    pub receive_ring: usize,
    /// Send buffer in the kernel, in bytes: default 1 MiB.
    pub send_buffer: usize,
    /// Firewall mark of what is sent, by which the kernel's shaper knows it. Needs CAP_NET_ADMIN or a kernel since 5.17.
    pub mark: Option<u32>,
}

impl LinkConfig {
    /// Defaults, for answers to TCP, UDP and SCTP source ports `lowest..=highest`.
    pub fn for_ports(lowest: u16, highest: u16) -> Self {
        let filter = Filter { ports: (lowest, highest), protocols: vec![6, 17, 132] };
        Self { filter, receive_ring: 4 << 20, send_buffer: 1 << 20, mark: None }
    }
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The process may not open packet sockets.
    #[error("open a packet socket on `{interface}`: permission denied; it needs CAP_NET_RAW (run as root, or `setcap cap_net_raw+ep`)")]
    Permission {
        /// The interface.
        interface: String,
    },
    /// A kind of link that is neither Ethernet nor plain IP.
    #[error(
        "interface `{interface}` is of a kind (ARPHRD {kind}) that packets cannot be sent on; choose an Ethernet, tun, ppp or loopback interface"
    )]
    Kind {
        /// The interface.
        interface: String,
        /// Its `ARPHRD_` number.
        kind: u16,
    },
    /// An Ethernet interface without an address.
    #[error("Ethernet interface `{interface}` has no hardware address")]
    NoMac {
        /// The interface.
        interface: String,
    },
    /// A system call failed.
    #[error("{operation} on `{interface}`")]
    Io {
        /// The interface.
        interface: String,
        /// What was being done.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Where packets leave.
#[derive(Debug)]
enum Sender {
    Frames { socket: OwnedFd, mac: Mac },
    Packets { v4: OwnedFd, v6: Option<OwnedFd> },
}

/// An open interface.
#[derive(Debug)]
pub struct AfPacket {
    name: String,
    index: u32,
    config: LinkConfig,
    sender: Sender,
    /// Not while nobody wants to listen.
    receiver: Option<Receiver>,
    /// Drops of receivers that were closed.
    drops: u64,
    /// Whether it was told that nothing can be received.
    told: bool,
    wake: Arc<EventFd>,
}

impl AfPacket {
    /// Opens `interface`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// Where the kind of link cannot be used, the process lacks CAP_NET_RAW, or the kernel refuses.
    pub fn open(interface: &Interface, config: &LinkConfig) -> Result<Self, LinkError> {
        let name = interface.name.clone();
        let failed = |operation| {
            let interface = name.clone();
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => LinkError::Permission { interface },
                _ => LinkError::Io { interface, operation, source },
            }
        };
        let sender = match interface.kind {
            InterfaceKind::Ethernet => {
                let mac = interface.mac.ok_or_else(|| LinkError::NoMac { interface: name.clone() })?;
                let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(failed("open a sending socket"))?;
                bind(&socket, interface.index, 0).map_err(failed("bind the sending socket"))?;
                Sender::Frames { socket, mac }
            }
            InterfaceKind::Loopback | InterfaceKind::RawIp => {
                let open = |family| {
                    let socket = socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
                    set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes())?;
                    Ok::<_, io::Error>(socket)
                };
                let v4 = open(libc::AF_INET).map_err(failed("open a raw IPv4 socket"))?;
                Sender::Packets { v4, v6: open(libc::AF_INET6).ok() }
            }
            InterfaceKind::Other(kind) => return Err(LinkError::Kind { interface: name, kind }),
        };
        for socket in sender.sockets() {
            set_send_options(socket, config).map_err(failed("set up the sending socket"))?;
        }
        let receiver = Receiver::open(interface.index, config).map(Some).map_err(failed("open the receiving socket"))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(io::Error::from).map_err(failed("make a wake-up"))?;
        Ok(Self { name, index: interface.index, config: config.clone(), sender, receiver, drops: 0, told: false, wake: Arc::new(wake) })
    }

    fn open_receiver(&mut self) -> bool {
        match Receiver::open(self.index, &self.config) {
            Ok(receiver) => (self.receiver, self.told) = (Some(receiver), false),
            // It is tried as often as an interface that is down is looked at.
            Err(error) if !core::mem::replace(&mut self.told, true) => {
                log::warn!("nothing can be received on `{}`, so measurements wait: {error}", self.name);
            }
            Err(_) => {}
        }
        self.receiver.is_some()
    }

    /// Calls `sendmmsg` for frames that all go by `socket`, `addresses` by their place in the batch.
    fn send_by(socket: RawFd, batch: &Batch, from: usize, count: usize, bare: bool) -> io::Result<usize> {
        let count = count.min(BATCH);
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut addresses: [libc::sockaddr_in6; BATCH] = unsafe { zeroed() };
        for at in 0..count {
            let frame = batch.frame(from + at);
            vectors[at] = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            messages[at].msg_hdr.msg_iov = &raw mut vectors[at];
            messages[at].msg_hdr.msg_iovlen = 1;
            if bare {
                messages[at].msg_hdr.msg_namelen = write_address(&mut addresses[at], guard::destination(frame));
                messages[at].msg_hdr.msg_name = (&raw mut addresses[at]).cast();
            }
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` messages point to one vector each, which points to a frame of `batch`; the kernel only
        // reads frames and addresses. All of them live until the call returns.
        let sent = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), count as libc::c_uint, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The run of frames from `from` that one socket can send.
    fn run(&self, batch: &Batch, from: usize, count: usize) -> Option<(RawFd, usize, bool)> {
        match &self.sender {
            Sender::Frames { socket, .. } => Some((socket.as_raw_fd(), count - from, false)),
            Sender::Packets { v4, v6 } => {
                let version = |at: usize| batch.frame(at).first().map(|first| first >> 4);
                let first = version(from);
                let len = (from..count).take_while(|at| version(*at) == first).count();
                let socket = if first == Some(6) { v6.as_ref()? } else { v4 };
                Some((socket.as_raw_fd(), len, true))
            }
        }
    }
}

impl Sender {
    fn sockets(&self) -> impl Iterator<Item = &OwnedFd> {
        match self {
            Sender::Frames { socket, .. } => [Some(socket), None],
            Sender::Packets { v4, v6 } => [Some(v4), v6.as_ref()],
        }
        .into_iter()
        .flatten()
    }
}

impl Link for AfPacket {
    fn framing(&self) -> Framing {
        match self.sender {
            Sender::Frames { mac, .. } => Framing::Ethernet { mac },
            Sender::Packets { .. } => Framing::Bare,
        }
    }

    fn send(&mut self, _now: Instant, batch: &Batch, count: usize) -> Sent {
        let count = count.min(batch.len());
        let (mut sent, mut stop) = (0, None);
        while sent < count && stop.is_none() {
            let Some((socket, len, bare)) = self.run(batch, sent, count) else {
                stop = Some(Stop::NoRoute);
                break;
            };
            match Self::send_by(socket, batch, sent, len, bare) {
                Ok(taken) => sent += taken,
                Err(error) => stop = stop_of(&error),
            }
        }
        Sent { count: sent, stop, done: clock::now() }
    }

    fn receive(&mut self, each: &mut dyn FnMut(Received<'_>)) -> usize {
        self.receiver.as_mut().map_or(0, |receiver| receiver.receive(each))
    }

    fn wait(&mut self, until: Instant) -> Instant {
        let now = clock::now();
        let timeout = TimeSpec::from_duration(until.saturating_since(now).min(Duration::from_secs(3_600)));
        let heard = self.receiver.as_ref().map_or(self.wake.as_fd(), AsFd::as_fd);
        let mut fds = [heard, self.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // An interrupted wait is a short wait: the loop looks and waits again.
        let _ = ppoll(&mut fds, Some(timeout), None);
        if let Some(receiver) = &self.receiver
            && fds[0].revents().is_none_or(|events| events.contains(PollFlags::POLLERR))
        {
            receiver.take_error();
        }
        if fds[1].any() != Some(false) {
            let _ = self.wake.read();
        }
        clock::now()
    }

    fn listen(&mut self, wanted: bool) -> bool {
        if wanted {
            return self.receiver.is_some() || self.open_receiver();
        }
        self.drops = self.counters().receive_drops;
        self.receiver = None;
        true
    }

    fn is_up(&mut self) -> bool {
        let wanted = nix::net::if_::InterfaceFlags::IFF_UP | nix::net::if_::InterfaceFlags::IFF_RUNNING;
        // A new interface of the same name is not the one that the sockets are bound to.
        let same = nix::net::if_::if_nametoindex(self.name.as_str()) == Ok(self.index);
        let ready = |found: nix::ifaddrs::InterfaceAddress| found.interface_name == self.name && found.flags.contains(wanted);
        same && nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(ready))
    }

    fn counters(&mut self) -> LinkCounters {
        LinkCounters { receive_drops: self.drops + self.receiver.as_mut().map_or(0, Receiver::drops) }
    }

    fn all_multicast(&mut self, wanted: bool) {
        if let Some(receiver) = &mut self.receiver
            && let Err(error) = receiver.all_multicast(self.index, wanted)
        {
            log::warn!("receiving of all multicast groups on `{}` cannot be changed ({error}); hosts may stay unseen", self.name);
        }
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Waker::new(move || {
            // It can only fail when the counter is full, and then the loop is awake.
            let _ = wake.write(1);
        })
    }
}

pub(super) fn stop_of(error: &io::Error) -> Option<Stop> {
    match error.raw_os_error() {
        Some(libc::EINTR) => None,
        Some(libc::ENOBUFS | libc::EAGAIN | libc::ENOMEM) => Some(Stop::Full),
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Some(Stop::Down),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL) => Some(Stop::NoRoute),
        other => Some(Stop::Rejected(other.unwrap_or(libc::EIO))),
    }
}

/// Fills in where a bare packet goes and returns the length of that. A raw socket's port must be zero.
fn write_address(address: &mut libc::sockaddr_in6, dst: Option<IpAddr>) -> libc::socklen_t {
    match dst {
        Some(IpAddr::V6(ip)) => {
            address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            address.sin6_addr.s6_addr = ip.octets();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
        Some(IpAddr::V4(ip)) => {
            let v4 = (&raw mut *address).cast::<libc::sockaddr_in>();
            // SAFETY: sockaddr_in is smaller than sockaddr_in6, of the same alignment, and valid for any bytes.
            unsafe {
                (*v4).sin_family = libc::AF_INET as libc::sa_family_t;
                (*v4).sin_addr.s_addr = u32::from(ip).to_be();
            }
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        None => 0,
    }
}

pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the returned descriptor is new and ours alone.
    unsafe {
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

pub(super) fn bind(socket: &OwnedFd, interface: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: a plain C structure for which all-zero bytes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    // SAFETY: the address is of the length that is stated, and is only read.
    let result = unsafe {
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, values: &[T]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(values)).map_err(io::Error::other)?;
    // SAFETY: `values` is `len` bytes long and only read; the kernel keeps no pointer to it (a filter program is copied).
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, values.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_int(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &[value])
}

fn set_bytes(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    set_option(socket, level, name, value)
}

/// A buffer size: beyond the system's maximum where we may, else up to it.
pub(super) fn set_buffer(socket: &OwnedFd, forced: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    set_int(socket, libc::SOL_SOCKET, forced, bytes).or_else(|_| set_int(socket, libc::SOL_SOCKET, plain, bytes))
}

fn set_send_options(socket: &OwnedFd, config: &LinkConfig) -> io::Result<()> {
    set_buffer(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, config.send_buffer)?;
    if let Some(mark) = config.mark
        && let Err(error) = set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, &[mark])
    {
        log::warn!("cannot mark packets for the kernel's shaper ({error}); the pacer alone limits them");
    }
    Ok(())
}
