//! Which flow is asked where next, by what is known so far.
//!
//! Flows are counted by [`Multipath::wants`]; which ones they are is decided here so that a packet serves two ends wherever it can: a flow that shows
//! a link counts for the rule of its hop as well. That is no worse than a flow at random as long as the flows taken for one node of the neighbouring
//! hop are no more than its share of them, rounded up: a sample that is spread over parts by their weight misses something with at most the probability with which
//! one at random does (the logarithm of the probability that a part does not show it is concave in the part's share: Jensen). What is beyond the
//! share is sent, and does not count.
//!
//! So that few are beyond, the light form is patient: a hop waits for a neighbour with more nodes, whose links then take most of its flows, and where
//! only one node is known the first few flows come before the others. Patience ends where nobody is left to wait for.

use std::collections::BTreeMap;

use super::{At, HopState, Multipath, SPARE};
use crate::trace::spec::Ways;

/// Flows that are known at a hop with one node before more are sent: each step shows which hops are wide.
const STEPS: [usize; 2] = [2, 4];

fn count(met: &[bool]) -> usize {
    met.iter().filter(|met| **met).count()
}

impl Multipath {
    /// Decides what is to be asked where something has changed.
    pub(super) fn look(&mut self, ways: &Ways) {
        self.look_over(ways, true);
        if self.queue.is_empty() && self.hops.iter().all(|hop| hop.waiting == 0) && self.hops.iter().any(|hop| hop.later) {
            self.look_over(ways, false);
        }
    }

    fn look_over(&mut self, ways: &Ways, patient: bool) {
        // Room that comes free at a hop makes it dirty again.
        let take = |hop: &mut HopState| (core::mem::take(&mut hop.dirty), core::mem::take(&mut hop.later), hop.waiting == 0);
        let was: Vec<(bool, bool, bool)> = self.hops.iter_mut().map(take).collect();
        let is_dirty = |at: &usize| was.get(*at).is_some_and(|(dirty, later, _)| *dirty || *later && !patient);
        (0..was.len()).filter(is_dirty).for_each(|at| self.balance(ways, at, patient));
        for near in (0..was.len().saturating_sub(1)).filter(|near| is_dirty(near) || is_dirty(&(near + 1))) {
            self.edges(ways, near, patient);
        }
        for (at, (dirty, later, _)) in was.iter().enumerate() {
            if *dirty || *later {
                let is_quiet = |at: usize| was.get(at).is_none_or(|(_, _, quiet)| *quiet);
                let quiet = is_quiet(at + 1) && at.checked_sub(1).is_none_or(is_quiet);
                self.hop_rule(ways, at, patient, quiet);
            }
        }
    }

    /// It is looked at again when something has happened anywhere, and in any case when nothing else is under way.
    fn later(&mut self, at: usize) {
        if let Some(hop) = self.hops.get_mut(at) {
            hop.later = true;
        }
    }

    /// Nodes that flows met at a hop.
    fn width(&self, at: usize) -> usize {
        let flows = self.hops.get(at).map_or(0, |hop| hop.by_flow.len()) as u16;
        let mut met = self.no_nodes(at);
        (0..flows).for_each(|flow| self.mark(flow, at, &mut met));
        count(&met)
    }

    fn no_nodes(&self, at: usize) -> Vec<bool> {
        vec![false; self.hops.get(at).map_or(0, |hop| hop.nodes.len())]
    }

    /// Marks the node that a flow met at a hop.
    fn mark(&self, flow: u16, at: usize, met: &mut [bool]) {
        if let At::Node(node) = self.state(flow, at)
            && let Some(met) = met.get_mut(usize::from(node))
        {
            *met = true;
        }
    }

    /// Whether a hop is the gateway that all packets are handed to.
    pub(super) fn is_gateway(&self, ways: &Ways, at: usize) -> bool {
        let is_router = |hop: &HopState| matches!(&hop.nodes[..], [only] if only.routes);
        ways.lite && at == 0 && self.from_first && self.hops.first().is_some_and(is_router)
    }

    /// Whether only the destination answered at a hop.
    fn is_destination(&self, at: usize) -> bool {
        self.hops
            .get(at)
            .is_some_and(|hop| !hop.nodes.is_empty() && hop.nodes.iter().all(|node| !node.routes && node.reply.from == self.dst))
    }

