//! The names under which clients reach the controller.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls_pki_types::DnsName;

/// Why a text cannot be a name of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{input}` is neither a host name nor an IP address")]
pub struct NameError {
    /// The refused text.
    pub input: String,
}

/// Host names and addresses for the server's certificate.
///
/// **Invariant:** `localhost`, `127.0.0.1` and `::1` are always among them, so that the controller's own clients can verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    hosts: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            hosts: BTreeSet::from(["localhost".to_owned()]),
            addresses: BTreeSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        }
    }
}

impl Names {
    /// Reads each text as an address or a host name.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, NameError> {
        let mut names = Self::default();
        for text in texts {
            names.add(text)?;
        }
        Ok(names)
    }

    /// Adds one address or host name; host names are kept in lower case.
    pub fn add(&mut self, text: &str) -> Result<(), NameError> {
        if let Ok(address) = text.parse() {
            self.addresses.insert(address);
            return Ok(());
        }
        let host = text.trim_end_matches('.').to_ascii_lowercase();
        DnsName::try_from(host.as_str()).map_err(|_| NameError { input: text.to_owned() })?;
        self.hosts.insert(host);
        Ok(())
    }

    /// Adds one address.
    pub fn add_address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    /// The host names in order.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(String::as_str)
    }

    /// The addresses in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_checked() {
        let names = Names::parse(["Controller.Example.", "192.0.2.7", "2001:db8::7", "controller.example"]).unwrap();
        assert_eq!(names.hosts().collect::<Vec<_>>(), ["controller.example", "localhost"]);
        assert_eq!(names.addresses().count(), 4);
        for bad in ["", "a b", "https://x", "*.*", "x_/y"] {
            assert!(Names::parse([bad]).is_err(), "{bad}");
        }
    }
}
