//! Redis, Valkey and what speaks like them (RESP): PING, and where no password is wanted, INFO.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{begins, clean, digits, find, take_line};

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const INFO: &[u8] = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n";

/// A conversation of two questions.
#[derive(Default)]
pub(super) struct Redis {
    finding: Option<Finding>,
}

impl Redis {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn answered(&mut self, line: &[u8]) -> Step {
        let mut finding = Finding::new("redis");
        if begins(line, b"+PONG") {
            finding.fact("redis.auth", "none");
            self.finding = Some(finding);
            return Step::Send(INFO.to_vec());
        }
        if begins(line, b"-NOAUTH")
            || begins(line, b"-DENIED")
            || begins(line, b"-NOPERM")
            || begins(line, b"-ERR") && find(line, b"auth").is_some()
        {
            finding.service.product = Some("Redis".to_owned()).filter(|_| find(line, b"redis").is_some());
            finding.fact("redis.auth", if begins(line, b"-DENIED") { "protected" } else { "required" });
            finding.fact("redis.error", clean(line.get(1..).unwrap_or_default()));
            return finding.done();
        }
        if begins(line, b"-LOADING") || begins(line, b"-MASTERDOWN") {
            finding.fact("redis.error", clean(line.get(1..).unwrap_or_default()));
            return finding.done();
        }
        Step::Foreign
    }

    /// `$length`, then lines of `name:value`.
    fn info(&mut self, input: &[u8], over: bool) -> Option<Box<Finding>> {
        let head = find(input, b"\r\n")?;
        let (first, body) = (input.get(..head)?, input.get(head + 2..)?);
        let length = first.strip_prefix(b"$").and_then(digits).and_then(|length| usize::try_from(length).ok());
        if length.is_some_and(|length| body.len() < length) && !over {
            return None;
        }
        let mut finding = self.finding.take()?;
        let text = String::from_utf8_lossy(body);
        let get = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(|value| clean(value.as_bytes())).filter(|value| !value.is_empty())
        };
        let valkey = get("valkey_version");
        finding.service.product =
            Some(if valkey.is_some() { "Valkey" } else { "Redis" }.to_owned()).filter(|_| get("redis_version").is_some());
        finding.service.version = valkey.or_else(|| get("redis_version"));
        finding.service.os = get("os");
        for (name, fact) in [("redis_mode", "redis.mode"), ("arch_bits", "redis.bits"), ("uptime_in_seconds", "redis.uptime")] {
            finding.fact(fact, get(name).unwrap_or_default());
        }
        Some(Box::new(finding))
    }
}

impl Dialogue for Redis {
    fn start(&mut self) -> Step {
        Step::Send(PING.to_vec())
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        if self.finding.is_some() {
            return self.info(input, false).map_or(Step::More, Step::Done);
        }
        if !matches!(input.first(), Some(b'+' | b'-')) {
            return Step::Foreign;
        }
        match take_line(input) {
            Some(line) => self.answered(&line),
            None => Step::More,
        }
    }

    fn on_end(&mut self, input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.info(input, true).or_else(|| self.finding.take().map(Box::new))
    }
}
