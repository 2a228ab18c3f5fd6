//! MongoDB ("MongoDB Wire Protocol", OP_MSG): `hello` and `buildInfo`, which need no login.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{Reader, clean};

const OP_REPLY: u32 = 1;
const OP_MSG: u32 = 2013;
const MESSAGE_MAX: usize = 48 * 1024;

/// A conversation of two questions.
#[derive(Default)]
pub(super) struct Mongo {
    finding: Option<Finding>,
}

impl Mongo {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn hello(&mut self, document: &[u8]) -> Step {
        let mut finding = Finding::new("mongodb");
        let mut seen = false;
        elements(document, |name, value| {
            seen |= matches!(name, b"maxWireVersion" | b"ok" | b"ismaster" | b"isWritablePrimary");
            match name {
                b"maxWireVersion" => finding.fact("mongodb.wire_version", value.text()),
                b"setName" => finding.fact("mongodb.set", value.text()),
                b"me" => finding.fact("mongodb.me", value.text()),
                b"isWritablePrimary" | b"ismaster" => finding.fact("mongodb.primary", value.text()),
                b"msg" => finding.fact("mongodb.role", value.text()),
                b"errmsg" => finding.fact("mongodb.error", value.text()),
                _ => {}
            }
        });
        if !seen {
            return Step::Foreign;
        }
        self.finding = Some(finding);
        Step::Send(question("buildInfo", 2))
    }

    fn build_info(&mut self, document: &[u8]) -> Step {
        let Some(mut finding) = self.finding.take() else { return Step::Foreign };
        elements(document, |name, value| match name {
            b"version" => {
                finding.service.product = Some("MongoDB".to_owned());
                finding.service.version = Some(value.text());
            }
            b"gitVersion" => finding.fact("mongodb.git", value.text()),
            b"errmsg" => finding.fact("mongodb.error", value.text()),
            _ => {}
        });
        finding.done()
    }
}

impl Dialogue for Mongo {
    fn start(&mut self) -> Step {
        Step::Send(question("hello", 1))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let mut reader = Reader::new(input);
        let Some(len) = reader.u32_le().map(|len| len as usize) else { return Step::More };
        if !(21..MESSAGE_MAX).contains(&len) {
            return Step::Foreign;
        }
        let Some(mut body) = reader.take(len - 4).map(Reader::new) else { return Step::More };
        let Some(document) = document(&mut body) else { return Step::Foreign };
        let document = document.to_vec();
        input.drain(..len);
        if self.finding.is_none() { self.hello(&document) } else { self.build_info(&document) }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// The document of a message behind its length: the header's other three numbers, then what the kind of message wants.
fn document<'a>(body: &mut Reader<'a>) -> Option<&'a [u8]> {
    body.take(8)?;
    match body.u32_le()? {
        // Flags; a section of kind 0.
        OP_MSG => body.take(5)?,
        // Flags, cursor, first, number.
        OP_REPLY => body.take(20)?,
        _ => return None,
    };
    Some(body.rest())
}

/// `{ <command>: 1, "$db": "admin" }` in an OP_MSG.
fn question(command: &str, id: u32) -> Vec<u8> {
    let mut elements = vec![0x10];
    elements.extend_from_slice(command.as_bytes());
    elements.extend_from_slice(&[0, 1, 0, 0, 0, 0x02]);
    elements.extend_from_slice(b"$db\0\x06\0\0\0admin\0\0");
    let document = u32::try_from(elements.len() + 4).unwrap_or_default();
    let mut out = Vec::new();
    for number in [document + 21, id, 0, OP_MSG, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(0);
    out.extend_from_slice(&document.to_le_bytes());
    out.extend_from_slice(&elements);
    out
}

/// A value of BSON, as far as it is told.
enum Value<'a> {
    Text(&'a [u8]),
    Number(i64),
    Bool(bool),
    Other,
}

impl Value<'_> {
    fn text(&self) -> String {
        match self {
            Value::Text(text) => clean(text),
            Value::Number(number) => number.to_string(),
            Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
            Value::Other => String::new(),
        }
    }
}

/// Shows the elements of a document's first level (bsonspec.org, version 1.1), as far as they can be read.
fn elements(document: &[u8], mut show: impl FnMut(&[u8], Value<'_>)) {
    let mut reader = Reader::new(document);
    let _len = reader.u32_le();
    while let Some(kind) = reader.u8().filter(|kind| *kind != 0) {
        let Some(name) = reader.c_text() else { return };
        let Some(value) = value(kind, &mut reader) else { return };
        show(name, value);
    }
}

fn value<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Value<'a>> {
    Some(match kind {
        0x02 => {
            let len = reader.u32_le()? as usize;
            let text = reader.take(len)?;
            Value::Text(text.strip_suffix(&[0]).unwrap_or(text))
        }
        0x10 => Value::Number(i64::from(reader.u32_le()? as i32)),
        0x12 => Value::Number(reader.u64_le()? as i64),
        0x08 => Value::Bool(reader.u8()? != 0),
        _ => {
            let len = match kind {
                0x01 | 0x09 | 0x11 => 8,
                0x07 => 12,
                0x13 => 16,
                0x0a => 0,
                // A document or an array, whose length counts itself.
                0x03 | 0x04 => (Reader::new(reader.rest()).u32_le()? as usize).max(4),
                // Binary: length and subtype.
                0x05 => Reader::new(reader.rest()).u32_le()? as usize + 5,
                _ => return None,
            };
            reader.take(len)?;
            Value::Other
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::protocols::tests::lead;

    fn reply(elements: &[u8]) -> Vec<u8> {
        let document = u32::try_from(elements.len() + 5).unwrap();
        let mut out = Vec::new();
        for number in [document + 21, 9, 1, OP_MSG, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(0);
        out.extend_from_slice(&document.to_le_bytes());
        out.extend_from_slice(elements);
        out.push(0);
        out
    }

    #[test]
    fn version_and_role_are_told() {
        let hello = reply(
            b"\x03topologyVersion\0\x05\0\0\0\0\x08isWritablePrimary\0\x01\x10maxWireVersion\0\x15\0\0\0\x01ok\0\0\0\0\0\0\0\xf0\x3f",
        );
        let build = reply(b"\x02version\0\x07\0\0\x007.0.14\0\x10bits\0\x40\0\0\0");
        let (sent, found) = lead(Mongo::new(), &[&hello, &build]);
        assert_eq!(sent.len(), 2);
        assert_eq!(u32::from_le_bytes(sent[0][..4].try_into().unwrap()) as usize, sent[0].len());
        let found = found.unwrap().service;
        assert_eq!((found.product.as_deref(), found.version.as_deref()), (Some("MongoDB"), Some("7.0.14")));
        assert_eq!((found.fact("mongodb.primary"), found.fact("mongodb.wire_version")), (Some("yes"), Some("21")));
    }
}
