//! The inquiry of one port: who asks what, in which order, and what is made of the answers.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use picket_wire::job::Transport;
use picket_wire::service::{BANNER_MAX, Service, ServiceOutcome};
use picket_wire::units::UnixMillis;
use tokio::time::timeout;

use super::conn::{Conn, Heard, Port, Unopened};
use super::dialogue::{Dialogue, End, Finding, Step};
use super::guess::{self, Opening};
use super::protocols::{Protocol, Setting};
use super::tls::certificate;
use super::tls::hello::{Hello, Version};
use super::tls::layer::{Session, TlsFailure};
use super::{DetectOptions, recog};
use crate::net::clock;

/// Most connections to one port at a time.
pub const WIDTH: usize = 6;
/// Turns of a dialogue, more than any takes that comes to an end.
const TURNS_MAX: usize = 256;
/// In how many more pieces a greeting may come that does not yet say what it is.
const GREETING_PIECES: usize = 5;
/// How long each of them may take.
const WHOLE: Duration = Duration::from_millis(100);

/// What is known of a port while it is still being asked, for when its time is over.
#[derive(Default)]
pub(super) struct Notes(Mutex<Known>);

#[derive(Default)]
struct Known {
    opened: bool,
    refused: bool,
    lost: Option<String>,
    banner: Vec<u8>,
    best: Option<Box<Finding>>,
}

/// What came of a question.
#[derive(Debug)]
enum Verdict {
    Found(Box<Finding>),
    /// Something else answered; its first bytes.
    Foreign(Vec<u8>),
    /// No answer.
    Nothing,
}

impl Notes {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Plain data: whoever panicked left it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, bytes: &[u8]) {
        let mut known = self.known();
        if known.banner.is_empty() {
            known.banner.extend(bytes.iter().take(BANNER_MAX));
        }
    }

    fn unopened(&self, why: Unopened) {
        let mut known = self.known();
        match why {
            Unopened::Refused => known.refused = true,
            Unopened::Lost(why) => known.lost = Some(why),
        }
    }

    /// What the port comes to, by what is known.
    pub(super) fn outcome(&self, options: &DetectOptions) -> ServiceOutcome {
        let mut known = self.known();
        let banner = core::mem::take(&mut known.banner);
        match known.best.take() {
            Some(finding) => ServiceOutcome::Identified(Box::new(recognise(*finding, options))),
            None if !banner.is_empty() => match guess::by_bytes(&banner).filter(|protocol| *protocol != Protocol::Tls) {
                Some(protocol) => {
                    ServiceOutcome::Identified(Box::new(Service { name: protocol.name().to_owned(), banner, ..Service::default() }))
                }
                None => ServiceOutcome::Unidentified { banner },
            },
            None if known.opened => ServiceOutcome::Silent,
            None if known.refused => ServiceOutcome::Refused,
            None => ServiceOutcome::Lost(known.lost.take().unwrap_or_else(|| "no connection came about in time".into())),
        }
    }
}

/// Adds what fingerprints know. What they say of product and version goes before what the dialogue made of the same words.
fn recognise(finding: Finding, options: &DetectOptions) -> Service {
    let mut service = finding.service;
    let (product, version) = (service.product.take(), service.version.take());
    for (key, text) in &finding.lookups {
        if let Some(found) = options.fingerprints.identify(key, text) {
            recog::apply(&found, &mut service);
        }
    }
    let same = match (&service.product, &product) {
        (Some(theirs), Some(ours)) => theirs.eq_ignore_ascii_case(ours),
        (theirs, _) => theirs.is_none(),
    };
    if same {
        service.version = service.version.or(version);
    }
    service.product = service.product.or(product);
    service
}

/// Asks a port until it is known what serves there, or nothing is left to ask.
pub(super) async fn inquire(port: &Arc<Port>, notes: &Notes) -> ServiceOutcome {
    let target = port.target;
    let options = &port.shared.options;
    let conn = match Conn::open(port).await {
        Ok(conn) => conn,
        Err(why) => {
            notes.unopened(why);
            return notes.outcome(options);
        }
    };
    notes.known().opened = true;
    if options.site.spares(options.options.ask_fragile, target.transport, target.port).is_some() {
        return ServiceOutcome::Spared;
    }
    let found = match target.transport {
        Transport::Tcp => stream(port, notes, conn).await,
        _ => datagrams(port, notes, conn).await,
    };
    if let Some(finding) = found {
        notes.known().best = Some(finding);
    }
    notes.outcome(options)
}

