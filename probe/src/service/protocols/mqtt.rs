//! MQTT 3.1.1: CONNECT without a name and a password, and how the broker answers. One that lets us in is asked for the version
//! that it publishes of itself.

use super::Setting;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{Reader, clean};

const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PINGRESP: u8 = 0xd0;
/// What Mosquitto and others publish their version under.
const VERSION_TOPIC: &[u8] = b"$SYS/broker/version";
const DISCONNECT: &[u8] = &[0xe0, 0];

/// A conversation with a broker.
pub(super) struct Mqtt {
    client: String,
    finding: Option<Finding>,
}

impl Mqtt {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { client: format!("picket-{}", hex::encode(setting.random.first_chunk::<4>().unwrap_or(&[0; 4]))), finding: None }
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, |mut finding| {
            finding.farewell = DISCONNECT;
            finding.done()
        })
    }

    fn packet(&mut self, kind: u8, body: &[u8]) -> Option<Step> {
        match (kind & 0xf0, &mut self.finding) {
            (CONNACK, None) => {
                let code = *body.get(1)?;
                let mut finding = Finding::new("mqtt");
                finding.fact("mqtt.return_code", format!("{code} {}", return_code(code)));
                self.finding = Some(finding);
                Some(if code == 0 { Step::Send(ask_version()) } else { self.end() })
            }
            (PUBLISH, Some(finding)) => {
                let mut reader = Reader::new(body);
                if reader.sized16()? == VERSION_TOPIC {
                    let text = clean(reader.rest());
                    // `mosquitto version 2.0.11`, `5.3.0`.
                    let (product, version) =
                        text.split_once(" version ").map_or((None, text.as_str()), |(product, version)| (Some(product), version));
                    finding.service.product = product.map(str::to_owned);
                    finding.service.version = Some(version.to_owned());
                    finding.fact("mqtt.broker", text);
                }
                None
            }
            (PINGRESP, Some(_)) => Some(self.end()),
            (_, None) => Some(Step::Foreign),
            _ => None,
        }
    }
}

impl Dialogue for Mqtt {
    fn start(&mut self) -> Step {
        // MQTT 3.1.1, section 3.1: protocol name and level, clean session, keep alive of 10 s, client identifier.
        let mut body = b"\0\x04MQTT\x04\x02\0\x0a\0".to_vec();
        body.push(u8::try_from(self.client.len()).unwrap_or_default());
        body.extend_from_slice(self.client.as_bytes());
        Step::Send(packet(0x10, &body))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        loop {
            let mut reader = Reader::new(input);
            let Some(kind) = reader.u8() else { return Step::More };
            if self.finding.is_none() && kind != CONNACK {
                return Step::Foreign;
            }
            let len = match remaining(&mut reader) {
                Ok(Some(len)) => len,
                Ok(None) => return Step::More,
                Err(()) => return self.end(),
            };
            let Some(body) = reader.take(len).map(<[u8]>::to_vec) else { return Step::More };
            let taken = input.len() - reader.rest().len();
            input.drain(..taken);
            if let Some(step) = self.packet(kind, &body) {
                return step;
            }
        }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// MQTT 3.1.1, section 2.2.3: up to four octets of seven bits. `None` while it is not whole.
fn remaining(reader: &mut Reader<'_>) -> Result<Option<usize>, ()> {
    let mut len = 0;
    for shift in [0, 7, 14, 21] {
        let Some(byte) = reader.u8() else { return Ok(None) };
        len |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(len));
        }
    }
    Err(())
}

/// A packet with a body of fewer than 128 octets.
fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, u8::try_from(body.len()).unwrap_or_default()];
    out.extend_from_slice(body);
    out
}

/// SUBSCRIBE, and a PINGREQ behind it: what is retained comes before its answer, so that nothing has to be waited for.
fn ask_version() -> Vec<u8> {
    let mut body = vec![0, 1, 0, u8::try_from(VERSION_TOPIC.len()).unwrap_or_default()];
    body.extend_from_slice(VERSION_TOPIC);
    body.push(0);
    let mut out = packet(0x82, &body);
    out.extend_from_slice(&[0xc0, 0]);
    out
}

/// MQTT 3.1.1, table 3.1.
fn return_code(code: u8) -> &'static str {
    match code {
        0 => "accepted",
        1 => "unacceptable protocol version",
        2 => "identifier rejected",
        3 => "server unavailable",
        4 => "bad user name or password",
        5 => "not authorized",
        _ => "unknown",
    }
}
