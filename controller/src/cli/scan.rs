//! `picket scan` and `picket discover`, and what `picket trace` has in common with them: submit, watch, print what was found.

use picket_wire::ids::{Label, ProbeId, SiteName};
use picket_wire::job::{HostProbe, MAX_ATTEMPTS, Mode, NetworkLimit, Priority, Selection, ServiceOptions, Technique, Transport};
use picket_wire::port::{PortSelection, SERVICES_FILE, Services};
use picket_wire::target::{TargetItem, parse_items, split};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, PortSet, UnitError, parse_duration};
use serde_json::json;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::follow::{Followed, OnInterrupt, follow};
use super::interrupt::Interrupts;
use super::paths::{self, PathOutput, PathOutputArgs};
use super::progress::{Progress, Style};
use super::results::{self, Output, OutputArgs, Shape};
use super::{Context, format, hosts};
use crate::view::{JobProbe, JobRequest, JobView, Plan, Submitted};

/// `picket scan` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct ScanArgs {
    /// Addresses, networks, patterns (198.18.0-3.1,7,9-), ranges (198.18.0.9-198.18.1.3), host names and networks around them (name/24)
    #[arg(required = true, value_name = "TARGETS", value_parser = targets)]
    targets: Vec<String>,
    /// Ports: 22,80,8000-8100; `-` for 1 to 65535; T:, U: and S: before those of TCP, UDP and SCTP; service names, also http*
    #[arg(long, short, value_name = "PORTS", allow_hyphen_values = true, value_parser = ports, required_unless_present = "top_ports")]
    ports: Option<String>,
    /// The N ports that are most worth asking, of each protocol; the list is the program's own
    #[arg(long, value_name = "N", conflicts_with = "ports", value_parser = clap::value_parser!(u16).range(1..))]
    top_ports: Option<u16>,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    ask: AskArgs,
    /// How ports are asked; one for each protocol [default: syn for TCP, udp, sctp]
    #[arg(long, value_enum, value_delimiter = ',')]
    technique: Vec<PortTechnique>,
    /// Ask open ports what serves there
    #[arg(long)]
    services: bool,
    /// Ask ports of fragile devices (printers, controllers of machines) as well, where the probe's own site permits that
    #[arg(long, requires = "services")]
    ask_fragile: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// `picket discover` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct DiscoverArgs {
    /// Addresses, networks, patterns (198.18.0-3.1,7,9-), ranges (198.18.0.9-198.18.1.3), host names and networks around them
    /// (name/24). IPv6 networks of more than 2^20 addresses, such as 2001:db8:7::/64, are discovered as --link does it
    #[arg(required_unless_present = "link", value_name = "TARGETS", value_parser = targets)]
    targets: Vec<String>,
    /// The IPv6 hosts of each probe's own link, without asking for each address: all nodes at once, others overheard, addresses
    /// guessed. Targets say which are wanted [default: all of the link]
    #[arg(long, conflicts_with_all = ["host_probes", "attempts"])]
    link: bool,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    ask: AskArgs,
    /// How hosts are asked, in this order: echo, timestamp, syn:PORT, ack:PORT, udp:PORT, sctp:PORT [default: echo, syn:443, ack:80,
    /// timestamp; on the probe's own link always ARP or neighbour discovery]
    #[arg(long, value_name = "PROBES", value_delimiter = ',')]
    host_probes: Vec<HostProbe>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PortTechnique {
    /// TCP, half-open; needs a raw socket on the probe
    Syn,
    /// TCP, by the operating system
    Connect,
    /// TCP ACK: does a filter stand before the port?
    Ack,
    /// UDP, with a question that the usual service answers
    Udp,
    /// SCTP INIT
    Sctp,
}

impl PortTechnique {
    fn technique(self) -> Technique {
        match self {
            PortTechnique::Syn => Technique::Syn,
            PortTechnique::Connect => Technique::Connect,
            PortTechnique::Ack => Technique::Ack,
            PortTechnique::Udp => Technique::Udp,
            PortTechnique::Sctp => Technique::Sctp,
        }
    }

    fn transport(self) -> Transport {
        match self {
            PortTechnique::Syn | PortTechnique::Connect | PortTechnique::Ack => Transport::Tcp,
            PortTechnique::Udp => Transport::Udp,
            PortTechnique::Sctp => Transport::Sctp,
        }
    }
}

/// The system's names of ports; a system without them knows none.
fn services() -> Services {
    Services::parse(&std::fs::read_to_string(SERVICES_FILE).unwrap_or_default())
}

