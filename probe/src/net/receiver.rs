//! Receiving: a packet socket behind the filter of `net::filter`, whose packets the kernel puts into a ring of memory that both see
//! (`TPACKET_V2`, Linux's `Documentation/networking/packet_mmap.rst`).
//!
//! To look whether something has arrived is to read one word, so a sender that never waits spends nothing on it; and the kernel takes
//! the time of those packets only that pass the filter, where a socket option for times would make it take that of every packet of
//! the machine. Version 3 is made for captures: it shows packets by blocks, a timer's tick late.
//!
//! A packet longer than a place in the ring comes whole by the socket's queue besides, in order; where that has no room it is counted as lost.
//!
//! An interface that goes down leaves an error on the socket, which ends every wait at once until somebody takes it: nothing else reads from the
//! socket ([`Receiver::take_error`]).
//!
//! It must not know engines or limits.
//!
//! Invariant: a place of the ring is read only between the kernel's word that it is ours and our word that it is the kernel's again;
//! no offset or length in it is believed.
#![allow(unsafe_code, reason = "the ring is memory shared with the kernel")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::afpacket::{LinkConfig, bind, set_buffer, set_int, set_option, socket};
use super::clock;
use super::link::{BATCH, Received};
use super::mapping::Mapping;
use crate::packet::eth::Mac;

/// A place in the ring: headers of the ring and a packet of up to 432 bytes, which is more than any answer but those of UDP services
/// and errors that quote a whole packet.
const PLACE: usize = 512;
/// The kernel allocates the ring by blocks, multiples of a page of any size.
const BLOCK: usize = 64 << 10;
/// Bytes kept of a longer packet.
const LONG: usize = 2_048;
/// Memory of the kernel for longer packets that wait.
const LONG_BUFFER: usize = 1 << 20;
/// Where the link-layer address is, behind the header of a place (`TPACKET_ALIGN`).
const ADDRESS_AT: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
/// How often a packet is fetched where the socket tells errors instead.
const RETRIES: usize = 8;
/// A packet that seems to have waited longer: somebody has set the clock.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The receiving half of an interface.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: OwnedFd,
    ring: Mapping,
    /// The place that is filled next.
    next: usize,
    long: Box<[u8]>,
    drops: u64,
    all_multicast: bool,
}

