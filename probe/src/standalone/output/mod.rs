//! Results in the forms that people and their tools read: one format may go to standard output, any number into files.
//!
//! It must not know engines, passes' order, signals or resume files.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use picket_wire::result::State;
use serde::{Deserialize, Serialize};

use super::results::{News, RunHead, Summary};

pub(super) mod file;
mod masscan;
mod ndjson;
mod nmap_xml;
mod table;

use file::Destination;
use file::{OutputError, OutputFile};

/// What writes it, as documents name it.
pub(super) const PROGRAM: &str = concat!("picket-probe ", env!("CARGO_PKG_VERSION"));

/// Seconds since 1970.
pub(super) fn stamp(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

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
            channels.push(Channel { format: format.format(head), to: Destination::open(path)? });
        }
        let mut outputs = Self { channels };
        outputs.each(|format, out| format.begin(out))?;
        Ok(outputs)
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Format, &mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
        for Channel { format, to } in &mut self.channels {
            to.write(|out| tell(format.as_mut(), out))?;
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
        self.channels.iter_mut().try_for_each(|channel| channel.to.commit())
    }
}

/// Text from the network without what could move a terminal's cursor or break a line.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || ('\u{200e}'..='\u{202e}').contains(&c) { '\u{fffd}' } else { c }).collect()
}
