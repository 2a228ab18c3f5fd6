//! From a request as people type it to a job spec and its plan, or the reason why not.
//!
//! Only the resolution of names ([`resolve`]) does IO; all judgement is pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use picket_wire::addr::{self, AddrSet};
use picket_wire::capture::{BYTES_DEFAULT, CaptureOptions, CaptureSource, HEADERS, Keeps, RingQuestion, SECONDS_DEFAULT};
use picket_wire::codec;
use picket_wire::ids::JobId;
use picket_wire::job::{
    HostProbe, JobKind, JobSpec, LINK_ATTEMPTS, LINK_PACKETS_MAX, LINK_QUESTIONS_MAX, MAX_ATTEMPTS, Mode, Priority, RateLimits,
    ScanOptions, Survey, Technique,
};
use picket_wire::policy::AddressPolicy;
use picket_wire::port::{PortSelection, Services};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::target::{self, HostName, TargetError, TargetItem};
use picket_wire::trace::{FEW, Method, TraceOptions};
use picket_wire::units::{PacketsPerSecond, PortSet, UnixMillis};

use super::plan::{self, Worker};
use crate::clock::{Now, parse_rfc3339, rfc3339};
use crate::policy::{self, Judgement};
use crate::service::ServiceError;
use crate::store::JobRecord;
use crate::view::{JobRequest, JobState, Plan, ResolvedName, RingRequest};

const ATTEMPTS_DEFAULT: u8 = 2;
/// Jobs that send no more than so many packets are served before bulk work where nothing else is asked for.
const INTERACTIVE_MAX: u64 = 20_000;
/// What a run of link discovery takes on a link like most: it listens for a second and a half.
const LINK_SECONDS: u64 = 2;
/// Longest name of a job, in characters.
const NAME_MAX: usize = 100;
/// Most text items in a request.
const ITEMS_MAX: usize = 65_536;
/// A spec must fit one message together with its envelope.
const SPEC_MAX: usize = 200 * 1024;
/// How long one name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

fn invalid(field: &'static str, reason: impl ToString) -> ServiceError {
    ServiceError::InvalidInput { field, reason: reason.to_string() }
}

/// The items of one field: addresses, and names that are still to be resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Items {
    /// What is an address, a network, a pattern or a range already.
    pub addresses: Vec<(IpAddr, IpAddr)>,
    /// What is a name.
    pub names: Vec<NamedTarget>,
}

/// A name among targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTarget {
    /// As it was typed.
    pub text: String,
    /// The name.
    pub name: HostName,
    /// The size of the networks around its addresses that are meant; its addresses alone where `None`.
    pub prefix: Option<u8>,
}

/// Splits the texts of one field into addresses and names.
pub fn items(field: &'static str, texts: &[String]) -> Result<Items, ServiceError> {
    let mut found = Items::default();
    for (count, text) in texts.iter().flat_map(|text| target::split(text)).enumerate() {
        if count >= ITEMS_MAX {
            return Err(invalid(field, format!("more than {ITEMS_MAX} items are named: use networks or ranges")));
        }
        let named = |name, prefix| NamedTarget { text: text.to_owned(), name, prefix };
        match text.parse().map_err(|error: TargetError| invalid(field, error))? {
            TargetItem::Set(set) => found.addresses.extend(set.ranges()),
            TargetItem::Name(name) => found.names.push(named(name, None)),
            TargetItem::NamePrefix(name, prefix) => found.names.push(named(name, Some(prefix))),
        }
    }
    Ok(found)
}

/// All addresses of each name, in the same order.
pub async fn resolve(field: &'static str, names: &[NamedTarget]) -> Result<Vec<ResolvedName>, ServiceError> {
    let mut resolved = Vec::with_capacity(names.len());
    for NamedTarget { text, name, prefix } in names {
        let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0))).await;
        let mut addresses: Vec<IpAddr> = match lookup {
            Ok(Ok(found)) => found.map(|socket| addr::canonical(socket.ip())).collect(),
            Ok(Err(error)) => {
                return Err(invalid(field, format!("`{name}` is not an address and as a name it cannot be resolved: {error}")));
            }
            Err(_) => return Err(invalid(field, format!("`{name}` could not be resolved within {} s", RESOLVE_TIMEOUT.as_secs()))),
        };
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(invalid(field, format!("the name `{name}` has no address")));
        }
        if prefix.is_some_and(|prefix| target::around(&addresses, prefix).is_empty()) {
            return Err(invalid(field, format!("`{text}`: no address of the name is of the family that has such networks")));
        }
        resolved.push(ResolvedName { name: text.clone(), addresses });
    }
    Ok(resolved)
}