/// Only the form is checked here: which protocol is meant depends on the technique.
fn ports(text: &str) -> Result<String, String> {
    PortSelection::parse(text, &services(), &Transport::ALL).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl ScanArgs {
    /// What is asked how: one technique and its ports for each protocol.
    fn works(&self) -> Result<Vec<(Technique, PortSet)>, Failure> {
        let named: Vec<Transport> = self.technique.iter().map(|technique| technique.transport()).collect();
        if let Some(twice) = Transport::ALL.into_iter().find(|transport| named.iter().filter(|other| *other == transport).count() > 1) {
            return Err(Failure::usage(format!("--technique names two ways to ask {} ports: choose one", twice.as_str())));
        }
        let unmarked = if named.is_empty() { vec![Transport::Tcp] } else { named.clone() };
        let selection = match (&self.ports, self.top_ports) {
            (Some(text), _) => PortSelection::parse(text, &services(), &unmarked),
            (None, count) => PortSelection::top(count.unwrap_or_default().into(), &unmarked),
        };
        let selection = selection.map_err(|error| Failure::usage(error.to_string()))?;
        if let Some(idle) = named.iter().find(|transport| selection.get(**transport).is_empty()) {
            return Err(Failure::usage(format!("--technique asks {0} ports, and no {0} port is named", idle.as_str())));
        }
        let technique = |transport| {
            let chosen = self.technique.iter().find(|technique| technique.transport() == transport).map(|technique| technique.technique());
            chosen.unwrap_or(match transport {
                Transport::Tcp => Technique::Syn,
                Transport::Udp => Technique::Udp,
                Transport::Sctp => Technique::Sctp,
            })
        };
        Ok(selection.protocols().map(|(transport, ports)| (technique(transport), ports.clone())).collect())
    }
}

/// A rate of either kind; the unit says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    Packets(PacketsPerSecond),
    Bits(BitsPerSecond),
}

