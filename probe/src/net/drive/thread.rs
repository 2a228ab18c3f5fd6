//! The loop on a thread of its own, and the handle by which others speak to it.
//!
//! Invariant: the handle never waits for the loop; it leaves a word and wakes it.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Drive, DriveStats, EventSink, TaskId, TaskSpec};
use crate::net::clock;
use crate::net::link::{Link, Waker};
use crate::net::pacer::Limits;
use crate::net::route::RouteTable;
use crate::net::time::Instant;

/// How old the published statistics may be while something happens.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// A wake-up later than this is counted.
const LATE: Duration = Duration::from_millis(1);

/// The loop stays awake at most so long before a frame is due.
const EARLY_MAX: Duration = Duration::from_micros(150);

enum Command<E> {
    Add(TaskId, TaskSpec<E>),
    Cancel(TaskId),
    Limits(Limits),
    Routes(Arc<RouteTable>),
    Stop,
}

/// Speaks to a loop from other threads. Dropping all handles does not end it; [`DriveHandle::stop`] does.
pub struct DriveHandle<E> {
    commands: Sender<Command<E>>,
    waker: Waker,
    shared: Arc<Shared>,
}

struct Shared {
    next: AtomicU64,
    stats: Mutex<DriveStats>,
    limits: Mutex<Limits>,
}

impl<E> Clone for DriveHandle<E> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), waker: self.waker.clone(), shared: self.shared.clone() }
    }
}

impl<E> core::fmt::Debug for DriveHandle<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DriveHandle")
    }
}

/// A task was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// Its name from now on.
    pub id: TaskId,
    /// The rate that it gets at most.
    pub granted: Limits,
    /// Whether that is less than it asked for.
    pub clipped: bool,
}

/// The loop has ended.
#[derive(Debug, thiserror::Error)]
#[error("the packet loop has ended")]
pub struct DriveGone;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain numbers behind, which stay readable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E> DriveHandle<E> {
    fn tell(&self, command: Command<E>) -> Result<(), DriveGone> {
        self.commands.send(command).map_err(|_| DriveGone)?;
        self.waker.wake();
        Ok(())
    }

    /// Starts a task.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn add(&self, spec: TaskSpec<E>) -> Result<Added, DriveGone> {
        let id = TaskId(self.shared.next.fetch_add(1, Ordering::Relaxed));
        let limits = *lock(&self.shared.limits);
        let added = Added { id, granted: spec.rate.clipped_to(limits), clipped: spec.rate.exceeds(limits) };
        self.tell(Command::Add(id, spec))?;
        Ok(added)
    }

    /// Ends a task; [`DriveEvent::Ended`](super::DriveEvent::Ended) follows its last event.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn cancel(&self, id: TaskId) -> Result<(), DriveGone> {
        self.tell(Command::Cancel(id))
    }

    /// Changes the interface's limits.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn set_limits(&self, limits: Limits) -> Result<(), DriveGone> {
        *lock(&self.shared.limits) = limits;
        self.tell(Command::Limits(limits))
    }

    /// Tells the kernel's tables as they are now, from a `netlink::Watcher`.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn set_routes(&self, routes: Arc<RouteTable>) -> Result<(), DriveGone> {
        self.tell(Command::Routes(routes))
    }

    /// Counters, at most a tenth of a second old while something happens.
    pub fn stats(&self) -> DriveStats {
        lock(&self.shared.stats).clone()
    }

    /// Ends the loop at its next turn; queued frames do not leave.
    pub fn stop(&self) {
        // It may have ended already, which is what is wanted.
        let _ = self.tell(Command::Stop);
    }
}

/// Starts a loop on a thread of its own.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn<L, E, S>(
    link: L,
    limits: Limits,
    routes: Arc<RouteTable>,
    sink: S,
) -> std::io::Result<(DriveHandle<E>, std::thread::JoinHandle<()>)>
where
    L: Link + Send + 'static,
    E: Send + 'static,
    S: EventSink<E> + 'static,
{
    let (commands, inbox) = channel();
    let waker = link.waker();
    let mut drive = Drive::new(clock::now(), link, limits, routes, sink);
    let shared = Arc::new(Shared { next: AtomicU64::new(1), stats: Mutex::new(drive.stats()), limits: Mutex::new(limits) });
    let handle = DriveHandle { commands, waker, shared: shared.clone() };
    let thread = std::thread::Builder::new().name("picket-drive".into()).spawn(move || {
        if let Err(error) = nix::sys::prctl::set_timerslack(1) {
            log::warn!("timers stay coarse: {error}");
        }
        run(&mut drive, &inbox, &shared);
    })?;
    Ok((handle, thread))
}

