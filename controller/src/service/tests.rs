//! Who may become a probe, and who may ask.

use std::os::unix::fs::PermissionsExt;

use picket_wire::ids::Label;

use super::*;
use crate::pki::Names;
use crate::view::ProbeState;

struct Place {
    dir: tempfile::TempDir,
    clock: Clock,
    service: Service,
}

async fn open(dir: &tempfile::TempDir, clock: &Clock) -> Service {
    let data = dir.path().join("data");
    let pki = Pki::open(&data, &Names::default(), date(clock.now().wall)).unwrap();
    let config = ServiceConfig {
        database: data.join("picket.db"),
        data_dir: data,
        prefix: Prefix::default(),
        api_urls: vec!["https://192.0.2.1:8443".into()],
        brokers: vec!["192.0.2.1:8883".into()],
        policy: AddressPolicy::default(),
        timing: Timing::default(),
        lookup: crate::lookup::Settings::default(),
        captures: Default::default(),
    };
    Service::open(config, Arc::new(pki), clock.clone()).await.unwrap()
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        Self { service: open(&dir, &clock).await, dir, clock }
    }

    async fn invite(&self, id: &str) -> Token {
        let request = ProbeRequest {
            id: id.parse().unwrap(),
            site: None,
            labels: vec!["roof".parse().unwrap()],
            roles: vec![],
            token_hours: Some(2),
        };
        self.service.probe_add(request).await.unwrap().token.parse().unwrap()
    }
}

fn request(token: &Token) -> EnrolRequest {
    let key = rcgen::KeyPair::generate().unwrap();
    EnrolRequest {
        probe: token.probe.clone(),
        secret: hex::encode(token.secret),
        csr_pem: rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap(),
        hardware: "Raspberry Pi 4".into(),
        version: "0.1.0".into(),
    }
}

