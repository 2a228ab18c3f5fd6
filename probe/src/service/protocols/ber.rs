//! The little of BER (X.690) that SNMP and LDAP speak: definite lengths, tags of one octet.

use crate::service::text::Reader;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

/// The next element: its tag and its content. `None` also where it is not whole.
pub(super) fn element<'a>(reader: &mut Reader<'a>) -> Option<(u8, &'a [u8])> {
    let tag = reader.u8()?;
    let first = reader.u8()?;
    let len = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x84 => reader.take(usize::from(first & 0x7f))?.iter().fold(0usize, |len, byte| len << 8 | usize::from(*byte)),
        _ => return None,
    };
    reader.take(len).map(|content| (tag, content))
}

/// The next element, if it has this tag.
pub(super) fn expect<'a>(reader: &mut Reader<'a>, tag: u8) -> Option<&'a [u8]> {
    element(reader).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// An unsigned number of at most eight octets.
pub(super) fn number(content: &[u8]) -> Option<u64> {
    (content.len() <= 8).then(|| content.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// An element of these parts.
pub(super) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(len) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend(parts.iter().copied().flatten());
    out
}

/// The dotted form of an object identifier.
pub(super) fn dotted(content: &[u8]) -> String {
    let Some((first, rest)) = content.split_first() else { return String::new() };
    let mut out = format!("{}.{}", first / 40, first % 40);
    let mut arc = 0u64;
    for byte in rest {
        arc = arc << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            out.push_str(&format!(".{arc}"));
            arc = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let long = write(OCTETS, &[&[7; 300]]);
        let both = write(SEQUENCE, &[&long, &write(INTEGER, &[&[1, 0]])]);
        let mut reader = Reader::new(&both);
        let mut inner = Reader::new(expect(&mut reader, SEQUENCE).unwrap());
        assert_eq!(expect(&mut inner, OCTETS).unwrap().len(), 300);
        assert_eq!(element(&mut inner).and_then(|(_, content)| number(content)), Some(256));
        assert_eq!(element(&mut Reader::new(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 1])), None);
        assert_eq!(dotted(&[0x2b, 6, 1, 4, 1, 0xbf, 8, 3, 2, 10]), "1.3.6.1.4.1.8072.3.2.10");
    }
}
