//! Nobody in: identities, topics and commands, tried by somebody who speaks MQTT without asking whether he may.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use picket_controller::view::ProbeState;
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::TruthSpec;
use picket_tests::lab::{Namespace, require_root, wait_until};
use picket_tests::system::expect::{Expected, Scope};
use picket_tests::system::mqtt::{Closed, Connect, Credentials, Mqtt, Packet};
use picket_tests::system::records::Records;
use picket_tests::system::{DASHBOARD_PORT, Fleet, MQTT_PORT, PATIENCE, Plan, towards};
use picket_wire::command::Command;
use picket_wire::envelope::{Audience, Contents, seal};
use picket_wire::event::{Activity, Birth, Check, Event, InterfaceLimits, LeaseStatus, Live, SelfTest, encode_record};
use picket_wire::ids::{JobId, LeaseId, Role, SessionId, StreamId};
use picket_wire::job::{JobKind, JobSpec, Lease, Mode, Priority, ScanOptions, Technique};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, BatchHead, LeaseEnd, Record, ResultBatch, Runs, State};
use picket_wire::space::TargetSpec;
use picket_wire::units::UnixMillis;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

const REFUSED: u8 = 0x80;

/// A certificate as the fleet's authority would make one, of any authority.
fn certificate(authority: &Issuer<'_, KeyPair>, name: &str, unit: &str) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn foreign_authority() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The same words as the real one's may say: only the key counts.
    params.distinguished_name.push(DnType::CommonName, "Picket fleet CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Issuer::new(params, KeyPair::generate().unwrap())
}

fn real_authority(data: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&std::fs::read_to_string(data.join("ca.key")).unwrap()).unwrap();
    Issuer::from_ca_cert_pem(&std::fs::read_to_string(data.join("ca.pem")).unwrap(), key).unwrap()
}

struct Rig {
    fleet: Fleet,
    broker: SocketAddr,
    /// Where the attacker sits: an enrolled probe's place.
    place: Namespace,
}

impl Rig {
    /// Three enrolled identities: attic and cellar run, mole does not, its key is in the attacker's hands.
    fn new(name: &str, heartbeat: u32) -> Self {
        let spec = TruthSpec::new(8, &["198.18.0.0/28"], &[80]).unwrap();
        let plan = SegmentPlan::new("net", spec);
        let site = Site::builder(name).probe("attic").probe("cellar").probe("mole").segment(plan).build().unwrap();
        let mut fleet = Fleet::start(site, Plan::default().heartbeat(heartbeat).only(&["attic", "cellar"])).unwrap();
        fleet.enrol("mole").unwrap();
        let broker = SocketAddr::new(IpAddr::V4(fleet.site().controller_v4()), MQTT_PORT);
        let place = fleet.site().probe("mole").unwrap().namespace().clone();
        Self { fleet, broker, place }
    }

    fn mole(&self) -> Credentials {
        Credentials::of_probe(self.fleet.probe_data("mole").unwrap()).unwrap()
    }

    fn hello(&self, credentials: &Credentials, connect: &Connect<'_>) -> Result<(Mqtt, u8), Closed> {
        Mqtt::hello(&self.place, self.broker, credentials, connect).unwrap()
    }

    fn session(&self, credentials: &Credentials, id: &str) -> Mqtt {
        Mqtt::session(&self.place, self.broker, credentials, &Connect { client_id: id, ..Connect::default() }).unwrap()
    }
}

