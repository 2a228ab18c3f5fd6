//! Reading what strangers wrote: numbers and texts out of bytes, without ever reaching beyond them.

/// A place in bytes that is read forward. Every read that reaches beyond the end is `None`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Network byte order, as all without `le` in their names.
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u24(&mut self) -> Option<usize> {
        self.array().map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]) as usize)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u16_le(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32_le(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64_le(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes behind a length of one octet, of two, of four.
    pub(super) fn sized8(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(len.into())
    }

    pub(super) fn sized16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }

    pub(super) fn sized32(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(usize::try_from(len).ok()?)
    }

    /// A text up to its NUL, which is taken too.
    pub(super) fn c_text(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(len)?;
        self.take(1)?;
        Some(text)
    }
}

/// A stranger's text on one line: what is no UTF-8 and what controls a terminal becomes a dot, surrounding space goes.
pub(super) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = |c: char| if c.is_control() || c == char::REPLACEMENT_CHARACTER { '.' } else { c };
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').chars().map(plain).collect()
}

/// Takes the first whole line, without its end; `None` where no line is whole.
pub(super) fn take_line(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let mut line: Vec<u8> = input.drain(..=end).collect();
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Some(line)
}

/// The place of `needle` in `bytes`, letters' case aside.
pub(super) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len().max(1)).position(|window| window.eq_ignore_ascii_case(needle))
}

/// Whether `bytes` begin with `start`, letters' case aside.
pub(super) fn begins(bytes: &[u8], start: &[u8]) -> bool {
    bytes.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
}

/// Bytes out of decimal digits, for texts of protocols.
pub(super) fn digits(bytes: &[u8]) -> Option<u64> {
    core::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A moment in seconds since 1970 as RFC 3339 writes it (days by Howard Hinnant's civil calendar).
pub(super) fn utc(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_people_write_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_798_891_200, "2027-01-02T12:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn strangers_texts_control_no_terminal() {
        assert_eq!(clean(b"  \x1b[31mred\x07\xff\r\n"), ".[31mred..");
    }

    #[test]
    fn lines_are_taken_whole() {
        let mut input = b"220-a\r\n220 b\npartial".to_vec();
        assert_eq!(take_line(&mut input).unwrap(), b"220-a");
        assert_eq!(take_line(&mut input).unwrap(), b"220 b");
        assert_eq!(take_line(&mut input), None);
        assert_eq!(input, b"partial");
    }

    #[test]
    fn reading_beyond_the_end_is_nothing() {
        let mut reader = Reader::new(&[0, 3, b'a', b'b', b'c', 9]);
        assert_eq!(reader.sized16(), Some(&b"abc"[..]));
        assert_eq!(reader.sized32(), None);
        assert_eq!(reader.u8(), Some(9));
        assert!(reader.rest().is_empty());
        assert_eq!(Reader::new(&[0xff; 4]).sized32(), None);
    }
}
