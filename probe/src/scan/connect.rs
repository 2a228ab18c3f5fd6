//! The TCP connect scan: the operating system's sockets instead of raw packets, for runs without privilege.
//!
//! Same schedule, same chunks, same events and the same pacer as the raw engine; only that a probe is a connection attempt.
//! It cannot see TTLs (reported as 0), its round trips include the scheduler's delay, and it learns of ICMP errors only what
//! the operating system makes of them. A neighbour that does not answer the operating system's ARP or neighbour discovery is
//! silent here: the kernel says so only after three seconds, when the wait is over.
//!
//! **What it sends is counted**: a SYN per attempt, an acknowledgement and a reset per open port. An attempt is given up
//! before the kernel would repeat its SYN by itself ([`KERNEL_REPEATS`]), so nothing leaves unpaced; a host slower than that
//! is silent to this technique. Connections are closed by a reset: nothing lingers here or there.
//!
//! **Invariant:** a connection is only begun to an address that the gate permits, when the pacer admits it.

use core::future::Future;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, MutexGuard, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use picket_wire::job::Technique;
use picket_wire::result::State;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use super::report::{Event, Progress};
use super::schedule::{Probe, Schedule};
use super::spec::{Cut, ScanPlan, SpecError, Timing};
use crate::net::clock;
use crate::net::engine::{NotSent, Source};
use crate::net::link::SHAPER_MARK;
use crate::net::pacer::{Limits, Pacer, SharedPacer};
use crate::net::target_pacer::{TargetPacer, TooSoon};
use crate::net::time::Instant;
use crate::packet::icmp;

/// Linux repeats a SYN after one second (RFC 6298, section 2); we are gone before.
pub const KERNEL_REPEATS: Duration = Duration::from_millis(950);
/// Descriptors that the rest of the process may need.
const SPARE_DESCRIPTORS: u64 = 64;
/// Targets looked at in one turn at most.
const MISSES_PER_TURN: u32 = 1024;
/// More connections at a time than any rate needs that a small board can keep up.
const MAX_OPEN: usize = 4096;
/// Frames of a connection attempt as Linux makes them: Ethernet header, IP header, 40 octets of TCP with options.
const fn syn_frame(v4: bool) -> usize {
    14 + if v4 { 20 } else { 40 } + 40
}
/// The acknowledgement of a SYN-ACK (with timestamps), and the reset that closes.
const fn closing_frames(v4: bool) -> (usize, usize) {
    // An IPv4 reset is padded to the shortest frame.
    (2, (14 + if v4 { 20 } else { 40 }) + 32 + if v4 { 60 } else { 14 + 40 + 20 })
}

/// Why a connect scan ended without its end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The plan is for another technique.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The kernel gave no timer.
    #[error("cannot make a timer for pacing")]
    Timer(#[source] io::Error),
    /// Nobody takes the results any more.
    #[error("nobody takes the results any more")]
    Gone,
}

/// How a connect scan runs.
#[derive(Debug)]
pub struct ConnectOptions {
    /// The limits that all connect scans on the interface share.
    pub interface: SharedPacer,
    /// What this scan asked for.
    pub rate: Limits,
    /// Limits towards each address and network, where there are any.
    pub targets: Option<TargetPacer>,
    /// Addresses to connect from; a family without one is left to the kernel.
    pub source: Source,
    /// Most connections at a time. [`open_limit`] says how many this process can have.
    pub max_open: usize,
    /// Where it tells how it stands.
    pub progress: Arc<Progress>,
}

/// How many connections this process can have at a time; raises its limit of descriptors as far as it may.
pub fn open_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    let wanted = hard.min(MAX_OPEN as u64 + SPARE_DESCRIPTORS);
    let have = if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft };
    usize::try_from(have.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(MAX_OPEN).clamp(16, MAX_OPEN)
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answer(State),
    /// Nothing came in time, or the kernel gave up.
    Nothing,
    NotSent(NotSent),
    /// No descriptor or no port is free: others must end first.
    NoRoom,
}

