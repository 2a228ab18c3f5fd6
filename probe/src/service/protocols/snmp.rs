//! SNMP: what the agent says of itself to the community `public` in version 2c or 1 (RFC 3416, RFC 1157), and the engine that
//! version 3 shows to everybody (RFC 3414, section 4).

use super::ber::{self, INTEGER, NULL, OCTETS, OID, SEQUENCE};
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{Reader, clean};

const GET: u8 = 0xa0;
const RESPONSE: u8 = 0xa2;
/// sysDescr, sysObjectID and sysName of RFC 3418: 1.3.6.1.2.1.1.{1,2,5}.0.
const SYSTEM: [u8; 7] = [0x2b, 6, 1, 2, 1, 1, 0];
const DESCRIPTION: u8 = 1;
const OBJECT: u8 = 2;
const NAME: u8 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    V2c,
    V3,
    V1,
}

/// Asks in three versions, one after the other: version 1 only where neither of the others is answered.
pub(super) struct Snmp {
    asked: Asked,
    finding: Option<Finding>,
}

impl Snmp {
    pub(super) fn new() -> Self {
        Self { asked: Asked::V2c, finding: None }
    }

    fn next(&mut self) -> Step {
        match (self.asked, self.finding.take()) {
            (Asked::V2c, finding) => {
                self.finding = finding;
                self.asked = Asked::V3;
                Step::Send(discovery())
            }
            (Asked::V3, None) => {
                self.asked = Asked::V1;
                Step::Send(get(0))
            }
            (_, Some(finding)) => finding.done(),
            (Asked::V1, None) => Step::Foreign,
        }
    }

    fn answer(&mut self, message: &[u8]) -> Option<()> {
        let mut reader = Reader::new(message);
        let mut message = Reader::new(ber::expect(&mut reader, SEQUENCE)?);
        let version = ber::number(ber::expect(&mut message, INTEGER)?)?;
        let finding = self.finding.get_or_insert_with(|| Finding::new("snmp"));
        match version {
            3 => {
                let engine = engine(message);
                finding.fact("snmp.v3", "yes");
                finding.fact("snmp.engine_id", engine.map(|(id, ..)| hex::encode(id)).unwrap_or_default());
                if let Some((_, boots, seconds)) = engine {
                    finding.fact("snmp.engine_boots", boots.to_string());
                    finding.fact("snmp.engine_seconds", seconds.to_string());
                }
            }
            _ => {
                finding.fact("snmp.public", if version == 0 { "v1" } else { "v2c" });
                variables(message, finding)?;
            }
        }
        Some(())
    }
}

impl Dialogue for Snmp {
    fn start(&mut self) -> Step {
        Step::Send(get(1))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let message = core::mem::take(input);
        if self.answer(&message).is_none() && self.finding.is_none() {
            return Step::Foreign;
        }
        self.next()
    }

