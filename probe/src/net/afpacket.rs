//! An interface through the kernel's packet sockets.
//!
//! Sending and receiving have sockets of their own: the sending one is bound to no protocol, so the kernel copies nothing
//! into it. On Ethernet frames leave by `sendmmsg` on AF_PACKET. On links without hardware addresses (loopback, tun, ppp)
//! IP packets leave by raw sockets bound to the interface, since the kernel accepts nothing else there; receiving is the
//! same everywhere, without link-layer headers (`SOCK_DGRAM`), behind the filter of `net::filter`.
//!
//! Needs CAP_NET_RAW. It must not know engines or limits.
//!
//! Invariant: the only unsafe code of the program is in this file and in `net::afxdp`: system calls whose arguments the safe
//! wrappers do not offer. Every pointer given to the kernel points into memory that outlives the call.
#![allow(unsafe_code, reason = "sendmmsg, recvmmsg and packet socket options have no safe wrapper that fits")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use super::clock;
use super::filter::Filter;
use super::link::{BATCH, Batch, Framing, Link, LinkCounters, Received, Sent, Stop, Waker};
use super::route::{Interface, InterfaceKind};
use super::time::Instant;
use crate::packet::eth::Mac;
use crate::packet::guard;

/// Bytes kept of a received packet; answers and ICMP errors are shorter.
const SNAP: usize = 2_048;
/// A packet that seems to have waited longer: somebody has set the clock.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Bytes for what comes beside a packet: one time, with room to spare.
const CONTROL: usize = 64;

/// Aligned as the kernel wants it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// How to open an interface.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// What may pass the receive filter.
    pub filter: Filter,
    /// Receive buffer in the kernel, in bytes: default 8 MiB, a quarter of a second of answers at 20k per second.
    pub receive_buffer: usize,
    /// Send buffer in the kernel, in bytes: default 1 MiB.
    pub send_buffer: usize,
    /// Firewall mark of what is sent, by which the kernel's shaper knows it. Needs CAP_NET_ADMIN or a kernel since 5.17.
    pub mark: Option<u32>,
    /// Send past the queueing discipline. Cheaper, but no shaper sees it and a full ring loses without a word.
    pub bypass_qdisc: bool,
}