/// Runs a scan until it is done or `stop` says how to end it. Events come as from the raw engine; the last is
/// [`Event::Done`].
///
/// # Errors
/// If the plan is not a connect scan, if there is no timer, or if `events` is closed.
pub async fn run(
    plan: &ScanPlan,
    options: ConnectOptions,
    gate: impl Fn(IpAddr) -> bool,
    events: mpsc::Sender<Event>,
    stop: impl Future<Output = Cut>,
) -> Result<(), ConnectError> {
    if plan.technique != Technique::Connect {
        return Err(SpecError::NotConnect(plan.technique).into());
    }
    let timing = Timing { initial: KERNEL_REPEATS, ceiling: KERNEL_REPEATS.min(plan.timing.ceiling), ..plan.timing };
    let mut scan = Scan {
        schedule: Schedule::new(&ScanPlan { timing, ..plan.clone() }),
        plan,
        own: Pacer::new(options.rate),
        max_open: options.max_open.max(1),
        options,
    };
    scan.own.idle(clock::now());
    let timer = Timer::new().map_err(ConnectError::Timer)?;
    let mut stop = pin!(stop);
    let mut stopped = false;
    let mut open = FuturesUnordered::new();
    loop {
        scan.options.progress.publish(scan.schedule.next(), &scan.schedule.stats());
        while let Some(event) = scan.schedule.poll_event() {
            let done = matches!(event, Event::Done(_));
            events.send(event).await.map_err(|_| ConnectError::Gone)?;
            if done {
                return Ok(());
            }
        }
        let now = clock::now();
        if scan.schedule.poll_timeout().is_some_and(|(at, _)| at <= now) {
            scan.schedule.on_timeout(now);
        }
        let mut hungry = true;
        // Refused targets cost no time of the pacer's: others must get their turn all the same.
        let mut budget = MISSES_PER_TURN;
        while hungry && budget > 0 && open.len() < scan.max_open && scan.is_ready(now) {
            budget -= 1;
            match scan.next(now, &gate) {
                Some(Some(attempt)) => open.push(attempt),
                // It was refused: the next one may do.
                Some(None) => {}
                None => hungry = false,
            }
        }
        if !hungry {
            scan.idle(now);
        }
        let ready = (hungry && open.len() < scan.max_open).then(|| scan.ready_at());
        let due = scan.schedule.poll_timeout().map(|(at, _)| at);
        let wake = ready.into_iter().chain(due).min().unwrap_or(now + Duration::from_secs(1));
        tokio::select! {
            Some((probe, outcome)) = open.next() => scan.book(clock::now(), probe, outcome, open.len()),
            how = &mut stop, if !stopped => {
                stopped = true;
                scan.schedule.cut(clock::now(), how);
            }
            () = timer.until(clock::now(), wake) => {}
        }
    }
}

struct Scan<'a> {
    schedule: Schedule,
    plan: &'a ScanPlan,
    own: Pacer,
    options: ConnectOptions,
    max_open: usize,
}

