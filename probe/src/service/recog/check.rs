//! Are fingerprints right? Every pattern is compiled and every example must match and give what it says.

use std::path::Path;

use super::{Entry, FingerprintError, Set, builtin, read_dir, text_of, xml};

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How many files were read.
    pub files: usize,
    /// How many fingerprints they hold.
    pub fingerprints: usize,
    /// How many examples were tried.
    pub examples: usize,
    /// What is wrong, each with its place.
    pub failures: Vec<String>,
    /// What might be meant otherwise, each with its place.
    pub warnings: Vec<String>,
}

/// Checks the fingerprints that Picket brings.
pub fn builtin_set() -> Report {
    report(&builtin::sets(true))
}

/// Checks the fingerprints of a directory.
///
/// # Errors
/// When there are none, or a file is not in the schema.
pub fn directory(dir: &Path) -> Result<Report, FingerprintError> {
    Ok(report(&read_dir(dir, true)?))
}

/// Checks the text of one file, of which messages say that it is called `name`; examples in files of their own are looked for in `dir`.
///
/// # Errors
/// When it is not in the schema.
pub fn text(name: &str, text: &str, dir: &Path) -> Result<Report, FingerprintError> {
    Ok(report(&[xml::parse(name, text, Some(dir))?]))
}

fn report(sets: &[Set]) -> Report {
    let mut report = Report { files: sets.len(), ..Report::default() };
    for set in sets {
        for (at, entry) in set.entries.iter().enumerate() {
            report.fingerprints += 1;
            report.examples += entry.examples.len();
            check_entry(&mut report, set, at, entry);
        }
    }
    report
}

fn check_entry(report: &mut Report, set: &Set, at: usize, entry: &Entry) {
    let groups = match entry.pattern.compile() {
        Ok(compiled) => compiled.captures_len(),
        Err(why) => {
            report.failures.push(format!("{}: the pattern cannot be used: {why}", entry.place(set)));
            return;
        }
    };
    for param in &entry.params {
        if let super::Value::Group(group) = param.value
            && group >= groups
        {
            report.failures.push(format!(
                "{}: `param` {} names group {group}, the pattern has {}",
                entry.place(set),
                param.name,
                groups - 1
            ));
        }
    }
    if entry.examples.is_empty() {
        report.warnings.push(format!("{}: no example", entry.place(set)));
    }
    for example in &entry.examples {
        let place = || format!("{}:{}: fingerprint `{}`", set.file, example.line, entry.name());
        let text = text_of(&example.text);
        let Some(found) = entry.identify(set, &text) else {
            report.failures.push(format!("{}: does not match its example {text:?}", place()));
            continue;
        };
        for (name, wanted) in &example.expected {
            match found.params.get(name) {
                Some(value) if value == wanted => {}
                Some(value) => report.failures.push(format!("{}: {name} of the example {text:?} is {value:?}, not {wanted:?}", place())),
                None => report.failures.push(format!("{}: the example {text:?} gives no {name}, {wanted:?} is expected", place())),
            }
        }
        if let Some(earlier) = set.entries[..at].iter().find(|earlier| earlier.identify(set, &text).is_some()) {
            report.warnings.push(format!("{}: the example {text:?} is taken by {} before", place(), earlier.place(set)));
        }
    }
}
