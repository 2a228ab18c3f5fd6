//! `picket job`: list, show, watch and cancel.

use picket_wire::ids::JobId;
use picket_wire::job::{Mode, Technique};

use super::client::Query;
use super::failure::{Exit, Failure};
use super::follow::{Followed, OnInterrupt, follow};
use super::interrupt::Interrupts;
use super::progress::{Progress, Style};
use super::table::{Align, Columns, details};
use super::{Context, JsonArgs, format};
use crate::view::{JobState, JobView, Page};

/// `picket job ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum JobCommand {
    /// List jobs, the newest first
    #[command(after_help = "Example:\n  picket job list --state running,pending")]
    List(ListArgs),
    /// Show one job with the part of each probe
    #[command(after_help = "Example:\n  picket job show 65f0c1d200a4b7e1")]
    Show(JobArgs),
    /// Follow a job to its end; Ctrl-C leaves, the job goes on
    #[command(after_help = "Example:\n  picket job watch 65f0c1d200a4b7e1 && picket results --job 65f0c1d200a4b7e1")]
    Watch(WatchArgs),
    /// Ask a job to stop; what was found is kept
    #[command(after_help = "Example:\n  picket job cancel 65f0c1d200a4b7e1 --wait")]
    Cancel(CancelArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StateArg {
    Pending,
    Running,
    Cancelling,
    Done,
    Cancelled,
    Failed,
}

impl From<StateArg> for JobState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Pending => JobState::Pending,
            StateArg::Running => JobState::Running,
            StateArg::Cancelling => JobState::Cancelling,
            StateArg::Done => JobState::Done,
            StateArg::Cancelled => JobState::Cancelled,
            StateArg::Failed => JobState::Failed,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only jobs in these states
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATE")]
    state: Vec<StateArg>,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 50, value_name = "ROWS")]
    limit: usize,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    /// The job's id: 16 hexadecimal digits
    #[arg(value_name = "JOB")]
    id: JobId,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    job: JobArgs,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Wait until the probes have ended their part
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(command: JobCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    match command {
        JobCommand::List(args) => list(args, context).await,
        JobCommand::Show(args) => show(args, context).await,
        JobCommand::Watch(args) => watch(args, context).await,
        JobCommand::Cancel(args) => cancel(args, context).await,
    }
}

async fn list(args: ListArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut query: Query = Vec::new();
    if !args.state.is_empty() {
        let states: Vec<&str> = args.state.iter().map(|state| format::job_state((*state).into())).collect();
        query.push(("state", states.join(",")));
    }
    let mut jobs: Vec<JobView>;
    let mut more = false;
    if args.limit == 0 {
        jobs = client.all(&["jobs"], &query).await?;
    } else {
        query.push(("limit", args.limit.min(1000).to_string()));
        let page: Page<JobView> = client.get(&["jobs"], &query).await?;
        (jobs, more) = (page.items, page.next.is_some());
        jobs.truncate(args.limit);
    }
    if args.json.json {
        return context.json(&jobs).map(|()| Exit::Complete);
    }
    if jobs.is_empty() {
        return context.line("no jobs").map(|()| Exit::Complete);
    }
    context.line(table(&jobs))?;
    if more {
        context.note(format!("the newest {}; --limit 0 shows all", format::plural(jobs.len(), "job")));
    }
    Ok(Exit::Complete)
}

pub(super) fn table(jobs: &[JobView]) -> Columns {
    use Align::{Left, Right};
    let heading = [("JOB", Left), ("STATE", Left), ("DONE", Right), ("FOUND", Right), ("CREATED", Left), ("WHAT", Left), ("NAME", Left)];
    let mut columns = Columns::new(&heading);
    for job in jobs {
        columns.row([
            job.id.to_string(),
            format::job_state(job.state).to_owned(),
            format!("{}%", format::percent(job.coverage.asked, job.total)),
            format::count(job.coverage.up + job.coverage.open),
            format::moment(&job.created),
            what(job),
            job.name.clone().unwrap_or_default(),
        ]);
    }
    columns
}

fn what(job: &JobView) -> String {
    format!("{} {}", job.technique.as_str(), job.summary)
}

