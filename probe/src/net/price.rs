//! What connections that the kernel makes cost, and who pays: frames and bytes are reckoned, since nobody is asked before they leave.
//!
//! It must not know sockets or clocks.

use core::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pacer::{Limits, Pacer, SharedPacer};
use super::target_pacer::{TargetPacer, TooSoon};
use super::time::Instant;

/// The data of a full segment.
pub(crate) const SEGMENT: usize = 1448;
/// Octets of TCP header with timestamps.
const TCP: usize = 32;
/// Octets of TCP header in a SYN as Linux makes it.
const TCP_SYN: usize = 40;
const UDP: usize = 8;

const fn headers(v4: bool) -> usize {
    14 + if v4 { 20 } else { 40 }
}

/// Frames and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Price {
    pub(crate) frames: usize,
    /// From the Ethernet header on.
    pub(crate) bytes: usize,
}

impl Price {
    /// A SYN.
    pub(crate) const fn syn(v4: bool) -> Self {
        Self { frames: 1, bytes: headers(v4) + TCP_SYN }
    }

    /// An acknowledgement: the one that completes a handshake, or that of the other side's FIN.
    pub(crate) const fn acknowledgement(v4: bool) -> Self {
        Self::segment(v4, 0)
    }

    /// A connection's opening: the SYN, and the acknowledgement of its answer.
    pub(crate) const fn opening(v4: bool) -> Self {
        let (syn, end) = (Self::syn(v4), Self::acknowledgement(v4));
        Self { frames: syn.frames + end.frames, bytes: syn.bytes + end.bytes }
    }

    /// A segment with `len` bytes of data.
    pub(crate) const fn segment(v4: bool, len: usize) -> Self {
        Self { frames: 1, bytes: headers(v4) + TCP + len }
    }

    /// The acknowledgements of `len` bytes heard at once, in segments of `segment` bytes. The kernel acknowledges each at first
    /// and later every second one: rather too many than too few.
    pub(crate) const fn acknowledgements(v4: bool, len: usize, segment: usize) -> Self {
        let frames = len.div_ceil(if segment == 0 { 1 } else { segment });
        Self { frames, bytes: frames * (headers(v4) + TCP) }
    }

    /// Our end of a connection: the FIN, and the acknowledgement of the other side's unless it has `ended` before.
    pub(crate) const fn closing(v4: bool, ended: bool) -> Self {
        let frames = if ended { 1 } else { 2 };
        Self { frames, bytes: frames * (headers(v4) + TCP) }
    }

    /// A datagram of `len` bytes.
    pub(crate) const fn datagram(v4: bool, len: usize) -> Self {
        Self { frames: 1, bytes: headers(v4) + UDP + len }
    }
}

/// Why nothing may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broke {
    /// A limit towards the target is used up.
    Target(TooSoon),
    /// The pacers are not ready before this time.
    Pacers(Instant),
}

/// The limits that everything which opens connections for one purpose is charged to: its own, the interface's, and those towards its
/// targets.
#[derive(Debug)]
pub(crate) struct Account {
    own: Mutex<Pacer>,
    interface: SharedPacer,
    targets: Option<TargetPacer>,
}

/// A pacer is plain numbers: whoever panicked left it usable.
fn lock(pacer: &Mutex<Pacer>) -> MutexGuard<'_, Pacer> {
    pacer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Account {
    pub(crate) fn new(interface: SharedPacer, rate: Limits, targets: Option<TargetPacer>) -> Self {
        Self { own: Mutex::new(Pacer::new(rate)), interface, targets }
    }

    /// Nobody who pays from here wanted to send: the time until now earns no right to catch up.
    pub(crate) fn idle(&self, now: Instant) {
        lock(&self.own).idle(now);
    }

    /// The same, where nobody else on the interface wanted to either.
    pub(crate) fn idle_all(&self, now: Instant) {
        lock(&self.own).idle(now);
        lock(&self.interface).idle(now);
    }

    /// When both pacers admit the next frame.
    pub(crate) fn ready_at(&self) -> Instant {
        let own = lock(&self.own).ready_at();
        own.max(lock(&self.interface).ready_at())
    }

    /// Whether the limits towards `dst` admit a frame.
    pub(crate) fn check_target(&self, now: Instant, dst: IpAddr) -> Result<(), TooSoon> {
        self.targets.as_ref().map_or(Ok(()), |targets| targets.check(now, dst))
    }

    /// Charges what leaves now, if all limits admit a frame.
    pub(crate) fn pay(&self, now: Instant, dst: IpAddr, price: Price) -> Result<(), Broke> {
        // One lock for the question and the charge, so that nobody else's frame comes between.
        let (mut own, mut interface) = (lock(&self.own), lock(&self.interface));
        let ready = own.ready_at().max(interface.ready_at());
        if ready > now {
            return Err(Broke::Pacers(ready));
        }
        self.check_target(now, dst).map_err(Broke::Target)?;
        own.charge(now, price.frames, price.bytes);
        interface.charge(now, price.frames, price.bytes);
        self.charge_target(now, dst, price);
        Ok(())
    }

    /// Charges what leaves unasked: others wait for it.
    pub(crate) fn owe(&self, now: Instant, dst: IpAddr, price: Price) {
        lock(&self.own).charge(now, price.frames, price.bytes);
        lock(&self.interface).charge(now, price.frames, price.bytes);
        self.charge_target(now, dst, price);
    }

    fn charge_target(&self, now: Instant, dst: IpAddr, price: Price) {
        if let Some(targets) = &self.targets {
            targets.admit_all(now, dst, price.frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_follow_segments() {
        assert_eq!(Price::opening(true), Price { frames: 2, bytes: 2 * 34 + 40 + 32 });
        assert_eq!((Price::syn(false).bytes, Price::acknowledgement(false).bytes), (54 + 40, 54 + 32));
        assert_eq!(Price::segment(true, 1448).bytes, 34 + 32 + 1448);
        assert_eq!(Price::acknowledgements(true, 10, 1448).frames, 1);
        assert_eq!(Price::acknowledgements(false, 1449, 1448), Price { frames: 2, bytes: 2 * 86 });
        assert_eq!(Price::acknowledgements(true, 1448, 536).frames, 3);
        assert_eq!(Price::acknowledgements(true, 3, 0).frames, 3);
        assert_eq!(Price::closing(true, false), Price { frames: 2, bytes: 2 * 66 });
        assert_eq!(Price::closing(true, true), Price::acknowledgement(true));
        assert_eq!(Price::datagram(true, 12), Price { frames: 1, bytes: 54 });
    }
}
