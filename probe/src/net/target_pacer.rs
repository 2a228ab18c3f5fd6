//! Limits towards every single address and every single network, in memory of fixed size. Pure: `now` is a parameter.
//!
//! Each limit is a GCRA (ITU-T I.371 annex A) per address or network, kept as one number: the time at which the next packet
//! would be due. An exact table would grow with the targets, so the times lie in a count-min sketch (Cormode, Muthukrishnan
//! 2005) with conservative update: a key has a cell in each of two rows, found by a keyed hash; its time is the earlier of the
//! two. A cell is never earlier than the time of any key that shares it, so what two keys share can only make both slower.
//!
//! **Size.** Two rows of 16,384 cells of 8 bytes, 256 KiB, for addresses; two of 4,096, 64 KiB, for networks; nothing for a
//! task without such limits. At 1000 packets/s and one packet per second and address, 1000 cells of each row are in use at a
//! time: one packet in 270 meets two occupied cells and waits up to a second longer than it had to. The key of the hash is
//! random, so that nobody chooses addresses that collide.
//!
//! **Invariant:** in every window of length W, at most `rate * (W + BURST) + 1` packets are admitted towards any one address, and
//! likewise towards any one network. Moments are those of admission; a packet that leaves later is booked again when it leaves
//! ([`TargetPacer::left`]), so that a frame that the kernel held back does not close up to the next one. Where several loops use
//! clones of one pacer, each of them may admit a frame between another's question and its admission: one frame more for each.

use core::hash::Hasher;
use core::time::Duration;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use picket_wire::job::{NetworkLimit, RateLimits};
use picket_wire::units::PacketsPerSecond;
use siphasher::sip::SipHasher13;

use super::time::Instant;

/// How late a packet may be and still be made up for: enough for a loop that wakes late, less than a packet below 500 per
/// second.
pub const BURST: Duration = Duration::from_millis(2);

const ADDRESS_CELLS: usize = 16_384;
const NETWORK_CELLS: usize = 4_096;
/// Lanes of networks are numbered behind those of addresses.
const NETWORK_LANES: u32 = 1 << 31;

/// A limit that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSoon {
    /// When the next packet may go.
    pub until: Instant,
    /// Which cell refused: packets of one lane wait for the same time.
    pub lane: u32,
}

/// What the limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetLimits {
    /// Packets per second towards one address.
    pub per_address: Option<PacketsPerSecond>,
    /// Packets per second towards one network.
    pub per_network: Option<NetworkLimit>,
}

impl From<RateLimits> for TargetLimits {
    fn from(limits: RateLimits) -> Self {
        Self { per_address: limits.per_address, per_network: limits.per_network }
    }
}

/// One limit for many keys.
#[derive(Debug)]
struct Sketch {
    /// Nanoseconds between two packets, rounded up.
    interval: u64,
    rows: [Box<[u64]>; 2],
    hash: SipHasher13,
}

impl Sketch {
    fn new(rate: PacketsPerSecond, cells: usize, key: &[u8; 16]) -> Self {
        let row = || vec![0; cells].into_boxed_slice();
        Self { interval: 1_000_000_000_u64.div_ceil(rate.get().into()), rows: [row(), row()], hash: SipHasher13::new_with_key(key) }
    }

    fn cells(&self, key: u128) -> [usize; 2] {
        let mut hash = self.hash;
        hash.write(&key.to_be_bytes());
        let hash = hash.finish();
        let mask = self.rows[0].len() - 1;
        [hash as usize & mask, (hash >> 32) as usize & mask]
    }

    /// When the key's next packet is due, and the first of its cells.
    fn due(&self, key: u128) -> (u64, usize) {
        let [a, b] = self.cells(key);
        let at = |row: usize, cell: usize| self.rows.get(row).and_then(|row| row.get(cell)).copied().unwrap_or(0);
        (at(0, a).min(at(1, b)), a)
    }

    fn raise(&mut self, key: u128, due: u64) {
        let cells = self.cells(key);
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            if let Some(time) = row.get_mut(cell) {
                *time = (*time).max(due);
            }
        }
    }

    fn ready_at(&self, key: u128) -> (u64, usize) {
        let (due, cell) = self.due(key);
        (due.saturating_sub(BURST.as_nanos() as u64), cell)
    }

    fn admit(&mut self, now: u64, key: u128) {
        let (due, _) = self.due(key);
        self.raise(key, due.max(now).saturating_add(self.interval));
    }

    fn left(&mut self, now: u64, key: u128) {
        self.raise(key, now.saturating_add(self.interval));
    }
}

/// The limits of one task towards its targets. Clones share them: what one admits counts for all.
#[derive(Debug, Clone)]
pub struct TargetPacer(Arc<Mutex<Tables>>);

