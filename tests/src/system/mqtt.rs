//! MQTT 3.1.1 by hand, as an attacker speaks it: nothing is checked before it is sent, and every answer is seen.
//!
//! Must not know: Picket's topics and messages. Only what the tests need of the protocol is here (QoS 0 and 1).

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::PATIENCE;
use crate::lab::Namespace;

/// What a client shows and whom it trusts.
#[derive(Clone, Debug)]
pub struct Credentials {
    authority: CertificateDer<'static>,
    own: Option<(CertificateDer<'static>, Arc<PrivateKeyDer<'static>>)>,
}

impl Credentials {
    /// No certificate of its own.
    ///
    /// # Errors
    /// When the authority's file cannot be read.
    pub fn none(authority: &Path) -> Result<Self> {
        let authority = CertificateDer::from_pem_file(authority).map_err(|error| anyhow!("read {}: {error}", authority.display()))?;
        Ok(Self { authority, own: None })
    }

    /// A certificate and its key from PEM texts.
    ///
    /// # Errors
    /// When one is not what it should be.
    pub fn pem(authority: &Path, certificate: &str, key: &str) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| anyhow!("a certificate: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| anyhow!("a key: {error}"))?;
        Ok(Self { own: Some((certificate, Arc::new(key))), ..Self::none(authority)? })
    }

    /// What an enrolled probe has in its data directory.
    ///
    /// # Errors
    /// When it is not enrolled.
    pub fn of_probe(data: &Path) -> Result<Self> {
        let dir = data.join("identity");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("read {name} of {}", dir.display()));
        Self::pem(&dir.join("ca.pem"), &read("cert.pem")?, &read("key.pem")?)
    }

    fn config(&self) -> Result<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key())?,
        })
    }
}

/// A CONNECT packet.
#[derive(Clone, Debug, Default)]
pub struct Connect<'a> {
    /// The client id.
    pub client_id: &'a str,
    /// Topic and payload of the last will (QoS 1).
    pub will: Option<(&'a str, &'a [u8])>,
    /// User name and password.
    pub user: Option<(&'a str, &'a str)>,
}

/// What came from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// The answer to CONNECT: 0 is accepted (section 3.2.2.3).
    ConnAck(u8),
    /// The answer to SUBSCRIBE: for each filter the QoS, or 0x80 for a refusal.
    SubAck(Vec<u8>),
    /// A publication was taken.
    PubAck,
    /// A message.
    Publish {
        /// Its topic.
        topic: String,
        /// What it says.
        payload: Vec<u8>,
        /// It was retained.
        retain: bool,
    },
    /// The answer to a ping.
    Pong,
    /// Anything else: its first byte.
    Other(u8),
}

/// How a session ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed(pub String);

/// One connection.
#[derive(Debug)]
pub struct Mqtt {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
    packet: u16,
}

impl Mqtt {
    /// Connects by TCP from a namespace and does the TLS handshake as far as this side sees it. With TLS 1.3 a certificate that
    /// is refused shows only with the first answer: see [`Mqtt::hello`].
    ///
    /// # Errors
    /// When TCP does not connect. What TLS says is in the inner result.
    pub fn dial(from: &Namespace, to: SocketAddr, credentials: &Credentials) -> Result<Result<Self, Closed>> {
        let tcp = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?.with_context(|| format!("connect to {to}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let name = ServerName::IpAddress(IpAddr::into(to.ip()));
        let connection = ClientConnection::new(Arc::new(credentials.config()?), name)?;
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
                return Ok(Err(Closed(error.to_string())));
            }
        }
        Ok(Ok(Self { stream, buffer: Vec::new(), packet: 0 }))
    }

    /// Connects and says hello: the broker's code, or how it ended.
    ///
    /// # Errors
    /// When TCP does not connect, or the broker says nothing at all.
    pub fn hello(from: &Namespace, to: SocketAddr, credentials: &Credentials, connect: &Connect<'_>) -> Result<Result<(Self, u8), Closed>> {
        let mut mqtt = match Self::dial(from, to, credentials)? {
            Ok(mqtt) => mqtt,
            Err(closed) => return Ok(Err(closed)),
        };
        if let Err(closed) = mqtt.send(&connect_packet(connect)) {
            return Ok(Err(closed));
        }
        Ok(match mqtt.read(PATIENCE)? {
            Ok(Packet::ConnAck(code)) => Ok((mqtt, code)),
            Ok(other) => bail!("the answer to CONNECT is {other:?}"),
            Err(closed) => Err(closed),
        })
    }

    /// A session that must be accepted.
    ///
    /// # Errors
    /// When it is not.
    pub fn session(from: &Namespace, to: SocketAddr, credentials: &Credentials, connect: &Connect<'_>) -> Result<Self> {
        match Self::hello(from, to, credentials, connect)? {
            Ok((mqtt, 0)) => Ok(mqtt),
            Ok((_, code)) => bail!("the broker refuses {:?} with code {code}", connect.client_id),
            Err(Closed(reason)) => bail!("the broker refuses {:?}: {reason}", connect.client_id),
        }
    }

