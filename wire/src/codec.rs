//! From message to bytes and back: a version byte, then postcard.
//!
//! **Invariant:** whatever the bytes, decoding returns a message or an error; it never panics and never reads past `limit`.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this program writes.
pub const VERSION: u8 = 1;

/// The largest message on any topic, in bytes. Brokers are told the same limit.
pub const MESSAGE_MAX: usize = 256 * 1024;

/// The most bytes that spool records may take in one message, so that it stays under [`MESSAGE_MAX`].
pub const RECORDS_MAX: usize = 192 * 1024;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Nothing at all.
    #[error("the message is empty")]
    Empty,
    /// Too long to be read.
    #[error("the message has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Written by a program of another age.
    #[error("the message has version {found}, this program reads version {VERSION}: update the older of the two programs")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// The bytes are not what they should be.
    #[error("the message is malformed: {reason}")]
    Malformed {
        /// The decoder's reason.
        reason: String,
    },
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("messages hold only types that postcard can write, into growing memory")
}

/// The message in `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(CodecError::TooLong { len: bytes.len(), max: MESSAGE_MAX });
    }
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != VERSION {
        return Err(CodecError::Version { found: *version });
    }
    let (message, rest) = postcard::take_from_bytes(body).map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    match rest.len() {
        0 => Ok(message),
        extra => Err(CodecError::Malformed { reason: format!("{extra} bytes too many at the end") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_say_what_is_wrong() {
        assert_eq!(decode::<u32>(&encode(&70_000u32)), Ok(70_000));
        assert_eq!(decode::<u32>(&[]), Err(CodecError::Empty));
        assert_eq!(
            decode::<u32>(&[9, 1]).unwrap_err().to_string(),
            "the message has version 9, this program reads version 1: update the older of the two programs"
        );
        assert!(matches!(decode::<u32>(&[1]), Err(CodecError::Malformed { .. })));
        assert!(decode::<u32>(&[1, 5, 5]).unwrap_err().to_string().contains("1 bytes too many"));
        assert!(matches!(decode::<u32>(&vec![1; MESSAGE_MAX + 1]), Err(CodecError::TooLong { .. })));
    }
}
