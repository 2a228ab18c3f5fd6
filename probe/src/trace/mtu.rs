//! How large a packet may be that arrives unbroken: path MTU discovery towards one destination (RFC 1191, RFC 8201), and where routers
//! drop what is too large without a word, a search for what arrives (RFC 8899, section 5.3).
//!
//! Sizes are whole packets, IP header included. It must not know packets, TTLs or hops: it says which size is tried next, and is told
//! what became of it.
//!
//! A router that names a size has the last word upwards: whoever sends obeys it, so nothing larger is tried once that size arrives.
//!
//! **Invariant:** what it says arrives has arrived; for that nobody's word is believed.
//! **Invariant:** it ends: what is not known to arrive or to vanish becomes less with each answer and each silence.

use core::net::IpAddr;
use core::time::Duration;

use picket_wire::trace::{MAX_TTL, MtuLimit, PathMtu, SIZES_MOST};

use crate::net::time::Instant;

/// So many sizes that routers name are believed: there are not more narrow links on a way, but there may be somebody who has an answer for every size.
const NAMED_MOST: u8 = 8;
/// Packets of one size that vanish before the size is believed to be too large.
const ATTEMPTS: u8 = 2;

/// A search under way.
#[derive(Debug)]
pub(super) struct Search {
    /// The largest size that arrived, and the smallest that did not.
    arrived: u16,
    vanished: u16,
    /// The size that is being tried, and how often it was.
    size: u16,
    tries: u8,
    /// Whether a router named it, and how many it were so far.
    named: bool,
    names: u8,
    /// When the last one left, while nothing is known of it.
    open: Option<Instant>,
    /// The sizes of all packets, in order.
    sizes: Vec<u16>,
    limits: Vec<MtuLimit>,
    /// The smallest size that was lost without a word.
    lost: Option<u16>,
    ended: bool,
    /// It was broken off, and what was found says nothing of the way.
    cut: bool,
}

impl Search {
    /// Between a size that arrived and the largest one that can leave.
    pub(super) fn new(arrived: u16, most: u16) -> Self {
        Self {
            arrived,
            vanished: most.saturating_add(1),
            size: most.max(arrived),
            tries: 0,
            named: false,
            names: 0,
            open: None,
            sizes: Vec::new(),
            limits: Vec::new(),
            lost: None,
            ended: most <= arrived,
            cut: false,
        }
    }

    /// Whether there is nothing left to find out.
    pub(super) fn is_over(&self) -> bool {
        self.ended
    }

    /// The size that is to leave now, and its place among all.
    pub(super) fn next(&mut self, now: Instant) -> Option<(u16, u16)> {
        if self.ended || self.open.is_some() {
            return None;
        }
        let place = u16::try_from(self.sizes.len()).ok().filter(|place| u64::from(*place) < SIZES_MOST);
        let Some(place) = place else {
            self.cut();
            return None;
        };
        self.sizes.push(self.size);
        self.tries += 1;
        self.open = Some(now);
        Some((self.size, place))
    }

    /// The size of the packet at `place`.
    pub(super) fn size(&self, place: u16) -> Option<u16> {
        self.sizes.get(usize::from(place)).copied()
    }

    /// The packet that was given out last did not leave, and is offered again.
    pub(super) fn withheld(&mut self) {
        if self.open.take().is_some() {
            self.tries = self.tries.saturating_sub(1);
            self.sizes.pop();
        }
    }

    /// Nothing more can leave.
    pub(super) fn cut(&mut self) {
        (self.ended, self.cut) = (true, true);
    }

    /// The packet at `place` arrived.
    pub(super) fn arrived(&mut self, place: u16) {
        let Some(size) = self.size(place) else { return };
        self.arrived = self.arrived.max(size);
        self.lost = self.lost.filter(|lost| *lost > self.arrived);
        // Who was believed lost and came late has proved it wrong.
        self.vanished = self.vanished.max(self.arrived.saturating_add(1));
        if self.named && size == self.size {
            self.ended = true;
        } else if size >= self.size {
            self.look_between();
        }
    }

