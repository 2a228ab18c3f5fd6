//! Nobody gets in and nobody gets further than they may: the embedded broker against real MQTT clients over real TLS.
//!
//! That something does *not* arrive is never shown by waiting: a control message that must arrive is sent after it on the
//! same path, and what came before it is looked at.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod lab;

use std::time::{Duration, Instant};

use lab::{Card, Lab, Raw, client_tls, id, now, soon, with_will};
use picket_controller::broker::{Action, Broker, Event, Limits, Principal, Refusal};
use picket_controller::pki::{Names, Pki};
use picket_wire::ids::Role;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rumqttc::QoS;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const ATTIC_CMD: &str = "picket/v1/probe/attic/cmd";
const ATTIC_EVT: &str = "picket/v1/probe/attic/evt";
const ATTIC_LIVE: &str = "picket/v1/probe/attic/live";
const CELLAR_CMD: &str = "picket/v1/probe/cellar/cmd";
const CELLAR_EVT: &str = "picket/v1/probe/cellar/evt";
const CELLAR_LIVE: &str = "picket/v1/probe/cellar/live";

fn pair(topic: &str, payload: &str) -> (String, String) {
    (topic.to_owned(), payload.to_owned())
}

#[tokio::test]
async fn everybody_reaches_what_is_theirs() {
    let mut lab = Lab::start().await;
    lab.grant("attic", &[Role::Scan]);
    let mut controller = lab.listening_controller().await;
    let mut attic = lab.try_join(&lab.card("attic"), with_will(ATTIC_LIVE, "dead", false)).await.unwrap();
    assert!(attic.subscribe(ATTIC_CMD).await);
    assert!(attic.subscribe("picket/v1/role/scan/cmd").await);
    attic.publish(ATTIC_LIVE, "born").await.unwrap();
    attic.publish(ATTIC_EVT, "found").await.unwrap();
    controller.publish("picket/v1/role/scan/cmd", "job").await.unwrap();
    controller.publish(ATTIC_CMD, "lease").await.unwrap();
    assert_eq!(attic.until("lease").await, [pair("picket/v1/role/scan/cmd", "job")]);
    assert_eq!(controller.until("found").await, [pair(ATTIC_LIVE, "born")]);
    lab.event("attic's connection", |event| matches!(event, Event::Connected { who, .. } if *who == Principal::Probe(id("attic")))).await;
    attic.vanish().await;
    assert_eq!(controller.message().await, (ATTIC_LIVE.to_owned(), "dead".to_owned(), false));
    lab.event("its end", |event| matches!(event, Event::Disconnected { session } if session.principal == Principal::Probe(id("attic"))))
        .await;
}

#[tokio::test]
async fn a_foreign_publication_reaches_nobody_and_ends_the_session() {
    let mut lab = Lab::start().await;
    lab.grant("attic", &Role::ALL);
    lab.grant("cellar", &Role::ALL);
    let mut controller = lab.listening_controller().await;
    let card = lab.card("attic");
    let mut attic = lab.join(&card).await;
    assert!(attic.subscribe(ATTIC_CMD).await);
    assert!(attic.subscribe("picket/v1/role/scan/cmd").await);
    let mut board = lab.dashboard("board", "grafana", "secret").await.unwrap();
    assert!(board.subscribe("picket/v1/fleet/#").await);

    let burglar = lab.card("cellar");
    let foreign = [
        ATTIC_EVT,
        ATTIC_LIVE,
        ATTIC_CMD,
        CELLAR_CMD,
        "picket/v1/role/scan/cmd",
        "picket/v1/fleet/summary",
        "picket/v1/probe/cellar/evt/more",
        "picket/v1/probe/cellar",
        "$SYS/broker/uptime",
        "$share/all/picket/v1/probe/attic/evt",
        "elsewhere",
        "/",
    ];
    for topic in foreign {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let mut cellar = lab.join(&burglar).await;
            cellar.send(topic, "forged", qos, false).await;
            cellar.ended().await;
            let denied = lab.event("the denial", |event| matches!(event, Event::Denied { .. })).await;
            let action = Action::Publish { retain: false };
            assert_eq!(denied, Event::Denied { who: Principal::Probe(id("cellar")), action, topic: topic.to_owned() });
        }
    }
    let mut cellar = lab.join(&burglar).await;
    cellar.send(CELLAR_EVT, "forged", QoS::AtLeastOnce, true).await;
    cellar.ended().await;

    attic.publish(ATTIC_EVT, "control").await.unwrap();
    assert_eq!(controller.until("control").await, []);
    controller.publish(ATTIC_CMD, "control").await.unwrap();
    assert_eq!(attic.until("control").await, []);
    controller.publish("picket/v1/fleet/x", "control").await.unwrap();
    assert_eq!(board.until("control").await, []);
    let mut late = lab.listening_controller().await;
    attic.publish(ATTIC_EVT, "control").await.unwrap();
    assert_eq!(late.until("control").await, [], "nothing was retained");
}

