//! Filters as text, in the language of libpcap (pcap-filter(7)): what keeps the probe's own traffic out, and where in a text an error
//! stands.
//!
//! It must not know libpcap: whether a text compiles is asked of a function.
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

/// Where a filter goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Characters in front of it.
    pub at: usize,
    /// The word; empty where the text ends too early.
    pub word: String,
}

/// What may follow the beginning of a filter: with one of these behind it, whatever is right so far compiles.
const COMPLETIONS: [&str; 18] = [
    "",
    "ip",
    "80",
    "1-2",
    "port 80",
    "127.0.0.1",
    "host 127.0.0.1",
    "10.0.0.0/8",
    "net 10.0.0.0/8",
    "2001:db8::1",
    "host 2001:db8::1",
    "00:00:00:00:00:01",
    "host 00:00:00:00:00:01",
    "broadcast",
    "= 0",
    "1 = 0",
    "] = 0",
    "0] = 0",
];
/// Longer filters are not looked through.
const MOST_WORDS: usize = 128;

/// Finds where `filter` goes wrong: the first word with which nothing that follows could make it right. libpcap says what is wrong,
/// but not where; so beginnings of the text are tried with `compiles`, which must not look up names.
///
/// `message` is libpcap's: a word that it quotes is the place.
pub fn place(filter: &str, message: &str, compiles: impl Fn(&str) -> bool) -> Option<Place> {
    let words = words(filter);
    let found = |(at, word): &(usize, &str)| Place { at: filter.get(..*at).unwrap_or_default().chars().count(), word: (*word).to_owned() };
    // Where the text is grammar, but a name is unknown, libpcap says the name.
    if !message.contains("syntax error") {
        let said = words.iter().filter(|(_, word)| word.len() > 1 && says(message, word));
        // Beside a wrong name or number libpcap also says what it should be that of.
        let quoted = |word: &str| message.contains(&format!("'{word}'")) || message.contains(&format!("\"{word}\""));
        let has_digit = |word: &str| word.chars().any(|c| c.is_ascii_digit());
        if let Some(word) = said.min_by_key(|(at, word)| (!quoted(word), !has_digit(word), *at)) {
            return Some(found(word));
        }
    }
    if words.len() > MOST_WORDS {
        return None;
    }
    let could_be = |count: usize| {
        let taken = words.get(..count).unwrap_or_default();
        let text = taken.iter().enumerate().map(|(n, (_, word))| stand_in(taken, n, word)).collect::<Vec<_>>().join(" ");
        let open = taken.iter().filter(|(_, word)| *word == "(").count();
        let closed = taken.iter().filter(|(_, word)| *word == ")").count();
        let close = " )".repeat(open.saturating_sub(closed));
        COMPLETIONS.iter().any(|completion| compiles(&format!("{text} {completion}{close}")))
    };
    let wrong = (1..=words.len()).find(|count| !could_be(*count));
    match wrong {
        Some(count) => words.get(count - 1).map(found),
        None => Some(Place { at: filter.trim_end().chars().count(), word: String::new() }),
    }
}

/// Whether `message` has `word` as a word of its own.
fn says(message: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    message.split(|c: char| !part(c)).any(|said| said == word)
}

/// A name of a host would be looked up: an address stands in for it.
fn stand_in<'a>(words: &[(usize, &'a str)], n: usize, word: &'a str) -> &'a str {
    let before = n.checked_sub(1).and_then(|n| words.get(n)).map_or("", |(_, word)| *word);
    let named = word.chars().any(char::is_alphabetic) && !word.contains(':');
    if named && (matches!(before, "host" | "gateway") || word.contains('.')) { "127.0.0.1" } else { word }
}

/// Words and signs with their places, in bytes.
fn words(filter: &str) -> Vec<(usize, &str)> {
    let kind = |c: char| match c {
        c if c.is_whitespace() => 0,
        '(' | ')' | '[' | ']' => 1,
        '<' | '>' | '=' | '!' | '&' | '|' | '+' | '*' | '^' | '%' => 2,
        _ => 3,
    };
    let mut words: Vec<(usize, &str)> = Vec::new();
    let mut begun: Option<(usize, u8)> = None;
    for (at, c) in filter.char_indices().chain([(filter.len(), ' ')]) {
        let now = kind(c);
        // Brackets stand alone, whatever is beside them.
        if let Some((start, before)) = begun
            && (before != now || now == 1)
        {
            words.extend(filter.get(start..at).map(|word| (start, word)));
            begun = None;
        }
        if now != 0 && begun.is_none() {
            begun = Some((at, now));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn words_have_places() {
        assert_eq!(words("tcp[13]&2 != 0"), [(0, "tcp"), (3, "["), (4, "13"), (6, "]"), (7, "&"), (8, "2"), (10, "!="), (13, "0")]);
        assert_eq!(words("((ip))"), [(0, "("), (1, "("), (2, "ip"), (4, ")"), (5, ")")]);
        assert_eq!(words("  "), []);
    }

    #[test]
    fn names_are_not_looked_up() {
        let asked = std::cell::RefCell::new(Vec::new());
        place("host printer and gateway x and host a.example prot", "syntax error", |text| {
            asked.borrow_mut().push(text.to_owned());
            !text.contains("prot")
        });
        assert!(asked.borrow().iter().all(|text| !text.contains("printer") && !text.contains("example")), "{asked:?}");
    }

    #[test]
    fn a_name_that_is_quoted_is_the_place() {
        let found = place("tcp port 80 and host nosuch", "unknown host 'nosuch'", |_| panic!("nothing is tried"));
        assert_eq!(found, Some(Place { at: 21, word: "nosuch".into() }));
    }

    proptest! {
        #[test]
        fn any_text_has_a_place_or_none(text in ".{0,40}", message in ".{0,20}") {
            if let Some(place) = place(&text, &message, |_| false) {
                prop_assert!(place.at <= text.chars().count());
            }
        }
    }
}
