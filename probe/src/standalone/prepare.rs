//! Everything between a request and the first packet: configuration, policy, rates, interface, lock.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use picket_wire::addr::{AddrSet, IpNet};
use picket_wire::job::ServiceOptions;
use picket_wire::policy::{AddressPolicy, Permit, Verdict};
use picket_wire::space::{TargetSpace, TargetSpec};

use super::error::StandaloneError;
use super::request::{PassPlan, Request};
use super::results::PassHead;
use crate::config::{self, Config, Raw, RawInterface};
use crate::lock::{Lock, LockError};
use crate::net::netlink::snapshot_blocking;
use crate::net::pacer::Limits;
use crate::service::fragile::{SiteLeave, SitePolicy};
use crate::station;

/// Where the lock of this box's network lies.
const LOCK_DIR: &str = "/run/lock";
/// Most rules that are told of; the rest is counted.
const REFUSALS_TOLD: usize = 64;

/// What is known before the first packet.
pub(super) struct Work {
    pub(super) config: Config,
    pub(super) permit: Permit,
    /// The interface's limits and what was asked for, the lower one of each.
    pub(super) granted: Limits,
}

/// Addresses that policy refuses, with the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) set: AddrSet,
    pub(super) verdict: Verdict,
}

/// Reads the configuration; `interface` is what was typed.
pub(super) fn configuration(file: Option<&Path>, interface: Option<&str>) -> Result<Config, StandaloneError> {
    let flags = Raw { interface: RawInterface { name: interface.map(str::to_owned), ..RawInterface::default() }, ..Raw::default() };
    Ok(config::load(file, std::env::vars(), flags)?)
}

/// Settles interface and limits of a run to `wanted` at the rate `asked`; says what is refused and what is clipped.
pub(super) fn work(mut config: Config, wanted: &AddrSet, asked: Limits) -> Result<Work, StandaloneError> {
    announce_policy(&config.policy, wanted)?;
    config.interface.name = Some(interface(&config, wanted)?);
    let ceiling = station::limits(&config.interface);
    announce_rate(asked, ceiling);
    let granted = asked.clipped_to(ceiling);
    // The limit of the whole run, whatever passes it has, is that of the interface for as long as it lasts.
    config.interface.packets = granted.packets.unwrap_or(config.interface.packets);
    config.interface.bits = granted.bits.unwrap_or(config.interface.bits);
    Ok(Work { permit: Permit::all_of([&config.policy]), config, granted })
}

/// The interface that was named, or on which the kernel would send to the first target; the loop sends on one interface only.
pub(super) fn interface(config: &Config, wanted: &AddrSet) -> Result<String, StandaloneError> {
    let snapshot = snapshot_blocking()?;
    let name = config.interface.name.as_deref();
    let towards = config.policy.permitted(wanted).ranges().next().and_then(|(first, _)| snapshot.interface_towards(first));
    match (name, towards) {
        (None, Some(interface)) => Ok(interface.name.clone()),
        // A wrong name is said before anybody is asked to stop another probe.
        _ => Ok(station::choose(&snapshot, name)?.name.clone()),
    }
}

/// What policy refuses of a set, by rules, in the order of the addresses.
pub(super) fn refusals(policy: &AddressPolicy, wanted: &AddrSet) -> Vec<Refusal> {
    let mut left = wanted.minus(&policy.permitted(wanted));
    let mut refusals: Vec<Refusal> = Vec::new();
    for rule in &policy.deny {
        take(&mut left, *rule, Verdict::Denied(*rule), &mut refusals);
    }
    loop {
        let Some((first, last)) = left.ranges().next() else { break };
        match policy.check(first) {
            verdict @ Verdict::Special(_, range) => take(&mut left, range, verdict, &mut refusals),
            verdict => {
                // One range at a time: another one may be special.
                let part = AddrSet::try_from(vec![(first, last)]).unwrap_or_default();
                left = left.minus(&part);
                refusals.push(Refusal { set: part, verdict });
            }
        }
        if refusals.len() > REFUSALS_TOLD {
            break;
        }
    }
    refusals.sort_by_key(|refusal| refusal.set.ranges().next());
    refusals
}

fn take(left: &mut AddrSet, rule: IpNet, verdict: Verdict, refusals: &mut Vec<Refusal>) {
    let part = left.intersection(&AddrSet::from_nets([&rule]));
    *left = left.minus(&part);
    if !part.is_empty() {
        refusals.push(Refusal { set: part, verdict });
    }
}

/// How many addresses, in words.
pub(super) fn count(set: &AddrSet) -> String {
    set.len().map_or_else(|| "very many".to_owned(), |n| n.to_string())
}

