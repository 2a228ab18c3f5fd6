//! The only loop: engines, pacer, neighbours, policy and link, turn by turn.
//!
//! [`Drive`] is sans IO but for its [`Link`]: [`Drive::turn`] takes the time and says when it wants to be called again, so
//! that the same code runs over AF_PACKET on a thread of its own ([`spawn`]) and over a simulation under a virtual clock.
//!
//! A turn receives at most a batch, lets time pass for engines and neighbours, puts a batch together and sends it, and hands
//! over events. Neither direction can starve the other.
//!
//! - **Fair.** Each packet goes to the task with the least service so far in proportion to its weight; an interactive task
//!   counts sixteen times a bulk one, and one that was idle goes first.
//! - **Policy.** The destination is read from the packet itself, right before it is queued, and given to the task's [`Gate`];
//!   for an address that is not permitted nothing is sent, no question for a neighbour either. A gateway's own hardware
//!   address may be asked for whoever it is: it is how the site reaches anything.
//! - **Considerate.** Limits towards single addresses and networks are asked for each packet; what is too soon goes back to its
//!   engine with the time ([`super::target_pacer`]). What happens to packets is reviewed ten times a second, and the interface's
//!   rate or a task's lowered where the network or this box is overloaded ([`super::congestion`]).
//! - **Not sent is not sent.** A frame that the kernel did not take is kept and tried again in order; what is given up is
//!   reported to its engine. While the interface is down the engines' clock stands still and their packets are handed back.
//!
//! - **Questions.** Engines may ask for neighbours themselves ([`super::engine`]). Such a question is judged by the address that it
//!   asks for and framed for those who listen; what is answered goes to all engines and to the loop's own cache.
//!
//! **Invariant:** every frame on the wire was admitted by the interface's pacer, and carries a packet whose own destination (or the
//! address that it asks for) its task's gate permitted in the same turn, or is a question of the loop for the next hop of such
//! a packet.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::congestion::{Congestion, REVIEW, Tally};
use super::engine::NotSent;
use super::link::{BATCH, Batch, FRAME_LEN, Framing, Link, Received, Sent, Stop};
use super::neighbour::{NeighbourCache, NeighbourLimits, Question, Resolution};
use super::pacer::{Limits, Pacer, Plan};
use super::route::{NextHop, RouteTable};
use super::target_pacer::{TargetPacer, TooSoon};
use super::time::Instant;
use crate::packet::arp::{self, Arp, Operation};
use crate::packet::eth::{self, Mac};
use crate::packet::guard::{self, Way};
use crate::packet::ip::{PROTOCOL_ICMP, Packet};
use crate::packet::{icmp, ndp, provoked};

/// Wait for room, in the kernel's queue or at whoever takes the events. No descriptor says when a queue has drained; this is
/// 300 frames of 84 bytes at 1 Gbit/s, a third of the usual queue.
const ROOM_RETRY: Duration = Duration::from_micros(200);
/// Without a task for so long the link holds no memory for what arrives. Closing takes the kernel some milliseconds: not between one
/// job and the next.
const REST_AFTER: Duration = Duration::from_secs(10);
/// How often an interface that is down is looked at.
const DOWN_RETRY: Duration = Duration::from_millis(250);
/// How long a task rests whose packets all wait for neighbours, where no neighbour answers meanwhile.
const PARK: Duration = Duration::from_millis(10);
/// Packets in a row that wait for neighbours before a task rests.
const PARK_AFTER: u32 = 64;
/// Packets offered in one turn that do not leave.
const MISSES_PER_TURN: u32 = 1_024;
/// How late timers of engines may be where a frame is to be sent at that time anyway.
const TIMER_SLACK: Duration = Duration::from_millis(4);
/// Time that the pacer can make good for each frame of a batch: a batch is charged when its last frame has left, 2 to 3 µs for each
/// one, so that a long one makes the next ones late.
const BATCH_SHARE: Duration = Duration::from_micros(20);
/// The same for a sender that its processor holds up: nothing else makes its batches late, and each call costs it more than each frame.
const BUSY_BATCH_SHARE: Duration = Duration::from_micros(8);
/// Batches received in one turn at most.
const RECEIVES_PER_TURN: u32 = 4;
/// A packet that left so much later than it was admitted is booked again with its target.
const HELD_BACK: Duration = Duration::from_millis(1);

mod task;
mod thread;

pub use task::{BoxEngine, DriveEvent, DriveStats, EventSink, Gate, TaskId, TaskSpec, TaskStats, Weight};
pub use thread::{Added, DriveGone, DriveHandle, spawn};

