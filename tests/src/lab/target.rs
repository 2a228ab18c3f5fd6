//! A target network made of one namespace: its kernel answers for every address of the truth's networks (a local route), programs
//! listen on every port of the truth, and nftables makes each single answer what the truth says.
//!
//! Invariant: a target answers only for its truth's networks; nothing in it sends of its own accord.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::programs::Programs;
use super::truth::{HostState, PortTruth, Truth};
use super::{Namespace, Proc, Run};

/// How long an answer may take before the lab itself is called broken. Only ever waited for when something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence is listened to. That nothing came is right at any length; longer only finds more faults.
const SILENCE: Duration = Duration::from_millis(300);

/// What a listening port of a target says to who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Accepts, and closes when the peer does.
    Quiet,
    /// Sends one line at once, as ssh, ftp and smtp do.
    Banner(String),
    /// Answers each request by a small page, with this name in its `Server` header.
    Http(String),
}

impl Service {
    /// The argument of `picket-lab-listen` for it.
    fn argument(&self, port: u16) -> String {
        match self {
            Self::Quiet => port.to_string(),
            Self::Banner(line) => format!("{port}:banner:{line}"),
            Self::Http(name) => format!("{port}:http:{name}"),
        }
    }
}

/// A running target network.
#[derive(Debug)]
pub struct Target {
    truth: Truth,
    file: PathBuf,
    // Before the namespace, so that it ends first.
    listener: Mutex<Proc>,
    namespace: Namespace,
}

impl Target {
    /// Realises a truth in a namespace that is connected already. Ports without an entry in `services` are quiet.
    ///
    /// # Errors
    /// When the kernel refuses something or the listening program does not start.
    pub fn start(namespace: &Namespace, truth: Truth, services: &BTreeMap<u16, Service>) -> Result<Self> {
        namespace.sysctls(&[
            // SYNs are answered without state: no queue that a fast scan could fill.
            ("net/ipv4/tcp_syncookies", "2"),
            ("net/ipv4/tcp_max_syn_backlog", "65536"),
            ("net/core/somaxconn", "65535"),
            ("net/ipv4/tcp_challenge_ack_limit", "2147483647"),
            ("net/ipv4/tcp_invalid_ratelimit", "0"),
            ("net/ipv4/tcp_fin_timeout", "5"),
            ("net/ipv6/bindv6only", "0"),
        ])?;
        let mut routes = String::new();
        for network in truth.networks() {
            writeln!(routes, "route add local {network} dev lo").expect("a String takes text");
        }
        namespace.ip_batch(&routes)?;
        namespace.nft(&ruleset(&truth))?;
        let file = namespace.lab().write(&format!("truth-{}.json", namespace.short()), "")?;
        truth.write(&file)?;
        let quiet = Service::Quiet;
        let arguments = truth.ports().iter().map(|port| services.get(port).unwrap_or(&quiet).argument(*port));
        let run = Run::new(Programs::lab_listen()?).args(arguments).label("listen");
        let mut listener = namespace.spawn(&run)?;
        listener.wait_for_line("ready", PATIENCE)?;
        Ok(Self { truth, file, listener: Mutex::new(listener), namespace: namespace.clone() })
    }

    /// What is true here.
    #[must_use]
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// The truth as a JSON file; there as long as the lab is.
    #[must_use]
    pub fn truth_file(&self) -> &Path {
        &self.file
    }

    /// The namespace it runs in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Checks by real connections and real echo requests, made in another namespace, that the truth holds for about `sample`
    /// ports of each state and `sample` hosts of each.
    ///
    /// # Errors
    /// When an answer differs from the truth, or the listening program has ended.
    pub fn self_check(&self, from: &Namespace, sample: usize) -> Result<()> {
        {
            let mut listener = self.listener.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(status) = listener.try_wait()? {
                bail!("the listening program of {} has ended with {status}: {}", self.namespace, listener.stderr());
            }
        }
        let ports: Vec<_> = [PortTruth::Open, PortTruth::Closed, PortTruth::Silent]
            .into_iter()
            .flat_map(|state| self.truth.sample(state, sample).into_iter().map(move |(address, port)| (address, port, state)))
            .collect();
        let hosts: Vec<_> = [HostState::Up, HostState::Shy, HostState::Dead]
            .into_iter()
            .flat_map(|state| {
                let all: Vec<_> = self.truth.hosts().filter(|(_, s)| *s == state).collect();
                let step = all.len().div_ceil(sample.max(1)).max(1);
                all.into_iter().step_by(step)
            })
            .collect();
        from.enter(|| {
            // Silence takes its time; side by side it takes it once.
            std::thread::scope(|scope| {
                let checks = ports.iter().map(|(address, port, state)| {
                    let to = SocketAddr::new(*address, *port);
                    scope.spawn(move || {
                        let seen = connect(to, *state == PortTruth::Silent)?;
                        ensure!(seen == *state, "{to} is {seen:?} by a real connection, {state:?} by the truth");
                        Ok(())
                    })
                });
                let checks: Vec<_> = checks.collect();
                let pings = hosts.iter().map(|(address, state)| {
                    scope.spawn(move || {
                        let wanted = *state == HostState::Up;
                        let seen = echo(*address, if wanted { PATIENCE } else { SILENCE })?;
                        ensure!(seen == wanted, "{address} answers an echo request: {seen}, but it is {state:?} by the truth");
                        Ok(())
                    })
                });
                let pings: Vec<_> = pings.collect();
                checks.into_iter().chain(pings).try_for_each(|check| check.join().unwrap_or_else(|_| bail!("a check panicked")))
            })
        })?
    }
}

