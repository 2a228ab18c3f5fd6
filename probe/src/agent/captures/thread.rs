//! The thread of one capture: opens the interface, captures, and says what came of it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use picket_wire::capture::{CaptureCounts, CaptureEnd, CaptureOptions, CaptureSource, Captured, RingQuestion};
use picket_wire::units::UnixMillis;
use tokio::sync::mpsc;

use super::{CaptureEvent, Work, digest, interrupted};
use crate::capture::UnixNanos;
use crate::capture::files::{self, Confirm, Files, Left, To};
use crate::capture::filter;
use crate::capture::ring::{self, Answer, AskError, Question};
use crate::capture::run::{self, End, Outcome};
use crate::capture::session::{Limit, Limits, Nowhere, Rotation, Session, Telling};
use crate::capture::source::{Listen, Source, SourceError, check};
use crate::errors::chain;
use crate::net::clock;
use crate::tap;

/// The kernel's buffer, in bytes: at a packet of 128 bytes kept some 30,000 packets.
const BUFFER: u32 = 4 << 20;

/// How soon an interface is tried again with which a capture is to go on.
const AGAIN: Duration = Duration::from_secs(2);
/// 2020-01-01: a clock that says less was not set yet, in milliseconds since 1970.
const CLOCK_KNOWN: u64 = 1_577_836_800_000;

/// Starts the thread.
pub(super) fn begin(work: Work, stop: Arc<AtomicBool>, events: mpsc::UnboundedSender<CaptureEvent>) -> Result<Thread, String> {
    let lease = work.lease;
    let run = move || {
        let ended = capture(&work, &stop, events.clone());
        // The receiver lives as long as the agent.
        let _ = events.send(CaptureEvent::Ended(lease, ended.map(Box::new)));
    };
    std::thread::Builder::new()
        .name("picket-capture".into())
        .spawn(run)
        .map(|started| started.thread().clone())
        .map_err(|error| format!("start the capturing thread: {error}"))
}

fn capture(work: &Work, stop: &AtomicBool, events: mpsc::UnboundedSender<CaptureEvent>) -> Result<Captured, String> {
    let options = work.spec.kind.capture().ok_or("the job does not say what to capture")?;
    if let CaptureSource::Ring(question) = &options.source {
        return asked(work, options, question, stop);
    }
    let left = files::cut(&work.path).map_err(|error| chain(&error))?;
    // What was there is on the disk: it was cut, and the cut confirmed.
    let _ = events.send(CaptureEvent::Grown(work.lease, left.len));
    let limits = limits(options, work, left);
    let ended = |end| Ok(Captured { end, ..interrupted(&work.path, work.lease, work.began)? });
    if limits.packets == Some(0) {
        return ended(CaptureEnd::Packets);
    }
    // What is there is not given up because an interface or a name is late after a start.
    let started = clock::now();
    let (source, listen) = loop {
        match open(work, options) {
            Ok(opened) => break opened,
            Err(reason) if left.len == 0 => return Err(reason),
            Err(_) if stop.load(Ordering::Relaxed) => return ended(CaptureEnd::Asked),
            Err(reason) if limits.time.is_some_and(|most| clock::now().saturating_since(started) >= most) => {
                return ended(CaptureEnd::Gone(reason));
            }
            Err(reason) => log::warn!("the capture of lease {} cannot go on yet: {reason}", work.lease),
        }
        // Whoever ends it wakes it.
        std::thread::park_timeout(AGAIN);
    };
    let comment = format!("captured by probe {} for job {}", work.identity.probe(), work.lease.job);
    let (section, begins) = tap::head(&listen, source.link_type(), comment);
    let head = tap::begun(&section, &begins);
    let (lease, every) = (work.lease, work.config.sync_every);
    let tell = Box::new(move |len| {
        let _ = events.send(CaptureEvent::Grown(lease, len));
    });
    let to = To::Behind(work.path.clone(), left.len);
    let files = Files::start_confirmed(to, head, work.config.keep_free, Some(Confirm { every, tell })).map_err(|error| chain(&error))?;
    let session = Session::new(source.link_type(), limits, Rotation::default(), Telling::NOTHING, 0);
    let outcome = run::capture(source, session, Some(files), &mut Nowhere, stop, |_| 0);
    let (sha256, len) = digest(&work.path).map_err(|error| format!("read {}: {error}", work.path.display()))?;
    Ok(Captured {
        lease,
        began: work.began,
        ended: millis(outcome.ended.0),
        interface: listen.interface,
        filter: listen.filter,
        end: end(&outcome),
        counts: counts(&outcome, left),
        sections: left.sections + 1,
        len,
        sha256,
    })
}

/// Opens the interface.
fn open(work: &Work, options: &CaptureOptions) -> Result<(Source, Listen), String> {
    let wanted = options.interface.as_deref().or(work.interface.as_deref());
    let (interface, addresses) = tap::interface(wanted).map_err(|error| chain(&error))?;
    check(&options.filter).map_err(|error| chain(&SourceError::from(error)))?;
    let own = (!options.with_own).then(|| {
        let (own, unknown) = tap::own(addresses, Some(&work.identity));
        for (place, error) in unknown {
            log::warn!("lease {}: the connection to {place} is captured, too: its name cannot be looked up ({error})", work.lease);
        }
        own
    });
    let filter = filter::complete(&options.filter, own.as_ref());
    let listen = Listen { interface, snap_len: options.snap_len, promiscuous: options.promiscuous, buffer: BUFFER, filter };
    let source = Source::open(&listen).map_err(|error| chain(&error))?;
    Ok((source, listen))
}

