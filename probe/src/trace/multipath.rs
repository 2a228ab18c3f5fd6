//! All ways to a destination at once: which flow is sent how far next, and the graph that comes of it. Pure book-keeping; packets are the
//! engine's.
//!
//! A router that spreads load sends each flow one way. So many flows are sent, each one at a time to one distance, until it is unlikely that a node
//! has a successor that none of them met (the multipath detection algorithm, MDA: Augustin, Friedman, Teixeira, "Multipath tracing with Paris
//! traceroute", E2EMON 2007). How many that are for so many successors seen is [`Ways::flows`](super::spec::Ways::flows).
//!
//! ```text
//!  scout      the first flow's path, as any trace: how far it is, which hops are silent
//!  edges      a node without a known successor, or predecessor: its flows one farther, or one nearer
//!  hop rule   at each distance: as many flows as its number of nodes asks for, those of the edges included
//!  balance    a distance with several nodes: one flow again and again; another answer means that load is spread by packet
//!  node rule  where neighbouring distances are meshed, or their links uneven: so many flows through each node, and on from it
//! ```
//!
//! All but the last are the light form (MDA-Lite: Vermeulen et al., "Multilevel MDA-Lite Paris Traceroute", IMC 2018): most diamonds are even and
//! not meshed, and for these it finds the same with far fewer packets. What it looks for to know is also theirs: between two distances with several nodes a
//! node on the wide side with two neighbours on the narrow one (meshed), or nodes on the narrow side with different numbers of neighbours (uneven).
//! The full form applies the node rule everywhere. What looks uneven is often a link that was missed: nodes with fewer neighbours than others then need
//! twice the flows of the node rule, and those that made it look uneven do not count.
//!
//! **What the confidence is of:** each router's successors, not the whole graph: that a router has one more than were seen, all as likely, and none of its
//! flows met it, is as improbable as the confidence says. The numbers are those of scamper's `tracelb`.
//! The light form applies them to distances, of which even ways take about as many flows as their routers one by one, and its test for meshed links states
//! no confidence. As in scamper, two things are taken for granted by the
//! light form, and by the full form neither: the source has one gateway (packets of one destination are handed to one neighbour here), and a router
//! that hands one flow to the destination itself hands it all of them, since it does not spread what is to be delivered on a link of its own.
//! Another router where the destination stands, or a first TTL above 1, and the rule is that of any hop.
//!
//! Nobody is asked more gently than [`PER_HOP`] at a time: a router that limits its errors more narrowly leaves flows without an answer, others are
//! asked instead, up to twice as many, and where that was not enough the hop is told as not sure.
//!
//! **Invariant:** after the scout no flow is asked twice at a distance, but one that shows whether load is spread by packet; so packets are bounded by
//! [`Ways::most_packets`](super::spec::Ways::most_packets) at each distance.
//! **Invariant:** what did not leave is not silent.

mod rules;

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use picket_wire::trace::{Graph, GraphHop, Link, Node, PathEnd, Reply, ReplyKind};

use super::course::{Ask, Course};
use super::path::Tracing;
use super::report::Event;
use super::spec::{TracePlan, Ways};
use super::stops::Stops;
use crate::net::engine::NotSent;
use crate::net::time::Instant;

/// Questions to one distance that wait for answers: a router that limits its errors would keep silent about more.
const PER_HOP: usize = 16;
/// Flows of a node that are tried for a link beyond those that are needed: a successor may be silent.
const SPARE: usize = 2;

/// What is known of a flow at a distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Unasked,
    Waiting,
    Node(u16),
    Silent,
    /// Its packet did not leave.
    Unsent,
    /// It ends nearer by.
    Beyond,
}

