//! Sending by AF_XDP: frames go from memory shared with the kernel straight to the driver, past the queueing discipline and
//! everything that listens on packet sockets. Receiving stays with AF_PACKET ([`super::afpacket`]).
//!
//! Copy mode, send only, queue 0. In copy mode the kernel takes frames while it is in our `sendto` and at no other time, so
//! what it has not taken when the call returns can be written anew or taken back; nothing waits in the ring behind our back.
//!
//! What it does not do: no kernel shaper sees these frames, and no capture on this machine does. So it is for interfaces that
//! may send fast and whose site does not insist on the shaper ([`crate::station`] decides).
//!
//! It must not know engines or limits.
//!
//! **Invariant:** no index that the kernel writes is used before it is masked and found to lie within what is outstanding; a
//! chunk of memory belongs to the kernel from when its frame is taken until its completion is read.
//!
//! Invariant: all unsafe code here is system calls and the memory shared with the kernel, behind `Mapping`.
#![allow(unsafe_code, reason = "AF_XDP has no safe wrapper: its rings are memory shared with the kernel")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::afpacket::{AfPacket, LinkConfig, LinkError, set_option, stop_of};
use super::clock;
use super::link::{Batch, Framing, Link, LinkCounters, Received, Sent, Stop, Waker};
use super::mapping::Mapping;
use super::route::{Interface, InterfaceKind};
use super::time::Instant;
use crate::packet::eth;

/// Room for one frame; the least that the kernel takes.
const CHUNK: usize = 2_048;
/// Frames that may be on their way: at a million per second a millisecond, which is longer than drivers sit on what they sent.
const CHUNKS: u32 = 1_024;
/// Places in the ring of what is to be sent: several batches.
const TX_PLACES: u32 = 256;
/// Places in the ring of what was sent: every chunk fits, so that the kernel never waits for us to read it.
const DONE_PLACES: u32 = CHUNKS;
/// The ring of memory to receive into, which the kernel wants to exist.
const FILL_PLACES: u32 = 64;
/// A queue stays taken for up to half a second after its socket was closed.
const BIND_PATIENCE: Duration = Duration::from_millis(800);
const BIND_RETRY: Duration = Duration::from_millis(20);
/// Frames that one `sendto` may take, since Linux 6.17 (`XDP_MAX_TX_SKB_BUDGET`); 32 before.
const TX_BUDGET_OPTION: libc::c_int = 9;