/// The inquiry of a UDP port: what is usual there, and only where that is not answered everything else.
async fn datagrams(port: &Arc<Port>, notes: &Notes, conn: Conn) -> Option<Box<Finding>> {
    let mut inquiry = Inquiry::new(port, notes, None);
    if let Some(protocol) = guess::usual(port.target.port, port.target.transport) {
        inquiry.tried.push(protocol);
        match ask(port, notes, protocol, Some(conn), port.shared.options.deadlines.answer).await {
            Verdict::Found(finding) => return Some(finding),
            other => inquiry.take(other),
        }
    }
    inquiry.run(None).await
}

/// The inquiry of a TCP port, of which the first connection stands.
async fn stream(port: &Arc<Port>, notes: &Notes, mut conn: Conn) -> Option<Box<Finding>> {
    let number = port.target.port;
    let deadlines = port.shared.options.deadlines;
    let mut inquiry = Inquiry::new(port, notes, guess::usual(number, Transport::Tcp).filter(|_| !guess::is_tls_port(number)));
    let opening = guess::opening(number);
    if let Opening::Ask(protocol) = opening {
        inquiry.tried.push(protocol);
        // A small box may think long over a handshake: it is waited for while others ask.
        let brief = deadlines.answer + 4 * conn.rtt();
        let mut first = ask(port, notes, protocol, Some(conn), deadlines.greeting).boxed();
        return match timeout(brief, &mut first).await {
            Ok(Verdict::Found(finding)) => Some(finding),
            Ok(other) => {
                inquiry.take(other);
                inquiry.run(None).await
            }
            Err(_) => inquiry.run(Some(Listener { greeting: first, patient: true })).await,
        };
    }
    let (mut heard, mut how) = overhear(&mut conn, deadlines.listen).await;
    if how == Heard::End(End::Closed) || guess::is_sent_away(&heard) {
        // Who has too many visitors sends some away before a word is said; not all of the next, nor those that come later.
        drop(conn);
        tokio::time::sleep(deadlines.again).await;
        conn = match Conn::open(port).await {
            Ok(conn) => conn,
            Err(why) => {
                notes.unopened(why);
                notes.hear(&heard);
                return None;
            }
        };
        let last = core::mem::take(&mut heard);
        (heard, how) = overhear(&mut conn, deadlines.listen).await;
        if how != Heard::Bytes && !last.is_empty() {
            (heard, how) = (last, Heard::Bytes);
        }
    }
    match how {
        Heard::Bytes => match greeted(port, notes, conn, heard).await {
            Verdict::Found(finding) => Some(finding),
            other => {
                inquiry.take(other);
                inquiry.run(None).await
            }
        },
        Heard::End(End::Silence) => {
            let patient = opening == Opening::Greeting;
            let greeting = async move {
                match conn.receive(&mut heard, deadlines.greeting).await {
                    Heard::Bytes => greeted(port, notes, conn, heard).await,
                    Heard::End(_) => Verdict::Nothing,
                }
            };
            inquiry.run(Some(Listener { greeting: greeting.boxed(), patient })).await
        }
        Heard::End(_) => inquiry.run(None).await,
    }
}

/// Listens for a greeting, and for as much of it as says what it is.
async fn overhear(conn: &mut Conn, wait: Duration) -> (Vec<u8>, Heard) {
    let mut heard = Vec::new();
    let how = conn.receive(&mut heard, wait + 4 * conn.rtt()).await;
    if how == Heard::Bytes {
        for _ in 0..GREETING_PIECES {
            if guess::by_bytes(&heard).is_some() || conn.receive(&mut heard, WHOLE + 4 * conn.rtt()).await != Heard::Bytes {
                break;
            }
        }
    }
    (heard, how)
}

/// A greeting was heard: goes on in the protocol that it looks like.
async fn greeted(port: &Arc<Port>, notes: &Notes, conn: Conn, heard: Vec<u8>) -> Verdict {
    notes.hear(&heard);
    match guess::by_bytes(&heard) {
        Some(protocol) if protocol.greets() => {
            let Some(dialogue) = protocol.dialogue(&setting(port, false)) else { return Verdict::Foreign(heard) };
            converse(port, notes, conn, dialogue, heard, port.shared.options.deadlines.follow).await
        }
        _ => Verdict::Foreign(heard),
    }
}

