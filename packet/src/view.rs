//! A captured packet, taken apart as far as it was kept: the beginning that a summary and a flow share.
//!
//! It must not know what is made of it, nor read bytes by itself: that is the business of the modules of each protocol.
//!
//! **Invariant:** no bytes cause a panic; what is cut is read as far as it goes.

use std::net::IpAddr;

use crate::arp::Arp;
use crate::eth::{TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use crate::ip::{Head, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet};
use crate::link::{self, Inside};
use crate::{sctp, tcp, udp};

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View<'a> {
    /// An IP packet with its protocol's header, or the first fragment of one.
    Ip(IpView<'a>),
    /// A later fragment, or a packet whose headers were cut.
    Part(Head),
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// Something else on a known link.
    Other(Inside<'a>),
    /// A link that nobody here knows, or a frame cut within its header.
    Unknown,
}

/// An IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpView<'a> {
    /// Its headers and what they hold.
    pub packet: Packet<'a>,
    /// What comes behind the IP headers, in bytes, as sent.
    pub len: usize,
    /// The header behind them.
    pub transport: Transport,
    /// The bytes at the beginning of the IP packet.
    pub bytes: &'a [u8],
}

/// Headers with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(tcp::Segment),
    /// UDP.
    Udp(udp::Start),
    /// SCTP.
    Sctp(sctp::Start),
    /// Another protocol, or a header that was cut.
    None,
}

impl Transport {
    /// Source and destination port.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self {
            Self::Tcp(segment) => Some((segment.src_port(), segment.dst_port())),
            Self::Udp(start) => Some((start.src_port, start.dst_port)),
            Self::Sctp(start) => Some((start.src_port, start.dst_port)),
            Self::None => None,
        }
    }
}

/// Takes a packet apart.
pub fn view(link_type: u16, bytes: &[u8]) -> View<'_> {
    let Some(inside) = link::inside(link_type, bytes) else { return View::Unknown };
    let found = match inside.ethertype {
        TYPE_IPV4 | TYPE_IPV6 => ip(inside.payload),
        TYPE_ARP => Arp::parse(inside.payload).map(View::Arp),
        _ => None,
    };
    found.unwrap_or(View::Other(inside))
}

fn ip(bytes: &[u8]) -> Option<View<'_>> {
    let head = Head::parse(bytes)?;
    let Some(packet) = Packet::parse_quote(bytes) else { return Some(View::Part(head)) };
    let headers = head.len.min(bytes.len()).saturating_sub(packet.payload().len());
    let transport = match packet.protocol() {
        PROTOCOL_TCP => tcp::Segment::parse(packet.payload()).map(Transport::Tcp),
        PROTOCOL_UDP => udp::Start::parse(packet.payload()).map(Transport::Udp),
        PROTOCOL_SCTP => sctp::Start::parse(packet.payload()).map(Transport::Sctp),
        _ => None,
    };
    let len = head.len.saturating_sub(headers);
    Some(View::Ip(IpView { packet, len, transport: transport.unwrap_or(Transport::None), bytes }))
}

/// Whose packet it is: source and destination address, or those that an ARP message names; IPv4-mapped ones as IPv4.
pub fn parties_of(view: &View<'_>) -> Option<(IpAddr, IpAddr)> {
    let (a, b) = match view {
        View::Arp(arp) => (arp.sender.into(), arp.target.into()),
        other => addresses(other)?,
    };
    Some((a.to_canonical(), b.to_canonical()))
}

/// [`parties_of`] a packet that begins with `bytes`.
pub fn parties(link_type: u16, bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    parties_of(&view(link_type, bytes))
}

/// Source and destination address, where there are any.
pub fn addresses(view: &View<'_>) -> Option<(IpAddr, IpAddr)> {
    match view {
        View::Ip(ip) => Some((ip.packet.src(), ip.packet.dst())),
        View::Part(head) => Some((head.src, head.dst)),
        View::Arp(_) | View::Other(_) | View::Unknown => None,
    }
}
