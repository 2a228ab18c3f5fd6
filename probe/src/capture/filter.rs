//! Filters as text, in the language of libpcap (pcap-filter(7)): what keeps the probe's own traffic out.
//!
//! It must not know libpcap.
//!
//! **Invariants:** what is left out is this box's alone, by its addresses; another host's packets from the same ports stay.

use core::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// What belongs to the probe itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    /// The addresses of the interface, or of all of them.
    pub addresses: Vec<IpAddr>,
    /// First and last source port (and echo identifier) of raw measurements.
    pub ports: Option<(u16, u16)>,
    /// Where the controller is.
    pub controllers: Vec<SocketAddr>,
}

/// Most addresses, and most controllers, that a filter names: its program has a limit of 4096 instructions in the kernel.
const MOST: usize = 32;

/// The filter that is installed: what was asked for, without what is the probe's own.
pub fn complete(asked: &str, own: Option<&Own>) -> String {
    let own = own.map(own_traffic).unwrap_or_default();
    match (asked.trim(), own.as_str()) {
        (asked, "") => asked.to_owned(),
        ("", own) => format!("not ({own})"),
        (asked, own) => format!("({asked}) and not ({own})"),
    }
}

/// What matches the probe's own traffic; empty where nothing is known of it.
fn own_traffic(own: &Own) -> String {
    let mut ways: Vec<String> = Vec::new();
    for controller in own.controllers.iter().take(MOST) {
        ways.push(format!("tcp and host {} and port {}", controller.ip(), controller.port()));
    }
    if let Some(ports) = own.ports {
        for family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
            let addresses: Vec<&IpAddr> = own.addresses.iter().filter(|ip| family(ip)).take(MOST).collect();
            ways.extend(measurements(&addresses, ports));
        }
    }
    let mut text = String::new();
    for (n, way) in ways.iter().enumerate() {
        let _ = write!(text, "{}({way})", if n == 0 { "" } else { " or " });
    }
    text
}

/// What this box sends to measure, what answers, and errors about it. All addresses are of one family.
fn measurements(addresses: &[&IpAddr], (first, last): (u16, u16)) -> Vec<String> {
    let Some(one) = addresses.first() else { return Vec::new() };
    let side = |direction: &str| {
        let hosts: Vec<String> = addresses.iter().map(|ip| format!("{direction} host {ip}")).collect();
        if hosts.len() == 1 { hosts.concat() } else { format!("({})", hosts.join(" or ")) }
    };
    let within = |at: &str| match last {
        u16::MAX => format!("{at} >= {first}"),
        last => format!("{at} >= {first} and {at} <= {last}"),
    };
    // The identifier of echo and timestamp messages, then ports and identifiers in the packet that an error quotes: eight bytes of ICMP
    // header, and an IP header without options, as ours are (RFC 792; RFC 4443, sections 3 and 4).
    let (asks, answers, errors) = if one.is_ipv4() {
        let id = within("icmp[4:2]");
        let quoted = format!("(icmp[17] = 1 and {}) or (icmp[17] != 1 and {})", within("icmp[32:2]"), within("icmp[28:2]"));
        let types = "(icmp[0] = 3 or icmp[0] = 11 or icmp[0] = 12)";
        let (asks, answers) = ("(icmp[0] = 8 or icmp[0] = 13)", "(icmp[0] = 0 or icmp[0] = 14)");
        (format!("{asks} and {id}"), format!("{answers} and {id}"), format!("{types} and ({quoted})"))
    } else {
        let id = within("ip6[44:2]");
        let quoted = format!("(ip6[54] = 58 and {}) or (ip6[54] != 58 and {})", within("ip6[92:2]"), within("ip6[88:2]"));
        let types = "icmp6 and ip6[40] >= 1 and ip6[40] <= 4";
        (format!("icmp6 and ip6[40] = 128 and {id}"), format!("icmp6 and ip6[40] = 129 and {id}"), format!("{types} and ({quoted})"))
    };
    vec![
        format!("{} and (src portrange {first}-{last} or ({asks}))", side("src")),
        format!("{} and (dst portrange {first}-{last} or ({answers}) or ({errors}))", side("dst")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_traffic_is_this_boxs_alone() {
        assert_eq!(complete(" tcp ", None), "tcp");
        assert_eq!(complete("", Some(&Own::default())), "");
        let own = Own { controllers: vec!["192.0.2.7:8883".parse().unwrap()], ..Own::default() };
        assert_eq!(complete("", Some(&own)), "not ((tcp and host 192.0.2.7 and port 8883))");
        // Ports without addresses would leave out what is other hosts'.
        let own = Own { ports: Some((61_440, 65_535)), ..own };
        assert_eq!(complete("a or b", Some(&own)), "(a or b) and not ((tcp and host 192.0.2.7 and port 8883))");
        let own = Own { addresses: vec!["198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap()], controllers: vec![], ..own };
        let text = complete("udp", Some(&own));
        let begin = "(udp) and not (((src host 198.18.0.1 or src host 198.18.0.2) and (src portrange 61440-65535 or ((icmp[0] = 8 ";
        assert!(text.starts_with(begin) && !text.contains("ip6"), "{text}");
    }
}