/// The set of a field's addresses and resolved names.
pub fn set(items: &Items, names: &[ResolvedName]) -> AddrSet {
    let resolved = items.names.iter().zip(names).flat_map(|(named, resolved)| match named.prefix {
        None => resolved.addresses.iter().map(|addr| (*addr, *addr)).collect(),
        Some(prefix) => target::around(&resolved.addresses, prefix).ranges().collect::<Vec<_>>(),
    });
    let ranges: Vec<(IpAddr, IpAddr)> = items.addresses.iter().copied().chain(resolved).collect();
    ranges.try_into().expect("ranges that were parsed are in order and of one family")
}

/// What the job would be, before it has an id.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its row; the id is still zero.
    pub record: JobRecord,
    /// Its space.
    pub space: Arc<TargetSpace>,
    /// What it would do.
    pub plan: Plan,
}

/// Everything that a draft is made from besides the request.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The addresses asked for.
    pub include: &'a AddrSet,
    /// The addresses left out.
    pub exclude: &'a AddrSet,
    /// Names among them.
    pub names: &'a [ResolvedName],
    /// The fleet's policy.
    pub policy: &'a AddressPolicy,
    /// What captures may keep of packets.
    pub captures: Keeps,
    /// The system's names of ports.
    pub services: &'a Services,
    /// The fleet.
    pub workers: &'a [Worker],
    /// Who asks.
    pub actor: &'a str,
    /// When.
    pub now: Now,
    /// Random: the key of the order of sending.
    pub seed: u64,
}

/// The ports of the technique's protocol.
fn ports(request: &JobRequest, services: &Services) -> Result<Option<PortSet>, ServiceError> {
    let technique = request.technique;
    let Some(transport) = technique.transport() else {
        return match &request.ports {
            None => Ok(None),
            Some(text) => Err(invalid(
                "ports",
                format!("`{text}`: {} asks hosts, not ports; to scan ports use syn, connect, udp or sctp", technique.as_str()),
            )),
        };
    };
    let Some(text) = &request.ports else {
        return Err(invalid("ports", format!("a {} scan needs ports: name them, for example 22,80,443 or 1-1024", technique.as_str())));
    };
    let selection = PortSelection::parse(text, services, &[transport]).map_err(|error| invalid("ports", error))?;
    if let Some((other, _)) = selection.protocols().find(|(other, _)| *other != transport) {
        let (technique, transport, other) = (technique.as_str(), transport.as_str(), other.as_str());
        return Err(invalid(
            "ports",
            format!("`{text}`: a {technique} scan works on {transport} ports; submit a job of its own for {other}"),
        ));
    }
    Ok(Some(selection.get(transport).clone()))
}

/// What is measured: a plain scan where nothing more is asked for, which probes of every version understand.
fn kind(request: &JobRequest, attempts: Option<u8>, few: bool) -> Result<JobKind, ServiceError> {
    fn read<T: std::str::FromStr<Err: ToString>>(field: &'static str, text: Option<&String>) -> Result<Option<T>, ServiceError> {
        text.map(|text| text.parse().map_err(|error: T::Err| invalid(field, error))).transpose()
    }
    let technique = request.technique;
    let host_probes: Vec<HostProbe> =
        request.host_probes.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(|error| invalid("host_probes", error))?;
    if !host_probes.is_empty() && technique != Technique::Discover {
        return Err(invalid("host_probes", format!("a {} scan asks in its own way: use discover", technique.as_str())));
    }
    if host_probes.len() > usize::from(MAX_ATTEMPTS) {
        return Err(invalid(
            "host_probes",
            format!("{} are too many: a silent host is asked {MAX_ATTEMPTS} times at most", host_probes.len()),
        ));
    }
    if request.services.is_some() && !technique.has_ports() {
        return Err(invalid("services", format!("a {} scan finds no ports to ask: use syn, connect or udp", technique.as_str())));
    }
    let limits = RateLimits {
        bits: read("bit_rate", request.bit_rate.as_ref())?,
        per_address: read("per_address", request.per_address.as_ref())?,
        per_network: read("per_network", request.per_network.as_ref())?,
    };
    if technique == Technique::Trace {
        return trace(request, limits, few);
    }
    if technique == Technique::Capture {
        return capture(request, limits);
    }
    if request.capture.is_some() {
        return Err(invalid("capture", format!("a {} scan does not capture: use the technique capture", technique.as_str())));
    }
    if request.trace.is_some() {
        return Err(invalid("trace", format!("a {} scan does not trace: use the technique trace", technique.as_str())));
    }
    if technique == Technique::Link && attempts.is_some_and(|attempts| attempts != LINK_ATTEMPTS) {
        return Err(invalid("attempts", format!("a link is always asked {LINK_ATTEMPTS} times: leave it out")));
    }
    // Each way of asking a host has its turn.
    let ways = match (technique, host_probes.len()) {
        (Technique::Discover, 0) => HostProbe::DEFAULT.len(),
        (_, ways) => ways,
    };
    let default = ATTEMPTS_DEFAULT.max(u8::try_from(ways).unwrap_or(MAX_ATTEMPTS));
    let scan = ScanOptions { technique, attempts: attempts.unwrap_or(default) };
    if host_probes.is_empty() && limits == RateLimits::default() && request.services.is_none() {
        return Ok(JobKind::Scan(scan));
    }
    Ok(JobKind::Survey(Box::new(Survey { scan, host_probes, limits, services: request.services })))
}