struct Task<E> {
    id: TaskId,
    engine: BoxEngine<E>,
    weight: Weight,
    asked: Limits,
    pacer: Pacer,
    plan: Option<Plan>,
    /// Frames and bytes of the batch that has just left.
    left: (usize, usize),
    gate: Arc<dyn Gate>,
    /// Service so far: bytes through weight.
    served: u64,
    /// Whether it may have something to send.
    hungry: bool,
    /// Packets in a row that wait for neighbours.
    waiting: u32,
    /// Rests until then, or until the neighbours' progress is another.
    parked: Option<(Instant, u64)>,
    targets: Option<TargetPacer>,
    congestion: Congestion,
    /// Packets sent at the last review.
    reviewed: u64,
    stats: TaskStats,
}

/// What a frame in the batch is.
#[derive(Debug, Clone, Copy)]
enum Cargo {
    Packet(TaskId, u64),
    Question(Question),
    /// Its task is gone.
    Nothing,
}

/// What a review compares.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    sent: u64,
    received: u64,
    drops: u64,
    full: u64,
    quenches: u64,
}

/// The loop.
pub struct Drive<L, E, S> {
    link: L,
    framing: Framing,
    routes: Arc<RouteTable>,
    pacer: Pacer,
    neighbours: NeighbourCache,
    /// The next hop that was found last in the batch being put together.
    hop: Option<(IpAddr, Mac)>,
    tasks: Vec<Task<E>>,
    batch: Batch,
    cargo: VecDeque<Cargo>,
    sink: S,
    outbox: VecDeque<DriveEvent<E>>,
    /// Since when the interface is down, and when it is looked at again.
    down: Option<(Instant, Instant)>,
    /// When the link stops listening: some time after the last task has gone.
    rest_at: Option<Instant>,
    /// How long the engines' clock has stood still.
    paused: Duration,
    /// The kernel had no room for the batch.
    full: bool,
    /// When the batch was put together.
    planned: Instant,
    /// The interface's limits, without slow-downs.
    limits: Limits,
    congestion: Congestion,
    /// When the next review is due, and the counters at the last one.
    review_at: Instant,
    reviewed: Counters,
    /// Least service of a task that was chosen: where an idle task joins.
    served: u64,
    stats: DriveStats,
}

impl<L: Link, E, S: EventSink<E>> Drive<L, E, S> {
    /// A loop over `link` with the interface's `limits`, which knows its way by `routes`.
    pub fn new(now: Instant, link: L, limits: Limits, routes: Arc<RouteTable>, sink: S) -> Self {
        let stats = DriveStats {
            sent_packets: 0,
            sent_bytes: 0,
            questions: 0,
            received_packets: 0,
            receive_drops: 0,
            send_full: 0,
            late_wakeups: 0,
            latest_wakeup: Duration::ZERO,
            up: true,
            limits,
            current: limits,
            slowed: None,
            quenches: 0,
            tasks: Vec::new(),
        };
        let mut drive = Self {
            framing: link.framing(),
            link,
            routes: routes.clone(),
            pacer: Pacer::new(limits),
            neighbours: NeighbourCache::new(NeighbourLimits::default()),
            hop: None,
            tasks: Vec::new(),
            batch: Batch::default(),
            cargo: VecDeque::with_capacity(BATCH),
            sink,
            outbox: VecDeque::new(),
            down: None,
            rest_at: None,
            paused: Duration::ZERO,
            full: false,
            planned: now,
            limits,
            congestion: Congestion::default(),
            review_at: now + REVIEW,
            reviewed: Counters::default(),
            served: 0,
            stats,
        };
        drive.pacer.idle(now);
        drive.set_routes(now, routes);
        drive
    }

    /// Adds a task under a number that no other task has had. Returns what its rate came to.
    pub fn add(&mut self, now: Instant, id: TaskId, spec: TaskSpec<E>) -> Limits {
        let granted = spec.rate.clipped_to(self.limits);
        let clipped = spec.rate.exceeds(self.limits);
        let mut pacer = Pacer::new(granted);
        pacer.idle(now);
        self.tasks.push(Task {
            id,
            engine: spec.engine,
            weight: spec.weight,
            asked: spec.rate,
            pacer,
            plan: None,
            left: (0, 0),
            gate: spec.gate,
            served: self.served,
            hungry: true,
            waiting: 0,
            parked: None,
            targets: spec.targets,
            congestion: Congestion::default(),
            reviewed: 0,
            stats: TaskStats { name: spec.name, asked: Some(spec.rate), granted: Some(granted), clipped, ..TaskStats::default() },
        });
        if self.rest_at.take() == Some(Instant::FAR_FUTURE) {
            // Nobody heard what neighbours announced meanwhile.
            self.neighbours.clear();
        }
        if !self.listen() {
            self.go_down(now);
        }
        granted
    }

