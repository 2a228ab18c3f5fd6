//! Paths as an [`Engine`]: as many at a time as the plan says, packet by packet in turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use picket_wire::trace::{PathEnd, Reply};

use super::packet::{Probes, Seen};
use super::path::Tracing;
use super::report::{Event, Summary};
use super::spec::{SpecError, TracePlan};
use crate::net::engine::{Engine, NotSent, Transmit};
use crate::net::ports::RawIdentity;
use crate::net::time::Instant;

/// A token is the path's number above the packet's.
const NUMBER_BITS: u32 = 16;

struct Slot {
    tracing: Tracing,
    /// Whether it stands in the row of those that may have something to send.
    ready: bool,
    due: Option<Instant>,
}

/// Traces to the destinations of a range.
pub struct TraceEngine {
    plan: TracePlan,
    probes: Probes,
    /// Source port or echo identifier.
    flow: u16,
    /// The next position, and the number of the next path.
    next: u64,
    started: u64,
    open: HashMap<u64, Slot>,
    /// Open paths by destination: a destination is in a space once.
    by_dst: HashMap<IpAddr, u64>,
    ready: VecDeque<u64>,
    due: BTreeSet<(Instant, u64)>,
    events: VecDeque<Event>,
    summary: Summary,
    done: bool,
}

impl TraceEngine {
    /// Makes the engine for a plan.
    ///
    /// # Errors
    /// If what was changed in the plan is not possible, or there is no source address at all.
    pub fn new(plan: TracePlan, identity: RawIdentity) -> Result<Self, SpecError> {
        if identity.source.v4.is_none() && identity.source.v6.is_none() {
            return Err(SpecError::NoSource);
        }
        let plan = plan.checked()?;
        Ok(Self {
            probes: Probes::new(&plan, &identity),
            // Engines that run at the same time start at ports of their own.
            flow: identity.ports.flow(identity.base_port.wrapping_sub(identity.ports.first()).wrapping_add(plan.flow)),
            next: plan.from,
            plan,
            started: 0,
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
        if self.open.len() >= self.plan.paths || self.next >= self.plan.to {
            return false;
        }
        let position = self.next;
        self.next += 1;
        if let Some(target) = self.plan.space.target(position) {
            let id = self.started;
            self.started += 1;
            let tracing = Tracing::new(&self.plan, position, target.addr, self.flow);
            self.by_dst.insert(target.addr, id);
            self.open.insert(id, Slot { tracing, ready: true, due: None });
            self.ready.push_back(id);
        }
        true
    }

    /// Looks anew at a path to which something has happened.
    fn look_at(&mut self, id: u64, hungry: bool) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        if slot.tracing.is_over(&self.plan) {
            return self.finish(id, false);
        }
        if hungry && !slot.ready {
            slot.ready = true;
            self.ready.push_back(id);
        }
        let due = slot.tracing.due(&self.plan);
        if due != slot.due {
            if let Some(at) = slot.due {
                self.due.remove(&(at, id));
            }
            if let Some(at) = due {
                self.due.insert((at, id));
            }
            slot.due = due;
        }
    }

    fn finish(&mut self, id: u64, stopped: bool) {
        let Some(Slot { tracing, due, .. }) = self.open.remove(&id) else { return };
        if let Some(at) = due {
            self.due.remove(&(at, id));
        }
        self.by_dst.remove(&tracing.dst);
        self.summary.duplicates += tracing.duplicates;
        let (position, path) = (tracing.position, Box::new(tracing.path(&self.plan, stopped)));
        self.summary.paths += 1;
        self.summary.reached += u64::from(path.end == PathEnd::Reached);
        self.events.push_back(Event::Path { position, path });
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
        let Some(slot) = self.open.get_mut(&id).filter(|slot| slot.tracing.flow == seen.name.flow) else { return };
        let Seen { name, from, ttl, kind, quoted, extensions } = seen;
        let reply = |rtt: core::time::Duration| Reply {
            from,
            rtt_us: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
            ttl,
            kind,
            quoted,
            mpls: extensions.mpls,
            interfaces: extensions.interfaces,
        };
        if let Some((ttl, reply)) = slot.tracing.answer(&self.plan, now, name.number, reply) {
            self.summary.answers += 1;
            if self.plan.live {
                self.events.push_back(Event::Hop { position: slot.tracing.position, ttl, reply: Box::new(reply) });
            }
            self.look_at(id, true);
        }
    }
}

impl Engine for TraceEngine {
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
            let Some((number, ttl)) = slot.tracing.next(&self.plan, now) else {
                slot.ready = false;
                self.look_at(id, false);
                continue;
            };
            self.ready.push_back(id);
            let (dst, flow) = (slot.tracing.dst, slot.tracing.flow);
            match self.probes.write(dst, flow, number, ttl, buf) {
                Some(len) => {
                    self.summary.sent_packets += 1;
                    self.summary.sent_bytes += len as u64;
                    self.look_at(id, true);
                    return Some(Transmit { dst, token: id << NUMBER_BITS | u64::from(number), len });
                }
                // There is no address to send from in its family.
                None => {
                    slot.tracing.not_sent(&self.plan, number, NotSent::NoRoute);
                    self.look_at(id, true);
                }
            }
        }
    }

    fn on_not_sent(&mut self, _now: Instant, token: u64, why: NotSent) {
        let (id, number) = (token >> NUMBER_BITS, token as u16);
        let Some(slot) = self.open.get_mut(&id) else { return };
        self.summary.sent_packets = self.summary.sent_packets.saturating_sub(1);
        self.summary.sent_bytes = self.summary.sent_bytes.saturating_sub(self.probes.len(slot.tracing.dst) as u64);
        slot.tracing.not_sent(&self.plan, number, why);
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
            let hungry = slot.tracing.on_timeout(&self.plan, now);
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
        let mut open: Vec<(u64, u64)> = self.open.iter().map(|(id, slot)| (slot.tracing.position, *id)).collect();
        open.sort_unstable();
        open.into_iter().for_each(|(_, id)| self.finish(id, true));
        self.look_for_end();
    }
}
