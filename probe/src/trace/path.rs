//! One path under way: which hop is asked next, what was answered, when it is over. Pure book-keeping; packets are the engine's.
//!
//! **Invariant:** a path ends: every hop up to its end is asked, or known from another path, or given up.
//! **Invariant:** no hop gets more packets than the plan's attempts, and none beyond the end of the path once that is known.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::VecDeque;

use picket_wire::trace::{Hop, MAX_TTL, Path, PathEnd, Reply, ReplyKind};

use super::course::{Ask, Course};
use super::mtu::Search;
use super::report::Event;
use super::spec::TracePlan;
use super::stops::{Place, Stops};
use crate::net::engine::NotSent;
use crate::net::time::Instant;

/// A packet of the path, named by its place in the list of all.
#[derive(Debug, Clone, Copy)]
struct Packet {
    ttl: u8,
    state: PacketState,
    /// Its place in the search for the largest one that arrives, where it is part of that.
    size: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PacketState {
    /// It did not leave, and waits to be offered again.
    Held,
    /// It left.
    Sent(Instant),
    /// It was answered.
    Answered,
    /// It did not leave and never will.
    Lost,
}

/// What is known of a hop.
#[derive(Debug, Clone, Default)]
struct HopState {
    /// Packets that were decided on, and those of them that left.
    planned: u8,
    sent: u8,
    /// Packets of which nothing is known yet.
    open: u8,
    /// Packets that were held back, and those that are to be planned besides: nothing is waited for before they have left.
    held: u8,
    queued: u8,
    /// When the last one left.
    last: Option<Instant>,
    /// Nobody waits any more.
    given_up: bool,
    /// By number.
    replies: Vec<(u16, Reply)>,
    /// It is not asked, since somebody farther is known from another path; and who answered there.
    covered: bool,
    inherited: Option<Reply>,
}

impl HopState {
    fn is_settled(&self) -> bool {
        self.covered || self.planned > 0 && self.held + self.queued == 0 && (self.open == 0 || self.given_up)
    }

    /// Whether time must pass for it.
    fn is_waited_for(&self) -> bool {
        !self.covered && self.open > 0 && self.held + self.queued == 0 && !self.given_up
    }
}

/// A path under way.
#[derive(Debug)]
pub(super) struct Tracing {
    position: u64,
    dst: IpAddr,
    packets: Vec<Packet>,
    /// By TTL, from the first one.
    hops: Vec<HopState>,
    /// Packets that did not leave and are to be offered again.
    held: VecDeque<u16>,
    /// Hops that are to be asked once more.
    again: VecDeque<u8>,
    /// When the first packet left.
    begun: Option<Instant>,
    /// The first hop that was asked, the nearest one, and down to where hops are to be asked.
    start: u8,
    nearest: u8,
    nearest_wanted: u8,
    /// How long round trips of other paths were.
    usual: Option<Duration>,
    /// Nobody has been there, and others wait for what it finds: as many hops are asked at once as may be silent.
    scout: bool,
    /// How often the farthest hop that was asked was late: each time twice as many are asked beyond the farthest answer.
    late: u8,
    /// The next hop that is to be told to other paths, and who stands before it.
    told: (u8, Option<Place>),
    /// The farthest hop that was known when it answered.
    met: u8,
    /// Nothing is sent before.
    not_before: Option<Instant>,
    slowest: Option<Duration>,
    /// The farthest TTL that was answered.
    farthest: u8,
    /// The last TTL that matters, and why.
    end: Option<(u8, PathEnd)>,
    /// How large a packet may be, and where it is to arrive.
    mtu: Option<(Search, u8)>,
    /// Packets of that search that left, and their bytes.
    sized: (u32, u64),
    duplicates: u64,
    sent: u32,
}

impl Tracing {
    /// The last TTL that matters as far as is known.
    fn last(&self, plan: &TracePlan) -> u8 {
        self.end.map_or(plan.max_ttl, |(ttl, _)| ttl)
    }

