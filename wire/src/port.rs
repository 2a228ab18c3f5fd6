//! Ports as people type them: lists, ranges and open ends per transport protocol, service names, and the commonest ports.
//!
//! The forms are those of Nmap's `-p`: `22,80,8000-8100`, `-1024`, `60000-`, `T:80,U:53,161,S:36412`, `http*`, `[1-1024]`. A section
//! (`T:`, `U:`, `S:`) holds until the next one; what stands before the first belongs to the protocols that the caller names.
//! Service names come from a table that the caller has read, see [`Services::parse`]; no table of anybody else is built in.

use core::fmt;

use crate::job::Transport;
use crate::top_ports;
use crate::units::PortSet;

/// Where systems keep their table of service names.
pub const SERVICES_FILE: &str = "/etc/services";
/// Most names that a table keeps; the file of any system has far fewer.
const SERVICES_MAX: usize = 100_000;

/// Why a text is no selection of ports. The message names the input, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing was named.
    #[error("no port is named: use for example 22,80,443, 1-1024, T:80,U:53 or http*")]
    Empty,
    /// Not a port, a range or a name.
    #[error("`{0}` is not a port, a range or a service name: use 0 to 65535, 1-1024, -1024, 60000- or names such as ssh and http*")]
    Form(String),
    /// A range whose end is before its start.
    #[error("port range `{0}` ends before it starts: did you mean the other way round?")]
    Order(String),
    /// A section of a protocol that has no ports here.
    #[error("`{0}` begins with no known protocol: use T: for TCP, U: for UDP or S: for SCTP")]
    Section(String),
    /// A section without a port behind it.
    #[error("section `{0}` names no port")]
    EmptySection(String),
    /// No service of that name, in the protocols asked for.
    #[error("no {protocols} service is called `{name}` in the system's table of services{hint}")]
    UnknownName {
        /// The name, or the pattern.
        name: String,
        /// The protocols that were looked through.
        protocols: String,
        /// Where it is found instead, where it is.
        hint: String,
    },
    /// A bracket without its other half, or within another.
    #[error("`{0}` has a bracket without its counterpart: write [1-1024] for the ports of that range that have a name")]
    Bracket(String),
    /// No port of the range in brackets has a name.
    #[error("no port of `[{0}]` has a name in the system's table of services")]
    Unnamed(String),
    /// More ports than the list has.
    #[error("the list of common {protocol} ports has {max}: use 1 to {max}, or name ports")]
    TopCount {
        /// The protocol.
        protocol: &'static str,
        /// How many there are.
        max: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    transport: Transport,
    port: u16,
}

/// A table of service names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services(Vec<Named>);

impl Services {
    /// Reads the text of a services file (services(5)): name, port and protocol, aliases, comments. Lines that are something else,
    /// and protocols without ports here, are passed over as the system itself does.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().flat_map(line).take(SERVICES_MAX).collect())
    }

    /// Whether there is no name in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first name of a port.
    pub fn name(&self, transport: Transport, port: u16) -> Option<&str> {
        self.0.iter().find(|named| named.transport == transport && named.port == port).map(|named| named.name.as_str())
    }

    /// The ports whose names match a pattern with `*` (any text) and `?` (any character), in any case of letters.
    fn matching<'a>(&'a self, pattern: &'a str, transport: Transport) -> impl Iterator<Item = u16> + 'a {
        self.0
            .iter()
            .filter(move |named| named.transport == transport && glob(pattern.as_bytes(), named.name.as_bytes()))
            .map(|named| named.port)
    }
}

/// The name and the aliases of one line.
fn line(line: &str) -> Vec<Named> {
    let text = line.split('#').next().unwrap_or_default();
    let mut words = text.split_whitespace();
    let entry = words.next().zip(words.next()).and_then(|(name, place)| {
        let (port, protocol) = place.split_once('/')?;
        let transport = match protocol {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            _ => return None,
        };
        Some((name, port.parse().ok()?, transport))
    });
    let Some((name, port, transport)) = entry else { return Vec::new() };
    core::iter::once(name).chain(words).map(|name| Named { name: name.to_owned(), transport, port }).collect()
}