#[test]
fn a_probe_has_its_own_topics_and_no_others() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("topics", 1);
    let mole = rig.mole();
    let mut session = rig.session(&mole, "mole");
    for own in ["picket/v1/probe/mole/cmd", "picket/v1/role/scan/cmd"] {
        assert!(matches!(session.subscribe(own).unwrap(), Ok(0 | 1)), "{own}");
    }
    let foreign = [
        "picket/v1/probe/attic/cmd",
        "picket/v1/probe/attic/evt",
        "picket/v1/probe/attic/live",
        "picket/v1/probe/mole/evt",
        "picket/v1/probe/+/cmd",
        "picket/v1/probe/#",
        "picket/v1/role/trace/cmd",
        "picket/v1/role/+/cmd",
        "picket/v1/fleet/#",
        "picket/v1/fleet/summary",
        "picket/v1/#",
        "+/v1/probe/attic/cmd",
        "#",
        "$SYS/#",
        "$share/x/picket/v1/probe/attic/cmd",
    ];
    for filter in foreign {
        // A session that is cut for asking has not read anything either.
        match session.subscribe(filter).unwrap() {
            Ok(code) => assert_eq!(code, REFUSED, "{filter}"),
            Err(_) => session = rig.session(&mole, "mole"),
        }
    }
    // What others say to each other meanwhile does not come here: a job makes attic and cellar talk, and its spec goes to all
    // holders of the role, mole among them.
    let job = rig.fleet.submit_job(&["scan", "198.18.0.0/28", "-p", "80", "--probe", "attic"]).unwrap();
    rig.fleet.wait_done(job, PATIENCE).unwrap();
    let mut session = rig.session(&mole, "mole");
    assert!(matches!(session.subscribe("picket/v1/probe/mole/cmd").unwrap(), Ok(0 | 1)));
    let _ = session.subscribe("picket/v1/probe/attic/cmd").unwrap();
    let job = rig.fleet.submit_job(&["scan", "198.18.0.0/28", "-p", "80", "--probe", "attic"]).unwrap();
    rig.fleet.wait_done(job, PATIENCE).unwrap();
    let heard = session.ping().unwrap().unwrap();
    let strange = heard.iter().find(|packet| !matches!(packet, Packet::Publish { topic, .. } if topic == "picket/v1/probe/mole/cmd"));
    assert_eq!(strange, None);

    // The other way: whoever publishes where it may not is cut, and nobody heard it.
    let before = rig.fleet.probe("attic").unwrap();
    let foreign = [
        "picket/v1/probe/attic/cmd",
        "picket/v1/probe/attic/evt",
        "picket/v1/probe/attic/live",
        "picket/v1/probe/mole/cmd",
        "picket/v1/role/scan/cmd",
        "picket/v1/fleet/summary",
        "picket/v1/fleet/probe/attic",
        "something/else",
        "$SYS/broker",
    ];
    for topic in foreign {
        for retain in [false, true] {
            let mut session = rig.session(&mole, "mole");
            let sent = session.publish(topic, b"\x01nonsense", retain).unwrap();
            assert!(sent.is_err(), "{topic} (retained: {retain}) was acknowledged");
        }
    }
    for own in ["picket/v1/probe/mole/evt", "picket/v1/probe/mole/live"] {
        let mut session = rig.session(&mole, "mole");
        assert_eq!(session.publish(own, b"\x01nonsense", false).unwrap(), Ok(()), "{own}");
        let mut session = rig.session(&mole, "mole");
        assert!(session.publish(own, b"\x01nonsense", true).unwrap().is_err(), "{own} is never retained");
    }
    let after = rig.fleet.probe("attic").unwrap();
    assert_eq!((after.state, &after.since, after.refused_commands), (ProbeState::Online, &before.since, Some(0)));
}

#[test]
fn names_and_wills_of_others_are_refused() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("names", 1);
    let mole = rig.mole();
    let before = rig.fleet.probe("attic").unwrap();
    for id in ["attic", "cellar", "Mole", "mole2", "", "picket-controller-00000000"] {
        let answer = rig.hello(&mole, &Connect { client_id: id, ..Connect::default() });
        assert!(!matches!(answer, Ok((_, 0))), "client id {id:?} was accepted");
    }
    let wills = ["picket/v1/probe/attic/live", "picket/v1/probe/attic/cmd", "picket/v1/probe/mole/evt", "picket/v1/fleet/summary", "x"];
    for topic in wills {
        let connect = Connect { client_id: "mole", will: Some((topic, b"\x01")), ..Connect::default() };
        assert!(!matches!(rig.hello(&mole, &connect), Ok((_, 0))), "a will on {topic} was accepted");
    }
    // Its own is what the protocol wants.
    let connect = Connect { client_id: "mole", will: Some(("picket/v1/probe/mole/live", b"\x01")), ..Connect::default() };
    assert!(matches!(rig.hello(&mole, &connect), Ok((_, 0))));
    let after = rig.fleet.probe("attic").unwrap();
    assert_eq!((after.state, after.since), (ProbeState::Online, before.since), "whose name was used has not noticed");
}

