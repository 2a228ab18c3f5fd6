//! What dialogues have in common, for their tests.

use super::*;
use crate::service::dialogue::{Dialogue, End, Finding, Step};

/// A place for a dialogue: TCP, in the clear, at the given port.
pub(super) fn setting(port: u16) -> Setting {
    Setting { addr: "192.0.2.9".parse().unwrap(), port, transport: Transport::Tcp, tls: false, random: [0x42; 32], now: None }
}

/// Leads a dialogue through these answers, each heard after something was sent or, where it begins by listening, at once.
/// Returns what was sent and what was found.
pub(super) fn lead(mut dialogue: impl Dialogue, answers: &[&[u8]]) -> (Vec<Vec<u8>>, Option<Box<Finding>>) {
    let mut sent = Vec::new();
    let mut input = Vec::new();
    let mut answers = answers.iter();
    let mut step = dialogue.start();
    for _ in 0..100 {
        match step {
            Step::Done(finding) => return (sent, Some(finding)),
            Step::Foreign => return (sent, None),
            Step::StartTls => {
                step = dialogue.on_tls(false);
                continue;
            }
            Step::Send(bytes) => sent.push(bytes),
            Step::More => {}
        }
        step = match answers.next() {
            Some(answer) => {
                input.extend_from_slice(answer);
                dialogue.on_bytes(&mut input)
            }
            None => match dialogue.on_end(&input, End::Silence) {
                Some(finding) => Step::Done(finding),
                None => Step::Foreign,
            },
        };
    }
    panic!("a dialogue without an end");
}

/// Answers of one server, and what must be found: name, product, version, facts.
struct Case {
    protocol: Protocol,
    transport: Transport,
    answers: Vec<Vec<u8>>,
    name: &'static str,
    product: Option<&'static str>,
    version: Option<&'static str>,
    facts: &'static [(&'static str, &'static str)],
}

fn case(protocol: Protocol, answers: &[&[u8]], name: &'static str, facts: &'static [(&'static str, &'static str)]) -> Case {
    let answers = answers.iter().map(|answer| answer.to_vec()).collect();
    Case { protocol, transport: Transport::Tcp, answers, name, product: None, version: None, facts }
}

impl Case {
    fn product(self, product: &'static str, version: &'static str) -> Self {
        Self { product: Some(product), version: Some(version).filter(|version| !version.is_empty()), ..self }
    }

    fn udp(self) -> Self {
        Self { transport: Transport::Udp, ..self }
    }
}

fn mail_and_files() -> Vec<Case> {
    use Protocol::*;
    vec![
        case(
            Smtp,
            &[
                b"220 mx.example.test ESMTP Postfix (Debian/GNU)\r\n",
                b"250-mx.example.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n",
                b"220 2.0.0 Ready to start TLS\r\n",
            ],
            "smtp",
            &[("smtp.starttls", "offered"), ("smtp.capabilities", "PIPELINING, STARTTLS, 8BITMIME")],
        ),
        case(Smtp, &[b"220 old.example.test\r\n", b"500 what?\r\n", b"250 hello\r\n"], "smtp", &[("smtp.greeting", "old.example.test")]),
        case(Smtp, &[b"554 5.7.1 You are not welcome\r\n"], "smtp", &[("smtp.code", "554")]),
        case(
            Ftp,
            &[b"220 (vsFTPd 3.0.3)\r\n", b"211-Features:\r\n EPRT\r\n AUTH TLS\r\n UTF8\r\n211 End\r\n"],
            "ftp",
            &[("ftp.features", "EPRT, AUTH TLS, UTF8"), ("ftp.tls", "offered")],
        ),
        case(Ftp, &[b"220 host.example.test ready\r\n", b"502 5.5.2 Error: command not recognized\r\n"], "smtp", &[]),
        case(
            Imap,
            &[
                b"* OK [CAPABILITY IMAP4rev1 LITERAL+] Dovecot ready.\r\n",
                b"* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\np1 OK done\r\n",
            ],
            "imap",
            &[("imap.capabilities", "IMAP4rev1 STARTTLS LOGINDISABLED"), ("imap.starttls", "offered")],
        ),
        case(
            Pop3,
            &[b"+OK Dovecot ready.\r\n", b"+OK\r\nCAPA\r\nTOP\r\nSASL PLAIN\r\n.\r\n"],
            "pop3",
            &[("pop3.capabilities", "CAPA TOP SASL=PLAIN")],
        ),
        case(
            Telnet,
            &[b"\xff\xfd\x18\xff\xfd\x20\xff\xfb\x03", b"\xff\xfa\x18\x01\xff\xf0Lab router\r\nUser: "],
            "telnet",
            &[("telnet.banner", "Lab router..User:"), ("telnet.options", "do 24, do 32, will 3")],
        ),
    ]
}