    /// Ends a task: what it has queued does not leave, its events are told, then [`DriveEvent::Ended`].
    pub fn cancel(&mut self, id: TaskId) {
        let Some(at) = self.tasks.iter().position(|task| task.id == id) else {
            return;
        };
        let mut task = self.tasks.remove(at);
        self.link.all_multicast(self.wants_all_multicast());
        task.engine.stop();
        while let Some(event) = task.engine.poll_event() {
            self.outbox.push_back(DriveEvent::Task(id, event));
        }
        self.outbox.push_back(DriveEvent::Ended(id, Box::new(task.stats)));
        for cargo in &mut self.cargo {
            if matches!(cargo, Cargo::Packet(owner, _) if *owner == id) {
                *cargo = Cargo::Nothing;
            }
        }
    }

    /// Changes the interface's limits, and with them what the tasks are granted.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        self.limits = limits;
        self.stats.limits = limits;
        self.pacer.set_limits(now, slowed(limits, &self.congestion));
        for task in &mut self.tasks {
            let granted = task.asked.clipped_to(limits);
            task.stats.granted = Some(granted);
            task.stats.clipped = task.asked.exceeds(limits);
            task.pacer.set_limits(now, slowed(granted, &task.congestion));
        }
    }

    /// The kernel's tables have changed.
    pub fn set_routes(&mut self, now: Instant, routes: Arc<RouteTable>) {
        self.neighbours.on_kernel(now, routes.neighbours());
        let up = routes.interface().up;
        self.routes = routes;
        if !up {
            self.go_down(now);
        } else if self.down.is_some() && self.link.is_up() && self.listen() {
            self.come_up(now);
        }
    }

    /// Counters so far.
    pub fn stats(&mut self) -> DriveStats {
        self.stats.receive_drops = self.link.counters().receive_drops;
        self.stats.up = self.down.is_none();
        self.stats.current = self.pacer.limits();
        self.stats.slowed = self.congestion.slowed().map(|(_, why)| why);
        let (current, why) = (self.stats.current, self.stats.slowed);
        let of = |task: &Task<E>| {
            let own = task.congestion.slowed().map(|(_, why)| why);
            TaskStats { current: Some(task.pacer.limits().clipped_to(current)), slowed: own.or(why), ..task.stats.clone() }
        };
        self.stats.tasks = self.tasks.iter().map(|task| (task.id, of(task))).collect();
        self.stats.clone()
    }

    /// The link, for a simulation's driver.
    pub fn link(&mut self) -> &mut L {
        &mut self.link
    }

    /// The sink, for a simulation's driver.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Does what can be done at `now`, and says when it must be called again if nothing arrives before: at once, where that
    /// is not later than `now`.
    pub fn turn(&mut self, now: Instant) -> Instant {
        let busy = self.receive(now);
        self.look_at_link(now);
        if self.down.is_none() {
            self.let_time_pass(now);
            self.review(now);
            self.transmit(now);
        }
        let room = self.deliver();
        self.rest(now);
        if busy { now } else { self.next(now, room) }
    }

    /// The engines' clock, which stands still while the interface is down.
    fn engine_now(&self, now: Instant) -> Instant {
        self.down.map_or(now, |(since, _)| now.min(since)) - self.paused
    }

    // Receiving.

    /// Returns whether more may be waiting.
    fn receive(&mut self, now: Instant) -> bool {
        let (down, paused) = (self.down, self.paused);
        let Self { link, tasks, neighbours, routes, stats, pacer, framing, .. } = self;
        let ethernet = matches!(framing, Framing::Ethernet { .. });
        for _ in 0..RECEIVES_PER_TURN {
            let (mut resets, mut bytes) = (0, 0);
            let count = link.receive(&mut |received| {
                stats.received_packets += 1;
                // The kernel answers what belongs to no socket of its own, and asks no pacer: charged here, paid by waiting.
                if let Some(len) = provoked::provoked_reply(received.payload) {
                    resets += 1;
                    bytes += if ethernet { charged(eth::HEADER_LEN + len, ethernet) } else { len };
                }
                stats.quenches += u64::from(is_source_quench(routes, received.payload));
                learn(now, neighbours, routes, &received);
                // While the loop was busy packets have waited: round trips do not include that.
                let at = received.at.map_or(now, |at| at.min(now));
                let engine_now = down.map_or(at, |(since, _)| at.min(since)) - paused;
                for task in tasks.iter_mut() {
                    task.engine.on_frame(engine_now, received.src, received.payload);
                    task.hungry = true;
                }
            });
            if resets > 0 {
                pacer.charge(now, resets, bytes);
            }
            if count < BATCH {
                return false;
            }
        }
        true
    }

    // Time.

    fn let_time_pass(&mut self, now: Instant) {
        self.neighbours.on_timeout(now);
        let engine_now = self.engine_now(now);
        for task in &mut self.tasks {
            if task.engine.poll_timeout().is_some_and(|(at, _)| at <= engine_now) {
                task.engine.on_timeout(engine_now);
                task.hungry = true;
            }
            if task.parked.is_some_and(|(until, progress)| until <= now || progress != self.neighbours.progress()) {
                task.parked = None;
            }
        }
    }

    /// Looks at what happened since the last time, and slows down or dares more.
    fn review(&mut self, now: Instant) {
        if now < self.review_at || self.tasks.is_empty() {
            return;
        }
        self.review_at = now + REVIEW;
        let drops = self.link.counters().receive_drops;
        let DriveStats { sent_packets, received_packets, send_full, quenches, .. } = self.stats;
        let counters = Counters { sent: sent_packets, received: received_packets, drops, full: send_full, quenches };
        let last = core::mem::replace(&mut self.reviewed, counters);
        let tally = Tally {
            sent: counters.sent - last.sent,
            received: counters.received - last.received,
            receive_drops: counters.drops - last.drops,
            send_full: counters.full - last.full,
            ..Tally::default()
        };
        if self.congestion.review(now, self.limits.packets, tally) {
            let current = slowed(self.limits, &self.congestion);
            tell("the interface", &self.congestion);
            self.pacer.set_limits(now, current);
        }
        for task in &mut self.tasks {
            let sent = task.stats.sent_packets - core::mem::replace(&mut task.reviewed, task.stats.sent_packets);
            let tally = Tally { sent, signs: task.engine.signs(), quenches: counters.quenches - last.quenches, ..Tally::default() };
            let granted = task.asked.clipped_to(self.limits);
            if task.congestion.review(now, granted.packets, tally) {
                tell(&task.stats.name, &task.congestion);
                task.pacer.set_limits(now, slowed(granted, &task.congestion));
            }
        }
    }

    fn next(&self, now: Instant, room: bool) -> Instant {
        if let Some((_, look)) = self.down {
            return if room { look } else { look.min(now + ROOM_RETRY) };
        }
        let timeouts = [self.neighbours.poll_timeout(), self.rest_at];
        let mut due = timeouts.into_iter().flatten().min().unwrap_or(Instant::FAR_FUTURE);
        let mut at = Instant::FAR_FUTURE;
        let ready = if self.pacer.is_ready(now) { now } else { self.pacer.wake_at() };
        if self.full {
            at = at.min(now + ROOM_RETRY);
        } else if !self.batch.is_empty() || self.neighbours.has_question() {
            at = at.min(ready);
        }
        for task in &self.tasks {
            if let Some((timeout, _)) = task.engine.poll_timeout() {
                due = due.min(timeout + self.paused);
            }
            if task.hungry && !self.full && room {
                let rested = task.parked.map_or(now, |(until, _)| until);
                let own = if task.pacer.is_ready(now) { now } else { task.pacer.wake_at() };
                at = at.min(ready.max(own).max(rested));
            }
        }
        if !room {
            at = at.min(now + ROOM_RETRY);
        }
        // A timer that can wait for the next frame costs no wake-up of its own.
        if due + TIMER_SLACK < at { due } else { at }
    }

    /// How late wake-ups may be for what is being sent. A task's rate is the interface's at most, so that the interface's own does not
    /// matter where every task is slow.
    fn tolerance(&self) -> Option<Duration> {
        let sending = self.tasks.iter().filter(|task| task.hungry).filter_map(|task| task.pacer.tolerance()).min()?;
        Some(self.pacer.tolerance().map_or(sending, |all| all.min(sending)))
    }

    /// Whether what was missed is being caught up: neither the interface's schedule holds, nor that of a task that has something to send.
    fn is_behind(&self, now: Instant) -> bool {
        self.pacer.is_behind(now) && self.tasks.iter().filter(|task| task.hungry).all(|task| task.pacer.is_behind(now))
    }

    // Sending.

    fn transmit(&mut self, now: Instant) {
        let mut plan = self.pacer.plan(now);
        let count = if self.batch.is_empty() {
            if self.outbox.is_empty() {
                self.fill(now, &mut plan);
            }
            self.batch.len()
        } else {
            // Kept from an earlier turn: admitted anew.
            let ethernet = matches!(self.framing, Framing::Ethernet { .. });
            let admitted = |at: &usize| {
                let admits = plan.admits();
                plan.add(charged(self.batch.frame(*at).len(), ethernet));
                admits
            };
            (0..self.batch.len()).take_while(admitted).count()
        };
        let count = self.drop_orphans(count);
        if count > 0 {
            let sent = self.link.send(now, &self.batch, count);
            self.account(&sent);
        } else if self.batch.is_empty() && !self.neighbours.has_question() && self.tasks.iter().all(|task| !task.hungry) {
            self.pacer.idle(now);
        }
    }

    /// Frames of cancelled tasks leave the batch unsent, where they stand at its front; returns how many may be sent before
    /// the next one.
    fn drop_orphans(&mut self, mut count: usize) -> usize {
        while matches!(self.cargo.front(), Some(Cargo::Nothing)) {
            self.cargo.pop_front();
            self.batch.advance(1);
            count = count.saturating_sub(1);
        }
        let whole = self.cargo.iter().take_while(|cargo| !matches!(cargo, Cargo::Nothing)).count();
        count.min(whole)
    }

    /// Puts a batch together: questions first, then the tasks by turns.
    fn fill(&mut self, now: Instant, plan: &mut Plan) {
        self.hop = None;
        self.planned = now;
        for task in &mut self.tasks {
            task.plan = Some(task.pacer.plan(now));
        }
        let most = self.tolerance().map_or(BATCH, |spare| {
            let mut plans = self.tasks.iter().filter(|task| task.hungry).filter_map(|task| task.plan.as_ref());
            let share = if plan.is_held_up() && plans.all(Plan::is_held_up) { BUSY_BATCH_SHARE } else { BATCH_SHARE };
            (spare.as_micros() / share.as_micros()).clamp(1, BATCH as u128) as usize
        });
        let mut misses = 0;
        while self.batch.len() < most && plan.admits() && misses < MISSES_PER_TURN {
            let len = if let Some(question) = self.neighbours.next_question(now) {
                self.push_question(question)
            } else if let Some(at) = self.choose() {
                self.push_packet(now, at)
            } else {
                break;
            };
            match len {
                Some(len) => plan.add(len),
                None => misses += 1,
            }
        }
    }

    /// The task that is served next.
    fn choose(&self) -> Option<usize> {
        let may = |task: &&Task<E>| task.hungry && task.parked.is_none() && task.plan.as_ref().is_some_and(Plan::admits);
        let (at, _) = self.tasks.iter().enumerate().filter(|(_, task)| may(task)).min_by_key(|(_, task)| task.served)?;
        Some(at)
    }

    /// Takes a packet of the task at `at` into the batch; returns what it is charged where it got that far.
    fn push_packet(&mut self, now: Instant, at: usize) -> Option<usize> {
        let engine_now = self.engine_now(now);
        let paused = self.paused;
        let Self { tasks, batch, framing, routes, neighbours, hop, cargo, .. } = self;
        let task = tasks.get_mut(at)?;
        let (header, ethernet) = match framing {
            Framing::Ethernet { .. } => (eth::HEADER_LEN, true),
            Framing::Bare => (0, false),
        };
        self.served = self.served.max(task.served);
        let served = self.served;
        let slot = batch.slot();
        let Some(transmit) = task.engine.poll_transmit(engine_now, &mut slot[header..]) else {
            task.hungry = false;
            task.pacer.idle(now);
            return None;
        };
        let len = (header + transmit.len).min(FRAME_LEN);
        // A task that was idle joins where the others are: it goes first now, and earned nothing meanwhile.
        let before = task.served;
        task.served = task.served.max(served) + len as u64 * SERVICE_SCALE / task.weight.share();
        let verdict = check(task, &slot[header..len], transmit.dst).and_then(|way| task.is_due(now, transmit.dst).map(|()| way));
        let verdict = verdict.and_then(|way| match framing {
            Framing::Bare if way == Way::Routed => Ok(()),
            Framing::Bare => Err(NotSent::NoRoute),
            Framing::Ethernet { mac } => {
                let dst = match way {
                    Way::Routed => hardware_address(now, routes, neighbours, hop, task.id, transmit.dst)?,
                    question => ask(now, routes, neighbours, *mac, transmit.dst, question)?,
                };
                let kind = match (way, transmit.dst) {
                    (Way::Arp(..), _) => eth::TYPE_ARP,
                    (_, IpAddr::V4(_)) => eth::TYPE_IPV4,
                    (_, IpAddr::V6(_)) => eth::TYPE_IPV6,
                };
                slot[..header].copy_from_slice(&eth::header(dst, *mac, kind));
                Ok(())
            }
        });
        match verdict {
            Ok(()) => {
                batch.push(len);
                cargo.push_back(Cargo::Packet(task.id, transmit.token));
                task.waiting = 0;
                if let Some(targets) = &task.targets {
                    targets.admit(now, transmit.dst);
                }
                let cost = charged(len, ethernet);
                if let Some(plan) = &mut task.plan {
                    plan.add(cost);
                }
                Some(cost)
            }
            Err(NotSent::TooSoon { until, lane }) => {
                // It was no service.
                task.served = before;
                task.not_sent(engine_now, transmit.token, NotSent::TooSoon { until: until - paused, lane });
                None
            }
            Err(why) => {
                task.not_sent(engine_now, transmit.token, why);
                if why == NotSent::NeighbourPending {
                    task.waiting += 1;
                    if task.waiting >= PARK_AFTER {
                        task.waiting = 0;
                        task.parked = Some((now + PARK, neighbours.progress()));
                    }
                }
                None
            }
        }
    }

    fn push_question(&mut self, question: Question) -> Option<usize> {
        let Framing::Ethernet { mac } = self.framing else {
            return None;
        };
        let source = self.routes.asking_address(question.ip)?;
        let slot = self.batch.slot();
        let len = write_question(slot, &question, mac, source)?;
        self.batch.push(len);
        self.cargo.push_back(Cargo::Question(question));
        Some(charged(len, true))
    }

    /// Books what has left, and deals with what has not.
    fn account(&mut self, sent: &Sent) {
        let ethernet = matches!(self.framing, Framing::Ethernet { .. });
        let held_back = sent.done.saturating_since(self.planned) > HELD_BACK;
        let (mut bytes, mut cost) = (0, 0);
        for at in 0..sent.count {
            let frame = self.batch.frame(at);
            let len = frame.len();
            bytes += len as u64;
            cost += charged(len, ethernet);
            let owner = match self.cargo.pop_front() {
                Some(Cargo::Packet(id, _)) => {
                    if let Some(task) = self.tasks.iter_mut().find(|task| task.id == id) {
                        task.stats.sent_packets += 1;
                        task.stats.sent_bytes += len as u64;
                        if let (true, Some(targets)) = (held_back, &task.targets)
                            && let Some(dst) = frame.get(if ethernet { eth::HEADER_LEN } else { 0 }..).and_then(guard::destination)
                        {
                            targets.left(sent.done, dst);
                        }
                    }
                    id
                }
                Some(Cargo::Question(question)) => {
                    self.stats.questions += 1;
                    TaskId(question.asker)
                }
                Some(Cargo::Nothing) | None => continue,
            };
            if let Some(task) = self.tasks.iter_mut().find(|task| task.id == owner) {
                task.left = (task.left.0 + 1, task.left.1 + charged(len, ethernet));
            }
        }
        self.batch.advance(sent.count);
        if sent.count > 0 {
            self.pacer.charge(sent.done, sent.count, cost);
            for task in &mut self.tasks {
                let (frames, bytes) = core::mem::take(&mut task.left);
                if frames > 0 {
                    task.pacer.charge(sent.done, frames, bytes);
                }
            }
        }
        self.stats.sent_packets += sent.count as u64;
        self.stats.sent_bytes += bytes;
        self.full = false;
        match sent.stop {
            None => {}
            Some(Stop::Full) => {
                self.full = true;
                self.stats.send_full += 1;
            }
            Some(Stop::Down) => self.go_down(sent.done),
            Some(Stop::NoRoute) => self.give_back_first(sent.done, NotSent::NoRoute),
            Some(Stop::Rejected(errno)) => {
                log::debug!("the kernel refused a frame: errno {errno}");
                self.give_back_first(sent.done, NotSent::LinkError);
            }
        }
    }

    fn give_back_first(&mut self, now: Instant, why: NotSent) {
        let cargo = self.cargo.pop_front();
        self.batch.advance(1);
        self.give_back(now, cargo, why);
    }

    fn give_back(&mut self, now: Instant, cargo: Option<Cargo>, why: NotSent) {
        match cargo {
            Some(Cargo::Packet(id, token)) => {
                let engine_now = self.engine_now(now);
                if let Some(task) = self.tasks.iter_mut().find(|task| task.id == id) {
                    task.not_sent(engine_now, token, why);
                }
            }
            Some(Cargo::Question(question)) if why == NotSent::NeighbourPending => self.neighbours.question_not_sent(question),
            // A question that the kernel refuses is asked again by its timer.
            Some(Cargo::Question(_) | Cargo::Nothing) | None => {}
        }
    }

    // The interface.

    fn go_down(&mut self, now: Instant) {
        if self.down.is_some() {
            return;
        }
        log::info!("interface {} is down: measurements pause", self.routes.interface().name);
        while let Some(cargo) = self.cargo.pop_front() {
            self.give_back(now, Some(cargo), NotSent::NeighbourPending);
        }
        self.batch.advance(BATCH);
        self.full = false;
        self.down = Some((now, now + DOWN_RETRY));
        self.outbox.push_back(DriveEvent::Link { up: false });
    }

    fn look_at_link(&mut self, now: Instant) {
        if let Some((since, look)) = self.down
            && look <= now
        {
            self.down = Some((since, now + DOWN_RETRY));
            if self.link.is_up() && self.listen() {
                self.come_up(now);
            }
        }
    }

    fn wants_all_multicast(&self) -> bool {
        self.tasks.iter().any(|task| task.engine.wants_all_multicast())
    }

    /// Receives what the tasks want; returns whether that could be had. Who cannot hear must not ask: silence would be believed.
    fn listen(&mut self) -> bool {
        let listens = self.tasks.is_empty() || self.link.listen(true);
        self.link.all_multicast(self.wants_all_multicast());
        listens
    }

    /// Lets go of what listening costs, where nothing has run for a while.
    fn rest(&mut self, now: Instant) {
        if self.tasks.is_empty() && *self.rest_at.get_or_insert(now + REST_AFTER) <= now {
            self.rest_at = Some(Instant::FAR_FUTURE);
            self.link.listen(false);
        }
    }

    fn come_up(&mut self, now: Instant) {
        if let Some((since, _)) = self.down.take() {
            log::info!("interface {} is up: measurements go on", self.routes.interface().name);
            self.paused += now.saturating_since(since);
            // Whoever was there before may not be there any more.
            self.neighbours.clear();
            self.pacer.idle(now);
            let engine_now = self.engine_now(now);
            for task in &mut self.tasks {
                task.pacer.idle(now);
                task.hungry = true;
                task.parked = None;
                task.engine.on_link_up(engine_now);
            }
            self.outbox.push_back(DriveEvent::Link { up: true });
        }
    }

    // Events.

    /// Hands over what there is; returns whether all was taken.
    fn deliver(&mut self) -> bool {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(event) = self.sink.offer(event) {
                self.outbox.push_front(event);
                return false;
            }
        }
        for task in &mut self.tasks {
            while let Some(event) = task.engine.poll_event() {
                if let Err(event) = self.sink.offer(DriveEvent::Task(task.id, event)) {
                    self.outbox.push_back(event);
                    return false;
                }
            }
        }
        true
    }
}

