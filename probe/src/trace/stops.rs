//! What paths of a run know of each other: who was met at which distance, and who stands before. A path that meets somebody known asks
//! nobody nearer, so that many paths do not ask the same first hops again and again (Donnet et al., "Efficient Algorithms for
//! Large-Scale Topology Discovery", SIGMETRICS 2005: the local stop set of Doubletree). A path begins at the distance of the last router before another
//! destination of its network; where there was none, at that of the last one that paths knew when they met it.
//!
//! What it costs: where load is spread, the nearer hops may be those of another of the ways, and a change of them is not seen before
//! what is known is too old.
//!
//! **Invariant:** memory is bounded; what finds no room is not known, and asked.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::HashMap;

use picket_wire::trace::Reply;

use crate::net::time::Instant;

/// Routers that are known at most: some 200 bytes each.
const ROUTERS: usize = 16_384;
/// How long something is known.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// A path moves the start of the next ones by this part of what it was wrong.
const SHARE: i32 = 4;
/// Networks of which the last router is known, at most.
const NETWORKS: usize = 16_384;
/// The longest round trip fades by this part of the difference with each path.
const FADING: u32 = 16;
/// Parts of a hop.
const PARTS: i32 = 16;

/// The place of somebody known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

#[derive(Debug)]
struct Router {
    ttl: u8,
    reply: Reply,
    before: Option<Place>,
    at: Instant,
}

/// The routers that are known.
#[derive(Debug, Default)]
pub(super) struct Stops {
    routers: Vec<Router>,
    places: HashMap<(u8, IpAddr), Place>,
    /// How far the last router is, by network.
    last: HashMap<IpAddr, u8>,
    /// The longest round trip of paths, of late.
    slowest: Option<Duration>,
    /// Where paths to other networks begin, for IPv4 and IPv6, in parts of a hop.
    starts: [Option<i32>; 2],
}

impl Stops {
    fn router(&self, place: Place) -> Option<&Router> {
        self.routers.get(place.0 as usize)
    }

    /// Somebody who is known at that distance.
    pub(super) fn find(&self, now: Instant, ttl: u8, addr: IpAddr) -> Option<Place> {
        let place = self.places.get(&(ttl, addr)).copied()?;
        self.router(place).filter(|router| now.saturating_since(router.at) < KNOWN_FOR).map(|_| place)
    }

    /// The nearer ones, the nearest last. Those who said nothing are left out.
    pub(super) fn before(&self, place: Place) -> impl Iterator<Item = (u8, &Reply)> {
        let before = move |router: &&Router| router.before.and_then(|place| self.router(place));
        core::iter::successors(self.router(place).and_then(|router| before(&router)), before).map(|router| (router.ttl, &router.reply))
    }

    /// Somebody was met behind `before`; who is known already stays as known.
    pub(super) fn know(&mut self, now: Instant, ttl: u8, reply: &Reply, before: Option<Place>) -> Option<Place> {
        // Whoever stands before is nearer, also where an old entry was replaced meanwhile: so that every row has an end.
        let before = before.filter(|place| self.router(*place).is_some_and(|router| router.ttl < ttl));
        let router = Router { ttl, reply: reply.clone(), before, at: now };
        if let Some(place) = self.places.get(&(ttl, reply.from)).copied() {
            let known = self.routers.get_mut(place.0 as usize)?;
            if now.saturating_since(known.at) >= KNOWN_FOR {
                *known = router;
            }
            return Some(place);
        }
        if self.routers.len() >= ROUTERS {
            return None;
        }
        let place = Place(u32::try_from(self.routers.len()).ok()?);
        self.places.insert((ttl, reply.from), place);
        self.routers.push(router);
        Some(place)
    }

    /// How long round trips are at most, as far as is known.
    pub(super) fn slowest(&self) -> Option<Duration> {
        self.slowest
    }

    /// Where a path to `dst` begins best, once that is known.
    pub(super) fn start(&self, dst: IpAddr) -> Option<u8> {
        let parts = || self.starts[usize::from(dst.is_ipv6())].and_then(|parts| u8::try_from((parts + PARTS / 2) / PARTS).ok());
        self.last.get(&network(dst)).copied().or_else(parts)
    }

    /// A path to `dst` is over: how far its last router is, the last one that was known when the path met it, where there could be one, and its
    /// longest round trip.
    pub(super) fn ended(&mut self, dst: IpAddr, last: u8, known: Option<u8>, slowest: Option<Duration>) {
        if let Some(slowest) = slowest {
            self.slowest = Some(self.slowest.map_or(slowest, |before| slowest.max(before - before.saturating_sub(slowest) / FADING)));
        }
        let network = network(dst);
        if self.last.len() < NETWORKS || self.last.contains_key(&network) {
            self.last.insert(network, last);
        }
        if let Some(known) = known {
            let (start, met) = (&mut self.starts[usize::from(dst.is_ipv6())], i32::from(known) * PARTS);
            *start = Some(start.map_or(met, |start| start + (met - start) / SHARE));
        }
    }
}

