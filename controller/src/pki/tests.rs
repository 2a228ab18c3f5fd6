//! The authority as files: first start, restart, damage, renewal; and what it signs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};

use super::*;
use crate::errors::chain;

fn day(days: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + Duration::days(days)
}

fn names() -> Names {
    Names::parse(["controller.example", "192.0.2.1"]).unwrap()
}

fn open(dir: &Path) -> Pki {
    Pki::open(dir, &names(), day(0)).unwrap()
}

fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn the_first_start_makes_everything_and_the_second_finds_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let first = open(&dir);
    let second = open(&dir);
    assert_eq!(first.ca_fingerprint(), second.ca_fingerprint());
    assert_eq!(first.controller_name(), second.controller_name());
    assert_eq!(first.signing_key().to_bytes(), second.signing_key().to_bytes());
    assert_eq!(first.server_tls().leaf(), second.server_tls().leaf());
    assert_eq!(first.controller_tls().leaf(), second.controller_tls().leaf());
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    for name in [CA_KEY, SIGNING_KEY, SERVER.1, CONTROLLER.1] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    for name in [CA_CERT, SERVER.0, CONTROLLER.0, CRL] {
        assert_eq!(mode(name), 0o644, "{name}");
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 8);
    let peer = identity_of(first.controller_tls().leaf()).unwrap();
    assert_eq!(peer.identity, Identity::Controller(first.controller_name().to_owned()));
    assert_eq!(identity_of(first.server_tls().leaf()), None, "the server is nobody among clients");
}

#[test]
fn what_cannot_be_made_again_is_missed_loudly() {
    for name in [CA_CERT, CA_KEY, SIGNING_KEY] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        fs::remove_file(dir.path().join(name)).unwrap();
        let error = Pki::open(dir.path(), &names(), day(0)).unwrap_err();
        assert!(matches!(&error, PkiError::Missing { path } if path.ends_with(name)), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    for name in [CA_CERT, CA_KEY, SIGNING_KEY] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert!(matches!(Pki::open(dir.path(), &names(), day(0)), Err(PkiError::Missing { .. })), "all gone but traces are left");
}

#[test]
fn what_follows_from_the_authority_is_made_again() {
    for name in [SERVER.0, SERVER.1, CONTROLLER.0, CONTROLLER.1, CRL] {
        let dir = tempfile::tempdir().unwrap();
        let before = open(dir.path());
        fs::remove_file(dir.path().join(name)).unwrap();
        let after = open(dir.path());
        assert_eq!(before.ca_fingerprint(), after.ca_fingerprint(), "{name}");
        after.controller_tls().client().unwrap();
        after.server_tls().fleet_server(&after.crl(&[], day(0)).unwrap()).unwrap();
    }
}

#[test]
fn damage_is_named() {
    for name in [CA_CERT, CA_KEY, SIGNING_KEY, SERVER.0, SERVER.1, CONTROLLER.0, CONTROLLER.1, CRL] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
        for broken in [b"".as_slice(), b"rubbish\n", &whole[..middle], &flipped] {
            fs::write(&path, broken).unwrap();
            let Err(error) = Pki::open(dir.path(), &names(), day(0)) else {
                // A flipped bit in a key may give another valid key; then it is refused because it does not fit.
                panic!("{name} was accepted: {}", String::from_utf8_lossy(broken));
            };
            assert!(matches!(&error, PkiError::Corrupt { .. }), "{name}: {}", chain(&error));
        }
    }
}

#[test]
fn files_of_another_authority_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(one.path());
    open(two.path());
    for name in [CA_CERT, CA_KEY, SERVER.0, SERVER.1, CONTROLLER.0, CONTROLLER.1, CRL] {
        let path = one.path().join(name);
        let own = fs::read(&path).unwrap();
        fs::copy(two.path().join(name), &path).unwrap();
        assert!(matches!(Pki::open(one.path(), &names(), day(0)), Err(PkiError::Corrupt { .. })), "{name}");
        fs::write(&path, own).unwrap();
    }
    open(one.path());
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    for name in [CA_KEY, SIGNING_KEY, SERVER.1, CONTROLLER.1] {
        let path = dir.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Pki::open(dir.path(), &names(), day(0)), Err(PkiError::Exposed { mode: 0o640, wanted: 0o600, .. })), "{name}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn an_unfinished_first_start_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(UNFINISHED), "").unwrap();
    fs::write(dir.path().join(CA_KEY), "half").unwrap();
    open(dir.path());
    assert!(!dir.path().join(UNFINISHED).exists());
}

