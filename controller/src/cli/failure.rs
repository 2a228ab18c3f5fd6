//! Why a command failed: one line, perhaps a hint, and an exit code.

use std::fmt;
use std::io;

use crate::view::Problem;

/// What a script sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Complete = 0,
    /// Failed.
    Failure = 1,
    /// Wrong usage or invalid input.
    Usage = 2,
    /// The job was cancelled, failed or is not over yet.
    Incomplete = 3,
    /// The controller cannot be reached.
    Unreachable = 4,
    /// Not authorised.
    Unauthorised = 5,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What a script sees.
    pub exit: Exit,
    /// What went wrong, in one line.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Standard output is gone. A closed pipe is how `head` says that it has enough: no reason to complain.
    pub(super) fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Complete, ""),
            _ => Self::new(Exit::Failure, format!("write to standard output: {error}")),
        }
    }

    /// Whether there is nothing to say.
    pub(super) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// What the API answered.
    pub(super) fn problem(problem: &Problem) -> Self {
        let exit = match problem.status {
            400 | 413 | 415 | 422 => Exit::Usage,
            401 | 403 => Exit::Unauthorised,
            _ => Exit::Failure,
        };
        let failure = Self::new(exit, problem.detail.clone());
        match problem.status {
            401 => failure.hint("give a token with --token-file or PICKET_TOKEN; `picket token add` makes one"),
            403 => failure.hint("ask an administrator for a token with that scope: `picket token add NAME --scope ...`"),
            429 => failure.hint("wait a moment and try again"),
            _ => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some errors have a mark below the place that they mean.
        let lines: Vec<String> = self.message.split('\n').map(super::format::clean).collect();
        write!(f, "picket: {}", lines.join("\n"))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}