impl At {
    fn is_open_or_known(self) -> bool {
        matches!(self, At::Waiting | At::Node(_))
    }
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    flow: u16,
    number: u16,
    /// The hop, from the first one.
    hop: usize,
    /// Whether it only shows how load is spread.
    check: bool,
    state: PacketState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PacketState {
    Queued,
    Sent(Instant),
    /// Nobody waits any more, but an answer counts.
    GivenUp(Instant),
    Answered,
    Lost,
}

#[derive(Debug, Default)]
struct FlowState {
    /// Its packets by number.
    tokens: Vec<u16>,
    /// The hop where it ends, once that is known.
    end: Option<usize>,
}

#[derive(Debug)]
struct NodeState {
    reply: Reply,
    least_rtt_us: u32,
    /// Whether a TTL has ended there: flows may go on.
    routes: bool,
}

#[derive(Debug, Default)]
struct HopState {
    by_flow: Vec<At>,
    nodes: Vec<NodeState>,
    /// Questions without an answer, those in the queue included.
    waiting: usize,
    checked: bool,
    by_packet: bool,
    /// Flows that were asked for the links of a node of the neighbouring hop, and that hop.
    for_links: Vec<(u16, usize)>,
    /// Whether the node rule holds for what follows.
    full: bool,
    /// For each node, how many flows were known to go on from it when links were found uneven.
    before: Vec<usize>,
    /// Something has changed here.
    dirty: bool,
    /// It waits for others.
    later: bool,
}

/// All ways to a destination, under way.
#[derive(Debug)]
pub(super) struct Multipath {
    position: u64,
    dst: IpAddr,
    /// The first flow's path, and how it is traced.
    scout: Option<Box<(Tracing, TracePlan)>>,
    /// Packets of the scout: what has a higher token, or number in the first flow, is of the graph.
    scouted: u16,
    packets: Vec<Packet>,
    flows: Vec<FlowState>,
    hops: Vec<HopState>,
    /// Hops of the first path.
    length: usize,
    /// Whether the first hop asked is the first there is.
    from_first: bool,
    queue: VecDeque<u16>,
    /// What has left and is waited for, in order.
    outstanding: VecDeque<u16>,
    not_before: Option<Instant>,
    slowest: Option<Duration>,
    end: PathEnd,
    sent: u32,
    duplicates: u64,
}

impl Multipath {
    /// The graph begins where the scout's path is over.
    fn look_for_scout(&mut self, plan: &TracePlan) {
        if self.scout.as_ref().is_some_and(|scout| scout.0.is_over(&scout.1)) {
            self.take_scout(plan);
        }
    }

    fn take_scout(&mut self, plan: &TracePlan) {
        let Some((tracing, own)) = self.scout.take().map(|scout| *scout) else { return };
        self.scouted = tracing.planned();
        self.duplicates = tracing.duplicates();
        let path = tracing.path(&own, false);
        (self.end, self.sent, self.length) = (path.end, path.sent, path.hops.len());
        self.flows.push(FlowState::default());
        self.hops.resize_with(path.hops.len(), HopState::default);
        for (at, hop) in path.hops.into_iter().enumerate() {
            let reply = hop.replies.into_iter().next();
            self.slowest = self.slowest.max(reply.as_ref().map(|reply| Duration::from_micros(reply.rtt_us.into())));
            self.note(plan, 0, at, reply);
        }
    }

    /// What a flow met at a hop: a node, or nobody.
    fn note(&mut self, plan: &TracePlan, flow: u16, at: usize, reply: Option<Reply>) {
        let seen = match reply {
            None => At::Silent,
            Some(reply) => {
                let routes = reply.kind == ReplyKind::TimeExceeded;
                let reached = reply.kind == ReplyKind::Answer || reply.from == self.dst;
                let from = self.node(at, reply);
                if !routes {
                    self.ends(flow, at);
                    if reached && matches!(self.end, PathEnd::Silent | PathEnd::Unreachable) {
                        self.end = PathEnd::Reached;
                    }
                } else if at + 1 == self.hops.len() && at + 1 < hops_max(plan) && self.goes_on() {
                    // This flow has a longer way.
                    self.hops.push(HopState { dirty: true, ..HopState::default() });
                }
                At::Node(from)
            }
        };
        if let Some(hop) = self.hops.get_mut(at) {
            put(&mut hop.by_flow, flow, seen);
            hop.dirty = true;
        }
    }

    /// Whether nothing leaves any more.
    fn is_cut(&self) -> bool {
        matches!(self.end, PathEnd::Refused | PathEnd::NoRoute)
    }

    /// Whether there may be a way beyond the first path's last hop.
    fn goes_on(&self) -> bool {
        matches!(self.end, PathEnd::Reached | PathEnd::Silent | PathEnd::Unreachable)
    }

