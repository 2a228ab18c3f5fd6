//! Targets as people type them, names included.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use picket_wire::addr::{AddrError, AddrSet, parse_item};

/// Why there are no targets.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Neither address nor name.
    #[error(transparent)]
    Form(#[from] AddrError),
    /// The name has no address.
    #[error("cannot resolve `{name}`")]
    Resolve {
        /// The name.
        name: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
}

/// Addresses, and which of them came from names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) set: AddrSet,
    pub(super) names: Vec<(String, Vec<IpAddr>)>,
}

/// All addresses that the system's resolver has for a name.
pub(super) fn system_resolver(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addrs: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|addr| addr.ip().to_canonical()).collect();
    addrs.sort_unstable();
    addrs.dedup();
    match addrs.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        false => Ok(addrs),
    }
}

/// Reads items separated by commas or white space; `resolve` is asked for what can only be a name.
pub(super) fn parse(texts: &[String], resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>>) -> Result<Targets, TargetError> {
    let mut targets = Targets::default();
    let mut ranges = Vec::new();
    for item in texts.iter().flat_map(|text| text.split(|c: char| c == ',' || c.is_whitespace())).filter(|item| !item.is_empty()) {
        match parse_item(item) {
            Ok(range) => ranges.push(range),
            Err(AddrError::Form(_)) if is_name(item) => {
                let addrs = resolve(item).map_err(|source| TargetError::Resolve { name: item.to_owned(), source })?;
                ranges.extend(addrs.iter().map(|addr| (*addr, *addr)));
                targets.names.push((item.to_owned(), addrs));
            }
            Err(error) => return Err(error.into()),
        }
    }
    targets.set = AddrSet::try_from(ranges)?;
    Ok(targets)
}

/// Whether it can be a host name and nothing else: the last label of one never begins with a digit, so that a mistyped
/// address is never asked of a name server.
fn is_name(text: &str) -> bool {
    let label =
        |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text.split('.').all(label)
        && text.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "printer.lan" => Ok(vec!["198.18.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }

    fn parse_text(text: &str) -> Result<Targets, String> {
        parse(&[text.to_owned()], lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn names_bring_all_their_addresses() {
        let targets = parse_text("198.18.1.0/30, printer.lan").unwrap();
        assert_eq!(targets.set.len(), Some(6));
        assert_eq!(targets.names, [("printer.lan".to_owned(), lookup("printer.lan").unwrap())]);
    }

    #[test]
    fn mistyped_addresses_are_not_taken_for_names() {
        for (text, message) in [
            ("198.18.0.300", "`198.18.0.300` is not an address"),
            ("198.18.0.0/33", "no such prefix length"),
            ("198.18.0", "`198.18.0` is not an address"),
            ("198.18.0.1-x", "`198.18.0.1-x` is not an address"),
            ("http://printer.lan/", "`http://printer.lan/` is not an address"),
            ("nobody.lan", "cannot resolve `nobody.lan`"),
            ("a..b", "`a..b` is not an address"),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