#[tokio::test]
async fn a_foreign_subscription_is_refused_and_delivers_nothing() {
    let mut lab = Lab::start().await;
    lab.grant("cellar", &[Role::Tool]);
    let mut controller = lab.join(&lab.controller_card()).await;
    let mut attic = lab.join(&lab.card("attic")).await;
    assert!(attic.subscribe(ATTIC_CMD).await);
    let mut cellar = lab.join(&lab.card("cellar")).await;
    let foreign = [
        ATTIC_CMD,
        ATTIC_EVT,
        ATTIC_LIVE,
        CELLAR_EVT,
        CELLAR_LIVE,
        "picket/v1/probe/+/cmd",
        "picket/v1/probe/cellar/+",
        "picket/v1/probe/cellar/#",
        "picket/v1/role/scan/cmd",
        "picket/v1/role/+/cmd",
        "picket/v1/#",
        "picket/v1/fleet/#",
        "+/v1/probe/cellar/cmd",
        "#",
        "+/#",
        "$SYS/#",
        "$share/all/picket/v1/probe/attic/cmd",
        "$share/all/picket/v1/probe/cellar/cmd",
        "$share/all/#",
    ];
    for filter in foreign {
        assert!(!cellar.subscribe(filter).await, "{filter}");
        lab.event("the denial", |event| matches!(event, Event::Denied { topic, .. } if topic == filter)).await;
    }
    assert!(cellar.subscribe(CELLAR_CMD).await);
    assert!(cellar.subscribe("picket/v1/role/tool/cmd").await);
    attic.publish(ATTIC_EVT, "attic's own").await.unwrap();
    attic.publish(ATTIC_LIVE, "attic's own").await.unwrap();
    for topic in [ATTIC_CMD, "picket/v1/role/scan/cmd", "picket/v1/fleet/summary", "picket/v1/role/tool/cmd", CELLAR_CMD] {
        controller.publish(topic, topic).await.unwrap();
    }
    assert_eq!(cellar.until(CELLAR_CMD).await, [pair("picket/v1/role/tool/cmd", "picket/v1/role/tool/cmd")]);
    assert_eq!(attic.message().await.1, ATTIC_CMD, "the message that must not reach cellar did reach its owner");
}

#[tokio::test]
async fn a_role_that_was_taken_is_gone_with_the_session() {
    let lab = Lab::start().await;
    lab.grant("attic", &[Role::Scan]);
    let card = lab.card("attic");
    let mut attic = lab.join(&card).await;
    assert!(attic.subscribe("picket/v1/role/scan/cmd").await);
    lab.grant("attic", &[]);
    assert_eq!(lab.broker.disconnect_probe(&id("attic")), 1);
    attic.ended().await;
    let mut attic = lab.join(&card).await;
    assert!(!attic.subscribe("picket/v1/role/scan/cmd").await);
    assert!(attic.subscribe(ATTIC_CMD).await);
}

