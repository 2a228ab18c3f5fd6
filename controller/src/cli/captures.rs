//! `picket capture`: have a probe capture, with the file written here while it grows, or its packets shown in lines; `picket captures`: what was captured.
//!
//! The file is downloaded from where it broke off as often as it takes, and in the end its digest is compared with the probe's.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use picket_packet::line::LINES_DEFAULT;
use picket_wire::capture::{BYTES_LEAST, BYTES_MAX, SECONDS_MAX, SNAP_LEAST, WHOLE};
use picket_wire::ids::{JobId, Label, LeaseId, ProbeId, SiteName};
use picket_wire::job::{Mode, Selection, Technique};
use picket_wire::units::{UnixMillis, parse_bytes, parse_duration};
use picket_wire::when::{self, Near, moment};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tz::TimeZone;

use super::client::{Client, Query};
use super::failure::{Exit, Failure};
use super::format::{self, count, plural};
use super::interrupt::Interrupts;
use super::lines::Lines;
use super::table::{Align, Columns, details};
use super::{Context, scan};
use crate::clock::rfc3339;
use crate::view::{CaptureRequest, CaptureState, CaptureView, JobRequest, JobView, Page, RingRequest};

/// How often it is asked whether a capture has begun.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a controller that went away is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to reach it again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// `picket capture` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct CaptureArgs {
    /// Which packets, as in pcap-filter(7) [default: all]
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// The probe that captures; several, each with a file of its own, only with --detach
    #[arg(long = "probe", value_name = "PROBE", value_delimiter = ',', required_unless_present_any = ["sites", "labels"], help_heading = "Which probes")]
    probes: Vec<ProbeId>,
    /// All probes in this site; may be given several times
    #[arg(long = "site", value_name = "SITE", value_delimiter = ',', requires = "detached", help_heading = "Which probes")]
    sites: Vec<SiteName>,
    /// All probes with this label; several must all be there
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',', requires = "detached", help_heading = "Which probes")]
    labels: Vec<Label>,
    /// Interface of the probe, or `any` [default: the one that it measures on]
    #[arg(short, long, value_name = "IF")]
    interface: Option<String>,
    /// Where the file is written while it grows: a path, or - for standard output [default: nowhere; packets are shown in lines]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Show so many packets per second at most, one line each, beside a file, too [default: 100 without --write]; others are counted
    #[arg(long, value_name = "N", conflicts_with = "detached")]
    lines: Option<u32>,
    /// Bytes of each packet that are kept [default: 128, which holds the headers]; more needs leave from both sides' policies
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(i64::from(SNAP_LEAST)..=i64::from(WHOLE)))]
    snap_length: Option<u32>,
    /// Keep packets as a whole
    #[arg(long, conflicts_with = "snap_length")]
    full: bool,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
    /// End before the file has more bytes [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    /// End after this time, such as 90s or 10m [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<u32>,
    /// See only what is sent to the probe, to groups and to all
    #[arg(long)]
    no_promiscuous: bool,
    /// Capture the probe's own measurements and its connection to the controller as well
    #[arg(long)]
    with_own: bool,
    /// A few words for people
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    #[command(flatten)]
    ring: RingArgs,
    #[command(flatten)]
    detached: Detached,
    /// Print the answer of the API, and in the end the capture, as JSON; where packets are shown, each is an object on a line
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but failures
    #[arg(long, short)]
    quiet: bool,
}

/// What is asked of a ring.
#[derive(Debug, clap::Args)]
struct RingArgs {
    /// Have the probe's ring asked for what it has captured before, instead of capturing
    #[arg(long, conflicts_with_all = ["interface", "packets", "time", "no_promiscuous", "with_own"], help_heading = "From the ring")]
    ring: bool,
    /// Not before this time: 02:10 (the last such time, local), '2026-11-22 02:10:30', RFC 3339, -5m
    #[arg(long, value_name = "TIME", requires = "ring", allow_hyphen_values = true, help_heading = "From the ring")]
    from: Option<String>,
    /// Before this time; a time of day is the first such time after --from
    #[arg(long, value_name = "TIME", requires = "ring", allow_hyphen_values = true, help_heading = "From the ring")]
    to: Option<String>,
    /// Source or destination; may be given several times, one of which it must be
    #[arg(long = "host", value_name = "ADDR", requires = "ring", value_delimiter = ',', help_heading = "From the ring")]
    hosts: Vec<IpAddr>,
    /// Source or destination port; may be given several times, one of which it must be
    #[arg(long = "port", value_name = "PORT", requires = "ring", value_delimiter = ',', help_heading = "From the ring")]
    ports: Vec<u16>,
}

