//! A sender of UDP datagrams that keeps to no limit but its own: what a shaper has to hold, or must leave alone.
//!
//! Invariant: a flood is bounded in number, and never faster over its whole length than it says.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::Namespace;

/// How often it looks at the clock: short against a shaper's queue, so that a flood above the limit keeps the queue filled.
const TICK: Duration = Duration::from_millis(2);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Where to.
    pub to: SocketAddrV4,
    /// Bytes in each frame from its Ethernet header on; at least 42, the headers' own.
    pub frame: usize,
    /// Datagrams per second.
    pub rate: u32,
    /// How long.
    pub time: Duration,
    /// The firewall mark (`SO_MARK`) of every packet.
    pub mark: Option<u32>,
}

impl Flood {
    /// Ethernet, IPv4 and UDP.
    const HEADERS: usize = 14 + 20 + 8;

    /// To an address, short datagrams at a rate for a time.
    #[must_use]
    pub fn new(to: Ipv4Addr, port: u16, rate: u32, time: Duration) -> Self {
        Self { to: SocketAddrV4::new(to, port), frame: 60, rate, time, mark: None }
    }

    /// With a firewall mark.
    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        Self { mark: Some(mark), ..self }
    }

    /// In frames of so many bytes.
    #[must_use]
    pub fn frames(self, frame: usize) -> Self {
        Self { frame, ..self }
    }

    /// How many datagrams it is.
    #[must_use]
    pub fn count(&self) -> u64 {
        due(self.rate, self.time)
    }

    /// Sends it all from a namespace, and returns when the kernel has taken the last one. What the kernel drops with a word
    /// (`ENOBUFS`) is as sent as what it drops without one. Where a queue holds more than the socket may have under way, the flood waits
    /// for it and takes longer.
    ///
    /// # Errors
    /// When the socket cannot be made or marked, or the kernel has another reason to refuse.
    pub fn send(&self, from: &Namespace) -> Result<()> {
        from.enter(|| self.send_here()).and_then(|sent| sent)
    }

    fn send_here(&self) -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark).context("mark a socket")?;
        }
        let payload = vec![0; self.frame.saturating_sub(Self::HEADERS)];
        let (begun, mut sent) = (Instant::now(), 0);
        while sent < self.count() {
            let now = due(self.rate, begun.elapsed().min(self.time));
            for _ in sent..now {
                match socket.send_to(&payload, self.to) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error).context("send a datagram"),
                    _ => {}
                }
            }
            sent = now;
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

fn due(rate: u32, after: Duration) -> u64 {
    u64::try_from(after.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_as_many_as_its_rate_says() {
        let flood = Flood::new(Ipv4Addr::new(198, 18, 0, 1), 9, 5_000, Duration::from_millis(1_500));
        assert_eq!(flood.count(), 7_500);
        assert_eq!(due(3, Duration::from_millis(999)), 2);
    }
}
