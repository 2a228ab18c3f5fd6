//! A fleet on the loopback interface: an authority, the embedded broker and clients that do what they are told.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picket_controller::broker::{Broker, Config, EmbeddedBroker, Event, Hooks, Limits};
use picket_controller::pki::{Crl, Names, Peer, Pki, Serial};
use picket_wire::ids::{ProbeId, Role};
use picket_wire::topic::Prefix;
use rcgen::{CertificateParams, KeyPair};
use rumqttc::{
    AsyncClient, ConnAck, Incoming, LastWill, MqttOptions, PublishOptions, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here waits this long; who does is stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(30);

/// Awaits what must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen"),
    }
}

pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub(crate) fn id(name: &str) -> ProbeId {
    name.parse().unwrap()
}

/// What the broker asks and tells.
pub(crate) struct Registry {
    roles: Mutex<HashMap<ProbeId, Vec<Role>>>,
    removed: Mutex<Vec<ProbeId>>,
    events: mpsc::UnboundedSender<Event>,
}

#[async_trait::async_trait]
impl Hooks for Registry {
    fn roles(&self, probe: &ProbeId) -> Vec<Role> {
        self.roles.lock().unwrap().get(probe).cloned().unwrap_or_default()
    }
    fn admit(&self, peer: &Peer) -> bool {
        !self.removed.lock().unwrap().iter().any(|id| id.as_str() == peer.identity.name())
    }
    async fn verify_dashboard(&self, user: &str, password: &[u8]) -> bool {
        user == "grafana" && password == b"secret"
    }
    fn event(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

pub(crate) struct Lab {
    pub(crate) pki: Pki,
    pub(crate) broker: EmbeddedBroker,
    pub(crate) registry: Arc<Registry>,
    events: mpsc::UnboundedReceiver<Event>,
    _dir: TempDir,
}

/// A certificate with what is needed to use it.
#[derive(Clone)]
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) serial: Serial,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Lab {
    pub(crate) async fn start() -> Lab {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &Names::default(), now()).unwrap();
        let crl = pki.crl(&[], now()).unwrap();
        let (events, heard) = mpsc::unbounded_channel();
        let registry = Arc::new(Registry { roles: Mutex::default(), removed: Mutex::default(), events });
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = Config { fleet: here, dashboards: Some(here), prefix: Prefix::default(), limits };
        let broker = EmbeddedBroker::start(config, &pki.server_tls(), &crl, Arc::clone(&registry) as Arc<dyn Hooks>).await.unwrap();
        Lab { pki, broker, registry, events: heard, _dir: dir }
    }

    pub(crate) fn grant(&self, probe: &str, roles: &[Role]) {
        self.registry.roles.lock().unwrap().insert(id(probe), roles.to_vec());
    }

    pub(crate) fn remove(&self, probe: &str) {
        self.registry.removed.lock().unwrap().push(id(probe));
    }

    pub(crate) fn card(&self, probe: &str) -> Card {
        self.card_at(probe, now())
    }

    /// A card that was issued at some time.
    pub(crate) fn card_at(&self, probe: &str, issued: OffsetDateTime) -> Card {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let issued = self.pki.issue_probe(&request, &id(probe), issued).unwrap();
        let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let tls = client_tls(self.pki.ca_der(), Some((certificate, &key)));
        Card { name: probe.to_owned(), serial: issued.serial, tls }
    }

    pub(crate) fn controller_card(&self) -> Card {
        let tls = self.pki.controller_tls();
        let serial = picket_controller::pki::identity_of(tls.leaf()).unwrap().serial;
        Card { name: self.pki.controller_name().to_owned(), serial, tls: tls.client().unwrap() }
    }

    /// No certificate, but trusts the fleet's authority.
    pub(crate) fn anonymous(&self) -> Arc<ClientConfig> {
        client_tls(self.pki.ca_der(), None)
    }

    pub(crate) fn crl(&self, revoked: &[&Card]) -> Crl {
        let serials: Vec<Serial> = revoked.iter().map(|card| card.serial.clone()).collect();
        self.pki.crl(&serials, now()).unwrap()
    }

    pub(crate) async fn join(&self, card: &Card) -> Mqtt {
        self.try_join(card, |_| ()).await.unwrap()
    }

