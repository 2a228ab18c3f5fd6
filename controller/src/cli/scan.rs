//! `picket scan` and `picket discover`: submit, watch, print what was found.

use picket_wire::addr::parse_item;
use picket_wire::ids::{Label, ProbeId, SiteName};
use picket_wire::job::{MAX_ATTEMPTS, Mode, Priority, Selection, Technique};
use picket_wire::units::{PacketsPerSecond, PortSet};
use serde_json::json;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::follow::{Followed, OnInterrupt, follow};
use super::interrupt::Interrupts;
use super::progress::{Progress, Style};
use super::results::{self, Output, OutputArgs, Shape};
use super::{Context, format};
use crate::config::parse_duration;
use crate::view::{JobRequest, JobView, Plan, Submitted};

/// `picket scan` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct ScanArgs {
    /// Ports: 22,80,8000-8100; `-` for 1 to 65535
    #[arg(long, short, value_name = "PORTS", allow_hyphen_values = true)]
    ports: PortSet,
    #[command(flatten)]
    work: WorkArgs,
    /// What is sent: `syn` needs a raw socket on the probe, `connect` does not
    #[arg(long, value_enum, default_value_t = TcpTechnique::Syn)]
    technique: TcpTechnique,
    #[command(flatten)]
    output: OutputArgs,
}

/// `picket discover` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct DiscoverArgs {
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TcpTechnique {
    /// Half-open
    Syn,
    /// By the operating system
    Connect,
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

/// What every measurement takes.
#[derive(Debug, clap::Args)]
struct WorkArgs {
    /// Addresses, networks, ranges (198.18.0.1-50) and host names
    #[arg(required = true, value_name = "TARGETS", value_delimiter = ',', value_parser = target)]
    targets: Vec<String>,
    /// Targets to leave out, in the same forms; may be given several times
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = target)]
    exclude: Vec<String>,
    /// Packets per second for each probe, such as 500pps or 5kpps; the limit of its interface holds in any case
    #[arg(long, value_name = "RATE")]
    rate: Option<PacketsPerSecond>,
    /// How often a silent target is asked in all [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_ATTEMPTS)))]
    attempts: Option<u8>,
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

/// Addresses are checked here; whether a name exists is the controller's to say.
fn target(text: &str) -> Result<String, String> {
    let text = text.trim();
    match parse_item(text) {
        Err(error) if !is_host_name(text) => Err(error.to_string()),
        _ => Ok(text.to_owned()),
    }
}

/// Dots, digits and letters, and the last label is no number, so that a mistyped address is not taken for a name.
fn is_host_name(text: &str) -> bool {
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && last.bytes().any(|b| b.is_ascii_alphabetic())
}

fn deadline(text: &str) -> Result<u64, String> {
    match parse_duration(text)?.as_secs() {
        0 => Err(format!("`{text}` is too short: use at least 1s")),
        seconds => Ok(seconds),
    }
}

impl WorkArgs {
    fn request(&self, technique: Technique, ports: Option<&PortSet>) -> JobRequest {
        JobRequest {
            targets: self.targets.clone(),
            exclude: self.exclude.clone(),
            ports: ports.map(PortSet::to_string),
            technique,
            attempts: self.attempts,
            mode: Some(match self.mode {
                ModeArg::Split => Mode::Split,
                ModeArg::Each => Mode::Each,
            }),
            rate: self.rate.map(|rate| rate.to_string()),
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
    let technique = match args.technique {
        TcpTechnique::Syn => Technique::Syn,
        TcpTechnique::Connect => Technique::Connect,
    };
    let request = args.work.request(technique, Some(&args.ports));
    measure(&request, &args.work, &args.output, context).await
}

pub(super) async fn discover(args: DiscoverArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let request = args.work.request(Technique::Echo, None);
    measure(&request, &args.work, &args.output, context).await
}

async fn measure(request: &JobRequest, work: &WorkArgs, output: &OutputArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    // From the submission on, Ctrl-C is about the job.
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for Ctrl-C: {error}")))?;
    let submitted = tokio::select! {
        submitted = submit(&client, request) => submitted?,
        () = interrupts.next() => return Err(Failure::new(Exit::Incomplete, "left before the controller had answered").hint("see `picket job list`")),
    };
    let Some(job) = submitted.job.clone() else {
        return dry_run(&submitted, output, context);
    };
    if work.detach {
        return detached(&submitted, &job, output, context);
    }
    let style = work.style(context.err_is_terminal);
    if style != Style::Silent {
        announce(&job, &submitted.plan, context);
    }
    let followed = follow(&client, job.clone(), Progress::new(style, &job), OnInterrupt::Cancel, &mut interrupts, context).await?;
    tokio::select! {
        printed = report(&client, &followed, &submitted.plan, work.rate, output, context) => printed?,
        () = interrupts.next() => {}
    }
    Ok(followed.exit())
}

/// Submits under a key of its own, so that a lost answer does not make two jobs.
async fn submit(client: &Client, request: &JobRequest) -> Result<Submitted, Failure> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| Failure::new(Exit::Failure, format!("the system gave no random bytes: {error}")))?;
    client.post_once(&["jobs"], request, &hex::encode(key)).await
}

fn dry_run(submitted: &Submitted, output: &OutputArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if output.json {
        context.json(submitted)?;
    } else {
        for line in format::plan(&submitted.plan) {
            context.line(line)?;
        }
    }
    Ok(Exit::Complete)
}

fn detached(submitted: &Submitted, job: &JobView, output: &OutputArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if output.json {
        context.json(submitted)?;
    } else {
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
    rate: Option<PacketsPerSecond>,
    output: &OutputArgs,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let job = followed.job();
    let query = vec![("job", job.id.to_string())];
    if output.json {
        let (job, plan) = (json!(job), json!(plan));
        write!(context.out, "{{\"job\":{job},\"plan\":{plan},\"results\":").map_err(Failure::output)?;
        results::json(client, query, output, context).await?;
        return context.line("}");
    }
    let shape = Shape { jobs: false, again: format!("picket results --job {}", job.id) };
    results::print(client, query, output, &shape, context).await?;
    let mut lines = vec![format::coverage(&job.coverage)];
    lines.extend(ending(followed));
    lines.extend(clipped(rate, job));
    for line in lines {
        match output.output {
            Output::Table => context.line(line)?,
            _ => context.note(line),
        }
    }
    Ok(())
}

/// Which probes could not go as fast as they were asked to.
fn clipped(rate: Option<PacketsPerSecond>, job: &JobView) -> Option<String> {
    let rate = rate?;
    let slower: Vec<String> = job
        .probes
        .iter()
        .filter(|part| part.limit.parse::<PacketsPerSecond>().is_ok_and(|limit| limit < rate))
        .map(|part| format!("{} at most {}", part.probe, part.limit))
        .collect();
    (!slower.is_empty()).then(|| format!("slower than the {rate} asked for: {}", slower.join(", ")))
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
