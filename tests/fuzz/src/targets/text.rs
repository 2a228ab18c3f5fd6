//! What operators type.

use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, PortSet};

/// Targets: what was read is within what can be written and read again.
pub(crate) fn targets(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    if let Ok(set) = parse_set(text) {
        let again: AddrSet = Vec::from(set.clone()).try_into().expect("ranges of a set make a set");
        assert_eq!(again, set);
    }
}

/// Ports.
pub(crate) fn ports(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    if let Ok(set) = text.parse::<PortSet>() {
        assert!((0..set.len()).all(|rank| set.nth(rank).and_then(|port| set.rank(port)) == Some(rank)));
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