impl RingArgs {
    /// The question; `now` is in nanoseconds since 1970.
    fn question(&self, now: u64, zone: &TimeZone) -> Result<Option<RingRequest>, Failure> {
        if !self.ring {
            return Ok(None);
        }
        let read =
            |text: &Option<String>, near| text.as_deref().map(|text| moment(text, now, zone, near)).transpose().map_err(Failure::usage);
        let from = read(&self.from, Near::Last)?;
        let to = read(&self.to, Near::From(from.unwrap_or(0)))?;
        if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            let (from, to) = (when::shown(from, zone), when::shown(to, zone));
            return Err(Failure::usage(format!("no time lies between --from {from} and --to {to}")));
        }
        // Milliseconds that hold what was typed.
        let text = |nanos: u64| rfc3339(UnixMillis(nanos / 1_000_000));
        let past = |nanos: u64| rfc3339(UnixMillis(nanos.div_ceil(1_000_000)));
        Ok(Some(RingRequest { from: from.map(text), to: to.map(past), hosts: self.hosts.clone(), ports: self.ports.clone() }))
    }
}

/// Nothing is followed.
#[derive(Debug, clap::Args)]
#[group(id = "detached", multiple = true, required = false)]
struct Detached {
    /// Show what would be captured; capture nothing
    #[arg(long)]
    dry_run: bool,
    /// Submit and leave; print the job's id. The file is fetched by `picket captures get`
    #[arg(long, conflicts_with_all = ["dry_run", "write"])]
    detach: bool,
}

/// `64MiB`, `500k`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).filter(|bytes| (BYTES_LEAST..=BYTES_MAX).contains(bytes));
    bytes.ok_or_else(|| format!("`{text}` is no size of a file from {BYTES_LEAST} bytes to 1 TiB: write for example 500kB, 100MB or 1GiB"))
}

pub(super) fn time(text: &str) -> Result<u32, String> {
    let seconds = parse_duration(text).map_err(|reason| reason.to_string())?.as_secs();
    let within = u32::try_from(seconds).ok().filter(|seconds| (1..=SECONDS_MAX).contains(seconds));
    within.ok_or_else(|| format!("`{text}` is not possible: a capture lasts 1s to a week"))
}

impl CaptureArgs {
    /// Whether nobody waits for the file here.
    fn leaves(&self) -> bool {
        self.detached.dry_run || self.detached.detach
    }

    /// Lines per second, where packets are shown.
    fn lines(&self) -> Option<u32> {
        self.lines.or_else(|| self.write.is_none().then_some(LINES_DEFAULT))
    }

    fn request(&self, now: u64, zone: &TimeZone) -> Result<JobRequest, Failure> {
        let filter = self.filter.join(" ");
        let capture = CaptureRequest {
            ring: self.ring.question(now, zone)?,
            interface: self.interface.clone(),
            filter: (!filter.is_empty()).then_some(filter),
            snap_length: if self.full { Some(WHOLE) } else { self.snap_length },
            no_promiscuous: self.no_promiscuous,
            with_own: self.with_own,
            packets: self.packets,
            bytes: self.bytes,
            seconds: self.time,
        };
        let select = Selection { probes: self.probes.clone(), sites: self.sites.clone(), labels: self.labels.clone(), count: None };
        Ok(JobRequest { name: self.name.clone(), dry_run: self.detached.dry_run, ..job_request(capture, select) })
    }
}

/// A job that captures, at all of the probes that are selected.
pub(super) fn job_request(capture: CaptureRequest, select: Selection) -> JobRequest {
    JobRequest {
        targets: Vec::new(),
        exclude: Vec::new(),
        ports: None,
        technique: Technique::Capture,
        attempts: None,
        mode: Some(Mode::Each),
        rate: None,
        bit_rate: None,
        per_address: None,
        per_network: None,
        host_probes: Vec::new(),
        services: None,
        trace: None,
        capture: Some(capture),
        priority: None,
        select,
        deadline_seconds: None,
        name: None,
        dry_run: false,
    }
}

