//! The TCP connect scan: the operating system's sockets instead of raw packets, for runs without privilege.
//!
//! Same schedule, same chunks, same events and the same pacer as the raw engine; only that a probe is a connection attempt.
//! It cannot see TTLs (reported as 0), its round trips include the scheduler's delay, and it learns of ICMP errors only what
//! the operating system makes of them. A neighbour that does not answer the operating system's ARP or neighbour discovery is
//! silent here: the kernel says so only after three seconds, when the wait is over.
//!
//! **What it sends is counted**, towards the interface, the scan and the limits of its target alike: a SYN per attempt; per open port the
//! acknowledgement that completes the handshake, a FIN, the acknowledgement of the other side's, and those of what it says unasked. SYN
//! and FIN wait for their turn, the rest leaves when the kernel wants to and others wait for it. An attempt is given up
//! before the kernel would repeat its SYN by itself ([`KERNEL_REPEATS`]), so nothing leaves unpaced; a host slower than that
//! is silent to this technique, and its late acceptance is reset by the kernel, which nobody sees or counts.
//!
//! **Every connection is closed in order**, not only those of fragile ports: which device is fragile is seldom known before. The price is
//! one frame more than a reset, and the kernel's memory of the connection for a minute (`TIME_WAIT`, some 250 bytes). That takes no
//! port from others, since the kernel gives the same one again towards another destination, and no destination is accepted by twice; where
//! the kernel has no more room for such memories (`net.ipv4.tcp_max_tw_buckets`) it forgets them, and nothing leaves for that.
//!
//! **Invariant:** a connection is only begun to an address that the gate permits, when the pacer admits it.
//! **Invariant:** attempts and connections that are not closed yet are together at most [`ConnectOptions::max_open`].
//! **Invariant:** who accepts is never reset, unless the scan is cut or he goes on talking when he has heard our end.

use core::future::Future;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use picket_wire::job::Technique;
use picket_wire::result::State;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::report::{Event, Progress};
use super::schedule::{Probe, Schedule};
use super::spec::{Cut, ScanPlan, SpecError, Timing};
use crate::net::clock;
use crate::net::engine::{NotSent, Source};
use crate::net::link::SHAPER_MARK;
use crate::net::pacer::{Limits, SharedPacer};
use crate::net::parting;
use crate::net::price::{Account, Broke, Price};
use crate::net::target_pacer::{TargetPacer, TooSoon};
use crate::net::time::Instant;
use crate::packet::{eth, icmp};

/// Linux repeats a SYN after one second (RFC 6298, section 2); we are gone before.
pub const KERNEL_REPEATS: Duration = Duration::from_millis(950);
/// Descriptors that the rest of the process may need.
const SPARE_DESCRIPTORS: u64 = 64;
/// Targets looked at in one turn at most.
const MISSES_PER_TURN: u32 = 1024;
/// More connections at a time than any rate needs that a small board can keep up.
const MAX_OPEN: usize = 4096;
/// Bytes of a SYN from the IP header on, as Linux makes it.
const fn syn_bytes(v4: bool) -> usize {
    Price::syn(v4).bytes - eth::HEADER_LEN
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
#[derive(Debug)]
enum Outcome {
    /// It was accepted.
    Open(TcpStream),
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
    let ConnectOptions { interface, rate, targets, source, max_open, progress } = options;
    let account = Account::new(interface, rate, targets);
    account.idle(clock::now());
    let mut scan = Scan {
        schedule: Schedule::new(&ScanPlan { timing, ..plan.clone() }),
        plan,
        account: &account,
        source,
        max_open: max_open.max(1),
        partings: BTreeMap::new(),
        parted: 0,
    };
    let timer = Timer::new().map_err(ConnectError::Timer)?;
    let mut stop = pin!(stop);
    let mut stopped = false;
    let mut open = FuturesUnordered::new();
    let mut closing = FuturesUnordered::new();
    let mut over = None;
    loop {
        progress.publish(scan.schedule.next(), &scan.schedule.stats());
        while let Some(event) = scan.schedule.poll_event() {
            match event {
                Event::Done(_) => over = Some(event),
                event => events.send(event).await.map_err(|_| ConnectError::Gone)?,
            }
        }
        if stopped {
            scan.part_at_once(clock::now());
        }
        if scan.partings.is_empty()
            && (closing.is_empty() || stopped)
            && let Some(done) = over
        {
            return events.send(done).await.map_err(|_| ConnectError::Gone);
        }
        let now = clock::now();
        if scan.schedule.poll_timeout().is_some_and(|(at, _)| at <= now) {
            scan.schedule.on_timeout(now);
        }
        let mut hungry = true;
        // Refused targets cost no time of the pacer's: others must get their turn all the same.
        let mut budget = MISSES_PER_TURN;
        while budget > 0 && account.ready_at() <= now {
            budget -= 1;
            if let Some(Parting { stream, to }) = scan.next_parting(now) {
                closing.push(part(&account, to, stream));
                continue;
            }
            if !hungry || open.len() + closing.len() + scan.partings.len() >= scan.max_open {
                break;
            }
            match scan.next(now, &gate) {
                Some(Some(attempt)) => open.push(attempt),
                // It was refused: the next one may do.
                Some(None) => {}
                None => hungry = false,
            }
        }
        let room = open.len() + closing.len() + scan.partings.len() < scan.max_open;
        let parting = scan.partings.first_key_value().map(|((at, _), _)| *at);
        if !hungry && parting.is_none_or(|at| at > now) {
            account.idle_all(now);
        }
        let ready = account.ready_at();
        let next = (hungry && room).then_some(ready);
        let parting = parting.map(|at| at.max(ready));
        let due = scan.schedule.poll_timeout().map(|(at, _)| at);
        let wake = [next, parting, due].into_iter().flatten().min().unwrap_or(now + Duration::from_secs(1));
        let in_use = closing.len() + scan.partings.len();
        tokio::select! {
            Some((probe, outcome)) = open.next() => scan.book(clock::now(), probe, outcome, open.len() + in_use),
            Some(()) = closing.next() => {}
            how = &mut stop, if !stopped => {
                stopped = true;
                scan.schedule.cut(clock::now(), how);
            }
            () = timer.until(clock::now(), wake) => {}
        }
    }
}

/// A connection that was accepted and waits for its turn to be closed.
struct Parting {
    stream: TcpStream,
    to: IpAddr,
}

/// Closes a connection whose end is paid for.
async fn part(account: &Account, to: IpAddr, stream: TcpStream) {
    let segment = parting::segment(&stream);
    let owe = |len| account.owe(clock::now(), to, Price::acknowledgements(to.is_ipv4(), len, segment));
    parting::part(stream, owe).await;
}

struct Scan<'a> {
    schedule: Schedule,
    plan: &'a ScanPlan,
    account: &'a Account,
    source: Source,
    max_open: usize,
    /// By when their target's limits admit the end, and by number.
    partings: BTreeMap<(Instant, u64), Parting>,
    parted: u64,
}

