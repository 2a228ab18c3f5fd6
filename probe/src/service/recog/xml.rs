//! One file of fingerprints, from its text.
//!
//! Reads what Recog's schema has (`fingerprints`, `fingerprint`, `description`, `example`, `param`), skips elements that it does not
//! know, and says of everything wrong in which line it is. Entities other than XML's own five and numeric ones are refused: nothing
//! expands.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use super::pattern::{Flags, Pattern};
use super::{Entry, Example, FINGERPRINTS_MAX, FingerprintError, Param, Set, Value};

/// Where a set stands among others of its key when it does not say.
const DEFAULT_PREFERENCE: f32 = 0.1;
/// Most parameters, and most examples, of one fingerprint.
const PARTS_MAX: usize = 256;
/// Largest file that an example may be kept in, in bytes.
const EXAMPLE_MAX: u64 = 1024 * 1024;

/// Reads a file's text. `examples` is the directory that examples in files of their own are below; `None` leaves all examples out.
pub(super) fn parse(file: &str, text: &str, examples: Option<&Path>) -> Result<Set, FingerprintError> {
    let mut parser = Parser { file, text, line: 1, counted: 0, examples, set: None, entry: None, collected: String::new() };
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    loop {
        parser.count_lines(reader.buffer_position());
        match reader.read_event() {
            Ok(Event::Eof) => return parser.finish(),
            Ok(event) => parser.event(&event)?,
            Err(error) => {
                parser.count_lines(reader.error_position());
                return Err(parser.wrong(format!("this is not XML: {error}")));
            }
        }
    }
}

/// A fingerprint that is being read.
#[derive(Debug)]
struct Draft {
    line: usize,
    pattern: String,
    flags: String,
    description: String,
    params: Vec<Param>,
    examples: Vec<Example>,
    /// The example whose text is being read.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    line: usize,
    base64: bool,
    filename: Option<String>,
    expected: Vec<(String, String)>,
}

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    /// The line of `counted`.
    line: usize,
    counted: usize,
    examples: Option<&'a Path>,
    set: Option<Set>,
    entry: Option<Draft>,
    /// Text since the last element began.
    collected: String,
}

type Attributes = Vec<(String, String)>;

