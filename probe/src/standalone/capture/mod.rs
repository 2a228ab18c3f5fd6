//! `picket-probe capture`: packets of an interface into files, onto the terminal, or counted by flows.
//!
//! Three threads: the capture, which also empties the kernel's buffer; the files' own; and this one, which prints. Only the last one
//! can be held up by who reads, and then lines are skipped and counted.
//!
//! **Invariant:** the counters are told at the end of every capture that began.

mod args;
mod output;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

pub use self::args::CaptureArgs;
use self::args::CaptureOutput;
use self::output::Printer;
use super::Outcome;
use super::error::{StandaloneError, system};
use super::prepare;
use super::signals::Signals;
use crate::capture::UnixNanos;
use crate::capture::files::{FileError, Files, To};
use crate::capture::filter::{self, Own};
use crate::capture::ring;
use crate::capture::run::{self, End};
use crate::capture::session::{Limits, News, Outlet, Rotation, Session, Telling};
use crate::capture::source::{Listen, Source};
use crate::identity::Identity;
use crate::logging;
use crate::packet::line::LINES_DEFAULT;
use crate::tap;

/// News that wait for the terminal.
const WAITING: usize = 512;

/// `picket-probe capture`.
///
/// # Errors
/// See [`StandaloneError`].
pub fn capture(args: &CaptureArgs) -> Result<Outcome, StandaloneError> {
    let config = prepare::configuration(args.config.as_deref(), args.interface.as_deref())?;
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    let to = destination(args)?;
    let (interface, addresses) = tap::interface(config.interface.name.as_deref())?;
    let identity = Identity::load(&config.data).ok();
    let own = (!args.with_own).then(|| own(addresses, identity.as_ref()));
    // What was typed is looked at alone first: errors have their place in it.
    crate::capture::source::check(&args.asked()).map_err(crate::capture::source::SourceError::from)?;
    let filter = filter::complete(&args.asked(), own.as_ref());
    let listen = Listen {
        interface,
        snap_len: args.kept(),
        promiscuous: !args.no_promiscuous,
        buffer: u32::try_from(args.buffer.0).unwrap_or(i32::MAX as u32),
        filter,
    };
    if args.dry_run {
        return output::dry_run(args, &listen).map_err(system("write the plan"));
    }
    let source = Source::open(&listen)?;
    let who = identity.as_ref().map_or_else(|| "on its own".to_owned(), |identity| format!("by probe {}", identity.probe()));
    let (section, interface) = tap::head(&listen, source.link_type(), format!("captured {who}, no job"));
    let files = match (to, args.ring()) {
        (Some(to), _) => Some(Files::start(to, tap::begun(&section, &interface), args.keep_free.0)?),
        (None, Some((dir, options))) => Some(ring::keep(dir, options, section, interface)?),
        (None, None) => None,
    };
    let zone = tz::TimeZone::local().unwrap_or_else(|_| tz::TimeZone::utc());
    let session = session(args, source.link_type(), local_day(&zone, run::now()));
    // Whoever reads that Ctrl-C ends it may press it at once.
    let stop = Arc::new(AtomicBool::new(false));
    heed_signals(stop.clone())?;
    output::announce(&listen, args);
    let printer = Printer::new(args.output, source.link_type());
    run(Work { source, session, files, zone }, printer, stop, args)
}

/// Where packets are kept. What cannot go together is said.
fn destination(args: &CaptureArgs) -> Result<Option<To>, StandaloneError> {
    let rotates = rotation(args).is_some();
    if args.files.is_some() && !rotates {
        return Err(StandaloneError::FilesAlone);
    }
    if args.pipes() {
        let other = args.append || args.output == CaptureOutput::Ndjson || args.lines.is_some() || args.flows.is_some();
        return if rotates || other { Err(StandaloneError::PipeAlone) } else { Ok(Some(To::Pipe)) };
    }
    let to = |path: &PathBuf| match (rotates, args.append) {
        (true, _) => To::Ring(path.clone(), args.files),
        (false, true) => To::Continued(path.clone()),
        (false, false) => To::File(path.clone()),
    };
    Ok(args.write.as_ref().map(to))
}

fn rotation(args: &CaptureArgs) -> Rotation {
    if let Some((_, options)) = args.ring() {
        return options.rotation();
    }
    let every = args.rotate_seconds.map(core::time::Duration::from_secs);
    Rotation { bytes: args.rotate_size.map(|size| size.0), every, daily: args.rotate_daily }
}

/// What the probe's own traffic is. A controller whose name cannot be looked up now is said and not left out.
fn own(addresses: Vec<IpAddr>, identity: Option<&Identity>) -> Own {
    let (own, unknown) = tap::own(addresses, identity);
    for (place, error) in unknown {
        eprintln!("the connection to the controller at {place} is captured, too: its name cannot be looked up ({error})");
    }
    own
}

