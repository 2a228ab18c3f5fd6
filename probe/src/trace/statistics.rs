//! Loss and round trips of each hop over many paths to one destination, as mtr shows them. Pure sums: it is told paths that are over, and how they were asked
//! for, and knows neither when nor why the next one comes.
//!
//! **Loss.** A packet is lost when the wait for its answer is over. Of a path that was broken off only what was answered counts, and of hops behind the end of
//! a path nothing: nobody waited for them. Hops that were asked in vain behind the last answer do count, so that a destination that is lost now and then has
//! its loss where it was seen before.
//!
//! **The end.** Where a packet to the destination's distance is lost and one of a larger TTL is answered, the path seems longer than it is. So the nearest TTL
//! at which the destination answered is its distance, until a router answers there or farther: then the way has really become longer.
//!
//! **Invariant:** sent = answered + lost, of every hop.
//! **Invariant:** what is known of a TTL stays with it, wherever later paths end.
//! **Invariant:** memory is bounded by the TTLs and [`ADDRESSES_MAX`], not by the paths.

use core::net::IpAddr;

use picket_wire::trace::{Hop, MAX_TTL, Path, PathEnd, ReplyKind};

use super::spec::TracePlan;

/// Addresses of one hop that are kept apart; answers of more are only counted.
pub const ADDRESSES_MAX: usize = 32;

/// Round trips without the round trips (Welford 1962): count, mean, and the sum of squared distances from it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Spread {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// Of a sample: divided by one less than the count.
    fn deviation(&self) -> f64 {
        if self.count < 2 { 0.0 } else { (self.squares / (self.count - 1) as f64).sqrt() }
    }
}

/// The round trips of a hop, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundTrips {
    /// The latest.
    pub last: u32,
    /// The mean.
    pub average: f64,
    /// The shortest.
    pub best: u32,
    /// The longest.
    pub worst: u32,
    /// The standard deviation of the sample; 0 of a single one.
    pub deviation: f64,
}

/// What is known of one hop.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HopStatistics {
    sent: u64,
    times: Spread,
    last: u32,
    best: u32,
    worst: u32,
    addresses: Vec<(IpAddr, u64)>,
    /// Who answered in the latest path in which anybody did.
    latest: Vec<IpAddr>,
}

impl HopStatistics {
    /// Packets of which it is known what became of them.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Packets that were answered.
    pub fn answered(&self) -> u64 {
        self.times.count
    }

    /// Packets that were not, in percent; none of none.
    pub fn loss(&self) -> f64 {
        match self.sent {
            0 => 0.0,
            sent => (sent - self.times.count) as f64 * 100.0 / sent as f64,
        }
    }

    /// The round trips; `None` where nobody ever answered.
    pub fn round_trips(&self) -> Option<RoundTrips> {
        let Self { last, best, worst, times, .. } = *self;
        (times.count > 0).then(|| RoundTrips { last, average: times.mean, best, worst, deviation: times.deviation() })
    }

    /// Who answered how often, who came first first; at most [`ADDRESSES_MAX`].
    pub fn addresses(&self) -> &[(IpAddr, u64)] {
        &self.addresses
    }

    fn answer(&mut self, from: IpAddr, us: u32) {
        self.best = if self.times.count == 0 { us } else { self.best.min(us) };
        self.worst = self.worst.max(us);
        self.last = us;
        self.times.add(us.into());
        if let Some((_, count)) = self.addresses.iter_mut().find(|(addr, _)| *addr == from) {
            *count += 1;
        } else if self.addresses.len() < ADDRESSES_MAX {
            self.addresses.push((from, 1));
        }
    }

    /// Takes what a path saw here; `lost` of its packets were waited for in vain.
    fn take(&mut self, hop: &Hop, lost: u64) -> HopDelta {
        self.sent += hop.replies.len() as u64 + lost;
        let mut from: Vec<IpAddr> = Vec::new();
        for reply in &hop.replies {
            self.answer(reply.from, reply.rtt_us);
            if !from.contains(&reply.from) {
                from.push(reply.from);
            }
        }
        if from.is_empty() || from == self.latest {
            from.clear();
        } else {
            self.latest.clone_from(&from);
        }
        HopDelta { ttl: hop.ttl, from, rtts_us: hop.replies.iter().map(|reply| reply.rtt_us).collect(), lost }
    }
}

/// What one path saw of a hop, as far as it is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopDelta {
    /// The hop.
    pub ttl: u8,
    /// Who answered, where these are others than in the latest path in which anybody did.
    pub from: Vec<IpAddr>,
    /// Round trips, in microseconds.
    pub rtts_us: Vec<u32>,
    /// Packets that were waited for in vain.
    pub lost: u64,
}