pub(super) async fn capture(args: CaptureArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if args.probes.len() > 1 && !args.leaves() {
        return Err(Failure::usage("several probes cannot write one file: name one, or use --detach and `picket captures get`"));
    }
    if args.lines.is_some() && args.write.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage("lines and the file cannot both go to standard output: write the file to a path"));
    }
    let zone = TimeZone::local().unwrap_or_else(|_| TimeZone::utc());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let request = args.request(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), &zone)?;
    let client = context.client()?;
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for Ctrl-C: {error}")))?;
    // A file that cannot be made is said before anybody captures for it.
    let sink = (!args.leaves()).then(|| Sink::open(args.write.as_deref(), args.lines(), args.json)).transpose()?;
    let submitted = tokio::select! {
        submitted = scan::submit(&client, &request) => submitted?,
        () = interrupts.next() => return Err(Failure::new(Exit::Incomplete, "left before the controller had answered").hint("see `picket job list`")),
    };
    let Some(job) = submitted.job.clone() else {
        match args.json {
            true => context.json(&submitted)?,
            false => context.line(submitted.plan.capture.as_deref().unwrap_or_default())?,
        }
        let probes: Vec<&str> = submitted.plan.probes.iter().map(ProbeId::as_str).collect();
        context.note(format!("probes that would capture: {}", if probes.is_empty() { "none".to_owned() } else { probes.join(", ") }));
        for unfit in &submitted.plan.unfit {
            context.note(format!("probe {} cannot: {}", unfit.probe, unfit.reason));
        }
        return Ok(Exit::Complete);
    };
    let Some(mut sink) = sink else {
        match args.json {
            true => context.json(&submitted)?,
            false => context.line(job.id)?,
        }
        return Ok(Exit::Complete);
    };
    let quiet = args.quiet;
    if !quiet {
        context.note(format!("job {}: {}; Ctrl-C ends the capture", job.id, submitted.plan.capture.as_deref().unwrap_or_default()));
    }
    let followed = follow(&client, job, &mut sink, &mut interrupts, quiet, context).await;
    if let Some(lines) = sink.lines.take() {
        let told = lines.end(&mut interrupts).await;
        if told.skipped > 0 && !quiet {
            context.note(format!("{} packets were not shown", count(told.skipped)));
        }
        told.problem.into_iter().for_each(|problem| context.note(problem));
    }
    let Some(capture) = followed? else { return Ok(Exit::Incomplete) };
    finish(&capture, &sink, args.json, quiet, context)
}

/// Has a capture written into a FIFO, until it is over, its reader is gone or this process is asked to end; the capture ends with that.
pub(super) async fn pipe(client: &Client, request: &JobRequest, to: PathBuf, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for signals: {error}")))?;
    let name = to.display().to_string();
    let (opened, gone) = open_pipe(to);
    // Nobody captures before there is a reader.
    let file = tokio::select! {
        opened = opened => opened.unwrap_or_else(|_| Err(std::io::Error::other("the thread for it could not be started"))),
        () = interrupts.next() => return Ok(Exit::Complete),
    };
    let mut sink = Sink::over(Some(file.map_err(|error| Failure::usage(format!("write `{name}`: {error}")))?), name);
    let job = scan::submit(client, request).await?.job.ok_or_else(|| Failure::new(Exit::Failure, "the controller made no job"))?;
    let id = job.id;
    let followed = tokio::select! {
        followed = follow(client, job, &mut sink, &mut interrupts, true, context) => followed?,
        Ok(()) = gone => {
            stop(client, id).await?;
            None
        }
    };
    match followed {
        Some(capture) if !ended_well(&capture) => {
            let why = capture.reason.or(capture.end).unwrap_or_else(|| "its probe was not heard to the end".to_owned());
            Err(Failure::new(Exit::Incomplete, format!("the capture of probe {} ended early: {why}", capture.probe)))
        }
        _ => Ok(Exit::Complete),
    }
}

type Opened = (oneshot::Receiver<std::io::Result<File>>, oneshot::Receiver<()>);

/// Opens a FIFO when it has a reader, and tells when it has none any more.
fn open_pipe(path: PathBuf) -> Opened {
    let ((opened, file), (gone, closed)) = (oneshot::channel(), oneshot::channel());
    let work = move || {
        let file = File::options().write(true).open(&path);
        let watched = file.as_ref().ok().and_then(|file| file.try_clone().ok());
        // Whoever waited for it may have left.
        let _ = opened.send(file);
        let Some(watched) = watched else { return };
        // Nothing is asked for: that the other end is closed is told of anyway.
        let wait = || poll(&mut [PollFd::new(watched.as_fd(), PollFlags::empty())], PollTimeout::NONE);
        let found = std::iter::repeat_with(wait).find(|found| *found != Err(Errno::EINTR));
        if let Some(Ok(_)) = found {
            let _ = gone.send(());
        }
    };
    // Of a thread that cannot be started nothing is heard.
    let _ = std::thread::Builder::new().name("picket-fifo".into()).spawn(work);
    (file, closed)
}