#[test]
fn certificates_decide() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("certs", 1);
    let ca = rig.fleet.data().join("ca.pem");
    let mole = Connect { client_id: "mole", ..Connect::default() };
    let refused = |what: &str, credentials: &Credentials, connect: &Connect<'_>| {
        let answer = rig.hello(credentials, connect);
        assert!(answer.is_err(), "{what} got an answer to CONNECT: {:?}", answer.map(|(_, code)| code));
    };
    refused("nobody", &Credentials::none(&ca).unwrap(), &mole);
    let (certificate_pem, key) = certificate(&foreign_authority(), "mole", "probe");
    refused("somebody of another authority", &Credentials::pem(&ca, &certificate_pem, &key).unwrap(), &mole);
    // A probe's certificate makes no other probe of it, nor a controller.
    let (leaf, key) = {
        let data = rig.fleet.probe_data("mole").unwrap().join("identity");
        (
            std::fs::read_to_string(data.join("cert.pem")).unwrap(),
            KeyPair::from_pem(&std::fs::read_to_string(data.join("key.pem")).unwrap()).unwrap(),
        )
    };
    let (certificate_pem, key) = certificate(&Issuer::from_ca_cert_pem(&leaf, key).unwrap(), "attic", "probe");
    refused(
        "somebody whom a probe has certified",
        &Credentials::pem(&ca, &certificate_pem, &key).unwrap(),
        &Connect { client_id: "attic", ..Connect::default() },
    );

    // Revoked, while it is connected: it is cut within seconds, and does not come back.
    let credentials = rig.mole();
    let mut session = rig.session(&credentials, "mole");
    let view: serde_json::Value = rig.fleet.json(&["probe", "revoke", "mole", "--reason", "a test", "--json"]).unwrap();
    assert_eq!(view["state"], "revoked");
    let end = loop {
        match session.read(Duration::from_secs(5)).expect("a revoked probe is cut within seconds") {
            Ok(_) => {}
            Err(closed) => break closed,
        }
    };
    eprintln!("the revoked session ended: {}", end.0);
    refused("a revoked probe", &credentials, &mole);
    // A running probe too.
    rig.fleet.json::<serde_json::Value>(&["probe", "revoke", "cellar", "--json"]).unwrap();
    rig.fleet.wait_probe("cellar", "revoked and out", PATIENCE, |view| view.state == ProbeState::Revoked && view.link.is_none()).unwrap();
    refused(
        "a revoked probe",
        &Credentials::of_probe(rig.fleet.probe_data("cellar").unwrap()).unwrap(),
        &Connect { client_id: "cellar", ..Connect::default() },
    );
    // Others have not noticed, and it gets no more work.
    assert_eq!(rig.fleet.probe("attic").unwrap().state, ProbeState::Online);
    let job = rig.fleet.submit_job(&["scan", "198.18.0.0/28", "-p", "80"]).unwrap();
    let job = rig.fleet.wait_done(job, PATIENCE).unwrap();
    assert!(job.probes.iter().all(|part| part.probe.as_str() == "attic"), "{:?}", job.probes);
    // Dashboards' and probes' listeners are not each other's.
    let board = SocketAddr::new(rig.broker.ip(), DASHBOARD_PORT);
    let attic = Credentials::of_probe(rig.fleet.probe_data("attic").unwrap()).unwrap();
    let answer = Mqtt::hello(&rig.place, board, &attic, &Connect { client_id: "attic", ..Connect::default() }).unwrap();
    assert!(!matches!(answer, Ok((_, 0))), "a certificate is no password");
}

