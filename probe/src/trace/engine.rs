//! Paths, or graphs of all ways, as an [`Engine`]: as many destinations at a time as the plan says, packet by packet in turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use picket_wire::trace::{PathEnd, Reply};

use super::course::{Ask, Course, Flows};
use super::multipath::Multipath;
use super::packet::{Probes, Seen};
use super::path::Tracing;
use super::report::{Event, Summary};
use super::spec::{SpecError, TracePlan};
use super::stops::Stops;
use crate::net::engine::{Engine, NotSent, Transmit};
use crate::net::ports::RawIdentity;
use crate::net::time::Instant;

/// Paths at a time that take hops from each other, at the start: what they find spares the others most of their packets. Each that is over,
/// or waits for somebody who is late, makes room for [`GROWTH`] more.
const FIRST_PATHS: usize = 16;
const GROWTH: usize = 2;
/// No path begins so far behind the first one that is still open: whoever tells them in order keeps no more than so many.
pub const AHEAD_MAX: u64 = 16_384;
/// The same of graphs, each of which may be as large as hundreds of paths.
const GRAPHS_AHEAD_MAX: u64 = 256;
/// A token is the course's number above the packet's.
const NUMBER_BITS: u32 = 16;

/// The engine for a plan.
///
/// # Errors
/// If what was changed in the plan is not possible, or there is no source address at all.
pub fn trace(plan: TracePlan, identity: RawIdentity) -> Result<Box<dyn Engine<Event = Event> + Send>, SpecError> {
    Ok(match plan.multipath {
        None => Box::new(TraceEngine::<Tracing>::new(plan, identity)?),
        Some(_) => Box::new(TraceEngine::<Multipath>::new(plan, identity)?),
    })
}

struct Slot<C> {
    course: C,
    /// Whether it stands in the row of those that may have something to send.
    ready: bool,
    due: Option<Instant>,
    /// Whether it has made room for others.
    counted: bool,
}

/// Traces to the destinations of a range.
pub(super) struct TraceEngine<C> {
    plan: TracePlan,
    probes: Probes,
    flows: Flows,
    stops: Stops,
    /// Paths at a time as far as is known.
    room: usize,
    /// The next position, and the number of the next course.
    next: u64,
    started: u64,
    /// No course with a smaller number is open.
    oldest: u64,
    open: HashMap<u64, Slot<C>>,
    /// Open courses by destination: a destination is in a space once.
    by_dst: HashMap<IpAddr, u64>,
    ready: VecDeque<u64>,
    due: BTreeSet<(Instant, u64)>,
    events: VecDeque<Event>,
    summary: Summary,
    done: bool,
}

impl<C: Course> TraceEngine<C> {
    pub(super) fn new(plan: TracePlan, identity: RawIdentity) -> Result<Self, SpecError> {
        if identity.source.v4.is_none() && identity.source.v6.is_none() {
            return Err(SpecError::NoSource);
        }
        let plan = plan.checked()?.with_ports(identity.ports.count().into());
        Ok(Self {
            probes: Probes::new(&plan, &identity),
            // Engines that run at the same time start at ports of their own; what they send is told apart by their keys.
            flows: Flows::new(identity.ports, identity.base_port, plan.flow),
            stops: Stops::default(),
            room: if plan.shared { FIRST_PATHS.min(plan.paths) } else { plan.paths },
            next: plan.from,
            plan,
            started: 0,
            oldest: 0,
            open: HashMap::new(),
            by_dst: HashMap::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            events: VecDeque::new(),
            summary: Summary::default(),
            done: false,
        })
    }

    /// Begins the next path, where there is one and there is room for it.
    fn begin(&mut self) -> bool {
        if self.open.len() >= self.room || self.next >= self.plan.to || self.is_far_ahead() {
            return false;
        }
        let position = self.next;
        self.next += 1;
        if let Some(target) = self.plan.space.target(position) {
            let id = self.started;
            self.started += 1;
            let course = C::new(&self.plan, &self.stops, position, target.addr);
            self.by_dst.insert(target.addr, id);
            self.open.insert(id, Slot { course, ready: true, due: None, counted: false });
            self.ready.push_back(id);
        }
        true
    }

    /// Whether the next course would be too far from the oldest one that is open. Their numbers go up with their positions.
    fn is_far_ahead(&mut self) -> bool {
        while self.oldest < self.started && !self.open.contains_key(&self.oldest) {
            self.oldest += 1;
        }
        self.started - self.oldest >= if self.plan.multipath.is_some() { GRAPHS_AHEAD_MAX } else { AHEAD_MAX }
    }

