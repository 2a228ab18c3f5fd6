//! What serves on an open port, as service detection found it.
//!
//! **Invariant:** of a batch that passed [`ServiceBatch::check`], every text and list is within the bounds stated here.

use serde::{Deserialize, Serialize};

use crate::ids::LeaseId;
use crate::result::EXTRAS_MAX;
use crate::units::UnixMillis;

/// Longest text in a [`Service`], in bytes.
pub const TEXT_MAX: usize = 256;
/// Most facts, and most CPE names, of a [`Service`].
pub const FACTS_MAX: usize = 48;
/// Longest banner that is kept, in bytes.
pub const BANNER_MAX: usize = 512;

/// What serves on the open ports of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBatch {
    /// The lease that the ports were found under.
    pub lease: LeaseId,
    /// When the last of them was asked, by the probe's trusted clock.
    pub at: UnixMillis,
    /// What was found, at most [`EXTRAS_MAX`].
    pub found: Vec<ServiceFound>,
}

/// What asking one port came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFound {
    /// The port's position in the job's space.
    pub position: u64,
    /// What it came to.
    pub outcome: ServiceOutcome,
}

/// What asking a port came to. Every open port gets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceOutcome {
    /// It is known what serves there.
    Identified(Box<Service>),
    /// Something answers, and nobody knows what; its first bytes.
    Unidentified {
        /// The first bytes, at most [`BANNER_MAX`].
        banner: Vec<u8>,
    },
    /// The connection stood, and nothing that was said brought an answer.
    Silent,
    /// A port of a fragile device: shaken hands, said nothing, closed in order.
    Spared,
    /// No connection came about, or it broke before anything was said; why, in a few words.
    Lost(String),
    /// The policy in force when it came to asking forbids the address.
    Refused,
}

impl ServiceOutcome {
    /// A word for people and tools.
    pub fn as_str(&self) -> &'static str {
        match self {
            ServiceOutcome::Identified(_) => "identified",
            ServiceOutcome::Unidentified { .. } => "unidentified",
            ServiceOutcome::Silent => "silent",
            ServiceOutcome::Spared => "spared",
            ServiceOutcome::Lost(_) => "lost",
            ServiceOutcome::Refused => "refused",
        }
    }
}

/// An identified service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Service {
    /// The protocol, in lower case, by its IANA service name where it has one: `ssh`, `http`, `postgresql`.
    pub name: String,
    /// Whether it is spoken inside TLS.
    pub tls: bool,
    /// The product: `OpenSSH`, `nginx`.
    pub product: Option<String>,
    /// Its version: `9.2p1`.
    pub version: Option<String>,
    /// More that the product says of itself: `Debian 2+deb12u3`.
    pub extra: Option<String>,
    /// The operating system, where the service tells.
    pub os: Option<String>,
    /// The name that the host gives itself.
    pub hostname: Option<String>,
    /// The kind of device, where the service tells: `printer`.
    pub device: Option<String>,
    /// CPE 2.3 or 2.2 names, as the fingerprint gives them.
    pub cpes: Vec<String>,
    /// What else was learnt, as dotted names and texts in the order found: `tls.version`, `tls.subject`, `http.status`,
    /// `ssh.hostkey.sha256`. All names are listed in the documentation of results.
    pub facts: Vec<(String, String)>,
    /// The first bytes that the service said, at most [`BANNER_MAX`].
    pub banner: Vec<u8>,
}

/// Why a batch of services is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("services of lease {lease}: {what} has {count}, at most {max} are allowed")]
pub struct ServiceError {
    /// The lease.
    pub lease: LeaseId,
    /// Which text or list.
    pub what: &'static str,
    /// Its length.
    pub count: usize,
    /// The bound.
    pub max: usize,
}

impl ServiceBatch {
    /// Verifies the bounds.
    pub fn check(&self) -> Result<(), ServiceError> {
        let lease = self.lease;
        let bound = |what, count, max| if count <= max { Ok(()) } else { Err(ServiceError { lease, what, count, max }) };
        bound("the batch", self.found.len(), EXTRAS_MAX)?;
        for found in &self.found {
            match &found.outcome {
                ServiceOutcome::Identified(service) => {
                    for text in service.texts() {
                        bound("a text", text.len(), TEXT_MAX)?;
                    }
                    bound("the list of facts", service.facts.len(), FACTS_MAX)?;
                    bound("the list of CPE names", service.cpes.len(), FACTS_MAX)?;
                    bound("a banner", service.banner.len(), BANNER_MAX)?;
                }
                ServiceOutcome::Unidentified { banner } => bound("a banner", banner.len(), BANNER_MAX)?,
                ServiceOutcome::Lost(why) => bound("a reason", why.len(), TEXT_MAX)?,
                ServiceOutcome::Silent | ServiceOutcome::Spared | ServiceOutcome::Refused => {}
            }
        }
        Ok(())
    }
}

impl Service {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let optional = [&self.product, &self.version, &self.extra, &self.os, &self.hostname, &self.device];
        let facts = self.facts.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let cpes = self.cpes.iter().map(String::as_str);
        core::iter::once(self.name.as_str()).chain(optional.into_iter().flatten().map(String::as_str)).chain(facts).chain(cpes)
    }

    /// The value of a fact.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Cuts every text and list down to its bound; a text is cut between characters.
    pub fn clip(&mut self) {
        fn cut(text: &mut String) {
            text.truncate(text.floor_char_boundary(TEXT_MAX));
        }
        cut(&mut self.name);
        for text in [&mut self.product, &mut self.version, &mut self.extra, &mut self.os, &mut self.hostname, &mut self.device] {
            text.iter_mut().for_each(cut);
        }
        self.facts.truncate(FACTS_MAX);
        self.facts.iter_mut().for_each(|(name, value)| {
            cut(name);
            cut(value);
        });
        self.cpes.truncate(FACTS_MAX);
        self.cpes.iter_mut().for_each(cut);
        self.banner.truncate(BANNER_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;

    #[test]
    fn what_was_clipped_is_within_bounds() {
        let long = "ü".repeat(1_000);
        let mut service = Service {
            name: long.clone(),
            product: Some(long.clone()),
            facts: vec![(long.clone(), long.clone()); 100],
            cpes: vec![long; 100],
            banner: vec![7; 5_000],
            ..Service::default()
        };
        let batch = |service: &Service| ServiceBatch {
            lease: LeaseId { job: JobId(1), grant: 1 },
            at: UnixMillis(0),
            found: vec![ServiceFound { position: 3, outcome: ServiceOutcome::Identified(Box::new(service.clone())) }],
        };
        assert!(batch(&service).check().is_err());
        service.clip();
        assert_eq!(batch(&service).check(), Ok(()));
    }
}
