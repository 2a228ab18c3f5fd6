//! Which protocol it may be: by the first bytes that were heard, and by the port.
//!
//! Ports are IANA's ("Service Name and Transport Protocol Port Number Registry") and those that products use by default.

use picket_wire::job::Transport;

use super::protocols::Protocol;
use super::text::{begins, find};
use super::tls::layer::is_tls;

/// How a port is opened up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Its usual protocol greets.
    Greeting,
    /// Its usual protocol waits for this question.
    Ask(Protocol),
    /// Nothing is known: listen, then ask.
    Listen,
}

/// What is usual on a port.
pub(super) fn opening(port: u16) -> Opening {
    match port {
        21..=23 | 25 | 110 | 143 | 119 | 587 | 2121 | 2222 | 2323 | 2525 | 3306 | 5900..=5909 | 6667 => Opening::Greeting,
        _ if is_tls_port(port) => Opening::Ask(Protocol::Tls),
        _ => usual(port, Transport::Tcp).map_or(Opening::Listen, Opening::Ask),
    }
}

/// Ports on which TLS is usual from the first byte.
pub(super) fn is_tls_port(port: u16) -> bool {
    matches!(
        port,
        443 | 465 | 563 | 636 | 853 | 989 | 990 | 992
            ..=995
                | 2376
                | 2484
                | 3269
                | 4443
                | 5061
                | 5349
                | 5671
                | 5986
                | 6443
                | 6514
                | 6697
                | 7443
                | 8243
                | 8443
                | 8883
                | 9443
                | 10250
                | 10443
                | 27019
    )
}

/// The protocol that waits for a question on this port, in TLS or not.
pub(super) fn usual(port: u16, transport: Transport) -> Option<Protocol> {
    use Protocol::*;
    let udp = transport == Transport::Udp;
    Some(match port {
        53 | 5353 | 853 => Dns,
        123 if udp => Ntp,
        137 if udp => NetbiosName,
        161 if udp => Snmp,
        1900 if udp => Ssdp,
        3478 | 3479 | 5349 | 19302 if udp => Stun,
        5683 if udp => Coap,
        111 | 2049 if udp => Rpc,
        623 if udp => Ipmi,
        5060 | 5061 => Sip,
        _ if udp => return None,
        111 | 2049 => Rpc,
        80
        | 81
        | 280
        | 443
        | 591
        | 631
        | 2375
        | 2376
        | 3000
        | 3128
        | 4443
        | 5000
        | 5357
        | 5601
        | 5985
        | 5986
        | 6443
        | 7443
        | 7547
        | 8000
        | 8008
        | 8080..=8090
        | 8123
        | 8243
        | 8443
        | 8834
        | 8888
        | 9000
        | 9090
        | 9200
        | 9443
        | 10000
        | 10250
        | 10443
        | 15672 => Http,
        389 | 636 | 3268 | 3269 => Ldap,
        445 | 139 => Smb,
        502 => Modbus,
        554 | 8554 => Rtsp,
        1883 | 8883 => Mqtt,
        3389 => Rdp,
        5432 | 5433 => Postgres,
        5671 | 5672 => Amqp,
        6379 | 6380 | 26379 => Redis,
        11211 => Memcached,
        27017..=27019 => Mongo,
        _ => return None,
    })
}

/// What greets inside TLS on these ports.
pub(super) fn greets_in_tls(port: u16) -> bool {
    matches!(port, 465 | 563 | 990 | 992 | 993 | 994 | 995 | 6697)
}

/// What is asked where neither port nor bytes say anything, in this order.
pub(super) fn generic(transport: Transport) -> &'static [Protocol] {
    use Protocol::*;
    match transport {
        Transport::Tcp => &[Http, Tls, Redis, Postgres, Mqtt, Rdp, Smb, Ldap, Dns, Mongo, Rtsp, Amqp, Memcached, Rpc],
        _ => &[Dns, Snmp, Ntp, Sip, Stun, Coap, Rpc],
    }
}

