//! What is known of the way to a destination, and what of a later path is new to it. Pure.
//!
//! Routers that spread load make several paths of one way, so a way is a set: at each distance all routers that were met there. A path
//! that takes one of them is no change. Nor is silence: a router that says nothing today may well be there, and one that was
//! silent before and answers now has not come yesterday. A hop that was taken from another path was not measured, and says nothing either.
//!
//! Whether the destination was reached is told apart: a way may be the same up to where it ends, and a destination may be reached
//! by another way.
//!
//! **Invariant:** [`Way::add`] is commutative, associative and idempotent: the order in which alternatives were seen does not matter.
//! **Invariant:** what was added is no change: `way.add(path)` leaves `way.compare(path)` without a changed hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use picket_wire::path::Found;
use picket_wire::trace::{PathEnd, Reply, ReplyKind};
use serde::{Deserialize, Serialize};

use crate::view::{HopChange, Reached};

/// The way to a destination, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Way {
    /// The routers that were met at each distance.
    pub routers: BTreeMap<u8, BTreeSet<IpAddr>>,
    /// The distances at which the destination itself answered; none where it was never reached.
    pub distances: BTreeSet<u8>,
}

/// What of a path is new to a way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Hops at which somebody else answered than was known there, by distance.
    pub hops: Vec<HopChange>,
    /// The destination's distance, where it is none of those that are known.
    pub distance: Option<u8>,
    /// Whether the destination was reached now and never before, or before and not now.
    pub reached: Option<Reached>,
}

impl Difference {
    /// Whether packets took another way, wherever they arrived.
    pub fn is_another_way(&self) -> bool {
        !self.hops.is_empty() || self.distance.is_some()
    }

    /// Whether there is nothing to tell.
    pub fn is_none(&self) -> bool {
        !self.is_another_way() && self.reached.is_none()
    }
}

impl Way {
    /// The way that one path, or all ways found at once, show.
    pub fn of(found: &Found) -> Self {
        let mut way = Self::default();
        let reached = found.end() == PathEnd::Reached;
        match found {
            Found::Path(path) => {
                for hop in path.hops.iter().filter(|hop| !hop.inherited) {
                    hop.replies.iter().for_each(|reply| way.meet(hop.ttl, reply, reached));
                }
            }
            Found::Ways(graph) => {
                for hop in &graph.hops {
                    hop.nodes.iter().for_each(|node| way.meet(hop.ttl, &node.reply, reached));
                }
            }
        }
        way
    }

    fn meet(&mut self, ttl: u8, reply: &Reply, reached: bool) {
        match reply.kind {
            ReplyKind::TimeExceeded => drop(self.routers.entry(ttl).or_default().insert(reply.from)),
            ReplyKind::Answer | ReplyKind::Unreachable { .. } if reached => drop(self.distances.insert(ttl)),
            // Whoever refuses to forward is a router of the way.
            ReplyKind::Answer | ReplyKind::Unreachable { .. } => drop(self.routers.entry(ttl).or_default().insert(reply.from)),
        }
    }

    /// Takes in what another path to the same destination shows.
    pub fn add(&mut self, other: &Way) {
        for (ttl, routers) in &other.routers {
            self.routers.entry(*ttl).or_default().extend(routers);
        }
        self.distances.extend(&other.distances);
    }

    /// Whether the destination was reached.
    pub fn is_reached(&self) -> bool {
        !self.distances.is_empty()
    }

    /// What of a later path is new.
    pub fn compare(&self, later: &Way) -> Difference {
        let change = |(ttl, met): (&u8, &BTreeSet<IpAddr>)| {
            // Where nobody ever answered, nothing is known that could have changed.
            let known = self.routers.get(ttl)?;
            let new: BTreeSet<IpAddr> = met.difference(known).copied().collect();
            (!new.is_empty()).then(|| HopChange { ttl: *ttl, known: known.clone(), new })
        };
        let reached = match (self.is_reached(), later.is_reached()) {
            (true, false) => Some(Reached::Lost),
            (false, true) => Some(Reached::Gained),
            _ => None,
        };
        // What answers at several distances (one lost packet is enough) is as far as the nearest.
        let nearest = later.distances.first().copied();
        let distance = nearest.filter(|nearest| self.is_reached() && !self.distances.contains(nearest));
        Difference { hops: later.routers.iter().filter_map(change).collect(), distance, reached }
    }
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::{Hop, Path};
    use proptest::prelude::*;

    use super::*;

    fn addr(last: u8) -> IpAddr {
        [198, 18, 0, last].into()
    }

    fn reply(last: u8, kind: ReplyKind) -> Reply {
        Reply { from: addr(last), rtt_us: 1, ttl: 60, kind, quoted: None, mpls: vec![], interfaces: vec![], mtu: None }
    }

