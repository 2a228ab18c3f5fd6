//! What connections cost: every frame is charged to the interface's pacer, to the detection's own and to the limits of its
//! target when it leaves.
//!
//! The kernel builds the frames, so their number is reckoned. What we begin waits for the pacers: a SYN with the
//! acknowledgement that completes the handshake, each segment of data, a FIN with the acknowledgement of the other side's.
//! What the other side provokes, an acknowledgement for each segment of what it says, leaves when it wants to, and is owed:
//! whoever wants to send next waits for it.
//!
//! **Invariant:** for each limit, in every window of length W, what is paid and owed is at most `limit * (W + burst)`, two frames
//! (what is paid together) and what was provoked since somebody paid last.
//! **Invariant:** who waits for the limit of an address holds nobody up who asks another.

use core::net::IpAddr;
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;

use crate::net::clock;
use crate::net::pacer::{Limits, Pacer, SharedPacer};
use crate::net::target_pacer::{TargetPacer, TooSoon};
use crate::net::time::Instant;

/// The data of a full segment.
pub(super) const SEGMENT: usize = 1448;
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
pub(super) struct Price {
    frames: usize,
    bytes: usize,
}

impl Price {
    /// A connection's opening: the SYN, and the acknowledgement of its answer.
    pub(super) const fn opening(v4: bool) -> Self {
        Self { frames: 2, bytes: 2 * headers(v4) + TCP_SYN + TCP }
    }

    /// A segment with `len` bytes of data.
    pub(super) const fn segment(v4: bool, len: usize) -> Self {
        Self { frames: 1, bytes: headers(v4) + TCP + len }
    }

    /// The acknowledgements of `len` bytes heard at once, in segments of `segment` bytes. The kernel acknowledges each at first
    /// and later every second one: rather too many than too few.
    pub(super) const fn acknowledgements(v4: bool, len: usize, segment: usize) -> Self {
        let frames = len.div_ceil(if segment == 0 { 1 } else { segment });
        Self { frames, bytes: frames * (headers(v4) + TCP) }
    }

    /// The acknowledgement of the other side's FIN.
    pub(super) const fn acknowledged_end(v4: bool) -> Self {
        Self { frames: 1, bytes: headers(v4) + TCP }
    }

    /// Our end of a connection: the FIN, and the acknowledgement of the other side's unless it has `ended` before.
    pub(super) const fn closing(v4: bool, ended: bool) -> Self {
        let frames = if ended { 1 } else { 2 };
        Self { frames, bytes: frames * (headers(v4) + TCP) }
    }

    /// A datagram of `len` bytes.
    pub(super) const fn datagram(v4: bool, len: usize) -> Self {
        Self { frames: 1, bytes: headers(v4) + UDP + len }
    }
}

/// Where everything that is sent is paid for, in turn.
pub(super) struct Toll {
    interface: SharedPacer,
    own: Mutex<Pacer>,
    targets: Option<TargetPacer>,
    turn: tokio::sync::Mutex<()>,
}

impl Toll {
    pub(super) fn new(interface: SharedPacer, rate: Limits, targets: Option<TargetPacer>) -> Self {
        Self { interface, own: Mutex::new(Pacer::new(rate)), targets, turn: tokio::sync::Mutex::new(()) }
    }

    /// Waits until both pacers and the limits of `dst` admit a frame, then charges `price`. Returns how long that took.
    pub(super) async fn pay(&self, dst: IpAddr, price: Price) -> Duration {
        let begun = clock::now();
        while let Err(soon) = self.pay_in_turn(dst, price).await {
            sleep(soon.until.saturating_since(clock::now())).await;
        }
        clock::now().saturating_since(begun)
    }

    /// Waits for the pacers, unless the limits of `dst` take longer anyway.
    async fn pay_in_turn(&self, dst: IpAddr, price: Price) -> Result<(), TooSoon> {
        self.check_target(clock::now(), dst)?;
        let _turn = match self.turn.try_lock() {
            Ok(turn) => {
                // Nobody was waiting: the time until now earns no right to catch up.
                lock(&self.own).idle(clock::now());
                turn
            }
            Err(_) => self.turn.lock().await,
        };
        loop {
            let now = clock::now();
            let ready = {
                // One lock for the question and the charge, so that nobody else's frame comes between.
                let (mut own, mut interface) = (lock(&self.own), lock(&self.interface));
                let ready = own.ready_at().max(interface.ready_at());
                if ready <= now {
                    self.check_target(now, dst)?;
                    own.charge(now, price.frames, price.bytes);
                    interface.charge(now, price.frames, price.bytes);
                    self.charge_target(now, dst, price);
                    return Ok(());
                }
                ready
            };
            sleep(ready.saturating_since(now)).await;
        }
    }

    /// Charges what has left already.
    pub(super) fn owe(&self, dst: IpAddr, price: Price) {
        let now = clock::now();
        lock(&self.own).charge(now, price.frames, price.bytes);
        lock(&self.interface).charge(now, price.frames, price.bytes);
        self.charge_target(now, dst, price);
    }

    fn check_target(&self, now: Instant, dst: IpAddr) -> Result<(), TooSoon> {
        self.targets.as_ref().map_or(Ok(()), |targets| targets.check(now, dst))
    }

