//! A fleet in miniature: an authority, certificates, and a controller that answers one request.

use std::net::SocketAddr;

use picket_wire::enrol::{EnrolRequest, EnrolResponse, Token};
use picket_wire::units::UnixMillis;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::enrol::{About, EnrolError, enrol};
use super::*;

/// A certificate authority.
pub(crate) struct Fleet {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    pem: String,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "fleet");
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    fn server_config(&self, names: &[&str], from: i32, to: i32, clients: bool) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let builder = ServerConfig::builder_with_provider(trust::provider()).with_safe_default_protocol_versions().unwrap();
        let builder = if clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), trust::provider()).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Arc::new(builder.with_single_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap())
    }

    /// A broker's TLS: for 127.0.0.1, clients of this fleet only.
    pub(crate) fn broker(&self) -> Arc<ServerConfig> {
        self.server_config(&["127.0.0.1"], 2000, 2100, true)
    }

    fn sign(&self, csr_pem: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// A probe of this fleet, without the detour over the network.
    pub(crate) fn probe(&self, name: &str, brokers: &[String]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let enrolment = Enrolment { probe: name.parse().unwrap(), brokers: brokers.to_vec(), urls: vec![], prefix: Prefix::default() };
        let parts = Parts { key: key.serialize_pem(), certificate: self.sign(&csr), authority: self.pem.clone(), signing: "07".repeat(32) };
        Identity::check(enrolment, parts).unwrap()
    }

    fn token(&self, address: SocketAddr) -> Token {
        Token {
            probe: "attic".parse().unwrap(),
            urls: vec![format!("https://{address}")],
            ca_sha256: trust::fingerprint(&self.certificate),
            secret: [9; 16],
            expires: UnixMillis(0),
        }
    }

    /// What a controller answers to a request.
    fn answer(&self, request: &EnrolRequest) -> EnrolResponse {
        EnrolResponse {
            certificate_pem: self.sign(&request.csr_pem),
            ca_pem: self.pem.clone(),
            signing_key: "07".repeat(32),
            brokers: vec!["127.0.0.1:8883".to_owned()],
            prefix: Prefix::default(),
        }
    }
}

fn about() -> About {
    About { hardware: "test".into(), version: "0".into() }
}