fn rate(text: &str) -> Result<Rate, String> {
    match text.to_ascii_lowercase().ends_with("bit") {
        true => text.parse().map(Rate::Bits).map_err(|error: UnitError| error.to_string()),
        false => text.parse().map(Rate::Packets).map_err(|error: UnitError| match error {
            UnitError::PacketRate(text) => format!(
                "`{text}` is not a rate: write a whole number with its unit, such as 500pps or 5kpps for packets, 20Mbit for bits per second"
            ),
            other => other.to_string(),
        }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeArg {
    /// The probes share the work
    Split,
    /// Each probe does all of it
    Each,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PriorityArg {
    /// Somebody waits for it
    Interactive,
    /// Takes what is left
    Bulk,
}

/// How targets are asked, one by one.
#[derive(Debug, clap::Args)]
struct AskArgs {
    /// How often a silent target is asked in all [default: 2; for discover once in each way]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_ATTEMPTS)))]
    attempts: Option<u8>,
}

/// What every measurement takes.
#[derive(Debug, clap::Args)]
pub(super) struct WorkArgs {
    /// Targets to leave out, in the same forms; may be given several times
    #[arg(long, value_name = "TARGETS", value_parser = targets)]
    exclude: Vec<String>,
    /// Packets or bits per second for each probe, such as 500pps, 20Mbit or both; the limits of its interface hold in any case
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = rate)]
    rate: Vec<Rate>,
    /// Packets per second of each probe towards any one address, such as 20pps
    #[arg(long, value_name = "RATE")]
    per_address: Option<PacketsPerSecond>,
    /// Packets per second of each probe towards any one network of a size, such as 100pps/24 or 100pps/24,48 (IPv4, IPv6)
    #[arg(long, value_name = "RATE/SIZE")]
    per_network: Option<NetworkLimit>,
    /// Whether the probes share the work or each does all of it
    #[arg(long, value_enum, default_value_t = ModeArg::Split)]
    mode: ModeArg,
    /// Only this probe; may be given several times
    #[arg(long = "probe", value_name = "PROBE", value_delimiter = ',', help_heading = "Which probes")]
    probes: Vec<ProbeId>,
    /// Only probes in this site; may be given several times
    #[arg(long = "site", value_name = "SITE", value_delimiter = ',', help_heading = "Which probes")]
    sites: Vec<SiteName>,
    /// Only probes with this label; several must all be there
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',', help_heading = "Which probes")]
    labels: Vec<Label>,
    /// At most so many probes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Which probes")]
    count: Option<u32>,
    /// How soon it is served beside other work [default: by size]
    #[arg(long, value_enum)]
    priority: Option<PriorityArg>,
    /// Stop after this time, such as 30m
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<u64>,
    /// A few words for people
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Show what would be sent; send nothing
    #[arg(long)]
    dry_run: bool,
    /// Submit and leave; print the job's id
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Lines of progress on standard error also when it is not a terminal
    #[arg(long, conflicts_with = "quiet")]
    progress: bool,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

/// Forms are checked here; whether a name exists is the controller's to say.
pub(super) fn targets(text: &str) -> Result<String, String> {
    parse_items(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn deadline(text: &str) -> Result<u64, String> {
    match parse_duration(text).map_err(|reason| reason.to_string())?.as_secs() {
        0 => Err(format!("`{text}` is too short: use at least 1s")),
        seconds => Ok(seconds),
    }
}

impl WorkArgs {
    /// The lower one where several of a kind are given.
    fn packets(&self) -> Option<PacketsPerSecond> {
        let packets = |rate: &Rate| if let Rate::Packets(rate) = rate { Some(*rate) } else { None };
        self.rate.iter().filter_map(packets).min()
    }

    fn bits(&self) -> Option<BitsPerSecond> {
        let bits = |rate: &Rate| if let Rate::Bits(rate) = rate { Some(*rate) } else { None };
        self.rate.iter().filter_map(bits).min()
    }

    pub(super) fn request(&self, targets: &[String], technique: Technique, ports: Option<&PortSet>) -> JobRequest {
        JobRequest {
            targets: targets.to_vec(),
            exclude: self.exclude.clone(),
            ports: ports.map(PortSet::to_string),
            technique,
            attempts: None,
            mode: Some(match self.mode {
                ModeArg::Split => Mode::Split,
                ModeArg::Each => Mode::Each,
            }),
            rate: self.packets().map(|rate| rate.to_string()),
            bit_rate: self.bits().map(|rate| rate.to_string()),
            per_address: self.per_address.map(|rate| rate.to_string()),
            per_network: self.per_network.map(|limit| limit.to_string()),
            host_probes: Vec::new(),
            services: None,
            trace: None,
            capture: None,
            priority: self.priority.map(|priority| match priority {
                PriorityArg::Interactive => Priority::Interactive,
                PriorityArg::Bulk => Priority::Bulk,
            }),
            select: Selection { probes: self.probes.clone(), sites: self.sites.clone(), labels: self.labels.clone(), count: self.count },
            deadline_seconds: self.deadline,
            name: self.name.clone(),
            dry_run: self.dry_run,
        }
    }

    fn style(&self, is_terminal: bool) -> Style {
        match (self.quiet, is_terminal, self.progress) {
            (true, ..) => Style::Silent,
            (false, true, _) => Style::Bar,
            (false, false, true) => Style::Lines,
            (false, false, false) => Style::Silent,
        }
    }
}

pub(super) async fn scan(args: ScanArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let services = args.services.then_some(ServiceOptions { ask_fragile: args.ask_fragile });
    let works = args.works()?;
    let asked = |technique: Technique| services.filter(|_| technique != Technique::Ack && technique != Technique::Sctp);
    let requests: Vec<JobRequest> = works
        .iter()
        .map(|(technique, ports)| JobRequest {
            services: asked(*technique),
            attempts: args.ask.attempts,
            ..args.work.request(&args.targets, *technique, Some(ports))
        })
        .collect();
    measure(&requests, &args.work, Shown::Results(&args.output), context).await
}

pub(super) async fn discover(args: DiscoverArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    measure(&args.requests(), &args.work, Shown::Results(&args.output), context).await
}

impl DiscoverArgs {
    /// One job for the targets that are asked one by one, one for those that are discovered as links.
    fn requests(&self) -> Vec<JobRequest> {
        let items: Vec<&str> = self.targets.iter().flat_map(|text| split(text)).collect();
        // Who says how hosts are asked wants to ask each of them.
        let is_link =
            |text: &&str| self.link || self.host_probes.is_empty() && text.parse::<TargetItem>().is_ok_and(|item| item.is_a_link());
        let (links, singles): (Vec<&str>, Vec<&str>) = items.into_iter().partition(is_link);
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let link = (self.link || !links.is_empty())
            .then(|| JobRequest { mode: Some(Mode::Each), ..self.work.request(&owned(links), Technique::Link, None) });
        let sweep = (!singles.is_empty()).then(|| self.sweep(&owned(singles)));
        sweep.into_iter().chain(link).collect()
    }

    fn sweep(&self, targets: &[String]) -> JobRequest {
        // Echo alone is what every probe can do, also an older one.
        let technique = if self.host_probes == [HostProbe::Echo] { Technique::Echo } else { Technique::Discover };
        let host_probes = self.host_probes.iter().filter(|_| technique == Technique::Discover).map(ToString::to_string).collect();
        JobRequest { host_probes, attempts: self.ask.attempts, ..self.work.request(targets, technique, None) }
    }
}

/// What of a job is shown in the end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown<'a> {
    /// What answered.
    Results(&'a OutputArgs),
    /// Paths.
    Paths(&'a PathOutputArgs),
}

impl Shown<'_> {
    fn json(self) -> bool {
        match self {
            Shown::Results(args) => args.json,
            Shown::Paths(args) => args.json,
        }
    }

    fn is_table(self) -> bool {
        match self {
            Shown::Results(args) => args.output == Output::Table,
            Shown::Paths(args) => args.output == PathOutput::Table,
        }
    }
}

/// Runs one job for each request: a job works on ports of one protocol.
pub(super) async fn measure(
    requests: &[JobRequest],
    work: &WorkArgs,
    output: Shown<'_>,
    context: &mut Context<'_>,
) -> Result<Exit, Failure> {
    let client = context.client()?;
    // From the submission on, Ctrl-C is about the jobs.
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for Ctrl-C: {error}")))?;
    let submitted = tokio::select! {
        submitted = submit_all(&client, requests) => submitted?,
        () = interrupts.next() => return Err(Failure::new(Exit::Incomplete, "left before the controller had answered").hint("see `picket job list`")),
    };
    if work.dry_run {
        return dry_run(&submitted, requests, output, context);
    }
    let jobs: Vec<(JobView, Plan)> = submitted.into_iter().filter_map(|one| Some((one.job?, one.plan))).collect();
    if work.detach {
        return detached(&jobs, output, context);
    }
    let style = work.style(context.err_is_terminal);
    let mut exit = Exit::Complete;
    for (job, plan) in jobs.iter().filter(|_| style != Style::Silent) {
        announce(job, plan, context);
    }
    // All of them run; they are followed and shown one after the other.
    let list = jobs.len() > 1 && output.json();
    if list {
        context.line("[")?;
    }
    for (index, (job, plan)) in jobs.iter().enumerate() {
        if list && index > 0 {
            context.line(",")?;
        }
        let followed = follow(&client, job.clone(), Progress::new(style, job), OnInterrupt::Cancel, &mut interrupts, context).await?;
        let place = Place { index, of: jobs.len() };
        tokio::select! {
            printed = report(&client, &followed, plan, output, place, context) => printed?,
            () = interrupts.next() => {}
        }
        if followed.exit() != Exit::Complete {
            exit = followed.exit();
        }
    }
    if list {
        context.line("]")?;
    }
    Ok(exit)
}

/// Which of several jobs is shown.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    of: usize,
}

/// Submits all of them; where there are several, each is judged before the first is submitted.
async fn submit_all(client: &Client, requests: &[JobRequest]) -> Result<Vec<Submitted>, Failure> {
    if requests.len() > 1 {
        for request in requests.iter().filter(|request| !request.dry_run) {
            submit(client, &JobRequest { dry_run: true, ..request.clone() }).await?;
        }
    }
    let mut submitted: Vec<Submitted> = Vec::with_capacity(requests.len());
    for request in requests {
        match submit(client, request).await {
            Ok(one) => submitted.push(one),
            Err(failure) => {
                let before: Vec<String> = submitted.iter().filter_map(|one| Some(one.job.as_ref()?.id.to_string())).collect();
                return Err(match before.is_empty() {
                    true => failure,
                    false => failure.hint(format!("submitted before it, and running: {}", before.join(", "))),
                });
            }
        }
    }
    Ok(submitted)
}

/// Submits under a key of its own, so that a lost answer does not make two jobs.
pub(super) async fn submit(client: &Client, request: &JobRequest) -> Result<Submitted, Failure> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| Failure::new(Exit::Failure, format!("the system gave no random bytes: {error}")))?;
    client.post_once(&["jobs"], request, &hex::encode(key)).await
}