    fn ttl_of(plan: &TracePlan, at: usize) -> u8 {
        plan.first_ttl + at as u8
    }

    fn hop(&mut self, plan: &TracePlan, ttl: u8) -> Option<&mut HopState> {
        self.hops.get_mut(usize::from(ttl.checked_sub(plan.first_ttl)?))
    }

    /// As many more packets for a hop.
    fn ask_again(&mut self, plan: &TracePlan, ttl: u8, more: u8) {
        if let Some(hop) = self.hop(plan, ttl) {
            hop.queued += more;
            self.again.extend(core::iter::repeat_n(ttl, usize::from(more)));
        }
    }

    fn plan_packet(&mut self, plan: &TracePlan, ttl: u8, now: Instant) -> Option<Ask> {
        let number = u16::try_from(self.packets.len()).ok()?;
        self.packets.push(Packet { ttl, state: PacketState::Held, size: None });
        let hop = self.hop(plan, ttl)?;
        hop.planned += 1;
        hop.open += 1;
        self.leaves(plan, number, now);
        Some(Self::ask(number, ttl))
    }

    fn leaves(&mut self, plan: &TracePlan, number: u16, now: Instant) {
        let Some(packet) = self.packets.get_mut(usize::from(number)) else { return };
        packet.state = PacketState::Sent(now);
        let ttl = packet.ttl;
        self.begun.get_or_insert(now);
        self.sent += 1;
        if let Some(hop) = self.hop(plan, ttl) {
            hop.sent += 1;
            hop.last = Some(now);
            hop.given_up = false;
        }
    }

    fn unsent(&mut self, plan: &TracePlan, number: u16, state: PacketState) -> bool {
        let Some(packet) = self.packets.get_mut(usize::from(number)).filter(|packet| matches!(packet.state, PacketState::Sent(_))) else {
            return false;
        };
        packet.state = state;
        let ttl = packet.ttl;
        self.sent -= 1;
        if let Some(hop) = self.hop(plan, ttl) {
            hop.sent -= 1;
        }
        true
    }

    fn lose(&mut self, plan: &TracePlan, number: u16) {
        let Some(packet) = self.packets.get_mut(usize::from(number)) else { return };
        packet.state = PacketState::Lost;
        let ttl = packet.ttl;
        if let Some(hop) = self.hop(plan, ttl) {
            hop.open = hop.open.saturating_sub(1);
        }
    }

    fn hold(&mut self, plan: &TracePlan, number: u16) {
        self.held.push_back(number);
        if let Some(ttl) = self.packets.get(usize::from(number)).map(|packet| packet.ttl)
            && let Some(hop) = self.hop(plan, ttl)
        {
            hop.held += 1;
        }
    }

    /// A packet that will never leave has another one in its place, as long as the hop may have one.
    fn replace(&mut self, plan: &TracePlan, number: u16) {
        let Some(ttl) = self.packets.get(usize::from(number)).map(|packet| packet.ttl) else { return };
        if self.hop(plan, ttl).is_some_and(|hop| hop.planned + hop.queued < plan.attempts()) {
            self.ask_again(plan, ttl, 1);
        }
        self.look_for_silence(plan);
    }

    /// The path ends at `ttl` at the latest.
    fn end_at(&mut self, ttl: u8, why: PathEnd) {
        let nearer = self
            .end
            .is_none_or(|(known, known_why)| ttl < known || ttl == known && why == PathEnd::Reached && known_why != PathEnd::Refused);
        if nearer {
            self.end = Some((ttl, why));
        }
    }

    /// Somebody farther is known: nearer hops are what another path found.
    fn inherit(&mut self, plan: &TracePlan, stops: &Stops, ttl: u8, place: Place) {
        self.met = self.met.max(ttl);
        let nearer = self.hops.iter_mut().take(usize::from(ttl - plan.first_ttl));
        nearer.filter(|hop| hop.replies.is_empty()).for_each(|hop| hop.covered = true);
        for (ttl, reply) in stops.before(place) {
            if let Some(hop) = self.hop(plan, ttl).filter(|hop| hop.covered && hop.inherited.is_none()) {
                hop.inherited = Some(reply.clone());
            }
        }
        (self.nearest, self.nearest_wanted) = (plan.first_ttl, plan.first_ttl);
        if self.told.0 <= ttl {
            self.told = (ttl + 1, Some(place));
        }
    }