/// Whether `text` matches a pattern; goes back to the last `*` at most, so that no pattern takes long.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, t));
                p += 1;
            }
            (Some(want), _) if *want == b'?' || want.eq_ignore_ascii_case(byte) => (p, t) = (p + 1, t + 1),
            (_, Some((at, from))) => {
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// Ports by transport protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PortSelection {
    /// TCP ports.
    pub tcp: PortSet,
    /// UDP ports.
    pub udp: PortSet,
    /// SCTP ports.
    pub sctp: PortSet,
}

impl PortSelection {
    /// Reads a text. What stands before the first section belongs to each protocol of `unmarked`.
    pub fn parse(text: &str, services: &Services, unmarked: &[Transport]) -> Result<Self, PortError> {
        let mut parser = Parser { services, protocols: unmarked.to_vec(), bracket: None, found: Vec::new() };
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            parser.item(item)?;
        }
        match (parser.bracket, parser.found.is_empty()) {
            (Some(open), _) => Err(PortError::Bracket(open)),
            (None, true) => Err(PortError::Empty),
            (None, false) => Ok(Self::from_found(&parser.found)),
        }
    }

    /// The `count` commonest ports of each of these protocols, by [`top_ports`].
    pub fn top(count: usize, protocols: &[Transport]) -> Result<Self, PortError> {
        let mut selection = Self::default();
        for transport in protocols {
            let max = top_ports::ranked(*transport).len();
            let ports = top_ports::top(*transport, count).ok_or(PortError::TopCount { protocol: upper(*transport), max })?;
            *selection.get_mut(*transport) = ports;
        }
        Ok(selection)
    }

    /// Only ports of one protocol.
    pub fn of(transport: Transport, ports: PortSet) -> Self {
        let mut selection = Self::default();
        *selection.get_mut(transport) = ports;
        selection
    }

    fn from_found(found: &[(Transport, u16, u16)]) -> Self {
        let of = |transport| PortSet::from_ranges(found.iter().filter(|(t, ..)| *t == transport).map(|(_, first, last)| (*first, *last)));
        Self { tcp: of(Transport::Tcp), udp: of(Transport::Udp), sctp: of(Transport::Sctp) }
    }

    /// The ports of one protocol.
    pub fn get(&self, transport: Transport) -> &PortSet {
        match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
            Transport::Sctp => &self.sctp,
        }
    }

    fn get_mut(&mut self, transport: Transport) -> &mut PortSet {
        match transport {
            Transport::Tcp => &mut self.tcp,
            Transport::Udp => &mut self.udp,
            Transport::Sctp => &mut self.sctp,
        }
    }

    /// The protocols that have ports, TCP first.
    pub fn protocols(&self) -> impl Iterator<Item = (Transport, &PortSet)> + '_ {
        Transport::ALL.into_iter().map(|transport| (transport, self.get(transport))).filter(|(_, ports)| !ports.is_empty())
    }

    /// Whether no port is selected.
    pub fn is_empty(&self) -> bool {
        self.protocols().next().is_none()
    }
}

impl fmt::Display for PortSelection {
    /// In sections, as [`PortSelection::parse`] reads them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (transport, ports)) in self.protocols().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}:{ports}", section(transport))?;
        }
        Ok(())
    }
}

fn section(transport: Transport) -> char {
    match transport {
        Transport::Tcp => 'T',
        Transport::Udp => 'U',
        Transport::Sctp => 'S',
    }
}

fn upper(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Sctp => "SCTP",
    }
}

struct Parser<'a> {
    services: &'a Services,
    /// Where the next items belong.
    protocols: Vec<Transport>,
    /// The item that opened the bracket we are in.
    bracket: Option<String>,
    found: Vec<(Transport, u16, u16)>,
}