fn session(args: &CaptureArgs, link_type: u16, day: i64) -> Session {
    let limits =
        Limits { packets: args.packets, bytes: args.bytes.map(|bytes| bytes.0), time: args.seconds.map(core::time::Duration::from_secs) };
    let shown = args.flows.is_none() && ((args.write.is_none() && args.ring.is_none()) || args.lines.is_some());
    let telling = Telling {
        packets: shown.then_some(args.lines.unwrap_or(LINES_DEFAULT)),
        flows: args.flows.map(core::time::Duration::from_secs),
        most_flows: args.most_flows as usize,
    };
    Session::new(link_type, limits, rotation(args), telling, day)
}

/// Number of a moment's day in local time.
fn local_day(zone: &tz::TimeZone, time: UnixNanos) -> i64 {
    let seconds = i64::try_from(time.seconds()).unwrap_or(i64::MAX);
    let offset = zone.find_local_time_type(seconds).map_or(0, |kind| kind.ut_offset());
    seconds.saturating_add(offset.into()).div_euclid(86_400)
}

struct Work {
    source: Source,
    session: Session,
    files: Option<Files>,
    zone: tz::TimeZone,
}

/// News on their way to the printer: what has no room is refused, never waited for.
struct Desk {
    news: SyncSender<News>,
    /// Records of flows that are waiting, and how many may.
    records: Arc<AtomicUsize>,
    most_records: usize,
}

impl Outlet for Desk {
    fn offer(&mut self, news: News) -> bool {
        let records = if let News::Flows(records) = &news { records.len() } else { 0 };
        let waiting = self.records.fetch_add(records, Ordering::Relaxed);
        let taken = waiting + records <= self.most_records && self.news.try_send(news).is_ok();
        if !taken {
            self.records.fetch_sub(records, Ordering::Relaxed);
        }
        taken
    }
}

fn run(work: Work, mut printer: Printer, stop: Arc<AtomicBool>, args: &CaptureArgs) -> Result<Outcome, StandaloneError> {
    let (news, told) = sync_channel(WAITING);
    let records = Arc::new(AtomicUsize::new(0));
    // An interval's records, those of the next one, and those put out meanwhile.
    let desk = Desk { news, records: records.clone(), most_records: args.most_flows as usize * 3 };
    let thread = begin(work, desk, stop.clone()).map_err(system("start the capturing thread"))?;
    let printed = print(&mut printer, &told, &records);
    stop.store(true, Ordering::Relaxed);
    // Nobody prints any more: what still comes finds no room.
    drop(told);
    let outcome = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let told = printer.end(&outcome, args.pipes());
    printed.and(told).map_err(system("write packets"))?;
    Ok(verdict(&outcome))
}

fn begin(work: Work, mut desk: Desk, stop: Arc<AtomicBool>) -> std::io::Result<JoinHandle<run::Outcome>> {
    let Work { source, session, files, zone } = work;
    std::thread::Builder::new()
        .name("picket-capture".into())
        .spawn(move || run::capture(source, session, files, &mut desk, &stop, |time| local_day(&zone, time)))
}

fn print(printer: &mut Printer, told: &Receiver<News>, records: &AtomicUsize) -> std::io::Result<()> {
    // The sender goes with the capture.
    for news in told {
        if let News::Flows(told) = &news {
            records.fetch_sub(told.len(), Ordering::Relaxed);
        }
        printer.news(&news)?;
    }
    Ok(())
}

/// Ctrl-C stops the capture even while the terminal holds up the printing.
pub(super) fn heed_signals(stop: Arc<AtomicBool>) -> Result<(), StandaloneError> {
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(system("start the runtime"))?;
    let heed = move || {
        runtime.block_on(async {
            loop {
                signals.next().await;
                stop.store(true, Ordering::Relaxed);
            }
        });
    };
    std::thread::Builder::new().name("picket-stop".into()).spawn(heed).map_err(system("start the thread for signals"))?;
    Ok(())
}

/// Ended as it should, or early.
fn verdict(outcome: &run::Outcome) -> Outcome {
    let problem = outcome.written.as_ref().and_then(|written| written.problem.as_ref());
    match (&outcome.end, problem) {
        (End::Asked | End::Limit(_), None) | (_, Some(FileError::ReaderGone)) => Outcome::Complete,
        _ => Outcome::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_begin_at_local_midnight() {
        let zone = tz::TimeZone::fixed(2 * 3600).unwrap();
        let day = |seconds| local_day(&zone, UnixNanos::new(seconds, 0));
        assert_eq!((day(86_400 - 7_201), day(86_400 - 7_200), day(86_400)), (0, 1, 1));
    }

    #[test]
    fn a_desk_refuses_what_has_no_room() {
        let (news, told) = sync_channel(2);
        let records = Arc::new(AtomicUsize::new(0));
        let mut desk = Desk { news, records: records.clone(), most_records: 0 };
        assert!(desk.offer(News::Flows(Vec::new())) && desk.offer(News::Flows(Vec::new())));
        assert!(!desk.offer(News::Flows(Vec::new())), "two wait already");
        assert_eq!((told.try_iter().count(), records.load(Ordering::Relaxed)), (2, 0));
    }
}