impl Parser<'_> {
    fn count_lines(&mut self, position: u64) {
        let position = usize::try_from(position).unwrap_or(usize::MAX).min(self.text.len());
        let passed = self.text.as_bytes().get(self.counted..position).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.counted = self.counted.max(position);
    }

    fn wrong(&self, what: impl Into<String>) -> FingerprintError {
        let name = |draft: &Draft| if draft.description.is_empty() { draft.pattern.clone() } else { draft.description.clone() };
        FingerprintError::Wrong {
            file: self.file.to_owned(),
            line: self.line,
            fingerprint: self.entry.as_ref().map(name),
            what: what.into(),
        }
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), FingerprintError> {
        match event {
            Event::Start(element) => {
                self.collected.clear();
                let attributes = self.attributes(element)?;
                self.start(element.name().as_ref(), attributes)
            }
            Event::End(element) => self.end(element.name().as_ref()),
            Event::Text(text) => {
                let text = text.decode().map_err(|error| self.wrong(error.to_string()))?;
                self.collected.push_str(&text);
                Ok(())
            }
            Event::CData(text) => {
                let text = text.decode().map_err(|error| self.wrong(error.to_string()))?;
                self.collected.push_str(&text);
                Ok(())
            }
            Event::GeneralRef(reference) => {
                let character = self.resolve(reference)?;
                self.collected.push(character);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn resolve(&self, reference: &BytesRef<'_>) -> Result<char, FingerprintError> {
        let number = reference.resolve_char_ref().map_err(|error| self.wrong(error.to_string()))?;
        let named = || match &**reference {
            b"lt" => Some('<'),
            b"gt" => Some('>'),
            b"amp" => Some('&'),
            b"apos" => Some('\''),
            b"quot" => Some('"'),
            _ => None,
        };
        number.or_else(named).ok_or_else(|| {
            self.wrong(format!("the entity `&{};` is not known: write the character itself", String::from_utf8_lossy(reference)))
        })
    }

    fn attributes(&self, element: &BytesStart<'_>) -> Result<Attributes, FingerprintError> {
        let mut attributes = Vec::new();
        for attribute in element.attributes() {
            let attribute = attribute.map_err(|error| self.wrong(error.to_string()))?;
            let value = attribute.unescape_value().map_err(|error| self.wrong(error.to_string()))?;
            attributes.push((String::from_utf8_lossy(attribute.key.as_ref()).into_owned(), value.into_owned()));
        }
        Ok(attributes)
    }

    fn start(&mut self, name: &[u8], mut attributes: Attributes) -> Result<(), FingerprintError> {
        let mut take = |name: &str| {
            let at = attributes.iter().position(|(key, _)| key == name)?;
            Some(attributes.swap_remove(at).1)
        };
        match name {
            b"fingerprints" if self.set.is_none() => {
                let matches = take("matches").filter(|key| !key.is_empty());
                let matches = matches.ok_or_else(|| self.wrong("`fingerprints` lacks its `matches`, which says what text is meant"))?;
                let preference = match take("preference") {
                    None => DEFAULT_PREFERENCE,
                    Some(text) => text
                        .parse()
                        .ok()
                        .filter(|value| (0.0..=1.0).contains(value))
                        .ok_or_else(|| self.wrong(format!("`{text}` is no preference: use a number from 0 to 1")))?,
                };
                let protocol = take("protocol").map(|name| name.to_ascii_lowercase());
                self.set = Some(Set { file: self.file.to_owned(), matches, protocol, preference, entries: Vec::new() });
            }
            b"fingerprints" => return Err(self.wrong("a file has one `fingerprints`; this is its second")),
            _ if self.set.is_none() => {
                return Err(self.wrong(format!("`{}` stands where `fingerprints` is wanted", String::from_utf8_lossy(name))));
            }
            b"fingerprint" => {
                if self.entry.is_some() {
                    return Err(self.wrong("a fingerprint stands inside another"));
                }
                let pattern = take("pattern").ok_or_else(|| self.wrong("a fingerprint lacks its `pattern`"))?;
                let flags = take("flags").unwrap_or_default();
                let (params, examples) = (Vec::new(), Vec::new());
                self.entry = Some(Draft { line: self.line, pattern, flags, description: String::new(), params, examples, open: None });
            }
            b"param" => self.param(take("pos"), take("name"), take("value"))?,
            b"example" => {
                let base64 = match take("_encoding").as_deref() {
                    None => false,
                    Some("base64") => true,
                    Some(other) => return Err(self.wrong(format!("the encoding `{other}` is not known: use base64"))),
                };
                let filename = take("_filename");
                attributes.retain(|(name, _)| !name.starts_with('_'));
                let line = self.line;
                if let Some(draft) = &mut self.entry {
                    draft.open = Some(Open { line, base64, filename, expected: attributes });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn param(&mut self, pos: Option<String>, name: Option<String>, value: Option<String>) -> Result<(), FingerprintError> {
        if self.entry.is_none() {
            return Err(self.wrong("`param` stands outside of a fingerprint"));
        }
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| self.wrong("`param` lacks its `name`"))?;
        let pos = pos.ok_or_else(|| self.wrong(format!("`param` {name} lacks its `pos`")))?;
        let pos: usize =
            pos.parse().map_err(|_| self.wrong(format!("`{pos}` is no `pos` for `param` {name}: use 0 or the number of a group")))?;
        let value = match (pos, value.filter(|value| !value.is_empty())) {
            (0, Some(text)) => Value::Text(text),
            (0, None) => return Err(self.wrong(format!("`param` {name} has the `pos` 0 and no `value`"))),
            (group, None) => Value::Group(group),
            (_, Some(_)) => return Err(self.wrong(format!("`param` {name} has both a group and a `value`: with a `value` the `pos` is 0"))),
        };
        let full = self.wrong(format!("more than {PARTS_MAX} parameters"));
        match &mut self.entry {
            Some(draft) if draft.params.len() < PARTS_MAX => draft.params.push(Param { name, value }),
            _ => return Err(full),
        }
        Ok(())
    }

    fn end(&mut self, name: &[u8]) -> Result<(), FingerprintError> {
        match name {
            b"description" => {
                let text = self.collected.split_whitespace().collect::<Vec<_>>().join(" ");
                if let Some(draft) = &mut self.entry {
                    draft.description = text;
                }
            }
            b"example" => {
                let example = self.entry.as_mut().and_then(|draft| draft.open.take());
                if let (Some(open), Some(dir)) = (example, self.examples) {
                    let example = self.example(open, dir)?;
                    let full = self.wrong(format!("more than {PARTS_MAX} examples"));
                    match &mut self.entry {
                        Some(draft) if draft.examples.len() < PARTS_MAX => draft.examples.push(example),
                        _ => return Err(full),
                    }
                }
            }
            b"fingerprint" => self.close()?,
            _ => {}
        }
        self.collected.clear();
        Ok(())
    }

    /// An example's text: in place, in base64, or in a file below the directory that is named as the fingerprints' file is.
    fn example(&self, open: Open, dir: &Path) -> Result<Example, FingerprintError> {
        let text = match &open.filename {
            None if open.base64 => {
                let packed: String = self.collected.split_whitespace().collect();
                BASE64.decode(packed).map_err(|error| self.wrong(format!("an example is not base64: {error}")))?
            }
            None => self.collected.clone().into_bytes(),
            Some(name) => {
                let plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if !plain {
                    return Err(self.wrong(format!("an example's file `{name}` leaves {}", dir.display())));
                }
                let path = dir.join(name);
                let read = |path: &Path| -> std::io::Result<Vec<u8>> {
                    let size = std::fs::metadata(path)?.len();
                    if size > EXAMPLE_MAX {
                        return Err(std::io::Error::other(format!("{size} bytes are too many: an example may have {EXAMPLE_MAX}")));
                    }
                    std::fs::read(path)
                };
                read(&path).map_err(|error| self.wrong(format!("read an example from {}: {error}", path.display())))?
            }
        };
        Ok(Example { line: open.line, text, expected: open.expected })
    }

    fn close(&mut self) -> Result<(), FingerprintError> {
        let Some(draft) = &self.entry else { return Ok(()) };
        let pattern = Flags::parse(&draft.flags).and_then(|flags| Pattern::new(draft.pattern.clone(), flags));
        let pattern = pattern.map_err(|what| self.wrong(what))?;
        let Some(draft) = self.entry.take() else { return Ok(()) };
        let Draft { line, description, params, examples, .. } = draft;
        let full = self.wrong(format!("more than {FINGERPRINTS_MAX} fingerprints"));
        match &mut self.set {
            Some(set) if set.entries.len() < FINGERPRINTS_MAX => set.entries.push(Entry { line, description, pattern, params, examples }),
            _ => return Err(full),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Set, FingerprintError> {
        if self.entry.is_some() {
            return Err(self.wrong("the file ends inside a fingerprint"));
        }
        let nothing = self.wrong("there is no `fingerprints` in this file");
        self.set.take().ok_or(nothing)
    }
}
