//! Replies of a code and lines, as SMTP (RFC 5321, section 4.2) and FTP (RFC 959, section 4.2) give them.

use crate::service::text::{clean, digits, take_line};

/// Most lines of a reply that are kept.
const LINES_MAX: usize = 64;

/// A reply being collected.
#[derive(Debug, Default)]
pub(super) struct Replies {
    code: u16,
    lines: Vec<String>,
}

/// A whole reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// Its lines without the code.
    pub(super) lines: Vec<String>,
}

impl Reply {
    /// The lines as fingerprints want them.
    pub(super) fn text(&self) -> String {
        self.lines.join("\n")
    }
}

impl Replies {
    /// Takes lines; `Some(None)` where they are no reply.
    pub(super) fn take(&mut self, input: &mut Vec<u8>) -> Option<Option<Reply>> {
        while let Some(line) = take_line(input) {
            let code = line.get(..3).and_then(digits).and_then(|code| u16::try_from(code).ok()).filter(|code| (100..700).contains(code));
            let last = matches!(line.get(3), None | Some(b' '));
            match code {
                Some(code) if self.code == 0 || self.code == code => {
                    self.code = code;
                    self.add(clean(line.get(4..).unwrap_or_default()));
                    if last {
                        let reply = core::mem::take(self);
                        return Some(Some(Reply { code: reply.code, lines: reply.lines }));
                    }
                }
                // FTP's lines in the middle need no code.
                _ if self.code != 0 => self.add(clean(&line)),
                _ => return Some(None),
            }
        }
        None
    }

    fn add(&mut self, line: String) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_may_have_many_lines() {
        let mut replies = Replies::default();
        let mut input = b"220-a\r\n more\r\n220-b\r\n220 c\r\n250".to_vec();
        let reply = replies.take(&mut input).unwrap().unwrap();
        assert_eq!((reply.code, reply.text()), (220, "a\nmore\nb\nc".to_owned()));
        assert_eq!(replies.take(&mut input), None);
        input.extend_from_slice(b"\r\n");
        assert_eq!(replies.take(&mut input), Some(Some(Reply { code: 250, lines: vec![String::new()] })));
        assert_eq!(replies.take(&mut b"hello\r\n".to_vec()), Some(None));
    }
}