#[derive(Debug)]
struct Tables {
    address: Option<Sketch>,
    network: Option<(Sketch, NetworkLimit)>,
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn network_of(addr: IpAddr, limit: NetworkLimit) -> u128 {
    let (prefix, whole) = match addr {
        IpAddr::V4(_) => (96 + u32::from(limit.v4_prefix.min(32)), bits(addr)),
        IpAddr::V6(_) => (u32::from(limit.v6_prefix.min(128)), bits(addr)),
    };
    let host = 128 - prefix;
    whole.checked_shr(host).and_then(|net| net.checked_shl(host)).unwrap_or(0)
}

impl TargetPacer {
    /// A pacer for `limits`; `None` where there are none. `key` should be random.
    pub fn new(limits: TargetLimits, key: &[u8; 16]) -> Option<Self> {
        let address = limits.per_address.map(|rate| Sketch::new(rate, ADDRESS_CELLS, key));
        let network = limits.per_network.map(|limit| (Sketch::new(limit.rate, NETWORK_CELLS, key), limit));
        let limited = address.is_some() || network.is_some();
        limited.then(|| Self(Arc::new(Mutex::new(Tables { address, network }))))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Plain numbers: whoever panicked left them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pacer for `limits` with a random key; `None` where there are no limits.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random(limits: TargetLimits) -> Result<Option<Self>, getrandom::Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)?;
        Ok(Self::new(limits, &key))
    }

    /// Whether a packet to `dst` may go at `now`.
    ///
    /// # Errors
    /// The later of the limits that are used up.
    pub fn check(&self, now: Instant, dst: IpAddr) -> Result<(), TooSoon> {
        let dst = dst.to_canonical();
        let tables = self.tables();
        let address = tables.address.as_ref().map(|sketch| (sketch.ready_at(bits(dst)), 0));
        let network = tables.network.as_ref().map(|(sketch, limit)| (sketch.ready_at(network_of(dst, *limit)), NETWORK_LANES));
        match address.into_iter().chain(network).max_by_key(|((ready, _), _)| *ready) {
            Some(((ready, cell), lanes)) if ready > now.as_nanos() => {
                Err(TooSoon { until: Instant::from_nanos(ready), lane: lanes | u32::try_from(cell).unwrap_or(0) })
            }
            _ => Ok(()),
        }
    }

    /// A packet to `dst` goes at `now`.
    pub fn admit(&self, now: Instant, dst: IpAddr) {
        self.admit_all(now, dst, 1);
    }

    /// `count` packets to `dst` go at `now`, or have gone: those that a kernel sends by itself are asked for by nobody, and others wait
    /// for them.
    pub fn admit_all(&self, now: Instant, dst: IpAddr, count: usize) {
        let (now, dst) = (now.as_nanos(), dst.to_canonical());
        let mut tables = self.tables();
        for _ in 0..count {
            if let Some(sketch) = &mut tables.address {
                sketch.admit(now, bits(dst));
            }
            if let Some((sketch, limit)) = &mut tables.network {
                sketch.admit(now, network_of(dst, *limit));
            }
        }
    }