impl Parser<'_> {
    fn item(&mut self, item: &str) -> Result<(), PortError> {
        let mut rest = item;
        if let Some((protocol, behind)) = item.split_once(':') {
            self.protocols = vec![match protocol.trim() {
                "T" | "t" => Transport::Tcp,
                "U" | "u" => Transport::Udp,
                "S" | "s" => Transport::Sctp,
                _ => return Err(PortError::Section(item.to_owned())),
            }];
            rest = behind.trim();
            if rest.is_empty() {
                return Err(PortError::EmptySection(item.to_owned()));
            }
        }
        if let Some(inside) = rest.strip_prefix('[') {
            if self.bracket.replace(item.to_owned()).is_some() {
                return Err(PortError::Bracket(item.to_owned()));
            }
            rest = inside;
        }
        let closed = rest.strip_suffix(']');
        if closed.is_some() && self.bracket.is_none() {
            return Err(PortError::Bracket(item.to_owned()));
        }
        self.ports(closed.unwrap_or(rest).trim())?;
        if closed.is_some() {
            self.bracket = None;
        }
        Ok(())
    }

    fn ports(&mut self, text: &str) -> Result<(), PortError> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
            return self.names(text);
        }
        let (first, last) = range(text)?;
        if self.bracket.is_none() {
            self.found.extend(self.protocols.iter().map(|transport| (*transport, first, last)));
            return Ok(());
        }
        let inside = |named: &&Named| self.protocols.contains(&named.transport) && (first..=last).contains(&named.port);
        let found: Vec<_> = self.services.0.iter().filter(inside).map(|named| (named.transport, named.port, named.port)).collect();
        match found.is_empty() {
            true => Err(PortError::Unnamed(text.to_owned())),
            false => {
                self.found.extend(found);
                Ok(())
            }
        }
    }

    fn names(&mut self, pattern: &str) -> Result<(), PortError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'/' | b'*' | b'?');
        if pattern.is_empty() || !pattern.bytes().all(plain) || self.bracket.is_some() {
            return Err(PortError::Form(pattern.to_owned()));
        }
        let matches = |transport: Transport| self.services.matching(pattern, transport).map(move |port| (transport, port, port));
        let found: Vec<_> = self.protocols.iter().flat_map(|transport| matches(*transport)).collect();
        if found.is_empty() {
            let elsewhere = Transport::ALL.into_iter().find(|transport| matches(*transport).next().is_some());
            let hint = elsewhere.map(|transport| format!("; {} has it: write {}:{pattern}", upper(transport), section(transport)));
            let protocols = self.protocols.iter().map(|transport| upper(*transport)).collect::<Vec<_>>().join(" or ");
            return Err(PortError::UnknownName { name: pattern.to_owned(), protocols, hint: hint.unwrap_or_default() });
        }
        self.found.extend(found);
        Ok(())
    }
}