#[test]
fn the_server_certificate_follows_the_names_and_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).server_tls().leaf().clone();
    let again = |names: &Names, now| Pki::open(dir.path(), names, now).unwrap().server_tls().leaf().clone();
    assert_eq!(again(&names(), day(200)), first, "before two thirds of its life");
    let moved = again(&Names::parse(["elsewhere.example"]).unwrap(), day(200));
    assert_ne!(moved, first);
    assert_eq!(issue::names_of(&moved).unwrap().hosts().collect::<Vec<_>>(), ["elsewhere.example", "localhost"]);
    let back = again(&names(), day(200));
    assert_ne!(again(&names(), day(200 + 245)), back, "after two thirds of its life");
}

#[test]
fn a_running_controller_renews_its_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let (server, controller) = (pki.server_tls(), pki.controller_tls());
    assert!(!pki.renew(day(240)).unwrap());
    assert!(pki.renew(day(250)).unwrap());
    assert_ne!(pki.server_tls().leaf(), server.leaf());
    assert_ne!(pki.controller_tls().leaf(), controller.leaf());
    assert_eq!(identity_of(pki.controller_tls().leaf()).unwrap().identity, identity_of(controller.leaf()).unwrap().identity);
    assert!(!pki.renew(day(250)).unwrap());
}

#[test]
fn an_authority_at_its_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    assert!(matches!(Pki::open(dir.path(), &names(), day(7305)), Err(PkiError::Ended { .. })));
    let late = Pki::open(dir.path(), &names(), day(7300)).unwrap();
    let issued = late.issue_probe(&request(&KeyPair::generate().unwrap()), &"attic".parse().unwrap(), day(7300)).unwrap();
    assert_eq!(issued.not_after, day(7305), "nothing outlives the authority");
}

#[test]
fn of_a_request_only_the_key_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "picket-controller-00000000");
    greedy.distinguished_name.push(DnType::OrganizationalUnitName, OU_CONTROLLER);
    greedy.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    greedy.subject_alt_names = vec![SanType::DnsName("controller.example".try_into().unwrap())];
    let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let issued = pki.issue_probe(&request, &"attic".parse().unwrap(), day(0)).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(!certificate.is_ca());
    assert!(certificate.subject_alternative_name().unwrap().is_none());
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    assert_eq!(certificate.validity().not_before.to_datetime(), day(-1));
    assert_eq!(issued.not_after, day(90));
    let peer = identity_of(&der).unwrap();
    assert_eq!(peer, Peer { identity: Identity::Probe("attic".parse().unwrap()), serial: issued.serial, not_after: day(90) });
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let good = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let mut forged = good.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, forged)
    );
    for bad in [String::new(), "x".repeat(20_000), pki.ca_pem().to_owned(), forged] {
        let error = pki.issue_probe(&bad, &"attic".parse().unwrap(), day(0)).unwrap_err();
        assert!(matches!(error, PkiError::Request { .. }) && error.to_string().contains("`attic`"), "{error}");
    }
}

#[test]
fn serial_numbers_differ() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let request = request(&KeyPair::generate().unwrap());
    let issue = || pki.issue_probe(&request, &"attic".parse().unwrap(), day(0)).unwrap().serial;
    assert_ne!(issue(), issue());
    assert_eq!(issue().as_bytes().len(), 16);
}

#[test]
fn revocation_lists_count_up_whatever_the_clock_does() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let serial: Serial = "4001".parse().unwrap();
    let first = pki.publish_crl(&[serial.clone(), serial.clone()], day(1)).unwrap();
    assert_eq!(first.serials, std::slice::from_ref(&serial));
    let earlier = pki.publish_crl(std::slice::from_ref(&serial), day(-100)).unwrap();
    assert!(earlier.number > first.number);
    let reopened = open(dir.path()).crl(&[], day(-100)).unwrap();
    assert!(reopened.number > earlier.number);
    let stored = CertificateRevocationListDer::from_pem_file(pki.crl_path()).unwrap();
    let (_, list) = CertificateRevocationList::from_der(&stored).unwrap();
    let listed: Vec<_> = list.iter_revoked_certificates().map(|entry| Serial::from_bytes(entry.raw_serial()).unwrap()).collect();
    assert_eq!(listed, [serial]);
    assert!(!first.is_due(day(10)) && first.is_due(day(12)));
}