/// A first connection on which a greeting may still come while others ask.
struct Listener<'a> {
    greeting: BoxFuture<'a, Verdict>,
    /// Whether it is worth waiting for when all others are done.
    patient: bool,
}

/// What is still to be asked of a port.
struct Inquiry<'a> {
    port: &'a Arc<Port>,
    notes: &'a Notes,
    queue: VecDeque<Protocol>,
    tried: Vec<Protocol>,
}

impl<'a> Inquiry<'a> {
    fn new(port: &'a Arc<Port>, notes: &'a Notes, usual: Option<Protocol>) -> Self {
        let generic = guess::generic(port.target.transport).iter().copied();
        Self { port, notes, queue: usual.into_iter().chain(generic).collect(), tried: Vec::new() }
    }

    /// Takes what a question came to, where that was no end: first bytes say what to ask next.
    fn take(&mut self, verdict: Verdict) {
        if let Verdict::Foreign(bytes) = verdict {
            self.notes.hear(&bytes);
            if let Some(protocol) = guess::by_bytes(&bytes) {
                self.queue.push_front(protocol);
            }
        }
    }

    /// The next question that was not asked yet.
    fn next(&mut self) -> Option<Protocol> {
        loop {
            let protocol = self.queue.pop_front()?;
            if !self.tried.contains(&protocol) {
                self.tried.push(protocol);
                return Some(protocol);
            }
        }
    }

    /// Asks what is left, several at a time, until one knows.
    async fn run(mut self, listener: Option<Listener<'a>>) -> Option<Box<Finding>> {
        let mut open = FuturesUnordered::new();
        let patient = listener.as_ref().is_some_and(|listener| listener.patient);
        let mut listening = listener.is_some();
        let mut greeting = listener.map_or_else(|| core::future::pending().boxed(), |listener| listener.greeting);
        loop {
            while open.len() + 1 < WIDTH
                && let Some(protocol) = self.next()
            {
                open.push(ask(self.port, self.notes, protocol, None, self.port.shared.options.deadlines.answer));
            }
            if open.is_empty() && !(listening && patient) {
                return None;
            }
            let verdict = tokio::select! {
                Some(verdict) = open.next() => verdict,
                verdict = &mut greeting, if listening => {
                    listening = false;
                    verdict
                }
            };
            match verdict {
                Verdict::Found(finding) => return Some(finding),
                other => self.take(other),
            }
        }
    }
}

fn setting(port: &Port, tls: bool) -> Setting {
    let mut random = [0; 32];
    // Where the system has none left, what is not secret may as well be constant.
    let _ = getrandom::fill(&mut random);
    Setting { addr: port.target.addr, port: port.target.port, transport: port.target.transport, tls, random, now: today(port) }
}

/// The caller's trusted time.
fn today(port: &Port) -> Option<UnixMillis> {
    port.shared.options.wall.map(|wall| wall.after(clock::now().saturating_since(port.shared.begun)))
}

/// Asks whether a port speaks `protocol`, on `conn` or on a connection of its own; waits `patience` for the first answer.
async fn ask(port: &Arc<Port>, notes: &Notes, protocol: Protocol, conn: Option<Conn>, patience: Duration) -> Verdict {
    let conn = match conn {
        Some(conn) => conn,
        None => match Conn::open(port).await {
            Ok(conn) => conn,
            Err(why) => {
                notes.unopened(why);
                return Verdict::Nothing;
            }
        },
    };
    match protocol.dialogue(&setting(port, false)) {
        Some(dialogue) => converse(port, notes, conn, dialogue, Vec::new(), patience).await,
        None if protocol == Protocol::Tls => ask_tls(port, notes, conn, patience).await,
        None => Verdict::Nothing,
    }
}