/// Where a file is written, and its packets are shown.
struct Sink {
    file: Option<tokio::fs::File>,
    lines: Option<Lines>,
    /// Packets are, or were, objects on lines.
    objects: bool,
    name: String,
    len: u64,
    digest: Sha256,
    /// Whose file it is.
    lease: Option<LeaseId>,
    /// Whether what was there before is gone.
    begun: bool,
}

impl Sink {
    fn open(path: Option<&Path>, lines: Option<u32>, json: bool) -> Result<Self, Failure> {
        let name = path.map_or_else(|| "what was received".to_owned(), |path| path.display().to_string());
        let cannot = |error: std::io::Error| Failure::usage(format!("write `{name}`: {error}"));
        let open = |path: &Path| match path.as_os_str() == "-" {
            // Not by way of the buffer that holds what is printed.
            true => std::io::stdout().as_fd().try_clone_to_owned().map(File::from),
            // What is there stays until there is something to take its place.
            false => File::options().write(true).create(true).truncate(false).open(path),
        };
        let lines = lines.map(|per_second| Lines::start(per_second, json)).transpose()?;
        Ok(Self { objects: json && lines.is_some(), lines, ..Self::over(path.map(open).transpose().map_err(cannot)?, name) })
    }

    fn over(file: Option<File>, name: String) -> Self {
        let file = file.map(tokio::fs::File::from_std);
        Self { file, objects: false, lines: None, name, len: 0, digest: Sha256::new(), lease: None, begun: false }
    }

    fn is_stdout(&self) -> bool {
        self.name == "-"
    }

    /// The controller gives bytes: what the file had before goes.
    async fn begin(&mut self) -> Result<(), Failure> {
        let Some(file) = self.file.as_mut().filter(|_| !self.begun) else { return Ok(()) };
        self.begun = true;
        // Pipes and devices have no length.
        if file.metadata().await.is_ok_and(|about| about.is_file()) && self.name != "-" {
            file.set_len(0).await.map_err(|error| Failure::new(Exit::Failure, format!("write `{}`: {error}", self.name)))?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = async {
            let Some(file) = &mut self.file else { return Ok(()) };
            file.write_all(bytes).await?;
            file.flush().await
        };
        match written.await {
            Ok(()) => {
                self.len += bytes.len() as u64;
                self.digest.update(bytes);
                let Some(lines) = &mut self.lines else { return Ok(()) };
                lines.push(bytes);
                // Who reads neither lines nor a file has enough.
                if lines.are_gone() && self.file.is_none() { Err(Failure::new(Exit::Complete, "")) } else { Ok(()) }
            }
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Complete, "")),
            Err(error) => Err(Failure::new(Exit::Failure, format!("write `{}`: {error}", self.name))),
        }
    }
}

/// Has the file written until the capture is over, or the user has left; gives the capture as it is then.
async fn follow(
    client: &Client,
    job: JobView,
    sink: &mut Sink,
    interrupts: &mut Interrupts,
    quiet: bool,
    context: &mut Context<'_>,
) -> Result<Option<CaptureView>, Failure> {
    let id = job.id;
    let mut asked = false;
    // Never dropped in the middle of a write, after which nobody would know how much was written.
    let mut fetching = pin!(fetch(client, id, true, sink));
    let outcome = loop {
        tokio::select! {
            ended = &mut fetching => break ended,
            () = interrupts.next() => {}
        }
        if asked {
            context.note(format!("left; what is still on its way can be had by `picket captures get {id}`"));
            break Ok(None);
        }
        asked = true;
        if !quiet {
            context.note("asking the probe to end; Ctrl-C again leaves without waiting for the rest");
        }
        if let Err(failure) = stop(client, id).await {
            break Err(failure);
        }
    };
    if outcome.is_err() {
        // Nobody writes any more: a capture that nobody wants need not go on.
        if let Err(failure) = stop(client, id).await {
            context.note(format!("the capture could not be ended ({failure}): picket job cancel {id}"));
        }
    }
    match outcome {
        Err(failure) if failure.is_silent() => Ok(None),
        outcome => outcome,
    }
}

