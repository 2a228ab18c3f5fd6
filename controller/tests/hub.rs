//! The hub at a real broker: a probe that enrols, connects by its certificate, works, and vanishes.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers included")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use picket_controller::broker::{self, Broker, EmbeddedBroker, Hooks, Limits};
use picket_controller::clock::{Clock, date};
use picket_controller::hub::mqtt::{Hub, HubConfig};
use picket_controller::pki::{Names, Peer, Pki};
use picket_controller::service::{ResultQuery, Service, ServiceConfig, Timing};
use picket_controller::view::{JobRequest, JobState, ProbeRequest, ProbeState};
use picket_wire::command::Command;
use picket_wire::enrol::{EnrolRequest, Token};
use picket_wire::event::{Birth, Check, Event, InterfaceLimits, Live, SelfTest};
use picket_wire::ids::{ProbeId, Role, SessionId, StreamId};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, BatchHead, LeaseEnd, Record, ResultBatch, Runs, State};
use picket_wire::topic::{Prefix, Topic};
use picket_wire::{codec, envelope};
use rumqttc::{AsyncClient, Event as Mqtt, EventLoop, LastWill, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

struct Everybody(std::sync::OnceLock<Service>);

#[async_trait]
impl Hooks for Everybody {
    fn roles(&self, probe: &ProbeId) -> Vec<Role> {
        self.0.get().and_then(|service| service.probe_roles(probe)).unwrap_or_default()
    }
    fn admit(&self, _peer: &Peer) -> bool {
        true
    }
    async fn verify_dashboard(&self, _user: &str, _password: &[u8]) -> bool {
        false
    }
}

/// A probe's end of one connection.
struct Probe {
    client: AsyncClient,
    events: EventLoop,
    service: Service,
}

fn topics() -> (Prefix, ProbeId) {
    (Prefix::default(), "attic".parse().unwrap())
}

impl Probe {
    async fn connect(service: &Service, tls: Arc<ClientConfig>, port: u16, session: u64) -> Self {
        let (prefix, id) = topics();
        let mut options = MqttOptions::new(id.as_str(), ("127.0.0.1", port));
        let will = codec::encode(&Live::Death { session: SessionId(session), orderly: false });
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls))).set_keep_alive(5);
        options.set_max_packet_size(codec::MESSAGE_MAX, codec::MESSAGE_MAX);
        options.set_last_will(LastWill::new(Topic::ProbeLive(id.clone()).format(&prefix), will, QoS::AtLeastOnce, false));
        let (client, events) = AsyncClient::builder(options).capacity(32).build();
        let mut probe = Self { client, events, service: service.clone() };
        for topic in [Topic::ProbeCmd(id.clone()), Topic::RoleCmd(Role::Scan)] {
            probe.client.subscribe(topic.format(&prefix).as_str(), QoS::AtLeastOnce).await.unwrap();
            while !matches!(probe.packet().await, Packet::SubAck(_)) {}
        }
        let birth = Birth {
            session: SessionId(session),
            nonce: session * 7,
            version: "0.1.0".into(),
            hardware: "a test".into(),
            uptime: Duration::ZERO,
            self_test: SelfTest { raw_socket: Check::Works, ipv4: Check::Works, ipv6: Check::Works },
            stream: StreamId(5),
            acked: 0,
            leases: vec![],
            interface: InterfaceLimits { name: "eth0".into(), packets: "5kpps".parse().unwrap(), bits: "20Mbit".parse().unwrap() },
        };
        probe.send(Topic::ProbeLive(id), codec::encode(&Live::Birth(birth))).await;
        probe
    }

    async fn send(&self, topic: Topic, payload: Vec<u8>) {
        self.client.publish(topic.format(&topics().0), payload, PublishOptions::at_least_once()).await.unwrap();
    }

    async fn packet(&mut self) -> Packet {
        loop {
            let event =
                tokio::time::timeout(Duration::from_secs(20), self.events.poll()).await.expect("the broker says something").unwrap();
            if let Mqtt::Incoming(packet) = event {
                return packet;
            }
        }
    }

    async fn command<T>(&mut self, pick: impl Fn(Command) -> Option<T>) -> T {
        loop {
            if let Packet::Publish(message) = self.packet().await {
                let key = self.service.pki().signing_key().verifying_key();
                if let Some(found) = pick(envelope::open(&message.payload, &[key]).unwrap().command) {
                    return found;
                }
            }
        }
    }
}

