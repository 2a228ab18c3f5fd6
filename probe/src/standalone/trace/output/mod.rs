//! Paths and graphs in the forms that people and their tools read.
//!
//! It must not know engines, stations or signals.
//!
//! **Invariant:** a form is only told what it can express: see [`PathOutput::draws_graphs`].

use core::net::IpAddr;
use core::time::Duration;
use std::io::{self, Write};
use std::time::SystemTime;

use clap::ValueEnum;
use picket_wire::trace::{Graph, Path};

use crate::net::engine::Source;
use crate::standalone::Outcome;
use crate::standalone::output::file::{Destination, OutputError, OutputFile};
use crate::standalone::targets::Names;
use crate::trace::report::Summary;
use crate::trace::spec::TracePlan;
use crate::trace::statistics::{HopDelta, Statistics};

mod atlas;
mod ndjson;
mod nmap_xml;
mod report;
mod table;

/// How paths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PathOutput {
    /// For people: a line for each hop.
    Table,
    /// For programs: one JSON object per path, then the sums.
    Ndjson,
    /// As RIPE Atlas tells traceroutes: one JSON object per path.
    Atlas,
    /// Nmap's XML (1.05), with a host and its trace for each path.
    #[value(alias = "xml")]
    NmapXml,
}

impl PathOutput {
    /// Whether it can express all ways to a destination.
    pub(super) fn draws_graphs(self) -> bool {
        matches!(self, PathOutput::Table | PathOutput::Ndjson)
    }

    /// Whether it can express many paths to one destination.
    pub(super) fn goes_on(self) -> bool {
        !matches!(self, PathOutput::NmapXml)
    }

    fn form(self) -> Box<dyn Form> {
        match self {
            PathOutput::Table => Box::new(table::Table),
            PathOutput::Ndjson => Box::new(ndjson::Ndjson),
            PathOutput::Atlas => Box::new(atlas::Atlas),
            PathOutput::NmapXml => Box::new(nmap_xml::NmapXml::default()),
        }
    }
}

/// What is known before the first path.
pub(super) struct Head {
    pub(super) plan: TracePlan,
    /// Names that destinations were given by.
    pub(super) names: Names,
    pub(super) source: Source,
    /// The command line, for those forms that keep it.
    pub(super) arguments: String,
    pub(super) started: SystemTime,
    /// Whether nothing is to be told of paths that are only taken for their sums.
    pub(super) sums_only: bool,
}

impl Head {
    /// The name that an address was given by.
    fn name(&self, addr: IpAddr) -> Option<&str> {
        self.names.iter().find(|(_, addrs)| addrs.contains(&addr)).map(|(name, _)| name.as_str())
    }

    /// The port that is asked, where there is one.
    fn port(&self) -> Option<u16> {
        (self.plan.port != 0).then_some(self.plan.port)
    }

    /// Where a packet to `dst` is sent from.
    fn source(&self, dst: IpAddr) -> Option<IpAddr> {
        match dst {
            IpAddr::V4(_) => self.source.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.source.v6.map(IpAddr::V6),
        }
    }
}

/// A path with its times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traced<'a> {
    pub(super) path: &'a Path,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
}

/// A path of many to its destination.
pub(super) struct Again<'a> {
    /// The how manieth it is, from one on.
    pub(super) cycle: u64,
    pub(super) traced: Traced<'a>,
    /// What it saw.
    pub(super) deltas: &'a [HopDelta],
}

/// How a run ended.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) sums: Summary,
    pub(super) took: Duration,
    pub(super) at: SystemTime,
}

/// A form of paths.
trait Form {
    /// Before everything else.
    fn begin(&mut self, _head: &Head, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// A path.
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()>;

    /// All ways to a destination; only told to forms that can express it.
    fn graph(&mut self, _head: &Head, _graph: &Graph, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// One more path to a destination.
    fn again(&mut self, _head: &Head, _again: &Again<'_>, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// What all paths to a destination come to.
    fn statistics(&mut self, _head: &Head, _statistics: &Statistics, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// The run has ended, interrupted or not.
    fn end(&mut self, _head: &Head, _end: &End, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// Writes paths as they are told, in all forms that were asked for.
pub(super) struct Printer {
    head: Head,
    channels: Vec<(Box<dyn Form>, Destination)>,
}

impl Printer {
    /// Opens all files, so that a wrong name is said before the first packet.
    pub(super) fn open(head: Head, files: &[OutputFile<PathOutput>]) -> Result<Self, OutputError> {
        let open = |file: &OutputFile<PathOutput>| Ok((file.format.form(), Destination::open(&file.path)?));
        let mut printer = Self { head, channels: files.iter().map(open).collect::<Result<_, OutputError>>()? };
        printer.each(|form, head, out| form.begin(head, out))?;
        Ok(printer)
    }

    fn each(&mut self, tell: impl Fn(&mut dyn Form, &Head, &mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
        self.channels.iter_mut().try_for_each(|(form, to)| to.write(|out| tell(form.as_mut(), &self.head, out)))
    }

    pub(super) fn path(&mut self, traced: &Traced<'_>) -> Result<(), OutputError> {
        self.each(|form, head, out| form.path(head, traced, out))
    }

    pub(super) fn graph(&mut self, graph: &Graph) -> Result<(), OutputError> {
        self.each(|form, head, out| form.graph(head, graph, out))
    }

    pub(super) fn again(&mut self, again: &Again<'_>) -> Result<(), OutputError> {
        self.each(|form, head, out| form.again(head, again, out))
    }

    pub(super) fn statistics(&mut self, statistics: &Statistics) -> Result<(), OutputError> {
        self.each(|form, head, out| form.statistics(head, statistics, out))
    }

    /// The table of statistics as it stands, for a terminal.
    pub(super) fn report(&self, statistics: &Statistics) -> String {
        report::lines(&self.head, statistics).join("\n")
    }

    /// Ends all forms and gives the files their names.
    pub(super) fn end(&mut self, end: &End) -> Result<(), OutputError> {
        self.each(|form, head, out| form.end(head, end, out))?;
        self.channels.iter_mut().try_for_each(|(_, to)| to.commit())
    }
}

fn milliseconds(us: u32) -> f64 {
    f64::from(us) / 1e3
}

#[cfg(test)]
mod tests;
