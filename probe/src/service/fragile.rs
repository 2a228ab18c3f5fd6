//! Ports of fragile devices: shaken hands, told nothing, closed in order.
//!
//! A printer prints what it is told, and a controller of machines may stop, or start something, at words that it does not know. Which
//! ports those are is [`LIST`], every entry with its reason. Who may lift it: a job asks ([`picket_wire::job::ServiceOptions`]),
//! and the site decides ([`SitePolicy`], from the probe's own configuration). Both must agree; the site's word is the last.
//!
//! **Invariant:** without the site's leave no octet of payload goes to a port of [`LIST`], whatever a controller signs.

use picket_wire::job::Transport;
use picket_wire::units::PortSet;

/// Ports on which nothing may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragile {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Over which transport; both where nothing is said.
    pub transport: Option<Transport>,
    /// What listens there.
    pub what: &'static str,
    /// Why it is told nothing.
    pub why: &'static str,
    /// Where port and reason are written down.
    pub source: &'static str,
}

const PRINTS: &str = "paper is printed with whatever is sent";
const CONTROLS: &str = "controls machines, without authentication; stacks of many devices fail at what they do not expect";
const BUILDING: &str = "controls a building's machines; stacks of many devices fail at what they do not expect";
const GRID: &str = "controls substations and water works; a station serves few connections, and one more may cost its master";
const USAGE: &str = "its maker's default; not registered";

const fn both(first: u16, last: u16, what: &'static str, why: &'static str, source: &'static str) -> Fragile {
    Fragile { first, last, transport: None, what, why, source }
}

const fn tcp(first: u16, last: u16, what: &'static str, why: &'static str, source: &'static str) -> Fragile {
    Fragile { first, last, transport: Some(Transport::Tcp), what, why, source }
}

const fn udp(first: u16, last: u16, what: &'static str, why: &'static str, source: &'static str) -> Fragile {
    Fragile { first, last, transport: Some(Transport::Udp), what, why, source }
}

/// All of them, in the order of ports.
///
/// Not among them: 631 (IPP is HTTP, and parsed as such), 4840 (OPC UA checks a message's header before anything else), serial
/// device servers (their ports are everybody's choice: name them in `[services] fragile`).
pub const LIST: &[Fragile] = &[
    tcp(102, 102, "ISO-on-TCP: Siemens S7, IEC 61850", CONTROLS, "RFC 1006; IANA `iso-tsap`"),
    tcp(502, 502, "Modbus", CONTROLS, "Modbus Messaging on TCP/IP Implementation Guide; IANA `mbap`"),
    tcp(515, 515, "line printer daemon", "one octet begins a print job (5.2)", "RFC 1179"),
    tcp(789, 789, "Red Lion Crimson 3", CONTROLS, USAGE),
    both(1089, 1091, "FOUNDATION Fieldbus HSE", CONTROLS, "IANA `ff-annunc`, `ff-fms`, `ff-sm`"),
    tcp(1911, 1911, "Niagara Fox", BUILDING, "Tridium Niagara hardening guide"),
    tcp(1962, 1962, "Phoenix Contact PC WORX", CONTROLS, USAGE),
    both(2222, 2222, "EtherNet/IP implicit messages, Allen-Bradley CSP", CONTROLS, "IANA `EtherNet-IP-1`"),
    tcp(2404, 2404, "IEC 60870-5-104", GRID, "IEC 60870-5-104, 7.3; IANA `iec-104`"),
    tcp(2455, 2455, "CODESYS 2", CONTROLS, USAGE),
    tcp(4911, 4911, "Niagara Fox over TLS", BUILDING, "Tridium Niagara hardening guide"),
    both(5006, 5007, "Mitsubishi MELSEC", CONTROLS, "Mitsubishi MELSEC communication protocol reference"),
    both(5094, 5094, "HART-IP", CONTROLS, "IANA `hart-ip`"),
    tcp(9100, 9107, "raw printing (PDL data stream)", PRINTS, "IANA `pdl-datastream` (9100); vendors of print servers with several ports"),
    both(9600, 9600, "OMRON FINS", CONTROLS, "OMRON FINS commands reference manual"),
    tcp(11740, 11740, "CODESYS 3", CONTROLS, USAGE),
    udp(17185, 17185, "VxWorks debug agent", "reads and writes the device's memory for whoever asks", "CERT VU#362332"),
    tcp(18245, 18246, "GE SRTP", CONTROLS, USAGE),
    both(20000, 20000, "DNP3", GRID, "IEEE 1815; IANA `dnp`"),
    tcp(20547, 20547, "ProConOS", CONTROLS, USAGE),
    udp(28784, 28784, "Koyo DirectNET over Ethernet", CONTROLS, USAGE),
    both(34962, 34964, "PROFINET", CONTROLS, "IANA `profinet-rt`, `profinet-rtm`, `profinet-cm`"),
    both(34980, 34980, "EtherCAT", CONTROLS, "IANA `ethercat`"),
    both(44818, 44818, "EtherNet/IP explicit messages", CONTROLS, "IANA `EtherNet-IP-2`"),
    both(47808, 47823, "BACnet/IP", BUILDING, "ANSI/ASHRAE 135, annex J; IANA `bacnet` (47808)"),
];