/// What a job captures: what the request leaves open is as usual.
fn capture(request: &JobRequest, limits: RateLimits) -> Result<JobKind, ServiceError> {
    if request.attempts.is_some() || request.rate.is_some() || limits != RateLimits::default() {
        return Err(invalid("rate", "a capture sends nothing: leave out rates, limits and attempts"));
    }
    let asked = request.capture.clone().unwrap_or_default();
    let source = asked.ring.map(|ring| question(ring).map(CaptureSource::Ring)).transpose()?.unwrap_or_default();
    let options = CaptureOptions {
        source,
        interface: asked.interface,
        filter: asked.filter.unwrap_or_default(),
        snap_len: asked.snap_length.unwrap_or(HEADERS),
        promiscuous: !asked.no_promiscuous,
        with_own: asked.with_own,
        packets: asked.packets,
        bytes: asked.bytes.unwrap_or(BYTES_DEFAULT),
        seconds: asked.seconds.unwrap_or(SECONDS_DEFAULT),
    };
    options.check().map_err(|error| invalid("capture", error))?;
    Ok(JobKind::Capture(Box::new(options)))
}

/// A question to a ring. Its moments have a zone: whoever asks is not where the controller is.
fn question(asked: RingRequest) -> Result<RingQuestion, ServiceError> {
    let moment = |field, text: &Option<String>, otherwise: UnixMillis| match text {
        None => Ok(otherwise),
        Some(text) => {
            parse_rfc3339(text).ok_or_else(|| invalid(field, format!("`{text}` is no moment: use RFC 3339, such as 2026-11-22T02:10:00Z")))
        }
    };
    let from = moment("capture.ring.from", &asked.from, UnixMillis(0))?;
    let to = moment("capture.ring.to", &asked.to, UnixMillis(u64::MAX / 1_000_000))?;
    Ok(RingQuestion { from, to, hosts: asked.hosts, ports: asked.ports })
}

/// What each probe captures, in words.
fn capture_words(options: &CaptureOptions) -> String {
    if let CaptureSource::Ring(question) = &options.source {
        let list = |items: Vec<String>| if items.is_empty() { String::new() } else { format!(" of {}", items.join(" or ")) };
        let hosts = list(question.hosts.iter().map(ToString::to_string).collect());
        let ports = list(question.ports.iter().map(|port| format!("port {port}")).collect());
        let filter = if options.filter.is_empty() { String::new() } else { format!(" that match `{}`", options.filter) };
        return format!(
            "each probe, from its ring: packets{hosts}{ports}{filter} between {} and {}, {} bytes of each at most, a file of {} bytes at most; nothing is sent",
            rfc3339(question.from),
            rfc3339(question.to),
            options.snap_len,
            options.bytes
        );
    }
    let interface = options.interface.as_deref().unwrap_or("the interface that it measures on");
    let what = if options.filter.is_empty() { "all packets".to_owned() } else { format!("packets that match `{}`", options.filter) };
    let own = if options.with_own { "its own traffic included" } else { "without its own traffic" };
    let packets = options.packets.map(|packets| format!(", {packets} packets")).unwrap_or_default();
    format!(
        "each probe, on {interface}: {what}, {own}, {} bytes of each, until there are {} s{packets} or a file of {} bytes; nothing is sent",
        options.snap_len, options.seconds, options.bytes
    )
}

/// How a job traces: what the request leaves open is chosen here, for few destinations or for many.
fn trace(request: &JobRequest, limits: RateLimits, few: bool) -> Result<JobKind, ServiceError> {
    if request.attempts.is_some() {
        return Err(invalid("attempts", "a trace asks hops, not targets: say `trace.queries`"));
    }
    let asked = request.trace.clone().unwrap_or_default();
    if asked.ways.is_some() && asked.queries.is_some() {
        return Err(invalid(
            "trace.queries",
            "where all ways are looked for, the confidence says how many probes a hop gets: leave it out",
        ));
    }
    if asked.method == Some(Method::Tcp) && asked.payload.is_some() {
        return Err(invalid("trace.payload", "a SYN carries no data: leave it out, or trace by icmp or udp"));
    }
    let usual = if asked.ways.is_some() { Method::Udp } else { Method::Icmp };
    let usual = TraceOptions::usual(asked.method.unwrap_or(usual), few);
    let options = TraceOptions {
        method: usual.method,
        port: asked.port.unwrap_or(usual.port),
        first_ttl: asked.first_ttl.unwrap_or(usual.first_ttl),
        max_ttl: asked.max_ttl.unwrap_or(usual.max_ttl),
        queries: asked.queries.unwrap_or(usual.queries),
        gap: asked.gap.unwrap_or(usual.gap),
        tos: asked.tos.unwrap_or(usual.tos),
        payload: asked.payload.unwrap_or(usual.payload),
        flow: asked.flow.unwrap_or(usual.flow),
        all_hops: asked.all_hops,
        ways: asked.ways,
        limits,
        mtu: asked.mtu,
    };
    options.check().map_err(|error| invalid("trace", error))?;
    Ok(JobKind::Trace(Box::new(options)))
}