async fn stop(client: &Client, id: JobId) -> Result<(), Failure> {
    match client.post_empty::<JobView>(&["jobs", &id.to_string(), "cancel"]).await {
        Ok(_) => Ok(()),
        // It was over already.
        Err(failure) if failure.exit == Exit::Failure => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Fetches the file of a job's capture until it is whole, or, where it is not followed, as far as it is here; gives the capture. A job may have
/// another capture after one that failed: the file stays that of the first.
async fn fetch(client: &Client, job: JobId, follow: bool, sink: &mut Sink) -> Result<Option<CaptureView>, Failure> {
    let mut lost: Option<Instant> = None;
    loop {
        let before = sink.len;
        match step(client, job, follow, sink).await {
            Ok(Some(capture)) => return Ok(Some(capture)),
            Ok(None) => lost = None,
            Err(failure) if failure.exit == Exit::Unreachable => {
                let since = lost.filter(|_| sink.len == before).unwrap_or_else(Instant::now);
                lost = Some(since);
                if since.elapsed() >= PATIENCE {
                    return Err(failure);
                }
                tokio::time::sleep(RETRY_EVERY).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// One attempt: the capture where it is over and written, none where there is more to come.
async fn step(client: &Client, job: JobId, follow: bool, sink: &mut Sink) -> Result<Option<CaptureView>, Failure> {
    let lease = match sink.lease {
        Some(lease) => lease,
        None => match latest(client, job, None).await? {
            Some(capture) => lease_of(&capture),
            None => {
                let view = client.job(job, None).await?;
                if view.state.is_final() {
                    let why = view.reason.unwrap_or_else(|| "no probe has begun".to_owned());
                    return Err(Failure::new(Exit::Incomplete, format!("nothing was captured: {why}")));
                }
                tokio::time::sleep(LOOK_EVERY).await;
                return Ok(None);
            }
        },
    };
    sink.lease = Some(lease);
    download(client, lease, follow, sink).await?;
    let view = client.get::<CaptureView>(&["captures", &lease.to_string()], &Query::new()).await?;
    let over = match view.state {
        _ if !follow => sink.len >= view.stored,
        CaptureState::Whole => sink.len >= view.stored,
        CaptureState::Removed => true,
        CaptureState::Running | CaptureState::Arriving => {
            view.state == CaptureState::Running && client.job(job, None).await?.state.is_final()
        }
    };
    if !over {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(over.then_some(view))
}

/// The latest capture of a job.
async fn latest(client: &Client, job: JobId, probe: Option<&ProbeId>) -> Result<Option<CaptureView>, Failure> {
    let mut query: Query = vec![("job", job.to_string()), ("limit", "1".to_owned())];
    query.extend(probe.map(|probe| ("probe", probe.to_string())));
    let page: Page<CaptureView> = client.get(&["captures"], &query).await?;
    Ok(page.items.into_iter().next())
}

fn lease_of(capture: &CaptureView) -> LeaseId {
    LeaseId { job: capture.job, grant: capture.lease }
}

/// Downloads from where the sink ends, to the end of what is given.
async fn download(client: &Client, lease: LeaseId, follow: bool, sink: &mut Sink) -> Result<(), Failure> {
    let query = vec![("from", sink.len.to_string()), ("follow", follow.to_string())];
    let mut stream = client.open(&["captures", &lease.to_string(), "file"], &query).await?;
    sink.begin().await?;
    while let Some(bytes) = stream.next().await? {
        sink.write(&bytes).await?;
    }
    Ok(())
}

/// What was captured, and whether all of it came as it was.
fn finish(capture: &CaptureView, sink: &Sink, json: bool, quiet: bool, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let digest = hex::encode(sink.digest.clone().finalize());
    let complete = capture.state == CaptureState::Whole && Some(sink.len) == capture.bytes;
    if complete && capture.sha256.as_deref() != Some(&digest) {
        let message =
            format!("{} has {} bytes, and they are not those that the probe wrote: their SHA-256 is {digest}", sink.name, sink.len);
        return Err(
            Failure::new(Exit::Failure, message).hint("fetch it again by `picket captures get`; does somebody else write to that file?")
        );
    }
    if json && sink.objects {
        let mut object = serde_json::to_value(capture).map_err(|error| Failure::output(error.into()))?;
        object.as_object_mut().map(|object| object.insert("type".to_owned(), "capture".into()));
        context.line(object)?;
    } else if json && !sink.is_stdout() {
        context.json(capture)?;
    } else if !quiet {
        summary(capture).lines().for_each(|line| context.note(format::clean(line)));
    }
    if !complete {
        context.note(format!("{} has {} bytes so far: {}", sink.name, count(sink.len), missing(capture)));
    }
    Ok(if complete && ended_well(capture) { Exit::Complete } else { Exit::Incomplete })
}

/// Whether it ended as was asked for.
fn ended_well(capture: &CaptureView) -> bool {
    matches!(capture.end.as_deref(), Some("asked" | "packets" | "bytes" | "time" | "answered"))
}

fn missing(capture: &CaptureView) -> String {
    match (capture.state, capture.bytes) {
        (CaptureState::Removed, _) => "the rest was removed".to_owned(),
        (_, Some(all)) => format!("the capture has {}", count(all)),
        _ => "its probe was not heard to the end".to_owned(),
    }
}

/// The counters in a line or two, as a capture on the box itself tells them.
fn summary(capture: &CaptureView) -> String {
    if let (Some("answered"), Some(counts)) = (capture.end.as_deref(), capture.counts) {
        let dropped = match counts.kernel_drops {
            0 => String::new(),
            dropped => format!("; {} were dropped while these were captured", count(dropped)),
        };
        return format!(
            "{} packets, {} bytes; {}{dropped}",
            count(counts.written),
            count(capture.bytes.unwrap_or(capture.stored)),
            capture.reason.as_deref().unwrap_or_default()
        );
    }
    let Some(counts) = capture.counts else { return format!("capture {} is {}", lease_of(capture), state(capture)) };
    let end = match (capture.end.as_deref(), &capture.reason) {
        (Some(end), Some(reason)) => format!("{end}: {reason}"),
        (Some(end), None) => end.to_owned(),
        _ => String::new(),
    };
    let passed = counts.passed.map(|passed| format!("{} frames passed the interface, ", count(passed))).unwrap_or_default();
    let again = match capture.sections {
        Some(2..) => "; of what was before it was interrupted only the packets written are known",
        _ => "",
    };
    let mut text = format!(
        "{} of {} packets written, {} bytes; ended by {end}\n{passed}{} passed the filter, {} dropped by the kernel, {} by the interface{again}",
        count(counts.written),
        count(counts.delivered),
        count(capture.bytes.unwrap_or(capture.stored)),
        count(counts.accepted),
        count(counts.kernel_drops),
        count(counts.interface_drops),
    );
    if counts.longer > 0 {
        text.push_str(&format!(
            "\n{} were longer than a frame: offloads had put them together",
            plural(usize::try_from(counts.longer).unwrap_or(usize::MAX), "packet")
        ));
    }
    text
}

/// `picket captures ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum CapturesCommand {
    /// Captures, the newest first
    #[command(after_help = "Example:\n  picket captures list --probe attic")]
    List(ListArgs),
    /// One capture, with who has downloaded it
    #[command(after_help = "Example:\n  picket captures show 65f0c1d200a4b7e1")]
    Show(OneArgs),
    /// Write the file of a capture
    #[command(
        after_help = "Examples:\n  picket captures get 65f0c1d200a4b7e1 -w attic.pcapng\n  picket captures get 65f0c1d200a4b7e1 --follow -w - | wireshark -k -i -"
    )]
    Get(GetArgs),
    /// Remove the bytes of a capture; what is known of it stays
    #[command(after_help = "Example:\n  picket captures remove 65f0c1d200a4b7e1 --probe attic")]
    Remove(OneArgs),
}

/// Which captures.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    /// Only in this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Only by this probe
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A capture, as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    Job(JobId),
    Lease(LeaseId),
}

impl std::str::FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('.') {
            true => text.parse().map(Named::Lease).map_err(|error: picket_wire::ids::IdError| error.to_string()),
            false => text.parse().map(Named::Job).map_err(|error: picket_wire::ids::IdError| error.to_string()),
        }
    }
}

/// One capture.
#[derive(Debug, clap::Args)]
pub(super) struct OneArgs {
    /// The job, or JOB.LEASE as `picket captures list` shows it
    #[arg(value_name = "CAPTURE")]
    capture: Named,
    /// The probe, where the job has several
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Print the answer of the API as JSON
    #[arg(long)]
    json: bool,
}

/// A capture and where to.
#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Where the file is written: a path, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Wait for what is still to come, until the capture is over
    #[arg(long)]
    follow: bool,
}