fn dry_run(submitted: &[Submitted], requests: &[JobRequest], output: Shown<'_>, context: &mut Context<'_>) -> Result<Exit, Failure> {
    match (output.json(), submitted) {
        (true, [one]) => context.json(one)?,
        (true, all) => context.json(&all)?,
        (false, all) => {
            for (one, request) in all.iter().zip(requests) {
                if all.len() > 1 {
                    let ports = request.ports.as_ref().map(|ports| format!(", ports {ports}")).unwrap_or_default();
                    context.line(format!("{}{ports}:", request.technique.as_str()))?;
                }
                for line in format::plan(&one.plan).into_iter().chain(format::verdicts(&one.plan)) {
                    context.line(line)?;
                }
            }
        }
    }
    Ok(Exit::Complete)
}

fn detached(jobs: &[(JobView, Plan)], output: Shown<'_>, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if output.json() {
        let submitted: Vec<Submitted> = jobs.iter().map(|(job, plan)| Submitted { job: Some(job.clone()), plan: plan.clone() }).collect();
        match submitted.as_slice() {
            [one] => context.json(one)?,
            all => context.json(&all)?,
        }
        return Ok(Exit::Complete);
    }
    for (job, _) in jobs {
        context.line(job.id)?;
        context.note(format!("watch it with: picket job watch {}", job.id));
    }
    Ok(Exit::Complete)
}