#[tokio::test]
async fn the_controller_may_do_its_work_and_no_more() {
    let lab = Lab::start().await;
    for filter in ["#", "picket/v1/#", "picket/v1/fleet/#", "picket/v1/probe/+/cmd", "picket/v1/probe/#", "picket/v1/role/scan/cmd"] {
        let mut controller = lab.join(&lab.controller_card()).await;
        assert!(!controller.subscribe(filter).await, "{filter}");
    }
    for (topic, retain) in [(ATTIC_EVT, false), (ATTIC_LIVE, false), (ATTIC_CMD, true), ("elsewhere", false)] {
        let mut controller = lab.join(&lab.controller_card()).await;
        assert!(controller.publish_as(topic, "x", retain).await.is_err(), "{topic}");
    }
    let mut controller = lab.listening_controller().await;
    assert!(controller.subscribe(ATTIC_EVT).await, "one probe's topics, when a controller owns only some");
    controller.publish_as("picket/v1/fleet/summary", "{}", true).await.unwrap();
}

#[tokio::test]
async fn a_foreign_will_or_client_id_is_refused_at_the_door() {
    let mut lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let burglar = lab.card("cellar");
    let wills = [
        (ATTIC_LIVE, false),
        (ATTIC_EVT, false),
        (CELLAR_EVT, false),
        (CELLAR_CMD, false),
        (CELLAR_LIVE, true),
        ("picket/v1/fleet/summary", false),
        ("$SYS/x", false),
    ];
    for (topic, retain) in wills {
        assert!(lab.try_join(&burglar, with_will(topic, "forged", retain)).await.is_err(), "{topic}");
        let refused = lab.event("the refusal", |event| matches!(event, Event::Refused { .. })).await;
        assert!(matches!(&refused, Event::Refused { why: Refusal::Will(named), .. } if named == topic), "{refused:?}");
    }
    for name in ["attic", "cellar2", lab.pki.controller_name(), "CELLAR", "x"] {
        let disguised = Card { name: name.to_owned(), ..burglar.clone() };
        let error = lab.try_join(&disguised, |_| ()).await.err().unwrap();
        assert!(error.contains("BadClientId"), "{name}: {error}");
    }
    let mut empty = Raw::open(lab.broker.fleet_addr(), &burglar.tls).await.unwrap();
    empty.connect(4, "", None).await;
    assert_eq!(empty.read().await, Some((0x20, vec![0, 2])));
    assert_eq!(empty.read().await, None);

    let attic = lab.try_join(&lab.card("attic"), with_will(ATTIC_LIVE, "control", false)).await.unwrap();
    attic.vanish().await;
    assert_eq!(controller.until("control").await, []);
}

/// A certificate for `attic` as the fleet's would be, but signed by itself.
fn self_signed(lab: &Lab) -> Card {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "probe");
    params.distinguished_name.push(DnType::CommonName, "attic");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Card { name: "attic".to_owned(), serial: "01".parse().unwrap(), tls: client_tls(lab.pki.ca_der(), Some((certificate, &key))) }
}