impl LinkConfig {
    /// Defaults, for answers to TCP, UDP and SCTP source ports `lowest..=highest`.
    pub fn for_ports(lowest: u16, highest: u16) -> Self {
        let filter = Filter { ports: (lowest, highest), protocols: vec![6, 17, 132] };
        Self { filter, receive_buffer: 8 << 20, send_buffer: 1 << 20, mark: None, bypass_qdisc: false }
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
    sender: Sender,
    receiver: OwnedFd,
    buffers: Box<[u8]>,
    /// What the kernel says beside each packet.
    controls: Box<[Control; BATCH]>,
    wake: Arc<EventFd>,
    counters: LinkCounters,
    /// Whether a packet may be waiting: false right after a wait that found none, which saves a system call per wake-up.
    readable: bool,
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
        if let (Sender::Frames { socket, .. }, true) = (&sender, config.bypass_qdisc) {
            set_int(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1).map_err(failed("bypass the queueing discipline"))?;
        }
        let receiver = receiving_socket(interface.index, config).map_err(failed("open the receiving socket"))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(io::Error::from).map_err(failed("make a wake-up"))?;
        let buffers = vec![0; BATCH * SNAP].into_boxed_slice();
        Ok(Self {
            name,
            index: interface.index,
            sender,
            receiver,
            buffers,
            controls: Box::new([Control([0; CONTROL]); BATCH]),
            wake: Arc::new(wake),
            counters: LinkCounters::default(),
            readable: true,
        })
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
        if !core::mem::replace(&mut self.readable, true) {
            return 0;
        }
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut addresses: [libc::sockaddr_ll; BATCH] = unsafe { zeroed() };
        for ((at, buffer), control) in self.buffers.chunks_exact_mut(SNAP).enumerate().zip(self.controls.iter_mut()) {
            vectors[at] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: SNAP };
            let header = &mut messages[at].msg_hdr;
            header.msg_iov = &raw mut vectors[at];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut addresses[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: every message points to a vector, which points to a buffer of SNAP bytes that nothing else uses meanwhile,
        // and to an address and control bytes of the sizes it states. All of them live until the call returns.
        let count = unsafe {
            let wait_for = std::ptr::null_mut();
            libc::recvmmsg(self.receiver.as_raw_fd(), messages.as_mut_ptr(), BATCH as libc::c_uint, libc::MSG_DONTWAIT, wait_for)
        };
        let count = usize::try_from(count).unwrap_or(0);
        let (wall, now) = if count > 0 { (clock::wall(), clock::now()) } else { (SystemTime::UNIX_EPOCH, Instant::ZERO) };
        for (at, buffer) in self.buffers.chunks_exact(SNAP).enumerate().take(count) {
            let address = &addresses[at];
            let src = (address.sll_halen == 6).then(|| {
                let [a, b, c, d, e, f, ..] = address.sll_addr;
                Mac([a, b, c, d, e, f])
            });
            let len = (messages[at].msg_len as usize).min(SNAP);
            if address.sll_pkttype != libc::PACKET_OUTGOING {
                let age = stamp_of(&messages[at].msg_hdr).and_then(|stamp| wall.duration_since(stamp).ok());
                let at = age.filter(|age| *age < AGE_MAX).map(|age| now - age);
                each(Received { ethertype: u16::from_be(address.sll_protocol), src, payload: &buffer[..len], at });
            }
        }
        count
    }

    fn wait(&mut self, until: Instant) -> Instant {
        let now = clock::now();
        let timeout = TimeSpec::from_duration(until.saturating_since(now).min(Duration::from_secs(3_600)));
        let mut fds = [PollFd::new(self.receiver.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        // An interrupted wait is a short wait: the loop looks and waits again.
        let _ = ppoll(&mut fds, Some(timeout), None);
        let [packets, woken] = fds.map(|fd| fd.any() != Some(false));
        self.readable = packets;
        if woken {
            let _ = self.wake.read();
        }
        clock::now()
    }

    fn is_up(&mut self) -> bool {
        let wanted = nix::net::if_::InterfaceFlags::IFF_UP | nix::net::if_::InterfaceFlags::IFF_RUNNING;
        // A new interface of the same name is not the one that the sockets are bound to.
        let same = nix::net::if_::if_nametoindex(self.name.as_str()) == Ok(self.index);
        let ready = |found: nix::ifaddrs::InterfaceAddress| found.interface_name == self.name && found.flags.contains(wanted);
        same && nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(ready))
    }

    fn counters(&mut self) -> LinkCounters {
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, the size of `stats`, and the socket is open.
        let result = unsafe {
            let out = (&raw mut stats).cast();
            libc::getsockopt(self.receiver.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, out, &raw mut len)
        };
        if result == 0 {
            // Reading sets the kernel's counters back to zero.
            self.counters.receive_drops += u64::from(stats.tp_drops);
        }
        self.counters
    }

    fn all_multicast(&mut self, wanted: bool) {
        let name = if wanted { libc::PACKET_ADD_MEMBERSHIP } else { libc::PACKET_DROP_MEMBERSHIP };
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut membership: libc::packet_mreq = unsafe { zeroed() };
        membership.mr_ifindex = self.index.cast_signed();
        membership.mr_type = libc::PACKET_MR_ALLMULTI as libc::c_ushort;
        // The kernel ends a membership that is left over when the socket is closed.
        if let Err(error) = set_option(&self.receiver, libc::SOL_PACKET, name, &[membership]) {
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

/// When the kernel got a packet that was just received, by the wall clock.
#[allow(clippy::unnecessary_cast, reason = "the types of the lengths differ between C libraries")]
fn stamp_of(header: &libc::msghdr) -> Option<SystemTime> {
    // SAFETY: the kernel has filled in the control bytes that the header points to, and how many; they are still there. What is
    // read is found to lie within them first, by its own length.
    let stamp: libc::timespec = unsafe {
        let first = libc::CMSG_FIRSTHDR(header).as_ref()?;
        let wanted = libc::CMSG_LEN(size_of::<libc::timespec>() as libc::c_uint) as usize;
        let is_time = first.cmsg_level == libc::SOL_SOCKET && first.cmsg_type == libc::SCM_TIMESTAMPNS;
        if !is_time || (first.cmsg_len as usize) < wanted || (header.msg_controllen as usize) < wanted {
            return None;
        }
        std::ptr::read_unaligned(libc::CMSG_DATA(first).cast())
    };
    let since = Duration::new(u64::try_from(stamp.tv_sec).ok()?, u32::try_from(stamp.tv_nsec).ok().filter(|nanos| *nanos < 1_000_000_000)?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the returned descriptor is new and ours alone.
    unsafe {
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn bind(socket: &OwnedFd, interface: u32, protocol: u16) -> io::Result<()> {
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

fn set_int(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &[value])
}

fn set_bytes(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    set_option(socket, level, name, value)
}

/// A buffer size: beyond the system's maximum where we may, else up to it.
fn set_buffer(socket: &OwnedFd, forced: i32, plain: i32, bytes: usize) -> io::Result<()> {
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

fn receiving_socket(interface: u32, config: &LinkConfig) -> io::Result<OwnedFd> {
    // No protocol until the filter is attached: nothing may slip in before.
    let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let mut program: Vec<libc::sock_filter> =
        config.filter.program().iter().map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[program])?;
    set_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, config.receive_buffer)?;
    // Only makes round trips more exact.
    let _ = set_int(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    // Old kernels lack it; the filter drops our own packets too, only later.
    let _ = set_int(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1);
    bind(&socket, interface, libc::ETH_P_ALL as u16)?;
    Ok(socket)
}
