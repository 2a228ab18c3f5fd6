//! A link that takes time: whatever enters at one end leaves at the other one a fixed time later, in order and unchanged.
//!
//! For kernels without netem. Two veth pairs meet in a namespace of their own, which has no address and forwards nothing; a thread for each
//! direction reads frames from one and writes them to the other. ARP takes as long as everything else.
//!
//! **Invariant:** no frame is early. How late one may be is up to the machine: as late as the thread is woken.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt};
use nix::sys::time::TimeSpec;

use super::Namespace;

/// How often a thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of frames that may wait to be read.
const QUEUE: usize = 8 << 20;
/// The longest frame.
const FRAME: usize = 1 << 16;

/// The link; it is cut when this is dropped.
#[derive(Debug)]
pub struct Delay {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    _middle: Namespace,
}

impl Delay {
    /// Links two namespaces of one lab as [`Namespace::link`] does, `one_way` apart.
    ///
    /// # Errors
    /// When a name is taken, or the kernel refuses.
    pub fn link(near: &Namespace, device: &str, far: &Namespace, far_device: &str, one_way: Duration) -> Result<Self> {
        let middle = near.lab().namespace(&format!("{}-{}", near.short(), far.short()))?;
        // It is a cable: it says nothing of its own.
        middle.sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")])?;
        near.link(device, &middle, "near")?;
        far.link(far_device, &middle, "far")?;
        let ends = middle.enter(|| Ok::<_, anyhow::Error>([open("near")?, open("far")?]))??.map(Arc::new);
        let mut this = Self { stop: Arc::default(), lost: Arc::default(), threads: Vec::new(), _middle: middle };
        let [near, far] = ends;
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to, stop, lost) = (Arc::clone(from), Arc::clone(to), Arc::clone(&this.stop), Arc::clone(&this.lost));
            this.threads.push(std::thread::spawn(move || carry(&from, &to, one_way, &stop, &lost)));
        }
        Ok(this)
    }

    /// Frames that the far device did not take.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been told already.
            let _ = thread.join();
        }
    }
}

/// A packet socket of one device of the namespace that the caller is in.
fn open(device: &str) -> Result<OwnedFd> {
    let what = || format!("open a packet socket of {device}");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).with_context(what)?;
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).with_context(what)?;
    let mut interfaces = getifaddrs().with_context(what)?.filter(|interface| interface.interface_name == device);
    let link = interfaces.find_map(|interface| interface.address?.as_link_addr().copied()).with_context(what)?;
    bind(socket.as_raw_fd(), &link).with_context(what)?;
    // Until then it heard every device.
    let mut frame = vec![0; FRAME];
    while recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok() {}
    Ok(socket)
}

fn carry(from: &OwnedFd, to: &OwnedFd, one_way: Duration, stop: &AtomicBool, lost: &AtomicU64) {
    let (mut line, mut frame) = (Line::new(one_way), vec![0; FRAME]);
    while !stop.load(Ordering::Relaxed) {
        let wait = line.next().map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        // Interrupted or not, what follows finds out what there is to do.
        let _ = ppoll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], Some(TimeSpec::from(wait)), None);
        while let Ok(length) = recv(from.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            line.enter(Instant::now(), &frame[..length]);
        }
        while let Some(frame) = line.leave(Instant::now()) {
            if !matches!(send(to.as_raw_fd(), &frame, MsgFlags::empty()), Ok(_) | Err(Errno::ENETDOWN)) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What is on its way in one direction.
#[derive(Debug)]
struct Line {
    one_way: Duration,
    frames: VecDeque<(Instant, Vec<u8>)>,
}

impl Line {
    const fn new(one_way: Duration) -> Self {
        Self { one_way, frames: VecDeque::new() }
    }

    fn enter(&mut self, now: Instant, frame: &[u8]) {
        self.frames.push_back((now + self.one_way, frame.to_vec()));
    }

    /// When the next frame leaves.
    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|(due, _)| *due)
    }

    fn leave(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.frames.pop_front().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_in_order_and_never_early() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut line = Line::new(ms(40));
        assert_eq!((line.next(), line.leave(start)), (None, None));
        line.enter(start, b"one");
        line.enter(start + ms(1), b"two");
        assert_eq!((line.next(), line.leave(start + ms(40) - Duration::from_nanos(1))), (Some(start + ms(40)), None));
        assert_eq!(line.leave(start + ms(40)).as_deref(), Some(&b"one"[..]));
        assert_eq!(line.leave(start + ms(40)), None);
        assert_eq!(line.leave(start + ms(90)).as_deref(), Some(&b"two"[..]), "a late thread catches up");
        assert_eq!(line.next(), None);
    }
}