    /// A flow ends at a hop: what it met farther out counts no more.
    fn ends(&mut self, flow: u16, at: usize) {
        let Some(state) = self.flows.get_mut(usize::from(flow)).filter(|state| state.end.is_none_or(|known| at < known)) else { return };
        state.end = Some(at);
        for hop in self.hops.iter_mut().skip(at + 1) {
            hop.dirty |= hop.by_flow.get(usize::from(flow)).is_some_and(|seen| *seen != At::Unasked);
        }
    }

    /// The node at a hop that sent a reply.
    fn node(&mut self, at: usize, reply: Reply) -> u16 {
        let Some(hop) = self.hops.get_mut(at) else { return 0 };
        let known = hop.nodes.iter_mut().enumerate().find(|(_, node)| node.reply.from == reply.from);
        match known {
            Some((index, node)) => {
                node.least_rtt_us = node.least_rtt_us.min(reply.rtt_us);
                node.routes |= reply.kind == ReplyKind::TimeExceeded;
                index as u16
            }
            None => {
                hop.nodes.push(NodeState { least_rtt_us: reply.rtt_us, routes: reply.kind == ReplyKind::TimeExceeded, reply });
                (hop.nodes.len() - 1) as u16
            }
        }
    }

    fn state(&self, flow: u16, at: usize) -> At {
        if self.flows.get(usize::from(flow)).and_then(|flow| flow.end).is_some_and(|end| at > end) {
            return At::Beyond;
        }
        self.hops.get(at).and_then(|hop| hop.by_flow.get(usize::from(flow))).copied().unwrap_or_default()
    }

    /// The flows that met each node of a hop.
    fn flows_by_node(&self, at: usize) -> Vec<Vec<u16>> {
        let Some(hop) = self.hops.get(at) else { return Vec::new() };
        let mut by_node = vec![Vec::new(); hop.nodes.len()];
        for flow in 0..hop.by_flow.len() as u16 {
            if let At::Node(node) = self.state(flow, at)
                && let Some(flows) = by_node.get_mut(usize::from(node))
            {
                flows.push(flow);
            }
        }
        by_node
    }

    fn is_router(&self, at: usize, node: u16) -> bool {
        self.hops.get(at).and_then(|hop| hop.nodes.get(usize::from(node))).is_some_and(|node| node.routes)
    }

    /// Decides on a packet; false where no more can be had.
    fn ask(&mut self, flow: u16, at: usize, check: bool) -> bool {
        let token = self.packets.len() + usize::from(self.scouted);
        let (Ok(token), Some(hop)) = (u16::try_from(token), self.hops.get_mut(at)) else { return false };
        if hop.waiting >= PER_HOP {
            return false;
        }
        while self.flows.len() <= usize::from(flow) {
            self.flows.push(FlowState::default());
        }
        let Some(state) = self.flows.get_mut(usize::from(flow)) else { return false };
        let before = if flow == 0 { self.scouted } else { 0 };
        let number = before + state.tokens.len() as u16;
        state.tokens.push(token);
        hop.waiting += 1;
        if !check {
            put(&mut hop.by_flow, flow, At::Waiting);
        }
        self.packets.push(Packet { flow, number, hop: at, check, state: PacketState::Queued });
        self.queue.push_back(token);
        true
    }

    fn packet(&mut self, token: u16) -> Option<&mut Packet> {
        self.packets.get_mut(usize::from(token.checked_sub(self.scouted)?))
    }

    fn is_waited_for(&self, token: u16) -> bool {
        let packet = token.checked_sub(self.scouted).and_then(|at| self.packets.get(usize::from(at)));
        packet.is_some_and(|packet| matches!(packet.state, PacketState::Sent(_)))
    }

    /// A packet that is not waited for any more.
    fn settle(&mut self, at: usize) {
        if let Some(hop) = self.hops.get_mut(at) {
            hop.waiting = hop.waiting.saturating_sub(1);
            hop.dirty = true;
        }
        // The rules for links look at both hops.
        if let Some(hop) = at.checked_sub(1).and_then(|at| self.hops.get_mut(at)) {
            hop.dirty = true;
        }
    }

    /// Nobody has answered, or nothing has left, as `seen` says.
    fn give_up(&mut self, token: u16, state: PacketState, seen: At) {
        let Some(packet) = self.packet(token).filter(|packet| matches!(packet.state, PacketState::Queued | PacketState::Sent(_))) else {
            return;
        };
        packet.state = state;
        let Packet { flow, hop: at, check, .. } = *packet;
        if let Some(hop) = self.hops.get_mut(at).filter(|_| !check) {
            put(&mut hop.by_flow, flow, seen);
        }
        self.settle(at);
    }

