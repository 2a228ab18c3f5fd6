//! `picket-probe trace`: the way that packets take, for the technician on site.
//!
//! Arguments and plans are made here; `run` drives an engine, `continuous` one after the other; `output` writes.

mod continuous;
mod output;
mod run;
mod screen;

use core::time::Duration;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgGroup, Args, ValueEnum};
use picket_wire::addr::AddrSet;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::Method;
use picket_wire::units::parse_duration;
use serde_json::json;
use tokio::sync::mpsc;

use self::continuous::Watch;
use self::output::{Head, PathOutput, Printer};
use self::run::Run;
use self::screen::Screen;
use super::Outcome;
use super::engines::random;
use super::error::{StandaloneError, system};
use super::output::file::{OutputFile, chosen};
use super::prepare::{self, Work};
use super::rates::{self, RateArg};
use super::signals::Signals;
use super::targets::{self, Names};
use crate::logging;
use crate::net::clock;
use crate::net::ports::SourcePorts;
use crate::station::Station;
use crate::trace::spec::{DEFAULT_CONFIDENCE, DEFAULT_GAP, DEFAULT_MAX_TTL, GRAPHS, TracePlan, Ways};

/// Events that wait for the terminal before sending pauses.
const EVENTS: usize = 256;
/// Destinations that can be traced again and again: statistics are kept of each.
const DESTINATIONS_MAX: u64 = 1_024;
/// From one cycle to the next where nobody says how long, and the bounds of it.
const EVERY: Duration = Duration::from_secs(1);
const EVERY_MIN: Duration = Duration::from_millis(100);
const EVERY_MAX: Duration = Duration::from_secs(86_400);
/// Cycles of a report where nobody says how many, as of mtr.
const REPORT_CYCLES: u64 = 10;

const EXAMPLES: &str = "\
Examples:
  picket-probe trace 198.51.100.7
  picket-probe trace www.example.org --method tcp --port 443
  picket-probe trace 10.0.0.0/24 -q 1 -o ndjson
  picket-probe trace www.example.org --multipath --confidence 99
  picket-probe trace www.example.org --continuous
  picket-probe trace 198.51.100.7 --report --cycles 60 --every 500ms
  picket-probe trace 10.0.0.0/24 -o atlas --output-file nmap-xml=paths.xml

Each line is a hop: its address, the round trip of each probe, and what it said beside that: MPLS labels, a changed
TTL or mark, the code of an ICMP error (!N network, !H host, !P protocol, !F too large, !X prohibited, !13 and so on).
All probes of a path are of one flow, so that routers that spread load show one of their ways; --flow takes another,
and --multipath looks for all of them: nodes with the flows that lead there, and the nodes that follow.

--continuous shows for each hop its addresses, the packets that were lost, and last, mean, shortest and longest round
trip in milliseconds with the standard deviation. In a terminal the table is redrawn; otherwise it comes at the end.

The site's limits and policy apply, see `picket-probe scan --help`. Addresses are never looked up as names.

