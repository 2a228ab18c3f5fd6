//! Names of things: probes, jobs, leases, sessions, streams.
//!
//! Every identifier has one textual form, parsed by `FromStr` and written by `Display`; nothing else in Picket splits or
//! joins these strings. Random identifiers are made by the caller (this crate does no IO and has no entropy source).
//!
//! **Invariant:** a value of a type in this module is always well formed; a malformed one cannot be constructed or decoded.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier. The message names the input and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The name has a character outside the allowed set, or a wrong length.
    #[error("`{input}` is not a {what}: use 1 to 32 of a-z, 0-9 and `-`")]
    Name {
        /// What was expected (`probe id`, `site name`, `label`).
        what: &'static str,
        /// The refused text.
        input: String,
    },
    /// The prefix is kept for controllers, so that no probe can take a controller's place at the broker.
    #[error("`{input}` is not a probe id: names that start with `picket-` are kept for controllers")]
    Reserved {
        /// The refused text.
        input: String,
    },
    /// Not the hexadecimal form of a random identifier.
    #[error("`{input}` is not a {what}: {digits} hexadecimal digits are expected")]
    Hex {
        /// What was expected.
        what: &'static str,
        /// The refused text.
        input: String,
        /// How many digits the form has.
        digits: usize,
    },
    /// Not a lease.
    #[error("`{input}` is not a lease: a job's 16 hexadecimal digits, a dot and a number are expected")]
    Lease {
        /// The refused text.
        input: String,
    },
    /// Not a role.
    #[error("`{input}` is not a role: use one of scan, trace, capture, tool")]
    Role {
        /// The refused text.
        input: String,
    },
}

/// Longest name in bytes: it must fit a certificate's common name and an MQTT 3.1.1 client id with room to spare.
pub const NAME_MAX: usize = 32;

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $reserved:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if !is_name(text) {
                    return Err(IdError::Name { what: $what, input: text.to_owned() });
                }
                if $reserved && text.starts_with(CONTROLLER_PREFIX) {
                    return Err(IdError::Reserved { input: text.to_owned() });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

/// Names that start so belong to controllers.
pub const CONTROLLER_PREFIX: &str = "picket-";

name_type!(
    /// A probe: the common name of its certificate, its MQTT client id and its place in topics.
    ProbeId, "probe id", true
);
name_type!(
    /// A site: the private address space in which what a probe finds is unique.
    SiteName, "site name", false
);
name_type!(
    /// A free label on a probe, used to select it for jobs.
    Label, "label", false
);

macro_rules! hex_type {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $digits:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $inner);

        /// In JSON the text that commands take: most readers of JSON round numbers over 2^53. On the wire the number.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return <$inner>::deserialize(deserializer).map(Self);
                }
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let well_formed = text.len() == $digits && text.bytes().all(|b| b.is_ascii_hexdigit());
                well_formed
                    .then(|| <$inner>::from_str_radix(text, 16).ok())
                    .flatten()
                    .map(Self)
                    .ok_or_else(|| IdError::Hex { what: $what, input: text.to_owned(), digits: $digits })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:0width$x}", self.0, width = $digits)
            }
        }
    };
}

hex_type!(
    /// A job. Random, but its upper 32 bits are the submission's Unix second, so that ids sort by age.
    JobId, u64, 16, "job id"
);
hex_type!(
    /// One connection of a probe to its controller; a last will carries it so that an old will cannot mark a new session dead.
    SessionId, u64, 16, "session id"
);
hex_type!(
    /// One life of a probe's spool; sequence numbers are unique within it.
    StreamId, u64, 16, "stream id"
);

/// A lease: the job and the controller's number of the grant within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseId {
    /// The job whose work is granted.
    pub job: JobId,
    /// Counts grants of that job from 1; never used twice.
    pub grant: u32,
}

impl FromStr for LeaseId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts = text.split_once('.').and_then(|(job, grant)| {
            let plain = !grant.is_empty() && grant.bytes().all(|b| b.is_ascii_digit());
            Some(Self { job: job.parse().ok()?, grant: grant.parse().ok().filter(|_| plain)? })
        });
        parts.ok_or_else(|| IdError::Lease { input: text.to_owned() })
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.grant)
    }
}

/// What kind of work a probe may be given. Each role has a topic of its own that only its holders may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Host discovery and port scans.
    Scan,
    /// Traceroute.
    Trace,
    /// Packet capture.
    Capture,
    /// Allow-listed external tools.
    Tool,
}

impl Role {
    /// Every role, in the order of the wire.
    pub const ALL: [Role; 4] = [Role::Scan, Role::Trace, Role::Capture, Role::Tool];

    /// The text form, as used in topics.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Scan => "scan",
            Role::Trace => "trace",
            Role::Capture => "capture",
            Role::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| IdError::Role { input: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_door() {
        for good in ["a", "site-7", "0", "abcdefghijklmnopqrstuvwxyz012345"] {
            assert_eq!(good.parse::<ProbeId>().unwrap().to_string(), good);
        }
        for bad in ["", "A", "a/b", "a+b", "#", "ä", "a b", "abcdefghijklmnopqrstuvwxyz0123456"] {
            assert!(bad.parse::<ProbeId>().is_err(), "{bad}");
        }
        assert!(matches!("picket-controller-1".parse::<ProbeId>(), Err(IdError::Reserved { .. })));
        assert!("picket-hq".parse::<SiteName>().is_ok());
    }

    #[test]
    fn hexadecimal_ids_round_trip_and_refuse_signs() {
        let id = JobId(0x00ab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        for bad in ["", "ab", "+0000000000000ab", "00000000000000zz"] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_round_trip() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
        }
        assert_eq!("root".parse::<Role>().unwrap_err().to_string(), "`root` is not a role: use one of scan, trace, capture, tool");
    }
}