    /// The packet that an answer without a number most likely answers: it is the destination's, and so at the end of the first path where that has
    /// reached it, and in any case beyond all routers that the flow has met.
    fn guess(&self, flow: u16) -> Option<u16> {
        let router = |at: &usize| matches!(self.state(flow, *at), At::Node(node) if self.is_router(*at, node));
        let beyond = (0..self.hops.len()).rfind(router).map_or(0, |at| at + 1);
        let likely = if self.end == PathEnd::Reached { self.length.saturating_sub(1) } else { 0 };
        let tokens = self.flows.get(usize::from(flow))?.tokens.iter().copied();
        let waiting = tokens.filter_map(|token| {
            let packet = self.packets.get(usize::from(token.checked_sub(self.scouted)?))?;
            let waits = matches!(packet.state, PacketState::Sent(_)) && !packet.check && packet.hop >= beyond;
            waits.then_some((packet.hop < likely, packet.hop, token))
        });
        waiting.min().map(|(_, _, token)| token)
    }

    fn wait(&self, plan: &TracePlan) -> Duration {
        plan.timing.waits(self.slowest, true).1
    }

    /// Whoever stands behind the gateway has it before it, though few flows were asked there.
    fn gateway_links(&self, plan: &TracePlan, places: &[Vec<Option<u16>>], links: &mut BTreeSet<Link>) {
        let is_gateway = plan.multipath.as_ref().is_some_and(|ways| self.is_gateway(ways, 0));
        if let (true, [_, behind, ..], [first, second, ..]) = (is_gateway, places, &self.hops[..])
            && !first.by_packet
            && !second.by_packet
        {
            links.extend(behind.iter().flatten().map(|to| Link { ttl: plan.first_ttl, from: 0, to: *to }));
        }
    }

