//! Answers that no kernel gives by itself: datagrams over UDP, and SCTP where the kernel may not speak it.
//!
//! Each answers at one address of a target; a thread of the test's own process serves it by a socket that was made there.
//!
//! Invariant: nothing is sent but answers, and all ends when [`Answers`] is dropped.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Namespace;

/// How often a thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// The common header of SCTP (RFC 9260, section 3.1).
const SCTP_HEADER: usize = 12;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

/// Everything that answers. See the module.
#[derive(Debug, Default)]
pub struct Answers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been told already.
            let _ = thread.join();
        }
    }
}

impl Answers {
    /// Answers datagrams: DNS-like on port 53 (the question with the response bit), a greeting on every other.
    ///
    /// # Errors
    /// When the address is not there, or the port taken.
    pub fn udp(&mut self, namespace: &Namespace, at: SocketAddr) -> Result<()> {
        let socket = namespace.enter(|| UdpSocket::bind(at))?.with_context(|| format!("serve {at} over UDP"))?;
        socket.set_read_timeout(Some(LOOK)).context("set a receive timeout")?;
        self.thread(move || {
            let mut buf = [0; 1500];
            if let Ok((length, from)) = socket.recv_from(&mut buf) {
                buf[2] |= 0x80;
                let answer = if at.port() == 53 { &buf[..length] } else { b"hello" };
                // Who has left needs no answer.
                let _ = socket.send_to(answer, from);
            }
        });
        Ok(())
    }

    /// Speaks SCTP as an endpoint that listens on `open` alone: INIT-ACK there, ABORT elsewhere.
    ///
    /// # Errors
    /// When the address is not there.
    pub fn sctp(&mut self, namespace: &Namespace, at: IpAddr, open: &[u16]) -> Result<()> {
        let socket = namespace.enter(|| raw_sctp(at))?.with_context(|| format!("serve {at} over SCTP"))?;
        let open = open.to_vec();
        self.thread(move || {
            let mut buf = [0_u8; 1500];
            let Ok((length, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buf) else { return };
            // Raw sockets of IPv4 hand over the header too.
            let header = if at.is_ipv4() { usize::from(buf[0] & 0xf) * 4 } else { 0 };
            let Some(answer) = buf.get(header..length).and_then(|packet| sctp_answer(packet, &open)) else { return };
            // Raw sockets of IPv6 take no port.
            let _ = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
                (Some(to), _) => sendto(socket.as_raw_fd(), &answer, &SockaddrIn::from(SocketAddrV4::new(to.ip(), 0)), MsgFlags::empty()),
                (_, Some(to)) => {
                    sendto(socket.as_raw_fd(), &answer, &SockaddrIn6::from(SocketAddrV6::new(to.ip(), 0, 0, 0)), MsgFlags::empty())
                }
                _ => return,
            };
        });
        Ok(())
    }

    fn thread(&mut self, mut turn: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                turn();
            }
        }));
    }
}

/// A raw socket that takes SCTP for one address.
fn raw_sctp(at: IpAddr) -> Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let handle = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp).context("open a raw socket")?;
    let bound = match at {
        IpAddr::V4(v4) => bind(handle.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(v4, 0))),
        IpAddr::V6(v6) => bind(handle.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(v6, 0, 0, 0))),
    };
    bound.context("bind it")?;
    let micros = i64::try_from(LOOK.as_micros()).unwrap_or(i64::MAX);
    setsockopt(&handle, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros)).context("set a receive timeout")?;
    Ok(handle)
}

/// The answer to an INIT (RFC 9260, sections 3.3.3 and 8.4), if the packet is one.
fn sctp_answer(packet: &[u8], open: &[u16]) -> Option<Vec<u8>> {
    let (head, chunk) = packet.split_at_checked(SCTP_HEADER)?;
    let tag = chunk.get(4..8).filter(|_| chunk.first() == Some(&INIT))?;
    let port = u16::from_be_bytes([head[2], head[3]]);
    let mut answer = vec![head[2], head[3], head[0], head[1]];
    answer.extend_from_slice(tag);
    answer.extend([0; 4]);
    match open.contains(&port) {
        // Our tag, window, one stream each way, first number; a state cookie (parameter 7) is mandatory.
        true => answer.extend([INIT_ACK, 0, 0, 28, 1, 2, 3, 4, 0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 7, 0, 8, 9, 9, 9, 9]),
        false => answer.extend([ABORT, 0, 0, 4]),
    }
    let sum = crc32c::crc32c(&answer);
    answer[8..12].copy_from_slice(&sum.to_le_bytes());
    Some(answer)
}