impl Receiver {
    /// Opens the interface with number `interface`, in the calling thread's network namespace.
    pub(super) fn open(interface: u32, config: &LinkConfig) -> io::Result<Self> {
        // No protocol until the filter is attached: nothing may slip in before.
        let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        let mut program: Vec<libc::sock_filter> =
            config.filter.program().iter().map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        let len = u16::try_from(program.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[program])?;
        set_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, LONG_BUFFER)?;
        // Old kernels lack it; the filter drops our own packets too, only later.
        let _ = set_int(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1);
        let ring = ring(&socket, config.receive_ring)?;
        bind(&socket, interface, libc::ETH_P_ALL as u16)?;
        Ok(Self { socket, ring, next: 0, long: vec![0; LONG].into_boxed_slice(), drops: 0, all_multicast: false })
    }

    /// Gives at most [`BATCH`] packets that have arrived to `each`, and returns how many.
    pub(super) fn receive(&mut self, each: &mut dyn FnMut(Received<'_>)) -> usize {
        let mut read_at = None;
        for count in 0..BATCH {
            let place = self.next * PLACE;
            let Some(word) = self.ring.word(place) else { return count };
            let status = word.load(Ordering::Acquire);
            if status & libc::TP_STATUS_USER == 0 {
                return count;
            }
            let (wall, now) = *read_at.get_or_insert_with(|| (clock::wall(), clock::now()));
            let queued = status & libc::TP_STATUS_COPY != 0;
            let long = if queued { long(&self.socket, &mut self.long) } else { None };
            // SAFETY: the word has said that the place is ours, and says so until it is stored anew below.
            if let Some(entry) = unsafe { entry(&self.ring, place) }
                && entry.address.sll_pkttype != libc::PACKET_OUTGOING
            {
                let age = entry.stamp.and_then(|stamp| wall.duration_since(stamp).ok());
                let received = |payload| Received {
                    ethertype: u16::from_be(entry.address.sll_protocol),
                    src: (entry.address.sll_halen == 6).then(|| {
                        let [a, b, c, d, e, f, ..] = entry.address.sll_addr;
                        Mac([a, b, c, d, e, f])
                    }),
                    payload,
                    at: age.filter(|age| *age < AGE_MAX).map(|age| now - age),
                };
                match long.or((!entry.is_cut).then_some(entry.packet)) {
                    Some(packet) => each(received(packet)),
                    // There was no room for all of it.
                    None => self.drops += 1,
                }
            }
            word.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % (self.ring.len() / PLACE);
        }
        BATCH
    }

    /// Takes the error that an interface leaves when it goes down: whether it is up is asked elsewhere.
    pub(super) fn take_error(&self) {
        let _ = nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::SocketError);
    }

    /// Packets that passed the filter and found no room, so far.
    pub(super) fn drops(&mut self) -> u64 {
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, the size of `stats`, and the socket is open.
        let result = unsafe {
            let out = (&raw mut stats).cast();
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, out, &raw mut len)
        };
        if result == 0 {
            // Reading sets the kernel's counters back to zero.
            self.drops += u64::from(stats.tp_drops);
        }
        self.drops
    }

    /// Whether packets to all multicast groups of interface number `interface` are received. The kernel ends a membership that is
    /// left over when the socket is closed.
    pub(super) fn all_multicast(&mut self, interface: u32, wanted: bool) -> io::Result<()> {
        // The kernel counts how often it was told.
        if wanted == self.all_multicast {
            return Ok(());
        }
        let name = if wanted { libc::PACKET_ADD_MEMBERSHIP } else { libc::PACKET_DROP_MEMBERSHIP };
        // SAFETY: a plain C structure for which all-zero bytes are a valid value.
        let mut membership: libc::packet_mreq = unsafe { zeroed() };
        membership.mr_ifindex = interface.cast_signed();
        membership.mr_type = libc::PACKET_MR_ALLMULTI as libc::c_ushort;
        set_option(&self.socket, libc::SOL_PACKET, name, &[membership])?;
        self.all_multicast = wanted;
        Ok(())
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes a ring of `bytes`, rounded up to blocks, and maps it.
fn ring(socket: &OwnedFd, bytes: usize) -> io::Result<Mapping> {
    let blocks = bytes.div_ceil(BLOCK).max(1);
    let count = |value: usize| libc::c_uint::try_from(value).map_err(io::Error::other);
    let request = libc::tpacket_req {
        tp_block_size: count(BLOCK)?,
        tp_block_nr: count(blocks)?,
        tp_frame_size: count(PLACE)?,
        tp_frame_nr: count(blocks * (BLOCK / PLACE))?,
    };
    set_int(socket, libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)?;
    set_int(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, LONG as i32)?;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &[request])?;
    Mapping::new(blocks * BLOCK, Some((socket, 0)))
}

/// What a place holds.
struct Entry<'a> {
    address: libc::sockaddr_ll,
    packet: &'a [u8],
    /// Whether the packet is longer than what fits here.
    is_cut: bool,
    /// When the kernel got it, by the wall clock.
    stamp: Option<SystemTime>,
}

/// Reads the place at `offset`; `None` where what it says of itself does not lie within it.
///
/// # Safety
/// The place must be ours while the entry is in use.
unsafe fn entry(ring: &Mapping, offset: usize) -> Option<Entry<'_>> {
    // SAFETY: `at` found it inside the mapping and aligned; any bytes are numbers; the caller vouches that nobody writes there.
    let header = unsafe { ring.at::<libc::tpacket2_hdr>(offset)?.read() };
    // SAFETY: as above.
    let address = unsafe { ring.at::<libc::sockaddr_ll>(offset + ADDRESS_AT)?.read() };
    let (start, len) = (usize::from(header.tp_net), header.tp_snaplen as usize);
    if start.checked_add(len)? > PLACE {
        return None;
    }
    // SAFETY: the caller vouches that nobody writes there.
    let packet = unsafe { ring.bytes(offset + start, len)? };
    let nanos = Some(header.tp_nsec).filter(|nanos| *nanos < 1_000_000_000);
    let stamp = nanos.and_then(|nanos| SystemTime::UNIX_EPOCH.checked_add(Duration::new(header.tp_sec.into(), nanos)));
    Some(Entry { address, packet, is_cut: header.tp_len > header.tp_snaplen, stamp })
}

/// The packet at the front of the socket's queue, as much of it as there is room for. An error of the interface is told once, and before the packet.
fn long<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    for _ in 0..RETRIES {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let len = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(len) {
            Ok(len) => return buffer.get(..len),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => {}
        }
    }
    None
}
