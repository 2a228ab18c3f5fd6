//! What is asked of a ring, and which parts of it can hold an answer.
//!
//! It must not know files, nor libpcap: a filter is text here.
//!
//! **Invariant:** a part that holds a packet which matches is wanted.

use core::fmt;
use std::net::IpAddr;

use super::index::{Extent, Key, Span};
use crate::capture::UnixNanos;
use crate::capture::pcapng::Packet;
use crate::capture::view::{View, parties_of, view};

/// Which packets are asked for. What is empty demands nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Not before.
    pub from: UnixNanos,
    /// Before this.
    pub to: UnixNanos,
    /// One of these is source or destination: of an IP packet, or of an ARP message within.
    pub hosts: Vec<IpAddr>,
    /// One of these is source or destination port of TCP, UDP or SCTP.
    pub ports: Vec<u16>,
    /// A filter in the language of pcap-filter(7).
    pub filter: String,
}

impl Default for Question {
    /// Everything.
    fn default() -> Self {
        Self { from: UnixNanos(0), to: UnixNanos(u64::MAX), hosts: Vec::new(), ports: Vec::new(), filter: String::new() }
    }
}

impl Question {
    /// Whether packets between these times can match.
    pub fn wants(&self, span: &Span) -> bool {
        span.packets > 0 && span.first < self.to && span.last >= self.from
    }

    /// Whether an extent can hold packets that match. `hashes` are those of [`Self::hashes`].
    pub fn wants_extent(&self, extent: &Extent<'_>, hashes: &[u64]) -> bool {
        let span = Span { packets: extent.packets.into(), first: extent.first, last: extent.last };
        self.wants(&span) && (hashes.is_empty() || hashes.iter().any(|hash| extent.who.may_have(*hash)))
    }

    /// What an index knows the hosts by.
    pub fn hashes(&self, key: &Key) -> Vec<u64> {
        self.hosts.iter().map(|host| key.hash(*host)).collect()
    }

    /// Whether a packet is asked for, but for the filter.
    pub fn matches(&self, link_type: u16, packet: &Packet<'_>) -> bool {
        if packet.time < self.from || packet.time >= self.to {
            return false;
        }
        if self.hosts.is_empty() && self.ports.is_empty() {
            return true;
        }
        let view = view(link_type, packet.data);
        let one = |(a, b): (IpAddr, IpAddr)| self.hosts.iter().any(|host| [a, b].contains(&host.to_canonical()));
        (self.hosts.is_empty() || parties_of(&view).is_some_and(one)) && (self.ports.is_empty() || self.has_port(&view))
    }

    fn has_port(&self, view: &View<'_>) -> bool {
        let View::Ip(ip) = view else { return false };
        ip.transport.ports().is_some_and(|(a, b)| self.ports.iter().any(|port| [a, b].contains(port)))
    }
}

impl fmt::Display for Question {
    /// In words, with times in seconds since 1970.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(" or ");
        let mut parts = Vec::new();
        if !self.hosts.is_empty() {
            parts.push(format!("host {}", list(self.hosts.iter().map(ToString::to_string).collect())));
        }
        if !self.ports.is_empty() {
            parts.push(format!("port {}", list(self.ports.iter().map(ToString::to_string).collect())));
        }
        if !self.filter.is_empty() {
            parts.push(format!("filter `{}`", self.filter));
        }
        if parts.is_empty() {
            parts.push("all packets".to_owned());
        }
        if self.from > UnixNanos(0) {
            parts.push(format!("from {}", self.from));
        }
        if self.to < UnixNanos(u64::MAX) {
            parts.push(format!("to {}", self.to));
        }
        f.write_str(&parts.join(", "))
    }
}