/// The controller's real signing key: the last 32 of the private part of PKCS#8 (RFC 8410).
fn signing_key(data: &Path) -> SigningKey {
    let der = PrivatePkcs8KeyDer::from_pem_file(data.join("signing.key")).unwrap();
    let bytes: [u8; 32] = der.secret_pkcs8_der()[16..48].try_into().unwrap();
    SigningKey::from_bytes(&bytes)
}

fn micros_now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// A job and its lease for attic: if both are believed, packets leave.
fn work(number: u64) -> [Command; 2] {
    let id = JobId(number);
    let spec = JobSpec {
        id,
        kind: JobKind::Scan(ScanOptions { technique: Technique::Syn, attempts: 1 }),
        targets: TargetSpec {
            include: picket_wire::addr::parse_set("198.18.0.0/28").unwrap(),
            exclude: picket_wire::addr::AddrSet::new(),
            ports: Some("80".parse().unwrap()),
            seed: number,
        },
        mode: Mode::Each,
        rate: None,
        priority: Priority::Interactive,
        deadline: None,
        policy: AddressPolicy { allow: vec!["198.18.0.0/15".parse().unwrap()], deny: Vec::new() },
    };
    let lease = Lease { id: LeaseId { job: id, grant: 1 }, from: 0, to: 16, attempt: 0, ttl: None };
    [Command::Job(spec), Command::Grant(lease)]
}