/// Fixed point of the service counters.
const SERVICE_SCALE: u64 = 16;

/// What a frame costs: on Ethernet short ones are padded on the wire.
const fn charged(len: usize, ethernet: bool) -> usize {
    if ethernet && len < eth::FRAME_MIN { eth::FRAME_MIN } else { len }
}

/// Limits while `congestion` slows down.
fn slowed(limits: Limits, congestion: &Congestion) -> Limits {
    let rate = congestion.slowed().map(|(rate, _)| rate);
    Limits { packets: rate, bits: None, burst: limits.burst }.clipped_to(limits)
}

fn tell(who: &str, congestion: &Congestion) {
    match congestion.slowed() {
        Some((rate, why)) => log::debug!("{who} is slowed down to {rate}: {}", why.because()),
        None => log::debug!("{who} is not slowed down any more"),
    }
}

/// ICMP source quench (RFC 792) about a packet of ours.
fn is_source_quench(routes: &RouteTable, packet: &[u8]) -> bool {
    // Most packets are none, and this is asked for each.
    if packet.first().is_none_or(|first| first >> 4 != 4) || packet.get(9) != Some(&PROTOCOL_ICMP) {
        return false;
    }
    let Some(packet) = Packet::parse(packet) else { return false };
    let Some(quoted) = icmp::source_quench(&packet) else { return false };
    routes.interface().addresses.iter().any(|address| address.ip == quoted.src())
}