    /// Tells other paths what is known from the first hop on.
    fn tell(&mut self, plan: &TracePlan, stops: &mut Stops, now: Instant) {
        while let Some(hop) = self.told.0.checked_sub(plan.first_ttl).and_then(|at| self.hops.get(usize::from(at)))
            && plan.shared
            && hop.is_settled()
        {
            let (ttl, before) = self.told;
            let next = match hop.replies.first() {
                None => Some(before),
                Some((_, reply)) if reply.kind == ReplyKind::TimeExceeded => stops.know(now, ttl, reply, before).map(Some),
                Some(_) => None,
            };
            self.told = next.map_or((u8::MAX, None), |before| (ttl + 1, before));
        }
    }

    /// The next nearer hop that is to be asked, where the path began farther.
    fn nearer(&mut self, plan: &TracePlan) -> Option<u8> {
        let is_settled = |at: u8| self.hops.get(usize::from(at - plan.first_ttl)).is_some_and(HopState::is_settled);
        if is_settled(self.nearest) {
            self.nearest_wanted = self.nearest_wanted.min(self.nearest - 1);
        }
        let last = self.last(plan);
        while self.nearest > self.nearest_wanted.max(plan.first_ttl) {
            self.nearest -= 1;
            if self.nearest <= last {
                return Some(self.nearest);
            }
        }
        None
    }

    /// How many hops are asked beyond the farthest answer.
    fn beyond(&self, plan: &TracePlan) -> u8 {
        if self.scout { plan.gap } else { plan.ahead.checked_shl(self.late.into()).map_or(plan.gap, |ahead| ahead.min(plan.gap)) }
    }

    /// When the farthest hop that was asked is late, so that more are asked beside it.
    fn late_at(&self, plan: &TracePlan) -> Option<Instant> {
        if self.beyond(plan) >= plan.gap || self.end.is_some() {
            return None;
        }
        let hop = self.hops.last().filter(|hop| hop.is_waited_for())?;
        let slowest = self.slowest.max(self.usual);
        Some(hop.last? + plan.timing.waits(slowest, slowest.is_some()).0)
    }

    /// The farthest hop where a router answered.
    fn last_router(&self) -> Option<usize> {
        self.hops.iter().rposition(|hop| hop.replies.iter().any(|(_, reply)| reply.kind == ReplyKind::TimeExceeded))
    }

    /// The packet that an answer without a number most likely answers: the first one without an answer beyond the farthest router, or the smallest:
    /// nothing is to be said to arrive that may not have.
    fn guess(&self, plan: &TracePlan) -> Option<u16> {
        let nearest = Self::ttl_of(plan, self.last_router().map_or(0, |at| at + 1));
        let left = |packet: &Packet| matches!(packet.state, PacketState::Sent(_));
        let beyond = self.packets.iter().enumerate().filter(|(_, packet)| packet.ttl >= nearest && left(packet));
        beyond
            .min_by_key(|(at, packet)| {
                (packet.size.map(|place| self.mtu.as_ref().and_then(|(search, _)| search.size(place))), packet.ttl, *at)
            })
            .and_then(|(at, _)| u16::try_from(at).ok())
    }

    /// Whether `from` has answered nearer by, with somebody else in between. (A router that forwards what it should have ended makes the
    /// next one appear twice in a row, which is no loop.)
    fn is_loop(&self, plan: &TracePlan, ttl: u8, from: IpAddr) -> bool {
        let others = |hop: &HopState| hop.replies.iter().any(|(_, reply)| reply.from != from);
        let same = |hop: &HopState| hop.replies.iter().any(|(_, reply)| reply.from == from);
        let nearer = self.hops.get(..usize::from(ttl - plan.first_ttl)).unwrap_or_default();
        nearer.iter().rposition(same).is_some_and(|at| nearer.get(at + 1..).unwrap_or_default().iter().any(|hop| others(hop) && !same(hop)))
    }

