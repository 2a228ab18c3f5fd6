//! The raw-packet scan as an [`Engine`]: the schedule's probes as packets, packets as answers.

use std::collections::VecDeque;
use std::sync::Arc;

use picket_wire::job::Technique;
use picket_wire::space::{Target, TargetSpace};

use super::kinds::Kind;
use super::onlink::OnLink;
use super::report::{Event, Progress, Stats};
use super::schedule::{Probe, Schedule};
pub use super::spec::Cut;
use super::spec::{ScanPlan, SpecError, Timing};
use crate::net::engine::{Engine, NotSent, Signs, Transmit};
use crate::net::onlink::LocalLink;
use crate::net::ports::RawIdentity;
use crate::net::time::Instant;
use crate::packet::eth::Mac;

/// A token is the attempt above the position, which has 60 bits ([`picket_wire::space::MAX_LEN`]).
const ATTEMPT_SHIFT: u32 = 60;
/// Most positions without a source address that are passed over before the loop gets its turn back.
const SKIPS_PER_POLL: u32 = 1024;

/// A scan by raw packets, of any kind.
pub struct ScanEngine {
    schedule: Schedule,
    space: Arc<TargetSpace>,
    kind: Kind,
    technique: Technique,
    link: Option<OnLink>,
    /// Attempts that ask in different ways, where IP packets are sent.
    round: u8,
    timing: Timing,
    /// What is told before the schedule's next event.
    told: VecDeque<Event>,
    progress: Arc<Progress>,
    on_stop: Cut,
}

impl ScanEngine {
    /// Makes the engine for a plan. A family without a source address is reported as not reached for want of a route.
    ///
    /// # Errors
    /// If there is no source address at all, or if the technique is not one of raw packets.
    pub fn new(plan: &ScanPlan, identity: RawIdentity) -> Result<Self, SpecError> {
        if identity.source.v4.is_none() && identity.source.v6.is_none() {
            return Err(SpecError::NoSource);
        }
        let kind = Kind::new(plan, identity).ok_or(SpecError::NotRaw(plan.technique))?;
        let progress = Arc::new(Progress::default());
        let schedule = Schedule::new(plan);
        progress.publish(schedule.next(), &schedule.stats());
        Ok(Self {
            schedule,
            space: Arc::clone(&plan.space),
            kind,
            technique: plan.technique,
            link: None,
            round: plan.round(),
            timing: plan.timing,
            told: VecDeque::new(),
            progress,
            on_stop: Cut::Final,
        })
    }

    /// Targets on this link are asked by ARP and neighbour solicitation, where the technique allows that. Without a link
    /// [`Technique::Neighbour`] reaches nothing.
    #[must_use]
    pub fn on_link(mut self, link: Option<LocalLink>) -> Self {
        let wanted = matches!(self.technique, Technique::Neighbour | Technique::Discover);
        let Some(link) = link.filter(|_| wanted) else { return self };
        if self.timing == Timing::default() && self.space.ranges().all(|(first, last)| link.holds(first, last)) {
            self.schedule.all_on_link();
        }
        self.link = Some(OnLink::new(Arc::new(link)));
        self
    }

    /// Ends the scan now; its last reports and [`Event::Done`] follow at once, and nothing more is sent.
    pub fn cut(&mut self, now: Instant, how: Cut) {
        self.schedule.cut(now, how);
    }

    /// What becomes of unfinished chunks when the task is ended from outside; [`Cut::Final`] where this is not called.
    #[must_use]
    pub fn on_stop(mut self, how: Cut) -> Self {
        self.on_stop = how;
        self
    }

    /// How the scan stands, for other threads.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Sums so far.
    pub fn stats(&self) -> Stats {
        self.schedule.stats()
    }

    /// One past the last position that was begun.
    pub fn next_position(&self) -> u64 {
        self.schedule.next()
    }

    fn write(&self, probe: Probe, buf: &mut [u8]) -> Option<Transmit> {
        let target = self.space.target(probe.position)?;
        let by_ip = self.link.is_some() && self.schedule.is_by_ip(probe.position);
        let link = self.link.as_ref().filter(|_| !by_ip);
        let len = match link.and_then(|link| link.neighbour().patch(target.addr, buf)) {
            Some(len) => len,
            None if self.technique == Technique::Neighbour && !by_ip => return None,
            None => self.kind.patch(target, probe.attempt, buf)?,
        };
        Some(Transmit { dst: target.addr, token: u64::from(probe.attempt) << ATTEMPT_SHIFT | probe.position, len })
    }
}

impl Engine for ScanEngine {
    type Event = Event;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        for _ in 0..SKIPS_PER_POLL {
            let probe = self.schedule.poll(now)?;
            if let Some(transmit) = self.write(probe, buf) {
                self.schedule.add_bytes(probe, transmit.len);
                return Some(transmit);
            }
            self.schedule.not_sent(now, probe, NotSent::NoRoute, 0);
        }
        None
    }

    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent) {
        let probe = Probe { position: token & ((1 << ATTEMPT_SHIFT) - 1), attempt: (token >> ATTEMPT_SHIFT) as u8 };
        let bytes = self.write(probe, &mut [0; 1500]).map_or(0, |transmit| transmit.len);
        self.schedule.not_sent(now, probe, why, bytes);
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        let Some(reply) = self.kind.accept(packet) else { return };
        // A right cookie for what is not in the space: somebody echoes what we never sent, or the key is known.
        if let Some(position) = self.space.position(reply.target) {
            self.schedule.answer(now, Probe { position, attempt: reply.attempt }, reply.state, reply.ttl);
        }
    }

    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        if let Some(link) = &mut self.link
            && let Some(answered) = link.neighbour().accept(from, packet)
        {
            let target = Target { addr: answered.addr, port: None };
            if let Some(position) = self.space.position(target)
                && link.on_answer(now, position, answered, &mut self.schedule, &mut self.told)
            {
                // Who answers now may be far behind the proxy.
                self.schedule.not_all_on_link(self.timing, self.round);
            }
        } else {
            self.on_packet(now, packet);
        }
    }

    fn on_link_up(&mut self, now: Instant) {
        self.schedule.on_link_up(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.schedule.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.schedule.on_timeout(now);
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.progress.publish(self.schedule.next(), &self.schedule.stats());
        if self.told.is_empty() {
            let mut event = self.schedule.poll_event()?;
            if let Some(link) = &mut self.link {
                while link.hold(&event) {
                    event = self.schedule.poll_event()?;
                }
                link.before(&event, &mut self.told);
            }
            self.told.push_back(event);
        }
        self.told.pop_front()
    }

    fn signs(&mut self) -> Signs {
        self.schedule.signs()
    }

    fn stop(&mut self) {
        self.schedule.cut(self.schedule.seen(), self.on_stop);
    }
}