fn databases() -> Vec<Case> {
    use Protocol::*;
    let mysql =
        b"\x0a8.0.36-0ubuntu0\0\x08\0\0\0abcdefgh\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0";
    let maria = b"\x0a5.5.5-10.11.6-MariaDB-0+deb12u1\0\x08\0\0\0abcdefgh\0\xfe\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0abcdefghijkl\0mysql_native_password\0";
    let refusal = b"\xff\x6a\x04Host '198.18.0.1' is not allowed to connect to this MariaDB server";
    let packet = |body: &[u8]| [&[u8::try_from(body.len()).unwrap(), 0, 0, 0], body].concat();
    let error = b"SFATAL\0VFATAL\0C0A000\0Munsupported frontend protocol 255.255: server supports 3.0 to 3.0\0Fpostmaster.c\0L2195\0RProcessStartupPacket\0\0";
    let error = [b"E", &(u32::try_from(error.len()).unwrap() + 4).to_be_bytes()[..], error].concat();
    let info = b"# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nos:Linux 6.1.0 x86_64\r\narch_bits:64\r\n";
    let info = [format!("${}\r\n", info.len()).as_bytes(), info, b"\r\n"].concat();
    vec![
        case(Mysql, &[&packet(mysql)], "mysql", &[("mysql.tls", "offered"), ("mysql.auth", "caching_sha2_password")])
            .product("MySQL", "8.0.36-0ubuntu0"),
        case(Mysql, &[&packet(maria)], "mysql", &[("mysql.tls", "no")]).product("MariaDB", "10.11.6"),
        case(
            Mysql,
            &[&packet(refusal)],
            "mysql",
            &[("mysql.error", "1130 Host '198.18.0.1' is not allowed to connect to this MariaDB server")],
        )
        .product("MariaDB", ""),
        case(
            Postgres,
            &[b"N", &error],
            "postgresql",
            &[("postgresql.tls", "no"), ("postgresql.code", "0A000"), ("postgresql.source", "postmaster.c:2195")],
        )
        .product("PostgreSQL", ""),
        case(Postgres, &[b"S"], "postgresql", &[("postgresql.tls", "offered")]).product("PostgreSQL", ""),
        case(Redis, &[b"+PONG\r\n", &info], "redis", &[("redis.auth", "none"), ("redis.bits", "64")]).product("Redis", "7.0.15"),
        case(Redis, &[b"-NOAUTH Authentication required.\r\n"], "redis", &[("redis.auth", "required")]),
        case(Memcached, &[b"VERSION 1.6.18\r\n"], "memcache", &[]).product("Memcached", "1.6.18"),
    ]
}

