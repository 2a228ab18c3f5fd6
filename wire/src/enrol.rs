//! Enrolment: the one-time token, and what is said over HTTPS when a box becomes a probe.
//!
//! A token is one line of text that a person can carry: `picket1-` and base64url of its fields and a checksum. It holds the
//! controller's addresses and the fingerprint of the fleet's certificate authority, so that the box knows whom to trust
//! before it has met anybody, and a secret, so that the controller knows the box.

use core::fmt;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ids::ProbeId;
use crate::topic::Prefix;
use crate::units::UnixMillis;

const TOKEN_PREFIX: &str = "picket1-";
/// Longer texts are no tokens.
const TOKEN_MAX: usize = 2048;

/// What a token carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The probe that it makes.
    pub probe: ProbeId,
    /// Addresses of the controller's API, `https://host:port`, tried in this order.
    pub urls: Vec<String>,
    /// SHA-256 of the DER form of the fleet's CA certificate.
    pub ca_sha256: [u8; 32],
    /// What the controller knows it by.
    pub secret: [u8; 16],
    /// When it ends; judged by the controller.
    pub expires: UnixMillis,
}

/// Why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("this is not an enrolment token: it starts with `{TOKEN_PREFIX}` and is printed by `picket probe add`")]
    Form,
    /// Cut short or mistyped.
    #[error("the enrolment token is damaged: copy the whole line that `picket probe add` printed")]
    Damaged,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_allocvec(self).map_err(|_| fmt::Error)?;
        let sum = crc32c::crc32c(&bytes);
        bytes.extend(sum.to_le_bytes());
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(TOKEN_PREFIX).filter(|body| body.len() <= TOKEN_MAX).ok_or(TokenError::Form)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (fields, sum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if crc32c::crc32c(fields) != u32::from_le_bytes(*sum) {
            return Err(TokenError::Damaged);
        }
        postcard::from_bytes(fields).map_err(|_| TokenError::Damaged)
    }
}

/// The body of `POST /v1/enrol`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The token's probe.
    pub probe: ProbeId,
    /// The token's secret, 32 hexadecimal digits.
    pub secret: String,
    /// The certificate request, PEM; only its public key is used.
    pub csr_pem: String,
    /// What the box is, in a few words.
    pub hardware: String,
    /// The probe program's version.
    pub version: String,
}

/// The answer to it, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// The probe's certificate, PEM.
    pub certificate_pem: String,
    /// The fleet's CA certificate, PEM.
    pub ca_pem: String,
    /// The command signing key, 64 hexadecimal digits (Ed25519, public).
    pub signing_key: String,
    /// The MQTT brokers, `host:port`, tried in this order.
    pub brokers: Vec<String>,
    /// The topics' prefix.
    pub prefix: Prefix,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_damage_shows() {
        let token = Token {
            probe: "attic".parse().unwrap(),
            urls: vec!["https://198.18.0.1:8443".into()],
            ca_sha256: [7; 32],
            secret: [9; 16],
            expires: UnixMillis(1),
        };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token));
        assert!(text.len() < 160, "{}", text.len());
        assert_eq!("hello".parse::<Token>(), Err(TokenError::Form));
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(TokenError::Damaged));
        let mistyped = text.replace("picket1-B", "picket1-C");
        assert_eq!(mistyped.parse::<Token>(), Err(TokenError::Damaged));
    }
}
