//! MySQL and MariaDB: what the server says before anybody logs in (MySQL's "Protocol::HandshakeV10", "ERR_Packet").

use super::once::{Once, Read};
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{Reader, clean};

const CLIENT_SSL: u16 = 0x0800;
/// MariaDB before 11 puts this before its version, for clients that know MySQL alone.
const REPLICATION_PREFIX: &str = "5.5.5-";

/// Listens to the greeting; there is no question.
pub(super) struct Mysql(Once);

impl Mysql {
    pub(super) fn new() -> Self {
        Self(Once::new([], |input, _| read(input)))
    }
}

impl Dialogue for Mysql {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        self.0.on_bytes(input)
    }

    fn on_end(&mut self, input: &[u8], how: End) -> Option<Box<Finding>> {
        self.0.on_end(input, how)
    }
}

fn read(input: &[u8]) -> Read {
    let mut reader = Reader::new(input);
    let Some(len) = reader.u16_le().and_then(|low| Some(usize::from(low) | usize::from(reader.u8()?) << 16)) else { return Read::More };
    if len > 4096 {
        return Read::Foreign;
    }
    let Some(body) = reader.u8().and_then(|_| reader.take(len)) else { return Read::More };
    Read::from_whole(match body.first() {
        Some(10) => greeting(body),
        Some(0xff) => refusal(body),
        _ => None,
    })
}

fn greeting(body: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(body.get(1..)?);
    let version = clean(reader.c_text()?);
    reader.take(4 + 8 + 1)?;
    let capabilities = reader.u16_le()?;
    let mut finding = Finding::new("mysql");
    let plain = version.strip_prefix(REPLICATION_PREFIX).unwrap_or(&version);
    let maria = version.contains("MariaDB");
    finding.service.product = Some(if maria { "MariaDB" } else { "MySQL" }.to_owned());
    finding.service.version = Some(plain.split("-MariaDB").next().unwrap_or(plain).to_owned());
    finding.look_up(keys::MYSQL_BANNER, version.clone());
    finding.fact("mysql.version", version);
    finding.fact("mysql.tls", if capabilities & CLIENT_SSL != 0 { "offered" } else { "no" });
    // The way of logging in follows the second part of the challenge, from MySQL 5.5 on.
    if let Some(plugin) = plugin(reader) {
        finding.fact("mysql.auth", plugin);
    }
    Some(finding)
}

fn plugin(mut reader: Reader<'_>) -> Option<String> {
    reader.take(1 + 2 + 2)?;
    let challenge = usize::from(reader.u8()?);
    reader.take(10 + challenge.saturating_sub(8).max(13))?;
    reader.c_text().map(clean)
}

fn refusal(body: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(body.get(1..)?);
    let code = reader.u16_le()?;
    let text = clean(reader.rest());
    let mut finding = Finding::new("mysql");
    let product = ["MariaDB", "MySQL"].into_iter().find(|name| text.contains(name));
    finding.service.product = product.map(str::to_owned);
    finding.fact("mysql.error", format!("{code} {text}"));
    Some(finding)
}
