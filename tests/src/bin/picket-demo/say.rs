//! What the demo says: numbered steps, the commands that are run, what they print. Colours on a terminal only.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// The one who tells.
#[derive(Debug)]
pub(crate) struct Say {
    colour: bool,
    step: Cell<u32>,
    start: Instant,
}

impl Say {
    pub(crate) fn new() -> Self {
        let plain =
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        Self { colour: std::io::stdout().is_terminal() && !plain, step: Cell::new(0), start: Instant::now() }
    }

    /// The next step, with the seconds since the start.
    pub(crate) fn step(&self, title: &str) {
        self.step.set(self.step.get() + 1);
        let title = self.paint("1", &format!("{}. {title}", self.step.get()));
        let at = self.paint("2", &format!("[{:.0} s]", self.start.elapsed().as_secs_f64()));
        self.line(&format!("\n{title}  {at}"));
    }

    /// What happens, in words.
    pub(crate) fn note(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("   {line}"));
        }
    }

    /// A command as somebody at that place would type it.
    pub(crate) fn command(&self, place: &str, command: &str) {
        self.line(&format!("   {} {}", self.paint("32", &format!("{place}#")), self.paint("1", command)));
    }

    /// A line that a program printed.
    pub(crate) fn output(&self, text: &str) {
        self.line(format!("     {text}").trim_end());
    }

    /// A line that came by itself, beside the step: from the fleet's topics.
    pub(crate) fn aside(&self, text: &str) {
        self.line(&format!("     {}", self.paint("36", text)));
    }

    /// Something that was checked and is so.
    pub(crate) fn right(&self, text: &str) {
        self.line(&format!("   {} {text}", self.paint("32", "ok   ")));
    }

    /// Something that is not as it should be.
    pub(crate) fn wrong(&self, text: &str) {
        self.line(&format!("   {} {text}", self.paint("31", "WRONG")));
    }

    /// A line of the demo itself.
    pub(crate) fn line(&self, text: &str) {
        // Nobody is left to tell when standard output is closed, and what is running must still be cleaned up.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: impl Into<u128>) -> String {
    let digits = number.into().to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_are_grouped() {
        assert_eq!([0_u32, 999, 1000, 1_234_567].map(super::count), ["0", "999", "1,000", "1,234,567"]);
    }
}
