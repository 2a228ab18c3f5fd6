//! One dialogue per protocol, each a file; here is their list.

mod http;

use core::net::IpAddr;

use picket_wire::job::Transport;
use picket_wire::units::UnixMillis;

use super::dialogue::Dialogue;

/// What a dialogue may know of where it takes place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) addr: IpAddr,
    pub(super) port: u16,
    pub(super) transport: Transport,
    /// Whether it takes place inside TLS.
    pub(super) tls: bool,
    /// Fresh random bytes, for what must not be the same twice.
    pub(super) random: [u8; 32],
    /// The trusted time.
    pub(super) now: Option<UnixMillis>,
}

/// The protocols that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Amqp,
    Coap,
    Dns,
    Ftp,
    Http,
    Ike,
    Imap,
    Ipmi,
    Ldap,
    Memcached,
    Modbus,
    Mongo,
    Mqtt,
    Mysql,
    NetbiosName,
    Ntp,
    Pop3,
    Postgres,
    Rdp,
    Redis,
    Rpc,
    Rtsp,
    Sip,
    Smb,
    Smtp,
    Snmp,
    Ssdp,
    Ssh,
    Stun,
    Telnet,
    Tftp,
    /// Not a dialogue of its own: others take place inside it.
    Tls,
    Vnc,
}

impl Protocol {
    /// Its IANA service name.
    pub(super) fn name(self) -> &'static str {
        use Protocol::*;
        match self {
            Amqp => "amqp",
            Coap => "coap",
            Dns => "domain",
            Ftp => "ftp",
            Http => "http",
            Ike => "isakmp",
            Imap => "imap",
            Ipmi => "asf-rmcp",
            Ldap => "ldap",
            Memcached => "memcache",
            Modbus => "mbap",
            Mongo => "mongodb",
            Mqtt => "mqtt",
            Mysql => "mysql",
            NetbiosName => "netbios-ns",
            Ntp => "ntp",
            Pop3 => "pop3",
            Postgres => "postgresql",
            Rdp => "ms-wbt-server",
            Redis => "redis",
            Rpc => "sunrpc",
            Rtsp => "rtsp",
            Sip => "sip",
            Smb => "microsoft-ds",
            Smtp => "smtp",
            Snmp => "snmp",
            Ssdp => "ssdp",
            Ssh => "ssh",
            Stun => "stun",
            Telnet => "telnet",
            Tftp => "tftp",
            Tls => "tls",
            Vnc => "rfb",
        }
    }

    /// Whether the server speaks first.
    pub(super) fn greets(self) -> bool {
        use Protocol::*;
        matches!(self, Ftp | Imap | Mysql | Pop3 | Smtp | Ssh | Telnet | Vnc)
    }

    /// A dialogue in it. `None` where it is none, or one that is not led over this transport.
    pub(super) fn dialogue(self, setting: &Setting) -> Option<Box<dyn Dialogue>> {
        Some(match self {
            Protocol::Http => Box::new(http::Http::new(setting)),
            _ => return None,
        })
    }
}