impl<E> Task<E> {
    /// Whether the limits towards its address and network let a packet go.
    fn is_due(&self, now: Instant, dst: IpAddr) -> Result<(), NotSent> {
        let too_soon = |TooSoon { until, lane }| NotSent::TooSoon { until, lane };
        self.targets.as_ref().map_or(Ok(()), |targets| targets.check(now, dst).map_err(too_soon))
    }

    fn not_sent(&mut self, engine_now: Instant, token: u64, why: NotSent) {
        let counter = match why {
            NotSent::NeighbourPending => &mut self.stats.deferred,
            NotSent::TooSoon { .. } => &mut self.stats.too_soon,
            NotSent::NoNeighbour => &mut self.stats.no_neighbour,
            NotSent::NoRoute => &mut self.stats.no_route,
            NotSent::Refused => &mut self.stats.refused,
            NotSent::LinkError => &mut self.stats.rejected,
        };
        *counter += 1;
        self.engine.on_not_sent(engine_now, token, why);
        self.hungry = true;
    }
}

/// The last word on a packet: does it go where its engine says, and may it? How it goes there, if so.
fn check<E>(task: &Task<E>, packet: &[u8], claimed: IpAddr) -> Result<Way, NotSent> {
    match guard::examine(packet) {
        Some((dst, way)) if dst == claimed && task.gate.permits(dst.to_canonical()) => Ok(way),
        Some((dst, _)) if dst == claimed => Err(NotSent::Refused),
        other => {
            log::error!("{} built a packet for {claimed} that goes to {other:?}: not sent", task.stats.name);
            Err(NotSent::Refused)
        }
    }
}

