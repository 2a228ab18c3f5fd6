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

use tokio::time::sleep;

use crate::net::clock;
use crate::net::pacer::{Limits, SharedPacer};
use crate::net::price::{Account, Broke, Price};
use crate::net::target_pacer::{TargetPacer, TooSoon};

/// Where everything that is sent is paid for, in turn.
pub(super) struct Toll {
    account: Account,
    turn: tokio::sync::Mutex<()>,
}

impl Toll {
    pub(super) fn new(interface: SharedPacer, rate: Limits, targets: Option<TargetPacer>) -> Self {
        Self { account: Account::new(interface, rate, targets), turn: tokio::sync::Mutex::new(()) }
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
        self.account.check_target(clock::now(), dst)?;
        let _turn = match self.turn.try_lock() {
            Ok(turn) => {
                // Nobody was waiting.
                self.account.idle(clock::now());
                turn
            }
            Err(_) => self.turn.lock().await,
        };
        loop {
            let now = clock::now();
            match self.account.pay(now, dst, price) {
                Ok(()) => return Ok(()),
                Err(Broke::Target(soon)) => return Err(soon),
                Err(Broke::Pacers(ready)) => sleep(ready.saturating_since(now)).await,
            }
        }
    }

    /// Charges what has left already.
    pub(super) fn owe(&self, dst: IpAddr, price: Price) {
        self.account.owe(clock::now(), dst, price);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::stream::{FuturesUnordered, StreamExt};
    use picket_wire::units::PacketsPerSecond;

    use super::*;
    use crate::net::pacer::Pacer;
    use crate::net::price::SEGMENT;
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