fn check_fields(request: &JobRequest, workers: &[Worker]) -> Result<(), ServiceError> {
    if let Some(name) = request.name.as_ref().filter(|name| name.chars().count() > NAME_MAX || name.chars().any(char::is_control)) {
        return Err(invalid(
            "name",
            format!("`{}` is too long or has control characters: use up to {NAME_MAX} printable ones", name.escape_debug()),
        ));
    }
    if request.select.count == Some(0) {
        return Err(invalid("select.count", "`0` probes cannot do anything: use at least 1"));
    }
    if request.deadline_seconds == Some(0) {
        return Err(invalid("deadline_seconds", "a deadline of `0` seconds is over at once: use at least 1"));
    }
    let unknown = request.select.probes.iter().find(|id| !workers.iter().any(|worker| worker.id == **id));
    if let Some(id) = unknown {
        let known: Vec<&str> = workers.iter().take(8).map(|worker| worker.id.as_str()).collect();
        let hint = if known.is_empty() { "none is enrolled yet".to_owned() } else { format!("known are {}", known.join(", ")) };
        return Err(invalid("select.probes", format!("there is no probe `{id}`: {hint}")));
    }
    Ok(())
}

/// Judges a request and says what it would do.
pub fn draft(request: JobRequest, setting: Setting<'_>) -> Result<Draft, ServiceError> {
    check_fields(&request, setting.workers)?;
    let ports = ports(&request, setting.services)?;
    if let Some(attempts) = request.attempts.filter(|attempts| !(1..=MAX_ATTEMPTS).contains(attempts)) {
        return Err(invalid("attempts", format!("`{attempts}` attempts are not possible: use 1 to {MAX_ATTEMPTS}")));
    }
    let rate: Option<PacketsPerSecond> =
        request.rate.as_ref().map(|rate| rate.parse()).transpose().map_err(|error| invalid("rate", error))?;
    let mode = mode(&request)?;
    let include = included(&request, setting.include)?;
    let few = include.minus(setting.exclude).len().is_some_and(|len| len <= FEW.into());
    let kind = kind(&request, request.attempts, few)?;
    let targets = TargetSpec { include, exclude: setting.exclude.clone(), ports, seed: setting.seed };
    let space = TargetSpace::of(request.technique, &targets).map_err(|error| invalid("targets", error))?;
    let left = targets.include.minus(&targets.exclude);
    let judged = policy::judge(setting.policy, &left);
    if let Some(reason) = kind.capture().and_then(|options| setting.captures.forbids(options.snap_len)) {
        return Err(invalid("capture.snap_length", format!("the fleet's policy ([captures] allow) forbids it: {reason}")));
    }
    if judged.permitted == 0 && kind.capture().is_none() {
        let example = judged.example.unwrap_or_default();
        return Err(invalid("targets", format!("the fleet's policy refuses every target ({example})")));
    }
    // Somebody waits for the few seconds that a link takes, however much it may come to.
    let most = if request.technique == Technique::Link { 0 } else { space.len().saturating_mul(kind.packets_at_most()) };
    let small = if most <= INTERACTIVE_MAX { Priority::Interactive } else { Priority::Bulk };
    let priority = request.priority.unwrap_or(small);
    let after = |seconds| setting.now.wall.after(Duration::from_secs(seconds));
    let spec = JobSpec {
        id: JobId(0),
        kind,
        targets,
        mode,
        rate,
        priority,
        deadline: request.deadline_seconds.map(after),
        policy: setting.policy.clone(),
    };
    let size = codec::encode(&spec).len();
    if size > SPEC_MAX {
        return Err(invalid(
            "targets",
            format!("the targets are in too many pieces ({size} bytes, at most {SPEC_MAX}): name larger networks or several jobs"),
        ));
    }
    let summary = summary(&request);
    let whole = mode == Mode::Split && priority == Priority::Interactive && space.addresses() == 1;
    // Of a link the probes say whether it was asked; its addresses are no targets.
    let refused = u64::try_from(judged.refused).unwrap_or(u64::MAX).saturating_mul(space.len().checked_div(space.addresses()).unwrap_or(0));
    let plan = outlook(&spec, &request, &space, whole, (refused.min(space.len()), judged), setting);
    let record = JobRecord {
        spec,
        request,
        summary,
        actor: setting.actor.to_owned(),
        whole,
        state: JobState::Pending,
        reason: None,
        outcome: None,
        created: setting.now.wall,
        started: None,
        ended: None,
        last_grant: 0,
    };
    Ok(Draft { record, space: Arc::new(space), plan })
}