    /// Looks anew at a path to which something has happened.
    fn look_at(&mut self, id: u64, hungry: bool) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        if slot.course.is_over(&self.plan) {
            return self.finish(id, false);
        }
        let late = !slot.counted && slot.course.is_late();
        slot.counted |= late;
        if hungry && !slot.ready {
            slot.ready = true;
            self.ready.push_back(id);
        }
        let due = slot.course.due(&self.plan);
        if due != slot.due {
            if let Some(at) = slot.due {
                self.due.remove(&(at, id));
            }
            if let Some(at) = due {
                self.due.insert((at, id));
            }
            slot.due = due;
        }
        if late {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        self.room = (self.room + GROWTH).min(self.plan.paths);
    }

    fn finish(&mut self, id: u64, stopped: bool) {
        let Some(Slot { course, due, counted, .. }) = self.open.remove(&id) else { return };
        if !counted {
            self.make_room();
        }
        if let Some(at) = due {
            self.due.remove(&(at, id));
        }
        self.by_dst.remove(&course.dst());
        self.summary.duplicates += course.duplicates();
        let (end, event) = course.finish(&self.plan, &mut self.stops, stopped);
        self.summary.paths += 1;
        self.summary.reached += u64::from(end == PathEnd::Reached);
        self.events.push_back(event);
        self.look_for_end();
    }

    fn look_for_end(&mut self) {
        if self.open.is_empty() && self.next >= self.plan.to && !self.done {
            self.done = true;
            self.events.push_back(Event::Done(self.summary));
        }
    }

    fn take(&mut self, now: Instant, seen: Seen) {
        let Some(id) = self.by_dst.get(&seen.name.dst).copied() else { return };
        let (Some(slot), Some(flow)) = (self.open.get_mut(&id), self.flows.index(seen.name.flow)) else { return };
        let Seen { name, from, ttl, kind, quoted, extensions, mtu } = seen;
        let reply = |rtt: core::time::Duration| Reply {
            from,
            rtt_us: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
            ttl,
            kind,
            quoted,
            mpls: extensions.mpls,
            interfaces: extensions.interfaces,
            mtu,
        };
        if let Some((ttl, reply)) = slot.course.answer(&self.plan, &mut self.stops, now, flow, name.number, reply) {
            self.summary.answers += 1;
            if self.plan.live {
                self.events.push_back(Event::Hop { position: slot.course.position(), ttl, reply: Box::new(reply) });
            }
        }
        self.look_at(id, true);
    }
}

impl<C: Course> Engine for TraceEngine<C> {
    type Event = Event;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        loop {
            let Some(id) = self.ready.pop_front() else {
                if self.begin() {
                    continue;
                }
                self.look_for_end();
                return None;
            };
            let Some(slot) = self.open.get_mut(&id) else { continue };
            let Some(Ask { token, flow, number, ttl, size }) = slot.course.next(&self.plan, now) else {
                slot.ready = false;
                self.look_at(id, false);
                continue;
            };
            self.ready.push_back(id);
            let dst = slot.course.dst();
            match self.probes.write(dst, self.flows.port(flow), number, ttl, size, buf) {
                Some(len) => {
                    self.summary.sent_packets += 1;
                    self.summary.sent_bytes += len as u64;
                    self.look_at(id, true);
                    return Some(Transmit { dst, token: id << NUMBER_BITS | u64::from(token), len });
                }
                // There is no address to send from in its family.
                None => {
                    slot.course.not_sent(&self.plan, token, NotSent::NoRoute);
                    self.look_at(id, true);
                }
            }
        }
    }

    fn on_not_sent(&mut self, _now: Instant, token: u64, why: NotSent) {
        let (id, token) = (token >> NUMBER_BITS, token as u16);
        let Some(slot) = self.open.get_mut(&id) else { return };
        self.summary.sent_packets = self.summary.sent_packets.saturating_sub(1);
        let len = slot.course.size(token).map_or(self.probes.len(slot.course.dst()), usize::from);
        self.summary.sent_bytes = self.summary.sent_bytes.saturating_sub(len as u64);
        slot.course.not_sent(&self.plan, token, why);
        self.look_at(id, true);
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        if let Some(seen) = self.probes.accept(packet) {
            self.take(now, seen);
        }
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.due.first().map(|(at, _)| (*at, "a hop is silent"))
    }

    fn on_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            let Some(slot) = self.open.get_mut(&id) else { continue };
            slot.due = None;
            let hungry = slot.course.on_timeout(&self.plan, &mut self.stops, now);
            self.look_at(id, hungry);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn stop(&mut self) {
        if self.done {
            return;
        }
        self.summary.left = self.plan.to.saturating_sub(self.next);
        self.next = self.plan.to;
        let mut open: Vec<(u64, u64)> = self.open.iter().map(|(id, slot)| (slot.course.position(), *id)).collect();
        open.sort_unstable();
        open.into_iter().for_each(|(_, id)| self.finish(id, true));
        self.look_for_end();
    }
}