    /// A packet to `dst` that was admitted before has left at `now`.
    pub fn left(&self, now: Instant, dst: IpAddr) {
        let (now, dst) = (now.as_nanos(), dst.to_canonical());
        let mut tables = self.tables();
        if let Some(sketch) = &mut tables.address {
            sketch.left(now, bits(dst));
        }
        if let Some((sketch, limit)) = &mut tables.network {
            sketch.left(now, network_of(dst, *limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pps(rate: u32) -> PacketsPerSecond {
        PacketsPerSecond::new(rate).unwrap()
    }

    /// The most that any closed window of `width` holds.
    fn busiest(times: &[u64], width: u64) -> u64 {
        let mut from = 0;
        let mut most = 0;
        for (to, at) in times.iter().enumerate() {
            while times[from] + width < *at {
                from += 1;
            }
            most = most.max(to - from + 1);
        }
        most as u64
    }

    fn within(times: &[u64], rate: u32) -> Result<(), TestCaseError> {
        for width in [0, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000] {
            let bound = u128::from(rate) * (u128::from(width) + BURST.as_nanos()) / 1_000_000_000 + 1;
            let most = busiest(times, width);
            prop_assert!(u128::from(most) <= bound, "{most} in {width} ns, at most {bound}");
        }
        Ok(())
    }

    proptest! {
        /// Against an exact model that knows every address: never above the limit, whatever collides.
        #[test]
        fn never_above_rate_times_window_plus_burst(
            rate in proptest::option::of(1u32..5_000),
            net_rate in proptest::option::of(1u32..5_000),
            prefixes in (20u8..=32, 48u8..=128),
            cells in 0u32..4,
            steps in proptest::collection::vec((any::<u8>(), 0u64..3_000_000, any::<bool>()), 1..400),
        ) {
            prop_assume!(rate.is_some() || net_rate.is_some());
            let limit = net_rate.map(|rate| NetworkLimit { rate: pps(rate), v4_prefix: prefixes.0, v6_prefix: prefixes.1 });
            let limits = TargetLimits { per_address: rate.map(pps), per_network: limit };
            let pacer = TargetPacer::new(limits, &[7; 16]).unwrap();
            // Tables so small that everything collides, in some of the cases.
            let small = |sketch: &mut Sketch| sketch.rows = [vec![0; 1 << cells].into(), vec![0; 1 << cells].into()];
            if cells > 0 {
                let mut tables = pacer.tables();
                tables.address.iter_mut().for_each(small);
                tables.network.iter_mut().for_each(|(sketch, _)| small(sketch));
            }
            let (mut by_address, mut by_network): (BTreeMap<IpAddr, Vec<u64>>, BTreeMap<u128, Vec<u64>>) = Default::default();
            let mut now = 1_000_000;
            for (host, wait, wake) in steps {
                let dst: IpAddr = match host % 3 {
                    0 => [198, 18, host >> 4, host & 7].into(),
                    1 => format!("2001:db8:{:x}::{:x}", host >> 5, host & 15).parse().unwrap(),
                    _ => format!("::ffff:198.18.{}.{}", host >> 4, host & 7).parse().unwrap(),
                };
                match pacer.check(Instant::from_nanos(now), dst) {
                    Ok(()) => {
                        pacer.admit(Instant::from_nanos(now), dst);
                        by_address.entry(dst.to_canonical()).or_default().push(now);
                        if let Some(limit) = limit {
                            by_network.entry(network_of(dst.to_canonical(), limit)).or_default().push(now);
                        }
                    }
                    Err(soon) => {
                        prop_assert!(soon.until.as_nanos() > now);
                        if wake {
                            now = soon.until.as_nanos();
                            prop_assert_eq!(pacer.check(soon.until, dst), Ok(()));
                        }
                    }
                }
                now += wait;
            }
            for times in by_address.values().filter(|_| rate.is_some()) {
                within(times, rate.unwrap())?;
            }
            for times in by_network.values() {
                within(times, net_rate.unwrap())?;
            }
        }
    }

    #[test]
    fn addresses_do_not_wait_for_each_other_and_networks_do() {
        let limits = TargetLimits { per_address: Some(pps(10)), per_network: None };
        let pacer = TargetPacer::new(limits, &[1; 16]).unwrap();
        let now = Instant::from_nanos(1_000_000_000);
        let mut soon = 0;
        for n in 0..1_000_u32 {
            let dst: IpAddr = std::net::Ipv4Addr::from(0xc612_0000 + n).into();
            match pacer.check(now, dst) {
                Ok(()) => pacer.admit(now, dst),
                Err(_) => soon += 1,
            }
        }
        assert!(soon <= 10, "{soon} of 1000 met two occupied cells");
        let network = NetworkLimit { rate: pps(10), v4_prefix: 24, v6_prefix: 64 };
        let pacer = TargetPacer::new(TargetLimits { per_address: None, per_network: Some(network) }, &[1; 16]).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        pacer.admit(now, ip("198.18.0.1"));
        let soon = pacer.check(now, ip("198.18.0.200")).unwrap_err();
        assert_eq!(soon.until, now + Duration::from_millis(100) - BURST);
        assert!(soon.lane >= NETWORK_LANES);
        assert_eq!(pacer.check(now, ip("198.18.1.1")), Ok(()));
        assert_eq!(pacer.check(soon.until, ip("198.18.0.200")), Ok(()));
    }

    #[test]
    fn what_leaves_late_counts_when_it_leaves() {
        let pacer = TargetPacer::new(TargetLimits { per_address: Some(pps(100)), per_network: None }, &[1; 16]).unwrap();
        let (now, dst) = (Instant::from_nanos(5_000_000), "198.18.0.1".parse().unwrap());
        pacer.admit(now, dst);
        pacer.left(now + Duration::from_millis(7), dst);
        assert_eq!(pacer.check(now + Duration::from_millis(14), dst).unwrap_err().until, now + Duration::from_millis(15));
    }

    #[test]
    fn clones_share_the_limits() {
        let pacer = TargetPacer::new(TargetLimits { per_address: Some(pps(10)), per_network: None }, &[1; 16]).unwrap();
        let (now, dst) = (Instant::from_nanos(1_000_000_000), "198.18.0.1".parse().unwrap());
        pacer.clone().admit(now, dst);
        assert_eq!(pacer.check(now, dst).unwrap_err().until, now + Duration::from_millis(100) - BURST);
    }

    #[test]
    fn no_limit_is_no_pacer() {
        assert!(TargetPacer::new(TargetLimits::default(), &[0; 16]).is_none());
    }
}
