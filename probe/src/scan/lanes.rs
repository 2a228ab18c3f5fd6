//! Probes that wait for a limit towards their target: one queue for each limit, offered one at a time.
//!
//! A loop that holds limits per address or network hands a packet back with the time at which the next one of its lane may go.
//! All others of that lane would fare the same, so only the first of each lane is offered when its time has come: a packet
//! that leaves costs two offers, however many wait behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::schedule::Probe;
use crate::net::time::Instant;

/// While so many probes wait no new position is begun. With fewer, a scan of many hosts would leave some of them idle while
/// it waits for others; with more, an interrupted scan would have to begin more of its work again.
pub(super) const HELD_MAX: usize = 4096;

#[derive(Debug)]
struct Lane {
    due: Instant,
    queue: VecDeque<Probe>,
}

/// The queues.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<u32, Lane>,
    order: BTreeSet<(Instant, u32)>,
    count: usize,
}

impl Lanes {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Takes in a probe whose `lane` lets nothing pass before `until`.
    pub(super) fn hold(&mut self, lane: u32, until: Instant, probe: Probe) {
        let entry = self.lanes.entry(lane).or_insert_with(|| Lane { due: until, queue: VecDeque::new() });
        self.order.remove(&(entry.due, lane));
        entry.due = until;
        entry.queue.push_back(probe);
        self.order.insert((until, lane));
        self.count += 1;
    }

    /// The first probe of a lane that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Probe> {
        let (due, lane) = *self.order.first().filter(|(due, _)| *due <= now)?;
        let entry = self.lanes.get_mut(&lane)?;
        let probe = entry.queue.pop_front();
        if entry.queue.is_empty() {
            self.lanes.remove(&lane);
            self.order.remove(&(due, lane));
        }
        self.count -= usize::from(probe.is_some());
        probe
    }

    /// When the next lane is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(position: u64) -> Probe {
        Probe { position, attempt: 0 }
    }

    #[test]
    fn lanes_are_served_when_due_and_in_order() {
        let at = Instant::from_nanos;
        let mut lanes = Lanes::default();
        for (lane, until, position) in [(1, 30, 1), (2, 20, 2), (1, 30, 3)] {
            lanes.hold(lane, at(until), probe(position));
        }
        assert_eq!((lanes.len(), lanes.next_due(), lanes.pop(at(19))), (3, Some(at(20)), None));
        assert_eq!(lanes.pop(at(20)), Some(probe(2)));
        assert_eq!((lanes.pop(at(20)), lanes.pop(at(30))), (None, Some(probe(1))));
        // The lane said again when it is free: all of it waits until then.
        lanes.hold(1, at(40), probe(4));
        assert_eq!((lanes.pop(at(39)), lanes.next_due()), (None, Some(at(40))));
        assert_eq!((lanes.pop(at(40)), lanes.pop(at(40)), lanes.pop(at(40)), lanes.len()), (Some(probe(3)), Some(probe(4)), None, 0));
        assert_eq!(lanes.next_due(), None);
    }
}
