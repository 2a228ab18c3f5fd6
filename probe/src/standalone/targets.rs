//! Targets as people type them: on the command line, in files, on standard input; names included.
//!
//! Names are resolved here, once, and to all of their addresses; addresses are never looked up as names.

use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use picket_wire::addr::AddrSet;
use picket_wire::target::{self, HostName, TargetItem};

/// Longest file of targets that is read. An IPv4 address on each line: a million of them.
const FILE_MAX: u64 = 16 << 20;

/// Why there are no targets.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Neither address nor name.
    #[error("{place}{source}")]
    Form {
        /// File and line, where it was not the command line.
        place: Place,
        /// What is wrong.
        source: target::TargetError,
    },
    /// The name has no address.
    #[error("{place}cannot resolve `{name}`")]
    Resolve {
        /// File and line, where it was not the command line.
        place: Place,
        /// The name.
        name: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("targets from {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where a target was named: nowhere in particular, or a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place(Option<(PathBuf, usize)>);

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match &self.0 {
            None => Ok(()),
            Some((path, line)) if path == Path::new("-") => write!(f, "standard input, line {line}: "),
            Some((path, line)) => write!(f, "{}, line {line}: ", path.display()),
        }
    }
}

/// Names, each with all of its addresses.
pub(super) type Names = Vec<(String, Vec<IpAddr>)>;

/// Addresses, and which of them came from names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) set: AddrSet,
    pub(super) names: Names,
}

/// What was typed, with the places.
#[derive(Debug, Default)]
pub(super) struct Texts {
    items: Vec<(Place, String)>,
}

impl Texts {
    /// From the command line; `-` stands for standard input.
    pub(super) fn arguments(&mut self, texts: &[String]) -> Result<(), TargetError> {
        for text in texts {
            match text.as_str() {
                "-" => self.file(Path::new("-"))?,
                _ => self.line(&Place::default(), text),
            }
        }
        Ok(())
    }

    /// From a file; `-` is standard input.
    pub(super) fn file(&mut self, path: &Path) -> Result<(), TargetError> {
        let text = read(path).map_err(|source| TargetError::File { path: path.to_owned(), source })?;
        for (number, line) in (1..).zip(text.lines()) {
            self.line(&Place(Some((path.to_owned(), number))), line);
        }
        Ok(())
    }

    fn line(&mut self, place: &Place, line: &str) {
        let line = line.split('#').next().unwrap_or_default();
        self.items.extend(target::split(line).into_iter().map(|item| (place.clone(), item.to_owned())));
    }

    /// Reads all items; `resolve` is asked for names.
    pub(super) fn parse(self, resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>>) -> Result<Targets, TargetError> {
        let mut names = Names::new();
        let mut pairs = Vec::new();
        for (place, item) in self.items {
            let mut look_up = |name: HostName| match names.iter().find(|(known, _)| known == name.as_str()) {
                Some((_, addrs)) => Ok(addrs.clone()),
                None => {
                    let name = name.as_str().to_owned();
                    let found =
                        resolve(&name).map_err(|source| TargetError::Resolve { place: place.clone(), name: name.clone(), source })?;
                    names.push((name, found.clone()));
                    Ok(found)
                }
            };
            match item.parse() {
                Ok(TargetItem::Set(set)) => pairs.extend(set.ranges()),
                Ok(TargetItem::Name(name)) => pairs.extend(look_up(name)?.into_iter().map(|addr| (addr, addr))),
                Ok(TargetItem::NamePrefix(name, bits)) => pairs.extend(target::around(&look_up(name)?, bits).ranges()),
                Err(source) => return Err(TargetError::Form { place, source }),
            }
        }
        let whole = |source: picket_wire::addr::AddrError| TargetError::Form { place: Place::default(), source: source.into() };
        Ok(Targets { set: AddrSet::try_from(pairs).map_err(whole)?, names })
    }
}

/// Targets from the command line and from files, names by the system's resolver.
pub(super) fn targets(arguments: &[String], files: &[PathBuf]) -> Result<Targets, TargetError> {
    let mut texts = Texts::default();
    texts.arguments(arguments)?;
    files.iter().try_for_each(|path| texts.file(path))?;
    texts.parse(system_resolver)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let taken = match path == Path::new("-") {
        true => io::stdin().lock().take(FILE_MAX + 1).read_to_string(&mut text)?,
        false => std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?,
    };
    match taken as u64 > FILE_MAX {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {FILE_MAX} bytes: name networks and ranges instead"))),
        false => Ok(text),
    }
}

/// All addresses that the system's resolver has for a name.
pub(super) fn system_resolver(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addrs: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|addr| addr.ip().to_canonical()).collect();
    addrs.sort_unstable();
    addrs.dedup();
    match addrs.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        false => Ok(addrs),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "printer.lan" => Ok(vec!["198.18.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }

    fn parse_text(text: &str) -> Result<Targets, String> {
        let mut texts = Texts::default();
        texts.arguments(&[text.to_owned()]).unwrap();
        texts.parse(lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn names_bring_all_their_addresses() {
        let targets = parse_text("198.18.1.0/30, printer.lan printer.lan").unwrap();
        assert_eq!(targets.set.len(), Some(6));
        assert_eq!(targets.names, [("printer.lan".to_owned(), lookup("printer.lan").unwrap())]);
        assert_eq!(parse_text("printer.lan/24 198.18.0-1.1,3").unwrap().set.len(), Some(256 + 2));
    }

    #[test]
    fn mistyped_addresses_are_not_taken_for_names() {
        for (text, message) in [
            ("198.18.0.300", "`300` in `198.18.0.300` is not an octet"),
            ("198.18.0.0/33", "no such prefix length"),
            ("http://printer.lan/", "`http://printer.lan/` is not an address"),
            ("nobody.lan", "cannot resolve `nobody.lan`"),
            ("a..b", "`a..b` is not an address"),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn files_have_comments_and_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("targets");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut texts = Texts::default();
            texts.file(&path).unwrap();
            texts.parse(lookup).map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), "DIR"))
        };
        let targets = read("# the lab\n198.18.0.0/30 198.18.1.1  # two on a line\r\n\n2001:db8::1,printer.lan\n").unwrap();
        assert_eq!((targets.set.len(), targets.names.len()), (Some(4 + 1 + 1 + 2), 1));
        let error = read("198.18.0.1\n\n198.18.0.2 198.18.0.0/33").unwrap_err();
        assert!(error.starts_with("DIR/targets, line 3: `198.18.0.0/33` has no such prefix length"), "{error}");
        assert!(read("nobody.lan").unwrap_err().starts_with("DIR/targets, line 1: cannot resolve `nobody.lan`"));
        assert_eq!(read("# nothing\n").unwrap(), Targets::default());
        let missing = Texts::default().file(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, TargetError::File { .. }));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "[0-9a-f.:/, #-]{0,60}") {
            let _ = parse_text(&text);
        }
    }
}