/// The entry of a port, if it is on [`LIST`].
pub fn listed(transport: Transport, port: u16) -> Option<&'static Fragile> {
    let is_it = |entry: &&Fragile| (entry.first..=entry.last).contains(&port) && entry.transport.is_none_or(|only| only == transport);
    LIST.iter().find(is_it)
}

/// What the site lets jobs ask. By default nothing that is fragile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SiteLeave {
    /// No fragile port may be asked, whatever a job says.
    #[default]
    None,
    /// These may be asked, by jobs that want to.
    Ports(PortSet),
    /// All may be asked, by jobs that want to.
    All,
}

/// The site's word on fragile ports: `[services]` of the probe's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SitePolicy {
    /// What jobs may ask all the same: `ask_fragile`.
    pub leave: SiteLeave,
    /// Ports that are fragile at this site besides [`LIST`]: `fragile`.
    pub more: Option<PortSet>,
}

/// Why a port is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spared {
    /// It is on the list.
    Listed(&'static Fragile),
    /// The site named it.
    BySite,
}

impl SitePolicy {
    /// Why a port is to be told nothing by a job that wants (`asked`) or does not want to ask fragile ports; `None` when it may be
    /// asked.
    pub fn spares(&self, asked: bool, transport: Transport, port: u16) -> Option<Spared> {
        let named = self.more.as_ref().is_some_and(|more| more.rank(port).is_some());
        let why = listed(transport, port).map(Spared::Listed).or(named.then_some(Spared::BySite))?;
        let leave = match &self.leave {
            SiteLeave::None => false,
            SiteLeave::Ports(ports) => ports.rank(port).is_some(),
            SiteLeave::All => true,
        };
        (!(asked && leave)).then_some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn the_list_is_in_order_and_gives_reasons() {
        for pair in LIST.windows(2) {
            assert!(pair[0].last < pair[1].first, "{pair:?}");
        }
        for entry in LIST {
            assert!(entry.first <= entry.last && !entry.what.is_empty() && !entry.why.is_empty() && !entry.source.is_empty(), "{entry:?}");
        }
    }

    #[test]
    fn the_list_knows_transports() {
        for port in [9100, 9107, 502, 102, 44818, 20000, 2222] {
            assert!(listed(Transport::Tcp, port).is_some(), "{port}");
        }
        assert!(listed(Transport::Udp, 47808).is_some() && listed(Transport::Udp, 17185).is_some());
        for port in [22, 80, 443, 631, 4840, 9099, 9108, 17185] {
            assert_eq!(listed(Transport::Tcp, port), None, "{port}");
        }
        assert_eq!(listed(Transport::Udp, 9100), None);
    }

    #[test]
    fn a_fragile_port_is_asked_only_where_job_and_site_agree() {
        let site = |leave| SitePolicy { leave, more: None };
        for (leave, asked, spared) in [
            (SiteLeave::None, false, true),
            (SiteLeave::None, true, true),
            (SiteLeave::All, false, true),
            (SiteLeave::All, true, false),
            (SiteLeave::Ports(ports("502,9000-9200")), false, true),
            (SiteLeave::Ports(ports("502,9000-9200")), true, false),
            (SiteLeave::Ports(ports("503")), true, true),
        ] {
            let policy = site(leave.clone());
            assert_eq!(policy.spares(asked, Transport::Tcp, 502).is_some(), spared, "{leave:?} {asked}");
            assert_eq!(policy.spares(asked, Transport::Tcp, 80), None);
        }
    }

    #[test]
    fn a_site_may_name_more() {
        let policy = SitePolicy { leave: SiteLeave::None, more: Some(ports("4001-4016")) };
        assert_eq!(policy.spares(true, Transport::Tcp, 4001), Some(Spared::BySite));
        assert_eq!(policy.spares(true, Transport::Udp, 4016), Some(Spared::BySite));
        assert_eq!(policy.spares(true, Transport::Tcp, 4017), None);
        assert!(matches!(policy.spares(true, Transport::Tcp, 502), Some(Spared::Listed(_))));
    }

    #[test]
    fn the_documentation_lists_the_same_ports() {
        let text = include_str!("../../../docs/services.md");
        for entry in LIST {
            let range = if entry.first == entry.last { entry.first.to_string() } else { format!("{}-{}", entry.first, entry.last) };
            let transport = entry.transport.map_or("tcp, udp", Transport::as_str);
            let row = format!("| {range} | {transport} | {} | {} | {} |", entry.what, entry.why, entry.source);
            assert!(text.contains(&row), "docs/services.md lacks: {row}");
        }
        let is_row = |line: &&str| line.starts_with("| ") && (line.contains(" | tcp") || line.contains(" | udp |"));
        let rows = text.lines().filter(is_row).count();
        assert_eq!(rows, LIST.len(), "docs/services.md lists more than there is");
    }
}
