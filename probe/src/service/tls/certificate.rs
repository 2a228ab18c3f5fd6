//! What a certificate chain says. A bad chain is a finding like any other: nothing is judged but what is written there.
//!
//! **Invariant:** whatever the bytes, there is no panic; what cannot be read is left out.

use picket_wire::service::TEXT_MAX;
use picket_wire::units::UnixMillis;
use sha2::{Digest, Sha256};
use x509_parser::der_parser::oid::Oid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::service::dialogue::Finding;
use crate::service::text::clean;

const MILLIS_PER_DAY: i64 = 86_400_000;

/// Notes what `chain` says; days are counted from `now` where that is known.
pub(in crate::service) fn describe(chain: &[Vec<u8>], now: Option<UnixMillis>, finding: &mut Finding) {
    let Some(own) = chain.first() else { return };
    finding.fact("tls.sha256", hex::encode(Sha256::digest(own)));
    let Ok((_, certificate)) = X509Certificate::from_der(own) else {
        return finding.fact("tls.certificate", "unreadable");
    };
    let subject = clean(certificate.subject().to_string().as_bytes());
    let issuer = clean(certificate.issuer().to_string().as_bytes());
    let self_signed = certificate.subject().as_raw() == certificate.issuer().as_raw();
    finding.look_up("x509.subjects", subject.clone());
    finding.look_up("x509.issuers", issuer.clone());
    finding.fact("tls.subject", subject);
    finding.fact("tls.issuer", issuer);
    finding.fact("tls.names", names(&certificate));
    finding.fact("tls.not_before", date(&certificate.validity().not_before));
    finding.fact("tls.not_after", date(&certificate.validity().not_after));
    if let Some(now) = now {
        finding.fact("tls.days_left", days_left(&certificate.validity().not_after, now).to_string());
    }
    finding.fact("tls.key", key(&certificate));
    finding.fact("tls.signature", signature(&certificate.signature_algorithm.algorithm));
    finding.fact("tls.self_signed", if self_signed { "yes" } else { "no" });
    let above = chain.iter().skip(1).filter_map(|der| X509Certificate::from_der(der).ok());
    let above: Vec<String> = above.map(|(_, certificate)| clean(certificate.subject().to_string().as_bytes())).collect();
    finding.fact("tls.chain", above.join(" < "));
}

/// The subject's alternative names, as many as a text may hold, and how many more there are.
fn names(certificate: &X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return String::new() };
    let all: Vec<String> = extension.value.general_names.iter().filter_map(name).collect();
    let mut text = String::new();
    for (at, name) in all.iter().enumerate() {
        if text.len() + name.len() + 8 > TEXT_MAX {
            return format!("{text} +{}", all.len() - at);
        }
        text.push_str(if at > 0 { " " } else { "" });
        text.push_str(name);
    }
    text
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(clean(name.as_bytes())),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(core::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|octets| core::net::Ipv6Addr::from(octets).to_string()),
        },
        _ => None,
    }
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let info = certificate.public_key();
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("EC {}", point.key_size()),
        Ok(PublicKey::DSA(_)) => "DSA".into(),
        _ => match info.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => "Ed25519".into(),
            "1.3.101.113" => "Ed448".into(),
            other => other.to_owned(),
        },
    }
}

/// The usual names of RFC 3279, 4055, 5758 and 8410; others by their number.
fn signature(oid: &Oid<'_>) -> String {
    let id = oid.to_id_string();
    let name = match id.as_str() {
        "1.2.840.113549.1.1.4" => "md5WithRSAEncryption",
        "1.2.840.113549.1.1.5" => "sha1WithRSAEncryption",
        "1.2.840.113549.1.1.10" => "rsassaPss",
        "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
        "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
        "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
        "1.2.840.10045.4.1" => "ecdsa-with-SHA1",
        "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
        "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.3.101.112" => "Ed25519",
        _ => return id,
    };
    name.to_owned()
}

/// Whole days until `end`, rounded down; negative where it is past.
fn days_left(end: &ASN1Time, now: UnixMillis) -> i64 {
    let now = i64::try_from(now.0).unwrap_or(i64::MAX);
    end.timestamp().saturating_mul(1000).saturating_sub(now).div_euclid(MILLIS_PER_DAY)
}

fn date(time: &ASN1Time) -> String {
    crate::service::text::utc(time.timestamp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "lab\u{7}box");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 12, 31);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn facts(chain: &[Vec<u8>], now: Option<UnixMillis>) -> Finding {
        let mut finding = Finding::new("tls");
        describe(chain, now, &mut finding);
        finding
    }

    #[test]
    fn a_certificate_is_told_as_it_stands() {
        // 2026-12-01 and 2027-01-02, noon.
        let (before, after) = (UnixMillis(1_796_126_400_000), UnixMillis(1_798_891_200_000));
        let der = certificate(&["www.example.test", "192.0.2.7", "2001:db8::1"]);
        let told = facts(std::slice::from_ref(&der), Some(before)).service;
        assert_eq!(told.fact("tls.names"), Some("www.example.test 192.0.2.7 2001:db8::1"));
        assert_eq!(told.fact("tls.subject"), Some("CN=lab.box"));
        assert_eq!(told.fact("tls.not_before"), Some("2026-01-01T00:00:00Z"));
        assert_eq!(told.fact("tls.not_after"), Some("2026-12-31T00:00:00Z"));
        assert_eq!(told.fact("tls.days_left"), Some("29"));
        assert_eq!(told.fact("tls.key"), Some("EC 256"));
        assert_eq!(told.fact("tls.signature"), Some("ecdsa-with-SHA256"));
        assert_eq!(told.fact("tls.self_signed"), Some("yes"));
        assert_eq!(told.fact("tls.sha256").unwrap().len(), 64);
        assert_eq!(facts(std::slice::from_ref(&der), Some(after)).service.fact("tls.days_left"), Some("-3"));
        assert_eq!(facts(&[der], None).service.fact("tls.days_left"), None);
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..60).map(|i| format!("host-{i}.example.test")).collect();
        let told = facts(&[certificate(&names.iter().map(String::as_str).collect::<Vec<_>>())], None).service;
        let text = told.fact("tls.names").unwrap();
        assert!(text.len() <= TEXT_MAX && text.starts_with("host-0.example.test "), "{text}");
        let (shown, more) = text.rsplit_once(" +").unwrap();
        assert_eq!(shown.split(' ').count() + more.parse::<usize>().unwrap(), 60);
    }

    proptest! {
        #[test]
        fn damaged_certificates_are_harmless(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut der = certificate(&["a.example.test", "192.0.2.7"]);
            let index = at.index(der.len());
            der[index] = byte;
            let short = der[..cut.index(der.len())].to_vec();
            facts(&[der.clone(), short.clone()], Some(UnixMillis(0)));
            facts(&[short, der], Some(UnixMillis(u64::MAX)));
        }

        #[test]
        fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            facts(&[bytes.clone(), bytes], None);
        }
    }
}