/// Leads a dialogue to its end; `input` was heard already, the first answer is waited for as long as `patience`.
async fn converse(
    port: &Arc<Port>,
    notes: &Notes,
    mut conn: Conn,
    mut dialogue: Box<dyn Dialogue>,
    mut input: Vec<u8>,
    patience: Duration,
) -> Verdict {
    let deadlines = port.shared.options.deadlines;
    let mut first: Vec<u8> = input.iter().copied().take(BANNER_MAX).collect();
    let mut said = Vec::new();
    let mut upgraded = false;
    // A question whose datagram, or whose answer's, is lost is asked once more.
    let udp = port.target.transport == Transport::Udp;
    let mut again = udp;
    let mut step = dialogue.start();
    if !input.is_empty() && step == Step::More {
        step = dialogue.on_bytes(&mut input);
    }
    for _ in 0..TURNS_MAX {
        let finding = match step {
            Step::Send(bytes) => {
                if conn.send(&bytes).await.is_err() && conn.tls().is_some() {
                    break;
                }
                said = bytes;
                None
            }
            Step::More => None,
            Step::StartTls => {
                let stands = match Session::new(port.target.addr, &[]) {
                    Some(session) => conn.start_tls(session, &mut Vec::new(), deadlines.follow).await.is_ok(),
                    None => false,
                };
                upgraded = stands;
                step = dialogue.on_tls(stands);
                continue;
            }
            Step::Done(finding) => Some(finding),
            Step::Foreign => return if first.is_empty() { Verdict::Nothing } else { Verdict::Foreign(first) },
        };
        if let Some(finding) = finding {
            if !finding.farewell.is_empty() {
                // Whoever is gone already needs no good-bye.
                let _ = conn.send(finding.farewell).await;
            }
            return Verdict::Found(seal(port, &conn, finding, first, upgraded));
        }
        let wait = if first.is_empty() { patience } else { deadlines.follow } + 4 * conn.rtt();
        let before = input.len();
        match conn.receive(&mut input, wait).await {
            Heard::Bytes => {
                let fresh = input.get(before..).unwrap_or_default();
                first.extend(fresh.iter().take(BANNER_MAX - first.len().min(BANNER_MAX)));
                notes.hear(&first);
                again = udp;
                if first.len() > 3 && said.starts_with(&first) {
                    return Verdict::Found(Box::new(Finding::new("echo")));
                }
                step = dialogue.on_bytes(&mut input);
            }
            Heard::End(End::Silence) if again => {
                again = false;
                step = Step::Send(said.clone());
            }
            Heard::End(how) => {
                if how == End::Silence
                    && let Some(next) = dialogue.on_silence()
                {
                    again = udp;
                    step = next;
                    continue;
                }
                return match dialogue.on_end(&input, how) {
                    Some(finding) => Verdict::Found(seal(port, &conn, finding, first, upgraded)),
                    None if first.is_empty() => Verdict::Nothing,
                    None => Verdict::Foreign(first),
                };
            }
        }
    }
    if first.is_empty() { Verdict::Nothing } else { Verdict::Foreign(first) }
}

/// Adds to a finding what the connection knows.
fn seal(port: &Port, conn: &Conn, mut finding: Box<Finding>, first: Vec<u8>, upgraded: bool) -> Box<Finding> {
    if finding.service.banner.is_empty() {
        finding.service.banner = first;
    }
    // What began in TLS is told by who began it.
    if let Some(session) = conn.tls().filter(|_| upgraded) {
        agree(port, session, &mut finding);
    }
    finding
}

/// Notes what a session agreed on.
fn agree(port: &Port, session: &Session, finding: &mut Finding) {
    let agreed = session.agreed();
    finding.fact("tls.version", agreed.version);
    finding.fact("tls.cipher", agreed.cipher);
    finding.fact("tls.alpn", agreed.alpn.unwrap_or_default());
    finding.fact("tls.client_certificate", if agreed.wants_certificate { "asked" } else { "" });
    certificate::describe(&agreed.chain, today(port), finding);
}

/// Asks for TLS, and for what is spoken inside.
async fn ask_tls(port: &Arc<Port>, notes: &Notes, mut conn: Conn, patience: Duration) -> Verdict {
    let http = !guess::greets_in_tls(port.target.port)
        && guess::usual(port.target.port, Transport::Tcp).is_none_or(|protocol| protocol == Protocol::Http);
    let alpn: &[&[u8]] = if http { &[b"http/1.1"] } else { &[] };
    let Some(session) = Session::new(port.target.addr, alpn) else { return Verdict::Nothing };
    let mut heard = Vec::new();
    let mut outer = Finding::new("tls");
    outer.service.tls = true;
    match conn.start_tls(session, &mut heard, patience).await {
        Ok(()) => {}
        Err(TlsFailure::Foreign) => return Verdict::Foreign(heard),
        Err(TlsFailure::Silent | TlsFailure::Closed) => return Verdict::Nothing,
        Err(TlsFailure::Disagreed(why)) => {
            outer.fact("tls.failure", why);
            drop(conn);
            notes.known().best = Some(Box::new(outer.clone()));
            merge_versions(&mut outer, versions(port, None).await);
            return Verdict::Found(Box::new(outer));
        }
    }
    if let Some(session) = conn.tls() {
        agree(port, session, &mut outer);
    }
    notes.known().best = Some(Box::new(outer.clone()));
    let best = outer.service.fact("tls.version").map(str::to_owned);
    let (found, inner) = tokio::join!(versions(port, best.as_deref()), ask_inside(port, notes, conn));
    merge_versions(&mut outer, found);
    Verdict::Found(Box::new(match inner {
        Some(inner) => inside(outer, *inner),
        None => outer,
    }))
}

