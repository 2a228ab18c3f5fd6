//! A table on a terminal that is drawn again in its place.

use std::io::{self, IsTerminal, Write};

use terminal_size::{Height, Width, terminal_size};

/// The terminal behind standard output, with as many lines on it as were drawn last.
pub(super) struct Screen {
    drawn: usize,
}

impl Screen {
    /// Nothing is drawn yet; `None` where standard output is no terminal.
    pub(super) fn new() -> Option<Self> {
        io::stdout().is_terminal().then_some(Self { drawn: 0 })
    }

    /// Draws `text` where the last one was.
    pub(super) fn draw(&mut self, text: &str) -> io::Result<()> {
        let (width, height) = terminal_size().map_or((80, 24), |(Width(width), Height(height))| (width.into(), height.into()));
        let lines = fitted(text, width, height);
        let back = self.back();
        self.drawn = lines.len();
        let lines: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        let mut out = io::stdout().lock();
        write!(out, "{back}{lines}\x1b[J")?;
        out.flush()
    }

    /// Takes it away, so that something else can be written there.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let back = self.back();
        self.drawn = 0;
        let mut out = io::stdout().lock();
        write!(out, "{back}\x1b[J")?;
        out.flush()
    }

    /// Moves to where the first line begins.
    fn back(&self) -> String {
        match self.drawn {
            0 => "\r".to_owned(),
            drawn => format!("\r\x1b[{drawn}A"),
        }
    }
}

/// As much of the text as the terminal has room for, the cursor's own line left free: no line may break, or it would not be known where the first one is.
fn fitted(text: &str, width: usize, height: usize) -> Vec<String> {
    // A terminal that does not know its size says 0.
    let (width, height) = (if width == 0 { 80 } else { width }, if height == 0 { 24 } else { height });
    let room = height.saturating_sub(1).max(1);
    let mut lines: Vec<String> = text.lines().map(|line| line.chars().take(width).collect()).collect();
    if lines.len() > room {
        let more = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(format!("... {more} more lines").chars().take(width).collect());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_and_not_broken() {
        assert_eq!(fitted("one\ntwo\nthree", 80, 24), ["one", "two", "three"]);
        assert_eq!(fitted("one\ntwo\nthree", 4, 4), ["one", "two", "thre"]);
        assert_eq!(fitted("one\ntwo\nthree\nfour", 80, 3), ["one", "... 3 more lines"]);
        assert_eq!(fitted("one\ntwo", 3, 1), ["..."]);
        assert_eq!(fitted("one\ntwo", 0, 0), ["one", "two"]);
    }
}