/// Why AF_XDP cannot be used here; AF_PACKET can.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The link has no Ethernet header.
    #[error("interface `{interface}` is not Ethernet")]
    Kind {
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
    /// The receiving half cannot be used.
    #[error(transparent)]
    Packet(#[from] LinkError),
}

/// An open interface that sends by AF_XDP.
#[derive(Debug)]
pub struct AfXdp {
    base: AfPacket,
    /// The longest frame that the device takes: the kernel would drop longer ones, and say that it is busy.
    longest: usize,
    socket: OwnedFd,
    sender: Sender,
}

impl AfXdp {
    /// Opens `interface`, in the calling thread's network namespace. May take most of a second where the queue was in use
    /// just before.
    ///
    /// # Errors
    /// Where the kernel lacks AF_XDP, the link is not Ethernet, or something else has the queue.
    pub fn open(interface: &Interface, config: &LinkConfig) -> Result<Self, XdpError> {
        let name = interface.name.clone();
        if interface.kind != InterfaceKind::Ethernet {
            return Err(XdpError::Kind { interface: name });
        }
        let (socket, sender) =
            Sender::open(interface.index, config).map_err(|(operation, source)| XdpError::Io { interface: name, operation, source })?;
        let longest = eth::HEADER_LEN + interface.mtu as usize;
        Ok(Self { base: AfPacket::open(interface, config)?, longest, socket, sender })
    }
}

impl Link for AfXdp {
    fn framing(&self) -> Framing {
        self.base.framing()
    }

    fn send(&mut self, _now: Instant, batch: &Batch, count: usize) -> Sent {
        let socket = &self.socket;
        let count = count.min(batch.len());
        let fit = (0..count).take_while(|at| batch.frame(*at).len() <= self.longest).count();
        if fit == 0 && count > 0 {
            return Sent { count: 0, stop: Some(Stop::Rejected(libc::EMSGSIZE)), done: clock::now() };
        }
        let (count, mut stop) = self.sender.send(batch, fit, |_| send_to(socket));
        // A device without a carrier drops what it is given, and only that.
        if count == 0 && stop == Some(Stop::Full) && !self.base.is_up() {
            stop = Some(Stop::Down);
        }
        Sent { count, stop, done: clock::now() }
    }

    fn receive(&mut self, each: &mut dyn FnMut(Received<'_>)) -> usize {
        self.base.receive(each)
    }

    fn wait(&mut self, until: Instant) -> Instant {
        self.base.wait(until)
    }

    fn listen(&mut self, wanted: bool) -> bool {
        self.base.listen(wanted)
    }

    fn is_up(&mut self) -> bool {
        self.base.is_up()
    }

    fn counters(&mut self) -> LinkCounters {
        self.base.counters()
    }

    fn all_multicast(&mut self, wanted: bool) {
        self.base.all_multicast(wanted);
    }

    fn waker(&self) -> Waker {
        self.base.waker()
    }
}

/// One ring: where its index words and its entries are, all found to lie in its memory.
#[derive(Debug)]
struct Ring {
    memory: Mapping,
    producer: usize,
    consumer: usize,
    entries: usize,
    places: u32,
}

impl Ring {
    fn map<T>(socket: &OwnedFd, page: u64, at: &libc::xdp_ring_offset, places: u32) -> io::Result<Self> {
        let odd = || io::Error::other("the kernel's ring offsets make no sense");
        let offset = |value: u64| usize::try_from(value).map_err(|_| odd());
        let (producer, consumer, entries) = (offset(at.producer)?, offset(at.consumer)?, offset(at.desc)?);
        let len = entries.checked_add(places as usize * size_of::<T>()).ok_or_else(odd)?;
        let ring = Self { memory: Mapping::new(len, Some((socket, page)))?, producer, consumer, entries, places };
        let sound = ring.memory.word(producer).is_some() && ring.memory.word(consumer).is_some() && ring.entry::<T>(0).is_some();
        sound.then_some(ring).ok_or_else(odd)
    }

    /// The place of entry number `index`, counted without end.
    fn entry<T>(&self, index: u32) -> Option<NonNull<T>> {
        self.memory.at(self.entries + (index & (self.places - 1)) as usize * size_of::<T>())
    }

    fn load(&self, word: usize) -> u32 {
        self.memory.word(word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, word: usize, value: u32) {
        if let Some(word) = self.memory.word(word) {
            word.store(value, Ordering::Release);
        }
    }
}

/// The sending half: what lies in the rings, and whose memory is whose.
#[derive(Debug)]
struct Sender {
    memory: Mapping,
    tx: Ring,
    done: Ring,
    /// The chunk in each place of the ring; `None` for a place that was taken back.
    places: Vec<Option<u32>>,
    /// Chunks that nobody uses.
    free: Vec<u32>,
    /// Which chunks are in the ring or with the kernel.
    lent: Vec<bool>,
    /// One past the last entry that was written.
    written: u32,
    /// One past the last entry that the kernel has taken.
    taken: u32,
    /// Completions read.
    collected: u32,
}

type Failed = (&'static str, io::Error);

impl Sender {
    fn open(interface: u32, config: &LinkConfig) -> Result<(OwnedFd, Self), Failed> {
        let socket = socket().map_err(|error| ("open an AF_XDP socket", error))?;
        let memory = Mapping::new(CHUNK * CHUNKS as usize, None).map_err(|error| ("map memory for frames", error))?;
        register(&socket, &memory).map_err(|error| ("register memory for frames", error))?;
        let size = |option, places: u32| set_option(&socket, libc::SOL_XDP, option, &[places]);
        size(libc::XDP_UMEM_FILL_RING, FILL_PLACES)
            .and_then(|()| size(libc::XDP_UMEM_COMPLETION_RING, DONE_PLACES))
            .and_then(|()| size(libc::XDP_TX_RING, TX_PLACES))
            .map_err(|error| ("make the rings", error))?;
        // Only spares system calls; older kernels lack it.
        let _ = size(TX_BUDGET_OPTION, TX_PLACES);
        let send_buffer = i32::try_from(config.send_buffer).unwrap_or(i32::MAX);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &[send_buffer])
            .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &[send_buffer]))
            .map_err(|error| ("set the send buffer", error))?;
        let offsets = offsets(&socket).map_err(|error| ("ask for the rings", error))?;
        let tx = Ring::map::<libc::xdp_desc>(&socket, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, TX_PLACES)
            .map_err(|error| ("map the sending ring", error))?;
        let done = Ring::map::<u64>(&socket, libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, DONE_PLACES)
            .map_err(|error| ("map the completion ring", error))?;
        bind(&socket, interface).map_err(|error| ("bind the AF_XDP socket", error))?;
        Ok((socket, Self::new(memory, tx, done)))
    }

    fn new(memory: Mapping, tx: Ring, done: Ring) -> Self {
        Self {
            memory,
            tx,
            done,
            places: vec![None; TX_PLACES as usize],
            free: (0..CHUNKS).rev().collect(),
            lent: vec![false; CHUNKS as usize],
            written: 0,
            taken: 0,
            collected: 0,
        }
    }

    /// Sends the first `count` frames in order; how many the kernel took, and why not all. `look` makes the kernel look at the
    /// rings.
    fn send(&mut self, batch: &Batch, count: usize, look: impl FnMut(&Self) -> io::Result<()>) -> (usize, Option<Stop>) {
        self.collect();
        let first = self.taken;
        // What an earlier call left in the ring is written over: the same frames, if nobody has changed his mind.
        let waiting = self.written.wrapping_sub(first);
        let mut placed = 0;
        while (placed as usize) < count && placed < TX_PLACES && self.place(first.wrapping_add(placed), batch.frame(placed as usize)) {
            placed += 1;
        }
        for at in placed..waiting {
            self.take_back(first.wrapping_add(at));
        }
        self.written = first.wrapping_add(placed.max(waiting));
        self.tx.store(self.tx.producer, self.written);
        let (sent, stop) = self.kick(placed as usize, look);
        // No memory for a frame is no room for it.
        (sent, stop.or((sent < count).then_some(Stop::Full)))
    }

    /// Writes a frame into a place of the ring; false when no chunk is free.
    fn place(&mut self, index: u32, frame: &[u8]) -> bool {
        let at = (index & (TX_PLACES - 1)) as usize;
        let held = if index.wrapping_sub(self.taken) < self.written.wrapping_sub(self.taken) { self.places[at] } else { None };
        let Some(chunk) = held.or_else(|| self.free.pop()) else { return false };
        let start = chunk as usize * CHUNK;
        // Frames are shorter than a chunk; a longer one would be cut by the batch already.
        let (true, Ok(len)) = (frame.len() <= CHUNK && self.memory.write(start, frame), u32::try_from(frame.len())) else {
            return false;
        };
        self.lent[chunk as usize] = true;
        self.places[at] = Some(chunk);
        self.describe(index, libc::xdp_desc { addr: start as u64, len, options: 0 });
        true
    }

    /// Makes a place one that the kernel passes over: it skips descriptions that are not valid. No option may be set: after a
    /// part of a packet that is not valid it would skip the rest of that packet, which is the next frame.
    fn take_back(&mut self, index: u32) {
        let at = (index & (TX_PLACES - 1)) as usize;
        if let Some(chunk) = self.places[at].take() {
            self.give_back(chunk);
        }
        self.describe(index, libc::xdp_desc { addr: u64::MAX, len: 0, options: 0 });
    }

    fn describe(&mut self, index: u32, description: libc::xdp_desc) {
        if let Some(place) = self.tx.entry::<libc::xdp_desc>(index) {
            // SAFETY: `entry` found it inside the mapping and aligned; the kernel reads it only while it is in `sendto`.
            unsafe { place.write_volatile(description) };
        }
    }

    fn give_back(&mut self, chunk: u32) {
        if let Some(lent) = self.lent.get_mut(chunk as usize)
            && core::mem::take(lent)
        {
            self.free.push(chunk);
        }
    }

    /// Lets the kernel take the `frames` frames at the front of the ring; how many left, and why not all. What was taken back
    /// lies behind them and is written over next time.
    fn kick(&mut self, frames: usize, mut look: impl FnMut(&Self) -> io::Result<()>) -> (usize, Option<Stop>) {
        let mut sent = 0;
        while sent < frames {
            let result = look(self);
            let left = self.written.wrapping_sub(self.taken);
            let advanced = self.tx.load(self.tx.consumer).wrapping_sub(self.taken);
            let advanced = if advanced <= left { advanced } else { 0 };
            let passed = (0..advanced).filter(|_| self.pass()).count();
            match result {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    // The device dropped the last one that was taken; the kernel may not have published that yet.
                    if advanced == 0 {
                        self.pass();
                    }
                    return (sent + passed.saturating_sub(1), Some(Stop::Full));
                }
                // All of them, or interrupted by its own bound on work.
                Ok(()) if passed > 0 => sent += passed,
                Ok(()) => return (sent, Some(Stop::Full)),
                Err(error) => {
                    sent += passed;
                    match stop_of(&error) {
                        None => {}
                        Some(Stop::Full) if passed > 0 => {}
                        stop => return (sent, stop.filter(|_| sent < frames)),
                    }
                }
            }
        }
        (sent, None)
    }

    /// One more entry is the kernel's; whether it was a frame.
    fn pass(&mut self) -> bool {
        let at = (self.taken & (TX_PLACES - 1)) as usize;
        self.taken = self.taken.wrapping_add(1);
        self.places[at].take().is_some()
    }

    /// Takes back the chunks of frames that the driver is done with.
    fn collect(&mut self) {
        let ready = self.done.load(self.done.producer).wrapping_sub(self.collected);
        if ready == 0 || ready > DONE_PLACES {
            return;
        }
        for _ in 0..ready {
            if let Some(place) = self.done.entry::<u64>(self.collected) {
                // SAFETY: `entry` found it inside the mapping and aligned, and any bytes are a number; the kernel has
                // published it (acquired above) and does not write it again before we move on.
                let address = unsafe { place.read_volatile() };
                if let Ok(chunk) = u32::try_from(address / CHUNK as u64) {
                    self.give_back(chunk);
                }
            }
            self.collected = self.collected.wrapping_add(1);
        }
        self.done.store(self.done.consumer, self.collected);
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the returned descriptor is new and ours alone.
    unsafe {
        let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn register(socket: &OwnedFd, memory: &Mapping) -> io::Result<()> {
    // SAFETY: a plain C structure for which all-zero bytes are a valid value.
    let mut region: libc::xdp_umem_reg = unsafe { zeroed() };
    region.addr = memory.start() as u64;
    region.len = memory.len() as u64;
    region.chunk_size = CHUNK as u32;
    // The kernel pins the pages; it may read them until the socket is closed, and the mapping may go before that.
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &[region])
}

fn offsets(socket: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: a plain C structure for which all-zero bytes are a valid value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { zeroed() };
    let mut len = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `offsets`.
    let result = unsafe {
        let out = (&raw mut offsets).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, out, &raw mut len)
    };
    match result {
        0 if len as usize == size_of::<libc::xdp_mmap_offsets>() => Ok(offsets),
        0 => Err(io::Error::other("the kernel is older than Linux 5.4")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Binds to queue 0 for sending by copy.
#[expect(clippy::disallowed_methods, reason = "nothing runs yet on an interface that is being opened")]
fn bind(socket: &OwnedFd, interface: u32) -> io::Result<()> {
    // SAFETY: a plain C structure for which all-zero bytes are a valid value.
    let mut address: libc::sockaddr_xdp = unsafe { zeroed() };
    address.sxdp_family = libc::AF_XDP as u16;
    address.sxdp_flags = libc::XDP_COPY;
    address.sxdp_ifindex = interface;
    let give_up = clock::now() + BIND_PATIENCE;
    loop {
        // SAFETY: the address is of the length that is stated, and is only read.
        let result = unsafe {
            let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || clock::now() >= give_up {
            return Err(error);
        }
        std::thread::sleep(BIND_RETRY);
    }
}

fn send_to(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: no buffer and no address: the call only makes the kernel look at the ring.
    let result = unsafe { libc::sendto(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use core::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// How the kernel of a test treats one call.
    #[derive(Debug, Clone, Copy)]
    enum Mood {
        /// Takes up to so many, then says that there is more.
        Takes(u32),
        /// The device drops the one after so many.
        Drops(u32),
        /// No room at all.
        Full,
    }

    /// The kernel's side of the rings, as `net/xdp/xsk.c` keeps it.
    struct Kernel {
        at: u32,
        done: u32,
        /// Whether it tells its place in the ring only when something was sent, as older ones do.
        shy: bool,
        delivered: Vec<u32>,
        moods: Vec<Mood>,
    }

    impl Kernel {
        fn look(&mut self, sender: &Sender) -> io::Result<()> {
            let mood = self.moods.pop().unwrap_or(Mood::Takes(TX_PLACES));
            let (bound, drops) = match mood {
                Mood::Takes(bound) => (bound, false),
                Mood::Drops(bound) => (bound, true),
                Mood::Full => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            };
            let (mut sent, mut result) = (0, Ok(()));
            while self.at != sender.tx.load(sender.tx.producer) {
                // SAFETY: the ring's memory is ours, and any bytes are a description.
                let description = unsafe { sender.tx.entry::<libc::xdp_desc>(self.at).unwrap().read_volatile() };
                if description.len == 0 || description.addr >= sender.memory.len() as u64 {
                    self.at = self.at.wrapping_add(1);
                    break;
                }
                if sent == bound && !drops {
                    result = Err(io::Error::from_raw_os_error(libc::EAGAIN));
                    break;
                }
                self.at = self.at.wrapping_add(1);
                let start = usize::try_from(description.addr).unwrap();
                // SAFETY: the frame lies in the memory (just checked, chunks are whole); its first bytes are its number.
                let number = unsafe { sender.memory.at::<[u8; 4]>(start).unwrap().read() };
                // SAFETY: as for the sending ring.
                unsafe { sender.done.entry::<u64>(self.done).unwrap().write_volatile(description.addr) };
                self.done = self.done.wrapping_add(1);
                sender.done.store(sender.done.producer, self.done);
                if sent == bound {
                    result = Err(io::Error::from_raw_os_error(libc::EBUSY));
                    break;
                }
                self.delivered.push(u32::from_be_bytes(number));
                sent += 1;
            }
            if sent > 0 || !self.shy {
                sender.tx.store(sender.tx.consumer, self.at);
            }
            result
        }
    }

    fn ring<T>(places: u32) -> Ring {
        let memory = Mapping::new(128 + places as usize * size_of::<T>(), None).unwrap();
        Ring { memory, producer: 0, consumer: 64, entries: 128, places }
    }

    fn sender() -> Sender {
        let memory = Mapping::new(CHUNK * CHUNKS as usize, None).unwrap();
        Sender::new(memory, ring::<libc::xdp_desc>(TX_PLACES), ring::<u64>(DONE_PLACES))
    }

    fn fill(batch: &mut Batch, numbers: impl Iterator<Item = u32>) {
        for number in numbers {
            batch.slot()[..4].copy_from_slice(&number.to_be_bytes());
            batch.push(60);
        }
    }

    fn mood() -> impl Strategy<Value = Mood> {
        prop_oneof![(1u32..100).prop_map(Mood::Takes), (0u32..70).prop_map(Mood::Drops), Just(Mood::Full)]
    }

    proptest! {
        /// Batches are retried until all of them has left, or given back half way: what was told to have left has, once, and
        /// nothing else.
        #[test]
        fn every_frame_that_is_said_to_have_left_has_left_once(
            batches in proptest::collection::vec((1u32..=64, any::<bool>()), 1..40),
            moods in proptest::collection::vec(mood(), 0..200),
            shy: bool,
        ) {
            let mut sender = sender();
            let kernel = RefCell::new(Kernel { at: 0, done: 0, shy, delivered: Vec::new(), moods });
            let (mut next, mut told) = (0, Vec::new());
            for (len, give_back) in batches {
                let mut batch = Batch::default();
                fill(&mut batch, next..next + len);
                let mut first = next;
                next += len;
                while !batch.is_empty() {
                    let (sent, stop) = sender.send(&batch, batch.len(), |sender| kernel.borrow_mut().look(sender));
                    prop_assert!(sent <= batch.len() && (stop.is_none() == (sent == batch.len())), "{sent} {stop:?}");
                    told.extend(first..first + sent as u32);
                    first += sent as u32;
                    batch.advance(sent);
                    if give_back && stop.is_some() {
                        break;
                    }
                }
            }
            prop_assert_eq!(told, kernel.into_inner().delivered);
            sender.collect();
            let held = sender.places.iter().flatten().count();
            prop_assert_eq!(sender.free.len() + held, CHUNKS as usize, "no chunk is lost");
        }

        /// Whatever the other side writes into the rings, no more is said to have left than was asked for, and nothing panics.
        #[test]
        fn indexes_are_not_believed(words in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), 0..4u8), 1..60)) {
            let mut sender = sender();
            let mut batch = Batch::default();
            fill(&mut batch, 0..64);
            for (consumer, producer, address, errno) in words {
                let (sent, _) = sender.send(&batch, 64, |sender| {
                    sender.tx.store(sender.tx.consumer, consumer);
                    sender.done.store(sender.done.producer, producer);
                    // SAFETY: the ring's memory is ours.
                    unsafe { sender.done.entry::<u64>(sender.collected).unwrap().write_volatile(address) };
                    match errno {
                        0 => Ok(()),
                        1 => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                        2 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
                        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
                    }
                });
                prop_assert!(sent <= 64);
                prop_assert!(sender.free.len() <= CHUNKS as usize);
            }
        }
    }
}
