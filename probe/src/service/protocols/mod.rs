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

/// Declares the protocols that are asked for, each once: its IANA service name, who speaks first, and its dialogue.
macro_rules! protocols {
    ($setting:ident: $($(#[$doc:meta])* $protocol:ident = $name:literal, $first:ident, $dialogue:expr;)*) => {
        /// The protocols that are asked for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Protocol {
            $($(#[$doc])* $protocol,)*
        }

        impl Protocol {
            /// All of them.
            pub(super) const ALL: &[Protocol] = &[$(Protocol::$protocol),*];

            /// Its IANA service name.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Protocol::$protocol => $name,)*
                }
            }

            /// Who speaks first.
            fn first(self) -> Side {
                match self {
                    $(Protocol::$protocol => Side::$first,)*
                }
            }

            /// A dialogue in it; `None` for TLS, which others take place in.
            pub(super) fn dialogue(self, $setting: &Setting) -> Option<Box<dyn Dialogue>> {
                Some(match self {
                    $(Protocol::$protocol => $dialogue,)*
                })
            }
        }
    };
}

protocols! {
    setting:
    Amqp = "amqp", Client, Box::new(small::amqp());
    Coap = "coap", Client, Box::new(small::coap());
    Dns = "domain", Client, Box::new(dns::Dns::new(setting));
    Ftp = "ftp", Server, Box::new(ftp::Ftp::new());
    Http = "http", Client, Box::new(http::Http::new(setting));
    Imap = "imap", Server, Box::new(mailbox::Mailbox::new(mailbox::Kind::Imap));
    Ipmi = "asf-rmcp", Client, Box::new(small::rmcp());
    Ldap = "ldap", Client, Box::new(ldap::dialogue());
    Memcached = "memcache", Client, Box::new(small::memcached());
    Modbus = "mbap", Client, Box::new(small::modbus());
    Mongo = "mongodb", Client, Box::new(mongo::Mongo::new());
    Mqtt = "mqtt", Client, Box::new(mqtt::Mqtt::new(setting));
    Mysql = "mysql", Server, Box::new(mysql::Mysql::new());
    NetbiosName = "netbios-ns", Client, Box::new(small::netbios());
    Ntp = "ntp", Client, Box::new(small::ntp());
    Pop3 = "pop3", Server, Box::new(mailbox::Mailbox::new(mailbox::Kind::Pop3));
    Postgres = "postgresql", Client, Box::new(postgres::Postgres::new());
    Rdp = "ms-wbt-server", Client, Box::new(rdp::Rdp::new());
    Redis = "redis", Client, Box::new(redis::Redis::new());
    Rpc = "sunrpc", Client, Box::new(small::rpc(setting));
    Rtsp = "rtsp", Client, Box::new(headers::rtsp());
    Sip = "sip", Client, Box::new(headers::sip(setting));
    Smb = "microsoft-ds", Client, Box::new(smb::Smb::new(setting));
    Smtp = "smtp", Server, Box::new(smtp::Smtp::new(setting.tls));
    Snmp = "snmp", Client, Box::new(snmp::Snmp::new());
    Ssdp = "ssdp", Client, Box::new(headers::ssdp());
    Ssh = "ssh", Server, Box::new(ssh::Ssh::new(setting));
    Stun = "stun", Client, Box::new(small::stun(setting));
    Telnet = "telnet", Server, Box::new(telnet::Telnet::new());
    /// Not a dialogue of its own: others take place inside it.
    Tls = "tls", Client, return None;
    Vnc = "rfb", Server, Box::new(vnc::Vnc::new());
}

/// A side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Protocol {
    /// Whether the server speaks first.
    pub(super) fn greets(self) -> bool {
        self.first() == Side::Server
    }
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
    let plain = Protocol::ALL.iter().copied().filter(|protocol| *protocol != Protocol::Tls).map(Protocol::name);
    plain.chain(Version::ALL.into_iter().map(Version::as_str))
}

fn named(name: &str, setting: &Setting) -> Option<Box<dyn Dialogue>> {
    if let Some(version) = Version::ALL.into_iter().find(|version| version.as_str() == name) {
        return Some(Box::new(Hello::new(version, setting.random, setting.now)));
    }
    Protocol::ALL.iter().copied().find(|protocol| protocol.name() == name)?.dialogue(setting)
}
