//! Stored paths as Nmap's XML: a host for each, with the way to it in `<trace>`.
//!
//! What is written is the latest of each probe, destination and flow, or a job's. Nmap has one host for each address, and here there may be several: the
//! comment of each says from where and how it was traced.

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use picket_wire::nmap_xml::{self, End, Traced};
use picket_wire::trace::PathEnd;

use super::{path, seconds};
use crate::cli::client::Query;
use crate::view::PathRow;

const PROGRAM: &str = concat!("picket ", env!("CARGO_PKG_VERSION"));

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A document that is being written.
pub(super) struct Document {
    begun: Instant,
    up: u64,
    total: u64,
    /// The destination before, and how often one came again.
    last: Option<IpAddr>,
    again: usize,
}

impl Document {
    /// With its beginning. What was asked for is written there, and nothing else of the command line: that can hold a token.
    pub(super) fn begin(query: &Query) -> (Self, String) {
        let selected = query.iter().filter(|(key, _)| ["addr", "job", "site", "probe"].contains(key));
        let words = selected.map(|(key, value)| if *key == "addr" { value.clone() } else { format!("--{key} {value}") });
        let arguments: Vec<String> = ["picket paths".to_owned()].into_iter().chain(words).collect();
        let begin = nmap_xml::begin(PROGRAM, &arguments.join(" "), now(), "");
        (Self { begun: Instant::now(), up: 0, total: 0, last: None, again: 0 }, begin)
    }

    /// A path; `given` is the name that its destination was given by.
    pub(super) fn host(&mut self, row: &PathRow, given: Option<&str>) -> String {
        self.total += 1;
        self.up += u64::from(row.end == PathEnd::Reached);
        self.again += usize::from(self.last.replace(row.dst) == Some(row.dst));
        let known = row.names.iter().flat_map(|names| &names.addrs);
        let names = known.filter_map(|(addr, who)| Some((*addr, who.names.first()?.clone()))).collect();
        let comment = format!("{} from probe {}, site {}, job {}", row.flow, row.probe, row.site, row.job);
        let traced = Traced {
            path: &path(row),
            method: row.asked.method,
            port: row.asked.port,
            began: seconds(&row.began),
            ended: seconds(&row.ended),
            comment: Some(&comment),
            name: given,
            names: &names,
        };
        traced.host()
    }

    /// How many hosts have an address that another one has.
    pub(super) fn again(&self) -> usize {
        self.again
    }

    /// Its end.
    pub(super) fn end(&self) -> String {
        nmap_xml::end(&End {
            verb: "traced",
            complete: true,
            ended: now(),
            took: self.begun.elapsed(),
            up: self.up,
            down: self.total - self.up,
            total: self.total.into(),
        })
    }
}
