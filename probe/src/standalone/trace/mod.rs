//! `picket-probe trace`: the way that packets take, for the technician on site.
//!
//! **Invariant:** every destination is told once, also of a run that was interrupted.

mod output;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use picket_wire::addr::AddrSet;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::Method;
use serde_json::json;
use tokio::sync::mpsc;

use self::output::Printer;
use super::Outcome;
use super::engines::random;
use super::error::{StandaloneError, system};
use super::prepare::{self, Work};
use super::progress::{ProgressLine, Standing};
use super::rates::{self, RateArg};
use super::signals::Signals;
use super::targets::{self, Names};
use crate::logging;
use crate::net::clock;
use crate::net::drive::{DriveEvent, DriveGone, TaskSpec, Weight};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::station::Station;
use crate::trace::engine;
use crate::trace::report::{Event, Summary};
use crate::trace::spec::{DEFAULT_CONFIDENCE, DEFAULT_GAP, DEFAULT_MAX_TTL, TracePlan, Ways};

/// Events that wait for the terminal before sending pauses.
const EVENTS: usize = 256;
/// Graphs at a time where nobody says how many: each may remember thousands of packets.
const GRAPHS: usize = 64;
/// How often the line on the progress changes.
const TICK: core::time::Duration = core::time::Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  picket-probe trace 198.51.100.7
  picket-probe trace www.example.org --method tcp --port 443
  picket-probe trace 10.0.0.0/24 -q 1 -o ndjson
  picket-probe trace www.example.org --multipath --confidence 99

Each line is a hop: its address, the round trip of each probe, and what it said beside that: MPLS labels, a changed
TTL or mark, the code of an ICMP error (!N network, !H host, !P protocol, !F too large, !X prohibited, !13 and so on).
All probes of a path are of one flow, so that routers that spread load show one of their ways; --flow takes another,
and --multipath looks for all of them: nodes with the flows that lead there, and the nodes that follow.

The site's limits and policy apply, see `picket-probe scan --help`. Addresses are never looked up as names.

Exit status: 0 every destination was dealt with, 1 failure, 2 wrong usage, 3 interrupted.";

/// How paths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PathOutput {
    /// For people: a line for each hop.
    Table,
    /// For programs: one JSON object per path, then the sums.
    Ndjson,
}

/// How all ways are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// As many flows as each distance asks for, more where links are meshed or uneven.
    Lite,
    /// As many flows as each node asks for.
    Full,
}

/// Shows which way packets take.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = EXAMPLES)]
pub struct TraceArgs {
    /// Addresses, networks, ranges or names; - for standard input
    #[arg(value_name = "TARGETS")]
    pub targets: Vec<String>,
    /// More targets from a file, one or several on a line, # for comments; - for standard input
    #[arg(long, value_name = "FILE")]
    pub input_file: Vec<PathBuf>,
    /// Targets to leave out, in the same forms
    #[arg(long, value_name = "TARGETS")]
    pub exclude: Vec<String>,
    /// What is sent: icmp, udp or tcp [default: icmp; udp with --multipath, since many routers take echo requests for one flow]
    #[arg(short, long)]
    pub method: Option<Method>,
    /// Port that is asked [default: 33434 for udp, 80 for tcp]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Probes for each hop that answers [default: 3; 1 for more than 16 destinations]
    #[arg(short, long, value_name = "N")]
    pub queries: Option<u8>,
    /// The first hop that is asked
    #[arg(short, long, value_name = "TTL", default_value_t = 1)]
    pub first_hop: u8,
    /// The last hop that is asked
    #[arg(long, value_name = "TTL", default_value_t = DEFAULT_MAX_TTL)]
    pub max_hops: u8,
    /// Silent hops in a row that end a path
    #[arg(short, long, value_name = "N", default_value_t = DEFAULT_GAP)]
    pub gap: u8,
    /// How many hops are asked at once at the start [default: 16; 5 for more than 16 destinations]
    #[arg(short, long, value_name = "N")]
    pub window: Option<u8>,
    /// Paths at a time [default: 1024; 64 with --multipath]
    #[arg(long, value_name = "N")]
    pub paths: Option<usize>,
    /// Look for all ways between which load is spread by flow [default form: lite]
    #[arg(long, value_name = "FORM", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "lite", conflicts_with = "queries")]
    pub multipath: Option<Form>,
    /// How sure to be that no node has a further successor, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = DEFAULT_CONFIDENCE, requires = "multipath")]
    pub confidence: u8,
    /// Another flow: the number is added to the source port
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub flow: u16,
    /// Type of service or traffic class of the probes: DSCP times four
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    pub tos: u8,
    /// Bytes behind the ICMP or UDP header
    #[arg(long, value_name = "BYTES")]
    pub payload: Option<usize>,
    /// Packets or bits per second with the unit, such as 500pps, 5kpps or 20mbit; never above the interface's limit
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    pub rate: Vec<RateArg>,
    /// Interface to send on [default: the configured one, else that of the route to the first target]
    #[arg(short, long, value_name = "IF")]
    pub interface: Option<String>,
    /// How paths are written
    #[arg(short, long, value_enum, default_value_t = PathOutput::Table)]
    pub output: PathOutput,
    /// Say what would be done, and send nothing. Names are resolved
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// Configuration with the site's limits and policy [default: /etc/picket/probe.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl TraceArgs {
    /// The destinations, and which of them came from names.
    fn destinations(&self) -> Result<(TargetSpec, Names), StandaloneError> {
        let named = targets::targets(&self.targets, &self.input_file)?;
        if named.set.is_empty() {
            return Err(StandaloneError::NoDestination);
        }
        let exclude = targets::targets(&self.exclude, &[])?.set;
        let seed = u64::from_le_bytes(random()?);
        Ok((TargetSpec { include: named.set, exclude, ports: None, seed }, named.names))
    }