    fn hop_due(&self, plan: &TracePlan, ttl: u8, hop: &HopState) -> Option<Instant> {
        let (again, over) = plan.timing.waits(self.slowest, ttl < self.farthest || !hop.replies.is_empty());
        Some(hop.last? + if Self::is_asked_again(plan, hop) { again } else { over })
    }

    fn is_asked_again(plan: &TracePlan, hop: &HopState) -> bool {
        hop.replies.is_empty() && hop.planned < plan.attempts()
    }

    /// As many silent hops in a row as the plan allows, beyond whoever answered last, end the path.
    fn look_for_silence(&mut self, plan: &TracePlan) {
        let beyond = usize::from((self.farthest + 1).saturating_sub(plan.first_ttl));
        let silent = self.hops.iter().skip(beyond).take_while(|hop| hop.is_settled()).count();
        if silent >= usize::from(plan.gap) {
            self.end_at(self.farthest.saturating_add(plan.gap), PathEnd::Silent);
        }
    }

    /// A packet of the only flow: its number is the token.
    const fn ask(number: u16, ttl: u8) -> Ask {
        Ask { token: number, flow: 0, number, ttl, size: None }
    }

    /// How many packets were decided on: numbers up to there are taken.
    pub(super) fn planned(&self) -> u16 {
        self.packets.len() as u16
    }

    /// What is told of it.
    pub(super) fn path(self, plan: &TracePlan, stopped: bool) -> Path {
        let end = match self.end {
            _ if stopped => PathEnd::Stopped,
            Some((_, end)) => end,
            None if self.farthest == plan.max_ttl => PathEnd::TooFar,
            None => PathEnd::Silent,
        };
        let last = self.last(plan).min(self.farthest);
        let known = usize::from((last + 1).saturating_sub(plan.first_ttl));
        let hops = self.hops.into_iter().enumerate().take(known).map(|(at, mut hop)| {
            hop.replies.sort_by_key(|(number, _)| *number);
            let inherited = hop.replies.is_empty() && hop.covered;
            let replies = hop.replies.into_iter().map(|(_, reply)| reply).chain(hop.inherited.filter(|_| inherited));
            Hop { ttl: Self::ttl_of(plan, at), sent: hop.sent, replies: replies.collect(), inherited }
        });
        let mtu = self.mtu.and_then(|(search, ttl)| search.found(ttl));
        Path { dst: self.dst, end, hops: hops.collect(), sent: self.sent, mtu }
    }

    /// Whether every hop is known, or known to be silent.
    fn is_traced(&self, plan: &TracePlan) -> bool {
        let needed = usize::from((self.last(plan) + 1).saturating_sub(plan.first_ttl));
        self.hops.len() >= needed && self.hops.iter().take(needed).all(HopState::is_settled)
    }

    /// Whether it remains to be found how large a packet may be.
    fn is_to_be_sized(&self, plan: &TracePlan) -> bool {
        self.mtu.as_ref().map_or(plan.mtu.is_some() && self.arrival(plan).is_some(), |(search, _)| !search.is_over())
    }

    /// With which TTL a packet arrives somewhere from where an answer comes.
    fn arrival(&self, plan: &TracePlan) -> Option<u8> {
        match self.end {
            Some((_, PathEnd::Reached)) => Some(MAX_TTL),
            Some((_, PathEnd::Loop | PathEnd::Refused | PathEnd::NoRoute)) => None,
            _ => self.last_router().map(|at| Self::ttl_of(plan, at)),
        }
    }