fn peer(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

#[tokio::test]
async fn a_token_makes_one_probe_once() {
    let place = Place::new().await;
    let id: ProbeId = "attic".parse().unwrap();
    let token = place.invite("attic").await;
    assert_eq!((token.probe.as_str(), token.urls.as_slice()), ("attic", ["https://192.0.2.1:8443".to_owned()].as_slice()));
    assert_eq!(place.service.probe(&id).await.unwrap().state, ProbeState::Invited);
    assert_eq!(place.service.probe_roles(&id), None);

    let answer = place.service.enrol(request(&token), peer(1)).await.unwrap();
    assert_eq!((answer.brokers.as_slice(), answer.signing_key.len()), (["192.0.2.1:8883".to_owned()].as_slice(), 64));
    let view = place.service.probe(&id).await.unwrap();
    assert_eq!((view.state, view.hardware.as_deref(), view.site.as_str()), (ProbeState::Enrolled, Some("Raspberry Pi 4"), "attic"));
    assert_eq!((view.labels, view.certificate_expires.is_some()), (vec!["roof".parse::<Label>().unwrap()], true));
    assert_eq!(place.service.probe_roles(&id), Some(vec![Role::Scan]));

    let again = place.service.enrol(request(&token), peer(1)).await.unwrap_err();
    assert!(matches!(again, ServiceError::Forbidden(_)), "{again}");
    let invited = ProbeRequest { id: id.clone(), site: None, labels: vec![], roles: vec![], token_hours: None };
    assert!(matches!(place.service.probe_add(invited.clone()).await, Err(ServiceError::Conflict(_))));
    // Only a restart shows whether it was stored.
    let service = open(&place.dir, &place.clock).await;
    assert!(matches!(service.enrol(request(&token), peer(1)).await, Err(ServiceError::Forbidden(_))));
    assert_eq!(service.probe_roles(&id), Some(vec![Role::Scan]));

    // Revoked, it may be invited anew; its old certificate stays revoked.
    let mut revoked = service.revoked();
    assert!(revoked.borrow_and_update().is_empty());
    service.probe_revoke(&id, "stolen").await.unwrap();
    assert!(revoked.has_changed().unwrap() && revoked.borrow_and_update().len() == 1);
    assert!(service.probe_add(invited).await.is_ok());
    assert_eq!(open(&place.dir, &place.clock).await.revoked().borrow().len(), 1);
}

#[tokio::test]
async fn two_boxes_with_one_token_make_one_probe() {
    let place = Place::new().await;
    let token = place.invite("attic").await;
    let both = tokio::join!(place.service.enrol(request(&token), peer(1)), place.service.enrol(request(&token), peer(2)));
    assert_eq!(usize::from(both.0.is_ok()) + usize::from(both.1.is_ok()), 1);
}

#[tokio::test]
async fn wrong_tokens_are_refused_alike_and_counted() {
    let place = Place::new().await;
    let token = place.invite("attic").await;
    let messages = [
        request(&Token { secret: [0; 16], ..token.clone() }),
        request(&Token { probe: "nobody".parse().unwrap(), ..token.clone() }),
        EnrolRequest { secret: "zz".into(), ..request(&token) },
        EnrolRequest { secret: String::new(), ..request(&token) },
    ];
    let mut seen = Vec::new();
    for wrong in messages {
        seen.push(place.service.enrol(wrong, peer(1)).await.unwrap_err().to_string());
    }
    seen.dedup();
    assert_eq!(seen, ["the enrolment token is wrong, was used before or has expired: ask for a new one"]);
    // A request that is no request does not use the token up, and is no guess.
    let no_request = EnrolRequest { csr_pem: "hello".into(), ..request(&token) };
    assert!(matches!(place.service.enrol(no_request, peer(1)).await, Err(ServiceError::InvalidInput { field: "csr_pem", .. })));
    for _ in 0..6 {
        place.service.enrol(request(&Token { secret: [0; 16], ..token.clone() }), peer(1)).await.unwrap_err();
    }
    let limited = place.service.enrol(request(&token), peer(1)).await.unwrap_err();
    assert!(matches!(limited, ServiceError::RateLimited { .. }), "{limited}");
    // Others are not locked out, and time heals.
    place.clock.advance(Duration::from_secs(61));
    assert!(place.service.enrol(request(&token), peer(1)).await.is_ok());
}

#[tokio::test]
async fn tokens_expire() {
    let place = Place::new().await;
    let token = place.invite("attic").await;
    place.clock.advance(Duration::from_secs(2 * 3600 + 1));
    assert!(matches!(place.service.enrol(request(&token), peer(1)).await, Err(ServiceError::Forbidden(_))));
    // A new invitation voids the old token and works.
    let fresh = place.invite("attic").await;
    assert!(place.service.enrol(request(&token), peer(1)).await.is_err());
    assert!(place.service.enrol(request(&fresh), peer(1)).await.is_ok());
}

#[tokio::test]
async fn api_tokens_are_good_until_they_end() {
    let place = Place::new().await;
    let service = &place.service;
    let made = service.token_add("ci", Scope::Operate, Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!(service.token_verify(&made.token).await.unwrap(), Bearer { name: "ci".into(), scope: Scope::Operate });
    assert!(matches!(service.token_add("ci", Scope::Read, None).await, Err(ServiceError::Conflict(_))));
    assert!(matches!(service.token_add("a b", Scope::Read, None).await, Err(ServiceError::InvalidInput { field: "name", .. })));
    for wrong in ["", "pkt_", &made.token[..made.token.len() - 1], "admin"] {
        assert!(matches!(service.token_verify(wrong).await, Err(ServiceError::Forbidden(_))), "{wrong}");
    }
    place.clock.advance(Duration::from_secs(61));
    assert!(service.token_verify(&made.token).await.is_err() && service.tokens().await.unwrap().is_empty());
    let made = service.token_add("web", Scope::Read, None).await.unwrap();
    service.token_revoke("web").await.unwrap();
    assert!(service.token_verify(&made.token).await.is_err());
    assert!(matches!(service.token_revoke("web").await, Err(ServiceError::NotFound { .. })));
}

#[tokio::test]
async fn the_admin_token_is_a_file_for_its_owner_alone() {
    let place = Place::new().await;
    let path = place.service.ensure_admin_token().await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.service.token_verify(text.trim()).await.unwrap().scope, Scope::Admin);
    place.service.ensure_admin_token().await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    // Without the file there is a new token, and the old one is void.
    std::fs::remove_file(&path).unwrap();
    let service = open(&place.dir, &place.clock).await;
    service.ensure_admin_token().await.unwrap();
    assert!(service.token_verify(text.trim()).await.is_err());
    assert!(service.token_verify(std::fs::read_to_string(&path).unwrap().trim()).await.is_ok());
}

#[tokio::test]
async fn dashboard_users_have_one_password() {
    let place = Place::new().await;
    let service = &place.service;
    let made = service.dashboard_user_add("wall").await.unwrap();
    assert!(service.dashboard_verify("wall", &made.password));
    assert!(!service.dashboard_verify("wall", "") && !service.dashboard_verify("nobody", &made.password));
    let again = service.dashboard_user_add("wall").await.unwrap();
    assert!(!service.dashboard_verify("wall", &made.password) && service.dashboard_verify("wall", &again.password));
    assert_eq!(service.dashboard_users().await.unwrap().len(), 1);
    service.dashboard_user_remove("wall").await.unwrap();
    assert!(!service.dashboard_verify("wall", &again.password));
    assert!(service.dashboard_user_remove("wall").await.is_err());
}
