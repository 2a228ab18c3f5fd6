//! Building certificates and revocation lists. Pure: no files, and the time comes from the caller.
//!
//! The certificates that probes verify (the authority's and the server's) are valid from 1970 on: a box without a clock
//! battery wakes up in the past, and a date before which a certificate is not valid would lock it out without protecting
//! anything. Those that the controller verifies are back-dated by a day only.

use std::net::IpAddr;

use picket_wire::ids::ProbeId;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateRevocationListDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{OU_CONTROLLER, OU_PROBE, Serial};
use super::names::Names;
use super::{Crl, PkiError};

/// Life of the authority: replacing it means visiting every probe.
pub(super) const CA_LIFE: Duration = Duration::days(7305);
/// Life of the server's certificate.
pub(super) const SERVER_LIFE: Duration = Duration::days(365);
/// Life of the controller's client certificate.
pub(super) const CONTROLLER_LIFE: Duration = Duration::days(365);
/// Life of a probe's certificate.
pub(super) const PROBE_LIFE: Duration = Duration::days(90);
/// How long brokers that check the dates of revocation lists accept one. It is signed anew at a third of that.
pub(super) const CRL_LIFE: Duration = Duration::days(30);
/// How far certificates that the controller verifies are back-dated.
const BACK_DATED: Duration = Duration::days(1);
/// Longest signing request that is looked at, in bytes; one for P-256 has less than 600.
const REQUEST_MAX: usize = 16 * 1024;

/// The authority's key and name, ready to sign.
pub(super) type Authority = Issuer<'static, KeyPair>;

fn generate(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Generate { what, source }
}

/// A new ECDSA P-256 key.
pub(super) fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(generate("a key"))
}

/// Random bytes from the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

/// 126 random bits (RFC 5280 and the CA/Browser rules ask for at least 64), positive and of constant length.
fn new_serial() -> Result<Serial, PkiError> {
    let mut bytes: [u8; 16] = random()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Serial::from_bytes(&bytes).ok_or(PkiError::Random)
}

fn subject(common_name: &str, unit: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(unit) = unit {
        name.push(DnType::OrganizationalUnitName, unit);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// The authority's own certificate.
pub(super) fn authority(key: &KeyPair, now: OffsetDateTime) -> Result<Certificate, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("Picket fleet CA {}", hex::encode(random::<4>()?)), None);
    params.serial_number = Some(SerialNumber::from_slice(new_serial()?.as_bytes()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = now + CA_LIFE;
    params.self_signed(key).map_err(generate("the certificate authority"))
}

/// A certificate below the authority together with what it is known by.
pub(super) struct Leaf {
    pub(super) certificate: Certificate,
    pub(super) serial: Serial,
    pub(super) not_after: OffsetDateTime,
}

fn leaf(what: &'static str, mut params: CertificateParams, key: &impl PublicKeyData, authority: &Authority) -> Result<Leaf, PkiError> {
    let serial = new_serial()?;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let not_after = params.not_after;
    let certificate = params.signed_by(key, authority).map_err(generate(what))?;
    Ok(Leaf { certificate, serial, not_after })
}

/// The server's certificate for `names`.
pub(super) fn server(names: &Names, key: &KeyPair, authority: &Authority, not_after: OffsetDateTime) -> Result<Leaf, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("picket-server", None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = not_after;
    for name in names.hosts() {
        let name = name.try_into().map_err(generate("the server's certificate"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(names.addresses().map(SanType::IpAddress));
    leaf("the server's certificate", params, key, authority)
}

fn client(common_name: &str, unit: &str, now: OffsetDateTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common_name, Some(unit));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = now - BACK_DATED;
    params.not_after = not_after;
    params
}

/// The controller's client certificate.
pub(super) fn controller(
    name: &str,
    key: &KeyPair,
    authority: &Authority,
    now: OffsetDateTime,
    end: OffsetDateTime,
) -> Result<Leaf, PkiError> {
    leaf("the controller's certificate", client(name, OU_CONTROLLER, now, end), key, authority)
}

/// A probe's certificate. Nothing of the request is believed but its key, and that only when the request is signed by it.
pub(super) fn probe(
    request_pem: &str,
    id: &ProbeId,
    authority: &Authority,
    now: OffsetDateTime,
    end: OffsetDateTime,
) -> Result<Leaf, PkiError> {
    let refuse = |reason: String| PkiError::Request { probe: id.clone(), reason };
    if request_pem.len() > REQUEST_MAX {
        return Err(refuse(format!("it has {} bytes, at most {REQUEST_MAX} are read", request_pem.len())));
    }
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(|error| refuse(error.to_string()))?;
    let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !accepted.contains(&request.public_key.algorithm()) {
        return Err(refuse("its key is neither ECDSA P-256, ECDSA P-384 nor Ed25519".to_owned()));
    }
    leaf("a probe's certificate", client(id.as_str(), OU_PROBE, now, end), &request.public_key, authority)
}

/// A revocation list over all of `revoked`.
pub(super) fn revocation_list(
    revoked: &[Serial],
    number: u64,
    key_id: Option<Vec<u8>>,
    authority: &Authority,
    now: OffsetDateTime,
) -> Result<Crl, PkiError> {
    let mut serials = revoked.to_vec();
    serials.sort();
    serials.dedup();
    let entry = |serial: &Serial| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial.as_bytes()),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now - BACK_DATED,
        next_update: now + CRL_LIFE,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(entry).collect(),
        key_identifier_method: key_id.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified),
    };
    let list = params.signed_by(authority).map_err(generate("the revocation list"))?;
    let pem = list.pem().map_err(generate("the revocation list"))?;
    let der: CertificateRevocationListDer<'static> = list.into();
    Ok(Crl { pem, der, number, serials, next_update: now + CRL_LIFE })
}

/// The names that a server's certificate is valid for.
pub(super) fn names_of(der: &[u8]) -> Option<Names> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = Names::default();
    for name in &certificate.subject_alternative_name().ok()??.value.general_names {
        match name {
            x509_parser::extensions::GeneralName::DNSName(host) => names.add(host).ok()?,
            x509_parser::extensions::GeneralName::IPAddress(bytes) => names.add_address(address(bytes)?),
            _ => return None,
        }
    }
    Some(names)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