#[tokio::test]
async fn without_a_valid_certificate_nobody_gets_past_tls() {
    let mut lab = Lab::start().await;
    let attic = || "attic".to_owned();

    let other_dir = tempfile::tempdir().unwrap();
    let other = Pki::open(other_dir.path(), &Names::default(), now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let issued = other.issue_probe(&request, &id("attic"), now()).unwrap();
    let certificate = rustls_pki_types::pem::PemObject::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let foreign = Card { name: attic(), serial: issued.serial, tls: client_tls(lab.pki.ca_der(), Some((certificate, &key))) };

    let revoked = lab.card("attic");
    lab.broker.update_crl(&lab.crl(&[&revoked])).unwrap();

    let refused = [
        ("no certificate", Card { name: attic(), serial: "01".parse().unwrap(), tls: lab.anonymous() }),
        ("foreign authority", foreign),
        ("self-signed", self_signed(&lab)),
        ("revoked", revoked),
        ("expired", lab.card_at("attic", now() - time::Duration::days(91))),
        ("not yet valid", lab.card_at("attic", now() + time::Duration::days(2))),
    ];
    for (what, card) in &refused {
        assert!(lab.try_join(card, |_| ()).await.is_err(), "{what}");
        let event = lab.event("the refusal", |event| matches!(event, Event::Refused { .. })).await;
        assert!(matches!(&event, Event::Refused { why: Refusal::Tls(_), who: None, .. }), "{what}: {event:?}");
    }
    lab.join(&lab.card("attic")).await;
    assert_eq!(lab.broker.sessions().len(), 1);
}

#[tokio::test]
async fn a_probe_that_was_removed_is_not_admitted() {
    let mut lab = Lab::start().await;
    let card = lab.card("attic");
    lab.remove("attic");
    assert!(lab.try_join(&card, |_| ()).await.is_err());
    let event = lab.event("the refusal", |event| matches!(event, Event::Refused { .. })).await;
    assert!(matches!(event, Event::Refused { why: Refusal::NotAdmitted, .. }), "{event:?}");
}

#[tokio::test]
async fn revocation_cuts_a_living_session_at_once() {
    let mut lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let (old, new, other) = (lab.card("attic"), lab.card("attic"), lab.card("cellar"));
    let mut attic = lab.try_join(&old, with_will(ATTIC_LIVE, "dead", false)).await.unwrap();
    let mut cellar = lab.join(&other).await;
    assert!(attic.subscribe(ATTIC_CMD).await);
    // Connected as far as TLS, silent since: cut too.
    let mut silent = Raw::open(lab.broker.fleet_addr(), &old.tls).await.unwrap();
    let started = Instant::now();
    let cut = lab.broker.update_crl(&lab.crl(&[&old])).unwrap();
    assert!((1..=2).contains(&cut), "{cut}");
    attic.ended().await;
    assert_eq!(silent.read().await, None);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    lab.event("the end", |event| matches!(event, Event::Disconnected { session } if session.serial.as_ref() == Some(&old.serial))).await;
    assert!(lab.no_session_of(&old));
    assert!(lab.try_join(&old, |_| ()).await.is_err());

    cellar.publish(CELLAR_EVT, "control").await.unwrap();
    assert_eq!(controller.until("control").await, [], "not even its will is heard any more");
    let mut attic = lab.join(&new).await;
    attic.publish(ATTIC_EVT, "control").await.unwrap();
    assert_eq!(controller.until("control").await, [], "the probe's other certificate still works");

    lab.broker.update_crl(&lab.crl(&[])).unwrap();
    lab.join(&old).await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let mut lab = Lab::start().await;
    // A machine too busy to connect within the shorter life gets the longer one.
    let short_lived = |seconds| lab.card_at("attic", now() - time::Duration::days(90) + time::Duration::seconds(seconds));
    let mut card = short_lived(4);
    let mut attic = match lab.try_join(&card, |_| ()).await {
        Ok(attic) => attic,
        Err(_) => {
            card = short_lived(25);
            lab.join(&card).await
        }
    };
    attic.ended().await;
    lab.event("the end", |event| matches!(event, Event::Disconnected { .. })).await;
    assert!(lab.try_join(&card, |_| ()).await.is_err());
}

#[tokio::test]
async fn the_newest_session_of_an_identity_wins_and_is_reported() {
    let mut lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let (card, twin) = (lab.card("attic"), lab.card("attic"));
    let mut first = lab.try_join(&card, with_will(ATTIC_LIVE, "first is dead", false)).await.unwrap();
    assert!(first.subscribe(ATTIC_CMD).await);
    let mut second = lab.join(&twin).await;
    first.ended().await;
    let taken = lab.event("the takeover", |event| matches!(event, Event::TakenOver { .. })).await;
    let Event::TakenOver { old, serial, .. } = taken else { unreachable!() };
    assert_eq!((old.serial, serial), (Some(card.serial.clone()), Some(twin.serial.clone())));
    assert_eq!(old.principal, Principal::Probe(id("attic")));
    assert_eq!(controller.message().await.1, "first is dead");

    controller.publish(ATTIC_CMD, "before").await.unwrap();
    assert!(second.subscribe(ATTIC_CMD).await);
    controller.publish(ATTIC_CMD, "control").await.unwrap();
    assert_eq!(second.until("control").await, [], "the first session's subscription is not inherited");
    assert!(lab.no_session_of(&card));
    // A refused CONNECT with the right certificate displaces nobody.
    assert!(lab.try_join(&card, with_will(CELLAR_LIVE, "x", false)).await.is_err());
    second.publish(ATTIC_EVT, "still here").await.unwrap();
}

#[tokio::test]
async fn a_dashboard_sees_the_fleet_tree_and_nothing_else() {
    let lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let mut attic = lab.join(&lab.card("attic")).await;
    assert!(attic.subscribe(ATTIC_CMD).await);
    controller.publish_as("picket/v1/fleet/probe/attic/state", "online", true).await.unwrap();
    controller.publish_as("picket/v1/fleet/probe/gone/state", "offline", true).await.unwrap();
    controller.publish_as("picket/v1/fleet/probe/gone/state", "", true).await.unwrap();

    // A client id that is also a probe's must not matter.
    let mut board = lab.dashboard("attic", "grafana", "secret").await.unwrap();
    for filter in
        ["#", "picket/#", "picket/v1/#", "+/v1/fleet/#", ATTIC_CMD, "picket/v1/probe/+/evt", "$SYS/#", "$share/a/picket/v1/fleet/#"]
    {
        assert!(!board.subscribe(filter).await, "{filter}");
    }
    assert!(board.subscribe("picket/v1/fleet/#").await);
    assert_eq!(board.message().await, ("picket/v1/fleet/probe/attic/state".to_owned(), "online".to_owned(), true));
    attic.publish(ATTIC_EVT, "secret").await.unwrap();
    controller.publish(ATTIC_CMD, "secret").await.unwrap();
    controller.publish_as("picket/v1/fleet/probe/attic/state", "busy", true).await.unwrap();
    assert_eq!(board.message().await, ("picket/v1/fleet/probe/attic/state".to_owned(), "busy".to_owned(), false));
    assert_eq!(attic.message().await.1, "secret", "the probe of that name is still connected");

    let mut late = lab.dashboard("late", "grafana", "secret").await.unwrap();
    assert!(late.subscribe("picket/v1/fleet/probe/+/state").await);
    assert_eq!(late.message().await, ("picket/v1/fleet/probe/attic/state".to_owned(), "busy".to_owned(), true));
    controller.publish_as("picket/v1/fleet/probe/attic/state", "", true).await.unwrap();
    assert_eq!(late.message().await.1, "");
    let mut later = lab.dashboard("later", "grafana", "secret").await.unwrap();
    assert!(later.subscribe("picket/v1/fleet/#").await);
    controller.publish("picket/v1/fleet/x", "control").await.unwrap();
    assert_eq!(later.until("control").await, [], "an empty message clears what was retained");
}

#[tokio::test]
async fn a_dashboard_publishes_nothing_but_may_greet() {
    let lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let mut attic = lab.join(&lab.card("attic")).await;
    assert!(attic.subscribe(ATTIC_CMD).await);
    let mut watcher = lab.dashboard("watcher", "grafana", "secret").await.unwrap();
    assert!(watcher.subscribe("picket/v1/fleet/#").await);
    let address = lab.broker.dashboard_addr().unwrap();
    let mut board = lab::Mqtt::connect(address, "home", &lab.anonymous(), |options| {
        options.set_credentials("grafana", "secret");
        with_will("picket/v1/fleet/summary", "forged", true)(options);
    })
    .await
    .unwrap();
    for topic in ["homeassistant/status", "picket/v1/fleet/summary", ATTIC_CMD, ATTIC_EVT] {
        board.send(topic, "forged", QoS::AtMostOnce, true).await;
        board.publish_as(topic, "forged", true).await.unwrap();
    }
    board.vanish().await;
    attic.publish(ATTIC_EVT, "control").await.unwrap();
    assert_eq!(controller.until("control").await, []);
    controller.publish(ATTIC_CMD, "control").await.unwrap();
    assert_eq!(attic.until("control").await, []);
    controller.publish("picket/v1/fleet/x", "control").await.unwrap();
    assert_eq!(watcher.until("control").await, []);
}

#[tokio::test]
async fn a_dashboard_needs_its_password() {
    let mut lab = Lab::start().await;
    for (user, password) in [("grafana", "wrong"), ("grafana", ""), ("nobody", "secret"), ("", "secret")] {
        let error = lab.dashboard("board", user, password).await.err().unwrap();
        assert!(error.contains("BadUserNamePassword"), "{error}");
        let event = lab.event("the refusal", |event| matches!(event, Event::Refused { .. })).await;
        assert!(matches!(&event, Event::Refused { why: Refusal::Password(named), .. } if named == user), "{event:?}");
    }
    let anonymous = lab::Mqtt::connect(lab.broker.dashboard_addr().unwrap(), "board", &lab.anonymous(), |_| ()).await;
    assert!(anonymous.is_err());
    // A probe's certificate is worth nothing on this listener, and a password nothing on the other.
    let card = lab.card("attic");
    assert!(lab::Mqtt::connect(lab.broker.dashboard_addr().unwrap(), "attic", &card.tls, |_| ()).await.is_err());
    let fleet = lab.broker.fleet_addr();
    let with_password = lab::Mqtt::connect(fleet, "grafana", &lab.anonymous(), |options| {
        options.set_credentials("grafana", "secret");
    })
    .await;
    assert!(with_password.is_err());

    let mut board = lab.dashboard("board", "grafana", "secret").await.unwrap();
    let mut second = lab.dashboard("board2", "grafana", "secret").await.unwrap();
    assert_eq!(lab.broker.disconnect(&Principal::Dashboard("grafana".to_owned())), 2);
    board.ended().await;
    second.ended().await;
}

#[tokio::test]
async fn only_the_dashboards_may_speak_mqtt_5() {
    let mut lab = Lab::start().await;
    let mut raw = Raw::open(lab.broker.fleet_addr(), &lab.card("attic").tls).await.unwrap();
    raw.connect(5, "attic", None).await;
    assert_eq!(raw.read().await.map(|(kind, body)| (kind, body[1])), Some((0x20, 0x84)));
    assert_eq!(raw.read().await, None);
    let event = lab.event("the refusal", |event| matches!(event, Event::Refused { .. })).await;
    assert!(matches!(event, Event::Refused { why: Refusal::Protocol(5), .. }), "{event:?}");

    let mut board = Raw::open(lab.broker.dashboard_addr().unwrap(), &lab.anonymous()).await.unwrap();
    board.connect(5, "board", Some(("grafana", "secret"))).await;
    assert_eq!(board.read().await.map(|(kind, body)| (kind, body[1])), Some((0x20, 0)));
}

#[tokio::test]
async fn what_the_protocol_here_does_not_have_ends_the_session() {
    let lab = Lab::with(Limits { packet: 4096, ..Limits::default() }).await;
    let card = lab.card("attic");
    let open = async || {
        let mut raw = Raw::open(lab.broker.fleet_addr(), &card.tls).await.unwrap();
        raw.connect(4, "attic", None).await;
        assert_eq!(raw.read().await, Some((0x20, vec![0, 0])));
        raw
    };
    let mut raw = open().await;
    raw.publish(1, ATTIC_EVT, &[0; 4000]).await;
    assert_eq!(raw.read().await, Some((0x40, vec![0, 1])), "just fits");
    raw.publish(1, ATTIC_EVT, &[0; 4100]).await;
    assert_eq!(raw.read().await, None, "too large");

    let mut raw = open().await;
    raw.publish(2, ATTIC_EVT, b"twice").await;
    assert_eq!(raw.read().await, None, "QoS 2");

    let mut raw = open().await;
    raw.publish(0, "picket/v1/probe/+/evt", b"x").await;
    assert_eq!(raw.read().await, None, "a wildcard in a topic");

    let mut raw = open().await;
    raw.connect(4, "attic", None).await;
    assert_eq!(raw.read().await, None, "CONNECT twice");

    let mut raw = open().await;
    raw.subscribe("picket/v1/probe/#/x").await;
    assert_eq!(raw.read().await, Some((0x90, vec![0, 1, 0x80])), "a malformed filter is refused");
    raw.subscribe(ATTIC_CMD).await;
    assert_eq!(raw.read().await, Some((0x90, vec![0, 1, 1])));
}

#[tokio::test]
async fn handshakes_are_bounded_in_time_and_number() {
    let limits = Limits { handshakes_per_address: 2, handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut lab = Lab::with(limits).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(TcpStream::connect(lab.broker.fleet_addr()).await.unwrap());
    }
    let busy = lab.event("the refusal of the third", |event| matches!(event, Event::Refused { .. })).await;
    assert!(matches!(busy, Event::Refused { why: Refusal::Busy, .. }), "{busy:?}");
    for mut stream in idle {
        let read = soon("the end of an idle connection", stream.read_u8()).await;
        assert!(read.is_err());
    }
    for _ in 0..2 {
        let slow = lab.event("the refusal of the slow", |event| matches!(event, Event::Refused { .. })).await;
        assert!(matches!(slow, Event::Refused { why: Refusal::Tls(_), .. }), "{slow:?}");
    }
}

#[tokio::test]
async fn a_dashboard_that_does_not_read_holds_nobody_up() {
    let lab = Lab::with(Limits { queued_messages: 100, ..Limits::default() }).await;
    let mut stuck = Raw::open(lab.broker.dashboard_addr().unwrap(), &lab.anonymous()).await.unwrap();
    stuck.connect(4, "stuck", Some(("grafana", "secret"))).await;
    stuck.read().await.unwrap();
    stuck.subscribe("picket/v1/fleet/#").await;
    stuck.read().await.unwrap();
    let mut controller = lab.join(&lab.controller_card()).await;
    let filler = "x".repeat(16 * 1024);
    for _ in 0..1500 {
        controller.publish_as("picket/v1/fleet/summary", &filler, true).await.unwrap();
    }
    controller.publish_as("picket/v1/fleet/summary", "newest", true).await.unwrap();
    let mut fresh = lab.dashboard("fresh", "grafana", "secret").await.unwrap();
    assert!(fresh.subscribe("picket/v1/fleet/summary").await);
    assert_eq!(fresh.message().await.1, "newest");
}

/// The queue behind a controller has room for 300 messages here. 2000 come; none is lost because the probe is held back.
#[tokio::test]
async fn a_controller_that_does_not_read_holds_its_probes_back() {
    const MESSAGES: usize = 2000;
    let lab = Lab::with(Limits { queued_messages: 300, ..Limits::default() }).await;
    let card = lab.controller_card();
    let mut controller = Raw::open(lab.broker.fleet_addr(), &card.tls).await.unwrap();
    controller.connect(4, &card.name, None).await;
    controller.read().await.unwrap();
    controller.subscribe(ATTIC_EVT).await;
    controller.read().await.unwrap();
    let mut attic = lab.join(&lab.card("attic")).await;
    let client = attic.client.clone();
    let sender = tokio::spawn(async move {
        for number in 0..MESSAGES {
            let options = rumqttc::PublishOptions::new(QoS::AtLeastOnce);
            client.publish(ATTIC_EVT, number.to_string(), options).await.unwrap();
        }
    });
    // Window, lane and queue up to the high-water mark: as many as are taken without waiting.
    for _ in 0..64 + 256 + 256 {
        attic.acknowledged().await;
    }
    let mut next = 0;
    while next < MESSAGES {
        let (kind, body) = controller.read().await.unwrap();
        assert_eq!(kind >> 4, 3, "a message");
        let topic = usize::from(body[0]) << 8 | usize::from(body[1]);
        let (number, payload) = body[2 + topic..].split_at(2);
        assert_eq!(payload, next.to_string().as_bytes());
        next += 1;
        controller.send(0x40, number).await;
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn a_revocation_list_that_is_older_changes_nothing() {
    let lab = Lab::start().await;
    let card = lab.card("attic");
    let (older, newer) = (lab.crl(&[]), lab.crl(&[&card]));
    lab.broker.update_crl(&newer).unwrap();
    assert_eq!(lab.broker.update_crl(&older).unwrap(), 0);
    assert!(lab.try_join(&card, |_| ()).await.is_err());
}

#[tokio::test]
async fn mosquittos_own_client_reads_the_fleet_tree() {
    let found = std::process::Command::new("mosquitto_sub").arg("--help").output().is_ok();
    if !found {
        eprintln!("SKIPPED: mosquitto_sub is not installed (Debian: mosquitto-clients)");
        return;
    }
    let lab = Lab::start().await;
    let mut controller = lab.join(&lab.controller_card()).await;
    controller.publish_as("picket/v1/fleet/summary", "{\"probes\":1}", true).await.unwrap();
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), lab.pki.ca_pem()).unwrap();
    let port = lab.broker.dashboard_addr().unwrap().port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        let mut command = std::process::Command::new("mosquitto_sub");
        command.args(["-h", "127.0.0.1", "-p", &port, "-u", "grafana", "-P", "secret", "-V", version, "--cafile"]);
        command.arg(authority.path()).args(["-t", "picket/v1/fleet/#", "-v", "-C", "1", "-W", "20"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.trim(), "picket/v1/fleet/summary {\"probes\":1}", "{version}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_many_probes_arrive_once_and_in_order() {
    const PROBES: usize = 8;
    const EACH: usize = 500;
    let lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let mut tasks = Vec::new();
    for number in 0..PROBES {
        let name = format!("p{number}");
        let probe = lab.join(&lab.card(&name)).await;
        tasks.push(tokio::spawn(async move {
            for message in 0..EACH {
                probe.send(&format!("picket/v1/probe/{name}/evt"), &message.to_string(), QoS::AtLeastOnce, false).await;
            }
            probe
        }));
    }
    let mut next = [0; PROBES];
    for _ in 0..PROBES * EACH {
        let (topic, payload, _) = controller.message().await;
        let number: usize = topic.strip_prefix("picket/v1/probe/p").unwrap().strip_suffix("/evt").unwrap().parse().unwrap();
        assert_eq!(payload, next[number].to_string(), "{topic}");
        next[number] += 1;
    }
    assert_eq!(next, [EACH; PROBES]);
}

#[tokio::test]
async fn a_new_server_certificate_is_used_without_a_restart() {
    let lab = Lab::start().await;
    let mut attic = lab.join(&lab.card("attic")).await;
    let shown = async || {
        let raw = Raw::open(lab.broker.fleet_addr(), &lab.controller_card().tls).await.unwrap();
        raw.0.get_ref().1.peer_certificates().unwrap().to_vec()
    };
    let before = shown().await;
    assert_eq!(before[1], *lab.pki.ca_der(), "the authority is served along");
    assert!(lab.pki.renew(now() + time::Duration::days(300)).unwrap());
    lab.broker.update_tls(&lab.pki.server_tls(), &lab.crl(&[])).unwrap();
    assert_ne!(shown().await[0], before[0]);
    attic.publish(ATTIC_EVT, "still here").await.unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_every_session_and_frees_the_ports() {
    let lab = Lab::start().await;
    let mut controller = lab.listening_controller().await;
    let mut attic = lab.join(&lab.card("attic")).await;
    let mut board = lab.dashboard("board", "grafana", "secret").await.unwrap();
    let idle = TcpStream::connect(lab.broker.fleet_addr()).await.unwrap();
    lab.broker.shutdown().await;
    controller.ended().await;
    attic.ended().await;
    board.ended().await;
    drop(idle);
    for address in [lab.broker.fleet_addr(), lab.broker.dashboard_addr().unwrap()] {
        TcpListener::bind(address).await.unwrap();
    }
    assert!(lab.broker.sessions().is_empty());
}