Exit status: 0 every destination was dealt with, 1 failure, 2 wrong usage, 3 interrupted (0 where nothing else ends it).";

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
#[command(after_help = EXAMPLES, group(ArgGroup::new("repeated").multiple(true).args(["continuous", "report"])))]
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
    /// Probes for each hop that answers [default: 3; 1 for more than 16 destinations, and in each cycle of --continuous]
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
    /// How many hops are asked at once at the start [default: 16; 1 for more than 16 destinations]
    #[arg(short, long, value_name = "N")]
    pub window: Option<u8>,
    /// Ask every hop of every path. More than 16 destinations, asked once each, otherwise take the first hops from each other where they
    /// meet (but for -o atlas): those are written as known from another path
    #[arg(long)]
    pub all_hops: bool,
    /// Paths at a time [default: 1024; 64 with --multipath]
    #[arg(long, value_name = "N")]
    pub paths: Option<usize>,
    /// Look for all ways between which load is spread by flow [default form: lite]
    #[arg(long, value_name = "FORM", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "lite", conflicts_with = "queries")]
    pub multipath: Option<Form>,
    /// How sure to be that no node has a further successor, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = DEFAULT_CONFIDENCE, requires = "multipath")]
    pub confidence: u8,
    /// Trace again and again, and show each hop's loss and round trips as mtr does; Ctrl-C ends it
    #[arg(long, conflicts_with = "multipath")]
    pub continuous: bool,
    /// The same, but say nothing before the end
    #[arg(long, conflicts_with = "multipath")]
    pub report: bool,
    /// How often, such as 500ms, 5s or 1m; a cycle that takes longer delays the next one [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = every, requires = "repeated")]
    pub every: Option<Duration>,
    /// How many times [default: for ever; 10 with --report]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "repeated")]
    pub cycles: Option<u64>,
    /// Another flow: the number is added to the source port
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub flow: u16,
    /// Type of service or traffic class of the probes: DSCP times four
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    pub tos: u8,
    /// Bytes behind the ICMP or UDP header
    #[arg(long, value_name = "BYTES")]
    pub payload: Option<usize>,
    /// Find the largest packet that arrives unbroken (path MTU), up to so many bytes [default: 1500], and who says that larger ones are too
    /// large. By icmp the answer must find its way back as large; by udp it is short
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "1500", conflicts_with_all = ["multipath", "repeated"])]
    pub mtu: Option<u16>,
    /// Packets or bits per second with the unit, such as 500pps, 5kpps or 20mbit; never above the interface's limit
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    pub rate: Vec<RateArg>,
    /// Interface to send on [default: the configured one, else that of the route to the first target]
    #[arg(short, long, value_name = "IF")]
    pub interface: Option<String>,
    /// How paths are written to standard output [default: table]
    #[arg(short, long, value_enum)]
    pub output: Option<PathOutput>,
    /// Paths into a file as well, such as atlas=paths.json or nmap-xml=paths.xml; may be repeated
    #[arg(long, value_name = "FORMAT=FILE")]
    pub output_file: Vec<OutputFile<PathOutput>>,
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

    /// Whether every destination is traced many times.
    fn goes_on(&self) -> bool {
        self.continuous || self.report
    }

    /// Whether readers will take every hop for measured.
    fn tells_atlas(&self) -> bool {
        let formats = self.output.iter().chain(self.output_file.iter().map(|file| &file.format));
        formats.into_iter().any(|format| *format == PathOutput::Atlas)
    }

    /// From one cycle to the next.
    fn interval(&self) -> Duration {
        self.every.unwrap_or(EVERY)
    }

    /// Where paths go, and how.
    fn outputs(&self) -> Result<Vec<OutputFile<PathOutput>>, StandaloneError> {
        let outputs = chosen(self.output, PathOutput::Table, &self.output_file)?;
        for OutputFile { format, .. } in &outputs {
            if self.multipath.is_some() && !format.draws_graphs() {
                return Err(StandaloneError::GraphOutput(name_of(*format)));
            }
            if self.goes_on() && !format.goes_on() {
                return Err(StandaloneError::ContinuousOutput(name_of(*format)));
            }
        }
        Ok(outputs)
    }

    fn plan(&self, space: Arc<TargetSpace>) -> Result<TracePlan, StandaloneError> {
        let len = space.len();
        if self.goes_on() && len > DESTINATIONS_MAX {
            return Err(StandaloneError::ContinuousTargets(len, DESTINATIONS_MAX));
        }
        let usual = if self.multipath.is_some() { Method::Udp } else { Method::Icmp };
        let plan = TracePlan::new(space, 0, len, self.method.unwrap_or(usual))?;
        let plan = TracePlan {
            port: self.port.unwrap_or(plan.port),
            first_ttl: self.first_hop,
            max_ttl: self.max_hops,
            queries: self.queries.unwrap_or(if self.goes_on() { 1 } else { plan.queries }),
            gap: self.gap,
            // Cycles after the first one know how far to ask.
            window: self.window.unwrap_or(if self.goes_on() { plan.window.max(DEFAULT_GAP) } else { plan.window }),
            shared: plan.shared && !self.all_hops && !self.goes_on() && !self.tells_atlas(),
            paths: self.paths.unwrap_or(if self.multipath.is_some() { GRAPHS } else { plan.paths }),
            multipath: self.multipath.map(|form| Ways::new(form == Form::Lite, self.confidence)).transpose()?,
            tos: self.tos,
            payload: self.payload.unwrap_or(plan.payload),
            flow: self.flow,
            mtu: self.mtu,
            retry: !self.goes_on(),
            ..plan
        };
        Ok(plan.checked()?)
    }
}

fn every(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text).map_err(|error| error.to_string())?;
    let fits = (EVERY_MIN..=EVERY_MAX).contains(&every);
    fits.then_some(every).ok_or_else(|| format!("`{text}` is out of range: from 100ms to 1d"))
}

/// As it is typed.
fn name_of(format: PathOutput) -> String {
    format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// `picket-probe trace`.
///
/// # Errors
/// See [`StandaloneError`].
pub fn trace(args: &TraceArgs) -> Result<Outcome, StandaloneError> {
    let config = prepare::configuration(args.config.as_deref(), args.interface.as_deref())?;
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    let outputs = args.outputs()?;
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let head = Head {
        plan: plan.clone(),
        names,
        source: station.source(),
        arguments: format!("picket-probe {}", arguments.join(" ")),
        started: clock::wall(),
        sums_only: args.report,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let signals = Signals::new().map_err(system("listen for signals"))?;
    let printer = Printer::open(head, &outputs)?;
    let run = Run { station, events, work, signals, stopping: false };
    if !args.goes_on() {
        return runtime.block_on(run.once(plan, printer));
    }
    let table = outputs.iter().any(|output| output.format == PathOutput::Table && output.path.as_os_str() == "-");
    let screen = (table && !args.report && plan.to - plan.from == 1).then(Screen::new).flatten();
    let cycles = args.cycles.or(args.report.then_some(REPORT_CYCLES));
    runtime.block_on(run.again(Watch::new(plan, printer, screen), args.interval(), cycles))
}

/// Says what would be done.
fn dry_run(args: &TraceArgs, plan: &TracePlan, work: &Work, wanted: &AddrSet) -> io::Result<Outcome> {
    let permitted = work.config.policy.permitted(wanted).len().unwrap_or(u128::MAX);
    let hops = u128::from(plan.max_ttl - plan.first_ttl + 1);
    let each = plan.multipath.as_ref().map_or(plan.attempts().into(), Ways::most_packets);
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
            None if args.goes_on() => format!("{} probes for each hop in each cycle, a cycle every {:?}", plan.queries, args.interval()),
            None => format!("{} probes for each hop that answers", plan.queries),
            Some(ways) => format!("all ways, {} % sure of each node's successors", ways.confidence()),
        };
        writeln!(out, "method        {}, hops {} to {}, {each}", plan.method, plan.first_ttl, plan.max_ttl)?;
        let per_cycle = if args.goes_on() { " in each cycle" } else { "" };
        writeln!(
            out,
            "packets       {most} at most{per_cycle}; a path ends where the destination answers, or {} hops in a row are silent",
            plan.gap
        )?;
        writeln!(out, "interface     {interface}, at {rate}")?;
        writeln!(out, "nothing was sent")?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}