    /// How many flows it takes to know a hop at which so many nodes were met. The light form takes for granted that the source has one gateway, which is
    /// where the probe sends everything to, and that who hands one flow to the destination itself does so with all.
    pub(super) fn need(&self, ways: &Ways, at: usize, nodes: usize) -> usize {
        let granted = ways.lite && nodes == 1 && (self.is_gateway(ways, at) || self.is_destination(at));
        if granted { 1 } else { ways.flows(nodes) }
    }

    /// Flows that were taken for their links beyond the share of a node, so that they show less of the hop than others.
    fn beyond_share(&self, at: usize, need: usize) -> usize {
        let Some(hop) = self.hops.get(at) else { return 0 };
        let mut taken: BTreeMap<(usize, u16), usize> = BTreeMap::new();
        for (flow, beside) in hop.for_links.iter().filter(|(flow, _)| self.state(*flow, at).is_open_or_known()) {
            if let At::Node(node) = self.state(*flow, *beside) {
                *taken.entry((*beside, node)).or_default() += 1;
            }
        }
        let mut beyond = 0;
        for beside in [at.checked_sub(1), Some(at + 1)].into_iter().flatten() {
            let by_node = self.flows_by_node(beside);
            let all = by_node.iter().map(Vec::len).sum::<usize>().max(1);
            let shares = (0..).zip(&by_node).map(|(node, flows)| (node, (need * flows.len()).div_ceil(all)));
            beyond += shares.map(|(node, share)| taken.get(&(beside, node)).map_or(0, |taken| taken.saturating_sub(share))).sum::<usize>();
        }
        beyond
    }

    /// How many more flows a hop takes: as many as the number of its nodes asks for, and of silence no more than twice that.
    fn wants(&self, ways: &Ways, at: usize) -> usize {
        let Some(hop) = self.hops.get(at).filter(|hop| !hop.by_packet) else { return 0 };
        let (mut met, mut open, mut silent) = (self.no_nodes(at), 0, 0);
        for flow in 0..hop.by_flow.len() as u16 {
            let state = self.state(flow, at);
            self.mark(flow, at, &mut met);
            open += usize::from(state.is_open_or_known());
            silent += usize::from(state == At::Silent);
        }
        let nodes = count(&met);
        let need = self.need(ways, at, nodes);
        let most = if nodes == 0 { need } else { need * SPARE };
        let beyond = if ways.lite && open >= need && !hop.for_links.is_empty() { self.beyond_share(at, need) } else { 0 };
        (need + beyond).saturating_sub(open).min((most + beyond).saturating_sub(open + silent))
    }

    /// Whether a hop is still being asked, or should be.
    fn is_busy(&self, ways: &Ways, at: usize) -> bool {
        self.hops.get(at).is_some_and(|hop| hop.waiting > 0) || self.wants(ways, at) > 0
    }

    /// As many flows as the number of nodes asks for; `quiet` says that nothing was under way at its neighbours.
    fn hop_rule(&mut self, ways: &Ways, at: usize, patient: bool, quiet: bool) {
        let mut more = self.wants(ways, at);
        if more == 0 {
            return;
        }
        let width = self.width(at);
        if ways.lite && patient && width > 0 {
            // Of two as wide the farther one comes first.
            let first = |beside: usize, width: usize| self.width(beside) > width && self.is_busy(ways, beside);
            let under_way = width == 1 && self.hops.get(at).is_some_and(|hop| hop.waiting > 0);
            if !quiet || under_way || first(at + 1, (width - 1).max(1)) || at > 0 && first(at - 1, width) {
                return self.later(at);
            }
            if width == 1 {
                let known: usize = self.flows_by_node(at).iter().map(Vec::len).sum();
                more = STEPS.iter().find(|step| known < **step).map_or(more, |step| more.min(step - known));
            }
        }
        self.ask_others(ways, at, more);
    }

    /// Asks up to `more` flows that were not asked at a hop.
    fn ask_others(&mut self, ways: &Ways, at: usize, mut more: usize) {
        for flow in 0..ways.most_flows() {
            if more == 0 {
                return;
            }
            // Beyond the first path only those that are known to get there.
            let leads = at < self.length || matches!(self.state(flow, at - 1), At::Node(node) if self.is_router(at - 1, node));
            if leads && self.state(flow, at) == At::Unasked {
                if !self.ask(flow, at, false) {
                    return;
                }
                more -= 1;
            }
        }
    }