/// Says what policy will refuse, with the rule for one example; an error where nothing is left.
fn announce_policy(policy: &AddressPolicy, wanted: &AddrSet) -> Result<(), StandaloneError> {
    let refused = wanted.minus(&policy.permitted(wanted));
    let Some((addr, _)) = refused.ranges().next() else { return Ok(()) };
    let verdict = policy.check(addr).to_string();
    if refused == *wanted {
        return Err(StandaloneError::Forbidden { addr, verdict });
    }
    eprintln!("policy refuses {} of {} addresses; {addr}: {verdict}", count(&refused), count(wanted));
    Ok(())
}

/// Says which addresses names have, and which of those are refused.
pub(super) fn announce_names(names: &[(String, Vec<IpAddr>)], policy: &AddressPolicy) {
    for (name, addrs) in names {
        let said = addrs.iter().map(|addr| match policy.check(*addr) {
            verdict if verdict.is_allowed() => addr.to_string(),
            verdict => format!("{addr} ({verdict})"),
        });
        eprintln!("{name}: {}", said.collect::<Vec<_>>().join(", "));
    }
}

/// Says where fragile ports are spared although they were to be asked: the site has the last word.
pub(super) fn announce_fragile(options: ServiceOptions, site: &SitePolicy) {
    let spared = match &site.leave {
        _ if !options.ask_fragile => return,
        SiteLeave::All => return,
        SiteLeave::None => "all of them are".to_owned(),
        SiteLeave::Ports(ports) => format!("all but {ports} are"),
    };
    eprintln!("--ask-fragile: the site decides which fragile ports may be asked; here {spared} spared (`ask_fragile` in `[services]`)");
}

fn announce_rate(asked: Limits, ceiling: Limits) {
    let granted = asked.clipped_to(ceiling);
    if !asked.exceeds(ceiling) {
        return;
    }
    let clipped = |asked: Option<String>, granted: Option<String>, key: &str| {
        if let (Some(asked), Some(granted)) = (asked, granted)
            && asked != granted
        {
            let variable = format!("PICKET_{}", key.to_uppercase().replace('.', "__"));
            eprintln!("rate {asked} is above the interface's limit: sending at {granted} ({key}, {variable})");
        }
    };
    clipped(asked.packets.map(|rate| rate.to_string()), granted.packets.map(|rate| rate.to_string()), "interface.packets");
    clipped(asked.bits.map(|rate| rate.to_string()), granted.bits.map(|rate| rate.to_string()), "interface.bits");
}

/// The lock against a second probe on this box's network. Who may not even write there is told so: without it the limits of
/// two probes add up.
pub(super) fn lock() -> Result<Option<Lock>, StandaloneError> {
    let dir = if Path::new(LOCK_DIR).is_dir() { PathBuf::from(LOCK_DIR) } else { std::env::temp_dir() };
    match Lock::network(&dir) {
        Ok(lock) => Ok(Some(lock)),
        Err(held @ LockError::Held { .. }) => Err(held.into()),
        Err(error) => {
            log::warn!("running without a lock: {error}");
            Ok(None)
        }
    }
}

/// The pass of a plan. `hosts` are the addresses that are left to it; none at all makes a pass without targets.
pub(super) fn pass(
    request: &Request,
    plan: &PassPlan,
    number: usize,
    seed: u64,
    hosts: Option<&AddrSet>,
) -> Result<PassHead, StandaloneError> {
    let mut head = PassHead { technique: plan.technique, discovery: false, ports: plan.ports.clone(), space: None };
    let (include, exclude) = match hosts {
        None => (request.include.clone(), request.exclude.clone()),
        Some(hosts) if hosts.is_empty() => return Ok(head),
        Some(hosts) => (hosts.clone(), AddrSet::new()),
    };
    // Each pass in an order of its own, computed again by whoever goes on with the run.
    let seed = seed.wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let spec = TargetSpec { include, exclude, ports: plan.ports.clone(), seed };
    head.space = Some(Arc::new(TargetSpace::new(&spec)?));
    Ok(head)
}

#[cfg(test)]
mod tests {
    use picket_wire::addr::parse_set;

    use super::*;

    #[test]
    fn each_refusal_names_its_rule() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let policy = AddressPolicy { allow: vec![net("198.18.0.0/15")], deny: vec![net("198.18.7.0/24")] };
        let wanted = parse_set("198.18.6.0/23,127.0.0.0/30,192.0.2.0/30,198.18.7.7").unwrap();
        let told: Vec<String> = refusals(&policy, &wanted)
            .iter()
            .map(|refusal| format!("{} {} {}", refusal.set.ranges().next().unwrap().0, count(&refusal.set), refusal.verdict))
            .collect();
        assert_eq!(
            told,
            [
                "127.0.0.0 4 denied: loopback addresses (127.0.0.0/8) must be allowed by a rule inside that range",
                "192.0.2.0 4 denied: no `allow` rule holds it",
                "198.18.7.0 256 denied by `deny 198.18.7.0/24`",
            ]
        );
        assert!(refusals(&policy, &parse_set("198.18.0.0/24").unwrap()).is_empty());
    }
}
