//! Simulated routers between us and hosts: who ends a TTL, and what he says of it.
//!
//! Written without the product's builders and views of protocols, as [`super::host`].

use core::time::Duration;
use std::net::IpAddr;

use super::host::{Answer, Probe};
use super::{HostRule, mix};
use crate::packet::checksum::checksum;

/// How a router with several successors chooses one; here, which of its addresses a hop has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// By addresses, protocol and the first four bytes behind the IP header.
    #[default]
    Flow,
    /// Each packet by chance.
    Packet,
}

/// What a router says of a packet that is too large for the next link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Telling {
    /// What the link takes.
    #[default]
    Size,
    /// Nothing but that it is too large, as before RFC 1191.
    NoSize,
    /// Nothing: a black hole.
    Nothing,
}

/// One hop of a way.
#[derive(Debug, Clone)]
pub struct Router {
    /// Its addresses: one, or one for each of the ways between which load is spread.
    pub addresses: Vec<IpAddr>,
    /// How they are chosen between.
    pub spread: Spread,
    /// It forwards, and says nothing.
    pub silent: bool,
    /// Round trip to it.
    pub rtt: Duration,
    /// How many of a thousand packets that end there are lost, in each direction.
    pub loss: u16,
    /// It sends an error no sooner than so long after the one before.
    pub gap: Duration,
    /// TTL of its errors as they arrive.
    pub ttl: u8,
    /// Labels that packets come with, top first.
    pub labels: Vec<u32>,
    /// TTL that it quotes: 1, but for tunnels.
    pub quoted_ttl: u8,
    /// Type of service that packets have from here on.
    pub tos: Option<u8>,
    /// Bytes of the packet that it quotes.
    pub quotes: usize,
    /// It refuses to forward, with this code of "unreachable".
    pub refuses: Option<u8>,
    /// The link behind it takes no longer packets.
    pub mtu: Option<u16>,
    /// What it says of that: as it is, that it does not know (0), or nothing at all.
    pub tells_mtu: Telling,
    /// It forwards what it should have ended, so that the next hop ends it.
    pub forwards_expired: bool,
}

impl Router {
    /// A router that does what it should.
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        Self {
            addresses,
            spread: Spread::Flow,
            silent: false,
            rtt: Duration::from_millis(1),
            loss: 0,
            gap: Duration::ZERO,
            ttl: 64,
            labels: Vec::new(),
            quoted_ttl: 1,
            tos: None,
            quotes: usize::MAX,
            refuses: None,
            mtu: None,
            tells_mtu: Telling::Size,
            forwards_expired: false,
        }
    }
}

/// The routers before hosts, nearest first.
#[derive(Debug, Clone)]
pub struct Way {
    /// The hosts' network: an address and the length of its prefix.
    pub network: (IpAddr, u8),
    /// The routers.
    pub routers: Vec<Router>,
}

/// What becomes of a packet on its way.
pub(super) enum Fate {
    /// It arrives, with the type of service it then has.
    Arrives,
    /// A router answers, or says nothing.
    Ended(Option<(HostRule, Answer)>),
}

impl Way {
    /// What the routers do with a packet; `random` is for those that choose by chance.
    pub(super) fn fate(&self, probe: &Probe<'_>, random: u64) -> Fate {
        let ttl = usize::from(probe.ttl());
        let mut tos = None;
        for (at, router) in self.routers.iter().enumerate() {
            let here = at + 1;
            tos = router.tos.or(tos);
            if ttl == here && !router.forwards_expired || ttl < here {
                let quoted = if ttl < here { 0 } else { router.quoted_ttl };
                return Fate::Ended(router.answer(probe, random, (if probe.is_v4() { 11 } else { 3 }, 0), 0, quoted, tos));
            }
            if let Some(code) = router.refuses {
                let left = u8::try_from(ttl - here).unwrap_or(u8::MAX);
                return Fate::Ended(router.answer(probe, random, (if probe.is_v4() { 3 } else { 1 }, code), 0, left, tos));
            }
            if let Some(mtu) = router.mtu.filter(|mtu| probe.len() > usize::from(*mtu)) {
                let left = u8::try_from(ttl - here).unwrap_or(u8::MAX);
                let told = if router.tells_mtu == Telling::Size { mtu } else { 0 };
                let said = router.answer(probe, random, if probe.is_v4() { (3, 4) } else { (2, 0) }, told, left, tos);
                return Fate::Ended(said.filter(|_| router.tells_mtu != Telling::Nothing));
            }
        }
        Fate::Arrives
    }
}

impl Router {
    fn answer(
        &self,
        probe: &Probe<'_>,
        random: u64,
        message: (u8, u8),
        mtu: u16,
        quoted_ttl: u8,
        tos: Option<u8>,
    ) -> Option<(HostRule, Answer)> {
        if self.silent || self.addresses.is_empty() {
            return None;
        }
        let by = match self.spread {
            Spread::Flow => probe.flow().iter().fold(0, |hash, byte| mix(hash ^ u64::from(*byte))),
            Spread::Packet => mix(random),
        };
        let from = *self.addresses.get((by % self.addresses.len() as u64) as usize)?;
        let rule = HostRule { rtt: self.rtt, loss: self.loss, ..HostRule::new(from, if from.is_ipv4() { 32 } else { 128 }) };
        let quote = probe.quote(quoted_ttl, tos, self.quotes);
        let packet = probe.error(from, self.ttl, message, mtu, &quote, &self.extension());
        Some((rule, Answer { packet, after: None, error: Some((from, self.gap)) }))
    }

    /// RFC 4950: what is appended where packets come with labels.
    fn extension(&self) -> Vec<u8> {
        let Some(bottom) = self.labels.len().checked_sub(1) else { return Vec::new() };
        let mut bytes = vec![0x20, 0, 0, 0];
        bytes.extend((4 + 4 * self.labels.len() as u16).to_be_bytes());
        bytes.extend([1, 1]);
        for (at, label) in self.labels.iter().enumerate() {
            bytes.extend((label << 12 | u32::from(at == bottom) << 8 | 1).to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}
