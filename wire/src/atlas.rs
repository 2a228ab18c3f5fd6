//! A path as RIPE Atlas tells a traceroute ("raw data structure", firmware 5000 and later), which its tools and many others read.
//!
//! It is no part of what the two programs say to each other, but both write it, and so it is made here, once. What an Atlas probe would know and a path does
//! not (sizes and flags of replies, a measurement's and a probe's number) is left out, or 0 where readers insist.
//!
//! **Invariant:** a path that did not end at its destination never reads as if it had: the hops that were asked in vain behind the last answer are told, and
//! what was refused or broken off is told as an error.

use core::net::IpAddr;

use serde::Serialize;

use crate::trace::{Hop, InterfaceInfo, InterfaceRole, Method, MplsLabel, Path, PathEnd, Reply, ReplyKind};

/// The firmware and the measurement code whose form it is.
const FIRMWARE: (u32, &str) = (5_080, "2.6.2");
/// "Not known", of how long ago the clock was set.
const UNKNOWN: i32 = -1;
/// Class and type of an MPLS label stack (RFC 4950, section 4).
const MPLS: (u8, u8) = (1, 1);
/// Class of interface information (RFC 5837, section 4).
const INTERFACE: u8 = 2;

/// What a path does not tell of how it was traced.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What was sent.
    pub method: Method,
    /// The name that the destination was given by.
    pub name: Option<&'a str>,
    /// Where it was sent from.
    pub source: Option<IpAddr>,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When it was over.
    pub ended: u64,
    /// Bytes behind the headers.
    pub size: usize,
    /// The variation of the flow.
    pub flow: u16,
    /// The first TTL.
    pub first_ttl: u8,
    /// The last TTL.
    pub max_ttl: u8,
    /// Silent hops in a row that ended the path, if that is what ended it.
    pub gap: u8,
    /// Packets that a silent hop got.
    pub attempts: u8,
}