    /// Whether the nodes of a hop are chosen by flow: one flow again, where there are several nodes and their own flows have answered; the more nodes, the
    /// fewer questions it takes.
    ///
    /// The light form does so where ways part; where they have parted one flow passes only one of those who choose, and links that look meshed lead here
    /// all the same. Nor does it where the links to the next hop have shown it: had packets of a flow gone different ways, flows that meet one
    /// node there would not have met one node here each time, and each further one of them is as good as a repetition.
    fn balance(&mut self, ways: &Ways, at: usize, patient: bool) {
        if self.hops.get(at).is_none_or(|hop| hop.checked || hop.waiting > 0) {
            return;
        }
        let width = self.width(at);
        if width < 2 || ways.lite && at.checked_sub(1).is_some_and(|before| self.width(before) > 1) {
            return;
        }
        let meets = ways.lite && self.width(at + 1) > 1;
        if patient && (self.is_busy(ways, at) || meets && self.is_busy(ways, at + 1)) {
            return self.later(at);
        }
        if !meets || self.agreements(at).is_none_or(|times| times < ways.repetitions(width)) {
            self.repeat(ways, at);
        }
    }

    /// How often a further flow of a node of the next hop came by the node that others of them came by; `None` where one did not.
    fn agreements(&self, at: usize) -> Option<usize> {
        let mut times = 0;
        for flows in self.flows_by_node(at + 1) {
            let met: Vec<At> = flows.iter().map(|flow| self.state(*flow, at)).filter(|seen| matches!(seen, At::Node(_))).collect();
            let (first, others) = met.split_first().map_or((At::Unasked, &[][..]), |(first, others)| (*first, others));
            if others.iter().any(|other| *other != first) {
                return None;
            }
            times += others.len();
        }
        Some(times)
    }

    /// One flow again, once for each hop with several nodes. Whether anything is asked.
    fn repeat(&mut self, ways: &Ways, at: usize) -> bool {
        let by_node = self.flows_by_node(at);
        let met: Vec<u16> = by_node.iter().filter_map(|flows| flows.first().copied()).collect();
        let Some(hop) = self.hops.get_mut(at).filter(|hop| !hop.checked && met.len() > 1) else { return false };
        hop.checked = true;
        let Some(flow) = met.first() else { return false };
        (0..ways.repetitions(met.len())).filter(|_| self.ask(*flow, at, true)).count() > 0
    }

    /// Links between a hop and the next one.
    fn edges(&mut self, ways: &Ways, near: usize, patient: bool) {
        let far = near + 1;
        let Some([one, other]) = self.hops.get(near..=far) else { return };
        if one.by_packet || other.by_packet {
            return;
        }
        let (nearer, farther) = (self.flows_by_node(near), self.flows_by_node(far));
        let count = |by_node: &[Vec<u16>]| by_node.iter().filter(|flows| !flows.is_empty()).count();
        let (wide, far_wide) = (count(&nearer), count(&farther));
        let wanted = if wide > 1 && far_wide > 1 { 2 } else { 1 };
        for (node, flows) in nearer.iter().enumerate() {
            if self.is_router(near, node as u16) {
                self.link_beside(flows, far, near, wanted);
            }
        }
        // Before whoever stands behind the gateway is the gateway.
        let unknown = if self.is_gateway(ways, near) { &[][..] } else { &farther[..] };
        for flows in unknown {
            self.link_beside(flows, near, far, wanted);
        }
        let settled = self.hops.get(near..=far).is_some_and(|hops| hops.iter().all(|hop| hop.waiting == 0));
        if wide > 1 && far_wide > 1 && settled && !self.hops.get(near).is_some_and(|hop| hop.full) {
            if patient && (self.is_busy(ways, near) || self.is_busy(ways, far)) {
                return self.later(near);
            }
            self.compare(ways, near, &nearer, &farther);
        }
        if wide > 1 && self.hops.get(near).is_some_and(|hop| hop.full || !ways.lite) {
            self.node_rule(ways, near, &nearer);
        }
    }

    /// Whether links are meshed, or uneven, so that nodes must be looked at one by one.
    fn compare(&mut self, ways: &Ways, near: usize, nearer: &[Vec<u16>], farther: &[Vec<u16>]) {
        let far = near + 1;
        let out = self.neighbours(nearer, far);
        let back = self.neighbours(farther, near);
        let [wide, far_wide] = [near, far].map(|at| self.width(at));
        let (narrow, broad) = if wide <= far_wide { (&out, &back) } else { (&back, &out) };
        let meshed = broad.iter().any(|count| *count > 1) || wide == far_wide && narrow.iter().any(|count| *count > 1);
        // It may look so because packets of one flow go different ways.
        if meshed && [near, far].map(|at| self.repeat(ways, at)).contains(&true) {
            return;
        }
        let uneven = narrow.iter().min() != narrow.iter().max();
        let onward = |flows: &Vec<u16>| flows.iter().filter(|flow| matches!(self.state(**flow, far), At::Node(_))).count();
        let before = if uneven { nearer.iter().map(onward).collect() } else { Vec::new() };
        if let Some(hop) = self.hops.get_mut(near) {
            (hop.full, hop.before) = (meshed || uneven, before);
        }
    }

