//! What a run would do, without sending anything: addresses, ports, packets, duration, verdicts, interface.
//!
//! Nothing is sent but what the system's resolver asks for names.

use core::time::Duration;
use std::io::{self, Write};

use picket_wire::job::{HostProbe, Technique};
use serde_json::{Value, json};

use super::Outcome;
use super::error::StandaloneError;
use super::prepare::{self, Refusal};
use super::progress::span;
use super::request::{PassPlan, Request};
use crate::config::Config;
use crate::net::engine::Source;
use crate::net::netlink::snapshot_blocking;
use crate::net::pacer::Limits;
use crate::station;

/// Shortest frame that the pacer charges for a probe, in bits: Ethernet, IPv4, TCP without options.
const FRAME_BITS: u128 = 8 * (14 + 20 + 20);
/// Longest usual one: Ethernet, IPv6, UDP with a payload.
const LONG_FRAME_BITS: u128 = 8 * (14 + 40 + 8 + 100);

/// One pass.
struct PassCost {
    plan: PassPlan,
    discovery: bool,
    units: u128,
    least: u128,
    most: u128,
}

/// The plan of a run.
pub(super) struct Plan {
    addresses: u128,
    excluded: u128,
    permitted: u128,
    refusals: Vec<Refusal>,
    passes: Vec<PassCost>,
    interface: String,
    source: Source,
    asked: Limits,
    granted: Limits,
}

impl Plan {
    pub(super) fn new(config: Config, request: &Request, plans: &[PassPlan]) -> Result<Self, StandaloneError> {
        let wanted = request.targets();
        let permitted = config.policy.permitted(&wanted).len().unwrap_or(u128::MAX);
        let interface = prepare::interface(&config, &wanted)?;
        let table = std::sync::Arc::new(snapshot_blocking()?).table(&interface);
        let asked = request.rate();
        let discovers = |plan: &PassPlan| request.discovery && plan.ports.is_none();
        let passes = plans.iter().map(|plan| {
            let units = permitted * plan.ports.as_ref().map_or(1, |ports| u128::from(ports.len()));
            let probes = if request.host_probes.is_empty() { HostProbe::DEFAULT.len() } else { request.host_probes.len() } as u128;
            let attempts = match plan.technique {
                Technique::Discover => probes.max(request.attempts.into()),
                _ => request.attempts.into(),
            };
            // A connection costs an acknowledgement and a reset besides.
            let (least, most) = if plan.technique == Technique::Connect { (1, attempts.max(3)) } else { (1, attempts) };
            // Where hosts are looked for first and none answers, no port is asked.
            let least = if request.discovery && !discovers(plan) { 0 } else { units * least };
            PassCost { plan: plan.clone(), discovery: discovers(plan), units, least, most: units * most }
        });
        Ok(Self {
            addresses: wanted.len().unwrap_or(u128::MAX),
            excluded: request.include.intersection(&request.exclude).len().unwrap_or(u128::MAX),
            permitted,
            refusals: prepare::refusals(&config.policy, &wanted),
            passes: passes.collect(),
            source: table.map_or(Source { v4: None, v6: None }, |table| table.source()),
            interface,
            asked,
            granted: asked.clipped_to(station::limits(&config.interface)),
        })
    }

    fn packets(&self) -> (u128, u128) {
        (self.passes.iter().map(|pass| pass.least).sum(), self.passes.iter().map(|pass| pass.most).sum())
    }

    /// How long the packets take at the granted rate, at least and at most.
    fn durations(&self) -> (Duration, Duration) {
        let (least, most) = self.packets();
        let takes = |packets: u128, frame: u128| {
            let by_packets = self.granted.packets.map_or(0.0, |rate| packets as f64 / f64::from(rate.get()));
            let by_bits = self.granted.bits.map_or(0.0, |rate| (packets * frame) as f64 / rate.get() as f64);
            Duration::try_from_secs_f64(by_packets.max(by_bits)).unwrap_or(Duration::MAX)
        };
        (takes(least, FRAME_BITS), takes(most, LONG_FRAME_BITS))
    }