/// What is likely behind one router: the least that is routed between networks, /24 and /48.
fn network(dst: IpAddr) -> IpAddr {
    match dst {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & 0xffff_ff00).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (!0 << 80)).into()),
    }
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::ReplyKind;

    use super::*;

    const DST: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(198, 18, 0, 1));

    fn reply(last: u8) -> Reply {
        let from = IpAddr::from([192, 0, 2, last]);
        Reply { from, rtt_us: 1, ttl: 64, kind: ReplyKind::TimeExceeded, quoted: None, mpls: Vec::new(), interfaces: Vec::new(), mtu: None }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn who_stands_before_somebody_is_known_for_some_time() {
        let mut stops = Stops::default();
        let first = stops.know(at(0), 1, &reply(1), None);
        // The second one said nothing.
        let third = stops.know(at(0), 3, &reply(3), first);
        stops.know(at(0), 4, &reply(4), third).unwrap();
        let place = stops.find(at(299), 4, reply(4).from).unwrap();
        assert_eq!(stops.before(place).map(|(ttl, reply)| (ttl, reply.from)).collect::<Vec<_>>(), [(3, reply(3).from), (1, reply(1).from)]);
        assert_eq!(stops.find(at(1), 3, reply(4).from), None, "at another distance");
        assert_eq!(stops.find(at(300), 4, reply(4).from), None, "long ago");
        // Who is known stays as known until then.
        assert_eq!(stops.know(at(10), 4, &reply(4), None), Some(place));
        assert_eq!(stops.before(place).count(), 2);
        assert_eq!(stops.know(at(300), 4, &reply(4), first), Some(place));
        assert_eq!(stops.before(place).count(), 1);
    }

    #[test]
    fn memory_is_bounded_and_rows_end() {
        let mut stops = Stops::default();
        let mut before = None;
        for n in 0..ROUTERS as u32 + 10 {
            let reply = Reply { from: IpAddr::from(n.to_be_bytes()), ..reply(0) };
            let place = stops.know(at(0), (n % 64) as u8 + 1, &reply, before);
            assert_eq!(place.is_some(), n < ROUTERS as u32);
            before = place;
        }
        let last = stops.find(at(0), 64, IpAddr::from(63_u32.to_be_bytes())).unwrap();
        assert_eq!(stops.before(last).count(), 63);
        assert_eq!(stops.before(Place(64)).count(), 0, "nobody farther stands before it");
    }

    #[test]
    fn paths_begin_where_others_met_the_last_one_that_was_known() {
        let mut stops = Stops::default();
        let other = IpAddr::from([198, 18, 1, 1]);
        assert_eq!(stops.start(DST), None);
        stops.ended(DST, 0, None, None);
        assert_eq!((stops.start(DST), stops.start(other)), (Some(0), None), "a neighbour");
        stops.ended(DST, 12, Some(11), None);
        assert_eq!((stops.start(IpAddr::from([198, 18, 0, 255])), stops.start(other)), (Some(12), Some(11)));
        for _ in 0..20 {
            stops.ended(DST, 6, Some(4), None);
        }
        assert_eq!((stops.start(DST), stops.start(other)), (Some(6), Some(4)));
        let [v6, same, another] = ["2001:db8:1::1", "2001:db8:1:2::1", "2001:db8:2::1"].map(|addr| addr.parse::<IpAddr>().unwrap());
        stops.ended(v6, 3, None, None);
        assert_eq!([v6, same, another].map(|addr| stops.start(addr)), [Some(3), Some(3), None]);
    }

    #[test]
    fn the_longest_round_trip_fades() {
        let mut stops = Stops::default();
        let ms = Duration::from_millis;
        assert_eq!(stops.slowest(), None);
        for (slowest, known) in [(100, 100), (20, 95), (20, 90), (200, 200)] {
            stops.ended(DST, 1, None, Some(ms(slowest)));
            assert_eq!(stops.slowest().map(|known| known.as_millis()), Some(known));
        }
    }

    #[test]
    fn no_more_networks_are_remembered_than_there_is_room_for() {
        let mut stops = Stops::default();
        let addr = |n: u32| IpAddr::from((n << 8).to_be_bytes());
        (0..NETWORKS as u32 + 1).for_each(|n| stops.ended(addr(n), 5, None, None));
        assert_eq!((stops.start(addr(0)), stops.start(addr(NETWORKS as u32))), (Some(5), None));
        stops.ended(addr(0), 7, None, None);
        assert_eq!(stops.start(addr(0)), Some(7), "what is known is kept up to date");
    }
}