fn announce(job: &JobView, plan: &Plan, context: &mut Context<'_>) {
    context.note(format!("job {}: {}", job.id, format::clean(&job.summary)));
    for line in format::plan(plan) {
        context.note(format!("  {line}"));
    }
}

async fn report(
    client: &Client,
    followed: &Followed,
    plan: &Plan,
    output: Shown<'_>,
    place: Place,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let job = followed.job();
    let query = vec![("job", job.id.to_string())];
    let output = match output {
        Shown::Results(output) => output,
        Shown::Paths(output) => return report_paths(client, followed, plan, output, context).await,
    };
    let hosts = match job.technique {
        Technique::Link => Some(hosts::all(client, query.clone()).await?),
        _ => None,
    };
    if let (true, Some(hosts)) = (output.json, &hosts) {
        return context.json(&json!({ "job": job, "plan": plan, "hosts": hosts }));
    }
    if output.json {
        let (job, plan) = (json!(job), json!(plan));
        write!(context.out, "{{\"job\":{job},\"plan\":{plan},\"results\":").map_err(Failure::output)?;
        results::json(client, query, output, context).await?;
        return context.line("}");
    }
    if place.of > 1 && output.output == Output::Table {
        context.line(format!("{}job {}, {}:", if place.index > 0 { "\n" } else { "" }, job.id, job.technique.as_str()))?;
    }
    match hosts {
        Some(hosts) => hosts::print(&hosts, output.output, context)?,
        None => {
            let shape = Shape { jobs: false, heading: place.index == 0, again: format!("picket results --job {}", job.id) };
            results::print(client, query, output, &shape, context).await?;
        }
    }
    sum_up(followed, Shown::Results(output), context)
}

/// Prints what a trace found.
async fn report_paths(
    client: &Client,
    followed: &Followed,
    plan: &Plan,
    output: &PathOutputArgs,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let job = followed.job();
    let mut query = vec![("job", job.id.to_string())];
    output.ask(&mut query);
    if output.json {
        let (job, plan) = (json!(job), json!(plan));
        write!(context.out, "{{\"job\":{job},\"plan\":{plan},\"paths\":").map_err(Failure::output)?;
        paths::json(client, query, context).await?;
        return context.line("}");
    }
    paths::print(client, query, output.output, &plan.names, context).await?;
    sum_up(followed, Shown::Paths(output), context)
}

/// How the job fared as a whole.
fn sum_up(followed: &Followed, output: Shown<'_>, context: &mut Context<'_>) -> Result<(), Failure> {
    let job = followed.job();
    let mut lines = vec![format::coverage(&job.coverage)];
    lines.extend(ending(followed));
    lines.extend(clipped(job));
    for line in lines {
        match output.is_table() {
            true => context.line(line)?,
            false => context.note(line),
        }
    }
    Ok(())
}

/// Which probes could not go as fast as they were asked to.
fn clipped(job: &JobView) -> Option<String> {
    let asked = format::clean(job.asked_rate.as_ref()?);
    let granted = |part: &JobProbe| format!("{} at most {}", part.probe, format::clean(part.granted.as_ref().unwrap_or(&part.limit)));
    let slower: Vec<String> = job.probes.iter().filter(|part| part.clipped).map(granted).collect();
    (!slower.is_empty()).then(|| format!("slower than the {asked} asked for: {}", slower.join(", ")))
}