fn messages_and_devices() -> Vec<Case> {
    use Protocol::*;
    let rtsp = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nServer: LabCam/2.1 (x)\r\nPublic: OPTIONS, DESCRIBE\r\n\r\n";
    let sip = b"SIP/2.0 200 OK\r\nVia: x\r\nServer: Asterisk PBX 20.5\r\nAllow: INVITE, ACK\r\n\r\n";
    let version = b"\x30\x20\0\x13$SYS/broker/versionmosquitto 2";
    let mut amqp = b"\x01\0\0\0\0\0\x40\0\x0a\0\x0a\0\x09\0\0\0\x2e\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.12.1\x04fairt\x01\0\0\0\x05PLAIN\0\0\0\x05en_US\xce".to_vec();
    amqp[6] = u8::try_from(amqp.len() - 8).unwrap();
    amqp[16] = u8::try_from(b"\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.12.1\x04fairt\x01".len()).unwrap();
    vec![
        case(
            Mqtt,
            &[b"\x20\x02\0\0", b"\x90\x03\0\x01\0", version, b"\xd0\0"],
            "mqtt",
            &[("mqtt.return_code", "0 accepted"), ("mqtt.broker", "mosquitto 2")],
        ),
        case(Mqtt, &[b"\x20\x02\0\x05"], "mqtt", &[("mqtt.return_code", "5 not authorized")]),
        case(Amqp, &[&amqp], "amqp", &[("amqp.version", "0-9"), ("amqp.mechanisms", "PLAIN")]).product("RabbitMQ", "3.12.1"),
        case(Amqp, &[b"AMQP\x00\x01\x00\x00"], "amqp", &[("amqp.version", "1-0-0 (0)")]),
        case(Rtsp, &[rtsp], "rtsp", &[("rtsp.status", "200"), ("rtsp.methods", "OPTIONS, DESCRIBE")]).product("LabCam", "2.1"),
        case(Sip, &[sip], "sip", &[("sip.status", "200"), ("sip.server", "Asterisk PBX 20.5")]).product("Asterisk PBX 20.5", ""),
        case(Vnc, &[b"RFB 003.008\n", b"\x02\x02\x13"], "rfb", &[("rfb.version", "003.008"), ("rfb.security", "password, VeNCrypt")]),
        case(Vnc, &[b"RFB 003.003\n", b"\0\0\0\0\0\0\0\x04full"], "rfb", &[("rfb.security", "refused"), ("rfb.refusal", "full")]),
        case(Rdp, &[b"\x03\0\0\x13\x0e\xd0\0\0\x12\x34\0\x02\x1f\x08\0\x02\0\0\0"], "ms-wbt-server", &[("rdp.security", "credssp")]),
        case(Rdp, &[b"\x03\0\0\x0b\x06\xd0\0\0\x12\x34\0"], "ms-wbt-server", &[("rdp.security", "rdp")]),
        case(
            Modbus,
            &[b"\0\x01\0\0\0\x1b\x01\x2b\x0e\x01\x01\0\0\x03\0\x04Acme\x01\x05PLC-7\x02\x04v1.2"],
            "mbap",
            &[("modbus.vendor", "Acme")],
        )
        .product("PLC-7", "v1.2"),
        case(Modbus, &[b"\0\x01\0\0\0\x03\x01\xab\x01"], "mbap", &[("modbus.exception", "1")]),
    ]
}

