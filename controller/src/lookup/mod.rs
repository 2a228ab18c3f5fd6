//! Who is behind an address: its names by reverse DNS, and the autonomous system that announces it.
//!
//! Only the controller asks, when somebody wants to read it, and never while something is measured: what a probe tells stays as it was told.
//! Both are off until they are configured. This module must not know what the addresses are from.
//!
//! **Invariant:** an answer is not later than the time that is allowed for it ([`Settings::timeout`]), whatever the resolver and the disk do;
//! what is lacking then is said.
//! **Invariant:** a name holds nothing but visible ASCII, whatever a PTR record holds.

mod dns;
mod names;
mod origins;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use picket_wire::addr::canonical;
use tokio::time::Instant;

pub use names::{Pointer, ResolveError, Resolver};
pub use table::{Origin, Table, TableError};

use names::Names;
use origins::Origins;

/// How long an answer waits for names where nobody says how long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// What is looked up, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether names are asked for.
    pub reverse: bool,
    /// Who is asked; the system's resolvers where nobody is named.
    pub server: Option<SocketAddr>,
    /// How long an answer waits.
    pub timeout: Duration,
    /// A table of networks as iptoasn.com publishes it, plain or compressed by gzip.
    pub origin: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reverse: false, server: None, timeout: DEFAULT_TIMEOUT, origin: None }
    }
}

/// What is known of one address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// Its names.
    pub names: Vec<String>,
    /// Who announces it.
    pub origin: Option<Origin>,
}

/// What is known of several addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Those of which something is known.
    pub known: BTreeMap<IpAddr, Known>,
    /// What could not be found out, in words.
    pub lacking: Vec<String>,
}

/// What looks it up.
#[derive(Debug)]
pub struct Lookup {
    names: Option<Names>,
    origins: Option<Arc<Origins>>,
    timeout: Duration,
}

impl Lookup {
    /// As it is configured. Nothing is asked or read yet.
    pub fn new(settings: &Settings) -> Self {
        let resolver = settings.reverse.then(|| dns::Dns::new(settings.server, settings.timeout));
        Self::with_resolver(settings, resolver.map(|dns| Arc::new(dns) as Arc<dyn Resolver>))
    }

    /// Like [`Lookup::new`], with another resolver than the one of the settings.
    pub fn with_resolver(settings: &Settings, resolver: Option<Arc<dyn Resolver>>) -> Self {
        let origins = settings.origin.as_ref().map(|path| Arc::new(Origins::new(path.clone())));
        Self { names: resolver.map(|resolver| Names::new(resolver, settings.timeout)), origins, timeout: settings.timeout }
    }

    /// What is known of these addresses.
    pub async fn who(&self, addrs: &BTreeSet<IpAddr>) -> Found {
        let mut found = Found::default();
        if self.names.is_none() && self.origins.is_none() {
            found.lacking.push("this controller looks nothing up: set `lookup.reverse` or `lookup.origin` in its configuration".to_owned());
            return found;
        }
        let until = Instant::now() + self.timeout;
        let plain: BTreeSet<IpAddr> = addrs.iter().copied().map(canonical).collect();
        let names = async {
            match &self.names {
                Some(names) => names.of(&plain).await,
                None => (BTreeMap::new(), None),
            }
        };
        let table = async {
            match &self.origins {
                Some(origins) => origins.table(until).await,
                None => (None, None),
            }
        };
        let ((names, nameless), (table, unread)) = tokio::join!(names, table);
        found.lacking.extend(nameless);
        found.lacking.extend(unread);
        for addr in addrs {
            let plain = canonical(*addr);
            let known = Known {
                names: names.get(&plain).cloned().unwrap_or_default(),
                origin: table.as_ref().and_then(|table| table.origin(plain)),
            };
            if known != Known::default() {
                found.known.insert(*addr, known);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