/// The addresses asked for. Of a link everything is wanted where nothing is named.
fn included(request: &JobRequest, named: &AddrSet) -> Result<AddrSet, ServiceError> {
    if !named.is_empty() {
        return Ok(named.clone());
    }
    if request.technique == Technique::Capture {
        return match request.targets.first() {
            None => Ok(AddrSet::default()),
            Some(text) => {
                Err(invalid("targets", format!("`{text}`: a capture has no targets: say by `capture.filter` which packets are wanted")))
            }
        };
    }
    if request.technique == Technique::Link && request.targets.is_empty() {
        let all = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        return Ok(vec![all].try_into().expect("all of IPv6 is in order and of one family"));
    }
    Err(invalid("targets", "no target is named: use for example 198.18.0.7, 198.18.0.0/24, 198.18.0.1-50 or a host name"))
}

/// How the work is shared. Every probe has a link of its own.
fn mode(request: &JobRequest) -> Result<Mode, ServiceError> {
    match (request.technique, request.mode) {
        (Technique::Link, Some(Mode::Split)) => {
            Err(invalid("mode", "`split`: every probe discovers the link that it is on, so there is nothing to share: use each"))
        }
        (Technique::Capture, Some(Mode::Split)) => {
            Err(invalid("mode", "`split`: every probe captures on an interface of its own, so there is nothing to share: use each"))
        }
        (Technique::Link | Technique::Capture, _) => Ok(Mode::Each),
        (_, mode) => Ok(mode.unwrap_or(Mode::Split)),
    }
}

/// What is sent to a link, in words: the controller does not know what is there.
fn link_words() -> String {
    format!(
        "each probe, on its own link only: {LINK_ATTEMPTS} echo requests to all nodes (ff02::1) from each of its networks there, \
         where policy permits one of them as a whole and nothing of it is excluded, and at most {LINK_QUESTIONS_MAX} addresses that \
         hosts may have, {LINK_ATTEMPTS} solicitations each; nothing where no wanted network is on the link"
    )
}

/// What the job would do with the probes that are there now.
fn outlook(
    spec: &JobSpec,
    request: &JobRequest,
    space: &TargetSpace,
    whole: bool,
    (refused_by_policy, judged): (u64, Judgement),
    setting: Setting<'_>,
) -> Plan {
    let (mut fit, unfit) = plan::candidates(setting.workers, &spec.needs(), &request.select, &BTreeMap::new());
    let most = if whole { Some(1) } else { request.select.count };
    fit.truncate(most.map_or(usize::MAX, |most| most as usize));
    let is_link = request.technique == Technique::Link;
    let sent = space.len() - refused_by_policy;
    let once = if is_link { LINK_PACKETS_MAX } else { sent.saturating_mul(spec.kind.packets_at_most()) };
    let rates = fit.iter().map(|worker| plan::rate_of(worker, spec.rate.map(PacketsPerSecond::get)));
    let likely = sent.saturating_mul(spec.kind.packets_for_two()) / 2;
    let (packets_at_most, rate) = match spec.mode {
        Mode::Split => (once, rates.sum()),
        Mode::Each => (once.saturating_mul(fit.len() as u64), rates.min().unwrap_or(0)),
    };
    let about = match spec.kind.capture() {
        Some(options) => options.seconds.into(),
        None if is_link => LINK_SECONDS,
        None => likely.div_ceil(rate.max(1)),
    };
    Plan {
        addresses: space.addresses(),
        targets: space.len(),
        link: is_link.then(link_words),
        capture: spec.kind.capture().map(capture_words),
        excluded: u64::try_from(space.excluded()).unwrap_or(u64::MAX),
        refused_by_policy,
        refusal_example: judged.example,
        verdicts: judged.rules,
        packets_at_most,
        seconds_about: (!fit.is_empty()).then_some(about),
        probes: fit.iter().map(|worker| worker.id.clone()).collect(),
        unfit,
        names: setting.names.to_vec(),
    }
}

fn summary(request: &JobRequest) -> String {
    if request.technique == Technique::Link && request.targets.is_empty() {
        return "the probes' own links".to_owned();
    }
    if request.technique == Technique::Capture {
        let asked = request.capture.clone().unwrap_or_default();
        let filter = asked.filter.filter(|filter| !filter.is_empty()).unwrap_or_else(|| "all packets".to_owned());
        if asked.ring.is_some() {
            return cut(&format!("ring: {filter}"), ' ', 80);
        }
        return cut(&format!("capture {}: {filter}", asked.interface.as_deref().unwrap_or("the measuring interface")), ' ', 80);
    }
    let shown: Vec<&str> = request.targets.iter().take(3).map(String::as_str).collect();
    let mut text = cut(&shown.join(" "), ' ', 80);
    if request.targets.len() > 3 {
        text.push_str(&format!(" and {} more", request.targets.len() - 3));
    }
    if let Some(ports) = &request.ports {
        text.push_str(&format!(" ports {}", cut(ports, ',', 40)));
    }
    text
}

