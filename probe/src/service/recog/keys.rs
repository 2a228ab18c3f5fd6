//! The keys that texts are known by, and what exactly a key's text is. The names are Recog's.

/// The software and comments of an SSH greeting (RFC 4253, 4.2): what follows `SSH-2.0-`, without the line's end.
pub const SSH_BANNER: &str = "ssh.banner";
/// The value of an HTTP `Server` header.
pub const HTTP_SERVER: &str = "http_header.server";
/// The value of an HTTP `WWW-Authenticate` header.
pub const HTTP_AUTHENTICATE: &str = "http_header.wwwauth";
/// The value of an HTTP `Set-Cookie` header.
pub const HTTP_COOKIE: &str = "http_header.cookie";
/// The contents of a page's `title` element, blanks at both ends removed.
pub const HTML_TITLE: &str = "html_title";
/// An SMTP greeting (RFC 5321, 4.2) without its code `220` and the character after it; lines are joined by line feeds.
pub const SMTP_BANNER: &str = "smtp.banner";
/// An FTP greeting (RFC 959) without its code `220` and the character after it; lines are joined by line feeds.
pub const FTP_BANNER: &str = "ftp.banner";
/// An IMAP greeting (RFC 9051, 7.1) without `* OK `.
pub const IMAP_BANNER: &str = "imap4.banner";
/// A POP3 greeting (RFC 1939) without `+OK `.
pub const POP3_BANNER: &str = "pop3.banner";
/// The version text of a MySQL initial handshake.
pub const MYSQL_BANNER: &str = "mysql.banner";
/// The answer to `version.bind` (class CHAOS, type TXT).
pub const DNS_VERSION: &str = "dns.versionbind";
/// The value of SNMP's `sysDescr.0` (RFC 3418).
pub const SNMP_DESCRIPTION: &str = "snmp.sys_description";
/// The value of a SIP `Server` header.
pub const SIP_SERVER: &str = "sip_header.server";
/// The value of a SIP `User-Agent` header.
pub const SIP_USER_AGENT: &str = "sip_header.user_agent";
/// The value of an RTSP `Server` header.
pub const RTSP_SERVER: &str = "rtsp_header.server";
/// What a Telnet server shows first, without option negotiations (RFC 854).
pub const TELNET_BANNER: &str = "telnet.banner";
/// An NNTP greeting without its code.
pub const NNTP_BANNER: &str = "nntp.banner";
/// The value of a UPnP `SERVER` header, from SSDP or HTTP.
pub const UPNP_SERVER: &str = "upnp_header.server";

/// All of them.
pub const ALL: [&str; 18] = [
    SSH_BANNER,
    HTTP_SERVER,
    HTTP_AUTHENTICATE,
    HTTP_COOKIE,
    HTML_TITLE,
    SMTP_BANNER,
    FTP_BANNER,
    IMAP_BANNER,
    POP3_BANNER,
    MYSQL_BANNER,
    DNS_VERSION,
    SNMP_DESCRIPTION,
    SIP_SERVER,
    SIP_USER_AGENT,
    RTSP_SERVER,
    TELNET_BANNER,
    NNTP_BANNER,
    UPNP_SERVER,
];