/// The object of one result. Its fields are RIPE's, and so are their names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Traceroute {
    #[serde(rename = "type")]
    kind: &'static str,
    fw: u32,
    mver: &'static str,
    msm_id: u32,
    msm_name: &'static str,
    prb_id: u32,
    lts: i32,
    timestamp: u64,
    endtime: u64,
    af: u8,
    proto: &'static str,
    from: String,
    src_addr: String,
    dst_addr: String,
    dst_name: String,
    size: usize,
    paris_id: u16,
    result: Vec<HopResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct HopResult {
    hop: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Vec<PacketResult>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum PacketResult {
    Silent { x: &'static str },
    Answered(Box<Answered>),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Answered {
    from: String,
    ttl: u8,
    /// Not told of an answer to another path.
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt: Option<f64>,
    /// The TTL that was quoted, where it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ittl: Option<u8>,
    /// The type of service that was quoted, where there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    itos: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    err: Option<Unreachable>,
    /// What the next link takes, where the packet was too large for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmpext: Option<Extension>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
enum Unreachable {
    Letter(char),
    Code(u8),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Extension {
    version: u8,
    rfc4884: u8,
    obj: Vec<Object>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Object {
    class: u8,
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mpls: Vec<Label>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Label {
    exp: u8,
    label: u32,
    s: u8,
    ttl: u8,
}

impl Traceroute {
    /// The result for a path.
    pub fn new(path: &Path, asked: &Asked<'_>) -> Self {
        let source = asked.source.map_or_else(String::new, |source| source.to_string());
        Self {
            kind: "traceroute",
            fw: FIRMWARE.0,
            mver: FIRMWARE.1,
            msm_id: 0,
            msm_name: "Traceroute",
            prb_id: 0,
            lts: UNKNOWN,
            timestamp: asked.began,
            endtime: asked.ended,
            af: if path.dst.is_ipv4() { 4 } else { 6 },
            proto: match asked.method {
                Method::Icmp => "ICMP",
                Method::Udp => "UDP",
                Method::Tcp => "TCP",
            },
            from: source.clone(),
            src_addr: source,
            dst_addr: path.dst.to_string(),
            dst_name: asked.name.map_or_else(|| path.dst.to_string(), str::to_owned),
            size: asked.size,
            paris_id: asked.flow,
            result: path.hops.iter().map(|hop| HopResult::of(path.dst, hop)).chain(rest(path, asked)).collect(),
        }
    }
}

/// What follows on the hops that answered.
fn rest(path: &Path, asked: &Asked<'_>) -> Vec<HopResult> {
    let next = path.hops.last().map_or(asked.first_ttl, |hop| hop.ttl.saturating_add(1));
    let error = |error| vec![HopResult { hop: next, error: Some(error), result: None }];
    match path.end {
        PathEnd::Silent => {
            let last = next.saturating_add(asked.gap).min(asked.max_ttl.saturating_add(1));
            (next..last)
                .map(|hop| HopResult { hop, error: None, result: Some(vec![PacketResult::SILENT; asked.attempts.into()]) })
                .collect()
        }
        PathEnd::Refused => error("not sent: policy forbids the address"),
        PathEnd::NoRoute => error("sendto failed: Network is unreachable"),
        PathEnd::Stopped => error("stopped before the end"),
        PathEnd::Reached | PathEnd::Unreachable | PathEnd::Loop | PathEnd::TooFar => Vec::new(),
    }
}

impl HopResult {
    fn of(dst: IpAddr, hop: &Hop) -> Self {
        let silent = usize::from(hop.sent).saturating_sub(hop.replies.len());
        let answered = hop.replies.iter().map(|reply| PacketResult::Answered(Box::new(Answered::of(dst, hop, reply))));
        Self { hop: hop.ttl, error: None, result: Some(answered.chain(core::iter::repeat_n(PacketResult::SILENT, silent)).collect()) }
    }
}

impl PacketResult {
    const SILENT: Self = Self::Silent { x: "*" };
}

impl Answered {
    fn of(dst: IpAddr, hop: &Hop, reply: &Reply) -> Self {
        let quoted = reply.quoted;
        Self {
            from: reply.from.to_string(),
            ttl: reply.ttl,
            rtt: (!hop.inherited).then(|| f64::from(reply.rtt_us) / 1e3),
            ittl: quoted.map(|quoted| quoted.ttl).filter(|ttl| *ttl != 1),
            itos: quoted.map(|quoted| quoted.tos).filter(|tos| *tos != 0),
            err: match reply.kind {
                ReplyKind::Unreachable { icmp_type, icmp_code } => Some(unreachable(dst.is_ipv4(), icmp_type, icmp_code)),
                ReplyKind::TimeExceeded | ReplyKind::Answer => None,
            },
            mtu: reply.mtu,
            icmpext: Extension::of(reply),
        }
    }
}

/// An error as Atlas abbreviates it.
fn unreachable(v4: bool, icmp_type: u8, icmp_code: u8) -> Unreachable {
    Unreachable::Letter(match (v4, icmp_type, icmp_code) {
        (true, 3, 0) | (false, 1, 0) => 'N',
        (true, 3, 1) | (false, 1, 3) => 'H',
        (true, 3, 2) => 'P',
        (true, 3, 3) | (false, 1, 4) => 'p',
        (true, 3, 13) | (false, 1, 1) => 'A',
        _ => return Unreachable::Code(icmp_code),
    })
}

impl Extension {
    fn of(reply: &Reply) -> Option<Self> {
        let labels =
            (!reply.mpls.is_empty()).then(|| Object { class: MPLS.0, kind: MPLS.1, mpls: reply.mpls.iter().map(Label::of).collect() });
        let interfaces = reply.interfaces.iter().map(|info| Object { class: INTERFACE, kind: interface_type(info), mpls: Vec::new() });
        let obj: Vec<Object> = labels.into_iter().chain(interfaces).collect();
        (!obj.is_empty()).then_some(Self { version: 2, rfc4884: 1, obj })
    }
}

impl Label {
    fn of(entry: &MplsLabel) -> Self {
        Self { exp: entry.tc, label: entry.label, s: entry.bottom.into(), ttl: entry.ttl }
    }
}

/// The type of an interface object: its role, and a bit for each part that it has (RFC 5837, section 4.1).
fn interface_type(info: &InterfaceInfo) -> u8 {
    let role = match info.role {
        InterfaceRole::Incoming => 0,
        InterfaceRole::SubIncoming => 1,
        InterfaceRole::Outgoing => 2,
        InterfaceRole::NextHop => 3,
    };
    let part = |has: bool, bit: u8| u8::from(has) << bit;
    role << 6 | part(info.index.is_some(), 3) | part(info.addr.is_some(), 2) | part(info.name.is_some(), 1) | part(info.mtu.is_some(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(v4: bool, kind: u8) -> Vec<String> {
        let told = (0..16).map(|code| match unreachable(v4, kind, code) {
            Unreachable::Letter(letter) => letter.to_string(),
            Unreachable::Code(code) => code.to_string(),
        });
        told.collect()
    }

    #[test]
    fn errors_have_the_letters_of_atlas() {
        assert_eq!(letters(true, 3).join(" "), "N H P p 4 5 6 7 8 9 10 11 12 A 14 15");
        assert_eq!(letters(false, 1)[..6].join(" "), "N A 2 H p 5");
        assert_eq!(letters(false, 2)[0], "0");
    }

    #[test]
    fn interface_types_are_those_of_rfc_5837() {
        let info = |role, index, name: Option<&str>| InterfaceInfo { role, index, addr: None, name: name.map(str::to_owned), mtu: None };
        assert_eq!(interface_type(&info(InterfaceRole::Incoming, Some(3), Some("ge-0/0/1"))), 0b0000_1010);
        assert_eq!(interface_type(&info(InterfaceRole::Outgoing, None, None)), 0b1000_0000);
        let full =
            InterfaceInfo { addr: Some([192, 0, 2, 1].into()), mtu: Some(1_500), ..info(InterfaceRole::NextHop, Some(1), Some("x")) };
        assert_eq!(interface_type(&full), 0b1100_1111);
    }

    #[test]
    fn a_path_that_did_not_arrive_does_not_look_as_if_it_had() {
        let asked = Asked {
            method: Method::Icmp,
            name: None,
            source: None,
            began: 1,
            ended: 2,
            size: 12,
            flow: 0,
            first_ttl: 2,
            max_ttl: 5,
            gap: 3,
            attempts: 2,
        };
        let rest = |end, hops: &[u8]| {
            let hops = hops.iter().map(|ttl| Hop { ttl: *ttl, ..Hop::default() }).collect();
            let path = Path { dst: [198, 18, 0, 1].into(), end, hops, sent: 9, mtu: None };
            let tell = |hop: &HopResult| (hop.hop, hop.error.is_some(), hop.result.as_ref().map_or(0, Vec::len));
            Traceroute::new(&path, &asked).result.iter().skip(path.hops.len()).map(tell).collect::<Vec<_>>()
        };
        assert_eq!(rest(PathEnd::Silent, &[]), [(2, false, 2), (3, false, 2), (4, false, 2)]);
        assert_eq!(rest(PathEnd::Silent, &[2, 3]), [(4, false, 2), (5, false, 2)], "no farther than the last TTL");
        assert_eq!(rest(PathEnd::Refused, &[]), [(2, true, 0)]);
        assert_eq!(rest(PathEnd::NoRoute, &[]), [(2, true, 0)]);
        assert_eq!(rest(PathEnd::Stopped, &[2]), [(3, true, 0)]);
        assert_eq!(rest(PathEnd::Reached, &[2]), []);
    }
}
