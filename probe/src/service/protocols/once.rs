//! Dialogues of one question: what is asked, and how its answer reads.

use crate::service::dialogue::{Dialogue, End, Finding, Step};

/// What an answer says so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// It is known.
    Known(Finding),
    /// There is not enough of it yet.
    More,
    /// It is not in this protocol.
    Foreign,
}

/// Reads an answer; the second argument says that no more of it comes.
pub(super) type Reading = fn(&[u8], bool) -> Read;

/// One question.
pub(super) struct Once {
    question: Vec<u8>,
    read: Reading,
}

impl Once {
    pub(super) fn new(question: impl Into<Vec<u8>>, read: Reading) -> Self {
        Self { question: question.into(), read }
    }
}

impl Read {
    /// What is read of a whole message: `None` is no message of this protocol.
    pub(super) fn from_whole(finding: Option<Finding>) -> Self {
        finding.map_or(Read::Foreign, Read::Known)
    }
}

impl Dialogue for Once {
    fn start(&mut self) -> Step {
        Step::Send(core::mem::take(&mut self.question))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        match (self.read)(input, false) {
            Read::Known(finding) => finding.done(),
            Read::More => Step::More,
            Read::Foreign => Step::Foreign,
        }
    }

    fn on_end(&mut self, input: &[u8], _how: End) -> Option<Box<Finding>> {
        match (self.read)(input, true) {
            Read::Known(finding) if !input.is_empty() => Some(Box::new(finding)),
            _ => None,
        }
    }
}
