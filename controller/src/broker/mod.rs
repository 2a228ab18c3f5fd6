//! The MQTT broker as the controller sees it.
//!
//! The broker is a pipe and holds no truth: everything that passes it is repeated by its sender until the receiver has
//! acknowledged it in the application (the spool of a probe, the planner of the controller). Any broker that follows the
//! rules of [`acl`] serves; [`EmbeddedBroker`] is the one that needs no installation.
//!
//! The controller's other parts speak to the broker as an MQTT client, the embedded one included, and use this module only to
//! tell it who may no longer be connected.

pub mod acl;
mod embedded;
mod gate;
mod guard;
mod sessions;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use picket_wire::ids::{ProbeId, Role};

use crate::pki::{Crl, Peer, PkiError, Serial, Tls};

pub use acl::{Action, Principal};
pub use embedded::{Config, EmbeddedBroker};
pub use sessions::SessionInfo;

/// Why a broker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A listener could not be opened.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What the controller asks of a broker beyond MQTT.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Makes `crl` the one list that counts, for new connections and for those that exist: every session whose certificate it
    /// revokes is cut at once. Gives the number of sessions cut. A list older than the one in use changes nothing.
    fn update_crl(&self, crl: &Crl) -> Result<usize, BrokerError>;

    /// Uses a new server certificate for connections from now on; sessions go on.
    fn update_tls(&self, tls: &Tls, crl: &Crl) -> Result<(), BrokerError>;

    /// Cuts every session of `who`, who may come back; gives their number. Call it also when a probe has lost a role:
    /// subscriptions are judged when they are made.
    fn disconnect(&self, who: &Principal) -> usize;

    /// Who is connected.
    fn sessions(&self) -> Vec<SessionInfo>;

    /// Ends all sessions and listeners; returns when they are gone.
    async fn shutdown(&self);
}

/// What a broker asks of the controller.
///
/// None of the plain methods may block: they are called in the middle of the connections' work.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// The roles that a probe holds; none for a probe that is not known.
    fn roles(&self, probe: &ProbeId) -> Vec<Role>;

    /// Whether a peer with a valid certificate may connect at all (a probe that was removed may not).
    fn admit(&self, _peer: &Peer) -> bool {
        true
    }

    /// Whether a dashboard's user name and password are right. May take its time; few calls run at once.
    async fn verify_dashboard(&self, user: &str, password: &[u8]) -> bool;

    /// Hears what happens.
    fn event(&self, _event: Event) {}
}

/// Why a connection was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too many connections, or too many handshakes at once, from there or altogether.
    Busy,
    /// TLS failed or took too long: no certificate, a foreign or revoked one, or no TLS at all.
    Tls(String),
    /// The certificate is valid but names nobody we know how to treat.
    Nobody,
    /// The certificate is revoked.
    Revoked,
    /// [`Hooks::admit`] said no.
    NotAdmitted,
    /// Not the protocol version of this listener.
    Protocol(u8),
    /// The client id is not the certificate's common name.
    ClientId(String),
    /// The last will is not allowed; its topic.
    Will(String),
    /// User name or password is wrong; the user name.
    Password(String),
}

/// What happens at the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session began.
    Connected {
        /// Whose.
        who: Principal,
        /// By which certificate.
        serial: Option<Serial>,
        /// From where.
        peer: SocketAddr,
    },
    /// A session ended, for whatever reason.
    Disconnected {
        /// Whose and which.
        session: SessionInfo,
    },
    /// A second connection with the same identity came: the older session was cut, since it is usually the same box behind a
    /// link that broke. Two boxes with one identity show as takeovers that go on, from two addresses.
    TakenOver {
        /// The session that was cut.
        old: SessionInfo,
        /// Where the new one comes from.
        peer: SocketAddr,
        /// The certificate of the new one.
        serial: Option<Serial>,
    },
    /// A connection was refused.
    Refused {
        /// From where.
        peer: SocketAddr,
        /// As whom, where that was clear.
        who: Option<Principal>,
        /// Why.
        why: Refusal,
    },
    /// Somebody tried what they may not. For a publication of a probe or controller the session was cut.
    Denied {
        /// Who.
        who: Principal,
        /// What.
        action: Action,
        /// On which topic or filter.
        topic: String,
    },
}

/// Bounds of the embedded broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest MQTT packet in bytes; a longer one ends the session. Default 256 KiB.
    pub packet: usize,
    /// Fleet connections at once. Default 16,384; the process must be allowed as many open files.
    pub connections: usize,
    /// Dashboard connections at once. Default 256.
    pub dashboards: usize,
    /// TLS handshakes at once, per listener. Default 512.
    pub handshakes: usize,
    /// TLS handshakes at once from one address. Default 64: many boxes may share one behind NAT.
    pub handshakes_per_address: usize,
    /// Time for one TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Messages kept for one subscriber that does not read, beside the 256 that are on their way. Default 4,096.
    pub queued_messages: usize,
    /// Bytes kept for one subscriber that does not read. Default 32 MiB.
    pub queued_bytes: usize,
    /// Password checks at once. Default 4.
    pub password_checks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet: 256 * 1024,
            connections: 16_384,
            dashboards: 256,
            handshakes: 512,
            handshakes_per_address: 64,
            handshake_timeout: Duration::from_secs(10),
            queued_messages: 4096,
            queued_bytes: 32 * 1024 * 1024,
            password_checks: 4,
        }
    }
}

/// The loopback address to connect to where a listener is bound to all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