impl Scan<'_> {
    fn interface(&self) -> MutexGuard<'_, Pacer> {
        // A pacer is plain numbers: whoever panicked left it usable.
        self.options.interface.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready_at(&self) -> Instant {
        self.own.ready_at().max(self.interface().ready_at())
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.ready_at() <= now
    }

    fn charge(&mut self, now: Instant, frames: usize, bytes: usize) {
        self.own.charge(now, frames, bytes);
        self.interface().charge(now, frames, bytes);
    }

    fn idle(&mut self, now: Instant) {
        self.own.idle(now);
        self.interface().idle(now);
    }

    /// Begins the next attempt. `None`: there is none now; `Some(None)`: there was one, and it may not be made.
    fn next<G: Fn(IpAddr) -> bool>(&mut self, now: Instant, gate: &G) -> Option<Option<impl Future<Output = (Probe, Outcome)> + use<G>>> {
        let probe = self.schedule.poll(now)?;
        let target = self.plan.space.target(probe.position)?;
        let v4 = target.addr.is_ipv4();
        // The address that the packet will really carry, so asked again each time.
        if !gate(target.addr.to_canonical()) {
            self.schedule.not_sent(now, probe, NotSent::Refused, 0);
            return Some(None);
        }
        if let Some(targets) = &self.options.targets {
            if let Err(TooSoon { until, lane }) = targets.check(now, target.addr) {
                self.schedule.not_sent(now, probe, NotSent::TooSoon { until, lane }, 0);
                return Some(None);
            }
            targets.admit(now, target.addr);
        }
        self.charge(now, 1, syn_frame(v4));
        self.schedule.add_bytes(probe, syn_frame(v4) - 14);
        let to = SocketAddr::new(target.addr, target.port.unwrap_or(0));
        let from = match v4 {
            true => self.options.source.v4.map(IpAddr::V4),
            false => self.options.source.v6.map(IpAddr::V6),
        };
        let patience = self.schedule.listening(probe.attempt).min(KERNEL_REPEATS);
        Some(Some(async move { (probe, attempt(from, to, patience).await) }))
    }

    fn book(&mut self, now: Instant, probe: Probe, outcome: Outcome, open: usize) {
        let v4 = self.plan.space.target(probe.position).is_none_or(|target| target.addr.is_ipv4());
        let bytes = syn_frame(v4) - 14;
        match outcome {
            Outcome::Answer(state) => {
                if state == State::Open {
                    let (frames, bytes) = closing_frames(v4);
                    self.charge(now, frames, bytes);
                }
                self.schedule.answer(now, probe, state, 0);
            }
            Outcome::Nothing => {}
            Outcome::NotSent(why) => self.schedule.not_sent(now, probe, why, bytes),
            Outcome::NoRoom if open == 0 => self.schedule.not_sent(now, probe, NotSent::LinkError, bytes),
            Outcome::NoRoom => {
                self.max_open = open;
                self.schedule.not_sent(now, probe, NotSent::NeighbourPending, bytes);
            }
        }
    }
}

/// One connection attempt.
async fn attempt(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Outcome {
    let socket = match if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() } {
        Ok(socket) => socket,
        Err(error) => return refused_at_once(to.ip(), &error),
    };
    // Best effort: it takes a privilege, and whoever has none has no shaper either.
    let _ = setsockopt(&socket, sockopt::Mark, &SHAPER_MARK);
    // Best effort: an orderly close would do as well, and only costs more packets.
    let _ = socket.set_zero_linger();
    if let Some(from) = from
        && let Err(error) = socket.bind(SocketAddr::new(from, 0))
    {
        return refused_at_once(to.ip(), &error);
    }
    let mut connecting = pin!(socket.connect(to));
    // What the system call itself says concerns this host; what it says later, the network.
    let first = core::future::poll_fn(|context| Poll::Ready(connecting.as_mut().poll(context))).await;
    match first {
        Poll::Ready(Ok(_)) => Outcome::Answer(State::Open),
        Poll::Ready(Err(error)) => refused_at_once(to.ip(), &error),
        Poll::Pending => match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(_)) => Outcome::Answer(State::Open),
            Ok(Err(error)) => refused_later(to.ip(), &error),
            Err(_) => Outcome::Nothing,
        },
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// The kernel refused before anything was sent. A closed port on this very host is refused at once as well.
fn refused_at_once(to: IpAddr, error: &io::Error) -> Outcome {
    match errno(error) {
        Errno::ECONNREFUSED => Outcome::Answer(State::Closed),
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EAFNOSUPPORT | Errno::EINVAL => Outcome::NotSent(NotSent::NoRoute),
        Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN => Outcome::NoRoom,
        Errno::EACCES | Errno::EPERM | Errno::ENETDOWN => {
            log::debug!("connection to {to} was not begun: {error}");
            Outcome::NotSent(NotSent::LinkError)
        }
        other => {
            log::debug!("connection to {to} was not begun: {other}");
            Outcome::NotSent(NotSent::LinkError)
        }
    }
}

