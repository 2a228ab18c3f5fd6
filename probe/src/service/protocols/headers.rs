//! Protocols that answer like HTTP, a status and headers: RTSP (RFC 7826), SIP (RFC 3261) and SSDP (UPnP Device Architecture).

use picket_wire::job::Transport;

use super::Setting;
use super::http::{Answer, product};
use super::once::{Once, Read};
use crate::service::dialogue::Finding;
use crate::service::recog::keys;
use crate::service::text::{begins, clean, find};

/// Longest head that is waited for.
const HEAD_MAX: usize = 16 * 1024;

/// Which header becomes which fact, and which fingerprints look at it.
type Headers = &'static [(&'static str, &'static str, &'static str)];

const RTSP: Headers =
    &[("server", "rtsp.server", keys::RTSP_SERVER), ("public", "rtsp.methods", ""), ("www-authenticate", "rtsp.auth", "")];
const SIP: Headers =
    &[("server", "sip.server", keys::SIP_SERVER), ("user-agent", "sip.user_agent", keys::SIP_USER_AGENT), ("allow", "sip.methods", "")];
const SSDP: Headers =
    &[("server", "ssdp.server", keys::UPNP_SERVER), ("location", "ssdp.location", ""), ("st", "ssdp.target", ""), ("usn", "ssdp.name", "")];

pub(super) fn rtsp() -> Once {
    Once::new("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: picket-probe\r\n\r\n", |input, over| read(input, over, "rtsp", b"RTSP/", RTSP))
}

/// OPTIONS (RFC 3261, section 11); over datagrams the answer finds its way by `rport` (RFC 3581).
pub(super) fn sip(setting: &Setting) -> Once {
    let host = match setting.addr {
        core::net::IpAddr::V4(addr) => addr.to_string(),
        core::net::IpAddr::V6(addr) => format!("[{addr}]"),
    };
    let via = match (setting.transport, setting.tls) {
        (_, true) => "TLS",
        (Transport::Udp, _) => "UDP",
        _ => "TCP",
    };
    let tag = hex::encode(setting.random.first_chunk::<8>().unwrap_or(&[0; 8]));
    let request = format!(
        "OPTIONS sip:{host} SIP/2.0\r\nVia: SIP/2.0/{via} picket.invalid;branch=z9hG4bK{tag};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:picket@picket.invalid>;tag={tag}\r\nTo: <sip:{host}>\r\nCall-ID: {tag}@picket.invalid\r\nCSeq: 1 OPTIONS\r\n\
         Contact: <sip:picket@picket.invalid>\r\nAccept: application/sdp\r\nContent-Length: 0\r\n\r\n"
    );
    Once::new(request, |input, over| read(input, over, "sip", b"SIP/", SIP))
}

pub(super) fn ssdp() -> Once {
    let search = "M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMan: \"ssdp:discover\"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n";
    Once::new(search, |input, over| read(input, over, "ssdp", b"HTTP/", SSDP))
}

fn read(input: &[u8], over: bool, name: &str, start: &[u8], headers: Headers) -> Read {
    if !begins(input, start.get(..input.len().min(start.len())).unwrap_or_default()) {
        return Read::Foreign;
    }
    if find(input, b"\r\n\r\n").is_none() && !over && input.len() < HEAD_MAX {
        return Read::More;
    }
    let Some(answer) = Answer::parse(input) else { return Read::Foreign };
    let mut finding = Finding::new(name);
    finding.fact(&format!("{name}.status"), answer.status.to_string());
    let mut about = String::new();
    for (header, fact, key) in headers {
        let value = answer.header(header).map(clean).unwrap_or_default();
        if !key.is_empty() && !value.is_empty() {
            finding.look_up(key, value.clone());
            about.clone_from(&value);
        }
        finding.fact(fact, value);
    }
    (finding.service.product, finding.service.version) = product(&about);
    Read::Known(finding)
}