/// What is to be said of a job that did not come to its good end.
fn ending(followed: &Followed) -> Option<String> {
    let job = followed.job();
    let reason = job.reason.as_ref().map(|reason| format!(": {}", format::clean(reason))).unwrap_or_default();
    match followed.exit() {
        Exit::Complete => None,
        _ => Some(format!("job {} is {}{reason}", job.id, format::job_state(job.state))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        scan: ScanArgs,
    }

    fn works(line: &str) -> Result<String, String> {
        let args = Line::try_parse_from(std::iter::once("scan").chain(line.split_whitespace())).map_err(|error| error.to_string())?.scan;
        let works = args.works().map_err(|failure| failure.to_string())?;
        Ok(works.iter().map(|(technique, ports)| format!("{} {ports}", technique.as_str())).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn each_protocol_becomes_a_job_of_its_own() {
        for (line, expected) in [
            ("198.18.0.1 -p 22,80", "syn 22,80"),
            ("198.18.0.1 -p 22,U:53,161,S:36412", "syn 22; udp 53,161; sctp 36412"),
            ("198.18.0.1 -p U:53", "udp 53"),
            ("198.18.0.1 -p 53 --technique udp", "udp 53"),
            ("198.18.0.1 -p 53 --technique connect,udp", "connect 53; udp 53"),
            ("198.18.0.1 -p 80,U:53 --technique ack", "ack 80; udp 53"),
            ("198.18.0.1 --top-ports 3", "syn 22,80,443"),
            ("198.18.0.1 --top-ports 1 --technique udp", "udp 53"),
        ] {
            assert_eq!(works(line), Ok(expected.to_owned()), "{line}");
        }
        for (line, reason) in [
            ("198.18.0.1 -p 80 --technique syn,ack", "two ways to ask tcp ports"),
            ("198.18.0.1 -p U:53 --technique syn", "no tcp port is named"),
            ("198.18.0.1 --top-ports 1000 --technique udp", "the list of common UDP ports has"),
            ("198.18.0.1 -p 80 --ask-fragile", "--services"),
        ] {
            let error = works(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[derive(Debug, Parser)]
    struct DiscoverLine {
        #[command(flatten)]
        discover: DiscoverArgs,
    }

    #[test]
    fn networks_that_nobody_can_sweep_are_discovered_as_links() {
        let requests = |line: &str| {
            let args = DiscoverLine::try_parse_from(std::iter::once("discover").chain(line.split_whitespace()));
            let shown = |request: &JobRequest| format!("{} {}", request.technique.as_str(), request.targets.join(" "));
            let requests = args.map_err(|error| error.to_string())?.discover.requests();
            assert!(requests.iter().all(|request| (request.technique == Technique::Link) == (request.mode == Some(Mode::Each))));
            Ok::<_, String>(requests.iter().map(shown).collect::<Vec<_>>().join("; "))
        };
        for (line, expected) in [
            ("198.18.0.0/24", "discover 198.18.0.0/24"),
            ("2001:db8:7::/64", "link 2001:db8:7::/64"),
            ("2001:db8::/108", "discover 2001:db8::/108"),
            ("2001:db8::/107", "link 2001:db8::/107"),
            ("198.18.0.0/8,2001:db8::/64 printer/64 printer/24", "discover 198.18.0.0/8 printer/24; link 2001:db8::/64 printer/64"),
            ("--link", "link "),
            ("--link 2001:db8::/120", "link 2001:db8::/120"),
            ("--host-probes echo 2001:db8::/96", "echo 2001:db8::/96"),
        ] {
            assert_eq!(requests(line).as_deref(), Ok(expected), "{line}");
        }
        assert!(requests("").unwrap_err().contains("TARGETS"));
        assert!(requests("--link --host-probes echo").unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn rates_of_both_kinds_are_told_apart() {
        let args = |text: &str| Line::try_parse_from(["scan", "198.18.0.1", "-p", "80", "--rate", text]);
        let work = args("500pps,20mbit,2kpps").unwrap().scan.work;
        assert_eq!((work.packets().unwrap().get(), work.bits().unwrap().get()), (500, 20_000_000));
        for (text, reason) in [("500", "`500` has no unit"), ("20m", "`20m` is not a rate"), ("20MB", "`20MB` is not a rate")] {
            assert!(args(text).unwrap_err().to_string().contains(reason), "{text}");
        }
    }
}