/// Where an engine's own question for the neighbour `target` goes: to those who listen for it, where it is one by the routes of this
/// moment. Nobody may be asked in another's name.
fn ask(now: Instant, routes: &RouteTable, neighbours: &mut NeighbourCache, own: Mac, target: IpAddr, way: Way) -> Result<Mac, NotSent> {
    // Nobody answers for a broadcast address, but asking for it is no mistake.
    if !matches!(routes.lookup(target), NextHop::OnLink(_) | NextHop::Group(Mac::BROADCAST)) {
        return Err(NotSent::NoRoute);
    }
    let to = match way {
        Way::Arp(sender_mac, sender) => {
            let honest = sender.is_unspecified() || routes.interface().addresses.iter().any(|address| address.ip == IpAddr::V4(sender));
            if sender_mac != own || !honest {
                log::error!("an ARP request for {target} in the name of {sender} ({sender_mac}): not sent");
                return Err(NotSent::Refused);
            }
            Mac::BROADCAST
        }
        Way::Solicitation(group) => Mac::multicast(IpAddr::V6(group)),
        Way::Routed => return Err(NotSent::NoRoute),
    };
    neighbours.on_engine_asks(now, target);
    Ok(to)
}

/// `last` is the gateway that was found last in this batch: most packets of a batch go the same way.
fn hardware_address(
    now: Instant,
    routes: &RouteTable,
    neighbours: &mut NeighbourCache,
    last: &mut Option<(IpAddr, Mac)>,
    task: TaskId,
    dst: IpAddr,
) -> Result<Mac, NotSent> {
    let hop = match routes.lookup(dst) {
        NextHop::OnLink(ip) | NextHop::Via(ip) => ip,
        NextHop::Group(mac) => return Ok(mac),
        NextHop::NoRoute => return Err(NotSent::NoRoute),
    };
    if let Some((ip, mac)) = *last
        && ip == hop
    {
        return Ok(mac);
    }
    match neighbours.resolve(now, hop, task.0) {
        Resolution::Known(mac) => {
            *last = Some((hop, mac));
            Ok(mac)
        }
        Resolution::Pending | Resolution::Busy => Err(NotSent::NeighbourPending),
        Resolution::Failed => Err(NotSent::NoNeighbour),
    }
}