fn datagrams() -> Vec<Case> {
    use Protocol::*;
    let version = b"\x50\x50\x84\0\0\x01\0\x01\0\0\0\0\x07version\x04bind\0\0\x10\0\x03\xc0\x0c\0\x10\0\x03\0\0\0\0\0\x0d\x0c9.18.24-Lab1";
    let refused = b"\x50\x51\x81\x05\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";
    let mut ntp = [0; 48];
    ntp[..16].copy_from_slice(&[0x24, 2, 3, 0xe8, 0, 0, 0, 9, 0, 0, 0, 9, 192, 0, 2, 1]);
    let netbios = [
        &b"\x50\x4b\x84\0\0\0\0\x01\0\0\0\0\x20CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x21\0\x01\0\0\0\0\0\x65"[..],
        b"\x02FILESRV        \0\x04\0WORKGROUP      \0\x84\0\x02\0\x5e\0\0\x07",
    ]
    .concat();
    vec![
        case(Dns, &[version, refused], "domain", &[("dns.version", "9.18.24-Lab1"), ("dns.recursion", "no"), ("dns.rcode", "REFUSED")])
            .udp(),
        case(Ntp, &[&ntp], "ntp", &[("ntp.stratum", "2"), ("ntp.reference", "192.0.2.1")]).udp(),
        case(
            Stun,
            &[b"\x01\x01\0\x10\x21\x12\xa4\x42PPPPPPPPPPPP\x80\x22\0\x0acoturn-4.6\0\0"],
            "stun",
            &[("stun.software", "coturn-4.6")],
        )
        .udp()
        .product("coturn", "4.6"),
        case(
            Coap,
            &[b"\x60\x45\x50\x4b\xc1\x28\xff</temp>;rt=\"t\""],
            "coap",
            &[("coap.code", "2.05"), ("coap.resources", "</temp>;rt=\"t\"")],
        )
        .udp(),
        case(NetbiosName, &[&netbios], "netbios-ns", &[("netbios.group", "WORKGROUP"), ("netbios.mac", "02005e000007")]).udp(),
        case(Ipmi, &[b"\x06\0\xff\x06\0\0\x11\xbe\x40\0\0\x10\0\0\x11\xbe\0\0\0\0\x81\0"], "asf-rmcp", &[("rmcp.ipmi", "yes")]).udp(),
        case(
            Rpc,
            &[b"PICK\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01\x86\xa0\0\0\0\x02\0\0\0\x06\0\0\0\x6f\0\0\0\0"],
            "sunrpc",
            &[("rpc.programs", "100000v2:111")],
        )
        .udp(),
        case(
            Ssdp,
            &[b"HTTP/1.1 200 OK\r\nSERVER: Linux/5 UPnP/1.0 box/2\r\nLOCATION: http://192.0.2.9/d.xml\r\n\r\n"],
            "ssdp",
            &[("ssdp.location", "http://192.0.2.9/d.xml")],
        )
        .udp(),
    ]
}

fn cases() -> Vec<Case> {
    [mail_and_files(), databases(), messages_and_devices(), datagrams()].into_iter().flatten().collect()
}

#[test]
fn servers_are_told_by_what_they_say() {
    for case in cases() {
        let answers: Vec<&[u8]> = case.answers.iter().map(Vec::as_slice).collect();
        let label = format!("{:?} {}", case.protocol, case.answers[0].escape_ascii());
        let found = replay(case.protocol.name(), case.transport, &answers).unwrap_or_else(|| panic!("{label}: nothing was found"));
        assert_eq!(found.name, case.name, "{label}");
        if case.product.is_some() {
            assert_eq!((found.product.as_deref(), found.version.as_deref()), (case.product, case.version), "{label}");
        }
        for (name, value) in case.facts {
            assert_eq!(found.fact(name), Some(*value), "{label}: {name} of {:?}", found.facts);
        }
    }
}

/// Streams come in whatever pieces.
#[test]
fn pieces_of_a_stream_make_no_difference() {
    for case in cases().into_iter().filter(|case| case.transport == Transport::Tcp) {
        let whole = replay(case.protocol.name(), case.transport, &case.answers.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let mut dialogue = case.protocol.dialogue(&Setting { random: [0x50; 32], ..setting(0) }).unwrap();
        dialogue.start();
        let mut found = None;
        'answers: for answer in &case.answers {
            let mut input = Vec::new();
            for byte in answer {
                input.push(*byte);
                let step = match dialogue.on_bytes(&mut input) {
                    Step::StartTls => dialogue.on_tls(false),
                    step => step,
                };
                match step {
                    Step::Done(finding) => {
                        found = Some(finding.service);
                        break 'answers;
                    }
                    Step::Foreign => panic!("{:?} at {}", case.protocol, answer.escape_ascii()),
                    _ => {}
                }
            }
        }
        let found = found.or_else(|| dialogue.on_end(&[], End::Closed).map(|finding| finding.service)).unwrap();
        assert_eq!((&found.name, &found.product), (&whole.name, &whole.product), "{:?}", case.protocol);
    }
}