    fn graph(&self, plan: &TracePlan, stopped: bool) -> Graph {
        let known = self.hops.iter().enumerate().rposition(|(at, _)| self.flows_by_node(at).iter().any(|flows| !flows.is_empty()));
        let mut hops = Vec::new();
        // For each hop, which place a node has in what is told.
        let mut places: Vec<Vec<Option<u16>>> = Vec::new();
        for (at, hop) in self.hops.iter().enumerate().take(known.map_or(0, |last| last + 1)) {
            let flows = self.flows_by_node(at);
            // Where load is spread by packet, a node may have been met by a repetition only.
            let is_met = |node: &usize| {
                let met = flows.get(*node).is_some_and(|flows| !flows.is_empty());
                met || hop.by_packet && hop.nodes.get(*node).is_some_and(|node| node.routes)
            };
            let mut order: Vec<usize> = (0..hop.nodes.len()).filter(is_met).collect();
            order.sort_by_key(|node| hop.nodes.get(*node).map(|node| node.reply.from));
            let mut place = vec![None; hop.nodes.len()];
            let mut nodes = Vec::new();
            for node in order {
                if let (Some(place), Some(state), Some(flows)) = (place.get_mut(node), hop.nodes.get(node), flows.get(node)) {
                    *place = Some(nodes.len() as u16);
                    nodes.push(Node { flows: flows.len() as u16, least_rtt_us: state.least_rtt_us, reply: state.reply.clone() });
                }
            }
            let silent = (0..hop.by_flow.len() as u16).filter(|flow| self.state(*flow, at) == At::Silent).count() as u16;
            let answered: usize = flows.iter().map(Vec::len).sum();
            let sure = !hop.by_packet && plan.multipath.as_ref().is_some_and(|ways| answered >= self.need(ways, at, nodes.len()));
            hops.push(GraphHop { ttl: plan.first_ttl + at as u8, sure, by_packet: hop.by_packet, silent, nodes });
            places.push(place);
        }
        let mut links = BTreeSet::new();
        for flow in 0..self.flows.len() as u16 {
            for (at, pair) in places.windows(2).enumerate() {
                if self.hops.get(at..at + 2).is_none_or(|hops| hops.iter().any(|hop| hop.by_packet)) {
                    continue;
                }
                let met = |at: usize, places: Option<&Vec<Option<u16>>>| match self.state(flow, at) {
                    At::Node(node) => places?.get(usize::from(node)).copied().flatten(),
                    _ => None,
                };
                if let (Some(from), Some(to)) = (met(at, pair.first()), met(at + 1, pair.last())) {
                    links.insert(Link { ttl: plan.first_ttl + at as u8, from, to });
                }
            }
        }
        self.gateway_links(plan, &places, &mut links);
        let confidence = plan.multipath.as_ref().map_or(0, Ways::confidence);
        let end = if stopped { PathEnd::Stopped } else { self.end };
        Graph { dst: self.dst, end, confidence, hops, links: links.into_iter().collect(), sent: self.sent }
    }
}

impl Course for Multipath {
    fn new(plan: &TracePlan, stops: &Stops, position: u64, dst: IpAddr) -> Self {
        // It looks no farther ahead than it must: the other flows are many more packets, and these go only as far as it is.
        let own = TracePlan {
            queries: 1,
            window: plan.window.min(plan.gap),
            ahead: 1,
            shared: false,
            multipath: None,
            mtu: None,
            ..plan.clone()
        };
        Self {
            position,
            dst,
            scout: Some(Box::new((Tracing::new(&own, stops, position, dst), own))),
            scouted: 0,
            packets: Vec::new(),
            flows: Vec::new(),
            hops: Vec::new(),
            length: 0,
            from_first: plan.first_ttl == 1,
            queue: VecDeque::new(),
            outstanding: VecDeque::new(),
            not_before: None,
            slowest: None,
            end: PathEnd::Stopped,
            sent: 0,
            duplicates: 0,
        }
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn dst(&self) -> IpAddr {
        self.dst
    }

    fn next(&mut self, plan: &TracePlan, now: Instant) -> Option<Ask> {
        if let Some(scout) = &mut self.scout {
            let (tracing, own) = &mut **scout;
            return tracing.next(own, now);
        }
        if self.not_before.is_some_and(|until| now < until) {
            return None;
        }
        self.not_before = None;
        if self.queue.is_empty()
            && !self.is_cut()
            && let Some(ways) = &plan.multipath
        {
            self.look(ways);
        }
        let token = self.queue.pop_front()?;
        let first = plan.first_ttl;
        let packet = self.packet(token)?;
        packet.state = PacketState::Sent(now);
        let ask = Ask { token, flow: packet.flow, number: packet.number, ttl: first + packet.hop as u8, size: None };
        self.outstanding.push_back(token);
        self.sent += 1;
        Some(ask)
    }

    fn not_sent(&mut self, plan: &TracePlan, token: u16, why: NotSent) {
        if let Some(scout) = &mut self.scout {
            let (tracing, own) = &mut **scout;
            tracing.not_sent(own, token, why);
            return self.look_for_scout(plan);
        }
        if token < self.scouted {
            // The path has counted it.
            self.sent = self.sent.saturating_sub(1);
            return;
        }
        let Some(packet) = self.packet(token) else { return };
        let Packet { flow, hop: at, check, state, .. } = *packet;
        match state {
            PacketState::Sent(_) => packet.state = PacketState::Queued,
            PacketState::GivenUp(_) => packet.state = PacketState::Lost,
            PacketState::Queued | PacketState::Answered | PacketState::Lost => return,
        }
        self.sent -= 1;
        if matches!(state, PacketState::GivenUp(_)) {
            if let Some(hop) = self.hops.get_mut(at).filter(|_| !check) {
                put(&mut hop.by_flow, flow, At::Unsent);
            }
            return;
        }
        self.outstanding.retain(|other| *other != token);
        match why {
            NotSent::NeighbourPending => self.queue.push_back(token),
            NotSent::TooSoon { until, .. } => {
                self.not_before = Some(until);
                self.queue.push_back(token);
            }
            NotSent::LinkError => self.give_up(token, PacketState::Lost, At::Unsent),
            NotSent::Refused | NotSent::NoRoute | NotSent::NoNeighbour => {
                // None of the others will leave either; what was answered before stays, and what has left may still be.
                self.end = if why == NotSent::Refused { PathEnd::Refused } else { PathEnd::NoRoute };
                self.give_up(token, PacketState::Lost, At::Unsent);
                let queued: Vec<u16> = self.queue.drain(..).collect();
                queued.into_iter().for_each(|token| self.give_up(token, PacketState::Lost, At::Unsent));
            }
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
        if let Some(scout) = &mut self.scout {
            let (tracing, own) = &mut **scout;
            let told = tracing.answer(own, stops, now, flow, number, reply);
            self.look_for_scout(plan);
            return told;
        }
        let token = match number {
            Some(number) => {
                let at = number.checked_sub(if flow == 0 { self.scouted } else { 0 })?;
                self.flows.get(usize::from(flow))?.tokens.get(usize::from(at)).copied()?
            }
            None => self.guess(flow)?,
        };
        let packet = self.packet(token)?;
        let (sent, waited) = match packet.state {
            PacketState::Sent(at) => (at, true),
            PacketState::GivenUp(at) => (at, false),
            PacketState::Answered => {
                self.duplicates += 1;
                return None;
            }
            PacketState::Queued | PacketState::Lost => return None,
        };
        packet.state = PacketState::Answered;
        let Packet { hop: at, check, .. } = *packet;
        let rtt = now.saturating_since(sent);
        self.slowest = self.slowest.max(Some(rtt));
        let reply = reply(rtt);
        if check {
            let node = self.node(at, reply.clone());
            let known = self.state(flow, at);
            if let Some(hop) = self.hops.get_mut(at) {
                // A flow that was found to end nearer by says nothing.
                hop.by_packet |= !matches!(known, At::Beyond) && known != At::Node(node);
            }
        } else {
            self.note(plan, flow, at, Some(reply.clone()));
        }
        if waited {
            self.settle(at);
        }
        while self.outstanding.front().is_some_and(|token| !self.is_waited_for(*token)) {
            self.outstanding.pop_front();
        }
        Some((plan.first_ttl + at as u8, reply))
    }

    fn due(&self, plan: &TracePlan) -> Option<Instant> {
        if let Some(scout) = &self.scout {
            return scout.0.due(&scout.1);
        }
        let wait = self.wait(plan);
        let sent = self.outstanding.iter().find_map(|token| match self.packets.get(usize::from(token.checked_sub(self.scouted)?))?.state {
            PacketState::Sent(at) => Some(at + wait),
            _ => None,
        });
        sent.into_iter().chain(self.not_before).min()
    }

    fn on_timeout(&mut self, plan: &TracePlan, stops: &mut Stops, now: Instant) -> bool {
        if let Some(scout) = &mut self.scout {
            let (tracing, own) = &mut **scout;
            let hungry = tracing.on_timeout(own, stops, now);
            self.look_for_scout(plan);
            return hungry || self.scout.is_none();
        }
        self.not_before.take_if(|until| *until <= now);
        let wait = self.wait(plan);
        while let Some(token) = self.outstanding.front().copied() {
            match self.packet(token).map(|packet| packet.state) {
                Some(PacketState::Sent(at)) if at + wait > now => break,
                Some(PacketState::Sent(at)) => self.give_up(token, PacketState::GivenUp(at), At::Silent),
                _ => {}
            }
            self.outstanding.pop_front();
        }
        true
    }

    fn is_late(&self) -> bool {
        false
    }

    fn is_over(&self, _plan: &TracePlan) -> bool {
        let settled = |hop: &HopState| hop.waiting == 0 && (self.is_cut() || !hop.dirty && !hop.later);
        self.scout.is_none() && self.queue.is_empty() && self.hops.iter().all(settled)
    }

    fn duplicates(&self) -> u64 {
        self.duplicates
    }

    fn finish(mut self, plan: &TracePlan, _stops: &mut Stops, stopped: bool) -> (PathEnd, Event) {
        self.take_scout(plan);
        let graph = Box::new(self.graph(plan, stopped));
        let bytes = u64::from(graph.sent) * u64::from(plan.packet_len(graph.dst));
        (graph.end, Event::Graph { position: self.position, bytes, graph })
    }
}

/// How many hops there may be.
fn hops_max(plan: &TracePlan) -> usize {
    usize::from(plan.max_ttl - plan.first_ttl) + 1
}

fn put(by_flow: &mut Vec<At>, flow: u16, state: At) {
    let at = usize::from(flow);
    if by_flow.len() <= at {
        by_flow.resize(at + 1, At::Unasked);
    }
    if let Some(place) = by_flow.get_mut(at) {
        *place = state;
    }
}
