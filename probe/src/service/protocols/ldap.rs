//! LDAP (RFC 4511): the root entry, which servers show without a login (RFC 4512, section 5.1).

use super::ber::{self, INTEGER, OCTETS, SEQUENCE};
use super::once::{Once, Read};
use crate::service::dialogue::Finding;
use crate::service::text::{Reader, clean};

const SEARCH_REQUEST: u8 = 0x63;
const SEARCH_ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const EXTENDED_RESPONSE: u8 = 0x78;
const SET: u8 = 0x31;
const ATTRIBUTES: &[(&str, &str)] = &[
    ("vendorname", "ldap.vendor"),
    ("vendorversion", "ldap.vendor_version"),
    ("namingcontexts", "ldap.naming_contexts"),
    ("defaultnamingcontext", "ldap.default_naming_context"),
    ("dnshostname", "ldap.host"),
    ("ldapservicename", "ldap.service"),
    ("supportedldapversion", "ldap.versions"),
    ("supportedsaslmechanisms", "ldap.sasl"),
    ("domainfunctionality", "ldap.domain_level"),
    ("structuralobjectclass", "ldap.class"),
];

pub(super) fn dialogue() -> Once {
    Once::new(search(), read)
}

/// A search of the base object alone for all attributes, the operational ones too (RFC 3673).
fn search() -> Vec<u8> {
    let integer = |value: u8| [INTEGER, 1, value];
    let enumerated = |value: u8| [0x0a, 1, value];
    let filter = ber::write(0x87, &[b"objectClass"]);
    let attributes = ber::write(SEQUENCE, &[&ber::write(OCTETS, &[b"*"]), &ber::write(OCTETS, &[b"+"])]);
    let request = ber::write(
        SEARCH_REQUEST,
        &[&[OCTETS, 0], &enumerated(0), &enumerated(0), &integer(1), &integer(5), &[0x01, 1, 0], &filter, &attributes],
    );
    ber::write(SEQUENCE, &[&integer(1), &request])
}

fn read(input: &[u8], over: bool) -> Read {
    if !input.is_empty() && input.first() != Some(&SEQUENCE) {
        return Read::Foreign;
    }
    let mut finding = Finding::new("ldap");
    let mut reader = Reader::new(input);
    let mut seen = false;
    while let Some(message) = ber::expect(&mut reader, SEQUENCE) {
        let mut message = Reader::new(message);
        let head = ber::expect(&mut message, INTEGER).and_then(|_| ber::element(&mut message));
        let Some((tag, body)) = head else { return Read::Foreign };
        match tag {
            SEARCH_ENTRY => entry(body, &mut finding),
            SEARCH_DONE | EXTENDED_RESPONSE => {
                finding.fact("ldap.result", result(body));
                return Read::Known(finding);
            }
            _ => return Read::Foreign,
        }
        seen = true;
    }
    if over && seen { Read::Known(finding) } else { Read::More }
}

fn entry(body: &[u8], finding: &mut Finding) {
    let mut reader = Reader::new(body);
    let Some(list) = ber::expect(&mut reader, OCTETS).and_then(|_| ber::expect(&mut reader, SEQUENCE)) else { return };
    let mut list = Reader::new(list);
    while let Some(attribute) = ber::expect(&mut list, SEQUENCE) {
        let mut attribute = Reader::new(attribute);
        let Some(name) = ber::expect(&mut attribute, OCTETS) else { return };
        let name = clean(name).to_ascii_lowercase();
        let Some((_, fact)) = ATTRIBUTES.iter().find(|(known, _)| *known == name) else { continue };
        let mut values = Reader::new(ber::expect(&mut attribute, SET).unwrap_or_default());
        let mut texts = Vec::new();
        while let Some(value) = ber::expect(&mut values, OCTETS).filter(|_| texts.len() < 20) {
            texts.push(clean(value));
        }
        match name.as_str() {
            "vendorname" => finding.service.product = texts.first().cloned(),
            "vendorversion" => finding.service.version = texts.first().cloned(),
            "dnshostname" => finding.service.hostname = texts.first().cloned(),
            "structuralobjectclass" if texts.iter().any(|text| text == "OpenLDAProotDSE") => {
                finding.service.product = Some("OpenLDAP".to_owned());
            }
            "domainfunctionality" if finding.service.product.is_none() => {
                finding.service.product = Some("Microsoft Active Directory".to_owned());
            }
            _ => {}
        }
        finding.fact(fact, texts.join(" | "));
    }
}

/// The code of an LDAPResult, and its diagnostic text.
fn result(body: &[u8]) -> String {
    let mut reader = Reader::new(body);
    let code = ber::expect(&mut reader, 0x0a).and_then(ber::number).unwrap_or_default();
    let text = ber::expect(&mut reader, OCTETS).and_then(|_| ber::expect(&mut reader, OCTETS)).map(clean).unwrap_or_default();
    if text.is_empty() { code.to_string() } else { format!("{code} {text}") }
}