#[test]
fn forged_commands_are_refused_and_counted() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("forged", 1);
    let data = rig.fleet.data().to_owned();
    let watch = rig.fleet.site().watch("attic", Some(&towards(rig.fleet.site(), &["net"]).unwrap())).unwrap();
    // Somebody holds the broker: whatever it is given it delivers, as from the controller.
    let name = "picket-controller-0badcafe";
    let (certificate_pem, key) = certificate(&real_authority(&data), name, "controller");
    let thief = Credentials::pem(&data.join("ca.pem"), &certificate_pem, &key).unwrap();
    let real = signing_key(&data);
    let wrong = SigningKey::from_bytes(&[7; 32]);
    let attic = Audience::Probe("attic".parse().unwrap());
    let now = || UnixMillis(micros_now() / 1000);
    let contents = |audience: &Audience, command: Command| Contents {
        audience: audience.clone(),
        serial: micros_now(),
        issued: now(),
        expires: now().after(Duration::from_secs(60)),
        command,
    };
    let attic_now = || rig.fleet.probe("attic").unwrap();
    let after_beat = || {
        let seen = attic_now().uptime_seconds;
        wait_until("heartbeat of attic", PATIENCE, || Ok(Some(attic_now()).filter(|view| view.uptime_seconds != seen))).unwrap()
    };
    let mut session = rig.session(&thief, name);
    let topic = "picket/v1/probe/attic/cmd";
    assert_eq!(attic_now().refused_commands, Some(0));
    let mut expected = 0;
    let mut case = |what: &str, messages: Vec<Vec<u8>>, refused: u64| {
        for message in messages {
            assert_eq!(session.publish(topic, &message, false).unwrap(), Ok(()), "{what}");
        }
        expected += refused;
        // The counters come with the next heartbeats.
        let counted = || Ok(attic_now().refused_commands.filter(|counted| *counted >= expected));
        let counted = wait_until(&format!("{expected} refusals, with {what}"), PATIENCE, counted).unwrap();
        assert_eq!(counted, expected, "{what}");
    };
    let forge = |number: u64, forge: &dyn Fn(Command) -> Vec<u8>| work(number).map(forge).to_vec();

    case("garbage", vec![vec![0x55; 100], b"".to_vec(), vec![1; 10], vec![1; 300]], 4);
    case("no signature", forge(1, &|command| picket_wire::codec::encode(&contents(&attic, command))), 2);
    case("another key", forge(2, &|command| seal(&contents(&attic, command), &wrong)), 2);
    case(
        "a changed byte",
        forge(3, &|command| {
            let mut bytes = seal(&contents(&attic, command), &real);
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        2,
    );
    let shift =
        |contents: Contents, issued: u64, expires: u64| Contents { issued: UnixMillis(issued), expires: UnixMillis(expires), ..contents };
    // By more than the probe's clock may be behind: that is the way of the welcome.
    case("expired", forge(4, &|command| seal(&shift(contents(&attic, command), now().0 - 120_000, now().0 - 10_000), &real)), 2);
    case("from the future", forge(5, &|command| seal(&shift(contents(&attic, command), now().0 + 600_000, now().0 + 900_000), &real)), 2);
    let cellar = Audience::Probe("cellar".parse().unwrap());
    case("for another probe", forge(6, &|command| seal(&contents(&cellar, command), &real)), 2);
    case("for a role that it does not hold", forge(7, &|command| seal(&contents(&Audience::Role(Role::Trace), command), &real)), 2);
    // Good ones are for the role: nobody else says anything to it meanwhile, so that no serial of the controller's own, to attic,
    // is overtaken.
    let role = Audience::Role(Role::Scan);
    let harmless = seal(&contents(&role, Command::Cancel { job: JobId(77) }), &real);
    case("a good one, and replayed twice", vec![harmless.clone(), harmless.clone(), harmless], 2);
    case("an old serial", forge(8, &|command| seal(&Contents { serial: 1, ..contents(&attic, command) }, &real)), 2);
    // Two heartbeats later it is still so: the first may have been on its way already.
    after_beat();
    let view = after_beat();
    assert!(watch.stop().unwrap().is_empty(), "a forged command made attic send");
    assert_eq!(view.refused_commands, Some(expected));
    assert!(view.jobs.is_empty() && view.state == ProbeState::Online, "{view:?}");

    // The same work, signed, addressed, in time and new, is done: nothing else was wrong with the forged ones.
    let mut watch = rig.fleet.site().watch("attic", Some(&towards(rig.fleet.site(), &["net"]).unwrap())).unwrap();
    // As soon as the controller hears of a lease that it never gave, it cancels it, perhaps before anything was sent: then there is more work.
    let (mut number, mut next) = (9, std::time::Instant::now());
    wait_until("packets of work that is signed", PATIENCE, || {
        if next <= std::time::Instant::now() {
            for command in work(number) {
                let good = seal(&contents(&role, command), &real);
                assert_eq!(session.publish(topic, &good, false)?, Ok(()));
            }
            (number, next) = (number + 1, next + Duration::from_millis(300));
        }
        Ok((watch.seen()? > 0).then_some(()))
    })
    .unwrap();
    after_beat();
    assert_eq!(after_beat().refused_commands, Some(expected));
}

#[test]
fn a_probe_cannot_speak_of_anothers_work() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("lies", 1);
    let job =
        rig.fleet.submit_job(&["scan", "198.18.0.0/28", "-p", "80-99", "--probe", "attic", "--rate", "50pps", "--attempts", "1"]).unwrap();
    rig.fleet.wait_job(job, "running", PATIENCE, |job| job.asked_so_far > 0).unwrap();
    // The mole has an identity and knows everything: the job, the lease, the form. It says what attic has found before attic does,
    // that attic's lease is over, and that nobody can do the job.
    let (session, stream) = (SessionId(7), StreamId(7));
    let lease = LeaseId { job, grant: 1 };
    let head = BatchHead { lease, from: 0, to: 320, started: UnixMillis(1), took: Duration::from_secs(1), packets: 320, duplicates: 0 };
    let answers = (0..320).map(|offset| Answer { offset, state: State::Open, rtt: Duration::from_millis(1), ttl: 64 }).collect();
    let lies = [
        Record::Batch(ResultBatch::new(head, answers, Runs::default(), Vec::new())),
        Record::LeaseEnded { lease, position: 320, end: LeaseEnd::Done },
        Record::JobRefused { job, reason: "never".to_owned() },
    ];
    let status = LeaseStatus { lease, position: 320, sent: 320, activity: Activity::Running, packets: 1, answers: 0 };
    let works = || Check::Works;
    let birth = Birth {
        session,
        nonce: 1,
        version: "0".to_owned(),
        hardware: "a mole".to_owned(),
        uptime: Duration::ZERO,
        self_test: SelfTest { raw_socket: works(), ipv4: works(), ipv6: works() },
        stream,
        acked: 0,
        leases: vec![status],
        interface: InterfaceLimits { name: "x".to_owned(), packets: "1pps".parse().unwrap(), bits: "1kbit".parse().unwrap() },
    };
    let records = Event::Records { stream, after: 0, first: 1, records: lies.iter().map(encode_record).collect() };
    let mut mole = rig.session(&rig.mole(), "mole");
    let live = |live: &Live| picket_wire::codec::encode(live);
    assert_eq!(mole.publish("picket/v1/probe/mole/live", &live(&Live::Birth(birth)), false).unwrap(), Ok(()));
    assert_eq!(mole.publish("picket/v1/probe/mole/evt", &picket_wire::codec::encode(&records), false).unwrap(), Ok(()));
    let stored = |records: &Records| records.raw.iter().filter(|raw| raw.probe == "mole").count();
    wait_until("the lies in the database", PATIENCE, || Ok((stored(&Records::read(rig.fleet.data())?) == 3).then_some(()))).unwrap();
    // The end of attic's session is attic's to say.
    let attic = rig.fleet.probe("attic").unwrap();
    assert_eq!(mole.publish("picket/v1/probe/mole/live", &live(&Live::Death { session, orderly: true }), false).unwrap(), Ok(()));
    rig.fleet.wait_probe("mole", "offline", PATIENCE, |view| view.state == ProbeState::Offline).unwrap();
    assert_eq!(rig.fleet.probe("attic").unwrap().since, attic.since);

    let job = rig.fleet.wait_done(job, PATIENCE).unwrap();
    let ports: Vec<u16> = (80..=99).collect();
    let expected = Expected::scan(&[rig.fleet.site().segment("net").unwrap().target().truth()], &ports, &Scope::default());
    expected.check_coverage(&job.coverage, 1).unwrap();
    expected.check_rows(&rig.fleet.results(job.id).unwrap()).unwrap();
    assert!(job.probes.iter().all(|part| part.probe.as_str() == "attic"), "{:?}", job.probes);
    let records = Records::read(rig.fleet.data()).unwrap();
    let lies: Vec<i64> = records.raw.iter().filter(|raw| raw.probe == "mole").map(|raw| raw.outcome).collect();
    assert_eq!(lies[0], 3, "a lie is kept as evidence and not believed");
    records.counted_once(job.id, 1).unwrap();
    rig.fleet.wait_online("attic").unwrap();
}