/// Takes what answers our questions, and those of engines.
fn learn(now: Instant, neighbours: &mut NeighbourCache, routes: &RouteTable, received: &Received<'_>) {
    match received.ethertype {
        eth::TYPE_ARP => {
            if let Some(message) = Arp::parse(received.payload) {
                let to_us = Some(message.target_mac) == routes.interface().mac;
                if message.operation == Operation::Reply && to_us {
                    neighbours.on_answer(now, IpAddr::V4(message.sender), message.sender_mac);
                } else if message.sender == message.target {
                    neighbours.on_announcement(IpAddr::V4(message.sender), message.sender_mac);
                }
            }
        }
        eth::TYPE_IPV6 => {
            if let Some(message) = ndp::Neighbour::parse(received.payload)
                && message.advert
                && let Some(mac) = message.mac.or(received.src)
            {
                if message.solicited {
                    neighbours.on_answer(now, IpAddr::V6(message.target), mac);
                } else {
                    neighbours.on_announcement(IpAddr::V6(message.target), mac);
                }
            }
        }
        _ => {}
    }
}

/// Writes the frame that asks `question`; returns its length.
fn write_question(slot: &mut [u8], question: &Question, mac: Mac, source: IpAddr) -> Option<usize> {
    let (dst, kind, packet): (Mac, u16, &[u8]) = match (question.ip, source) {
        (IpAddr::V4(target), IpAddr::V4(sender)) => {
            let request = Arp { operation: Operation::Request, sender_mac: mac, sender, target_mac: Mac::default(), target };
            (question.known.unwrap_or(Mac::BROADCAST), eth::TYPE_ARP, &request.emit()[..])
        }
        (IpAddr::V6(target), IpAddr::V6(source)) => {
            let group = ndp::solicited_node(target);
            let (to, dst) = question.known.map_or((Mac::multicast(IpAddr::V6(group)), group), |known| (known, target));
            (to, eth::TYPE_IPV6, &ndp::solicit(source, mac, target, dst)[..])
        }
        _ => return None,
    };
    let len = eth::HEADER_LEN + packet.len();
    slot.get_mut(..eth::HEADER_LEN)?.copy_from_slice(&eth::header(dst, mac, kind));
    slot.get_mut(eth::HEADER_LEN..len)?.copy_from_slice(packet);
    debug_assert!(packet.len() >= arp::LEN);
    Some(len)
}

#[cfg(test)]
mod tests;