    fn on_silence(&mut self) -> Option<Step> {
        match self.next() {
            Step::Foreign => None,
            step => Some(step),
        }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

fn system(which: u8) -> Vec<u8> {
    let mut oid = SYSTEM.to_vec();
    oid.insert(6, which);
    oid
}

/// A GetRequest for the three.
fn get(version: u8) -> Vec<u8> {
    let variable = |which| ber::write(SEQUENCE, &[&ber::write(OID, &[&system(which)]), &[NULL, 0]]);
    let variables = ber::write(SEQUENCE, &[&variable(DESCRIPTION), &variable(OBJECT), &variable(NAME)]);
    let integer = |value: u8| ber::write(INTEGER, &[&[value]]);
    let pdu = ber::write(GET, &[&integer(0x50), &integer(0), &integer(0), &variables]);
    ber::write(SEQUENCE, &[&integer(version), &ber::write(OCTETS, &[b"public"]), &pdu])
}

/// An empty, reportable request of version 3: the agent reports who it is (RFC 3414, section 4).
fn discovery() -> Vec<u8> {
    let integer = |value: &[u8]| ber::write(INTEGER, &[value]);
    let empty = [OCTETS, 0];
    let header = ber::write(SEQUENCE, &[&integer(&[0x51]), &integer(&[0, 0xff, 0xe3]), &ber::write(OCTETS, &[&[4]]), &integer(&[3])]);
    let usm = ber::write(SEQUENCE, &[&empty, &integer(&[0]), &integer(&[0]), &empty, &empty, &empty]);
    let pdu = ber::write(GET, &[&integer(&[0x51]), &integer(&[0]), &integer(&[0]), &[SEQUENCE, 0]]);
    let scoped = ber::write(SEQUENCE, &[&empty, &empty, &pdu]);
    ber::write(SEQUENCE, &[&integer(&[3]), &header, &ber::write(OCTETS, &[&usm]), &scoped])
}

/// The engine's identity, boots and seconds since the last of them.
fn engine<'a>(mut message: Reader<'a>) -> Option<(&'a [u8], u64, u64)> {
    ber::expect(&mut message, SEQUENCE)?;
    let mut usm = Reader::new(ber::expect(&mut message, OCTETS)?);
    let mut usm = Reader::new(ber::expect(&mut usm, SEQUENCE)?);
    let id = ber::expect(&mut usm, OCTETS)?;
    let mut next = || ber::expect(&mut usm, INTEGER).and_then(ber::number);
    Some((id, next()?, next()?))
}

fn variables(mut message: Reader<'_>, finding: &mut Finding) -> Option<()> {
    ber::expect(&mut message, OCTETS)?;
    let mut pdu = Reader::new(ber::expect(&mut message, RESPONSE)?);
    for _ in 0..3 {
        ber::expect(&mut pdu, INTEGER)?;
    }
    let mut list = Reader::new(ber::expect(&mut pdu, SEQUENCE)?);
    while let Some(variable) = ber::expect(&mut list, SEQUENCE) {
        let mut variable = Reader::new(variable);
        let oid = ber::expect(&mut variable, OID)?;
        let (tag, value) = ber::element(&mut variable)?;
        match (oid, tag) {
            (oid, OCTETS) if oid == system(DESCRIPTION) => {
                finding.look_up(keys::SNMP_DESCRIPTION, clean(value));
                finding.fact("snmp.description", clean(value));
            }
            (oid, OCTETS) if oid == system(NAME) => {
                finding.service.hostname = Some(clean(value)).filter(|name| !name.is_empty());
                finding.fact("snmp.name", clean(value));
            }
            (oid, OID) if oid == system(OBJECT) => finding.fact("snmp.object", ber::dotted(value)),
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(version: u8, description: &[u8]) -> Vec<u8> {
        let variable = |which, value: &[u8]| ber::write(SEQUENCE, &[&ber::write(OID, &[&system(which)]), value]);
        let list = ber::write(
            SEQUENCE,
            &[
                &variable(DESCRIPTION, &ber::write(OCTETS, &[description])),
                &variable(OBJECT, &ber::write(OID, &[&[0x2b, 6, 1, 4, 1, 9]])),
                &variable(NAME, &ber::write(OCTETS, &[b"switch-3"])),
            ],
        );
        let integer = [INTEGER, 1, 0];
        let pdu = ber::write(RESPONSE, &[&integer, &integer, &integer, &list]);
        ber::write(SEQUENCE, &[&[INTEGER, 1, version], &ber::write(OCTETS, &[b"public"]), &pdu])
    }

    #[test]
    fn an_agent_tells_of_itself() {
        let mut snmp = Snmp::new();
        let Step::Send(question) = snmp.start() else { panic!("we ask first") };
        assert_eq!(question[..5], [0x30, u8::try_from(question.len() - 2).unwrap(), 2, 1, 1]);
        assert!(matches!(snmp.on_bytes(&mut response(1, b"Lab OS\r\n12.2")), Step::Send(_)), "version 3 is asked too");
        let mut report = discovery();
        assert!(matches!(snmp.on_bytes(&mut report), Step::Done(_)));
        let mut snmp = Snmp::new();
        snmp.on_bytes(&mut response(1, b"Lab OS\r\n12.2"));
        let Some(Step::Done(finding)) = snmp.on_silence() else { panic!("what is known is known") };
        assert_eq!(finding.service.fact("snmp.description"), Some("Lab OS..12.2"));
        assert_eq!(finding.service.fact("snmp.object"), Some("1.3.6.1.4.1.9"));
        assert_eq!(finding.service.hostname.as_deref(), Some("switch-3"));
    }

    #[test]
    fn three_versions_are_tried() {
        let mut snmp = Snmp::new();
        snmp.start();
        assert!(matches!(snmp.on_silence(), Some(Step::Send(_))));
        assert_eq!(snmp.on_silence(), Some(Step::Send(get(0))));
        assert_eq!(snmp.on_silence(), None);
        assert!(matches!(snmp.on_bytes(&mut response(0, b"old")), Step::Done(_)));
    }

    #[test]
    fn an_engine_is_told() {
        let integer = |value: &[u8]| ber::write(INTEGER, &[value]);
        let usm = ber::write(SEQUENCE, &[&ber::write(OCTETS, &[&[0x80, 0, 0x1f, 0x88]]), &integer(&[7]), &integer(&[1, 0]), &[OCTETS, 0]]);
        let header = ber::write(SEQUENCE, &[&integer(&[1])]);
        let mut message = ber::write(SEQUENCE, &[&integer(&[3]), &header, &ber::write(OCTETS, &[&usm]), &[SEQUENCE, 0]]);
        let mut snmp = Snmp { asked: Asked::V3, finding: None };
        let Step::Done(finding) = snmp.on_bytes(&mut message) else { panic!("known") };
        assert_eq!(finding.service.fact("snmp.engine_id"), Some("80001f88"));
        assert_eq!((finding.service.fact("snmp.engine_boots"), finding.service.fact("snmp.engine_seconds")), (Some("7"), Some("256")));
    }
}
