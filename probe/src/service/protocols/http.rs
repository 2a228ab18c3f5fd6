//! HTTP/1.1 (RFC 9112): status, server, title. A redirect is recorded, and followed once if it stays on the very same port.

use super::Setting;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{begins, clean, digits, find};

/// Longest head that is waited for.
const HEAD_MAX: usize = 16 * 1024;
/// How much of a page is looked at for its title.
const BODY_MAX: usize = 32 * 1024;

/// Asks for the first page.
pub(super) struct Http {
    host: String,
    scheme: &'static str,
    /// What the first answer said, once a redirect is followed.
    before: Option<Box<Finding>>,
}

impl Http {
    pub(super) fn new(setting: &Setting) -> Self {
        let bare = match setting.addr {
            core::net::IpAddr::V4(addr) => addr.to_string(),
            core::net::IpAddr::V6(addr) => format!("[{addr}]"),
        };
        let usual = if setting.tls { 443 } else { 80 };
        let host = if setting.port == usual { bare } else { format!("{bare}:{}", setting.port) };
        Self { host, scheme: if setting.tls { "https" } else { "http" }, before: None }
    }

    fn request(&self, path: &str) -> Step {
        let Self { host, .. } = self;
        Step::Send(
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: picket-probe\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n")
                .into_bytes(),
        )
    }

    /// The path of a redirect that leads to this very host and port.
    fn path_here<'a>(&self, location: &'a str) -> Option<&'a str> {
        let path = match location.split_once("://") {
            Some((scheme, rest)) => {
                let rest = rest.strip_prefix(self.host.as_str()).filter(|_| scheme.eq_ignore_ascii_case(self.scheme))?;
                if rest.is_empty() { "/" } else { rest }
            }
            None => location,
        };
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
        (path.starts_with('/') && !path.starts_with("//") && plain && path.len() < 512).then_some(path)
    }

    /// Reads the answer; `None` while it may still get better.
    fn read(&mut self, input: &[u8], over: bool) -> Option<Step> {
        let head_len = find(input, b"\r\n\r\n").map(|at| at + 4).or_else(|| find(input, b"\n\n").map(|at| at + 2));
        let (head, body) = match head_len {
            Some(len) => input.split_at_checked(len)?,
            None if over || input.len() > HEAD_MAX => (input, &[][..]),
            None => return None,
        };
        let answer = Answer::parse(head)?;
        if !over && !answer.is_whole(body) {
            return None;
        }
        let finding = answer.finding(body);
        let location = answer.header("location").map(clean).unwrap_or_default();
        if self.before.is_none()
            && !over
            && (300..400).contains(&answer.status)
            && let Some(path) = self.path_here(&location)
        {
            let request = self.request(path);
            self.before = Some(Box::new(finding));
            return Some(request);
        }
        Some(Step::Done(Box::new(self.merge(finding))))
    }

    /// What the first answer said stands; the page behind the redirect adds its title and its server.
    fn merge(&mut self, second: Finding) -> Finding {
        let Some(first) = self.before.take() else { return second };
        let mut merged = *first;
        for (name, value) in second.service.facts {
            match name.as_str() {
                "http.status" => merged.fact("http.followed.status", value),
                _ if merged.service.fact(&name).is_none() => merged.fact(&name, value),
                _ => {}
            }
        }
        merged.lookups.extend(second.lookups);
        merged
    }
}

impl Dialogue for Http {
    fn start(&mut self) -> Step {
        self.request("/")
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let start = b"HTTP/";
        if !begins(input, start.get(..input.len().min(start.len())).unwrap_or_default()) {
            return Step::Foreign;
        }
        // What TLS servers say to who asks in the clear is for the guess to see.
        if crate::service::guess::by_bytes(input) == Some(super::Protocol::Tls) && self.scheme == "http" {
            return Step::Foreign;
        }
        match self.read(input, false) {
            Some(step) => {
                input.clear();
                step
            }
            None => Step::More,
        }
    }

    fn on_end(&mut self, input: &[u8], _how: End) -> Option<Box<Finding>> {
        match self.read(input, true) {
            Some(Step::Done(finding)) => Some(finding),
            _ => self.before.take(),
        }
    }
}

/// The head of an answer.
pub(super) struct Answer<'a> {
    version: &'a [u8],
    pub(super) status: u16,
    lines: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Answer<'a> {
    pub(super) fn parse(head: &'a [u8]) -> Option<Self> {
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.trim_ascii());
        let mut first = lines.next()?.split(|byte| *byte == b' ').filter(|part| !part.is_empty());
        let version = first.next()?.splitn(2, |byte| *byte == b'/').nth(1)?;
        let status = u16::try_from(digits(first.next()?)?).ok()?;
        let split = |line: &'a [u8]| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((line.get(..at)?.trim_ascii(), line.get(at + 1..)?.trim_ascii()))
        };
        Some(Self { version, status, lines: lines.filter_map(split).take(100).collect() })
    }

    pub(super) fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.lines.iter().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    }

    /// Whether enough of the page is there: all of it, its title, or as much as is looked at.
    fn is_whole(&self, body: &[u8]) -> bool {
        let length = self.header("content-length").and_then(digits).and_then(|length| usize::try_from(length).ok());
        let chunked_end = self.header("transfer-encoding").is_some() && find(body, b"\r\n0\r\n").is_some();
        body.len() >= length.unwrap_or(BODY_MAX).min(BODY_MAX) || chunked_end || title(body).is_some() || matches!(self.status, 204 | 304)
    }

    fn finding(&self, body: &[u8]) -> Finding {
        let mut finding = Finding::new("http");
        finding.fact("http.version", clean(self.version));
        finding.fact("http.status", self.status.to_string());
        for (header, fact, key) in [
            ("server", "http.server", keys::HTTP_SERVER),
            ("location", "http.location", ""),
            ("www-authenticate", "http.auth", keys::HTTP_AUTHENTICATE),
            ("x-powered-by", "http.powered_by", ""),
            ("content-type", "http.content_type", ""),
            ("set-cookie", "http.cookie", keys::HTTP_COOKIE),
        ] {
            let value = self.header(header).map(clean).unwrap_or_default();
            // A session's secret is nobody's business: of a cookie only its name is told.
            let shown = if header == "set-cookie" { value.split('=').next().unwrap_or_default().to_owned() } else { value.clone() };
            finding.fact(fact, shown);
            if !key.is_empty() {
                finding.look_up(key, value);
            }
        }
        let title = title(body).unwrap_or_default();
        finding.look_up(keys::HTML_TITLE, title.clone());
        finding.fact("http.title", title);
        let server = self.header("server").map(clean).unwrap_or_default();
        (finding.service.product, finding.service.version) = product(&server);
        finding
    }
}

/// A page's title, if its end was seen.
fn title(body: &[u8]) -> Option<String> {
    let from = find(body, b"<title")?;
    let rest = body.get(from..)?;
    let rest = rest.get(rest.iter().position(|byte| *byte == b'>')? + 1..)?;
    let text = String::from_utf8_lossy(rest.get(..find(rest, b"</title")?)?);
    Some(clean(text.split_whitespace().collect::<Vec<_>>().join(" ").as_bytes()))
}

/// `nginx/1.22.1` as product and version (RFC 9110, section 10.2.4).
pub(super) fn product(server: &str) -> (Option<String>, Option<String>) {
    let word = server.split_whitespace().next().unwrap_or_default();
    match word.split_once('/') {
        Some((name, version)) => (Some(name.to_owned()), Some(version.to_owned())),
        None if word.is_empty() => (None, None),
        None => (Some(server.to_owned()), None),
    }
}