async fn show(args: JobArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let job = context.client()?.job(args.id, None).await?;
    if args.json.json {
        context.json(&job)?;
    } else {
        context.line(shown(&job))?;
    }
    Ok(Exit::Complete)
}

pub(super) fn shown(job: &JobView) -> String {
    use Align::{Left, Right};
    let optional = |value: &Option<String>| value.as_deref().map(format::moment).unwrap_or_default();
    let mode = match job.mode {
        Mode::Split => "split between the probes",
        Mode::Each => "each probe does all of it",
    };
    let left = job.seconds_left.filter(|_| job.state == JobState::Running).map(|left| format!(", {} left", format::seconds(left)));
    let mut text = details(&[
        ("job", job.id.to_string()),
        ("name", job.name.clone().unwrap_or_default()),
        ("what", what(job)),
        ("mode", mode.to_owned()),
        ("rate", job.asked_rate.as_ref().map(|rate| format!("{} asked of each probe", format::clean(rate))).unwrap_or_default()),
        ("state", format::job_state(job.state).to_owned()),
        ("reason", job.reason.clone().unwrap_or_default()),
        ("created", format::moment(&job.created)),
        ("started", optional(&job.started)),
        ("ended", optional(&job.ended)),
        (
            "progress",
            format!(
                "{}% of {} targets{}",
                format::percent(job.coverage.asked, job.total),
                format::count(job.total),
                left.unwrap_or_default()
            ),
        ),
        ("paths", if job.technique == Technique::Trace { format!("see picket paths --job {}", job.id) } else { String::new() }),
        ("hosts", if job.technique == Technique::Link { format!("see picket hosts --job {}", job.id) } else { String::new() }),
        ("packets", format::count(job.coverage.packets)),
        ("coverage", format::coverage(&job.coverage)),
    ]);
    if !job.probes.is_empty() {
        let heading = [
            ("PROBE", Left),
            ("ASKED", Right),
            ("ANSWERED", Right),
            ("SILENT", Right),
            ("PACKETS", Right),
            ("LEASES", Right),
            ("RATE", Left),
        ];
        let mut columns = Columns::new(&heading);
        for part in &job.probes {
            let c = &part.coverage;
            let numbers = [c.asked, c.answered(), c.silent, c.packets, part.leases.into()].map(format::count);
            let granted = format::clean(part.granted.as_ref().unwrap_or(&part.limit));
            let rate = if part.clipped { format!("{granted} (clipped)") } else { granted };
            columns.row([vec![part.probe.to_string()], numbers.to_vec(), vec![rate]].concat());
        }
        text.push_str(&format!("\n\n{columns}"));
    }
    text
}

async fn watch(args: WatchArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let job = client.job(args.job.id, None).await?;
    let style = match (args.quiet, context.err_is_terminal) {
        (true, _) => Style::Silent,
        (false, true) => Style::Bar,
        (false, false) => Style::Lines,
    };
    let followed = wait(&client, job, style, context).await?;
    ended(&followed, args.job.json.json, context)
}

async fn wait(client: &super::client::Client, job: JobView, style: Style, context: &mut Context<'_>) -> Result<Followed, Failure> {
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for Ctrl-C: {error}")))?;
    let progress = Progress::new(style, &job);
    follow(client, job, progress, OnInterrupt::Leave, &mut interrupts, context).await
}

fn ended(followed: &Followed, json: bool, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if json {
        context.json(followed.job())?;
    } else {
        context.line(shown(followed.job()))?;
    }
    Ok(followed.exit())
}

async fn cancel(args: CancelArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let job: JobView = client.post_empty(&["jobs", &args.job.id.to_string(), "cancel"]).await?;
    if args.wait {
        let followed = wait(&client, job, Style::Silent, context).await?;
        ended(&followed, args.job.json.json, context)?;
        return Ok(if followed.job().state.is_final() { Exit::Complete } else { Exit::Incomplete });
    }
    if args.job.json.json {
        context.json(&job)?;
    } else {
        context.line(format!("job {} is {}", job.id, format::job_state(job.state)))?;
    }
    Ok(Exit::Complete)
}