    /// A path over these routers, 0 for a silent one; the destination is 99.
    fn path(routers: &[u8], reached: bool) -> Found {
        let hop = |(ttl, router): (u8, &u8)| {
            let replies = if *router == 0 { vec![] } else { vec![reply(*router, ReplyKind::TimeExceeded)] };
            Hop { ttl, sent: 1, replies, inherited: false }
        };
        let mut hops: Vec<Hop> = (1..).zip(routers).map(hop).collect();
        if reached {
            let ttl = hops.len() as u8 + 1;
            hops.push(Hop { ttl, sent: 1, replies: vec![reply(99, ReplyKind::Answer)], inherited: false });
        }
        let end = if reached { PathEnd::Reached } else { PathEnd::Silent };
        Found::Path(Path { dst: addr(99), end, hops, sent: 9, mtu: None })
    }

    fn way(paths: &[Found]) -> Way {
        let mut way = Way::default();
        paths.iter().for_each(|path| way.add(&Way::of(path)));
        way
    }

    fn difference(known: &[Found], later: &Found) -> Difference {
        way(known).compare(&Way::of(later))
    }

    #[test]
    fn alternatives_are_one_way_and_a_stranger_is_told_with_its_place() {
        let known = [path(&[1, 2, 4], true), path(&[1, 3, 4], true)];
        assert!(difference(&known, &path(&[1, 3, 4], true)).is_none());
        let changed = difference(&known, &path(&[1, 5, 4], true));
        let hop = HopChange { ttl: 2, known: [addr(2), addr(3)].into(), new: [addr(5)].into() };
        assert_eq!(changed, Difference { hops: vec![hop], distance: None, reached: None });
        assert!(changed.is_another_way());
    }

    #[test]
    fn silence_is_no_change() {
        let known = [path(&[1, 2, 0, 4], true)];
        assert!(difference(&known, &path(&[1, 0, 3, 4], true)).is_none());
        assert!(difference(&known, &path(&[0, 0, 0, 0], true)).is_none());
        let mut inherited = path(&[1, 7, 3, 4], true);
        if let Found::Path(path) = &mut inherited {
            path.hops[1].inherited = true;
        }
        assert!(difference(&known, &inherited).is_none());
    }

    #[test]
    fn whether_it_was_reached_is_told_apart_from_the_way() {
        let known = [path(&[1, 2], true)];
        let lost = difference(&known, &path(&[1, 2], false));
        assert_eq!((lost.reached, lost.is_another_way(), lost.is_none()), (Some(Reached::Lost), false, false));
        let elsewhere = difference(&known, &path(&[1, 3], false));
        assert_eq!((elsewhere.reached, elsewhere.is_another_way()), (Some(Reached::Lost), true));
        let gained = difference(&[path(&[1, 2], false)], &path(&[1, 2], true));
        assert_eq!((gained.reached, gained.is_another_way()), (Some(Reached::Gained), false));
        let farther = difference(&known, &path(&[1, 2, 0], true));
        assert_eq!((farther.distance, farther.reached), (Some(4), None));
        // A router that refuses to forward was met like any other.
        let refused = reply(2, ReplyKind::Unreachable { icmp_type: 3, icmp_code: 13 });
        let hop = Hop { ttl: 1, sent: 1, replies: vec![refused], inherited: false };
        let refused = Found::Path(Path { dst: addr(99), end: PathEnd::Unreachable, hops: vec![hop], sent: 1, mtu: None });
        assert_eq!(difference(&known, &refused).hops[0].new, [addr(2)].into());
    }

    fn paths() -> impl Strategy<Value = Vec<Found>> {
        let one = (proptest::collection::vec(0u8..6, 0..6), any::<bool>()).prop_map(|(routers, reached)| path(&routers, reached));
        proptest::collection::vec(one, 1..6)
    }

    proptest! {
        #[test]
        fn the_order_of_alternatives_does_not_matter(paths in paths(), turn in 0usize..6) {
            let mut turned = paths.clone();
            turned.rotate_left(turn % paths.len());
            let backwards: Vec<Found> = paths.iter().rev().cloned().collect();
            let twice = [paths.clone(), paths.clone()].concat();
            for other in [turned, backwards, twice] {
                prop_assert_eq!(way(&other), way(&paths));
            }
        }

        #[test]
        fn what_is_known_is_no_change(paths in paths()) {
            let all = way(&paths);
            prop_assert!(all.compare(&all).is_none());
            for path in &paths {
                let difference = all.compare(&Way::of(path));
                prop_assert!(!difference.is_another_way(), "{:?}", difference);
            }
        }

        #[test]
        fn silence_never_makes_a_change(paths in paths(), later in paths(), silent in any::<[bool; 8]>()) {
            let known = way(&paths);
            let mut quiet = way(&later);
            let before = known.compare(&quiet);
            quiet.routers.retain(|ttl, _| !silent[usize::from(*ttl) % 8]);
            let after = known.compare(&quiet);
            prop_assert!(after.hops.iter().all(|hop| before.hops.contains(hop)));
            prop_assert_eq!((after.distance, after.reached), (before.distance, before.reached));
        }

        #[test]
        fn accepting_what_was_seen_ends_the_change(paths in paths(), later in paths()) {
            let mut known = way(&paths);
            let later = way(&later);
            known.add(&later);
            let once = known.clone();
            prop_assert!(!known.compare(&later).is_another_way());
            known.add(&later);
            prop_assert_eq!(known, once);
        }
    }
}