fn run<L: Link, E, S: EventSink<E>>(drive: &mut Drive<L, E, S>, inbox: &Receiver<Command<E>>, shared: &Shared) {
    let mut now = clock::now();
    let mut published = now;
    let mut punctual = Punctual::default();
    loop {
        loop {
            match inbox.try_recv() {
                Ok(Command::Add(id, spec)) => {
                    drive.add(now, id, spec);
                }
                Ok(Command::Cancel(id)) => drive.cancel(id),
                Ok(Command::Limits(limits)) => drive.set_limits(now, limits),
                Ok(Command::Routes(routes)) => drive.set_routes(now, routes),
                Ok(Command::Stop) => return,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let next = drive.turn(now);
        let quiet = next.saturating_since(now) >= PUBLISH_EVERY;
        if quiet || now.saturating_since(published) >= PUBLISH_EVERY {
            *lock(&shared.stats) = drive.stats();
            published = now;
        }
        now = if next > now { drive.wait(now, next, &mut punctual) } else { clock::now() };
    }
}

impl<L: Link, E, S: EventSink<E>> Drive<L, E, S> {
    /// Waits for what [`Self::turn`] asked for, and counts being woken late.
    fn wait(&mut self, mut now: Instant, next: Instant, punctual: &mut Punctual) -> Instant {
        let early = punctual.early(self.tolerance(), self.is_behind(now));
        let asked = next - early;
        if asked > now {
            now = self.link.wait(asked);
            if now >= asked {
                punctual.sample(now.saturating_since(asked));
            }
        }
        while now < next && next.saturating_since(now) <= early {
            core::hint::spin_loop();
            now = clock::now();
        }
        let late = now.saturating_since(next);
        if late > LATE {
            self.stats.late_wakeups += 1;
            self.stats.latest_wakeup = self.stats.latest_wakeup.max(late);
        }
        now
    }
}

/// How late this machine's timers are. Where that is more than the pacer can make good, the loop has itself woken that much
/// earlier and stays awake until it is time: never at low rates, and never for longer than timers are late.
#[derive(Debug, Default)]
struct Punctual {
    /// Smoothed, in nanoseconds.
    late: u64,
}

impl Punctual {
    /// Takes in how late a timer was. Once in a while something else has the processor: that is not the timer's doing.
    fn sample(&mut self, late: Duration) {
        let late = u64::try_from(late.min(EARLY_MAX).as_nanos()).unwrap_or(u64::MAX);
        self.late = (self.late * 15 + late) / 16;
    }

    /// How much earlier to be woken, where being late by more than `tolerance` matters: while something is `behind`, whatever is late
    /// is missing where it is caught up.
    fn early(&self, tolerance: Option<Duration>, behind: bool) -> Duration {
        let late = Duration::from_nanos(self.late);
        match tolerance {
            Some(_) if behind => EARLY_MAX,
            Some(tolerance) if late * 2 > tolerance => (late * 3 / 2).min(EARLY_MAX),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn timers_are_trusted_as_far_as_being_late_does_no_harm() {
        let mut punctual = Punctual::default();
        for _ in 0..100 {
            punctual.sample(us(60));
        }
        assert_eq!(punctual.early(Some(us(150)), false), Duration::ZERO);
        assert!((us(85)..=us(90)).contains(&punctual.early(Some(us(85)), false)));
        assert_eq!(punctual.early(Some(us(150)), true), EARLY_MAX);
        assert_eq!(punctual.early(None, true), Duration::ZERO, "never at low rates");
        for _ in 0..100 {
            punctual.sample(us(5_000));
        }
        assert_eq!(punctual.early(Some(us(85)), false), EARLY_MAX);
    }
}