pub(super) async fn captures(command: CapturesCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    match command {
        CapturesCommand::List(args) => list(&client, args, context).await,
        CapturesCommand::Show(args) => {
            let capture = find(&client, &args).await?;
            match args.json {
                true => context.json(&capture)?,
                false => context.line(shown(&capture))?,
            }
            Ok(Exit::Complete)
        }
        CapturesCommand::Get(args) => get(&client, args, context).await,
        CapturesCommand::Remove(args) => {
            let capture = find(&client, &args).await?;
            client.delete(&["captures", &lease_of(&capture).to_string()]).await?;
            let capture = find(&client, &args).await?;
            match args.json {
                true => context.json(&capture)?,
                false => context.note(format!(
                    "capture {} by probe {}: {} bytes are removed",
                    lease_of(&capture),
                    capture.probe,
                    count(capture.stored)
                )),
            }
            Ok(Exit::Complete)
        }
    }
}

async fn list(client: &Client, args: ListArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let mut query: Query = Vec::new();
    query.extend(args.job.map(|id| ("job", id.to_string())));
    query.extend(args.site.map(|site| ("site", site.to_string())));
    query.extend(args.probe.map(|probe| ("probe", probe.to_string())));
    let rows: Vec<CaptureView> = client.all(&["captures"], &query).await?;
    if args.json {
        context.json(&rows)?;
        return Ok(Exit::Complete);
    }
    if rows.is_empty() {
        context.line("nothing was captured")?;
        return Ok(Exit::Complete);
    }
    let mut table = Columns::new(&[
        ("CAPTURE", Align::Left),
        ("PROBE", Align::Left),
        ("STATE", Align::Left),
        ("PACKETS", Align::Right),
        ("BYTES", Align::Right),
        ("INTERFACE", Align::Left),
        ("ENDED", Align::Left),
        ("BY", Align::Left),
    ]);
    for row in &rows {
        table.row([
            lease_of(row).to_string(),
            row.probe.to_string(),
            state(row),
            row.counts.map_or(String::new(), |counts| count(counts.written)),
            count(row.bytes.unwrap_or(row.stored)),
            row.interface.clone().unwrap_or_default(),
            row.ended.as_deref().map(format::moment).unwrap_or_default(),
            row.end.clone().unwrap_or_default(),
        ]);
    }
    context.line(table)?;
    Ok(Exit::Complete)
}