    /// The next packet of the search for the largest one that arrives: it begins when the path is known.
    fn next_size(&mut self, plan: &TracePlan, now: Instant) -> Option<Ask> {
        if !self.is_traced(plan) || !self.is_to_be_sized(plan) {
            return None;
        }
        if self.mtu.is_none() {
            self.mtu = Some((Search::new(plan.packet_len(self.dst), plan.mtu?), self.arrival(plan)?));
        }
        let (search, ttl) = self.mtu.as_mut()?;
        let Ok(number) = u16::try_from(self.packets.len()) else {
            search.cut();
            return None;
        };
        let (ttl, (size, place)) = (*ttl, search.next(now)?);
        self.packets.push(Packet { ttl, state: PacketState::Sent(now), size: Some(place) });
        self.sent += 1;
        self.sized = (self.sized.0 + 1, self.sized.1 + u64::from(size));
        Some(Ask { size: Some(size), ..Self::ask(number, ttl) })
    }

    /// What became of a packet of that search.
    fn sized(&mut self, place: u16, reply: &Reply) {
        let Some((search, _)) = &mut self.mtu else { return };
        match reply.kind {
            _ if reply.mtu.is_some() => search.too_large(place, Some(reply.from), reply.mtu),
            ReplyKind::TimeExceeded | ReplyKind::Answer => search.arrived(place),
            ReplyKind::Unreachable { .. } if reply.from == self.dst => search.arrived(place),
            // Somebody filters by length: that is no link.
            ReplyKind::Unreachable { .. } => search.cut(),
        }
    }

