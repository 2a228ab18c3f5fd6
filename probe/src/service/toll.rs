//! What connections cost: frames are charged to the interface's pacer and to the detection's own before they leave.
//!
//! The kernel builds the frames, so their number is reckoned: a SYN, the acknowledgement that completes the handshake, a FIN
//! and the acknowledgement of the other side's when a connection is opened; data by segments; and acknowledgements of what is
//! received as one for two full segments, afterwards, as a debt that the next one waits for.

use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;

use crate::net::clock;
use crate::net::pacer::{Limits, Pacer, SharedPacer};

/// The data of a full segment.
const SEGMENT: usize = 1448;
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
    /// A connection's opening and orderly end.
    pub(super) const fn connection(v4: bool) -> Self {
        Self { frames: 4, bytes: 4 * headers(v4) + TCP_SYN + 3 * TCP }
    }

    /// `len` bytes said in a connection.
    pub(super) const fn data(v4: bool, len: usize) -> Self {
        let frames = len.div_ceil(SEGMENT);
        Self { frames, bytes: frames * (headers(v4) + TCP) + len }
    }

    /// The acknowledgements of `len` bytes heard at once.
    pub(super) const fn acknowledgement(v4: bool, len: usize) -> Self {
        let frames = len.div_ceil(2 * SEGMENT);
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
    turn: tokio::sync::Mutex<()>,
}

impl Toll {
    pub(super) fn new(interface: SharedPacer, rate: Limits) -> Self {
        Self { interface, own: Mutex::new(Pacer::new(rate)), turn: tokio::sync::Mutex::new(()) }
    }

    /// Waits until both pacers admit a frame, then charges `price`. Returns how long that took.
    pub(super) async fn pay(&self, price: Price) -> Duration {
        let begun = clock::now();
        let _turn = match self.turn.try_lock() {
            Ok(turn) => {
                // Nobody was waiting: the time until now earns no right to catch up.
                lock(&self.own).idle(begun);
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
                    own.charge(now, price.frames, price.bytes);
                    interface.charge(now, price.frames, price.bytes);
                    return now.saturating_since(begun);
                }
                ready
            };
            sleep(ready.saturating_since(now)).await;
        }
    }

    /// Charges what has left already.
    pub(super) fn owe(&self, price: Price) {
        let now = clock::now();
        lock(&self.own).charge(now, price.frames, price.bytes);
        lock(&self.interface).charge(now, price.frames, price.bytes);
    }
}

/// A pacer is plain numbers: whoever panicked left it usable.
fn lock(pacer: &Mutex<Pacer>) -> MutexGuard<'_, Pacer> {
    pacer.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use picket_wire::units::PacketsPerSecond;

    use super::*;

    #[test]
    fn prices_follow_segments() {
        assert_eq!(Price::connection(true), Price { frames: 4, bytes: 4 * 34 + 40 + 96 });
        assert_eq!(Price::data(true, 1448).frames, 1);
        assert_eq!(Price::data(false, 1449), Price { frames: 2, bytes: 2 * 86 + 1449 });
        assert_eq!(Price::acknowledgement(true, 10).frames, 1);
        assert_eq!(Price::acknowledgement(true, 1448 * 6).frames, 3);
        assert_eq!(Price::datagram(true, 12), Price { frames: 1, bytes: 54 });
    }

    #[tokio::test]
    async fn debts_are_paid_by_waiting() {
        let rate = |pps| Limits::packets(PacketsPerSecond::new(pps).unwrap());
        let toll = Toll::new(Arc::new(Mutex::new(Pacer::new(rate(1_000)))), rate(10_000));
        let begun = clock::now();
        toll.pay(Price::connection(true)).await;
        toll.owe(Price { frames: 40, bytes: 4_000 });
        toll.pay(Price::connection(true)).await;
        let took = clock::now().saturating_since(begun);
        assert!(took >= Duration::from_millis(34), "44 frames at 1000 per second, less the burst: {took:?}");
    }
}
