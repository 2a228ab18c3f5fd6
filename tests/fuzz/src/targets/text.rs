//! What operators type.

use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::job::Transport;
use picket_wire::port::{PortSelection, Services};
use picket_wire::target::{parse_addresses, parse_items};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, PortSet};

/// Targets: what was read is within what can be written and read again.
pub(crate) fn targets(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    if let Ok(set) = parse_set(text) {
        let again: AddrSet = Vec::from(set.clone()).try_into().expect("ranges of a set make a set");
        assert_eq!(again, set);
    }
    // Names are the caller's to resolve; addresses alone are items that all are sets.
    let _ = (parse_items(text), parse_addresses(text));
}

/// Ports.
pub(crate) fn ports(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    if let Ok(set) = text.parse::<PortSet>() {
        assert!((0..set.len()).all(|rank| set.nth(rank).and_then(|port| set.rank(port)) == Some(rank)));
    }
}

/// A selection of ports with the names of a services file: the text is read as both.
pub(crate) fn selection(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let services = Services::parse(rest);
    if let Ok(selection) = PortSelection::parse(first, &services, &[Transport::Tcp]) {
        assert!(!selection.is_empty(), "a selection selects");
    }
}

/// Rates: what is read is written in a form that reads the same.
pub(crate) fn units(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    if let Ok(rate) = text.parse::<PacketsPerSecond>() {
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
    if let Ok(rate) = text.parse::<BitsPerSecond>() {
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
}