/// What is known of the way to a destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    dst: IpAddr,
    paths: u64,
    /// How the paths ended, in the order in which each end came first.
    ends: Vec<(PathEnd, u64)>,
    first_ttl: u8,
    /// By TTL, from the first one.
    hops: Vec<HopStatistics>,
    /// The nearest TTL at which the destination answered, unless the way has become longer since.
    end: Option<u8>,
    /// Paths in a row that did not reach it.
    missed: u8,
}

impl Statistics {
    /// Nothing is known yet.
    pub fn new(dst: IpAddr) -> Self {
        Self { dst, paths: 0, ends: Vec::new(), first_ttl: 1, hops: Vec::new(), end: None, missed: 0 }
    }

    /// The destination.
    pub fn dst(&self) -> IpAddr {
        self.dst
    }

    /// Paths that were taken in.
    pub fn paths(&self) -> u64 {
        self.paths
    }

    /// How they ended, and how often.
    pub fn ends(&self) -> &[(PathEnd, u64)] {
        &self.ends
    }

    /// The TTL at which the destination answers; `None` where that is not known, or was in vain for the latest two paths.
    pub fn distance(&self) -> Option<u8> {
        self.end.filter(|_| self.missed < 2)
    }

    /// The hops by TTL, up to the destination, or the farthest one that ever answered.
    pub fn hops(&self) -> impl Iterator<Item = (u8, &HopStatistics)> {
        let known = self.known();
        (self.first_ttl..).zip(self.hops.get(..known).unwrap_or_default())
    }

    fn known(&self) -> usize {
        let answered = self.hops.iter().rposition(|hop| hop.times.count > 0).map_or(0, |at| at + 1);
        let end = self.end.and_then(|end| end.checked_sub(self.first_ttl)).map_or(usize::MAX, |at| usize::from(at) + 1);
        answered.min(end)
    }

    fn look_at_end(&mut self, path: &Path) {
        let is_router = |hop: &&Hop| hop.replies.iter().any(|reply| reply.kind == ReplyKind::TimeExceeded);
        if let Some(router) = path.hops.iter().rfind(is_router) {
            self.end = self.end.filter(|end| router.ttl < *end);
        }
        match (path.end, path.hops.last()) {
            (PathEnd::Reached, Some(last)) => {
                self.end = Some(self.end.map_or(last.ttl, |end| end.min(last.ttl)));
                self.missed = 0;
            }
            (PathEnd::Stopped, _) => {}
            _ => self.missed = self.missed.saturating_add(1),
        }
    }

    /// Takes in a path that was asked for by `plan`, and tells what it saw of the hops that are known by now. All paths have the same first TTL.
    pub fn add(&mut self, path: &Path, plan: &TracePlan) -> Vec<HopDelta> {
        self.first_ttl = plan.first_ttl;
        self.paths += 1;
        match self.ends.iter_mut().find(|(end, _)| *end == path.end) {
            Some((_, count)) => *count += 1,
            None => self.ends.push((path.end, 1)),
        }
        self.look_at_end(path);
        let over = path.end != PathEnd::Stopped;
        let mut deltas: Vec<HopDelta> = Vec::new();
        // What another path was told is no measurement of this one.
        for hop in path.hops.iter().filter(|hop| !hop.inherited) {
            let lost = u64::from(hop.sent).saturating_sub(hop.replies.len() as u64);
            deltas.extend(self.hop(hop.ttl).map(|known| known.take(hop, if over { lost } else { 0 })));
        }
        if path.end == PathEnd::Silent {
            let next = path.hops.last().map_or(plan.first_ttl, |hop| hop.ttl.saturating_add(1));
            for ttl in next..next.saturating_add(plan.gap).min(plan.max_ttl.saturating_add(1)) {
                let silent = Hop { ttl, sent: plan.attempts(), ..Hop::default() };
                deltas.extend(self.hop(ttl).map(|known| known.take(&silent, plan.attempts().into())));
            }
        }
        let known = self.known();
        deltas.retain(|delta| usize::from(delta.ttl - self.first_ttl) < known && (delta.lost > 0 || !delta.rtts_us.is_empty()));
        deltas
    }

    fn hop(&mut self, ttl: u8) -> Option<&mut HopStatistics> {
        let at = usize::from(ttl.checked_sub(self.first_ttl).filter(|_| ttl <= MAX_TTL)?);
        if self.hops.len() <= at {
            self.hops.resize_with(at + 1, HopStatistics::default);
        }
        self.hops.get_mut(at)
    }
}

