//! The signed envelope around every command: nobody but the controller can make one, nobody can use it elsewhere, later or
//! twice.
//!
//! ```text
//! version (1 byte) | signature (64 bytes, Ed25519, RFC 8032) | postcard of Contents
//! signed bytes: "picket command\0" | version | postcard of Contents
//! ```
//!
//! The receiver's judgement has an order: signature, audience, time, serial. Only a command that passed all four is acted
//! on, and the first that fails is the one that is counted.
//!
//! **Invariant:** nothing of an envelope is decoded before its signature is verified.
//! **Invariant:** serials rise; for each audience the receiver accepts each serial at most once, across restarts.

use core::time::Duration;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::command::Command;
use crate::event::Refusals;
use crate::ids::{ProbeId, Role};
use crate::units::UnixMillis;

/// Whom a command is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Audience {
    /// One probe.
    Probe(ProbeId),
    /// Every holder of a role.
    Role(Role),
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Whom it is for.
    pub audience: Audience,
    /// Rises with every command of the fleet.
    pub serial: u64,
    /// When it was made.
    pub issued: UnixMillis,
    /// After this moment it is void.
    pub expires: UnixMillis,
    /// What to do.
    pub command: Command,
}

/// How far ahead of the receiver's trusted clock a command may have been made: clocks drift and messages hurry.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

const DOMAIN: &[u8] = b"picket command\0";
const SIGNATURE_LEN: usize = 64;

/// Why a command is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No or a wrong signature.
    #[error("its signature is not the controller's")]
    Unsigned,
    /// For somebody else.
    #[error("it is addressed to {0:?}")]
    Misaddressed(Audience),
    /// Too late.
    #[error("it expired {} ms ago", .0.as_millis())]
    Expired(Duration),
    /// Made in the future.
    #[error("it was issued {} ms in the future", .0.as_millis())]
    FromTheFuture(Duration),
    /// Its serial is not above the last one.
    #[error("its serial {serial} was used already (the last was {last})")]
    Replayed {
        /// Its serial.
        serial: u64,
        /// The highest serial accepted for that audience.
        last: u64,
    },
    /// The bytes are not an envelope.
    #[error(transparent)]
    Malformed(#[from] CodecError),
}

impl Refusal {
    /// Counts it.
    pub fn count(&self, refusals: &mut Refusals) {
        let counter = match self {
            Refusal::Unsigned => &mut refusals.unsigned,
            Refusal::Misaddressed(_) => &mut refusals.misaddressed,
            Refusal::Expired(_) | Refusal::FromTheFuture(_) => &mut refusals.expired,
            Refusal::Replayed { .. } => &mut refusals.replayed,
            Refusal::Malformed(_) => &mut refusals.malformed,
        };
        *counter += 1;
    }
}

fn signed_bytes(version_and_body: &[&[u8]]) -> Vec<u8> {
    [&[DOMAIN], version_and_body].concat().concat()
}

/// Signs a command: the bytes to publish.
pub fn seal(contents: &Contents, key: &SigningKey) -> Vec<u8> {
    let encoded = codec::encode(contents);
    let (version, body) = encoded.split_at(1);
    let signature = key.sign(&signed_bytes(&[version, body])).to_bytes();
    [version, &signature, body].concat()
}

/// Verifies the signature by any of `keys` and decodes the contents.
pub fn open(bytes: &[u8], keys: &[VerifyingKey]) -> Result<Contents, Refusal> {
    if bytes.len() > codec::MESSAGE_MAX {
        return Err(CodecError::TooLong { len: bytes.len(), max: codec::MESSAGE_MAX }.into());
    }
    let version = bytes.first_chunk::<1>().ok_or(CodecError::Empty)?;
    if version[0] != codec::VERSION {
        return Err(CodecError::Version { found: version[0] }.into());
    }
    let signature: [u8; SIGNATURE_LEN] = bytes.get(1..1 + SIGNATURE_LEN).and_then(|s| s.try_into().ok()).ok_or(Refusal::Unsigned)?;
    let body = bytes.get(1 + SIGNATURE_LEN..).unwrap_or_default();
    let message = signed_bytes(&[version, body]);
    let signature = Signature::from_bytes(&signature);
    if !keys.iter().any(|key| key.verify_strict(&message, &signature).is_ok()) {
        return Err(Refusal::Unsigned);
    }
    Ok(codec::decode(&[version, body].concat())?)
}

/// The highest serials that a probe has accepted. What it returns from [`Serials::accept`] is on disk before it is obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Serials {
    /// Of commands to the probe itself.
    pub own: u64,
    /// Of commands to each role.
    pub roles: Vec<(Role, u64)>,
}