/// A controller that answers every connection's one request.
async fn serve(tls: Arc<ServerConfig>, answer: impl Fn(EnrolRequest) -> (u16, String) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(Arc::clone(&tls)).accept(stream).await else { continue };
            let mut request = Vec::new();
            let body = loop {
                let mut buf = [0; 4096];
                let n = stream.read(&mut buf).await.unwrap();
                request.extend_from_slice(&buf[..n]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                assert!(head.starts_with("POST /v1/enrol HTTP/1.1\r\n"), "{head}");
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
                if body.len() == length.parse::<usize>().unwrap() {
                    break body.to_owned();
                }
            };
            let (status, body) = answer(serde_json::from_str(&body).unwrap());
            let reply = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(reply.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    address
}

async fn serve_fleet(fleet: &Arc<Fleet>, tls: Arc<ServerConfig>) -> SocketAddr {
    let fleet = Arc::clone(fleet);
    serve(tls, move |request| (200, serde_json::to_string(&fleet.answer(&request)).unwrap())).await
}

fn good_tls(fleet: &Fleet) -> Arc<ServerConfig> {
    fleet.server_config(&["127.0.0.1"], 2000, 2100, false)
}

fn message(error: &EnrolError) -> String {
    error.to_string().split_inclusive("127.0.0.1:").map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect()
}

#[tokio::test]
async fn a_token_becomes_an_identity() {
    let fleet = Arc::new(Fleet::new());
    let address = serve_fleet(&fleet, good_tls(&fleet)).await;
    let dir = tempfile::tempdir().unwrap();
    let missing = Identity::load(dir.path()).unwrap_err();
    assert!(matches!(missing, IdentityError::NotEnrolled { .. }));
    let token = fleet.token(address);
    let made = enrol(dir.path(), &token.to_string(), about()).await.unwrap();
    let loaded = Identity::load(dir.path()).unwrap();
    for identity in [&made, &loaded] {
        assert_eq!(identity.probe().as_str(), "attic");
        assert_eq!(identity.signing_key(), &[7; 32]);
        assert_eq!(identity.brokers(), ["127.0.0.1:8883"]);
        assert_eq!(identity.urls(), token.urls);
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join("identity/key.pem")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.path().join("identity.new").exists());
    let again = enrol(dir.path(), &token.to_string(), about()).await.unwrap_err();
    assert!(again.to_string().starts_with("this box is already enrolled as `attic`: remove "), "{again}");
}

#[tokio::test]
async fn addresses_are_tried_in_order() {
    let fleet = Arc::new(Fleet::new());
    let good = serve_fleet(&fleet, good_tls(&fleet)).await;
    let stranger = Arc::new(Fleet::new());
    let other = serve_fleet(&stranger, good_tls(&stranger)).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut token = fleet.token(good);
    token.urls = vec!["nonsense".into(), format!("https://{dead}"), format!("https://{other}/"), format!("https://{good}/")];
    enrol(tempfile::tempdir().unwrap().path(), &token.to_string(), about()).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_is_named() {
    let fleet = Arc::new(Fleet::new());
    let stranger = Arc::new(Fleet::new());
    let dir = tempfile::tempdir().unwrap();
    let attempt = |token: String| {
        let data = dir.path();
        async move {
            let error = enrol(data, &token, about()).await.unwrap_err();
            assert!(matches!(Identity::load(data), Err(IdentityError::NotEnrolled { .. })), "{error}");
            message(&error)
        }
    };
    assert_eq!(
        attempt("hello".into()).await,
        "this is not an enrolment token: it starts with `picket1-` and is printed by `picket probe add`"
    );
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(attempt(fleet.token(dead).to_string()).await, "the controller at https://127.0.0.1: cannot be reached");

    let other = serve_fleet(&stranger, good_tls(&stranger)).await;
    assert_eq!(
        attempt(fleet.token(other).to_string()).await,
        "https://127.0.0.1: is not the controller that made the token: its certificate authority has another fingerprint"
    );

    let expired = serve_fleet(&fleet, fleet.server_config(&["127.0.0.1"], 2000, 2001, false)).await;
    let text = attempt(fleet.token(expired).to_string()).await;
    assert!(
        text.starts_with("the certificate of the controller at https://127.0.0.1: has expired; if that cannot be, set the clock"),
        "{text}"
    );

    let misnamed = serve_fleet(&fleet, fleet.server_config(&["192.0.2.1"], 2000, 2100, false)).await;
    assert_eq!(attempt(fleet.token(misnamed).to_string()).await, "TLS with the controller at https://127.0.0.1: failed");

    let problem = r#"{"type":"about:blank","title":"Gone","status":410,"detail":"the token was used already"}"#;
    let used = serve(good_tls(&fleet), |_| (410, problem.to_owned())).await;
    assert_eq!(
        attempt(fleet.token(used).to_string()).await,
        "the controller at https://127.0.0.1: refused the enrolment: the token was used already (status 410)"
    );
    let mute = serve(good_tls(&fleet), |_| (500, String::new())).await;
    assert_eq!(
        attempt(fleet.token(mute).to_string()).await,
        "the controller at https://127.0.0.1: refused the enrolment: without a reason (status 500)"
    );
    let odd = serve(good_tls(&fleet), |_| (200, "{}".to_owned())).await;
    let text = attempt(fleet.token(odd).to_string()).await;
    assert!(text.starts_with("the controller at https://127.0.0.1: gave an unusable answer: missing field"), "{text}");
}

/// The name check must hold although the authority is pinned and sent by the server itself.
#[tokio::test]
async fn an_answer_must_keep_what_the_token_promised() {
    let fleet = Arc::new(Fleet::new());
    let stranger = Fleet::new();
    type Spoil = Box<dyn Fn(&mut EnrolResponse) + Send + Sync>;
    let cases: Vec<(&str, Spoil)> = vec![
        ("its authority is not the one of the token", Box::new(move |answer| answer.ca_pem = stranger.pem.clone())),
        ("signing.pub: 64 hexadecimal digits are expected", Box::new(|answer| answer.signing_key = "07".into())),
        ("enrolment.json: it names no broker", Box::new(|answer| answer.brokers.clear())),
        ("cert.pem:", Box::new(|answer| answer.certificate_pem = answer.ca_pem.clone())),
        ("cert.pem:", Box::new(|answer| answer.certificate_pem = "rubbish".into())),
    ];
    for (expected, spoil) in cases {
        let maker = Arc::clone(&fleet);
        let address = serve(good_tls(&fleet), move |request| {
            let mut answer = maker.answer(&request);
            spoil(&mut answer);
            (200, serde_json::to_string(&answer).unwrap())
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let error = enrol(dir.path(), &fleet.token(address).to_string(), about()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::NotEnrolled { .. })));
    }
}

/// A box whose clock is behind takes a certificate that "is not valid yet".
#[tokio::test]
async fn a_clock_that_is_behind_does_not_matter() {
    let fleet = Arc::new(Fleet::new());
    let address = serve_fleet(&fleet, fleet.server_config(&["127.0.0.1"], 2090, 2100, false)).await;
    enrol(tempfile::tempdir().unwrap().path(), &fleet.token(address).to_string(), about()).await.unwrap();
}

#[tokio::test]
async fn an_interrupted_enrolment_leaves_nothing_and_keeps_its_key() {
    let fleet = Arc::new(Fleet::new());
    let dir = tempfile::tempdir().unwrap();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    enrol(dir.path(), &fleet.token(dead).to_string(), about()).await.unwrap_err();
    let key = fs::read_to_string(dir.path().join("identity.new/key.pem")).unwrap();
    // The power failed while files were written: whatever is there is not an identity.
    for file in ["cert.pem", "ca.pem", "signing.pub", "enrolment.json"] {
        fs::write(dir.path().join("identity.new").join(file), "half").unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::NotEnrolled { .. })));
    }
    let address = serve_fleet(&fleet, good_tls(&fleet)).await;
    enrol(dir.path(), &fleet.token(address).to_string(), about()).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("identity/key.pem")).unwrap(), key);
    Identity::load(dir.path()).unwrap();
}

#[test]
fn damage_is_named() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    fleet.probe("attic", &["127.0.0.1:1".into()]).store(dir.path()).unwrap();
    let other = fleet.probe("cellar", &["127.0.0.1:1".into()]);
    let cases = [
        ("cert.pem", other.certificate_pem.clone(), "it is for `cellar` and not for `attic`"),
        ("cert.pem", "x".to_owned(), "no items found"),
        ("key.pem", other.key_pem.clone(), "KeyMismatch"),
        ("signing.pub", "zz".to_owned(), "64 hexadecimal digits are expected"),
        ("enrolment.json", "{".to_owned(), "EOF"),
    ];
    for (file, contents, expected) in cases {
        let path = dir.path().join("identity").join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, contents).unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(matches!(&error, IdentityError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        fs::write(&path, good).unwrap();
    }
    Identity::load(dir.path()).unwrap();
    assert!(fleet.probe("attic", &["127.0.0.1:1".into()]).store(dir.path()).is_err(), "an identity is never replaced");
    fs::remove_file(dir.path().join("identity/ca.pem")).unwrap();
    assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Io { action: "read", .. })));
}