    /// The packet at `place` was too large for the link behind `from`, who takes `mtu` there where it says so; `None` where it is our own link.
    pub(super) fn too_large(&mut self, place: u16, from: Option<IpAddr>, mtu: Option<u32>) {
        let Some(size) = self.size(place).filter(|size| *size > self.arrived) else { return };
        let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).filter(|mtu| (self.arrived..size).contains(mtu));
        // It was told after all.
        self.lost = self.lost.filter(|lost| *lost != size);
        if let Some(from) = from
            && self.limits.len() < usize::from(MAX_TTL)
            && !self.limits.iter().any(|limit| limit.from == from)
        {
            self.limits.push(MtuLimit { from, bytes: mtu });
        }
        self.vanished = self.vanished.min(size);
        match mtu {
            Some(mtu) if size == self.size && self.names < NAMED_MOST => {
                self.names += 1;
                self.turn_to(mtu, true);
            }
            _ if self.size >= self.vanished => self.look_between(),
            _ => {}
        }
    }

    /// When the last packet is given up, if nothing is heard of it: after `again` where another one follows, else after `over`.
    pub(super) fn due(&self, (again, over): (Duration, Duration)) -> Option<Instant> {
        let wait = if self.tries < ATTEMPTS { again } else { over };
        self.open.filter(|_| !self.ended).map(|left| left + wait)
    }

    /// Nothing was heard of the last packet for as long as is waited.
    pub(super) fn silence(&mut self) {
        if self.open.take().is_some() && self.tries >= ATTEMPTS {
            self.lost = Some(self.lost.map_or(self.size, |lost| lost.min(self.size)));
            self.vanished = self.vanished.min(self.size);
            self.look_between();
        }
    }

    fn look_between(&mut self) {
        self.turn_to(self.arrived + (self.vanished - self.arrived) / 2, false);
    }

    fn turn_to(&mut self, size: u16, named: bool) {
        (self.size, self.tries, self.named, self.open) = (size, 0, named, None);
        self.ended |= size <= self.arrived;
    }

    /// What was found, if it was not broken off.
    pub(super) fn found(self, ttl: u8) -> Option<PathMtu> {
        let found = PathMtu { bytes: self.arrived, ttl, limits: self.limits, silent: self.lost.is_some() };
        (self.ended && !self.cut).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A link that takes so many bytes, behind a router that tells so, tells it without a number, tells nonsense, or tells nothing.
    #[derive(Debug, Clone, Copy)]
    enum Telling {
        All,
        TooLarge,
        Nonsense(u32),
        /// One byte less than was tried, each time another router.
        Less,
        Nothing,
    }

    fn router(at: usize) -> IpAddr {
        IpAddr::from([192, 0, 2, at as u8])
    }

    /// Sends until it is over; returns what was found and how many packets it took, and how many waits.
    fn run(links: &[(u16, Telling)], arrived: u16, most: u16, lost: &[bool]) -> (PathMtu, usize, usize) {
        let mut search = Search::new(arrived, most);
        let (mut packets, mut waits) = (0, 0);
        while let Some((size, place)) = search.next(Instant::ZERO) {
            packets += 1;
            assert!(packets as u64 <= SIZES_MOST, "it ends");
            let is_lost = lost.get(packets - 1).copied().unwrap_or(false);
            match links.iter().enumerate().find(|(_, (mtu, _))| *mtu < size) {
                _ if is_lost => (search.silence(), waits += 1).0,
                None => search.arrived(place),
                Some((at, (mtu, Telling::All))) => search.too_large(place, Some(router(at)), Some(u32::from(*mtu))),
                Some((at, (_, Telling::TooLarge))) => search.too_large(place, Some(router(at)), None),
                Some((_, (_, Telling::Less))) => search.too_large(place, Some(router(packets)), Some(u32::from(size) - 1)),
                Some((at, (_, Telling::Nonsense(mtu)))) => search.too_large(place, Some(router(at)), Some(*mtu)),
                Some((_, (_, Telling::Nothing))) => (search.silence(), waits += 1).0,
            }
        }
        assert!(search.is_over());
        (search.found(7).expect("it is not broken off"), packets, waits)
    }

    #[test]
    fn routers_that_tell_are_asked_once_each() {
        let (found, packets, waits) = run(&[(1_492, Telling::All), (1_400, Telling::All)], 40, 1_500, &[]);
        assert_eq!((found.bytes, found.silent, packets, waits), (1_400, false, 3, 0));
        assert_eq!(found.limits, [(0, 1_492), (1, 1_400)].map(|(at, bytes)| MtuLimit { from: router(at), bytes: Some(bytes) }));
        let (found, packets, _) = run(&[], 40, 1_500, &[]);
        assert_eq!((found, packets), (PathMtu { bytes: 1_500, ttl: 7, limits: Vec::new(), silent: false }, 1));
    }

    #[test]
    fn what_vanishes_is_found_by_halving() {
        let (found, packets, waits) = run(&[(1_400, Telling::Nothing)], 40, 1_500, &[]);
        assert!(found.silent && found.limits.is_empty());
        assert_eq!((found.bytes, packets, waits), (1_400, 16, 8));
    }

    #[test]
    fn nothing_larger_can_leave() {
        assert!(Search::new(1_500, 1_500).is_over());
        let mut search = Search::new(1_500, 576);
        assert_eq!((search.next(Instant::ZERO), search.found(7).unwrap().bytes), (None, 1_500));
    }

    #[test]
    fn a_packet_that_did_not_leave_is_no_silence() {
        let mut search = Search::new(40, 1_500);
        for _ in 0..5 {
            assert_eq!(search.next(Instant::ZERO).map(|(size, _)| size), Some(1_500));
            assert_eq!(search.next(Instant::ZERO), None, "one at a time");
            search.withheld();
        }
        assert_eq!(search.next(Instant::ZERO), Some((1_500, 0)));
        let waits = (Duration::from_millis(5), Duration::from_millis(9));
        assert_eq!(search.due(waits), Some(Instant::ZERO + waits.0));
        search.cut();
        assert_eq!((search.due(waits), search.found(7)), (None, None), "nothing was found out");
    }

    #[test]
    fn who_comes_late_counts() {
        let mut search = Search::new(40, 1_500);
        let first = search.next(Instant::ZERO).unwrap().1;
        search.silence();
        let second = search.next(Instant::ZERO).unwrap().1;
        search.silence();
        assert_eq!(search.next(Instant::ZERO).map(|(size, _)| size), Some(770));
        search.arrived(first);
        search.arrived(second);
        assert!(search.is_over());
        let found = search.found(7).unwrap();
        assert_eq!((found.bytes, found.silent), (1_500, false));
    }

    fn telling() -> impl Strategy<Value = Telling> {
        prop_oneof![
            Just(Telling::All),
            Just(Telling::Less),
            Just(Telling::TooLarge),
            any::<u32>().prop_map(Telling::Nonsense),
            (0..2_000_u32).prop_map(Telling::Nonsense),
            Just(Telling::Nothing)
        ]
    }

    proptest! {
        #[test]
        fn the_smallest_link_is_found_whether_routers_tell_or_not(
            links in proptest::collection::vec((68..2_000_u16, telling()), 0..5), most in 68..2_000_u16, arrived in 20..68_u16,
        ) {
            let (found, ..) = run(&links, arrived, most, &[]);
            let smallest = links.iter().map(|(mtu, _)| *mtu).min().unwrap_or(most).min(most);
            let honest = links.iter().all(|(_, telling)| !matches!(telling, Telling::Nonsense(_) | Telling::Less));
            prop_assert!(if honest { found.bytes == smallest } else { found.bytes <= smallest }, "{} of {smallest}", found.bytes);
        }

        /// Whoever loses a packet now and then makes it smaller at worst.
        #[test]
        fn nothing_is_said_to_arrive_that_does_not(
            links in proptest::collection::vec((68..2_000_u16, telling()), 0..5), most in 68..2_000_u16, lost: Vec<bool>,
        ) {
            let (found, ..) = run(&links, 40, most, &lost);
            prop_assert!(found.bytes <= links.iter().map(|(mtu, _)| *mtu).min().unwrap_or(most).min(most));
        }

        /// In any order, and about packets that never were.
        #[test]
        fn any_order_of_words_ends(words in proptest::collection::vec((0..5_u8, 0..20_u16, any::<u32>()), 0..200), most: u16) {
            let mut search = Search::new(40, most);
            for (word, place, mtu) in words {
                match word {
                    0 => { search.next(Instant::ZERO); }
                    1 => search.arrived(place),
                    2 => search.too_large(place, Some(router(place.into())), Some(mtu % 2_000)),
                    3 => search.silence(),
                    _ => search.withheld(),
                }
            }
            for _ in 0..100 {
                match search.next(Instant::ZERO) {
                    Some((_, place)) => search.arrived(place),
                    None => search.silence(),
                }
            }
            prop_assert!(search.is_over());
        }
    }
}