#[test]
fn tokens_are_good_once_and_for_one() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("tokens", 1);
    let invited: serde_json::Value = rig.fleet.json(&["probe", "add", "shed", "--json"]).unwrap();
    let token = invited["token"].as_str().unwrap().to_owned();
    let place = rig.place.clone();
    let programs = picket_tests::lab::programs::Programs::locate().unwrap();
    let enrol = |token: &str, data: &str| {
        let data = rig.fleet.site().lab().make_dir(data).unwrap();
        place.run(&programs.probe_enrol(token, &data).unwrap(), PATIENCE).unwrap()
    };
    let mut broken = token.clone();
    broken.replace_range(broken.len() - 3..broken.len() - 2, if broken.ends_with("AAA") { "B" } else { "A" });
    if broken != token {
        assert!(!enrol(&broken, "shed-broken").status.success(), "a mistyped token");
    }
    assert!(enrol(&token, "shed-one").status.success());
    let second = enrol(&token, "shed-two");
    assert!(!second.status.success(), "one token enrolled two boxes");
    eprintln!("{}", second.stderr.trim());
    // Enrolling again replaces nobody.
    assert!(!rig.fleet.picket(&["probe", "add", "attic"], PATIENCE).unwrap().status.success());
    assert_eq!(rig.fleet.wait_online("attic").unwrap().refused_commands, Some(0));
}