    pub(crate) async fn try_join(&self, card: &Card, change: impl FnOnce(&mut MqttOptions)) -> Result<Mqtt, String> {
        Mqtt::connect(self.broker.fleet_addr(), &card.name, &card.tls, change).await
    }

    /// A controller that hears everything.
    pub(crate) async fn listening_controller(&self) -> Mqtt {
        let mut controller = self.join(&self.controller_card()).await;
        assert!(controller.subscribe("picket/v1/probe/+/evt").await);
        assert!(controller.subscribe("picket/v1/probe/+/live").await);
        controller
    }

    pub(crate) async fn dashboard(&self, client_id: &str, user: &str, password: &str) -> Result<Mqtt, String> {
        let address = self.broker.dashboard_addr().unwrap();
        Mqtt::connect(address, client_id, &self.anonymous(), |options| {
            options.set_credentials(user, password.to_owned());
        })
        .await
    }

    /// Waits for an event that fits; others are skipped.
    pub(crate) async fn event(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        soon(what, async {
            loop {
                let event = self.events.recv().await.unwrap();
                if fits(&event) {
                    return event;
                }
            }
        })
        .await
    }

    pub(crate) fn no_session_of(&self, card: &Card) -> bool {
        self.broker.sessions().iter().all(|session| session.serial.as_ref() != Some(&card.serial))
    }
}

pub(crate) fn client_tls(ca: &CertificateDer<'static>, own: Option<(CertificateDer<'static>, &KeyPair)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    Arc::new(match own {
        Some((certificate, key)) => {
            builder.with_client_auth_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap()
        }
        None => builder.with_no_client_auth(),
    })
}

