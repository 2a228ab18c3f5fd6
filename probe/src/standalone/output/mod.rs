//! Results in the forms that people and their tools read: one format may go to standard output, any number into files.
//!
//! A file is written beside its place (`FILE.part`) and renamed when the run has ended, interrupted or not: a file under its own
//! name is always whole. What a run that was killed leaves is visibly unfinished.
//!
//! It must not know engines, passes' order, signals or resume files.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use picket_wire::result::State;
use serde::{Deserialize, Serialize};

use super::results::{News, RunHead, Summary};

mod masscan;
mod ndjson;
mod nmap_xml;
mod table;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum OutputArg {
    /// For people: one row per open port or live host, then the coverage.
    Table,
    /// For programs: one JSON object per line; every answer, then the coverage.
    Ndjson,
    /// Nmap's XML (1.05), as ndiff, libnmap and vulnerability managers read it; written at the end.
    NmapXml,
    /// Lines as of masscan -oL.
    MasscanList,
    /// JSON as of masscan -oJ.
    MasscanJson,
}

impl OutputArg {
    fn format(self, head: &RunHead) -> Box<dyn Format> {
        match self {
            OutputArg::Table => Box::new(table::Table::new(head)),
            OutputArg::Ndjson => Box::new(ndjson::Ndjson),
            OutputArg::NmapXml => Box::new(nmap_xml::NmapXml::new(head.clone())),
            OutputArg::MasscanList => Box::new(masscan::List::new(head.all)),
            OutputArg::MasscanJson => Box::new(masscan::Json::new(head.all)),
        }
    }
}

/// A form of results. Everything is written to `out`, which is flushed after each call.
trait Format {
    /// Before everything else.
    fn begin(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// Whether it has a use for answers of this state.
    fn wants(&self, _state: State) -> bool {
        true
    }

    /// Something was found; of answers at least those that are wanted.
    fn news(&mut self, news: &News<'_>, out: &mut dyn Write) -> io::Result<()>;

    /// The run has ended, interrupted or not.
    fn end(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()>;
}

/// A format with its file, as typed: `nmap-xml=scan.xml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// The form.
    pub format: OutputArg,
    /// The file; `-` is standard output.
    pub path: PathBuf,
}

impl core::str::FromStr for OutputFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(|| {
            format!("`{text}` names no format and file: write for example nmap-xml=scan.xml, or ndjson=- for standard output")
        })?;
        let format = OutputArg::from_str(format, false).map_err(|_| {
            let known: Vec<_> = OutputArg::value_variants().iter().filter_map(|form| form.to_possible_value()).collect();
            let known: Vec<_> = known.iter().map(clap::builder::PossibleValue::get_name).collect();
            format!("there is no output format `{format}`: use {}", known.join(", "))
        })?;
        Ok(Self { format, path: path.into() })
    }
}

enum Destination {
    Stdout(BufWriter<Stdout>),
    File { to: BufWriter<File>, part: PathBuf, path: PathBuf },
}

impl Destination {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        Ok(Self::File { to: BufWriter::new(File::create(&part)?), part, path: path.to_owned() })
    }

    fn write(&mut self) -> &mut dyn Write {
        match self {
            Destination::Stdout(to) => to,
            Destination::File { to, .. } => to,
        }
    }

    /// Gives the file its own name, where the run came to its end.
    fn commit(&mut self) -> io::Result<()> {
        self.write().flush()?;
        match self {
            Destination::Stdout(_) => Ok(()),
            Destination::File { to, part, path } => {
                to.get_ref().sync_all()?;
                std::fs::rename(part, path)
            }
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

struct Channel {
    format: Box<dyn Format>,
    to: Destination,
}

/// All outputs of a run.
pub(super) struct Outputs {
    channels: Vec<Channel>,
}

impl Outputs {
    /// Opens all files, so that a wrong name is said before the first packet.
    pub(super) fn open(files: &[OutputFile], head: &RunHead) -> Result<Self, OutputError> {
        let mut channels = Vec::new();
        for OutputFile { format, path } in files {
            let to = Destination::open(path).map_err(|source| OutputError { to: path.display().to_string(), source })?;
            channels.push(Channel { format: format.format(head), to });
        }
        let mut outputs = Self { channels };
        outputs.each(|format, out| format.begin(out))?;
        Ok(outputs)
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Format, &mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
        for Channel { format, to } in &mut self.channels {
            let told = tell(format.as_mut(), to.write()).and_then(|()| to.write().flush());
            told.map_err(|source| OutputError { to: to.name(), source })?;
        }
        Ok(())
    }

    /// Whether any format has a use for answers of this state.
    pub(super) fn wants(&self, state: State) -> bool {
        self.channels.iter().any(|channel| channel.format.wants(state))
    }

    /// Tells all formats.
    pub(super) fn news(&mut self, news: &News<'_>) -> Result<(), OutputError> {
        self.each(|format, out| format.news(news, out))
    }

    /// Ends all formats and gives the files their names.
    pub(super) fn end(&mut self, summary: &Summary) -> Result<(), OutputError> {
        self.each(|format, out| format.end(summary, out))?;
        for channel in &mut self.channels {
            channel.to.commit().map_err(|source| OutputError { to: channel.to.name(), source })?;
        }
        Ok(())
    }
}

/// Text from the network without what could move a terminal's cursor or break a line.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || ('\u{200e}'..='\u{202e}').contains(&c) { '\u{fffd}' } else { c }).collect()
}
