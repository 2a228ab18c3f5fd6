//! What a destination's exploration is to the engine: a path or all ways at once, packet by packet.

use core::net::IpAddr;
use core::time::Duration;

use picket_wire::trace::{PathEnd, Reply};

use super::report::Event;
use super::spec::TracePlan;
use super::stops::Stops;
use crate::net::engine::NotSent;
use crate::net::ports::SourcePorts;
use crate::net::time::Instant;

/// The flows that an engine may use: source ports (or echo identifiers) in turn, from its own first one on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flows {
    ports: SourcePorts,
    start: u16,
}

impl Flows {
    /// From the port `base` of `ports` on, `skip` farther.
    pub(super) fn new(ports: SourcePorts, base: u16, skip: u16) -> Self {
        let start = (u32::from(base.saturating_sub(ports.first())) + u32::from(skip)) % u32::from(ports.count());
        Self { ports, start: start as u16 }
    }

    /// The port of flow `at`.
    pub(super) fn port(self, at: u16) -> u16 {
        self.ports.first() + ((u32::from(self.start) + u32::from(at)) % u32::from(self.ports.count())) as u16
    }

    /// The flow whose port that is.
    pub(super) fn index(self, port: u16) -> Option<u16> {
        let at = port.checked_sub(self.ports.first()).filter(|at| *at < self.ports.count())?;
        Some(((u32::from(at) + u32::from(self.ports.count()) - u32::from(self.start)) % u32::from(self.ports.count())) as u16)
    }
}

/// A packet that is to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    /// By which the course knows it.
    pub(super) token: u16,
    /// Its flow, from 0 on.
    pub(super) flow: u16,
    /// Its number among those of the flow.
    pub(super) number: u16,
    pub(super) ttl: u8,
    /// Its length from the IP header on, where it is not that of all.
    pub(super) size: Option<u16>,
}

/// What is under way to one destination.
pub(super) trait Course: Sized {
    /// Begins.
    fn new(plan: &TracePlan, stops: &Stops, position: u64, dst: IpAddr) -> Self;

    fn position(&self) -> u64;

    fn dst(&self) -> IpAddr;

    /// The next packet that is to leave.
    fn next(&mut self, plan: &TracePlan, now: Instant) -> Option<Ask>;

    /// The length of a packet, where it is not that of all.
    fn size(&self, _token: u16) -> Option<u16> {
        None
    }

    /// A packet did not leave.
    fn not_sent(&mut self, plan: &TracePlan, token: u16, why: NotSent);

    /// An answer to packet `number` of flow `flow`, or to one of which nothing is repeated; `reply` makes it of the round trip.
    /// Returns the hop and what it said, where that is new.
    fn answer(
        &mut self,
        plan: &TracePlan,
        stops: &mut Stops,
        now: Instant,
        flow: u16,
        number: Option<u16>,
        reply: impl FnOnce(Duration) -> Reply,
    ) -> Option<(u8, Reply)>;

    /// When time must pass for it; never, where nothing is waited for.
    fn due(&self, plan: &TracePlan) -> Option<Instant>;

    /// Time has passed. Whether there may be something to send.
    fn on_timeout(&mut self, plan: &TracePlan, stops: &mut Stops, now: Instant) -> bool;

    /// Whether it waits for somebody who is late, so that others need not wait for it.
    fn is_late(&self) -> bool;

    /// Whether nothing more is asked or waited for.
    fn is_over(&self, plan: &TracePlan) -> bool;

    /// Answers to packets that had been answered.
    fn duplicates(&self) -> u64;

    /// What is told of it.
    fn finish(self, plan: &TracePlan, stops: &mut Stops, stopped: bool) -> (PathEnd, Event);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_port_names_its_flow(first in 1_024..60_000_u16, count in 64..4_096_u16, base: u16, skip: u16, at: u16) {
            let ports = SourcePorts::new(first, count).unwrap();
            let flows = Flows::new(ports, first + base % count, skip);
            let at = at % count;
            prop_assert_eq!(flows.index(flows.port(at)), Some(at));
            prop_assert!((ports.first()..=ports.last()).contains(&flows.port(at)));
            prop_assert_eq!(flows.index(first - 1), None);
        }
    }
}