/// `plan` for one more path to each destination of `seen`, without the TTLs beyond the farthest of them: it would get the packets of all of these, again and
/// again. Where the distance of one is not known, as far as `plan` says.
pub fn narrowed<'a>(plan: &TracePlan, seen: impl IntoIterator<Item = &'a Statistics>) -> TracePlan {
    let farthest = seen.into_iter().try_fold(0, |farthest: u8, statistics| Some(farthest.max(statistics.distance()?)));
    let known = farthest.filter(|farthest| *farthest > 0);
    let max_ttl = known.map_or(plan.max_ttl, |farthest| farthest.clamp(plan.first_ttl, plan.max_ttl));
    TracePlan { max_ttl, ..plan.clone() }
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::{Method, Reply};
    use proptest::prelude::*;

    use super::*;
    use crate::trace::tests::plan;

    const DST: &str = "198.18.0.9";

    fn asked() -> TracePlan {
        TracePlan { queries: 1, retry: false, gap: 3, max_ttl: 20, ..plan(DST, Method::Icmp) }
    }

    fn hop(ttl: u8, sent: u8, replies: &[(u8, u32)]) -> Hop {
        let reply = |(from, rtt_us): &(u8, u32)| Reply {
            from: if *from == 9 { DST.parse().unwrap() } else { [192, 0, 2, *from].into() },
            rtt_us: *rtt_us,
            ttl: 60,
            kind: if *from == 9 { ReplyKind::Answer } else { ReplyKind::TimeExceeded },
            quoted: None,
            mpls: Vec::new(),
            interfaces: Vec::new(),
            mtu: None,
        };
        Hop { ttl, sent, replies: replies.iter().map(reply).collect(), inherited: false }
    }

    fn path(end: PathEnd, hops: Vec<Hop>) -> Path {
        Path { dst: DST.parse().unwrap(), end, hops, sent: 0, mtu: None }
    }

    fn counts(statistics: &Statistics) -> Vec<(u8, u64, u64)> {
        statistics.hops().map(|(ttl, hop)| (ttl, hop.sent(), hop.answered())).collect()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_all_the_numbers(rtts in proptest::collection::vec(1..3_000_000_u32, 1..60), lost in 0..20_u8) {
            let mut statistics = Statistics::new(DST.parse().unwrap());
            for us in &rtts {
                statistics.add(&path(PathEnd::Reached, vec![hop(1, 1, &[(1, *us)])]), &asked());
            }
            statistics.add(&path(PathEnd::Reached, vec![hop(1, lost, &[])]), &asked());
            let (ttl, hop) = statistics.hops().next().unwrap();
            let all: Vec<f64> = rtts.iter().map(|us| f64::from(*us)).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let variance = all.iter().map(|us| (us - mean).powi(2)).sum::<f64>() / (all.len().max(2) - 1) as f64;
            let times = hop.round_trips().unwrap();
            prop_assert_eq!((ttl, hop.sent(), hop.answered()), (1, rtts.len() as u64 + u64::from(lost), rtts.len() as u64));
            prop_assert_eq!((Some(&times.last), Some(&times.best), Some(&times.worst)), (rtts.last(), rtts.iter().min(), rtts.iter().max()));
            prop_assert!((times.average - mean).abs() < 1e-3 && (times.deviation - variance.sqrt()).abs() < 1e-2, "{:?}", times);
            prop_assert!((hop.loss() - f64::from(lost) * 100.0 / (all.len() as f64 + f64::from(lost))).abs() < 1e-9);
        }
    }

    #[test]
    fn a_lost_destination_is_lost_where_it_was_seen() {
        let mut statistics = Statistics::new(DST.parse().unwrap());
        let near = || hop(1, 1, &[(1, 100)]);
        // Before anything is known of TTL 3, and after.
        assert_eq!(statistics.add(&path(PathEnd::Silent, vec![near()]), &asked()).len(), 1);
        assert_eq!(counts(&statistics), [(1, 1, 1)]);
        statistics.add(&path(PathEnd::Reached, vec![near(), hop(2, 1, &[]), hop(3, 1, &[(9, 900)])]), &asked());
        assert_eq!(counts(&statistics), [(1, 2, 2), (2, 2, 0), (3, 2, 1)], "the first path had waited for it");
        let deltas = statistics.add(&path(PathEnd::Silent, vec![near()]), &TracePlan { max_ttl: 3, ..asked() });
        assert_eq!(deltas.iter().map(|delta| (delta.ttl, delta.lost)).collect::<Vec<_>>(), [(1, 0), (2, 1), (3, 1)]);
        assert_eq!(counts(&statistics), [(1, 3, 3), (2, 3, 0), (3, 3, 1)]);
        assert_eq!(statistics.ends(), [(PathEnd::Silent, 2), (PathEnd::Reached, 1)]);
        // Nobody waits behind somebody who says that it cannot be reached.
        statistics.add(&path(PathEnd::Unreachable, vec![near()]), &asked());
        assert_eq!(counts(&statistics), [(1, 4, 4), (2, 3, 0), (3, 3, 1)]);
    }

    #[test]
    fn of_what_was_broken_off_only_answers_count() {
        let mut statistics = Statistics::new(DST.parse().unwrap());
        let deltas = statistics.add(&path(PathEnd::Stopped, vec![hop(1, 2, &[(1, 100)]), hop(2, 1, &[]), hop(3, 1, &[(3, 1)])]), &asked());
        assert_eq!(counts(&statistics), [(1, 1, 1), (2, 0, 0), (3, 1, 1)]);
        assert_eq!(deltas.iter().map(|delta| (delta.ttl, delta.lost)).collect::<Vec<_>>(), [(1, 0), (3, 0)]);
        let (_, silent) = statistics.hops().nth(1).unwrap();
        assert_eq!((silent.loss(), silent.round_trips()), (0.0, None));
    }

    #[test]
    fn what_another_path_was_told_is_not_counted() {
        let mut statistics = Statistics::new(DST.parse().unwrap());
        let inherited = Hop { inherited: true, ..hop(1, 0, &[(1, 100)]) };
        assert_eq!(statistics.add(&path(PathEnd::Reached, vec![inherited, hop(2, 1, &[(9, 5)])]), &asked()).len(), 1);
        assert_eq!(counts(&statistics), [(1, 0, 0), (2, 1, 1)]);
    }

    #[test]
    fn addresses_are_told_when_they_change_and_are_bounded() {
        let mut statistics = Statistics::new(DST.parse().unwrap());
        let mut seen = |from: u8| statistics.add(&path(PathEnd::Reached, vec![hop(1, 1, &[(from, 5)])]), &asked()).remove(0).from;
        let addr = |last: u8| vec![IpAddr::from([192, 0, 2, last])];
        assert_eq!([1, 1, 2, 1].map(&mut seen), [addr(1), Vec::new(), addr(2), addr(1)]);
        (0..100).for_each(|last| drop(seen(last)));
        let (_, hop) = statistics.hops().next().unwrap();
        assert_eq!((hop.addresses().len(), hop.addresses()[0], hop.answered()), (ADDRESSES_MAX, (addr(1)[0], 4), 104));
    }

    #[test]
    fn the_nearest_answer_of_the_destination_is_its_distance_until_the_way_grows() {
        let mut statistics = Statistics::new(DST.parse().unwrap());
        let mut distance = |end, hops: &[(u8, u8)]| {
            let answers = hops.iter().map(|(ttl, from)| (*ttl, [(*from, 5)]));
            let hops = answers.map(|(ttl, answer)| hop(ttl, 1, if answer[0].0 == 0 { &[] } else { &answer }));
            statistics.add(&path(end, hops.collect()), &asked());
            (statistics.distance(), statistics.hops().last().map(|(ttl, _)| ttl))
        };
        let (reached, silent) = (PathEnd::Reached, PathEnd::Silent);
        assert_eq!(distance(silent, &[(1, 1)]), (None, Some(1)));
        assert_eq!(distance(reached, &[(1, 1), (2, 0), (3, 9)]), (Some(3), Some(3)), "its answer at 2 is lost");
        assert_eq!(distance(reached, &[(1, 1), (2, 9)]), (Some(2), Some(2)));
        assert_eq!(distance(reached, &[(1, 1), (2, 0), (3, 9)]), (Some(2), Some(2)), "lost again");
        assert_eq!(distance(silent, &[(1, 1)]), (Some(2), Some(2)));
        assert_eq!(distance(silent, &[(1, 1)]), (None, Some(2)), "twice in vain");
        assert_eq!(distance(PathEnd::Stopped, &[]), (None, Some(2)));
        assert_eq!(distance(reached, &[(1, 1), (2, 9)]), (Some(2), Some(2)));
        assert_eq!(distance(PathEnd::TooFar, &[(1, 1), (2, 2)]), (None, Some(3)), "a router is where it was");
        assert_eq!(distance(reached, &[(1, 1), (2, 2), (3, 3), (4, 9)]), (Some(4), Some(4)));
    }

    #[test]
    fn the_destination_is_not_asked_from_beyond_its_distance() {
        let known = |ttl: u8| {
            let mut statistics = Statistics::new(DST.parse().unwrap());
            statistics.add(&path(PathEnd::Reached, vec![hop(ttl, 1, &[(9, 5)])]), &asked());
            statistics
        };
        let max_ttl = |seen: &[Statistics]| narrowed(&asked(), seen).max_ttl;
        assert_eq!(max_ttl(&[known(5), known(7)]), 7);
        assert_eq!(max_ttl(&[known(5), Statistics::new(DST.parse().unwrap())]), 20);
        assert_eq!(max_ttl(&[]), 20);
        assert_eq!((asked().attempts(), TracePlan { retry: true, ..asked() }.attempts()), (1, 2));
    }
}
