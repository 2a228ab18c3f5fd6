//! One dialogue per protocol, each a file; here is their list.

mod ber;
mod dns;
mod ftp;
mod headers;
mod http;
mod ldap;
mod mailbox;
mod mongo;
mod mqtt;
mod mysql;
mod ntlm;
mod once;
mod postgres;
mod rdp;
mod redis;
mod replies;
mod small;
mod smb;
mod smtp;
mod snmp;
mod ssh;
mod telnet;
#[cfg(test)]
mod tests;
mod vnc;

use core::net::{IpAddr, Ipv4Addr};

use picket_wire::job::Transport;
use picket_wire::service::Service;
use picket_wire::units::UnixMillis;

use super::dialogue::{Dialogue, End, Step};
use super::tls::hello::{Hello, Version};

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
    /// Not a dialogue of its own: others take place inside it.
    Tls,
    Vnc,
}

/// Leads the dialogue named `name` by recorded answers and without any network: what it would find. Each answer is what is
/// heard after one question, or at first where the server greets. `None` where there is no such dialogue, or nothing is found.
pub fn replay(name: &str, transport: Transport, answers: &[&[u8]]) -> Option<Service> {
    let setting = Setting { addr: Ipv4Addr::LOCALHOST.into(), port: 0, transport, tls: false, random: [0x50; 32], now: None };
    let mut dialogue = named(name, &setting)?;
    let mut step = dialogue.start();
    let mut answers = answers.iter();
    let mut input = Vec::new();
    loop {
        step = match step {
            Step::Done(finding) => return Some(finding.service),
            Step::Foreign => return None,
            Step::StartTls => dialogue.on_tls(false),
            Step::Send(_) | Step::More => match answers.next() {
                Some(answer) => {
                    input.extend_from_slice(answer);
                    dialogue.on_bytes(&mut input)
                }
                None => return dialogue.on_end(&input, End::Closed).map(|finding| finding.service),
            },
        };
    }
}

/// The names of all dialogues that [`replay`] leads: protocols, and the hellos that ask for one version of TLS.
pub fn dialogues() -> impl Iterator<Item = &'static str> {
    let plain = Protocol::ALL.into_iter().filter(|protocol| *protocol != Protocol::Tls).map(Protocol::name);
    plain.chain(Version::ALL.into_iter().map(Version::as_str))
}

fn named(name: &str, setting: &Setting) -> Option<Box<dyn Dialogue>> {
    if let Some(version) = Version::ALL.into_iter().find(|version| version.as_str() == name) {
        return Some(Box::new(Hello::new(version, setting.random, setting.now)));
    }
    Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)?.dialogue(setting)
}

impl Protocol {
    /// All of them.
    pub(super) const ALL: [Protocol; 31] = {
        use Protocol::*;
        [
            Amqp,
            Coap,
            Dns,
            Ftp,
            Http,
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
            Tls,
            Vnc,
        ]
    };

    /// Its IANA service name.
    pub(super) fn name(self) -> &'static str {
        use Protocol::*;
        match self {
            Amqp => "amqp",
            Coap => "coap",
            Dns => "domain",
            Ftp => "ftp",
            Http => "http",
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
            Tls => "tls",
            Vnc => "rfb",
        }
    }

    /// Whether the server speaks first.
    pub(super) fn greets(self) -> bool {
        use Protocol::*;
        matches!(self, Ftp | Imap | Mysql | Pop3 | Smtp | Ssh | Telnet | Vnc)
    }

    /// A dialogue in it; `None` for TLS, which others take place in.
    pub(super) fn dialogue(self, setting: &Setting) -> Option<Box<dyn Dialogue>> {
        Some(match self {
            Protocol::Amqp => Box::new(small::amqp()),
            Protocol::Coap => Box::new(small::coap()),
            Protocol::Dns => Box::new(dns::Dns::new(setting)),
            Protocol::Ftp => Box::new(ftp::Ftp::new()),
            Protocol::Http => Box::new(http::Http::new(setting)),
            Protocol::Imap => Box::new(mailbox::Mailbox::new(mailbox::Kind::Imap)),
            Protocol::Ipmi => Box::new(small::rmcp()),
            Protocol::Ldap => Box::new(ldap::dialogue()),
            Protocol::Memcached => Box::new(small::memcached()),
            Protocol::Modbus => Box::new(small::modbus()),
            Protocol::Mongo => Box::new(mongo::Mongo::new()),
            Protocol::Mqtt => Box::new(mqtt::Mqtt::new(setting)),
            Protocol::Mysql => Box::new(mysql::Mysql::new()),
            Protocol::NetbiosName => Box::new(small::netbios()),
            Protocol::Ntp => Box::new(small::ntp()),
            Protocol::Pop3 => Box::new(mailbox::Mailbox::new(mailbox::Kind::Pop3)),
            Protocol::Postgres => Box::new(postgres::Postgres::new()),
            Protocol::Rdp => Box::new(rdp::Rdp::new()),
            Protocol::Redis => Box::new(redis::Redis::new()),
            Protocol::Rpc => Box::new(small::rpc(setting)),
            Protocol::Rtsp => Box::new(headers::rtsp()),
            Protocol::Sip => Box::new(headers::sip(setting)),
            Protocol::Smb => Box::new(smb::Smb::new(setting)),
            Protocol::Smtp => Box::new(smtp::Smtp::new(setting.tls)),
            Protocol::Snmp => Box::new(snmp::Snmp::new()),
            Protocol::Ssdp => Box::new(headers::ssdp()),
            Protocol::Ssh => Box::new(ssh::Ssh::new(setting)),
            Protocol::Stun => Box::new(small::stun(setting)),
            Protocol::Telnet => Box::new(telnet::Telnet::new()),
            Protocol::Tls => return None,
            Protocol::Vnc => Box::new(vnc::Vnc::new()),
        })
    }
}