    fn charge_target(&self, now: Instant, dst: IpAddr, price: Price) {
        if let Some(targets) = &self.targets {
            (0..price.frames).for_each(|_| targets.admit(now, dst));
        }
    }
}

/// A pacer is plain numbers: whoever panicked left it usable.
fn lock(pacer: &Mutex<Pacer>) -> MutexGuard<'_, Pacer> {
    pacer.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream::{FuturesUnordered, StreamExt};
    use picket_wire::units::PacketsPerSecond;

    use super::*;
    use crate::net::target_pacer::TargetLimits;

    fn pps(rate: u32) -> PacketsPerSecond {
        PacketsPerSecond::new(rate).unwrap()
    }

    fn toll(interface: u32, own: u32, limits: TargetLimits) -> Toll {
        let interface = Arc::new(Mutex::new(Pacer::new(Limits::packets(pps(interface)))));
        Toll::new(interface, Limits::packets(pps(own)), TargetPacer::new(limits, &[5; 16]))
    }

    fn host(number: u8) -> IpAddr {
        [198, 18, 0, number].into()
    }

    #[test]
    fn prices_follow_segments() {
        assert_eq!(Price::opening(true), Price { frames: 2, bytes: 2 * 34 + 40 + 32 });
        assert_eq!(Price::segment(true, 1448).bytes, 34 + 32 + 1448);
        assert_eq!(Price::acknowledgements(true, 10, 1448).frames, 1);
        assert_eq!(Price::acknowledgements(false, 1449, 1448), Price { frames: 2, bytes: 2 * 86 });
        assert_eq!(Price::acknowledgements(true, 1448, 536).frames, 3);
        assert_eq!(Price::acknowledgements(true, 3, 0).frames, 3);
        assert_eq!(Price::closing(true, false), Price { frames: 2, bytes: 2 * 66 });
        assert_eq!(Price::closing(true, true), Price::acknowledged_end(true));
        assert_eq!(Price::datagram(true, 12), Price { frames: 1, bytes: 54 });
    }

    /// How long the parts of connections take at 1000 per second, where both pacers must hold.
    async fn parts(interface: u32, own: u32) -> Duration {
        let toll = toll(interface, own, TargetLimits::default());
        let begun = clock::now();
        for _ in 0..8 {
            toll.pay(host(1), Price::opening(true)).await;
            toll.pay(host(1), Price::segment(true, 100)).await;
            toll.owe(host(1), Price::acknowledgements(true, 100, SEGMENT));
            toll.pay(host(1), Price::closing(true, false)).await;
        }
        clock::now().saturating_since(begun)
    }

    #[tokio::test]
    async fn every_part_waits_for_both_pacers() {
        for (interface, own) in [(1_000, 10_000), (10_000, 1_000)] {
            let took = parts(interface, own).await;
            // The last part waits for all before it: 46 frames, less the burst of 10 ms and a frame of the first opening.
            assert!(took >= Duration::from_millis(46 - 10 - 1), "48 frames at 1000 per second: {took:?}");
        }
    }

    #[tokio::test]
    async fn debts_are_paid_by_waiting() {
        let toll = toll(1_000, 10_000, TargetLimits::default());
        let begun = clock::now();
        toll.owe(host(1), Price { frames: 40, bytes: 4_000 });
        assert!(clock::now().saturating_since(begun) < Duration::from_secs(1), "what has left already waits for nothing");
        toll.pay(host(1), Price::opening(true)).await;
        let took = clock::now().saturating_since(begun);
        assert!(took >= Duration::from_millis(40 - 10 - 1), "40 frames at 1000 per second, less the burst: {took:?}");
    }

    #[tokio::test]
    async fn who_waits_for_an_address_holds_nobody_else_up() {
        let toll = toll(100_000, 100_000, TargetLimits { per_address: Some(pps(10)), per_network: None });
        let begun = clock::now();
        let pay = async |number: u8| {
            toll.pay(host(number), Price::opening(true)).await;
            (number, clock::now().saturating_since(begun))
        };
        let mut paid: FuturesUnordered<_> = [1, 1, 1, 2, 3, 4].into_iter().map(pay).collect();
        let mut order = Vec::new();
        while let Some(one) = paid.next().await {
            order.push(one);
        }
        let last: Vec<u8> = order.iter().skip(4).map(|(number, _)| *number).collect();
        assert_eq!(last, [1, 1], "{order:?}");
        // Two frames each at 10 per second, less what may be late.
        assert!(order[4].1 >= Duration::from_millis(197) && order[5].1 >= Duration::from_millis(397), "{order:?}");
    }

    #[tokio::test]
    async fn what_an_address_provokes_counts_against_its_limit() {
        let toll = toll(100_000, 100_000, TargetLimits { per_address: Some(pps(100)), per_network: None });
        let begun = clock::now();
        toll.owe(host(1), Price::acknowledgements(true, 20 * SEGMENT, SEGMENT));
        let mut provoked = core::pin::pin!(toll.pay(host(1), Price::opening(true)));
        tokio::select! {
            biased;
            _ = &mut provoked => panic!("an address that has used up its limit was paid for before another"),
            _ = toll.pay(host(2), Price::opening(true)) => {}
        }
        provoked.await;
        let took = clock::now().saturating_since(begun);
        assert!(took >= Duration::from_millis(198), "20 frames at 100 per second, less what may be late: {took:?}");
    }
}