/// An answer as the kernel tells it. Of several ICMP codes with one meaning to it, the most usual one stands for all.
fn refused_later(to: IpAddr, error: &io::Error) -> Outcome {
    let filtered = |v4_code, v6_code| match to {
        IpAddr::V4(_) => Outcome::Answer(State::Filtered { icmp_type: icmp::V4_UNREACHABLE, icmp_code: v4_code }),
        IpAddr::V6(_) => Outcome::Answer(State::Filtered { icmp_type: icmp::V6_UNREACHABLE, icmp_code: v6_code }),
    };
    match errno(error) {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Outcome::Answer(State::Closed),
        // Network unreachable; no route to destination.
        Errno::ENETUNREACH => filtered(0, 0),
        // Host unreachable; address unreachable. Also what the kernel says when a neighbour does not answer.
        Errno::EHOSTUNREACH => filtered(1, 3),
        // Communication administratively prohibited.
        Errno::EACCES | Errno::EPERM => filtered(13, 1),
        _ => Outcome::Nothing,
    }
}

/// Sleeps to the microsecond, where tokio's own timers count milliseconds: at 10,000 attempts per second that matters.
struct Timer(AsyncFd<Descriptor>);

struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    #[expect(deprecated, reason = "its successor is unsafe code for what holds here: a TimerFd keeps one descriptor for life")]
    fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self(AsyncFd::new(Descriptor(timer))?))
    }

    /// Waits from `now` until `at`; gives others a turn where that is past.
    async fn until(&self, now: Instant, at: Instant) {
        let wait = at.saturating_since(now).max(Duration::from_micros(1));
        let set = self.0.get_ref().0.set(Expiration::OneShot(TimeSpec::from_duration(wait)), TimerSetTimeFlags::empty());
        if let Err(error) = set {
            log::warn!("timer: {error}");
            return tokio::task::yield_now().await;
        }
        if let Ok(mut ready) = self.0.readable().await {
            // Setting it anew takes the expiry back; the readiness must be forgotten by hand.
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use std::net::{TcpListener, TcpStream};

    use picket_wire::addr::parse_set;
    use picket_wire::job::ScanOptions;
    use picket_wire::space::{TargetSpace, TargetSpec};
    use picket_wire::units::{PacketsPerSecond, PortSet};

    use super::*;
    use crate::scan::report::{ChunkReport, Done};

    fn plan(addrs: &str, ports: impl IntoIterator<Item = u16>, attempts: u8) -> ScanPlan {
        let ports = Some(PortSet::from_ranges(ports.into_iter().map(|port| (port, port))));
        let spec = TargetSpec { include: parse_set(addrs).unwrap(), exclude: parse_set("").unwrap(), ports, seed: 3 };
        let space = Arc::new(TargetSpace::new(&spec).unwrap());
        let len = space.len();
        ScanPlan::new(space, 0, len, ScanOptions { technique: Technique::Connect, attempts }).unwrap()
    }

    fn options(limits: Limits) -> ConnectOptions {
        let interface = Arc::new(Mutex::new(Pacer::new(limits)));
        ConnectOptions {
            interface,
            rate: Limits::UNLIMITED,
            targets: None,
            source: Source { v4: None, v6: None },
            max_open: 200,
            progress: Arc::default(),
        }
    }

    async fn scan(
        plan: &ScanPlan,
        options: ConnectOptions,
        gate: impl Fn(IpAddr) -> bool,
        stop: impl Future<Output = Cut>,
    ) -> (Vec<ChunkReport>, Done) {
        let (sender, mut receiver) = mpsc::channel(1000);
        run(plan, options, gate, sender, stop).await.unwrap();
        let mut chunks = Vec::new();
        loop {
            match receiver.recv().await.expect("the end is told") {
                Event::Chunk(report) => chunks.push(report),
                Event::Hosts(_) | Event::Proxy(_) => panic!("connections see no hardware addresses"),
                Event::Late(late) => panic!("no socket is open for {late:?}"),
                Event::Done(done) => return (chunks, done),
            }
        }
    }

    /// A port that drops SYNs: its queue of connections is full.
    fn silent_port() -> (u16, Vec<TcpStream>, socket2::Silent) {
        socket2::silent()
    }

    mod socket2 {
        use super::*;
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket};
        use std::os::fd::{AsRawFd, OwnedFd};

        pub(super) type Silent = OwnedFd;

        pub(super) fn silent() -> (u16, Vec<TcpStream>, OwnedFd) {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
            listen(&fd, Backlog::new(0).unwrap()).unwrap();
            let port = getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap().port();
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            let mut kept = Vec::new();
            while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(50)) {
                kept.push(stream);
            }
            (port, kept, fd)
        }
    }

    #[tokio::test]
    async fn finds_open_closed_and_silent_ports_of_the_loopback() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let open6 = TcpListener::bind("[::1]:0").unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        // A port that was free a moment ago is closed.
        let closed = port(&TcpListener::bind("127.0.0.1:0").unwrap());
        let (silent, _kept, _fd) = silent_port();
        let plan = plan("127.0.0.1,::1", [port(&open), port(&open6), closed, silent], 2);
        let (chunks, done) = scan(&plan, options(Limits::UNLIMITED), |_| true, core::future::pending()).await;
        assert_eq!(done.next, 8);
        let mut found = Vec::new();
        for report in &chunks {
            assert!(report.coverage().adds_up());
            for answer in &report.answers {
                let target = plan.space.target(report.from + answer.offset).unwrap();
                found.push((target.addr.to_string(), target.port.unwrap(), answer.state));
            }
        }
        for (addr, port, state) in [
            ("127.0.0.1", port(&open), State::Open),
            ("::1", port(&open6), State::Open),
            ("127.0.0.1", closed, State::Closed),
            ("::1", closed, State::Closed),
        ] {
            assert!(found.contains(&(addr.to_owned(), port, state)), "{addr} {port} {state:?}: {found:?}");
        }
        assert_eq!(chunks.iter().map(|report| report.coverage().silent).sum::<u64>(), 1, "{found:?}");
        assert_eq!(done.stats.sent_packets, 9, "the silent port is asked twice");
    }

    #[tokio::test]
    async fn the_gate_and_the_pacer_are_asked() {
        let rate = PacketsPerSecond::new(1000).unwrap();
        let plan = plan("127.0.0.1-127.0.0.20", 1..=10, 1);
        let denied: IpAddr = "127.0.0.7".parse().unwrap();
        let begun = clock::now();
        let (chunks, done) = scan(&plan, options(Limits::packets(rate)), |addr| addr != denied, core::future::pending()).await;
        let took = clock::now().saturating_since(begun);
        assert_eq!(chunks.iter().map(|report| report.coverage().refused).sum::<u64>(), 10);
        assert_eq!(done.stats.sent_packets, 190);
        // 190 frames at 1000 per second, but for the burst. How much longer it took is the machine's matter.
        assert!(took >= Duration::from_millis(170), "{took:?}");
    }

    #[tokio::test]
    async fn a_stop_ends_it_at_once() {
        let plan = plan("127.0.0.1", 1..=2000, 2);
        let slow = Limits::packets(PacketsPerSecond::new(500).unwrap());
        let stop = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Cut::Final
        };
        let (chunks, done) = scan(&plan, options(slow), |_| true, stop).await;
        let asked: u64 = chunks.iter().map(|report| report.coverage().asked).sum();
        assert_eq!(asked, done.next);
        assert!(done.next < 2000, "{done:?}");
    }

    #[tokio::test]
    async fn other_techniques_are_refused() {
        let spec = TargetSpec { include: parse_set("127.0.0.1").unwrap(), exclude: parse_set("").unwrap(), ports: None, seed: 3 };
        let space = Arc::new(TargetSpace::new(&spec).unwrap());
        let plan = ScanPlan::new(space, 0, 1, ScanOptions { technique: Technique::Echo, attempts: 1 }).unwrap();
        let (sender, _receiver) = mpsc::channel(1);
        let error = run(&plan, options(Limits::UNLIMITED), |_| true, sender, core::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "technique `echo` is not one of connections");
    }
}