/// The protocol that bytes look like.
pub(super) fn by_bytes(bytes: &[u8]) -> Option<Protocol> {
    use Protocol::*;
    let text = |start: &str| begins(bytes, start.as_bytes());
    let has = |word: &str| find(bytes.get(..512.min(bytes.len())).unwrap_or_default(), word.as_bytes()).is_some();
    Some(match bytes {
        _ if text("SSH-") || is_sent_away(bytes) => Ssh,
        // A server that was asked in the clear and wants TLS says so in its page.
        _ if text("HTTP/1.1 400") && (has("HTTPS port") || has("HTTP request to an HTTPS") || has("SSL-enabled")) => Tls,
        _ if text("HTTP/") => Http,
        _ if text("RTSP/") => Rtsp,
        _ if text("SIP/") => Sip,
        _ if text("RFB ") => Vnc,
        _ if text("+OK") || text("-ERR ") && has("pop") => Pop3,
        _ if text("* OK") || text("* PREAUTH") || text("* BYE") => Imap,
        _ if text("-ERR") || text("-NOAUTH") || text("-DENIED") || text("+PONG") => Redis,
        _ if text("AMQP") => Amqp,
        _ if text("ERROR\r\n") => Memcached,
        _ if text("It looks like you are trying to access MongoDB") => Mongo,
        _ if text("220") => mail_or_files(bytes),
        // SMTP that does not let us in; FTP that does not.
        _ if text("554 ") || text("450 ") || text("550 ") => Smtp,
        _ if text("421 ") && has("ftp") => Ftp,
        _ if text("421 ") => Smtp,
        [0xff, 0xfb..=0xfe, ..] => Telnet,
        _ if is_tls(bytes) => Tls,
        _ if is_mysql(bytes) => Mysql,
        [0x03, 0x00, 0x00, _, _, 0xd0, ..] => Rdp,
        [0x00, _, _, _, 0xfe | 0xff, b'S', b'M', b'B', ..] => Smb,
        [b'E', 0, 0, _, _, b'S', ..] => Postgres,
        [0x30, _, 0x02, 0x01, _, 0x61 | 0x78, ..] => Ldap,
        _ => return None,
    })
}

/// What OpenSSH says to a visitor whom it has no room for (sshd_config(5), `MaxStartups`) or does not want yet
/// (`PerSourcePenalties`): who comes later may be let in.
pub(super) fn is_sent_away(greeting: &[u8]) -> bool {
    begins(greeting, b"Exceeded MaxStartups") || begins(greeting, b"Not allowed at this time")
}

/// `220` greets in SMTP and in FTP alike: by what else is said, and where it is not, it is mail only if it says so.
fn mail_or_files(bytes: &[u8]) -> Protocol {
    let has = |word: &str| find(bytes, word.as_bytes()).is_some();
    if has("SMTP") || has("mail") || has("postfix") || has("exim") { Protocol::Smtp } else { Protocol::Ftp }
}

/// A packet of MySQL's: its length, the number 0, and protocol 10 or an error (MySQL's "Protocol::HandshakeV10").
fn is_mysql(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, 0, 0, 0x0a, b'0'..=b'9', ..] | [_, _, 0, 0, 0xff, _, 4, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (bytes, protocol) in [
            (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], Some(Protocol::Ssh)),
            (b"Exceeded MaxStartups\r\n", Some(Protocol::Ssh)),
            (b"220 mx.example.test ESMTP Postfix\r\n", Some(Protocol::Smtp)),
            (b"220 (vsFTPd 3.0.3)\r\n", Some(Protocol::Ftp)),
            (b"220 ProFTPD Server ready\r\n", Some(Protocol::Ftp)),
            (b"+OK Dovecot ready.\r\n", Some(Protocol::Pop3)),
            (b"* OK [CAPABILITY IMAP4rev1] ready\r\n", Some(Protocol::Imap)),
            (b"RFB 003.008\n", Some(Protocol::Vnc)),
            (b"\xff\xfd\x18\xff\xfd\x20", Some(Protocol::Telnet)),
            (b"\x15\x03\x01\x00\x02\x02\x46", Some(Protocol::Tls)),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n<h1>The plain HTTP request was sent to HTTPS port</h1>", Some(Protocol::Tls)),
            (b"HTTP/1.0 404 Not Found\r\n", Some(Protocol::Http)),
            (b"\x5b\0\0\0\x0a11.4.2-MariaDB\0", Some(Protocol::Mysql)),
            (b"-ERR wrong number of arguments for 'get' command\r\n", Some(Protocol::Redis)),
            (b"welcome, stranger\r\n", None),
            (b"", None),
        ] {
            assert_eq!(by_bytes(bytes), protocol, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn ports_tell() {
        assert_eq!(opening(22), Opening::Greeting);
        assert_eq!(opening(443), Opening::Ask(Protocol::Tls));
        assert_eq!(opening(6379), Opening::Ask(Protocol::Redis));
        assert_eq!(opening(31337), Opening::Listen);
        assert_eq!(usual(161, Transport::Tcp), None);
        assert_eq!(usual(161, Transport::Udp), Some(Protocol::Snmp));
    }
}
