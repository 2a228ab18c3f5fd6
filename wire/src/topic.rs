//! The MQTT topics: the only place that knows their text.
//!
//! | topic | who writes | who reads | what |
//! |---|---|---|---|
//! | `P/role/<role>/cmd` | controller | probes that hold the role | signed job specs |
//! | `P/probe/<id>/cmd` | controller | that probe | leases, cancels, acknowledgements |
//! | `P/probe/<id>/evt` | that probe | controller | spool records, heartbeats |
//! | `P/probe/<id>/live` | that probe and its last will | controller | birth and death |
//! | `P/fleet/...` | controller | dashboards, read-only | retained JSON |
//!
//! `P` is one configurable prefix, `picket/v1` by default.
//!
//! **Invariant:** a [`Topic`] never contains a wildcard, and `parse(format(t)) == t`.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{ProbeId, Role};

/// Why a text is not a topic prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a topic prefix: use 1 to 64 of a-z, 0-9, `-`, `_` and `/`, without `/` at either end or twice in a row")]
pub struct PrefixError {
    /// The refused text.
    pub input: String,
}

/// The configurable first part of every topic, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self("picket/v1".to_owned())
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let good = text.len() <= 64 && text.split('/').all(|level| !level.is_empty() && level.bytes().all(allowed));
        good.then(|| Self(text.to_owned())).ok_or_else(|| PrefixError { input: text.to_owned() })
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;
    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One topic below the prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Commands for all holders of a role.
    RoleCmd(Role),
    /// Commands for one probe.
    ProbeCmd(ProbeId),
    /// Events of one probe.
    ProbeEvt(ProbeId),
    /// Birth and death of one probe's session.
    ProbeLive(ProbeId),
    /// Retained status for dashboards; the rest of the path, without a leading slash.
    Fleet(String),
}

impl Topic {
    /// The full text under `prefix`.
    pub fn format(&self, prefix: &Prefix) -> String {
        match self {
            Topic::RoleCmd(role) => format!("{prefix}/role/{role}/cmd"),
            Topic::ProbeCmd(id) => format!("{prefix}/probe/{id}/cmd"),
            Topic::ProbeEvt(id) => format!("{prefix}/probe/{id}/evt"),
            Topic::ProbeLive(id) => format!("{prefix}/probe/{id}/live"),
            Topic::Fleet(rest) => format!("{prefix}/fleet/{rest}"),
        }
    }

    /// Reads a full topic text; `None` where it is not one of ours (a wildcard never is).
    pub fn parse(prefix: &Prefix, text: &str) -> Option<Topic> {
        let rest = text.strip_prefix(prefix.0.as_str())?.strip_prefix('/')?;
        let mut levels = rest.split('/');
        let topic = match (levels.next()?, levels.next()?) {
            ("fleet", _) => {
                let path = rest.strip_prefix("fleet/")?;
                let plain = !path.contains(['+', '#', '\0']) && path.split('/').all(|level| !level.is_empty());
                return plain.then(|| Topic::Fleet(path.to_owned()));
            }
            ("role", role) => match levels.next()? {
                "cmd" => Topic::RoleCmd(role.parse().ok()?),
                _ => return None,
            },
            ("probe", id) => {
                let id: ProbeId = id.parse().ok()?;
                match levels.next()? {
                    "cmd" => Topic::ProbeCmd(id),
                    "evt" => Topic::ProbeEvt(id),
                    "live" => Topic::ProbeLive(id),
                    _ => return None,
                }
            }
            _ => return None,
        };
        levels.next().is_none().then_some(topic)
    }
}

/// The subscriptions of the controller and of dashboards: the only filters with wildcards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Events of every probe.
    AllEvents,
    /// Births and deaths of every probe.
    AllLive,
    /// The whole status tree.
    Fleet,
}

impl Filter {
    /// The filter text under `prefix`.
    pub fn format(self, prefix: &Prefix) -> String {
        match self {
            Filter::AllEvents => format!("{prefix}/probe/+/evt"),
            Filter::AllLive => format!("{prefix}/probe/+/live"),
            Filter::Fleet => format!("{prefix}/fleet/#"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip() {
        let prefix = Prefix::default();
        let id: ProbeId = "attic".parse().unwrap();
        let all = [
            (Topic::RoleCmd(Role::Scan), "picket/v1/role/scan/cmd"),
            (Topic::ProbeCmd(id.clone()), "picket/v1/probe/attic/cmd"),
            (Topic::ProbeEvt(id.clone()), "picket/v1/probe/attic/evt"),
            (Topic::ProbeLive(id), "picket/v1/probe/attic/live"),
            (Topic::Fleet("probe/attic/state".into()), "picket/v1/fleet/probe/attic/state"),
        ];
        for (topic, text) in all {
            assert_eq!(topic.format(&prefix), text);
            assert_eq!(Topic::parse(&prefix, text), Some(topic));
        }
    }

    #[test]
    fn foreign_or_wild_topics_are_not_ours() {
        let prefix = Prefix::default();
        for text in [
            "",
            "picket/v1",
            "picket/v1/",
            "picket/v10/probe/a/cmd",
            "picket/v1/probe/+/cmd",
            "picket/v1/probe/#",
            "picket/v1/role/root/cmd",
            "picket/v1/probe/a/cmd/x",
            "picket/v1/fleet/#",
            "picket/v1/fleet/a//b",
            "picket/v1/fleet",
            "$SYS/broker",
            "picket/v1/probe/picket-controller-1/evt",
        ] {
            assert_eq!(Topic::parse(&prefix, text), None, "{text}");
        }
    }

    #[test]
    fn prefixes_are_checked() {
        assert!("a/b_c-1".parse::<Prefix>().is_ok());
        for bad in ["", "/a", "a/", "a//b", "a/+", "a#", "A"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
