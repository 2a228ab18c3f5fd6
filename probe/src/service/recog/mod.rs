//! Fingerprints: which product says such words. In the schema of Recog, so that files that people have already can be used.
//!
//! A fingerprint is a regular expression over one text that a service said (a `Server` header, the software part of an SSH
//! greeting), and what is known when it matches. [`Fingerprints::builtin`] holds a small set written for Picket;
//! [`Fingerprints::with_dir`] puts a directory of the user's before it. Texts are named by keys ([`keys`]), as Recog names them.
//!
//! Must not know: sockets, protocols, how a text was obtained.
//!
//! **Invariant:** time and memory of a match are bounded whatever the text and the pattern: texts are cut to [`TEXT_BOUND`],
//! patterns that compile to more than [`COMPILED_MAX`] are refused, and the regular expressions run in linear time.
//! **Invariant:** no text from the network reaches a [`Service`] with control characters in it.

mod builtin;
pub mod check;
pub mod keys;
mod pattern;
mod xml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use picket_wire::service::{FACTS_MAX, Service, TEXT_MAX};

use self::pattern::Pattern;

/// So much of a text is looked at, in bytes. The longest that services usually say of themselves, `sysDescr` (RFC 3418), has 255.
pub const TEXT_BOUND: usize = 2048;
/// Longest pattern, in bytes of text.
pub const PATTERN_MAX: usize = 4096;
/// Largest compiled pattern, in bytes of memory: two hundred times what a usual one takes.
pub const COMPILED_MAX: usize = 128 * 1024;
/// Largest file of fingerprints, in bytes.
pub const FILE_MAX: u64 = 16 * 1024 * 1024;
/// Most fingerprints in all.
pub const FINGERPRINTS_MAX: usize = 50_000;

/// Why a file or directory of fingerprints is not used.
#[derive(Debug, thiserror::Error)]
pub enum FingerprintError {
    /// It cannot be read.
    #[error("read fingerprints from {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("{path} holds no fingerprints: files named *.xml in the schema of Recog are wanted")]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{file}:{line}: {}{what}", fingerprint.as_ref().map(|name| format!("fingerprint `{name}`: ")).unwrap_or_default())]
    Wrong {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The fingerprint's description, or its pattern where it has none.
        fingerprint: Option<String>,
        /// What is wrong, and what would be right.
        what: String,
    },
}

/// A set of fingerprints, ready to be asked.
#[derive(Debug, Default)]
pub struct Fingerprints {
    /// By key; within a key in the order in which they are tried.
    sets: BTreeMap<String, Vec<Set>>,
}

/// One file's fingerprints: of one key.
#[derive(Debug)]
struct Set {
    file: String,
    matches: String,
    protocol: Option<String>,
    /// From 0 to 1; sets of one key are tried from the highest down.
    preference: f32,
    entries: Vec<Entry>,
}

/// One fingerprint.
#[derive(Debug)]
struct Entry {
    line: usize,
    description: String,
    pattern: Pattern,
    params: Vec<Param>,
    /// Kept only where they are going to be checked.
    examples: Vec<Example>,
}

/// What is known when a fingerprint matches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Param {
    name: String,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// A capture group.
    Group(usize),
    /// A text, in which `{name}` stands for another parameter.
    Text(String),
}

/// A text that a fingerprint must match, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Example {
    line: usize,
    text: Vec<u8>,
    expected: Vec<(String, String)>,
}

/// What a fingerprint told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The fingerprint's description.
    pub description: String,
    /// What is known now: `service.product`, `service.version`, `os.product`, `hw.device`, `host.name`, ...
    pub params: BTreeMap<String, String>,
}

impl Fingerprints {
    /// Those that Picket brings.
    pub fn builtin() -> Self {
        Self::of(builtin::sets(false))
    }