/// How far a capture is, in a word or two.
fn state(capture: &CaptureView) -> String {
    match (capture.state, capture.bytes) {
        (CaptureState::Running, _) => "running".to_owned(),
        (CaptureState::Arriving, Some(all)) => format!("{} % here", format::percent(capture.stored, all)),
        (CaptureState::Arriving, None) => "arriving".to_owned(),
        (CaptureState::Whole, _) => "whole".to_owned(),
        (CaptureState::Removed, _) => "removed".to_owned(),
    }
}

fn shown(capture: &CaptureView) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let when = |text: &Option<String>| text.as_deref().map(format::moment).unwrap_or_default();
    let counts = capture.counts.map(|_| summary(capture).replace('\n', "; ")).unwrap_or_default();
    let removed = capture.removed.as_deref().map(|at| format!("{}, {}", format::moment(at), text(&capture.remover))).unwrap_or_default();
    let mut out = details(&[
        ("capture", lease_of(capture).to_string()),
        ("probe", format!("{} ({})", capture.probe, capture.site)),
        ("state", state(capture)),
        ("bytes here", count(capture.stored)),
        ("interface", text(&capture.interface)),
        ("filter", text(&capture.filter)),
        ("began", when(&capture.began)),
        ("ended", when(&capture.ended)),
        ("counted", counts),
        ("sha256", text(&capture.sha256)),
        ("removed", removed),
    ]);
    for download in capture.downloads.iter().flatten() {
        out.push_str(&format!(
            "\ndownloaded {} by {}, from byte {}",
            format::moment(&download.at),
            format::clean(&download.actor),
            count(download.from)
        ));
    }
    out
}

async fn find(client: &Client, args: &OneArgs) -> Result<CaptureView, Failure> {
    let lease = match args.capture {
        Named::Lease(lease) => lease,
        Named::Job(job) => {
            let found = latest(client, job, args.probe.as_ref()).await?;
            let none = || Failure::new(Exit::Failure, format!("job {job} has no capture")).hint("see `picket captures list`");
            let found = found.ok_or_else(none)?;
            let all: Vec<CaptureView> = client.all(&["captures"], &vec![("job", job.to_string())]).await?;
            if let (None, Some(other)) = (&args.probe, all.iter().find(|other| other.probe != found.probe)) {
                let message = format!("job {job} has captures of several probes, {} and {} among them", found.probe, other.probe);
                return Err(Failure::usage(message).hint("name one with --probe"));
            }
            lease_of(&found)
        }
    };
    client.get(&["captures", &lease.to_string()], &Query::new()).await
}

