//! Who a verified certificate belongs to.
//!
//! **Invariant:** an [`Identity`] is only ever made from a subject that is exactly one common name and one organisational
//! unit, both well formed, in a certificate meant for clients; anything else is nobody.

use core::fmt;
use core::str::FromStr;

use picket_wire::ids::{CONTROLLER_PREFIX, ProbeId};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATIONAL_UNIT, Oid};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

/// The organisational unit of probes.
pub const OU_PROBE: &str = "probe";
/// The organisational unit of controllers.
pub const OU_CONTROLLER: &str = "controller";
/// What a controller's common name starts with; eight lower-case hexadecimal digits follow.
pub(super) const CONTROLLER_CN_PREFIX: &str = "picket-controller-";

/// A certificate's serial number: 1 to 20 bytes without leading zeros (RFC 5280 section 4.1.2.2), written as lower-case
/// hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

/// Why a text is not a serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is not a certificate serial number: 1 to 40 hexadecimal digits are expected")]
pub struct SerialError {
    /// The refused text.
    pub input: String,
}

impl Serial {
    /// Takes the bytes of a certificate's serial number, most significant first; `None` when it is zero or too long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let first = bytes.iter().position(|byte| *byte != 0)?;
        let significant = bytes.get(first..)?;
        (significant.len() <= 20).then(|| Self(significant.to_vec()))
    }

    /// The bytes, most significant first, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl FromStr for Serial {
    type Err = SerialError;
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let even = if text.len() % 2 == 1 { format!("0{text}") } else { text.to_owned() };
        hex::decode(even).ok().and_then(|bytes| Self::from_bytes(&bytes)).ok_or_else(|| SerialError { input: text.to_owned() })
    }
}

/// One of our own: a probe or a controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A probe, by its id.
    Probe(ProbeId),
    /// A controller, by its whole common name (`picket-controller-<8 hex>`).
    Controller(String),
}

impl Identity {
    /// The common name, which is also the MQTT client id.
    pub fn name(&self) -> &str {
        match self {
            Identity::Probe(id) => id.as_str(),
            Identity::Controller(name) => name,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the other end of a verified connection has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// Which of its certificates it used.
    pub serial: Serial,
    /// When that certificate ends.
    pub not_after: OffsetDateTime,
}

/// Reads the identity from a leaf certificate.
///
/// The caller has verified the certificate (chain, time, revocation): this function checks only what it says. The subject
/// must be exactly one common name and one organisational unit, `probe` with a well-formed probe id or `controller` with a
/// controller's name; the certificate must be for client authentication and not for a certificate authority.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    if !rest.is_empty() || parsed.is_ca() {
        return None;
    }
    let usage = parsed.extended_key_usage().ok()??;
    if !usage.value.client_auth || usage.value.any {
        return None;
    }
    let identity = subject_identity(parsed.subject())?;
    let serial = Serial::from_bytes(parsed.raw_serial())?;
    let not_after = parsed.validity().not_after.to_datetime();
    Some(Peer { identity, serial, not_after })
}

/// The identity that a subject of exactly CN and OU names.
fn subject_identity(subject: &X509Name<'_>) -> Option<Identity> {
    if subject.iter_rdn().count() != 2 || subject.iter_rdn().any(|rdn| rdn.iter().count() != 1) {
        return None;
    }
    let name = only(subject, &OID_X509_COMMON_NAME)?;
    match only(subject, &OID_X509_ORGANIZATIONAL_UNIT)?.as_str() {
        OU_PROBE => name.parse().ok().map(Identity::Probe),
        OU_CONTROLLER => is_controller_name(&name).then_some(Identity::Controller(name)),
        _ => None,
    }
}

/// The value of the one attribute of a kind.
fn only(subject: &X509Name<'_>, kind: &Oid<'_>) -> Option<String> {
    let mut found = subject.iter_attributes().filter(|attribute| attribute.attr_type() == kind);
    let value = found.next()?.as_str().ok()?.to_owned();
    found.next().is_none().then_some(value)
}

/// Whether a text is the common name of a controller.
pub(super) fn is_controller_name(name: &str) -> bool {
    debug_assert!(CONTROLLER_CN_PREFIX.starts_with(CONTROLLER_PREFIX));
    name.strip_prefix(CONTROLLER_CN_PREFIX)
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    fn certificate(subject: &[(DnType, &str)], usages: &[ExtendedKeyUsagePurpose], is_ca: IsCa) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.extended_key_usages = usages.to_vec();
        params.is_ca = is_ca;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_our_exact_subjects_are_somebody() {
        use DnType::{CommonName as Cn, OrganizationName as O, OrganizationalUnitName as Ou};
        let client = [ExtendedKeyUsagePurpose::ClientAuth];
        let who = |subject: &[(DnType, &str)]| identity_of(&certificate(subject, &client, IsCa::NoCa)).map(|peer| peer.identity);
        assert_eq!(who(&[(Cn, "attic"), (Ou, "probe")]), Some(Identity::Probe("attic".parse().unwrap())));
        assert_eq!(who(&[(Ou, "probe"), (Cn, "attic")]), Some(Identity::Probe("attic".parse().unwrap())));
        let controller = "picket-controller-00ab12ff";
        assert_eq!(who(&[(Cn, controller), (Ou, "controller")]), Some(Identity::Controller(controller.to_owned())));
        let nobody: &[&[(DnType, &str)]] = &[
            &[],
            &[(Cn, "attic")],
            &[(Ou, "probe")],
            &[(Cn, "attic"), (Ou, "admin")],
            &[(Cn, "attic"), (Ou, "controller")],
            &[(Cn, controller), (Ou, "probe")],
            &[(Cn, "picket-controller-00AB12FF"), (Ou, "controller")],
            &[(Cn, "picket-controller-00ab12f"), (Ou, "controller")],
            &[(Cn, "At+ic"), (Ou, "probe")],
            &[(Cn, "attic"), (Ou, "probe"), (O, "more")],
        ];
        for subject in nobody {
            assert_eq!(who(subject), None, "{subject:?}");
        }
    }

    #[test]
    fn a_certificate_for_something_else_is_nobody() {
        let subject = [(DnType::CommonName, "attic"), (DnType::OrganizationalUnitName, "probe")];
        let server = certificate(&subject, &[ExtendedKeyUsagePurpose::ServerAuth], IsCa::NoCa);
        assert_eq!(identity_of(&server), None);
        let anything = certificate(&subject, &[ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ClientAuth], IsCa::NoCa);
        assert_eq!(identity_of(&anything), None);
        assert_eq!(identity_of(&certificate(&subject, &[], IsCa::NoCa)), None);
        let authority = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(identity_of(&certificate(&subject, &[ExtendedKeyUsagePurpose::ClientAuth], authority)), None);
        assert_eq!(identity_of(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }

    #[test]
    fn serial_numbers_round_trip() {
        for text in ["01", "7f00", "4000000000000000000000000000000000000001"] {
            assert_eq!(text.parse::<Serial>().unwrap().to_string(), text);
        }
        assert_eq!("0001".parse::<Serial>().unwrap(), "1".parse::<Serial>().unwrap());
        for bad in ["", "0", "00", "xy", "-1", "014000000000000000000000000000000000000001"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }
}