#[test]
fn nobody_takes_another_protocol_for_its_own() {
    let texts: [&[u8]; 5] =
        [b"what do you want?\r\n", b"\0\0\0\0\0\0\0\0\0\0\0\0", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0", &[0xff; 64], b"<xml/>\n"];
    for &protocol in Protocol::ALL {
        for text in texts {
            let found = replay(protocol.name(), Transport::Tcp, &[text, text]);
            // Telnet has no form of its own: any text that greets may be one.
            assert!(found.is_none() || protocol == Protocol::Telnet, "{protocol:?} {}: {found:?}", text.escape_ascii());
        }
    }
}

/// Every name of a fact that stands in a dialogue's source stands in the documentation, and so does every name of a service.
#[test]
fn facts_are_documented() {
    const SOURCES: [&str; 21] = [
        include_str!("dns.rs"),
        include_str!("ftp.rs"),
        include_str!("headers.rs"),
        include_str!("http.rs"),
        include_str!("ldap.rs"),
        include_str!("mailbox.rs"),
        include_str!("mongo.rs"),
        include_str!("mqtt.rs"),
        include_str!("mysql.rs"),
        include_str!("ntlm.rs"),
        include_str!("postgres.rs"),
        include_str!("rdp.rs"),
        include_str!("redis.rs"),
        include_str!("small.rs"),
        include_str!("smb.rs"),
        include_str!("smtp.rs"),
        include_str!("snmp.rs"),
        include_str!("ssh.rs"),
        include_str!("telnet.rs"),
        include_str!("vnc.rs"),
        include_str!("../tls/certificate.rs"),
    ];
    let documented = include_str!("../../../../docs/services.md");
    let mut seen = 0;
    for source in SOURCES {
        let product = source.split("#[cfg(test)]").next().unwrap();
        for quoted in product.split('"').skip(1).step_by(2) {
            let Some((group, name)) = quoted.split_once('.') else { continue };
            let word =
                |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || b"_.0123456789".contains(&byte));
            let groups =
                ["dns", "ftp", "rtsp", "sip", "ssdp", "http", "ldap", "imap", "pop3", "mongodb", "mqtt", "mysql", "ntlm", "postgresql"];
            let more =
                ["rdp", "redis", "modbus", "amqp", "ntp", "stun", "coap", "rpc", "netbios", "rmcp", "smb", "smtp", "snmp", "ssh", "telnet"];
            if word(name) && (groups.contains(&group) || more.contains(&group) || ["rfb", "tls"].contains(&group)) {
                seen += 1;
                assert!(documented.contains(&format!("`{quoted}`")), "{quoted} is not documented");
            }
        }
    }
    assert!(seen > 90, "{seen}");
    for &protocol in Protocol::ALL {
        assert!(documented.contains(&format!("`{}`", protocol.name())), "{protocol:?}");
    }
}

#[test]
fn names_are_their_own() {
    let mut names: Vec<&str> = Protocol::ALL.iter().map(|protocol| protocol.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Protocol::ALL.len());
}

mod any_bytes {
    use proptest::prelude::*;

    use super::*;

    fn hear(protocol: Protocol, transport: Transport, pieces: &[Vec<u8>]) {
        let Some(mut dialogue) = protocol.dialogue(&Setting { transport, ..setting(1) }) else { return };
        dialogue.start();
        let mut input = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            let before = input.len();
            match dialogue.on_bytes(&mut input) {
                Step::Done(finding) => return drop(finding),
                Step::StartTls => drop(dialogue.on_tls(true)),
                Step::Foreign => return,
                Step::Send(_) | Step::More => {}
            }
            assert!(input.len() <= before, "nothing is added to what was heard");
        }
        dialogue.on_silence();
        dialogue.on_end(&input, End::Flood);
    }

    proptest! {
        #[test]
        fn are_harmless(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..5)) {
            for &protocol in Protocol::ALL {
                hear(protocol, Transport::Tcp, &pieces);
                hear(protocol, Transport::Udp, &pieces);
            }
        }

        #[test]
        fn damaged_answers_are_harmless(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8, cut: u8) {
            let cases = cases();
            let case = &cases[which.index(cases.len())];
            let mut answers = case.answers.clone();
            let last = answers.len() - 1;
            let answer = &mut answers[at.index(last + 1)];
            let index = at.index(answer.len());
            answer[index] = byte;
            answer.truncate(answer.len().saturating_sub(usize::from(cut % 8)));
            hear(case.protocol, case.transport, &answers);
        }
    }
}
