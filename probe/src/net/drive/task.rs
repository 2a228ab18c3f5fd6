//! What a loop is given and what it tells: tasks, their gates, events, counters.
//!
//! It must not know how the loop works.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use crate::net::engine::Engine;
use crate::net::pacer::Limits;
use crate::net::target_pacer::TargetPacer;
use picket_wire::event::Slowdown;

/// Names a task of one drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub(super) u64);

impl TaskId {
    /// A task of a simulation, where nobody else gives names.
    #[cfg(test)]
    pub(crate) const fn for_tests(number: u64) -> Self {
        Self(number)
    }

    /// The number, for logs.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// How urgent a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Somebody waits for it: one trace, one host.
    Interactive,
    /// Everything else.
    Bulk,
}

impl Weight {
    pub(super) const fn share(self) -> u64 {
        match self {
            Weight::Interactive => 16,
            Weight::Bulk => 1,
        }
    }
}

/// Who may be sent to. An IPv4-mapped IPv6 address is asked for as IPv4.
pub trait Gate: Send + Sync {
    /// Whether a packet may go to `dst`.
    fn permits(&self, dst: IpAddr) -> bool;
}

impl<F: Fn(IpAddr) -> bool + Send + Sync> Gate for F {
    fn permits(&self, dst: IpAddr) -> bool {
        self(dst)
    }
}

/// A boxed engine that can move to the loop's thread.
pub type BoxEngine<E> = Box<dyn Engine<Event = E> + Send>;

/// A measurement to be run.
pub struct TaskSpec<E> {
    /// For logs and statistics.
    pub name: String,
    /// The state machine.
    pub engine: BoxEngine<E>,
    /// How urgent it is.
    pub weight: Weight,
    /// How fast it asked to go. More than the interface allows is clipped, and said so.
    pub rate: Limits,
    /// Limits towards each address and network, where there are any.
    pub targets: Option<TargetPacer>,
    /// Site policy and fleet policy together.
    pub gate: Arc<dyn Gate>,
}

impl<E> core::fmt::Debug for TaskSpec<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TaskSpec").field("name", &self.name).field("weight", &self.weight).field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// What the loop tells.
#[derive(Debug, PartialEq, Eq)]
pub enum DriveEvent<E> {
    /// An event of a task's engine, in order.
    Task(TaskId, E),
    /// A task was cancelled and all its events have been told.
    Ended(TaskId, Box<TaskStats>),
    /// The interface went down (engines are paused) or came up (they go on).
    Link {
        /// Whether it is up now.
        up: bool,
    },
}

/// Takes what the loop tells.
pub trait EventSink<E>: Send {
    /// Takes `event`, or gives it back where there is no room; it will be offered again. While there is no room nothing
    /// is sent.
    ///
    /// # Errors
    /// The event itself, when there is no room for it.
    fn offer(&mut self, event: DriveEvent<E>) -> Result<(), DriveEvent<E>>;
}

impl<E: Send> EventSink<E> for tokio::sync::mpsc::Sender<DriveEvent<E>> {
    fn offer(&mut self, event: DriveEvent<E>) -> Result<(), DriveEvent<E>> {
        use tokio::sync::mpsc::error::TrySendError;
        match self.try_send(event) {
            Err(TrySendError::Full(event)) => Err(event),
            // Nobody listens any more: the process is ending.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }
}

impl<E: Send> EventSink<E> for tokio::sync::mpsc::UnboundedSender<DriveEvent<E>> {
    fn offer(&mut self, event: DriveEvent<E>) -> Result<(), DriveEvent<E>> {
        // Nobody listens any more: the process is ending.
        let _ = self.send(event);
        Ok(())
    }
}

impl<E: Send> EventSink<E> for VecDeque<DriveEvent<E>> {
    fn offer(&mut self, event: DriveEvent<E>) -> Result<(), DriveEvent<E>> {
        self.push_back(event);
        Ok(())
    }
}

/// Counters of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskStats {
    /// Its name.
    pub name: String,
    /// Packets that left, without questions for neighbours.
    pub sent_packets: u64,
    /// Bytes of their frames.
    pub sent_bytes: u64,
    /// Packets that its gate refused.
    pub refused: u64,
    /// Packets without a route.
    pub no_route: u64,
    /// Packets whose next hop did not answer.
    pub no_neighbour: u64,
    /// Packets that the kernel refused for good.
    pub rejected: u64,
    /// Packets handed back because the next hop was still being asked for, or the interface went down.
    pub deferred: u64,
    /// Packets handed back because a limit towards their address or network was used up.
    pub too_soon: u64,
    /// The rate that it asked for.
    pub asked: Option<Limits>,
    /// The rate that it gets at most.
    pub granted: Option<Limits>,
    /// The rate that it gets at present: less than granted while it, or the interface, is slowed down.
    pub current: Option<Limits>,
    /// Why, where it is less.
    pub slowed: Option<Slowdown>,
    /// Whether that is less than it asked for.
    pub clipped: bool,
}

/// Counters of a loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveStats {
    /// Frames that left, questions for neighbours included.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Questions for neighbours among them.
    pub questions: u64,
    /// Packets that passed the filter.
    pub received_packets: u64,
    /// Packets that the kernel had no room for.
    pub receive_drops: u64,
    /// How often the kernel had no room to send (`ENOBUFS`, `EAGAIN`); the frames left later.
    pub send_full: u64,
    /// Wake-ups more than a millisecond late.
    pub late_wakeups: u64,
    /// The latest of them.
    pub latest_wakeup: Duration,
    /// Whether the interface is up.
    pub up: bool,
    /// The interface's limits.
    pub limits: Limits,
    /// What is sent at most at present: less than the limits while the interface is slowed down.
    pub current: Limits,
    /// Why, where it is less.
    pub slowed: Option<Slowdown>,
    /// ICMP source quenches received.
    pub quenches: u64,
    /// The present tasks.
    pub tasks: Vec<(TaskId, TaskStats)>,
}