/// At most `most` characters of a list: whole items, and `...` for those left out.
fn cut(list: &str, separator: char, most: usize) -> String {
    if list.chars().count() <= most {
        return list.to_owned();
    }
    let head: String = list.chars().take(most - 3).collect();
    let whole = head.rfind(separator).map_or(head.as_str(), |end| &head[..=end]);
    format!("{whole}...")
}

/// The id of a job submitted now; `random` fills its lower half.
pub fn job_id(now: UnixMillis, random: u32) -> JobId {
    JobId(((now.0 / 1000) << 32) | u64::from(random))
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::WaysOptions;

    use super::*;
    use crate::clock::Clock;
    use crate::view::{CaptureRequest, TraceRequest};

    fn request() -> JobRequest {
        JobRequest {
            targets: vec!["198.18.0.0/24".into()],
            exclude: vec![],
            ports: Some("22,80".into()),
            technique: Technique::Syn,
            attempts: None,
            mode: None,
            rate: None,
            bit_rate: None,
            per_address: None,
            per_network: None,
            host_probes: vec![],
            services: None,
            trace: None,
            capture: None,
            priority: None,
            select: Default::default(),
            deadline_seconds: None,
            name: None,
            dry_run: false,
        }
    }

    fn try_draft(request: JobRequest) -> Result<Draft, ServiceError> {
        draft_within("198.18.0.0/16", request)
    }

    /// What becomes of a request where the fleet's policy permits one network.
    fn draft_within(net: &str, request: JobRequest) -> Result<Draft, ServiceError> {
        let policy = AddressPolicy { allow: vec![net.parse().unwrap()], deny: vec![] };
        let include = set(&items("targets", &request.targets)?, &[]);
        let exclude = set(&items("exclude", &request.exclude)?, &[]);
        let now = Clock::manual(UnixMillis(1_790_000_000_000)).now();
        let services = Services::parse("ssh 22/tcp\ndomain 53/udp\n");
        let setting = Setting {
            include: &include,
            exclude: &exclude,
            names: &[],
            policy: &policy,
            captures: Keeps::Headers,
            services: &services,
            workers: &[],
            actor: "admin",
            now,
            seed: 1,
        };
        draft(request, setting)
    }

    fn refusal(change: impl FnOnce(&mut JobRequest)) -> String {
        let mut request = request();
        change(&mut request);
        match try_draft(request) {
            Err(ServiceError::InvalidInput { field, reason }) => format!("{field}: {reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_request_becomes_a_plan() {
        let draft = try_draft(request()).unwrap();
        assert_eq!((draft.plan.addresses, draft.plan.targets, draft.plan.packets_at_most), (256, 512, 1024));
        assert_eq!((draft.record.spec.priority, draft.record.whole), (Priority::Interactive, false));
        assert_eq!(draft.record.summary, "198.18.0.0/24 ports 22,80");
        assert_eq!(cut("22,80,443", ',', 9), "22,80,443");
        assert_eq!((cut("22,80,443", ',', 8).as_str(), cut("22,80,4439", ',', 9).as_str()), ("22,...", "22,80,..."));
        assert_eq!(cut("oneverylongname", ' ', 10), "onevery...");
        let partly =
            try_draft(JobRequest { targets: vec!["198.18.0.0/15".into()], exclude: vec!["198.18.0.0/24".into()], ..request() }).unwrap();
        assert_eq!((partly.plan.refused_by_policy, partly.plan.excluded), (2 * 65_536, 512));
        assert_eq!(partly.plan.refusal_example.unwrap(), "198.19.0.0: denied: no `allow` rule holds it");
        assert!(try_draft(JobRequest { targets: vec!["198.18.0.7".into()], ..request() }).unwrap().record.whole);
    }

    #[test]
    fn what_older_probes_understand_stays_a_plain_scan() {
        let kind = |request| try_draft(request).unwrap().record.spec.kind;
        let scan = |technique, attempts| ScanOptions { technique, attempts };
        assert_eq!(kind(JobRequest { ports: Some("ssh".into()), ..request() }), JobKind::Scan(scan(Technique::Syn, 2)));
        let discover = JobRequest { technique: Technique::Discover, ports: None, ..request() };
        assert_eq!(kind(discover.clone()), JobKind::Scan(scan(Technique::Discover, 4)));
        let chosen = JobRequest { host_probes: vec!["echo".into(), "udp:53".into(), "syn:22".into()], ..discover };
        let JobKind::Survey(survey) = kind(chosen) else { panic!("host probes need a survey") };
        assert_eq!(survey.scan, scan(Technique::Discover, 3));
        assert_eq!(survey.host_probes, [HostProbe::Echo, HostProbe::Udp(53), HostProbe::Syn(22)]);
        let limited = JobRequest {
            bit_rate: Some("20Mbit".into()),
            per_address: Some("5pps".into()),
            per_network: Some("50pps/24".into()),
            services: Some(Default::default()),
            ..request()
        };
        let JobKind::Survey(survey) = kind(limited) else { panic!("limits need a survey") };
        assert_eq!((survey.limits.bits.unwrap().get(), survey.limits.per_network.unwrap().v6_prefix), (20_000_000, 64));
        assert!(survey.services.is_some() && survey.host_probes.is_empty());
    }

    #[test]
    fn a_trace_is_chosen_for_few_destinations_or_many() {
        let plain = |targets: &str| JobRequest { technique: Technique::Trace, ports: None, targets: vec![targets.to_owned()], ..request() };
        let traced = |request| {
            let draft = try_draft(request).unwrap();
            let options = draft.record.spec.kind.trace().unwrap().clone();
            (options, draft)
        };
        let (few, draft) = traced(plain("198.18.0.0/28"));
        assert_eq!(few, TraceOptions::usual(Method::Icmp, true));
        assert_eq!((draft.plan.targets, draft.plan.packets_at_most), (16, 16 * 30 * 3));
        assert_eq!((draft.record.spec.needs().role, draft.record.spec.needs().raw_socket), (picket_wire::ids::Role::Trace, true));
        let (many, draft) = traced(plain("198.18.0.0/20"));
        assert_eq!((many, draft.record.spec.priority), (TraceOptions::usual(Method::Icmp, false), Priority::Bulk));
        let asked = TraceRequest {
            method: Some(Method::Tcp),
            port: Some(443),
            queries: Some(2),
            max_ttl: Some(40),
            flow: Some(7),
            ..TraceRequest::default()
        };
        let limited = JobRequest { trace: Some(asked), per_address: Some("5pps".into()), ..plain("198.18.0.7") };
        let (options, _) = traced(limited);
        assert_eq!((options.method, options.port, options.queries, options.max_ttl, options.flow), (Method::Tcp, 443, 2, 40, 7));
        assert_eq!(options.limits.per_address.unwrap().get(), 5);
        let ways = TraceRequest { ways: Some(WaysOptions { confidence: 99, full: false }), ..TraceRequest::default() };
        let (options, draft) = traced(JobRequest { trace: Some(ways), ..plain("198.18.0.7") });
        assert_eq!((options.method, options.port), (Method::Udp, 33_434));
        assert!(draft.plan.packets_at_most > 30 * 512);
    }

    #[test]
    fn a_capture_is_one_target_of_each_probe_and_sends_nothing() {
        let capture = CaptureRequest { filter: Some("tcp port 443".into()), interface: Some("eth1".into()), ..CaptureRequest::default() };
        let asked = JobRequest { technique: Technique::Capture, ports: None, targets: vec![], capture: Some(capture), ..request() };
        let Draft { record, space, plan } = try_draft(asked).unwrap();
        assert_eq!((plan.targets, plan.addresses, plan.packets_at_most, plan.refused_by_policy, space.len()), (1, 0, 0, 0, 1));
        assert_eq!((record.spec.mode, record.spec.priority), (Mode::Each, Priority::Interactive));
        assert_eq!(record.spec.needs().role, picket_wire::ids::Role::Capture);
        assert_eq!(record.summary, "capture eth1: tcp port 443");
        let options = record.spec.kind.capture().unwrap();
        assert_eq!((options.snap_len, options.seconds, options.bytes), (HEADERS, SECONDS_DEFAULT, BYTES_DEFAULT));
        assert!(plan.capture.unwrap().contains("`tcp port 443`, without its own traffic, 128 bytes of each"));
    }

    #[test]
    fn a_link_is_one_target_of_each_probe() {
        let link = |targets: &str| JobRequest {
            technique: Technique::Link,
            ports: None,
            targets: targets.split_whitespace().map(str::to_owned).collect(),
            ..request()
        };
        let draft = |targets: &str| draft_within("2001:db8::/32", link(targets));
        for (targets, summary) in [("2001:db8:7::/64", "2001:db8:7::/64"), ("", "the probes' own links")] {
            let Draft { record, space, plan } = draft(targets).unwrap();
            assert_eq!((plan.targets, plan.addresses, plan.refused_by_policy, space.len()), (1, 0, 0, 1));
            assert_eq!((record.spec.mode, record.spec.priority, record.whole), (Mode::Each, Priority::Interactive, false));
            assert_eq!(record.spec.kind.scan(), ScanOptions { technique: Technique::Link, attempts: LINK_ATTEMPTS });
            assert_eq!(record.summary, summary);
            assert!(plan.link.unwrap().contains("ff02::1"));
            assert!(!record.spec.needs().ipv6 && record.spec.needs().raw_socket);
        }
        let refused = ["198.18.0.0/24", "3fff::/64"].map(|targets| draft(targets).unwrap_err().to_string());
        assert!(refused[0].contains("IPv4") && refused[1].contains("refuses every target"), "{refused:?}");
        let split = refusal(|r| (r.technique, r.ports, r.mode) = (Technique::Link, None, Some(Mode::Split)));
        assert!(split.starts_with("mode: "), "{split}");
        let often = refusal(|r| (r.technique, r.ports, r.attempts) = (Technique::Link, None, Some(3)));
        assert!(often.starts_with("attempts: "), "{often}");
    }

    #[test]
    fn names_bring_all_their_addresses_or_the_networks_around_them() {
        let items = items("targets", &["printer.lan,198.18.0.1,7 printer.lan/30".into()]).unwrap();
        let addresses: Vec<IpAddr> = vec!["198.18.9.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        let resolved = items.names.iter().map(|named| ResolvedName { name: named.text.clone(), addresses: addresses.clone() });
        let all = set(&items, &resolved.collect::<Vec<_>>());
        assert_eq!(all, target::parse_addresses("198.18.0.1,7 198.18.9.8/30 2001:db8::9").unwrap());
    }

    #[test]
    fn each_wrong_input_names_itself() {
        let cases = [
            refusal(|r| r.targets = vec!["198.18.0.0/33".into()]),
            refusal(|r| r.targets = vec!["198.18.0.300".into()]),
            refusal(|r| r.targets = vec![]),
            refusal(|r| r.targets = vec!["192.0.2.0/24".into()]),
            refusal(|r| r.exclude = vec!["198.18.0.0/16".into()]),
            refusal(|r| r.ports = None),
            refusal(|r| r.ports = Some("99999".into())),
            refusal(|r| r.technique = Technique::Echo),
            refusal(|r| r.targets = vec!["198.18.0.9-3".into()]),
            refusal(|r| r.ports = Some("22,U:53".into())),
            refusal(|r| r.ports = Some("domain".into())),
            refusal(|r| r.bit_rate = Some("20".into())),
            refusal(|r| r.per_address = Some("fast".into())),
            refusal(|r| r.per_network = Some("100pps".into())),
            refusal(|r| r.host_probes = vec!["echo".into()]),
            refusal(|r| (r.technique, r.ports, r.host_probes) = (Technique::Discover, None, vec!["ping".into()])),
            refusal(|r| (r.technique, r.ports, r.services) = (Technique::Echo, None, Some(Default::default()))),
            refusal(|r| (r.technique, r.ports, r.attempts) = (Technique::Trace, None, Some(2))),
            refusal(|r| r.trace = Some(TraceRequest::default())),
            refusal(|r| {
                (r.technique, r.ports) = (Technique::Trace, None);
                r.trace = Some(TraceRequest { max_ttl: Some(65), ..TraceRequest::default() });
            }),
            refusal(|r| {
                (r.technique, r.ports) = (Technique::Trace, None);
                r.trace = Some(TraceRequest { port: Some(80), ..TraceRequest::default() });
            }),
            refusal(|r| r.technique = Technique::Trace),
            refusal(|r| r.capture = Some(CaptureRequest::default())),
            refusal(|r| (r.technique, r.ports) = (Technique::Capture, None)),
            refusal(|r| (r.technique, r.ports, r.targets) = (Technique::Capture, Some("80".into()), vec![])),
            refusal(|r| (r.technique, r.ports, r.targets, r.mode) = (Technique::Capture, None, vec![], Some(Mode::Split))),
            refusal(|r| (r.technique, r.ports, r.targets, r.rate) = (Technique::Capture, None, vec![], Some("5pps".into()))),
            refusal(|r| {
                (r.technique, r.ports, r.targets) = (Technique::Capture, None, vec![]);
                r.capture = Some(CaptureRequest { snap_length: Some(1500), ..CaptureRequest::default() });
            }),
            refusal(|r| {
                (r.technique, r.ports, r.targets) = (Technique::Capture, None, vec![]);
                r.capture = Some(CaptureRequest { interface: Some("eth0/../x".into()), ..CaptureRequest::default() });
            }),
            refusal(|r| r.attempts = Some(0)),
            refusal(|r| r.rate = Some("500".into())),
            refusal(|r| r.deadline_seconds = Some(0)),
            refusal(|r| r.select.probes = vec!["attic".parse().unwrap()]),
            refusal(|r| r.select.count = Some(0)),
            refusal(|r| r.name = Some("a\nb".into())),
        ];
        insta::assert_snapshot!(cases.join("\n"));
    }

    #[test]
    fn names_are_told_from_mistyped_addresses() {
        for name in ["localhost", "www.example.com", "printer_7.lan", "a1.", "3com"] {
            let found = items("targets", &[name.into()]).unwrap();
            assert_eq!((found.names[0].text.as_str(), found.addresses.len()), (name, 0));
        }
        for wrong in ["10.0.0.256", "1.2.3", "-a", "a..b", "1.2.3.4/a", "::g", "a b/", "1-2-3"] {
            assert!(items("targets", &[wrong.into()]).is_err(), "{wrong}");
        }
    }
}