    fn plan(&self, space: Arc<TargetSpace>) -> Result<TracePlan, StandaloneError> {
        let len = space.len();
        let usual = if self.multipath.is_some() { Method::Udp } else { Method::Icmp };
        let plan = TracePlan::new(space, 0, len, self.method.unwrap_or(usual))?;
        let plan = TracePlan {
            port: self.port.unwrap_or(plan.port),
            first_ttl: self.first_hop,
            max_ttl: self.max_hops,
            queries: self.queries.unwrap_or(plan.queries),
            gap: self.gap,
            window: self.window.unwrap_or(plan.window),
            paths: self.paths.unwrap_or(if self.multipath.is_some() { GRAPHS } else { plan.paths }),
            multipath: self.multipath.map(|form| Ways::new(form == Form::Lite, self.confidence)).transpose()?,
            tos: self.tos,
            payload: self.payload.unwrap_or(plan.payload),
            flow: self.flow,
            ..plan
        };
        Ok(plan.checked()?)
    }
}

/// `picket-probe trace`.
///
/// # Errors
/// See [`StandaloneError`].
pub fn trace(args: &TraceArgs) -> Result<Outcome, StandaloneError> {
    let config = prepare::configuration(args.config.as_deref(), args.interface.as_deref())?;
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    let (spec, names) = args.destinations()?;
    prepare::announce_names(&names, &config.policy);
    let wanted = spec.include.minus(&spec.exclude);
    let plan = args.plan(Arc::new(TargetSpace::new(&spec)?))?;
    let work = prepare::work(config, &wanted, rates::limits(&args.rate))?;
    if args.dry_run {
        return dry_run(args, &plan, &work, &wanted).map_err(system("write the plan"));
    }
    let _lock = prepare::lock()?;
    let (sink, events) = mpsc::channel(EVENTS);
    let station = Station::open(&work.config.interface, SourcePorts::default(), sink)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let signals = Signals::new().map_err(system("listen for signals"))?;
    let printer = Printer::new(args.output, plan.clone(), names);
    runtime.block_on(run(station, events, plan, work, printer, signals))
}

