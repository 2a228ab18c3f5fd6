//! The listening program of a lab's target: one socket a port for all addresses of both families, thousands of ports in one thread.
//!
//! `picket-lab-listen PORT[:banner:LINE|:http:NAME] ...` prints `ready N` when all are bound and runs until it is killed.
//!
//! Invariant: at most [`MOST`] connections are held at a time, and none longer than [`HELD`]: a peer cannot fill it.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most connections held at a time; beyond, the oldest is closed.
const MOST: usize = 4096;
/// How long a connection is held for its peer to close it: who closes first keeps the port pair busy, so it had better be the peer.
const HELD: Duration = Duration::from_secs(5);
/// Connections count up from here, listening sockets from 0.
const FIRST_CONNECTION: u64 = 1 << 32;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Service {
    Quiet,
    Banner(String),
    Http(String),
}

fn parse(argument: &str) -> Result<(u16, Service)> {
    let mut parts = argument.splitn(3, ':');
    let port = parts.next().unwrap_or_default();
    let port = port.parse().ok().filter(|port| *port != 0).with_context(|| format!("{argument:?}: {port:?} is not a port"))?;
    let service = match (parts.next(), parts.next()) {
        (None, None) => Service::Quiet,
        (Some("banner"), Some(line)) => Service::Banner(line.to_owned()),
        (Some("http"), Some(name)) => Service::Http(name.to_owned()),
        _ => bail!("{argument:?}: PORT, PORT:banner:LINE or PORT:http:NAME"),
    };
    Ok((port, service))
}

struct Connection {
    stream: TcpStream,
    service: usize,
}

fn main() -> Result<()> {
    let services: Vec<(u16, Service)> = std::env::args().skip(1).map(|argument| parse(&argument)).collect::<Result<_>>()?;
    let wanted = u64::try_from(services.len() + MOST + 64).context("too many ports")?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).with_context(|| format!("allow {wanted} open files"))?;
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
    let mut listeners = Vec::with_capacity(services.len());
    for (index, (port, _)) in services.iter().enumerate() {
        // One socket serves both families (bindv6only=0); where the kernel has no IPv6, IPv4 alone.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))
            .or_else(
                |error| if error.kind() == ErrorKind::AddrInUse { Err(error) } else { TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)) },
            )
            .with_context(|| format!("listen on port {port}"))?;
        listener.set_nonblocking(true).context("set a listening socket non-blocking")?;
        // The standard library asks for a backlog of 128, too short for a fast scan that completes connections.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE).with_context(|| format!("listen on port {port}"))?;
        epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).context("watch a listening socket")?;
        listeners.push(listener);
    }
    println!("ready {}", services.len());
    std::io::stdout().flush().context("say ready")?;

    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut ages: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut next = FIRST_CONNECTION;
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let timeout = if ages.is_empty() { EpollTimeout::NONE } else { EpollTimeout::from(200_u16) };
        let count = match epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error).context("wait for connections"),
        };
        for event in &events[..count] {
            if event.data() >= FIRST_CONNECTION {
                let done = connections.get_mut(&event.data()).is_none_or(|connection| !go_on(connection, &services));
                if done {
                    connections.remove(&event.data());
                }
                continue;
            }
            let index = usize::try_from(event.data()).context("an epoll event of nobody")?;
            // One round a wake-up, so that one busy port does not starve the others.
            for _ in 0..64 {
                let Ok((mut stream, _)) = listeners[index].accept() else { break };
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                if let Service::Banner(line) = &services[index].1 {
                    // One short line always fits an empty send buffer.
                    let _ = stream.write_all(format!("{line}\r\n").as_bytes());
                }
                if epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, next)).is_ok() {
                    connections.insert(next, Connection { stream, service: index });
                    ages.push_back((Instant::now(), next));
                    next += 1;
                }
            }
        }
        while let Some((since, oldest)) = ages.front() {
            if connections.contains_key(oldest) && connections.len() <= MOST && since.elapsed() < HELD {
                break;
            }
            // Closing a socket takes it out of the epoll.
            connections.remove(oldest);
            ages.pop_front();
        }
    }
}

/// Reads what a peer says, and answers where the service does. False when the connection is over.
fn go_on(connection: &mut Connection, services: &[(u16, Service)]) -> bool {
    let mut buffer = [0_u8; 4096];
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {
                if let Service::Http(name) = &services[connection.service].1 {
                    let page = "<!doctype html><title>lab</title><p>A lab service.\n";
                    let reply = format!(
                        "HTTP/1.1 200 OK\r\nServer: {name}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
                        page.len()
                    );
                    if connection.stream.write_all(reply.as_bytes()).is_err() {
                        return false;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        assert_eq!(parse("22").unwrap(), (22, Service::Quiet));
        assert_eq!(parse("22:banner:SSH-2.0-a:b").unwrap(), (22, Service::Banner("SSH-2.0-a:b".to_owned())));
        assert_eq!(parse("80:http:lab/1").unwrap(), (80, Service::Http("lab/1".to_owned())));
        for bad in ["", "0", "65536", "x", "22:", "22:banner", "22:other:x"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