async fn until(service: &Service, state: ProbeState) {
    let waiting = async {
        while service.probe(&topics().1).await.unwrap().state != state {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "not {state:?} but {:?}", service.probe(&topics().1).await.unwrap());
}

/// Enrols the probe; its side of TLS from then on.
async fn enrol(service: &Service) -> Arc<ClientConfig> {
    let invited =
        service.probe_add(ProbeRequest { id: topics().1, site: None, labels: vec![], roles: vec![], token_hours: None }).await.unwrap();
    let token: Token = invited.token.parse().unwrap();
    assert_eq!(token.ca_sha256, service.pki().ca_fingerprint());
    let key = rcgen::KeyPair::generate().unwrap();
    let request = EnrolRequest {
        probe: token.probe,
        secret: hex::encode(token.secret),
        csr_pem: rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap(),
        hardware: "a test".into(),
        version: "0.1.0".into(),
    };
    let answer = service.enrol(request, [127, 0, 0, 1].into()).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(answer.ca_pem.as_bytes()).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_slice(answer.certificate_pem.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    Arc::new(config)
}

#[tokio::test]
async fn a_probe_at_a_real_broker_works_and_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let clock = Clock::system();
    let now = date(clock.now().wall);
    let pki = Arc::new(Pki::open(&data, &Names::default(), now).unwrap());
    let hooks = Arc::new(Everybody(std::sync::OnceLock::new()));
    let config =
        broker::Config { fleet: "127.0.0.1:0".parse().unwrap(), dashboards: None, prefix: Prefix::default(), limits: Limits::default() };
    let broker =
        EmbeddedBroker::start(config, &pki.server_tls(), &pki.crl(&[], now).unwrap(), Arc::clone(&hooks) as Arc<dyn Hooks>).await.unwrap();
    let port = broker.fleet_addr().port();
    let config = ServiceConfig {
        database: data.join("picket.db"),
        data_dir: data,
        prefix: Prefix::default(),
        api_urls: vec![],
        brokers: vec![],
        policy: AddressPolicy { allow: vec!["198.18.0.0/15".parse().unwrap()], deny: vec![] },
        timing: Timing::default(),
        lookup: picket_controller::lookup::Settings::default(),
        captures: Default::default(),
    };
    let service = Service::open(config, Arc::clone(&pki), clock).await.unwrap();
    hooks.0.set(service.clone()).ok().unwrap();
    let hub = Hub::start(service.clone(), HubConfig { host: "127.0.0.1".into(), port, keep_alive: Duration::from_secs(5) }).unwrap();
    assert!(Hub::start(service.clone(), HubConfig { host: "127.0.0.1".into(), port, keep_alive: Duration::from_secs(5) }).is_none());
    while !service.health().await.broker_connected {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let tls = enrol(&service).await;
    let mut probe = Probe::connect(&service, Arc::clone(&tls), port, 1).await;
    let nonce = probe.command(|command| if let Command::Welcome { nonce, .. } = command { Some(nonce) } else { None }).await;
    assert_eq!(nonce, 7);
    let request: JobRequest =
        serde_json::from_value(serde_json::json!({ "targets": ["198.18.0.1"], "ports": "1-100", "technique": "syn" })).unwrap();
    let job = service.submit(request, "admin").await.unwrap().job.unwrap();
    let lease = probe.command(|command| if let Command::Grant(lease) = command { Some(lease) } else { None }).await;
    assert_eq!((lease.id.job, lease.from, lease.to), (job.id, 0, 100));
    let head = BatchHead {
        lease: lease.id,
        from: 0,
        to: 100,
        started: service.clock().now().wall,
        took: Duration::from_millis(3),
        packets: 190,
        duplicates: 0,
    };
    let answers = (0..10).map(|offset| Answer { offset, state: State::Open, rtt: Duration::from_micros(90), ttl: 64 }).collect();
    let batch = Record::Batch(ResultBatch::new(head, answers, Runs::default(), vec![]));
    let ended = Record::LeaseEnded { lease: lease.id, position: 100, end: LeaseEnd::Done };
    let records = [batch, ended].iter().map(codec::encode).collect();
    let event = Event::Records { stream: StreamId(5), after: 0, first: 1, records };
    probe.send(Topic::ProbeEvt(topics().1), codec::encode(&event)).await;
    let acked = probe.command(|command| if let Command::Ack { up_to, .. } = command { Some(up_to) } else { None }).await;
    assert_eq!(acked, 2);
    let done = service.job(job.id).await.unwrap();
    assert_eq!((done.state, done.coverage.open, done.coverage.silent), (JobState::Done, 10, 90));
    assert_eq!(service.results(&ResultQuery { job: Some(job.id), ..ResultQuery::default() }).await.unwrap().items.len(), 10);

    // A new session begins before the broker has noticed the end of the old one: the old will changes nothing.
    until(&service, ProbeState::Online).await;
    let mut second = Probe::connect(&service, tls, port, 2).await;
    second.command(|command| matches!(command, Command::Welcome { .. }).then_some(())).await;
    drop(probe);
    until(&service, ProbeState::Online).await;
    drop(second);
    until(&service, ProbeState::Offline).await;
    assert_eq!(service.probe(&topics().1).await.unwrap().reason, "its connection broke");

    hub.stop().await;
    assert!(!service.health().await.broker_connected);
    broker.shutdown().await;
}