    /// Prints it; nothing was sent.
    pub(super) fn print(&self, json: bool) -> io::Result<Outcome> {
        let mut out = io::stdout().lock();
        match json {
            true => writeln!(out, "{:#}", self.object())?,
            false => self.text(&mut out)?,
        }
        out.flush()?;
        Ok(Outcome::Complete)
    }

    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "Nothing is sent. This run would be:")?;
        writeln!(out, "addresses   {} asked for, {} permitted, {} excluded", self.addresses, self.permitted, self.excluded)?;
        for Refusal { set, verdict } in &self.refusals {
            let (first, last) = set.ranges().next().unwrap_or(([0, 0, 0, 0].into(), [0, 0, 0, 0].into()));
            let more = set.ranges().count() - 1;
            let more = if more > 0 { format!(" and {more} more ranges") } else { String::new() };
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            writeln!(out, "refused     {range}{more}, {} addresses: {verdict}", prepare::count(set))?;
        }
        for pass in &self.passes {
            let ports = pass.plan.ports.as_ref().map_or_else(|| "hosts".to_owned(), |ports| format!("{} ports ({ports})", ports.len()));
            let first = if pass.discovery { ", first; ports only of hosts that answer" } else { "" };
            let PassCost { units, least, most, .. } = pass;
            writeln!(out, "{:<11} {ports}: {units} targets, {least} to {most} packets{first}", pass.plan.technique.as_str())?;
        }
        let ((least, most), (soonest, latest)) = (self.packets(), self.durations());
        writeln!(out, "packets     at least {least}, at most {most}, questions for neighbours not counted")?;
        writeln!(out, "rate        {}", self.rate())?;
        writeln!(out, "duration    {} to {}, and the wait for the last answers", span(soonest), span(latest))?;
        writeln!(out, "interface   {}, from {}", self.interface, self.sources().join(" and "))
    }

    fn rate(&self) -> String {
        let text = |limits: Limits| {
            let rates = [limits.packets.map(|rate| rate.to_string()), limits.bits.map(|rate| rate.to_string())];
            rates.into_iter().flatten().collect::<Vec<_>>().join(" and ")
        };
        let granted = text(self.granted);
        match self.asked.exceeds(self.granted) {
            true => format!("at most {granted}: {} is above the interface's limit", text(self.asked)),
            false => format!("at most {granted}"),
        }
    }

    fn sources(&self) -> Vec<String> {
        let sources: Vec<String> =
            [self.source.v4.map(|addr| addr.to_string()), self.source.v6.map(|addr| addr.to_string())].into_iter().flatten().collect();
        if sources.is_empty() { vec!["no address".to_owned()] } else { sources }
    }

    fn object(&self) -> Value {
        let number = |n: u128| u64::try_from(n).map_or_else(|_| json!(n.to_string()), |n| json!(n));
        let ((least, most), (soonest, latest)) = (self.packets(), self.durations());
        let refused = self.refusals.iter().map(|Refusal { set, verdict }| {
            let ranges: Vec<Value> = set.ranges().map(|(first, last)| json!([first.to_string(), last.to_string()])).collect();
            json!({ "ranges": ranges, "addresses": set.len().map(number), "verdict": verdict.to_string() })
        });
        let passes = self.passes.iter().map(|pass| {
            json!({
                "technique": pass.plan.technique.as_str(),
                "discovery": pass.discovery,
                "ports": pass.plan.ports.as_ref().map(ToString::to_string),
                "targets": number(pass.units),
                "packets": { "least": number(pass.least), "most": number(pass.most) },
            })
        });
        json!({
            "addresses": number(self.addresses),
            "permitted": number(self.permitted),
            "excluded": number(self.excluded),
            "refused": refused.collect::<Vec<_>>(),
            "passes": passes.collect::<Vec<_>>(),
            "packets": { "least": number(least), "most": number(most) },
            "seconds": { "least": soonest.as_secs_f64(), "most": latest.as_secs_f64() },
            "rate": {
                "packets_per_second": self.granted.packets.map(|rate| rate.get()),
                "bits_per_second": self.granted.bits.map(|rate| rate.get()),
                "clipped": self.asked.exceeds(self.granted),
            },
            "interface": self.interface,
            "source": { "v4": self.source.v4.map(|a| a.to_string()), "v6": self.source.v6.map(|a| a.to_string()) },
        })
    }
}