/// An answer's file, which has no more bytes than were asked for.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left < bytes.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the answer is longer than the file may be: ask for less, or for a larger file",
            ));
        }
        let taken = self.file.write(bytes)?;
        self.left -= taken as u64;
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Asks the ring. An answer that would be too long is none: which of its packets were left out could not be said.
fn asked(work: &Work, options: &CaptureOptions, question: &RingQuestion, stop: &AtomicBool) -> Result<Captured, String> {
    let ring = work.ring.as_ref().ok_or("this site keeps no ring of captures")?;
    let nanos = |time: UnixMillis| UnixNanos(time.0.saturating_mul(1_000_000));
    let asked = Question {
        from: nanos(question.from),
        to: nanos(question.to),
        hosts: question.hosts.clone(),
        ports: question.ports.clone(),
        filter: options.filter.clone(),
    };
    let write = |error: io::Error| format!("write {}: {error}", work.path.display());
    let mut out = Bounded { file: File::create(&work.path).map_err(write)?, left: options.bytes };
    let answer = ring::ask(&ring.dir, &asked, &mut out, stop);
    let synced = out.file.sync_all();
    let end = match answer {
        Ok(answer) => Ok((told(&answer), answer)),
        // Whoever cancels wants no part of it.
        Err(AskError::Stopped) => Err("stopped before the ring had answered".to_owned()),
        Err(error) => Err(chain(&error)),
    };
    let (reason, answer) = end.inspect_err(|_| {
        // What is there of it is of no use.
        let _ = std::fs::remove_file(&work.path);
    })?;
    synced.map_err(write)?;
    let (sha256, len) = digest(&work.path).map_err(|error| format!("read {}: {error}", work.path.display()))?;
    let packets = answer.packets;
    Ok(Captured {
        lease: work.lease,
        began: work.began,
        ended: super::super::tasks::unix_now(None),
        interface: "ring".to_owned(),
        filter: asked.to_string(),
        end: CaptureEnd::Answered(reason),
        counts: CaptureCounts {
            accepted: packets + answer.dropped,
            kernel_drops: answer.dropped,
            delivered: packets,
            written: packets,
            ..CaptureCounts::default()
        },
        sections: 1,
        len,
        sha256,
    })
}

/// What was looked at for an answer, and what could not be.
fn told(answer: &Answer) -> String {
    let mut text =
        format!("{} packets were looked at, in {} of {} segments of the ring", answer.looked_at, answer.segments_read, answer.segments);
    for (count, what) in [
        (answer.segments_gone, "segments were removed meanwhile"),
        (answer.damaged, "places are damaged, and what follows there in their segments is missing"),
        (answer.dropped_unknown, "segments do not say how many packets were dropped"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}

fn millis(nanos: u64) -> UnixMillis {
    UnixMillis(nanos / 1_000_000)
}

/// What is left to capture. A clock that was set back gives a capture its whole time again, once for each time that it is interrupted.
fn limits(options: &CaptureOptions, work: &Work, left: Left) -> Limits {
    // One that was begun before the box knew the time has spent nothing that could be told.
    let spent = match work.began.0 {
        ..CLOCK_KNOWN => Duration::ZERO,
        began => Duration::from_millis(super::super::tasks::unix_now(None).0.saturating_sub(began)),
    };
    let time = Duration::from_secs(options.seconds.into()).saturating_sub(spent);
    Limits { packets: options.packets.map(|most| most.saturating_sub(left.packets)), bytes: Some(options.bytes), time: Some(time) }
}

fn end(outcome: &Outcome) -> CaptureEnd {
    match &outcome.end {
        End::Asked => CaptureEnd::Asked,
        End::Limit(Limit::Packets) => CaptureEnd::Packets,
        End::Limit(Limit::Bytes) => CaptureEnd::Bytes,
        End::Limit(Limit::Time) => CaptureEnd::Time,
        End::Files => {
            let problem = outcome.written.as_ref().and_then(|written| written.problem.as_ref());
            CaptureEnd::Disk(problem.map_or_else(|| "the file cannot be written".to_owned(), |problem| chain(problem)))
        }
        End::Source(error) => CaptureEnd::Gone(chain(error)),
    }
}

/// What a crash has ended is known by its packets alone.
fn counts(outcome: &Outcome, left: Left) -> CaptureCounts {
    CaptureCounts {
        passed: outcome.kernel.passed,
        accepted: outcome.kernel.accepted + left.packets,
        kernel_drops: outcome.kernel.dropped,
        interface_drops: outcome.kernel.interface_dropped,
        delivered: outcome.counts.delivered + left.packets,
        bytes: outcome.counts.bytes,
        written: outcome.written.as_ref().map_or(0, |written| written.packets) + left.packets,
        longer: outcome.kernel.longer,
    }
}
