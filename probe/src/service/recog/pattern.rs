//! A regular expression that is compiled when it is first needed.
//!
//! Recog's patterns are written for Ruby: `^` and `$` stand at every line, and the flags that are named after multiple lines let the
//! dot match a line's end.

use std::sync::OnceLock;

use regex_lite::{Regex, RegexBuilder};

use super::{COMPILED_MAX, PATTERN_MAX};

/// Groups deeper than this are no pattern that anybody wrote.
const NEST_MAX: u32 = 50;

/// A pattern with its flags.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    flags: Flags,
    compiled: OnceLock<Option<Regex>>,
}

/// How a pattern is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags {
    ignore_case: bool,
    dot_newline: bool,
}

impl Flags {
    /// Reads `REG_ICASE,REG_DOT_NEWLINE`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut flags = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "REG_ICASE" => flags.ignore_case = true,
                "REG_DOT_NEWLINE" | "REG_MULTILINE" | "REG_LINE_ANY_CRLF" => flags.dot_newline = true,
                _ => {
                    return Err(format!(
                        "the flag `{name}` is not known: use REG_ICASE, REG_DOT_NEWLINE, REG_MULTILINE or REG_LINE_ANY_CRLF"
                    ));
                }
            }
        }
        Ok(flags)
    }
}

impl Pattern {
    /// Checks what can be checked without compiling.
    pub(super) fn new(text: String, flags: Flags) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches everything".to_owned());
        }
        if text.len() > PATTERN_MAX {
            return Err(format!("a pattern of {} bytes is too long: at most {PATTERN_MAX} are allowed", text.len()));
        }
        Ok(Self { text, flags, compiled: OnceLock::new() })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Compiles it; the error says why it cannot be used.
    pub(super) fn compile(&self) -> Result<Regex, String> {
        let mut builder = RegexBuilder::new(&self.text);
        builder.case_insensitive(self.flags.ignore_case).dot_matches_new_line(self.flags.dot_newline).multi_line(true);
        builder.size_limit(COMPILED_MAX).nest_limit(NEST_MAX).build().map_err(|error| {
            // The library's own text names the limit, but not what to do about it.
            let why = error.to_string();
            if why.contains("size limit") {
                format!("the pattern compiles to more than {COMPILED_MAX} bytes: use smaller repetitions")
            } else {
                why
            }
        })
    }

    /// The capture groups of the first match, the whole of it first. A pattern that cannot be compiled matches nothing, and says so
    /// once; `place` names it then.
    pub(super) fn groups<'t>(&self, text: &'t str, place: impl Fn() -> String) -> Option<Vec<Option<&'t str>>> {
        let compiled = self.compiled.get_or_init(|| {
            self.compile().inspect_err(|why| log::warn!("{} is left out: the pattern cannot be used: {why}", place())).ok()
        });
        let captures = compiled.as_ref()?.captures(text)?;
        Some(captures.iter().map(|group| group.map(|group| group.as_str())).collect())
    }
}