async fn run(
    station: Station<Event>,
    mut events: mpsc::Receiver<DriveEvent<Event>>,
    plan: TracePlan,
    work: Work,
    mut printer: Printer<io::Stdout>,
    mut signals: Signals,
) -> Result<Outcome, StandaloneError> {
    let ports = station.ports();
    let identity = RawIdentity { source: station.source(), base_port: ports.first(), ports, key: random()? };
    let started = clock::now();
    let (total, mut line) = (plan.to - plan.from, ProgressLine::new(started, None));
    let permit = work.permit;
    let task = TaskSpec {
        name: "trace".to_owned(),
        engine: engine::trace(plan, identity)?,
        weight: Weight::Interactive,
        rate: work.granted,
        targets: None,
        gate: Arc::new(move |addr| permit.permits(addr)),
    };
    let added = station.handle().add(task)?;
    let mut tick = tokio::time::interval(TICK);
    let (mut outcome, mut done, mut sums) = (Outcome::Complete, 0, Summary::default());
    loop {
        let event = tokio::select! {
            event = events.recv() => event.ok_or(DriveGone)?,
            () = signals.next(), if outcome == Outcome::Complete => {
                line.clear();
                eprintln!("stopping");
                outcome = Outcome::Incomplete;
                station.handle().cancel(added.id)?;
                continue;
            }
            _ = tick.tick() => {
                let standing = || {
                    let packets = station.handle().stats().sent_packets;
                    Standing { stage: "paths", total, begun: done, packets, answers: sums.reached, slow: Vec::new() }
                };
                line.show(clock::now(), standing);
                continue;
            }
        };
        match event {
            DriveEvent::Task(_, Event::Path { path, .. }) => {
                done += 1;
                line.clear();
                printer.path(&path).map_err(system("write results"))?;
            }
            DriveEvent::Task(_, Event::Graph { graph, .. }) => {
                done += 1;
                line.clear();
                printer.graph(&graph).map_err(system("write results"))?;
            }
            DriveEvent::Task(_, Event::Done(summary)) => {
                sums = summary;
                if outcome == Outcome::Complete {
                    station.handle().cancel(added.id)?;
                }
            }
            DriveEvent::Ended(id, _) if id == added.id => break,
            _ => {}
        }
    }
    line.clear();
    printer.end(outcome, &sums, clock::now().saturating_since(started)).map_err(system("write results"))?;
    Ok(outcome)
}

/// Says what would be done.
fn dry_run(args: &TraceArgs, plan: &TracePlan, work: &Work, wanted: &AddrSet) -> io::Result<Outcome> {
    let permitted = work.config.policy.permitted(wanted).len().unwrap_or(u128::MAX);
    let hops = u128::from(plan.max_ttl - plan.first_ttl + 1);
    let each = plan.multipath.as_ref().map_or(plan.queries.max(2).into(), Ways::most_packets);
    let most = permitted.saturating_mul(hops).saturating_mul(each.into());
    let interface = work.config.interface.name.as_deref().unwrap_or_default();
    let rate = work.granted.packets.map_or_else(|| "no limit".to_owned(), |rate| rate.to_string());
    let mut out = io::stdout();
    if args.json {
        let refused: Vec<_> = prepare::refusals(&work.config.policy, wanted)
            .iter()
            .map(|refusal| json!({ "addresses": prepare::count(&refusal.set), "verdict": refusal.verdict.to_string() }))
            .collect();
        let object = json!({
            "destinations": prepare::count(wanted), "permitted": permitted.to_string(), "refused": refused, "method": plan.method.as_str(),
            "packets_at_most": most.to_string(), "interface": interface, "rate": rate,
        });
        writeln!(out, "{object:#}")?;
    } else {
        writeln!(out, "destinations  {}, of which policy permits {permitted}", prepare::count(wanted))?;
        for refusal in prepare::refusals(&work.config.policy, wanted) {
            writeln!(out, "refused       {} addresses: {}", prepare::count(&refusal.set), refusal.verdict)?;
        }
        let each = match &plan.multipath {
            None => format!("{} probes for each hop that answers", plan.queries),
            Some(ways) => format!("all ways, {} % sure of each node's successors", ways.confidence()),
        };
        writeln!(out, "method        {}, hops {} to {}, {each}", plan.method, plan.first_ttl, plan.max_ttl)?;
        writeln!(out, "packets       {most} at most; a path ends where the destination answers, or {} hops in a row are silent", plan.gap)?;
        writeln!(out, "interface     {interface}, at {rate}")?;
        writeln!(out, "nothing was sent")?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}