/// A finding inside a session: what was found there, with the session's facts first.
fn inside(outer: Finding, inner: Finding) -> Finding {
    let Finding { service, lookups, .. } = outer;
    let mut finding = inner;
    finding.service.tls = true;
    finding.service.facts.splice(0..0, service.facts);
    finding.lookups.extend(lookups);
    finding
}

/// Asks by our own hellos for every version but `known`.
async fn versions(port: &Arc<Port>, known: Option<&str>) -> Vec<Finding> {
    let asked = Version::ALL.into_iter().filter(|version| Some(version.as_str()) != known).map(|version| async move {
        let conn = Conn::open(port).await.ok()?;
        let setting = setting(port, false);
        let hello = Box::new(Hello::new(version, setting.random, setting.now));
        match converse(port, &Notes::default(), conn, hello, Vec::new(), port.shared.options.deadlines.follow).await {
            Verdict::Found(finding) => Some(*finding),
            _ => None,
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Adds the versions that were taken, and where nothing better is known what the newest of them showed.
fn merge_versions(outer: &mut Finding, found: Vec<Finding>) {
    let own = outer.service.fact("tls.version").map(str::to_owned);
    let mut taken: Vec<String> = found.iter().filter_map(|finding| finding.service.fact("tls.version").map(str::to_owned)).collect();
    taken.extend(own);
    taken.sort();
    outer.fact("tls.versions", taken.join(" "));
    for finding in found.into_iter().rev() {
        for (name, value) in finding.service.facts {
            if outer.service.fact(&name).is_none() {
                outer.fact(&name, value);
            }
        }
        if outer.lookups.is_empty() {
            outer.lookups = finding.lookups;
        }
    }
}

/// Finds out what is spoken inside TLS; the first session stands on `conn`.
async fn ask_inside(port: &Arc<Port>, notes: &Notes, mut conn: Conn) -> Option<Box<Finding>> {
    let number = port.target.port;
    let deadlines = port.shared.options.deadlines;
    let setting = setting(port, true);
    // A banner in the clear and one inside are not the same.
    let aside = Notes::default();
    let verdict = if guess::greets_in_tls(number) {
        let mut heard = Vec::new();
        if conn.receive(&mut heard, deadlines.greeting).await != Heard::Bytes {
            return None;
        }
        match guess::by_bytes(&heard).filter(|protocol| protocol.greets()).and_then(|protocol| protocol.dialogue(&setting)) {
            Some(dialogue) => converse(port, &aside, conn, dialogue, heard, deadlines.follow).await,
            None => Verdict::Foreign(heard),
        }
    } else {
        let usual = guess::usual(number, Transport::Tcp).unwrap_or(Protocol::Http);
        converse(port, &aside, conn, usual.dialogue(&setting)?, Vec::new(), deadlines.follow).await
    };
    match verdict {
        Verdict::Found(finding) => Some(finding),
        Verdict::Foreign(bytes) => {
            notes.hear(&bytes);
            let dialogue = guess::by_bytes(&bytes)?.dialogue(&setting)?;
            reopen(port, &aside, dialogue).await
        }
        Verdict::Nothing if guess::usual(number, Transport::Tcp).is_some_and(|usual| usual != Protocol::Http) => {
            reopen(port, &aside, Protocol::Http.dialogue(&setting)?).await
        }
        Verdict::Nothing => None,
    }
}

/// Leads a dialogue in a session of its own.
async fn reopen(port: &Arc<Port>, notes: &Notes, dialogue: Box<dyn Dialogue>) -> Option<Box<Finding>> {
    let mut conn = Conn::open(port).await.ok()?;
    let patience = port.shared.options.deadlines.follow;
    conn.start_tls(Session::new(port.target.addr, &[])?, &mut Vec::new(), patience).await.ok()?;
    match converse(port, notes, conn, dialogue, Vec::new(), patience).await {
        Verdict::Found(finding) => Some(finding),
        _ => None,
    }
}