impl Serials {
    /// Whether `contents` is for `me`, in time and new. `now` is trusted time. Does not change anything.
    pub fn judge(&self, contents: &Contents, me: &ProbeId, roles: &[Role], now: UnixMillis) -> Result<(), Refusal> {
        self.judge_audience(contents, me, roles)?;
        if now > contents.expires {
            return Err(Refusal::Expired(now.since(contents.expires)));
        }
        if contents.issued > now.after(CLOCK_SKEW) {
            return Err(Refusal::FromTheFuture(contents.issued.since(now)));
        }
        self.judge_serial(contents)
    }

    /// The part of the judgement that needs no clock: for [`Command::Welcome`], which brings the time.
    pub fn judge_audience(&self, contents: &Contents, me: &ProbeId, roles: &[Role]) -> Result<(), Refusal> {
        let ours = match &contents.audience {
            Audience::Probe(id) => id == me,
            Audience::Role(role) => roles.contains(role),
        };
        if ours { Ok(()) } else { Err(Refusal::Misaddressed(contents.audience.clone())) }
    }

    /// Whether the serial is new for its audience.
    pub fn judge_serial(&self, contents: &Contents) -> Result<(), Refusal> {
        let last = match &contents.audience {
            Audience::Probe(_) => self.own,
            Audience::Role(role) => self.roles.iter().find(|(known, _)| known == role).map_or(0, |(_, last)| *last),
        };
        if contents.serial > last { Ok(()) } else { Err(Refusal::Replayed { serial: contents.serial, last }) }
    }

    /// Remembers the serial of a command that was judged good.
    pub fn accept(&mut self, contents: &Contents) {
        match &contents.audience {
            Audience::Probe(_) => self.own = self.own.max(contents.serial),
            Audience::Role(role) => match self.roles.iter_mut().find(|(known, _)| known == role) {
                Some((_, last)) => *last = (*last).max(contents.serial),
                None => self.roles.push((*role, contents.serial)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::StreamId;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn contents(serial: u64) -> Contents {
        Contents {
            audience: Audience::Probe("attic".parse().unwrap()),
            serial,
            issued: UnixMillis(1_000_000),
            expires: UnixMillis(1_060_000),
            command: Command::Ack { stream: StreamId(1), up_to: 7 },
        }
    }

    #[test]
    fn what_is_sealed_can_be_opened_by_the_right_key_only() {
        let bytes = seal(&contents(1), &key(1));
        assert_eq!(open(&bytes, &[key(2).verifying_key(), key(1).verifying_key()]), Ok(contents(1)));
        assert_eq!(open(&bytes, &[key(2).verifying_key()]), Err(Refusal::Unsigned));
        assert_eq!(open(&bytes, &[]), Err(Refusal::Unsigned));
        assert_eq!(open(&codec::encode(&contents(1)), &[key(1).verifying_key()]), Err(Refusal::Unsigned));
    }

    #[test]
    fn the_judgement_names_the_first_fault() {
        let (me, roles, now) = ("attic".parse().unwrap(), [Role::Scan], UnixMillis(1_010_000));
        let mut serials = Serials::default();
        assert_eq!(serials.judge(&contents(5), &me, &roles, now), Ok(()));
        serials.accept(&contents(5));
        assert_eq!(serials.judge(&contents(5), &me, &roles, now), Err(Refusal::Replayed { serial: 5, last: 5 }));
        assert_eq!(serials.judge(&contents(6), &me, &roles, UnixMillis(1_060_001)), Err(Refusal::Expired(Duration::from_millis(1))));
        assert!(matches!(serials.judge(&contents(6), &me, &roles, UnixMillis(0)), Err(Refusal::FromTheFuture(_))));
        let other = "cellar".parse().unwrap();
        assert!(matches!(serials.judge(&contents(6), &other, &roles, now), Err(Refusal::Misaddressed(_))));
        let role = |role, serial| Contents { audience: Audience::Role(role), ..contents(serial) };
        assert_eq!(serials.judge(&role(Role::Scan, 3), &me, &roles, now), Ok(()));
        assert!(matches!(serials.judge(&role(Role::Trace, 3), &me, &roles, now), Err(Refusal::Misaddressed(_))));
        serials.accept(&role(Role::Scan, 3));
        assert!(serials.judge(&role(Role::Scan, 3), &me, &roles, now).is_err());
        assert_eq!(serials.own, 5);
    }

    proptest! {
        #[test]
        fn any_changed_byte_voids_the_signature(at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut bytes = seal(&contents(1), &key(1));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(open(&bytes, &[key(1).verifying_key()]).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&bytes, &[key(1).verifying_key()]).is_err());
        }
    }
}