impl Scan<'_> {
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
        if let Err(TooSoon { until, lane }) = self.account.check_target(now, target.addr) {
            self.schedule.not_sent(now, probe, NotSent::TooSoon { until, lane }, 0);
            return Some(None);
        }
        self.account.owe(now, target.addr, Price::syn(v4));
        self.schedule.add_bytes(probe, syn_bytes(v4));
        let to = SocketAddr::new(target.addr, target.port.unwrap_or(0));
        let from = match v4 {
            true => self.source.v4.map(IpAddr::V4),
            false => self.source.v6.map(IpAddr::V6),
        };
        let patience = self.schedule.listening(probe.attempt).min(KERNEL_REPEATS);
        Some(Some(async move { (probe, attempt(from, to, patience).await) }))
    }

    /// The next connection whose end may leave now; it is paid for.
    fn next_parting(&mut self, now: Instant) -> Option<Parting> {
        while let Some(entry) = self.partings.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, number), parting) = entry.remove_entry();
            match self.account.pay(now, parting.to, Price::closing(parting.to.is_ipv4(), false)) {
                Ok(()) => return Some(parting),
                Err(Broke::Target(TooSoon { until, .. }) | Broke::Pacers(until)) => drop(self.partings.insert((until, number), parting)),
            }
        }
        None
    }

    /// Lets go of everything that waits to be closed.
    fn part_at_once(&mut self, now: Instant) {
        for Parting { stream, to } in core::mem::take(&mut self.partings).into_values() {
            self.account.owe(now, to, Price::closing(to.is_ipv4(), false));
            parting::part_at_once(stream);
        }
    }

    /// Takes what became of an attempt, beside which there are `in_use` attempts and connections.
    fn book(&mut self, now: Instant, probe: Probe, outcome: Outcome, in_use: usize) {
        let Some(to) = self.plan.space.target(probe.position).map(|target| target.addr) else { return };
        let bytes = syn_bytes(to.is_ipv4());
        match outcome {
            Outcome::Open(stream) => {
                self.account.owe(now, to, Price::acknowledgement(to.is_ipv4()));
                self.parted += 1;
                self.partings.insert((now, self.parted), Parting { stream, to });
                self.schedule.answer(now, probe, State::Open, 0);
            }
            Outcome::Answer(state) => self.schedule.answer(now, probe, state, 0),
            Outcome::Nothing => {}
            Outcome::NotSent(why) => self.schedule.not_sent(now, probe, why, bytes),
            Outcome::NoRoom if in_use == 0 => self.schedule.not_sent(now, probe, NotSent::LinkError, bytes),
            Outcome::NoRoom => {
                self.max_open = in_use;
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
    if let Some(from) = from {
        // Best effort: else each port would be taken for all destinations until a minute after its close.
        let _ = setsockopt(&socket, sockopt::IpBindAddressNoPort, &true);
        if let Err(error) = socket.bind(SocketAddr::new(from, 0)) {
            return refused_at_once(to.ip(), &error);
        }
    }
    let mut connecting = pin!(socket.connect(to));
    // What the system call itself says concerns this host; what it says later, the network.
    let first = core::future::poll_fn(|context| Poll::Ready(connecting.as_mut().poll(context))).await;
    match first {
        Poll::Ready(Ok(stream)) => Outcome::Open(stream),
        Poll::Ready(Err(error)) => refused_at_once(to.ip(), &error),
        Poll::Pending => match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(stream)) => Outcome::Open(stream),
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

    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use picket_wire::addr::parse_set;
    use picket_wire::job::ScanOptions;
    use picket_wire::space::{TargetSpace, TargetSpec};
    use picket_wire::units::{PacketsPerSecond, PortSet};

    use super::*;
    use crate::net::pacer::Pacer;
    use crate::net::target_pacer::TargetLimits;
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
                Event::Hosts(_) | Event::Proxy(_) | Event::Paths(_) => panic!("connections see no hardware addresses, and trace nothing"),
                Event::Late(late) => panic!("no socket is open for {late:?}"),
                Event::Done(done) => return (chunks, done),
            }
        }
    }

    /// A port that drops SYNs: its queue of connections is full.
    fn silent_port() -> (u16, Vec<std::net::TcpStream>, socket2::Silent) {
        socket2::silent()
    }

    mod socket2 {
        use super::*;
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket};
        use std::os::fd::{AsRawFd, OwnedFd};

        pub(super) type Silent = OwnedFd;

        pub(super) fn silent() -> (u16, Vec<std::net::TcpStream>, OwnedFd) {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
            listen(&fd, Backlog::new(0).unwrap()).unwrap();
            let port = getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap().port();
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            let mut kept = Vec::new();
            while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(50)) {
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

    /// A server that greets whoever comes, hears what he says, and tells how it ended; `closes`: it ends its side when he does.
    fn server(greeting: &'static [u8], closes: bool) -> (u16, JoinHandle<io::Result<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(greeting)?;
            let heard = stream.read_to_end(&mut Vec::new())?;
            if !closes {
                core::mem::forget(stream);
            }
            Ok(heard)
        };
        (port, std::thread::spawn(serve))
    }

    #[tokio::test]
    async fn who_accepts_hears_an_orderly_end_and_nothing_else() {
        let servers = [server(b"", true), server(b"220 I speak first\r\n", true), server(&[7; 10_000], true), server(b"", false)];
        let plan = plan("127.0.0.1", servers.iter().map(|(port, _)| *port), 1);
        let (chunks, _) = scan(&plan, options(Limits::UNLIMITED), |_| true, core::future::pending()).await;
        assert_eq!(chunks.iter().map(|report| report.coverage().open).sum::<u64>(), 4);
        for (number, (_, server)) in servers.into_iter().enumerate() {
            // A reset would be an error.
            assert_eq!(server.join().unwrap().unwrap(), 0, "server {number}");
        }
    }

    /// `count` open ports where nobody ever looks at who comes.
    fn open_ports(count: usize) -> Vec<(u16, TcpListener)> {
        let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        listeners.map(|listener| (listener.local_addr().unwrap().port(), listener)).collect()
    }

    fn per_address(rate: u32) -> Option<TargetPacer> {
        TargetPacer::new(TargetLimits { per_address: PacketsPerSecond::new(rate), per_network: None }, &[3; 16])
    }

    #[tokio::test]
    async fn all_frames_of_a_connection_count_towards_its_address() {
        let ports = open_ports(20);
        let plan = plan("127.0.0.1", ports.iter().map(|(port, _)| *port), 1);
        let targets = per_address(200);
        let begun = clock::now();
        let (chunks, done) = scan(&plan, ConnectOptions { targets, ..options(Limits::UNLIMITED) }, |_| true, core::future::pending()).await;
        let took = clock::now().saturating_since(begun);
        assert_eq!(chunks.iter().map(|report| report.coverage().open).sum::<u64>(), 20);
        assert_eq!(done.stats.sent_packets, 20, "SYNs");
        // SYN, acknowledgement, FIN and acknowledgement for each, at 200 per second; the last two are paid together.
        assert!(took >= Duration::from_millis((80 - 2) * 5 - 2), "{took:?}");
    }

    #[tokio::test]
    async fn a_stop_leaves_what_waits_to_be_closed() {
        let ports = open_ports(50);
        let plan = plan("127.0.0.1", ports.iter().map(|(port, _)| *port), 1);
        let targets = per_address(10);
        let stop = async {
            tokio::time::sleep(Duration::from_millis(350)).await;
            Cut::Final
        };
        let begun = clock::now();
        let (chunks, _) = scan(&plan, ConnectOptions { targets, ..options(Limits::UNLIMITED) }, |_| true, stop).await;
        let asked: u64 = chunks.iter().map(|report| report.coverage().asked).sum();
        // 200 frames at 10 per second would be 20 s.
        assert!(asked <= 50 && clock::now().saturating_since(begun) < Duration::from_secs(10), "{asked}");
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