    /// Those of a directory (every `*.xml` in it, not below it), and after them those that Picket brings. Where both know a key,
    /// the higher `preference` is tried first, and the directory's where they are equal.
    ///
    /// # Errors
    /// When the directory holds none, or one of its files is not in the schema. A pattern that this program's regular expressions
    /// cannot do is found when it is first needed, logged, and left out; [`check`] finds all of them.
    pub fn with_dir(dir: &Path) -> Result<Self, FingerprintError> {
        let mut sets = read_dir(dir, false)?;
        sets.extend(builtin::sets(false));
        Ok(Self::of(sets))
    }

    fn of(all: Vec<Set>) -> Self {
        let mut sets: BTreeMap<String, Vec<Set>> = BTreeMap::new();
        for set in all {
            sets.entry(set.matches.clone()).or_default().push(set);
        }
        for same in sets.values_mut() {
            // Stable: of equal ones the first stays first.
            same.sort_by(|a, b| b.preference.total_cmp(&a.preference));
        }
        Self { sets }
    }

    /// How many fingerprints there are.
    pub fn len(&self) -> usize {
        self.sets.values().flatten().map(|set| set.entries.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first fingerprint of a key that matches a text. See [`keys`] for what text a key wants.
    pub fn identify(&self, matches: &str, text: &str) -> Option<Match> {
        let text = &text[..text.floor_char_boundary(TEXT_BOUND)];
        self.sets.get(matches)?.iter().find_map(|set| set.identify(text))
    }
}

impl Set {
    fn identify(&self, text: &str) -> Option<Match> {
        self.entries.iter().find_map(|entry| entry.identify(self, text))
    }
}

impl Entry {
    fn identify(&self, set: &Set, text: &str) -> Option<Match> {
        let groups = self.pattern.groups(text, || self.place(set))?;
        let mut params = self.known(&groups);
        if let Some(protocol) = &set.protocol {
            params.entry("service.protocol".to_owned()).or_insert_with(|| protocol.clone());
        }
        Some(Match { description: self.description.clone(), params })
    }

    /// Where it stands, for messages.
    fn place(&self, set: &Set) -> String {
        format!("{}:{}: fingerprint `{}`", set.file, self.line, self.name())
    }

    fn name(&self) -> &str {
        if self.description.is_empty() { self.pattern.text() } else { &self.description }
    }

    /// The parameters, with texts completed.
    fn known(&self, groups: &[Option<&str>]) -> BTreeMap<String, String> {
        let raw = |param: &Param| match &param.value {
            Value::Group(group) => groups.get(*group).copied().flatten().map(ToOwned::to_owned),
            Value::Text(text) => Some(text.clone()),
        };
        let raw: BTreeMap<&str, String> = self.params.iter().filter_map(|param| Some((param.name.as_str(), raw(param)?))).collect();
        let complete = |param: &Param| {
            let value = raw.get(param.name.as_str())?;
            let value = match &param.value {
                // What a service said is never read as a place to fill in.
                Value::Group(_) => value.clone(),
                Value::Text(text) => fill(text, &param.name, &raw)?,
            };
            Some((param.name.clone(), value))
        };
        self.params.iter().filter(|param| !param.name.starts_with('_')).filter_map(complete).collect()
    }
}

/// Replaces `{name}` by the value of that parameter. In a CPE name an unknown version is `-` (as Recog has it); any other text with
/// an unknown part is not known either.
fn fill(text: &str, name: &str, raw: &BTreeMap<&str, String>) -> Option<String> {
    let is_cpe = name.ends_with(".cpe23");
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((inner, tail)) = after.split_once('}') else { break };
        filled.push_str(before);
        match raw.get(inner) {
            Some(value) if is_cpe => filled.extend(value.chars().map(|c| if is_cpe_separator(c) { '_' } else { c })),
            Some(value) => filled.push_str(value),
            None if is_cpe => filled.push('-'),
            None => return None,
        }
        rest = tail;
    }
    filled.push_str(rest);
    Some(filled)
}

/// What would break a CPE name apart if a service said it.
fn is_cpe_separator(c: char) -> bool {
    matches!(c, ':' | '/') || c.is_whitespace() || c.is_control()
}

/// Reads every `*.xml` of a directory, in the order of names.
fn read_dir(dir: &Path, keep_examples: bool) -> Result<Vec<Set>, FingerprintError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FingerprintError::Read { path, source }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "xml") {
            files.push(path);
        }
    }
    files.sort();
    let mut sets = Vec::new();
    let mut count = 0;
    for path in &files {
        let size = std::fs::metadata(path).map_err(failed(path))?.len();
        let wrong = |what| FingerprintError::Wrong { file: path.display().to_string(), line: 1, fingerprint: None, what };
        if size > FILE_MAX {
            return Err(wrong(format!("{size} bytes are too many: a file may have {FILE_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(failed(path))?;
        let examples = keep_examples.then(|| path.with_extension(""));
        let set = xml::parse(&path.display().to_string(), &text, examples.as_deref())?;
        count += set.entries.len();
        if count > FINGERPRINTS_MAX {
            return Err(wrong(format!("more than {FINGERPRINTS_MAX} fingerprints in all")));
        }
        sets.push(set);
    }
    if count == 0 {
        return Err(FingerprintError::Nothing { path: dir.to_owned() });
    }
    Ok(sets)
}

/// A text for [`Fingerprints::identify`] from bytes of the network: UTF-8 where it is that, else each byte as the character of its
/// number (ISO 8859-1), so that `\xNN` in a pattern means that byte.
pub fn text_of(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(TEXT_BOUND)];
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        // Cut in the middle of a character.
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Puts what a fingerprint told into a service, where the service does not know better: what is set already stays.
pub fn apply(found: &Match, service: &mut Service) {
    let get = |name: &str| found.params.get(name).map(|value| clean(value)).filter(|value| !value.is_empty());
    let fill = |field: &mut Option<String>, value: Option<String>| {
        if field.is_none() {
            *field = value;
        }
    };
    if service.name.is_empty() {
        service.name = get("service.protocol").unwrap_or_default().to_ascii_lowercase();
    }
    fill(&mut service.product, get("service.product"));
    fill(&mut service.version, get("service.version"));
    fill(&mut service.hostname, get("host.name"));
    fill(&mut service.device, get("hw.device").map(|device| device.to_lowercase()));
    fill(&mut service.os, operating_system(&get));
    let comment = found.params.keys().find(|name| name.ends_with(".comment"));
    fill(&mut service.extra, comment.and_then(|name| get(name)));
    for name in ["service.cpe23", "os.cpe23", "hw.cpe23"] {
        if let Some(cpe) = get(name).filter(|cpe| service.cpes.len() < FACTS_MAX && !service.cpes.contains(cpe)) {
            service.cpes.push(cpe);
        }
    }
    for name in found.params.keys().filter(|name| is_fact(name)) {
        if let Some(value) = get(name).filter(|_| service.facts.len() < FACTS_MAX && service.fact(name).is_none()) {
            service.facts.push((clean(name), value));
        }
    }
}

/// `Debian Linux 12`, from vendor, product and version; the vendor is not said twice.
fn operating_system(get: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let product = get("os.product").or_else(|| get("os.family"))?;
    let vendor = get("os.vendor").filter(|vendor| !product.starts_with(vendor.as_str()));
    let parts = [vendor, Some(product), get("os.version")];
    Some(clean(&parts.into_iter().flatten().collect::<Vec<_>>().join(" ")))
}

/// Parameters that have no field of their own and are worth telling.
fn is_fact(name: &str) -> bool {
    const FIELDS: [&str; 10] = [
        "service.protocol",
        "service.product",
        "service.version",
        "service.cpe23",
        "service.certainty",
        "os.product",
        "os.cpe23",
        "os.certainty",
        "hw.cpe23",
        "hw.certainty",
    ];
    let ours = ["service.", "os.", "hw.", "host."].iter().any(|prefix| name.starts_with(prefix));
    ours && !FIELDS.contains(&name) && !["hw.device", "host.name"].contains(&name) && !name.ends_with(".comment")
}

/// Without control characters and outer blanks, cut to the longest text of a [`Service`].
fn clean(value: &str) -> String {
    let mut text: String = value.trim().chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text
}

#[cfg(test)]
mod tests;
