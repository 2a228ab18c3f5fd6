//! Captures of jobs: each lease is a file on the data partition that grows while its capture runs, and travels to the controller
//! while it does.
//!
//! ```text
//!  <data>/captures/<lease>.pcapng   the file: whole blocks, continued as a new section after a crash
//!  <data>/captures/<lease>.note     when it began, and, once it is over, what it came to
//!
//!  start ▶ thread: libpcap ▶ session ▶ files ─▶ disk ──confirmed──▶ upload ─▶ chunks
//!                                    └ over ▶ note ▶ record of the spool
//! ```
//!
//! The lease ends when the capture does; the file goes on travelling until the controller has all of it, through restarts of either,
//! and is removed then. A job may ask for packets that the box's ring has instead (`super::ring`): the answer is such a file, too, but
//! travels when it is complete, since a later attempt would find other packets.
//!
//! It must not know sessions, topics or the spool: [`super::run`] carries what is to be said.
//!
//! **Invariants:**
//! - A file that is not at the controller in full is kept, unless it is older than the site keeps such files; then that is said.
//! - What a crash cut off was not sent: only bytes that the disk has confirmed leave, and continuing cuts behind them.
//! - All files together stay within the site's limit: a capture that might exceed it is refused before it begins.
//! - The site's word on what may be kept of packets holds, whatever the controller signs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use picket_wire::capture::{CaptureCounts, CaptureEnd, CaptureSource, Captured, Chunk, ChunkState};
use picket_wire::codec;
use picket_wire::ids::LeaseId;
use picket_wire::job::JobSpec;
use picket_wire::units::UnixMillis;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::capture::files;
use crate::capture::upload::{Course, Upload, WINDOW, Want};
use crate::config::CaptureConfig;
use crate::errors::chain;
use crate::identity::Identity;

/// Captures that run at a time: each has a buffer of the kernel's and some of ours.
const AT_ONCE: usize = 2;

#[cfg(feature = "libpcap")]
mod thread;

/// What running captures tell.
#[derive(Debug)]
pub enum CaptureEvent {
    /// The disk has confirmed so many bytes of a file.
    Grown(LeaseId, u64),
    /// A capture is over; in words, where it could not be done.
    Ended(LeaseId, Result<Box<Captured>, String>),
}

/// What is remembered of a capture beside its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// When it began first, by the box's clock.
    began: UnixMillis,
    /// How many bytes its file may come to have.
    limit: u64,
    /// Whether it is an answer of the ring, of which a part is of no use.
    asks: bool,
    /// Since when it waits for the controller, by the controller's clock.
    waits: Option<UnixMillis>,
    /// What it came to, once it is over.
    over: Option<Captured>,
    /// Whether that is in the spool, or was.
    told: bool,
}

/// What a capture begins or goes on with.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "libpcap"), expect(dead_code, reason = "without libpcap nothing is captured"))]
struct Work {
    spec: Arc<JobSpec>,
    lease: LeaseId,
    began: UnixMillis,
    path: PathBuf,
    config: CaptureConfig,
    ring: Option<Kept>,
    /// The interface that the probe measures on, where the configuration names one.
    interface: Option<String>,
    identity: Arc<Identity>,
}

/// The ring of this box.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes of each packet that it has.
    pub snap_len: u32,
}

/// The captures of this box.
pub struct Captures {
    dir: PathBuf,
    config: CaptureConfig,
    ring: Option<Kept>,
    interface: Option<String>,
    identity: Arc<Identity>,
    /// How each is told to end, and its thread, which may be waiting.
    running: BTreeMap<LeaseId, (Arc<AtomicBool>, Thread)>,
    /// Of these, those that are only to pause.
    pausing: BTreeSet<LeaseId>,
    /// Files that nobody goes on with, and that are being read to the end of what is whole.
    settling: BTreeSet<LeaseId>,
    /// Whose file was last on its way.
    turn: Option<LeaseId>,
    notes: BTreeMap<LeaseId, Note>,
    uploads: BTreeMap<LeaseId, Upload>,
    events: mpsc::UnboundedSender<CaptureEvent>,
}