/// What a real connection sees, in the namespace of the calling thread. `expect_silence` only sets how long is waited.
///
/// # Errors
/// When the connection fails in a way that a target cannot cause (no route, for one).
pub fn connect(to: SocketAddr, expect_silence: bool) -> Result<PortTruth> {
    match TcpStream::connect_timeout(&to, if expect_silence { SILENCE } else { PATIENCE }) {
        Ok(_) => Ok(PortTruth::Open),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(PortTruth::Closed),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(PortTruth::Silent),
        Err(error) => Err(error).with_context(|| format!("connect to {to}")),
    }
}

/// True when an address answers an echo request within `wait`; asked from the namespace of the calling thread.
///
/// # Errors
/// When the request cannot be sent.
pub fn echo(address: IpAddr, wait: Duration) -> Result<bool> {
    let (family, protocol, kind) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    // A datagram ICMP socket: the kernel sets identifier and checksum, and hands over only the answers to it.
    let handle = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).context("open an ICMP socket")?;
    let request = [kind, 0, 0, 0, 0, 0, 0, 1, b'l', b'a', b'b', b'!'];
    let fd = handle.as_raw_fd();
    let sent = match address {
        IpAddr::V4(v4) => sendto(fd, &request, &SockaddrIn::from(SocketAddrV4::new(v4, 0)), MsgFlags::empty()),
        IpAddr::V6(v6) => sendto(fd, &request, &SockaddrIn6::from(SocketAddrV6::new(v6, 0, 0, 0)), MsgFlags::empty()),
    };
    sent.with_context(|| format!("send an echo request to {address}"))?;
    let start = Instant::now();
    loop {
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&handle, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros)).context("set a receive timeout")?;
        let mut answer = [0_u8; 64];
        match recv(fd, &mut answer, MsgFlags::empty()) {
            // Echo reply: 0 (RFC 792), 129 (RFC 4443).
            Ok(length) if length > 0 && answer[0] == if kind == 8 { 0 } else { 129 } => return Ok(true),
            Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).with_context(|| format!("wait for the echo reply of {address}")),
        }
    }
}

/// The nftables ruleset that makes a kernel which listens on every port, for every address, tell the truth.
fn ruleset(truth: &Truth) -> String {
    let mut text = String::from("table inet truth {\n");
    let hosts = |v4: bool, state: HostState| {
        let of = truth.hosts().filter(move |(address, s)| address.is_ipv4() == v4 && *s == state);
        of.map(|(address, _)| address.to_string()).collect::<Vec<_>>()
    };
    let ports = |v4: bool, state: PortTruth| {
        // The ports of a dead host are covered by the host.
        let of = truth.in_state(state).filter(|(address, _)| address.is_ipv4() == v4 && truth.host(*address) != Some(HostState::Dead));
        of.map(|(address, port)| format!("{address} . {port}")).collect::<Vec<_>>()
    };
    let mut set = |name: &str, kind: &str, elements: Vec<String>| {
        write!(text, "\tset {name} {{\n\t\ttype {kind}\n").expect("a String takes text");
        if !elements.is_empty() {
            writeln!(text, "\t\telements = {{ {} }}", elements.join(", ")).expect("a String takes text");
        }
        text.push_str("\t}\n");
    };
    for (v4, suffix, kind) in [(true, "4", "ipv4_addr"), (false, "6", "ipv6_addr")] {
        set(&format!("dead{suffix}"), kind, hosts(v4, HostState::Dead));
        set(&format!("shy{suffix}"), kind, hosts(v4, HostState::Shy));
        set(&format!("silent{suffix}"), &format!("{kind} . inet_service"), ports(v4, PortTruth::Silent));
        set(&format!("closed{suffix}"), &format!("{kind} . inet_service"), ports(v4, PortTruth::Closed));
    }
    text.push_str(concat!(
        "\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n",
        "\t\tip daddr @dead4 counter drop\n\t\tip6 daddr @dead6 counter drop\n",
        "\t\ticmp type echo-request ip daddr @shy4 counter drop\n",
        "\t\ticmpv6 type echo-request ip6 daddr @shy6 counter drop\n",
        "\t\tip daddr . tcp dport @silent4 counter drop\n\t\tip6 daddr . tcp dport @silent6 counter drop\n",
        "\t\tip daddr . tcp dport @closed4 counter reject with tcp reset\n",
        "\t\tip6 daddr . tcp dport @closed6 counter reject with tcp reset\n",
        "\t}\n}\n"
    ));
    // On a shared segment a host that is not there does not answer ARP either.
    let dead = hosts(true, HostState::Dead);
    if !dead.is_empty() {
        let elements = dead.join(", ");
        write!(
            text,
            "table arp truth {{\n\tset dead {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n\tchain input {{\n\
             \t\ttype filter hook input priority filter; policy accept;\n\t\tarp daddr ip @dead counter drop\n\t}}\n}}\n"
        )
        .expect("a String takes text");
    }
    text
}