/// A port, or a range with open ends. An open start begins at 1: port 0 is scanned only where it is named.
fn range(text: &str) -> Result<(u16, u16), PortError> {
    let number = |digits: &str| digits.parse::<u16>().map_err(|_| PortError::Form(text.to_owned()));
    let Some((first, last)) = text.split_once('-') else {
        let port = number(text)?;
        return Ok((port, port));
    };
    let first = if first.is_empty() { 1 } else { number(first)? };
    let last = if last.is_empty() { u16::MAX } else { number(last)? };
    if first > last { Err(PortError::Order(text.to_owned())) } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "\
# comment
ssh\t\t22/tcp\t\t\t# SSH
http            80/tcp          www     # WorldWideWeb HTTP
http-alt 8080/tcp webcache
https 443/tcp
https 443/udp   # QUIC
domain 53/tcp
domain 53/udp
tftp 69/udp
s1-control 36412/sctp
rtmp 1/ddp
broken
broken tcp/5
broken 70000/tcp
";

    fn table() -> Services {
        Services::parse(TABLE)
    }

    fn parse(text: &str) -> Result<String, String> {
        let selection = PortSelection::parse(text, &table(), &[Transport::Tcp]);
        selection.map(|ports| ports.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn ports_as_people_type_them() {
        for (text, ports) in [
            ("22,80,8000-8100", "T:22,80,8000-8100"),
            ("-3,65534-", "T:1-3,65534-65535"),
            ("-", "T:1-65535"),
            ("0-", "T:0-65535"),
            ("T:21-25,80,U:53,69,S:36412,T:443", "T:21-25,80,443,U:53,69,S:36412"),
            ("22,U:53", "T:22,U:53"),
            ("u: 53 , 54", "U:53-54"),
            ("http,U:domain", "T:80,U:53"),
            ("http*", "T:80,443,8080"),
            ("HTTP?", "T:443"),
            ("www,U:*", "T:80,U:53,69,443"),
            ("S:*control", "S:36412"),
            ("[1-100]", "T:22,53,80"),
            ("[1-60,400-],9", "T:9,22,53,443,8080"),
            ("U:[50-60]", "U:53"),
            ("22,,80,", "T:22,80"),
        ] {
            assert_eq!(parse(text), Ok(ports.to_owned()), "{text}");
        }
    }

    #[test]
    fn wrong_ports_say_what_is_wrong() {
        for (text, reason) in [
            ("", "no port is named"),
            (" , ", "no port is named"),
            ("65536", "`65536` is not a port"),
            ("80-70", "port range `80-70` ends before it starts"),
            ("1-2-3", "`1-2-3` is not a port"),
            ("+80", "no TCP service is called `+80`"),
            ("8 0", "`8 0` is not a port"),
            ("tftp", "no TCP service is called `tftp` in the system's table of services; UDP has it: write U:tftp"),
            ("gopher", "no TCP service is called `gopher` in the system's table of services"),
            ("P:1", "`P:1` begins with no known protocol"),
            ("T:", "section `T:` names no port"),
            ("T:U:53", "is not a port"),
            ("[1-80", "bracket without its counterpart"),
            ("1-80]", "bracket without its counterpart"),
            ("[[1-80]]", "is not a port"),
            ("[http]", "is not a port"),
            ("[2-3]", "no port of `[2-3]` has a name"),
        ] {
            let error = parse(text).map(|ports| format!("accepted as {ports}")).unwrap_or_else(|error| error);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn unmarked_ports_belong_to_every_protocol_asked_for() {
        let both = |text| PortSelection::parse(text, &table(), &[Transport::Tcp, Transport::Udp]).map(|ports| ports.to_string());
        assert_eq!(both("7,domain,S:9"), Ok("T:7,53,U:7,53,S:9".into()));
        assert_eq!(both("tftp"), Ok("U:69".into()));
        assert!(both("gopher").unwrap_err().to_string().contains("no TCP or UDP service"));
    }

    #[test]
    fn names_of_ports_are_the_first_of_their_line() {
        let table = table();
        assert_eq!(table.name(Transport::Tcp, 80), Some("http"));
        assert_eq!(table.name(Transport::Udp, 80), None);
        assert!(Services::parse("").is_empty() && !table.is_empty());
    }

    #[test]
    fn the_commonest_ports_are_counted_for_each_protocol() {
        let top = PortSelection::top(10, &[Transport::Tcp, Transport::Udp]).unwrap();
        assert_eq!((top.tcp.len(), top.udp.len(), top.sctp.len()), (10, 10, 0));
        assert!(PortSelection::top(0, &[Transport::Tcp]).is_err());
        assert!(PortSelection::top(5000, &[Transport::Udp]).unwrap_err().to_string().contains("the list of common UDP ports has"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(tcp in proptest::collection::vec((any::<u16>(), 0u16..9), 0..5), udp in proptest::collection::vec((any::<u16>(), 0u16..9), 1..5)) {
            let set = |ranges: Vec<(u16, u16)>| PortSet::from_ranges(ranges.into_iter().map(|(first, more)| (first, first.saturating_add(more))));
            let selection = PortSelection { tcp: set(tcp), udp: set(udp), sctp: PortSet::default() };
            prop_assert_eq!(PortSelection::parse(&selection.to_string(), &Services::default(), &[]), Ok(selection));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[TUS:0-9a-z,*?\\[\\]-]{0,30}|\\PC{0,30}", file in "\\PC{0,60}") {
            let _ = PortSelection::parse(&text, &table(), &Transport::ALL);
            let _ = Services::parse(&file);
        }

        #[test]
        fn globs_agree_with_a_plain_recursion(pattern in "[ab*?]{0,7}", text in "[ab]{0,7}") {
            fn plain(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, text) => text.is_none(),
                    (Some((b'*', rest)), None) => plain(rest, text),
                    (Some((b'*', rest)), Some((_, tail))) => plain(rest, text) || plain(pattern, tail),
                    (Some((want, rest)), Some((byte, tail))) => (*want == b'?' || want == byte) && plain(rest, tail),
                    (Some(_), None) => false,
                }
            }
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), plain(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