impl Captures {
    /// The captures whose files are in `data`.
    pub fn load(
        data: &Path,
        config: CaptureConfig,
        ring: Option<Kept>,
        interface: Option<String>,
        identity: Arc<Identity>,
        events: mpsc::UnboundedSender<CaptureEvent>,
    ) -> Self {
        let dir = data.join("captures");
        let (mut notes, mut uploads) = (BTreeMap::new(), BTreeMap::new());
        // A directory that is not there has no files.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "note") {
                continue;
            }
            let Some(lease) = path.file_stem().and_then(|stem| stem.to_str()?.parse::<LeaseId>().ok()) else { continue };
            match fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| codec::decode::<Note>(&bytes).map_err(|e| e.to_string()))
            {
                Ok(note) => {
                    if let Some(over) = &note.over {
                        uploads.insert(lease, Upload::new(over.len, true));
                    }
                    notes.insert(lease, note);
                }
                Err(error) => log::error!("{} cannot be read, and its capture stays where it is: {error}", path.display()),
            }
        }
        Self {
            dir,
            config,
            ring,
            interface,
            identity,
            running: BTreeMap::new(),
            pausing: BTreeSet::new(),
            settling: BTreeSet::new(),
            turn: None,
            notes,
            uploads,
            events,
        }
    }

    fn path(&self, lease: LeaseId, extension: &str) -> PathBuf {
        self.dir.join(format!("{lease}.{extension}"))
    }

    fn keep(&mut self, lease: LeaseId, note: Note) -> Result<(), String> {
        let path = self.path(lease, "note");
        crate::durable::replace(&path, &codec::encode(&note), 0o600).map_err(|error| format!("write {}: {error}", path.display()))?;
        self.notes.insert(lease, note);
        Ok(())
    }

    /// Bytes that files have, or may come to have while their captures run.
    fn claimed(&self) -> u64 {
        let of = |(lease, note): (&LeaseId, &Note)| {
            let len = fs::metadata(self.path(*lease, "pcapng")).map_or(0, |about| about.len());
            if note.over.is_some() { len } else { len.max(note.limit) }
        };
        self.notes.iter().map(of).sum()
    }

    /// Begins a capture, or goes on with one that was interrupted. What cannot be begun is said in words.
    ///
    /// # Errors
    /// The site does not permit it, its limit is reached, or the disk takes nothing.
    pub fn start(&mut self, lease: LeaseId, spec: &Arc<JobSpec>, now: UnixMillis) -> Result<(), String> {
        let options = spec.kind.capture().ok_or("the job does not say what to capture")?;
        let kept = self.ring.as_ref().map(|ring| ring.snap_len);
        let most = match (&options.source, kept) {
            (CaptureSource::Live, _) => options.snap_len,
            (CaptureSource::Ring(_), None) => {
                return Err("this site keeps no ring of captures ([ring] max_bytes in its configuration)".to_owned());
            }
            (CaptureSource::Ring(_), Some(kept)) if kept > options.snap_len => {
                return Err(format!("the ring has {kept} bytes of each packet, and {} are asked for: ask for as many", options.snap_len));
            }
            (CaptureSource::Ring(_), Some(kept)) => kept,
        };
        if let Some(reason) = self.config.allow.forbids(most) {
            return Err(format!("this site does not permit it ([capture] allow = \"...\" in its configuration): {reason}"));
        }
        if let Some(note) = self.notes.get(&lease)
            && let Some(captured) = note.over.clone()
        {
            // It was over before this could be said.
            let _ = self.events.send(CaptureEvent::Ended(lease, Ok(Box::new(captured))));
            return Ok(());
        }
        if self.running.len() >= AT_ONCE {
            return Err(format!("{AT_ONCE} captures run on this probe already, and no more do: each takes memory"));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| format!("make {}: {error}", self.dir.display()))?;
        let began = match self.notes.get(&lease) {
            Some(note) => note.began,
            None => {
                let claimed = self.claimed();
                if claimed.saturating_add(options.bytes) > self.config.max_bytes {
                    return Err(format!(
                        "a file of up to {} bytes is asked for, and of the {} bytes that this site keeps for captures {claimed} are taken: \
                         ask for less, or wait until others are at the controller",
                        options.bytes, self.config.max_bytes
                    ));
                }
                let asks = matches!(options.source, CaptureSource::Ring(_));
                self.keep(lease, Note { began: now, limit: options.bytes, asks, waits: None, over: None, told: false })?;
                now
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work {
            spec: Arc::clone(spec),
            lease,
            began,
            path: self.path(lease, "pcapng"),
            config: self.config.clone(),
            ring: self.ring.clone(),
            interface: self.interface.clone(),
            identity: Arc::clone(&self.identity),
        };
        let thread = begin(work, Arc::clone(&stop), self.events.clone())?;
        self.running.insert(lease, (stop, thread));
        Ok(())
    }

    /// Asks a capture to end; what came of it follows. One that is to pause goes on with its file when it is started again.
    pub fn cut(&mut self, lease: LeaseId, pauses: bool) {
        if let Some((stop, thread)) = self.running.get(&lease) {
            stop.store(true, Ordering::Relaxed);
            thread.unpark();
            if pauses {
                self.pausing.insert(lease);
            } else {
                self.pausing.remove(&lease);
            }
        }
    }

    /// A capture that ended: whether it only paused.
    pub fn paused(&mut self, captured: &Captured) -> bool {
        let paused = self.pausing.remove(&captured.lease) && captured.end == CaptureEnd::Asked;
        if paused {
            self.running.remove(&captured.lease);
            self.grown(captured.lease, captured.len);
        }
        paused
    }

    /// Whether a lease is a capture that runs.
    pub fn has(&self, lease: LeaseId) -> bool {
        self.running.contains_key(&lease)
    }

    /// The disk has confirmed more of a file.
    pub fn grown(&mut self, lease: LeaseId, durable: u64) {
        self.uploads.entry(lease).or_insert_with(|| Upload::new(0, false)).grown(durable);
    }

    /// A capture is over: this is remembered before it is told.
    ///
    /// # Errors
    /// It could not be remembered, in words: it is to be asked for again.
    pub fn ended(&mut self, captured: &Captured) -> Result<(), String> {
        let lease = captured.lease;
        self.running.remove(&lease);
        self.settling.remove(&lease);
        let new = || Note { began: captured.began, limit: captured.len, asks: false, waits: None, over: None, told: false };
        let note = self.notes.get(&lease).cloned().unwrap_or_else(new);
        if note.over.is_none() {
            self.keep(lease, Note { over: Some(captured.clone()), ..note })?;
        }
        self.uploads.entry(lease).or_insert_with(|| Upload::new(0, false)).ended(captured.len);
        Ok(())
    }

    /// A capture could not be done: what there is of it stays, for the next attempt.
    pub fn failed(&mut self, lease: LeaseId) {
        self.running.remove(&lease);
        self.pausing.remove(&lease);
        self.settling.remove(&lease);
        let empty = fs::metadata(self.path(lease, "pcapng")).map_or(0, |about| about.len()) == 0;
        if empty {
            self.forget(lease);
        }
    }

    /// What a capture came to is in the spool.
    pub fn told(&mut self, lease: LeaseId) {
        if let Some(note) = self.notes.get(&lease).filter(|note| !note.told).cloned()
            && let Err(error) = self.keep(lease, Note { told: true, ..note })
        {
            log::warn!("{error}");
        }
        if self.uploads.get(&lease).is_some_and(|upload| upload.course() == Course::Removed) {
            self.forget(lease);
        }
    }

    /// Looks after files whose leases nobody holds any more, or whose time is over: those that were not ended are, as they are, and those
    /// that were not told are told. `now` is the controller's clock, where it is known: the box's own may be years off.
    pub fn settle(&mut self, holds: impl Fn(LeaseId) -> bool, now: Option<UnixMillis>) {
        let busy = |lease: &LeaseId| self.running.contains_key(lease) || self.settling.contains(lease);
        let leases: Vec<LeaseId> = self.notes.keys().copied().filter(|lease| !busy(lease)).collect();
        for lease in leases {
            let Some(note) = self.notes.get(&lease).cloned() else { continue };
            if let (Some(_), None, Some(now)) = (&note.over, note.waits, now)
                && let Err(error) = self.keep(lease, Note { waits: Some(now), ..note.clone() })
            {
                log::warn!("{error}");
            }
            let waited = now.zip(note.waits).map_or(0, |(now, since)| now.0.saturating_sub(since.0));
            match &note.over {
                Some(over) if self.config.keep.as_millis() < u128::from(waited) => {
                    log::error!(
                        "the capture of lease {lease}, {} bytes, is removed: it is older than {} s, and the controller has not taken all of it",
                        over.len,
                        self.config.keep.as_secs()
                    );
                    self.forget(lease);
                }
                Some(_) if !note.told && !holds(lease) => self.retell(lease),
                // Nobody asks for it any more, and a part of it is no answer.
                None if !holds(lease) && note.asks => self.forget(lease),
                None if !holds(lease) => {
                    let (path, began, events) = (self.path(lease, "pcapng"), note.began, self.events.clone());
                    // Reading a large file takes a while.
                    tokio::task::spawn_blocking(move || {
                        let ended = interrupted(&path, lease, began);
                        let _ = events.send(CaptureEvent::Ended(lease, ended.map(Box::new)));
                    });
                    self.settling.insert(lease);
                }
                Some(_) | None => {}
            }
        }
    }

    /// Says once more what a capture came to.
    fn retell(&mut self, lease: LeaseId) {
        if let Some(over) = self.notes.get(&lease).and_then(|note| note.over.clone()) {
            let _ = self.events.send(CaptureEvent::Ended(lease, Ok(Box::new(over))));
        }
    }

    fn forget(&mut self, lease: LeaseId) {
        self.notes.remove(&lease);
        self.uploads.remove(&lease);
        // The note goes last: a file without one would never be looked at again.
        for extension in ["pcapng", "note"] {
            let path = self.path(lease, extension);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }

    // ---- on the way to the controller -----------------------------------------------------------------------------

    /// A session begins.
    pub fn connected(&mut self, now: Duration) {
        self.uploads.values_mut().for_each(|upload| upload.begin(now));
    }

    /// The session is over.
    pub fn disconnected(&mut self) {
        self.uploads.values_mut().for_each(Upload::end);
    }

    /// A file that is new in a session takes part in it.
    pub fn join(&mut self, lease: LeaseId, now: Duration) {
        if let Some(upload) = self.uploads.get_mut(&lease).filter(|upload| !upload.is_live()) {
            upload.begin(now);
        }
    }

    /// The next chunk to send, read from its file; to be confirmed by [`Captures::sent`]. Files take turns, and share one window.
    pub fn next(&mut self, now: Duration) -> Option<(LeaseId, Want, Chunk)> {
        let flying: u64 = self.uploads.values().map(Upload::flying).sum();
        let fits = |want: &Want| if let Want::Bytes { len, .. } = want { flying + *len as u64 <= WINDOW } else { true };
        let want = |(lease, upload): (&LeaseId, &Upload)| Some((*lease, upload.want(now).filter(fits)?));
        let mut wants: Vec<(LeaseId, Want)> = self.uploads.iter().filter_map(want).collect();
        let next = wants.partition_point(|(lease, _)| self.turn.is_some_and(|turn| *lease <= turn));
        wants.rotate_left(next);
        for (lease, want) in wants {
            match self.chunk(lease, want) {
                Ok(chunk) => return Some((lease, want, chunk)),
                Err(error) => {
                    log::error!("the capture of lease {lease} cannot be read, and is sent no further: {error}");
                    if let Some(upload) = self.uploads.get_mut(&lease) {
                        upload.end();
                    }
                }
            }
        }
        None
    }

    fn chunk(&self, lease: LeaseId, want: Want) -> std::io::Result<Chunk> {
        let Want::Bytes { offset, len } = want else { return Ok(Chunk::question(lease)) };
        let mut bytes = vec![0; len];
        File::open(self.path(lease, "pcapng"))?.read_exact_at(&mut bytes, offset)?;
        Ok(Chunk::pack(lease, offset, &bytes))
    }

    /// A chunk was handed to the transport.
    pub fn sent(&mut self, now: Duration, lease: LeaseId, want: Want) {
        self.turn = Some(lease);
        if let Some(upload) = self.uploads.get_mut(&lease) {
            upload.sent(now, want);
        }
    }

    /// The controller has answered a chunk.
    pub fn acked(&mut self, now: Duration, lease: LeaseId, stored: u64, state: ChunkState) {
        let Some(upload) = self.uploads.get_mut(&lease) else { return };
        let before = upload.course();
        upload.acked(now, stored, state);
        if upload.is_unheard() {
            // All of it is there, and nobody knows that it is all: the record of its end may have got lost with a database.
            self.retell(lease);
        }
        let Some(upload) = self.uploads.get(&lease) else { return };
        match upload.course() {
            course if course == before => {}
            Course::Whole => {
                log::info!("the capture of lease {lease} is at the controller: {stored} bytes");
                self.forget(lease);
            }
            Course::Removed => {
                log::info!("the capture of lease {lease} was removed at the controller, and is here, too");
                self.cut(lease, false);
                if !self.running.contains_key(&lease) {
                    self.forget(lease);
                }
            }
            Course::Unwanted => log::warn!("the controller does not want the capture of lease {lease}: it stays here until it is too old"),
            Course::Open => {}
        }
    }

    /// When [`Captures::on_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.uploads.values().filter_map(Upload::poll_timeout).min()
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Duration) {
        for (lease, upload) in &mut self.uploads {
            if upload.on_timeout(now) {
                log::warn!("no answer to chunks of lease {lease}: the controller is asked what it has");
            }
        }
    }
}

/// SHA-256 of a file, and its length.
fn digest(path: &Path) -> std::io::Result<([u8; 32], u64)> {
    use sha2::Digest;
    let (mut hasher, mut file) = (sha2::Sha256::new(), File::open(path)?);
    let len = std::io::copy(&mut file, &mut hasher)?;
    Ok((hasher.finalize().into(), len))
}

/// What is left of a capture that nobody goes on with: what it counted went with the program that was killed, and the packets of the
/// file are all that is known.
fn interrupted(path: &Path, lease: LeaseId, began: UnixMillis) -> Result<Captured, String> {
    let left = files::cut(path).map_err(|error| chain(&error))?;
    let (sha256, len) = match digest(path) {
        Ok(known) => known,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (<sha2::Sha256 as sha2::Digest>::digest([]).into(), 0),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    Ok(Captured {
        lease,
        began,
        ended: super::tasks::unix_now(None),
        interface: String::new(),
        filter: String::new(),
        end: CaptureEnd::Interrupted,
        counts: CaptureCounts { accepted: left.packets, delivered: left.packets, written: left.packets, ..CaptureCounts::default() },
        sections: left.sections,
        len,
        sha256,
    })
}

#[cfg(feature = "libpcap")]
use thread::begin;

/// Without libpcap nothing is captured.
#[cfg(not(feature = "libpcap"))]
fn begin(_: Work, _: Arc<AtomicBool>, _: mpsc::UnboundedSender<CaptureEvent>) -> Result<Thread, String> {
    Err("this build of the program has no libpcap, and captures nothing".to_owned())
}
