//! The link against a small broker of our own that says only what the test tells it to.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::identity::Identity;
use crate::identity::tests::Fleet;

/// One end of one connection, seen from the broker.
struct Peer(TlsStream<TcpStream>);

/// An MQTT packet: the first byte and what follows the length.
struct Packet(u8, Vec<u8>);

impl Packet {
    fn kind(&self) -> u8 {
        self.0 >> 4
    }
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

impl Peer {
    /// `None` at the end of the connection.
    async fn read(&mut self) -> Option<Packet> {
        let first = self.0.read_u8().await.ok()?;
        let (mut len, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.ok()?;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).await.ok()?;
        Some(Packet(first, body))
    }

    /// The next packet that is not a ping (those are answered); it must be of this kind.
    async fn expect(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let packet = self.read().await.expect("the connection is open");
            if packet.kind() == PINGREQ {
                self.write(&[0xD0, 0]).await;
                continue;
            }
            assert_eq!(packet.kind(), kind);
            return packet.1;
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Takes the connection and the first subscription; returns the bytes of both packets.
    async fn welcome(&mut self) -> (Vec<u8>, Vec<u8>) {
        let connect = self.expect(CONNECT).await;
        self.write(&[0x20, 2, 0, 0]).await;
        let subscribe = self.expect(SUBSCRIBE).await;
        self.write(&[0x90, 3, subscribe[0], subscribe[1], 1]).await;
        (connect, subscribe)
    }

    async fn publish(&mut self, topic: &str, payload: &[u8]) {
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        body.extend_from_slice(payload);
        let mut len = body.len();
        let mut packet = vec![0x30];
        while len >= 0x80 {
            packet.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        packet.push(len as u8);
        packet.extend_from_slice(&body);
        self.write(&packet).await;
    }

    /// A published message's topic and payload, acknowledged.
    async fn published(&mut self) -> (String, Vec<u8>) {
        let body = self.expect(PUBLISH).await;
        let len = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + len].to_vec()).unwrap();
        self.write(&[PUBACK << 4, 2, body[2 + len], body[3 + len]]).await;
        (topic, body[4 + len..].to_vec())
    }
}

struct Broker {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Broker {
    async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        Peer(self.tls.accept(stream).await.unwrap())
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// A broker and a link to it that counts its sessions from 1 and waits 10 ms at most between attempts.
async fn start(change: impl FnOnce(&mut MqttConfig)) -> (Broker, Link, mpsc::Receiver<LinkEvent>) {
    let fleet = Fleet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let identity: Identity = fleet.probe("attic", &[address]);
    let mut config = MqttConfig::new(identity.brokers().to_vec(), identity.probe().clone(), identity.prefix().clone());
    config.backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    change(&mut config);
    let mut sessions = 0;
    let begin = move || {
        sessions += 1;
        let tls = identity.tls_config().unwrap();
        Beginning { session: SessionId(sessions), will: format!("will {sessions}").into_bytes(), tls }
    };
    let (link, events) = Link::start(config, begin, || u64::MAX);
    (Broker { listener, tls: TlsAcceptor::from(fleet.broker()) }, link, events)
}

async fn connected(events: &mut mpsc::Receiver<LinkEvent>) -> Session {
    match events.recv().await {
        Some(LinkEvent::Connected(session)) => session,
        other => panic!("{other:?}"),
    }
}

async fn disconnected(events: &mut mpsc::Receiver<LinkEvent>) -> LinkError {
    match events.recv().await {
        Some(LinkEvent::Disconnected { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_has_its_names_its_will_and_goes_both_ways() {
    let (broker, link, mut events) = start(|_| ()).await;
    let mut peer = broker.accept().await;
    let (connect, subscribe) = peer.welcome().await;
    // MQTT 3.1.1, section 3.1.2: will (QoS 1, not retained) and clean session; keep-alive.
    assert_eq!(connect[..10], [0, 4, b'M', b'Q', b'T', b'T', 4, 0b0000_1110, 0, 10]);
    assert!(contains(&connect, b"\0\x05attic"));
    assert!(contains(&connect, b"\0\x1apicket/v1/probe/attic/live\0\x06will 1"));
    assert!(contains(&subscribe, b"\0\x19picket/v1/probe/attic/cmd\x01"));
    let session = connected(&mut events).await;
    assert_eq!(session.id(), SessionId(1));

    session.publish(Outlet::Live, b"born".to_vec()).unwrap();
    let long = vec![7; MESSAGE_MAX];
    session.publish(Outlet::Events, long.clone()).unwrap();
    assert_eq!(session.publish(Outlet::Events, vec![0; MESSAGE_MAX + 1]), Err(PublishError::TooLong(MESSAGE_MAX + 1)));
    assert_eq!(peer.published().await, ("picket/v1/probe/attic/live".into(), b"born".to_vec()));
    assert_eq!(peer.published().await, ("picket/v1/probe/attic/evt".into(), long.clone()));

    peer.publish("picket/v1/somebody/else", b"ignored").await;
    peer.publish("picket/v1/probe/attic/cmd", &long).await;
    match events.recv().await.unwrap() {
        LinkEvent::Message { topic, payload } => {
            assert_eq!(topic, Topic::ProbeCmd("attic".parse().unwrap()));
            assert_eq!(payload, long);
        }
        other => panic!("{other:?}"),
    }

    session.publish(Outlet::Live, b"good-bye".to_vec()).unwrap();
    let closing = tokio::spawn(link.close());
    assert_eq!(peer.published().await.1, b"good-bye");
    peer.expect(DISCONNECT).await;
    closing.await.unwrap();
    assert!(events.recv().await.is_none());
    assert_eq!(session.publish(Outlet::Live, vec![]), Err(PublishError::Gone));
}

#[tokio::test]
async fn every_connection_is_a_new_session_that_repeats_nothing() {
    let (broker, _link, mut events) = start(|_| ()).await;
    let mut peer = broker.accept().await;
    peer.welcome().await;
    let first = connected(&mut events).await;
    first.publish(Outlet::Events, b"unacknowledged".to_vec()).unwrap();
    peer.expect(PUBLISH).await;
    drop(peer);
    let reason = disconnected(&mut events).await;
    assert!(matches!(reason, LinkError::Lost { .. }), "{reason:?}");
    assert_eq!(first.publish(Outlet::Events, b"late".to_vec()), Err(PublishError::Gone));

    let mut peer = broker.accept().await;
    let (connect, _) = peer.welcome().await;
    assert!(contains(&connect, b"will 2"));
    let second = connected(&mut events).await;
    assert_eq!(second.id(), SessionId(2));
    second.publish(Outlet::Events, b"fresh".to_vec()).unwrap();
    assert_eq!(peer.published().await.1, b"fresh");
}

#[tokio::test]
async fn roles_are_subscribed_on_request_and_a_refusal_is_said() {
    let (broker, _link, mut events) = start(|_| ()).await;
    let mut peer = broker.accept().await;
    peer.welcome().await;
    let session = connected(&mut events).await;
    session.subscribe(&[]);
    assert!(matches!(events.recv().await, Some(LinkEvent::Subscribed(SessionId(1), Ok(roles))) if roles.is_empty()));
    session.subscribe(&[Role::Scan, Role::Trace]);
    let packet = peer.expect(SUBSCRIBE).await;
    assert!(contains(&packet, b"picket/v1/role/scan/cmd\x01") && contains(&packet, b"picket/v1/role/trace/cmd\x01"));
    peer.write(&[0x90, 4, packet[0], packet[1], 1, 0]).await;
    assert!(matches!(events.recv().await, Some(LinkEvent::Subscribed(SessionId(1), Ok(roles))) if roles == [Role::Scan, Role::Trace]));
    session.subscribe(&[Role::Tool]);
    let packet = peer.expect(SUBSCRIBE).await;
    peer.write(&[0x90, 3, packet[0], packet[1], 0x80]).await;
    match events.recv().await {
        Some(LinkEvent::Subscribed(SessionId(1), Err(error))) => {
            assert!(
                error.to_string().ends_with("refuses the subscription to picket/v1/role/tool/cmd: this identity may not read it"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refusals_are_said_and_tried_again() {
    let (broker, _link, mut events) = start(|_| ()).await;
    let mut peer = broker.accept().await;
    peer.expect(CONNECT).await;
    peer.write(&[0x20, 2, 0, 5]).await;
    let reason = disconnected(&mut events).await;
    assert!(reason.to_string().ends_with("refuses this probe: NotAuthorized"), "{reason}");

    let mut peer = broker.accept().await;
    peer.expect(CONNECT).await;
    peer.write(&[0x20, 2, 0, 0]).await;
    let packet = peer.expect(SUBSCRIBE).await;
    peer.write(&[0x90, 3, packet[0], packet[1], 0x80]).await;
    let reason = disconnected(&mut events).await;
    assert!(matches!(&reason, LinkError::Subscription { topic, .. } if topic == "picket/v1/probe/attic/cmd"), "{reason:?}");

    let mut peer = broker.accept().await;
    peer.welcome().await;
    connected(&mut events).await;
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left() {
    let (broker, _link, mut events) = start(|config| {
        config.keep_alive = Duration::from_secs(1);
        config.silence = Duration::from_millis(1500);
    })
    .await;
    let mut peer = broker.accept().await;
    peer.welcome().await;
    let session = connected(&mut events).await;
    // Pings are not answered, and a busy sender does not even ping: neither may hide the silence.
    let busy = tokio::spawn(async move {
        while session.publish(Outlet::Events, vec![1; 100]) != Err(PublishError::Gone) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let reason = disconnected(&mut events).await;
    assert!(matches!(reason, LinkError::Silent { .. }), "{reason:?}");
    busy.await.unwrap();
    let mut peer = broker.accept().await;
    peer.welcome().await;
    connected(&mut events).await;
}

#[tokio::test]
async fn a_wait_can_be_ended_from_outside() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let (broker, link, mut events) = start(|config| {
        config.brokers.insert(0, dead);
        config.backoff = Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600));
    })
    .await;
    assert!(matches!(disconnected(&mut events).await, LinkError::Connect { .. }));
    link.retry_now();
    let mut peer = broker.accept().await;
    peer.welcome().await;
    connected(&mut events).await;
}

#[tokio::test]
async fn brokers_are_tried_in_turn() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let (broker, link, mut events) = start(|config| {
        let good = std::mem::take(&mut config.brokers);
        config.brokers = vec!["nonsense".into(), dead];
        config.brokers.extend(good);
    })
    .await;
    assert!(matches!(disconnected(&mut events).await, LinkError::Address { .. }));
    assert!(matches!(disconnected(&mut events).await, LinkError::Connect { .. }));
    let mut peer = broker.accept().await;
    peer.welcome().await;
    connected(&mut events).await;
    // A broker that never answers the good-bye does not hold up the end for long.
    link.close().await;
    drop(peer);
}

#[tokio::test]
async fn a_stranger_in_the_brokers_place_is_refused() {
    let (broker, _link, mut events) = start(|_| ()).await;
    let stranger = TlsAcceptor::from(Fleet::new().broker());
    let (stream, _) = broker.listener.accept().await.unwrap();
    assert!(stranger.accept(stream).await.is_err());
    let reason = disconnected(&mut events).await;
    assert!(matches!(reason, LinkError::Connect { .. }), "{reason:?}");
}

/// Everything at once: more than the library's in-flight limit, out and in, nothing lost or reordered.
#[tokio::test]
async fn many_messages_keep_their_order() {
    let (broker, _link, mut events) = start(|_| ()).await;
    let mut peer = broker.accept().await;
    peer.welcome().await;
    let session = connected(&mut events).await;
    let sender = tokio::spawn(async move {
        let mut waiting: VecDeque<u32> = (0..1000).collect();
        while let Some(number) = waiting.front() {
            match session.publish(Outlet::Events, number.to_be_bytes().to_vec()) {
                Ok(()) => {
                    waiting.pop_front();
                }
                Err(PublishError::Busy) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
        session
    });
    for number in 0..1000u32 {
        assert_eq!(peer.published().await.1, number.to_be_bytes());
        peer.publish("picket/v1/role/scan/cmd", &number.to_be_bytes()).await;
        match events.recv().await.unwrap() {
            LinkEvent::Message { topic, payload } => {
                assert_eq!(topic, Topic::RoleCmd(Role::Scan));
                assert_eq!(payload, number.to_be_bytes()[..]);
            }
            other => panic!("{other:?}"),
        }
    }
    sender.await.unwrap();
}
