//! Where results go: standard output, and files that are written beside their place (`FILE.part`) and get their name at the end.
//!
//! **Invariant:** a file under its own name is whole; what a run that was killed leaves is visibly unfinished.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::OutputArg;
use crate::standalone::error::StandaloneError;

/// A format with its file, as typed: `nmap-xml=scan.xml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile<F = OutputArg> {
    /// The form.
    pub format: F,
    /// The file; `-` is standard output.
    pub path: PathBuf,
}

impl<F: ValueEnum> core::str::FromStr for OutputFile<F> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(|| {
            format!("`{text}` names no format and file: write for example nmap-xml=scan.xml, or ndjson=- for standard output")
        })?;
        let format = F::from_str(format, false).map_err(|_| {
            let known: Vec<_> = F::value_variants().iter().filter_map(|form| form.to_possible_value()).collect();
            let known: Vec<_> = known.iter().map(clap::builder::PossibleValue::get_name).collect();
            format!("there is no output format `{format}`: use {}", known.join(", "))
        })?;
        Ok(Self { format, path: path.into() })
    }
}

/// Where one format goes.
pub(in crate::standalone) enum Destination {
    Stdout(BufWriter<Stdout>),
    File { to: BufWriter<File>, part: PathBuf, path: PathBuf },
}

impl Destination {
    /// Opens it, so that a wrong name is said before the first packet.
    pub(in crate::standalone) fn open(path: &Path) -> Result<Self, OutputError> {
        Self::opened(path).map_err(|source| OutputError { to: path.display().to_string(), source })
    }

    fn opened(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        Ok(Self::File { to: BufWriter::new(File::create(&part)?), part, path: path.to_owned() })
    }

    /// What it is written to.
    pub(in crate::standalone) fn out(&mut self) -> &mut dyn Write {
        match self {
            Destination::Stdout(to) => to,
            Destination::File { to, .. } => to,
        }
    }

    /// What `tell` writes, flushed.
    pub(in crate::standalone) fn write(&mut self, tell: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
        let told = tell(self.out()).and_then(|()| self.out().flush());
        told.map_err(|source| OutputError { to: self.name(), source })
    }

    /// Gives the file its own name, where the run came to its end.
    pub(in crate::standalone) fn commit(&mut self) -> Result<(), OutputError> {
        self.committed().map_err(|source| OutputError { to: self.name(), source })
    }

    fn committed(&mut self) -> io::Result<()> {
        self.out().flush()?;
        match self {
            Destination::Stdout(_) => Ok(()),
            Destination::File { to, part, path } => {
                to.get_ref().sync_all()?;
                std::fs::rename(part, path)
            }
        }
    }

    /// Gives up what was written of a file.
    #[cfg(feature = "libpcap")]
    pub(in crate::standalone) fn discard(self) {
        if let Self::File { part, .. } = self {
            // Where it cannot be removed, its name still says that it is no whole one.
            let _ = std::fs::remove_file(part);
        }
    }

    fn name(&self) -> String {
        match self {
            Destination::Stdout(_) => "standard output".to_owned(),
            Destination::File { path, .. } => path.display().to_string(),
        }
    }
}

/// Why results cannot be written; names the destination.
#[derive(Debug, thiserror::Error)]
#[error("write results to {to}")]
pub struct OutputError {
    /// The file, or `standard output`.
    pub to: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// All outputs of a run: `files`, and what goes to standard output, which is the table where nothing else goes there.
///
/// # Errors
/// Two forms for one destination.
pub(in crate::standalone) fn chosen<F: Clone>(
    stdout: Option<F>,
    table: F,
    files: &[OutputFile<F>],
) -> Result<Vec<OutputFile<F>>, StandaloneError> {
    let mut outputs = files.to_vec();
    let taken = outputs.iter().filter(|output| output.path.as_os_str() == "-").count();
    match (stdout, taken) {
        (Some(_), 1..) | (None, 2..) => return Err(StandaloneError::TwoOnStdout),
        (None, 1) => {}
        (format, _) => outputs.insert(0, OutputFile { format: format.unwrap_or(table), path: "-".into() }),
    }
    let mut paths: Vec<_> = outputs.iter().map(|output| &output.path).collect();
    paths.sort_unstable();
    if let Some(pair) = paths.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(StandaloneError::SameFile(pair.first().map(|path| path.display().to_string()).unwrap_or_default()));
    }
    Ok(outputs)
}