    /// Asks for one subscription (QoS 1) and gives the broker's answer: a QoS, or 0x80.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn subscribe(&mut self, filter: &str) -> Result<Result<u8, Closed>> {
        let id = self.next_packet();
        let mut body = id.to_be_bytes().to_vec();
        text(&mut body, filter.as_bytes());
        body.push(1);
        if let Err(closed) = self.send(&packet(0x82, &body)) {
            return Ok(Err(closed));
        }
        loop {
            match self.read(PATIENCE)? {
                Ok(Packet::SubAck(codes)) => return Ok(Ok(*codes.first().context("an empty SUBACK")?)),
                // Retained messages may come first.
                Ok(Packet::Publish { .. }) => {}
                Ok(other) => bail!("the answer to SUBSCRIBE is {other:?}"),
                Err(closed) => return Ok(Err(closed)),
            }
        }
    }

    /// Publishes with QoS 1 and waits for the acknowledgement, or for the end of the session.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) -> Result<Result<(), Closed>> {
        let mut body = Vec::new();
        text(&mut body, topic.as_bytes());
        body.extend(self.next_packet().to_be_bytes());
        body.extend(payload);
        if let Err(closed) = self.send(&packet(0x32 | u8::from(retain), &body)) {
            return Ok(Err(closed));
        }
        loop {
            match self.read(PATIENCE)? {
                Ok(Packet::PubAck) => return Ok(Ok(())),
                Ok(Packet::Publish { .. }) => {}
                Ok(other) => bail!("the answer to PUBLISH is {other:?}"),
                Err(closed) => return Ok(Err(closed)),
            }
        }
    }

    /// Sends a ping and waits for its answer: whatever was sent before has been dealt with then.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn ping(&mut self) -> Result<Result<Vec<Packet>, Closed>> {
        if let Err(closed) = self.send(&packet(0xc0, &[])) {
            return Ok(Err(closed));
        }
        let mut before = Vec::new();
        loop {
            match self.read(PATIENCE)? {
                Ok(Packet::Pong) => return Ok(Ok(before)),
                Ok(other) => before.push(other),
                Err(closed) => return Ok(Err(closed)),
            }
        }
    }

    /// Reads one packet; the broker's end of the session is no error.
    ///
    /// # Errors
    /// When nothing comes in time, or not MQTT.
    pub fn read(&mut self, deadline: Duration) -> Result<Result<Packet, Closed>> {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.parse()? {
                return Ok(Ok(packet));
            }
            let left =
                deadline.checked_sub(start.elapsed()).filter(|left| !left.is_zero()).context("nothing came from the broker in time")?;
            self.stream.sock.set_read_timeout(Some(left))?;
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(Err(Closed("end of stream".to_owned()))),
                Ok(count) => self.buffer.extend(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Ok(Err(Closed(error.to_string()))),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Packet>> {
        // Section 2.2.3: seven bits a byte, the least first.
        let (mut length, mut at) = (0_usize, 1);
        loop {
            let Some(byte) = self.buffer.get(at) else { return Ok(None) };
            ensure!(at <= 4, "a malformed length from the broker");
            length |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if self.buffer.len() < at + length {
            return Ok(None);
        }
        let whole: Vec<u8> = self.buffer.drain(..at + length).collect();
        let (kind, body) = (whole[0], &whole[at..]);
        let cut = || anyhow!("a packet of kind {kind:#x} from the broker is cut short");
        Ok(Some(match kind >> 4 {
            2 => Packet::ConnAck(*body.get(1).with_context(cut)?),
            3 => {
                let length = usize::from(u16::from_be_bytes([*body.first().with_context(cut)?, *body.get(1).with_context(cut)?]));
                let topic = String::from_utf8_lossy(body.get(2..2 + length).with_context(cut)?).into_owned();
                let qos = kind >> 1 & 3;
                let from = 2 + length + if qos > 0 { 2 } else { 0 };
                let payload = body.get(from..).with_context(cut)?.to_vec();
                if qos == 1 {
                    let id = body[2 + length..from].to_vec();
                    // A broker that has gone meanwhile shows with the next read.
                    let _ = self.send(&packet(0x40, &id));
                }
                Packet::Publish { topic, payload, retain: kind & 1 == 1 }
            }
            4 => Packet::PubAck,
            9 => Packet::SubAck(body.get(2..).with_context(cut)?.to_vec()),
            13 => Packet::Pong,
            _ => Packet::Other(kind),
        }))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).map_err(|error| Closed(error.to_string()))
    }

    fn next_packet(&mut self) -> u16 {
        self.packet = self.packet.wrapping_add(1).max(1);
        self.packet
    }
}

fn text(body: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a text of MQTT is short");
    body.extend(length.to_be_bytes());
    body.extend(bytes);
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut whole = vec![kind];
    let mut left = body.len();
    loop {
        let more = left > 0x7f;
        whole.push((left & 0x7f) as u8 | if more { 0x80 } else { 0 });
        left >>= 7;
        if !more {
            break;
        }
    }
    whole.extend(body);
    whole
}

fn connect_packet(connect: &Connect<'_>) -> Vec<u8> {
    // Clean session; will with QoS 1; section 3.1.2.
    let will = if connect.will.is_some() { 0x04 | 0x08 } else { 0 };
    let user = if connect.user.is_some() { 0xc0 } else { 0 };
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0x02 | will | user, 0, 60];
    text(&mut body, connect.client_id.as_bytes());
    if let Some((topic, payload)) = connect.will {
        text(&mut body, topic.as_bytes());
        text(&mut body, payload);
    }
    if let Some((user, password)) = connect.user {
        text(&mut body, user.as_bytes());
        text(&mut body, password.as_bytes());
    }
    packet(0x10, &body)
}