    /// A packet of that search did not leave.
    fn size_not_sent(&mut self, number: u16, place: u16, why: NotSent) {
        let Some((search, _)) = &mut self.mtu else { return };
        let size = search.size(place).unwrap_or_default();
        self.sized = (self.sized.0 - 1, self.sized.1 - u64::from(size));
        match why {
            NotSent::NeighbourPending | NotSent::TooSoon { .. } => {
                search.withheld();
                // One at a time: it is the last one, whose number is taken again.
                self.packets.pop_if(|packet| packet.size == Some(place));
            }
            // The interface takes none of that length.
            NotSent::LinkError => search.too_large(place, None, None),
            NotSent::Refused | NotSent::NoRoute | NotSent::NoNeighbour => search.cut(),
        }
        if let Some(packet) = self.packets.get_mut(usize::from(number)).filter(|packet| packet.size == Some(place)) {
            packet.state = PacketState::Lost;
        }
        self.sent -= 1;
    }
}

impl Course for Tracing {
    fn new(plan: &TracePlan, stops: &Stops, position: u64, dst: IpAddr) -> Self {
        let known = plan.shared.then(|| stops.start(dst)).flatten();
        let start = known.unwrap_or_default().clamp(plan.first_ttl, plan.max_ttl);
        Self {
            position,
            dst,
            packets: Vec::new(),
            hops: vec![HopState::default(); usize::from(start - plan.first_ttl)],
            start,
            nearest: start,
            nearest_wanted: start,
            usual: stops.slowest(),
            // Where nobody ever stands before the destinations no start is known, but others have been there.
            scout: plan.shared && known.is_none() && stops.slowest().is_none(),
            late: 0,
            told: (plan.first_ttl, None),
            met: 0,
            held: VecDeque::new(),
            again: VecDeque::new(),
            begun: None,
            not_before: None,
            slowest: None,
            farthest: plan.first_ttl - 1,
            end: None,
            mtu: None,
            sized: (0, 0),
            duplicates: 0,
            sent: 0,
        }
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn dst(&self) -> IpAddr {
        self.dst
    }

    fn next(&mut self, plan: &TracePlan, now: Instant) -> Option<Ask> {
        if self.not_before.is_some_and(|until| now < until) {
            return None;
        }
        self.not_before = None;
        let last = self.last(plan);
        while let Some(number) = self.held.pop_front() {
            let Some(packet) = self.packets.get(usize::from(number)).copied() else { continue };
            if let Some(hop) = self.hop(plan, packet.ttl) {
                hop.held = hop.held.saturating_sub(1);
            }
            if packet.ttl <= last && self.hop(plan, packet.ttl).is_some_and(|hop| !hop.covered) {
                self.leaves(plan, number, now);
                return Some(Self::ask(number, packet.ttl));
            }
            self.lose(plan, number);
        }
        while let Some(ttl) = self.again.pop_front() {
            let Some(hop) = self.hop(plan, ttl) else { continue };
            hop.queued = hop.queued.saturating_sub(1);
            if ttl <= last && !hop.covered {
                return self.plan_packet(plan, ttl, now);
            }
        }
        if let Some(ttl) = self.nearer(plan) {
            return self.plan_packet(plan, ttl, now);
        }
        let next = Self::ttl_of(plan, self.hops.len());
        let ahead = (self.start - 1).saturating_add(plan.window).max(self.farthest.saturating_add(self.beyond(plan)));
        if next > last || next > ahead || self.hops.len() > usize::from(plan.max_ttl - plan.first_ttl) {
            return self.next_size(plan, now);
        }
        self.hops.push(HopState::default());
        self.plan_packet(plan, next, now)
    }

    fn size(&self, token: u16) -> Option<u16> {
        let place = self.packets.get(usize::from(token))?.size?;
        self.mtu.as_ref()?.0.size(place)
    }

    fn not_sent(&mut self, plan: &TracePlan, token: u16, why: NotSent) {
        if let NotSent::TooSoon { until, .. } = why {
            self.not_before = Some(until);
        }
        if let Some(place) = self.packets.get(usize::from(token)).and_then(|packet| packet.size) {
            return self.size_not_sent(token, place, why);
        }
        let final_end = match why {
            NotSent::Refused => Some(PathEnd::Refused),
            NotSent::NoRoute | NotSent::NoNeighbour => Some(PathEnd::NoRoute),
            NotSent::NeighbourPending | NotSent::TooSoon { .. } | NotSent::LinkError => None,
        };
        let state = if why == NotSent::LinkError || final_end.is_some() { PacketState::Lost } else { PacketState::Held };
        if !self.unsent(plan, token, state) {
            return;
        }
        match state {
            PacketState::Held => self.hold(plan, token),
            _ => self.lose(plan, token),
        }
        if why == NotSent::LinkError {
            self.replace(plan, token);
        }
        if let Some(why) = final_end {
            // None of the others will leave either; what was answered before stays.
            self.end_at(self.farthest, why);
        }
    }

    fn answer(
        &mut self,
        plan: &TracePlan,
        stops: &mut Stops,
        now: Instant,
        flow: u16,
        number: Option<u16>,
        reply: impl FnOnce(Duration) -> Reply,
    ) -> Option<(u8, Reply)> {
        if flow != 0 {
            return None;
        }
        let named = number.is_some();
        let number = number.or_else(|| self.guess(plan))?;
        let packet = self.packets.get_mut(usize::from(number))?;
        let at = match packet.state {
            PacketState::Sent(at) => at,
            PacketState::Answered => {
                self.duplicates += 1;
                return None;
            }
            PacketState::Held | PacketState::Lost => return None,
        };
        packet.state = PacketState::Answered;
        let (ttl, size) = (packet.ttl, packet.size);
        let rtt = now.saturating_since(at);
        let reply = reply(rtt);
        // A smaller packet than the one that is answered may have been taken, which left earlier.
        if named || size.is_none() {
            self.slowest = Some(self.slowest.map_or(rtt, |slowest| slowest.max(rtt)));
        }
        if let Some(place) = size {
            self.sized(place, &reply);
            return None;
        }
        if ttl > self.farthest && matches!(self.end, Some((_, PathEnd::Silent))) {
            // There is somebody after all.
            self.end = None;
        }
        if ttl > self.farthest {
            self.late = 0;
        }
        self.farthest = self.farthest.max(ttl);
        let queries = plan.queries;
        let hop = self.hop(plan, ttl)?;
        hop.open = hop.open.saturating_sub(1);
        let more = if hop.replies.is_empty() { queries.saturating_sub(hop.planned + hop.queued) } else { 0 };
        hop.replies.push((number, reply.clone()));
        self.ask_again(plan, ttl, more);
        match reply.kind {
            ReplyKind::TimeExceeded => {
                if plan.shared
                    && let Some(place) = stops.find(now, ttl, reply.from)
                {
                    self.inherit(plan, stops, ttl, place);
                }
                if self.is_loop(plan, ttl, reply.from) {
                    self.end_at(ttl, PathEnd::Loop);
                }
            }
            ReplyKind::Answer => self.end_at(ttl, PathEnd::Reached),
            ReplyKind::Unreachable { .. } if reply.from == self.dst => self.end_at(ttl, PathEnd::Reached),
            ReplyKind::Unreachable { .. } => self.end_at(ttl, PathEnd::Unreachable),
        }
        self.tell(plan, stops, now);
        Some((ttl, reply))
    }

    fn due(&self, plan: &TracePlan) -> Option<Instant> {
        let last = self.last(plan);
        let hops = self.hops.iter().enumerate().filter(|(at, hop)| Self::ttl_of(plan, *at) <= last && hop.is_waited_for());
        let hops = hops.filter_map(|(at, hop)| self.hop_due(plan, Self::ttl_of(plan, at), hop));
        let size = self.mtu.as_ref().and_then(|(search, _)| search.due(plan.timing.waits(self.slowest, true)));
        hops.chain(self.late_at(plan)).chain(self.not_before).chain(size).min()
    }

    fn on_timeout(&mut self, plan: &TracePlan, stops: &mut Stops, now: Instant) -> bool {
        let last = self.last(plan);
        let mut hungry = self.not_before.take_if(|until| *until <= now).is_some();
        if self.late_at(plan).is_some_and(|due| due <= now) {
            (self.late, hungry) = (self.late + 1, true);
        }
        for at in 0..self.hops.len() {
            let ttl = Self::ttl_of(plan, at);
            let Some(hop) = self.hops.get(at).filter(|hop| ttl <= last && hop.is_waited_for()) else { continue };
            let (again, planned) = (Self::is_asked_again(plan, hop), hop.planned);
            if self.hop_due(plan, ttl, hop).is_none_or(|due| now < due) {
                continue;
            }
            if ttl == self.nearest && self.nearest > plan.first_ttl {
                // It may be that nobody is so far: several nearer ones are asked beside it.
                self.nearest_wanted = self.nearest_wanted.min(ttl.saturating_sub(plan.gap));
                hungry = true;
            }
            if again {
                self.ask_again(plan, ttl, plan.attempts() - planned);
                hungry = true;
            } else if let Some(hop) = self.hops.get_mut(at) {
                hop.given_up = true;
            }
        }
        self.look_for_silence(plan);
        self.tell(plan, stops, now);
        let waits = plan.timing.waits(self.slowest, true);
        if let Some((search, _)) = &mut self.mtu
            && search.due(waits).is_some_and(|due| due <= now)
        {
            search.silence();
        }
        hungry || self.is_traced(plan) && self.is_to_be_sized(plan)
    }

    fn is_late(&self) -> bool {
        self.late > 0
    }

    fn is_over(&self, plan: &TracePlan) -> bool {
        self.is_traced(plan) && !self.is_to_be_sized(plan)
    }

    fn duplicates(&self) -> u64 {
        self.duplicates
    }

    fn finish(self, plan: &TracePlan, stops: &mut Stops, stopped: bool) -> (PathEnd, Event) {
        if plan.shared && !stopped {
            let routers = self.last_router();
            let could_meet = self.met > 0 || self.start > plan.first_ttl;
            stops.ended(self.dst, routers.map_or(0, |at| Self::ttl_of(plan, at)), could_meet.then_some(self.met), self.slowest);
        }
        let (position, begun, (sized, sizes)) = (self.position, self.begun, self.sized);
        let bytes = u64::from(self.sent - sized) * u64::from(plan.packet_len(self.dst)) + sizes;
        let path = Box::new(self.path(plan, stopped));
        (path.end, Event::Path { position, begun, bytes, path })
    }
}