    /// To how many nodes of hop `at` each of the nodes leads, or who leads to it.
    fn neighbours(&self, by_node: &[Vec<u16>], at: usize) -> Vec<usize> {
        let met = by_node.iter().filter(|flows| !flows.is_empty()).map(|flows| self.met(flows, at));
        met.filter(|count| *count > 0).collect()
    }

    /// How many nodes of hop `at` the flows met.
    fn met(&self, flows: &[u16], at: usize) -> usize {
        let mut met = self.no_nodes(at);
        flows.iter().for_each(|flow| self.mark(*flow, at, &mut met));
        count(&met)
    }

    /// Flows of a node of hop `beside` are sent to hop `at`, so that its links are known.
    fn link_beside(&mut self, flows: &[u16], at: usize, beside: usize, wanted: usize) {
        if flows.iter().filter(|flow| self.state(**flow, at).is_open_or_known()).take(wanted).count() == wanted {
            return;
        }
        let is_unasked = |multipath: &Self, flow: u16| multipath.state(flow, at) == At::Unasked;
        let unasked: Vec<u16> = flows.iter().copied().filter(|flow| is_unasked(self, *flow)).collect();
        self.link(flows, at, wanted, wanted + SPARE);
        let asked: Vec<(u16, usize)> = unasked.into_iter().filter(|flow| !is_unasked(self, *flow)).map(|flow| (flow, beside)).collect();
        if let Some(hop) = self.hops.get_mut(at) {
            hop.for_links.extend(asked);
        }
    }

    /// Flows of one node are sent to hop `at`, until so many of them are known there or `most` were tried. How many could not be had.
    fn link(&mut self, flows: &[u16], at: usize, wanted: usize, most: usize) -> usize {
        let known = flows.iter().filter(|flow| self.state(**flow, at).is_open_or_known()).count();
        let silent = flows.iter().filter(|flow| self.state(**flow, at) == At::Silent).count();
        let more = wanted.saturating_sub(known).min(most.saturating_sub(known + silent));
        let unasked: Vec<u16> = flows.iter().copied().filter(|flow| self.state(*flow, at) == At::Unasked).take(more).collect();
        more - unasked.into_iter().take_while(|flow| self.ask(*flow, at, false)).count()
    }

    /// As many flows through each node, and on from it, as its number of successors asks for.
    fn node_rule(&mut self, ways: &Ways, near: usize, nearer: &[Vec<u16>]) {
        let (far, mut missing) = (near + 1, 0);
        let most = self.neighbours(nearer, far).into_iter().max().unwrap_or_default();
        for (node, flows) in nearer.iter().enumerate() {
            if flows.is_empty() || !self.is_router(near, node as u16) {
                continue;
            }
            let successors = self.met(flows, far);
            let enough = ways.flows(successors);
            // Who seems to have fewer successors than others must show so twice, with flows that did not raise the suspicion.
            let before = self.hops.get(near).and_then(|hop| hop.before.get(node)).filter(|_| successors < most);
            let need = before.map_or(enough, |before| before + 2 * enough);
            missing += self.link(flows, far, need, need * SPARE);
        }
        let settled = self.hops.get(near..=far).is_some_and(|hops| hops.iter().all(|hop| hop.waiting == 0));
        if missing > 0 && settled {
            // Where none of its flows is left, others may lead there: first those of which it is known how they go on.
            let wide = nearer.iter().filter(|flows| !flows.is_empty()).count();
            let goes_on = |flow: &u16| self.state(*flow, near) == At::Unasked && self.state(*flow, far).is_open_or_known();
            let onward: Vec<u16> = (0..self.flows.len() as u16).filter(goes_on).take(missing * wide).collect();
            let asked = onward.into_iter().take_while(|flow| self.ask(*flow, near, false)).count();
            self.ask_others(ways, near, (missing * wide).saturating_sub(asked));
        }
    }
}
