//! The fingerprints that Picket brings: one file a key, written for Picket from products' documentation and from what the
//! products say in the lab of the tests.

use super::{Set, xml};

const FILES: [(&str, &str); 18] = [
    ("dns_versionbind.xml", include_str!("data/dns_versionbind.xml")),
    ("ftp_banner.xml", include_str!("data/ftp_banner.xml")),
    ("html_title.xml", include_str!("data/html_title.xml")),
    ("http_header_cookie.xml", include_str!("data/http_header_cookie.xml")),
    ("http_header_server.xml", include_str!("data/http_header_server.xml")),
    ("http_header_wwwauth.xml", include_str!("data/http_header_wwwauth.xml")),
    ("imap4_banner.xml", include_str!("data/imap4_banner.xml")),
    ("mysql_banner.xml", include_str!("data/mysql_banner.xml")),
    ("nntp_banner.xml", include_str!("data/nntp_banner.xml")),
    ("pop3_banner.xml", include_str!("data/pop3_banner.xml")),
    ("rtsp_header_server.xml", include_str!("data/rtsp_header_server.xml")),
    ("sip_header_server.xml", include_str!("data/sip_header_server.xml")),
    ("sip_header_user_agent.xml", include_str!("data/sip_header_user_agent.xml")),
    ("smtp_banner.xml", include_str!("data/smtp_banner.xml")),
    ("snmp_sys_description.xml", include_str!("data/snmp_sys_description.xml")),
    ("ssh_banner.xml", include_str!("data/ssh_banner.xml")),
    ("telnet_banner.xml", include_str!("data/telnet_banner.xml")),
    ("upnp_header_server.xml", include_str!("data/upnp_header_server.xml")),
];

/// All of them. Their examples are kept only for who checks them.
pub(super) fn sets(keep_examples: bool) -> Vec<Set> {
    let examples = keep_examples.then(|| std::path::Path::new("builtin"));
    let parse = |(name, text): &(&str, &str)| xml::parse(&format!("builtin/{name}"), text, examples);
    let read = FILES.iter().map(parse).collect::<Result<Vec<_>, _>>();
    read.expect("a test reads the files that are built in")
}