async fn get(client: &Client, args: GetArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let capture = find(client, &args.one).await?;
    let lease = lease_of(&capture);
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, format!("listen for Ctrl-C: {error}")))?;
    let mut sink = Sink { lease: Some(lease), ..Sink::open(Some(&args.write), None, false)? };
    let fetched = tokio::select! {
        fetched = fetch(client, lease.job, args.follow, &mut sink) => Some(fetched),
        () = interrupts.next() => None,
    };
    let capture = match fetched {
        Some(Err(failure)) if failure.is_silent() => return Ok(Exit::Complete),
        Some(fetched) => fetched?,
        None => None,
    };
    let Some(capture) = capture else {
        context.note(format!("left; {} has {} bytes", sink.name, count(sink.len)));
        return Ok(Exit::Incomplete);
    };
    finish(&capture, &sink, args.one.json, false, context)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        capture: CaptureArgs,
    }

    fn parse(line: &str) -> Result<CaptureArgs, String> {
        let words = std::iter::once("capture").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.capture).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_typed_is_asked_for() {
        let args = parse("--probe attic -i eth1 -w - --time 90s --bytes 1GiB -c 7 --full tcp port 443 and host 192.0.2.1").unwrap();
        let request = args.request(0, &TimeZone::utc()).unwrap();
        let capture = request.capture.unwrap();
        assert_eq!((request.technique, request.mode, request.targets.len()), (Technique::Capture, Some(Mode::Each), 0));
        assert_eq!(capture.filter.as_deref(), Some("tcp port 443 and host 192.0.2.1"));
        assert_eq!((capture.seconds, capture.bytes, capture.packets, capture.snap_length), (Some(90), Some(1 << 30), Some(7), Some(WHOLE)));
        let usual = parse("--probe attic -w x").unwrap().request(0, &TimeZone::utc()).unwrap();
        assert_eq!(usual.capture, Some(CaptureRequest::default()));
        parse("--site hq --detach udp").unwrap();
        parse("--probe attic --dry-run").unwrap();
        assert_eq!(
            ["", "-w x", "-w x --lines 7"].map(|rest| parse(&format!("--probe attic {rest}")).unwrap().lines()),
            [Some(100), None, Some(7)]
        );
    }

    #[test]
    fn a_ring_is_asked_for_a_time_in_local_words() {
        // 2026-11-22 12:00:00 UTC.
        let now = 1_795_348_800 * 1_000_000_000;
        let ask =
            |line: &str| parse(line).unwrap().request(now, &TimeZone::fixed(3_600).unwrap()).map(|request| request.capture.unwrap().ring);
        let asked = ask("--probe attic -w x --ring --from 02:10 --to 02:12 --host 192.0.2.7,2001:db8::7 --port 53 udp").unwrap().unwrap();
        assert_eq!((asked.from.as_deref(), asked.to.as_deref()), (Some("2026-11-22T01:10:00Z"), Some("2026-11-22T01:12:00Z")));
        assert_eq!((asked.hosts.len(), asked.ports), (2, vec![53]));
        let lately = ask("--probe attic -w x --ring --from -5m").unwrap().unwrap();
        assert_eq!((lately.from.as_deref(), lately.to), (Some("2026-11-22T11:55:00Z"), None));
        let wrong = ask("--probe attic -w x --ring --from now --to -5m").unwrap_err();
        assert!(wrong.message.contains("no time lies between"), "{wrong}");
        assert!(ask("--probe attic -w x --ring --from yesterday").unwrap_err().message.starts_with("`yesterday` is no time"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (line, reason) in [
            ("-w x", "--probe"),
            ("--probe attic --detach --lines 7", "cannot be used with"),
            ("--site hq -w x", "--detach"),
            ("--probe attic -w x --detach", "cannot be used with"),
            ("--probe attic -w x --ring -i eth0", "cannot be used with"),
            ("--probe attic -w x --from 02:10", "--ring"),
            ("--probe attic -w x --time 8d", "a week"),
            ("--probe attic -w x --bytes 100", "100"),
            ("--probe attic -w x --full -s 60", "cannot be used with"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