/// A real MQTT client. Its loop runs beside the test and ends with the connection.
pub(crate) struct Mqtt {
    pub(crate) client: AsyncClient,
    incoming: mpsc::UnboundedReceiver<Result<Incoming, String>>,
    messages: VecDeque<(String, Vec<u8>, bool)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mqtt {
    pub(crate) async fn connect(
        address: SocketAddr,
        client_id: &str,
        tls: &Arc<ClientConfig>,
        change: impl FnOnce(&mut MqttOptions),
    ) -> Result<Mqtt, String> {
        let mut options = MqttOptions::new(client_id, ("127.0.0.1".to_owned(), address.port()));
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(tls))));
        options.set_keep_alive(30);
        options.set_max_packet_size(1 << 20, 1 << 20);
        change(&mut options);
        let (client, mut event_loop) = AsyncClient::builder(options).capacity(64).build();
        let (send, incoming) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let item = match event_loop.poll().await {
                    Ok(rumqttc::Event::Incoming(packet)) => Ok(packet),
                    Ok(_) => continue,
                    Err(error) => Err(error.to_string()),
                };
                let over = item.is_err();
                if send.send(item).is_err() || over {
                    return;
                }
            }
        });
        let mut mqtt = Mqtt { client, incoming, messages: VecDeque::new(), task };
        match soon("an answer to CONNECT", mqtt.incoming.recv()).await {
            Some(Ok(Incoming::ConnAck(ConnAck { code: rumqttc::ConnectReturnCode::Success, .. }))) => Ok(mqtt),
            Some(Ok(other)) => Err(format!("{other:?}")),
            Some(Err(error)) => Err(error),
            None => Err("gone".to_owned()),
        }
    }

    /// The next packet that is no message; messages are kept.
    async fn packet(&mut self, what: &str) -> Result<Incoming, String> {
        loop {
            match soon(what, self.incoming.recv()).await.unwrap_or(Err("gone".to_owned())) {
                Ok(Incoming::Publish(publish)) => self.keep(&publish),
                other => return other,
            }
        }
    }

    fn keep(&mut self, publish: &rumqttc::Publish) {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        self.messages.push_back((topic, publish.payload.to_vec(), publish.retain));
    }

    /// Subscribes; says whether it was granted.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> bool {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        match self.packet("SUBACK").await.unwrap() {
            Incoming::SubAck(ack) => matches!(ack.return_codes.as_slice(), [SubscribeReasonCode::Success(_)]),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&self, topic: &str, payload: &str, qos: QoS, retain: bool) {
        let options = PublishOptions::new(qos).retain(retain);
        self.client.publish(topic, payload.to_owned(), options).await.unwrap();
    }

    /// Publishes with QoS 1; an error when the connection ended instead of an acknowledgement.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) -> Result<(), String> {
        self.publish_as(topic, payload, false).await
    }

    pub(crate) async fn publish_as(&mut self, topic: &str, payload: &str, retain: bool) -> Result<(), String> {
        self.send(topic, payload, QoS::AtLeastOnce, retain).await;
        match self.packet("PUBACK").await? {
            Incoming::PubAck(_) => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for one acknowledgement.
    pub(crate) async fn acknowledged(&mut self) {
        match self.packet("PUBACK").await.unwrap() {
            Incoming::PubAck(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The next message: topic, payload, retain flag.
    pub(crate) async fn message(&mut self) -> (String, String, bool) {
        while self.messages.is_empty() {
            match soon("a message", self.incoming.recv()).await.unwrap_or(Err("gone".to_owned())) {
                Ok(Incoming::Publish(publish)) => self.keep(&publish),
                Ok(_) => {}
                Err(error) => panic!("no message: {error}"),
            }
        }
        let (topic, payload, retain) = self.messages.pop_front().unwrap();
        (topic, String::from_utf8(payload).unwrap(), retain)
    }

    /// What arrives up to and without the message whose payload is `last`.
    pub(crate) async fn until(&mut self, last: &str) -> Vec<(String, String)> {
        let mut before = Vec::new();
        loop {
            let (topic, payload, _) = self.message().await;
            if payload == last {
                return before;
            }
            before.push((topic, payload));
        }
    }

    /// Waits for the end of the connection.
    pub(crate) async fn ended(&mut self) -> String {
        loop {
            if let Err(error) = self.packet("the end of the connection").await {
                return error;
            }
        }
    }

    /// Drops the connection without a DISCONNECT.
    pub(crate) async fn vanish(mut self) {
        self.task.abort();
        while self.incoming.recv().await.is_some() {}
    }
}

pub(crate) fn with_will(topic: &str, payload: &str, retain: bool) -> impl FnOnce(&mut MqttOptions) {
    let will = LastWill::new(topic, payload, QoS::AtLeastOnce, retain);
    move |options| {
        options.set_last_will(will);
    }
}

/// A TLS connection over which a test speaks MQTT byte by byte.
pub(crate) struct Raw(pub(crate) TlsStream<TcpStream>);

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    let mut length = body.len();
    loop {
        let digit = u8::try_from(length % 128).unwrap();
        length /= 128;
        bytes.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr, tls: &Arc<ClientConfig>) -> std::io::Result<Raw> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map(Raw)
    }

    pub(crate) async fn send(&mut self, kind: u8, body: &[u8]) {
        self.0.write_all(&packet(kind, body)).await.unwrap();
    }

    pub(crate) async fn connect(&mut self, level: u8, client_id: &str, user: Option<(&str, &str)>) {
        let flags = if user.is_some() { 0xc2 } else { 2 };
        let mut body = [text("MQTT"), vec![level, flags, 0, 30]].concat();
        if level == 5 {
            body.push(0);
        }
        body.extend(text(client_id));
        if let Some((user, password)) = user {
            body.extend(text(user));
            body.extend(text(password));
        }
        self.send(0x10, &body).await;
    }

    pub(crate) async fn subscribe(&mut self, filter: &str) {
        self.send(0x82, &[vec![0, 1], text(filter), vec![1]].concat()).await;
    }

    pub(crate) async fn publish(&mut self, qos: u8, topic: &str, payload: &[u8]) {
        let number = if qos > 0 { vec![0, 1] } else { Vec::new() };
        self.send(0x30 | qos << 1, &[text(topic), number, payload.to_vec()].concat()).await;
    }

    /// The next packet: first byte and body; `None` at the end of the connection.
    pub(crate) async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        soon("a packet or the end", async {
            let kind = self.0.read_u8().await.ok()?;
            let mut length = 0;
            for shift in [0, 7, 14, 21] {
                let digit = self.0.read_u8().await.ok()?;
                length |= usize::from(digit & 0x7f) << shift;
                if digit & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        })
        .await
    }
}
