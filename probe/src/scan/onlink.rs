//! Targets on the probe's own link: asked by ARP and neighbour solicitation, their hardware addresses told, proxies found out.
//!
//! Pure, beside the schedule. What a hardware address answers is believed until it has answered for too many
//! ([`crate::net::proxy`]); then its targets begin anew and are asked by IP packets, and only what answers those is up. Hosts are told
//! with their chunk, so that what was believed too soon is still taken back, unless its chunk has been reported; how many
//! that were is said.
//!
//! **Invariant:** [`picket_wire::host::SeenBy::Arp`] and `Neighbour` are told at most once for a position, and never for one whose answer came
//! from what was known for a proxy when its chunk was reported.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use picket_wire::host::{HardwareAddress, HostSeen, SeenBy};
use picket_wire::result::EXTRAS_MAX;

use super::kinds::neighbour::{Answered, Neighbour};
use super::report::{Event, LateReport, ProxySeen};
use super::schedule::{Heeded, Schedule};
use crate::net::onlink::LocalLink;
use crate::net::proxy::{Heard, ProxyWatch};
use crate::net::time::Instant;
use crate::packet::eth::Mac;

/// A position, and the host that answered for it.
type Found = (u64, HostSeen);

/// A late answer.
struct Late {
    mac: Mac,
    host: HostSeen,
    report: Option<LateReport>,
}

/// See the module.
pub(super) struct OnLink {
    neighbour: Neighbour,
    watch: ProxyWatch<Found>,
    /// Hosts of chunks that are not reported yet.
    seen: BTreeMap<u64, HostSeen>,
    /// Late answers, told at the end: a proxy's come late by design (Linux waits up to 0.8 s), and it may not have been found out yet.
    late: BTreeMap<u64, Late>,
    /// For each proxy, how many answers were reported before it was known for one.
    too_soon: BTreeMap<Mac, u64>,
}

impl OnLink {
    pub(super) fn new(link: Arc<LocalLink>) -> Self {
        Self {
            neighbour: Neighbour::new(link),
            watch: ProxyWatch::default(),
            seen: BTreeMap::new(),
            late: BTreeMap::new(),
            too_soon: BTreeMap::new(),
        }
    }

    /// Writes and reads the packets.
    pub(super) fn neighbour(&self) -> &Neighbour {
        &self.neighbour
    }

    /// Somebody answered for a position; what can be told at once goes to `told`. Whether a proxy was found out by this.
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        position: u64,
        answered: Answered,
        schedule: &mut Schedule,
        told: &mut VecDeque<Event>,
    ) -> bool {
        if schedule.is_by_ip(position) {
            return false;
        }
        let Some(heeded) = schedule.heeds(now, position) else {
            // Counted as what it is.
            schedule.answer_unmarked(now, position, answered.state);
            return false;
        };
        let mac = Some(HardwareAddress(answered.mac.0));
        let how = if answered.addr.is_ipv4() { SeenBy::Arp } else { SeenBy::Neighbour };
        let host = HostSeen { addr: answered.addr, mac, how };
        match self.watch.on_answer(answered.mac, (position, host), schedule.stats().begun) {
            Heard::Host => {
                match heeded {
                    Heeded::Open => drop(self.seen.insert(position, host)),
                    Heeded::Late => drop(self.late.insert(position, Late { mac: answered.mac, host, report: None })),
                }
                schedule.answer_unmarked(now, position, answered.state);
                false
            }
            Heard::Proxy => {
                schedule.ask_by_ip(now, position);
                false
            }
            Heard::Unmasked(mut others) => {
                others.push((position, host));
                self.unmask(now, answered.mac, &others, schedule, told);
                true
            }
        }
    }

    fn unmask(&mut self, now: Instant, mac: Mac, answers: &[Found], schedule: &mut Schedule, told: &mut VecDeque<Event>) {
        let mut too_soon = 0;
        let mut evidence = Vec::new();
        for (position, host) in answers {
            let open = schedule.ask_by_ip(now, *position);
            too_soon += u64::from(!open && !self.late.contains_key(position));
            self.seen.remove(position);
            evidence.push(HostSeen { how: SeenBy::ProxyArp, ..*host });
        }
        self.too_soon.insert(mac, too_soon);
        told.push_back(Event::Hosts(evidence));
    }

    /// Takes a late answer from the link until the end; whether it was one.
    pub(super) fn hold(&mut self, event: &Event) -> bool {
        let Event::Late(report) = event else { return false };
        let late = self.late.get_mut(&report.position).filter(|late| late.report.is_none());
        late.map(|late| late.report = Some(*report)).is_some()
    }

    /// The late answers of those who are no proxies.
    fn tell_late(&mut self, told: &mut VecDeque<Event>) {
        let proxies = self.watch.proxies();
        for late in core::mem::take(&mut self.late).into_values().filter(|late| !proxies.iter().any(|(mac, _)| *mac == late.mac)) {
            told.push_back(Event::Hosts(vec![late.host]));
            told.extend(late.report.map(Event::Late));
        }
    }

    /// What is told before an event of the schedule.
    pub(super) fn before(&mut self, event: &Event, told: &mut VecDeque<Event>) {
        match event {
            Event::Chunk(report) => {
                let later = self.seen.split_off(&report.to);
                let hosts: Vec<HostSeen> = core::mem::replace(&mut self.seen, later).into_values().collect();
                told.extend(hosts.chunks(EXTRAS_MAX).map(|hosts| Event::Hosts(hosts.to_vec())));
            }
            Event::Done(_) => {
                self.tell_late(told);
                told.extend(self.watch.proxies().into_iter().map(|(mac, addresses)| {
                    let reported = self.too_soon.get(&mac).copied().unwrap_or(0);
                    Event::Proxy(ProxySeen { mac: HardwareAddress(mac.0), addresses, reported })
                }));
            }
            Event::Hosts(_) | Event::Proxy(_) | Event::Late(_) | Event::Paths(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
