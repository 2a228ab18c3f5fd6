//! The API as its clients meet it: every route against every kind of token, and every kind of error as a problem.

use std::collections::BTreeMap;
use std::path::Path;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use picket_wire::topic::Prefix;
use time::OffsetDateTime;

use super::*;
use crate::clock::Clock;
use crate::pki::{Names, Pki};
use crate::service::{ServiceConfig, Timing};
use crate::view::{Page, Problem, Submitted};

/// A service on a directory of its own, with a token of each scope.
struct Lab {
    _dir: tempfile::TempDir,
    router: TowerToHyperService<Router>,
    service: Service,
    tokens: BTreeMap<&'static str, String>,
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The problem, which every error must be.
    fn problem(&self) -> Problem {
        assert_eq!(self.headers.get(header::CONTENT_TYPE).unwrap(), "application/problem+json");
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(!problem.detail.is_empty() && !problem.title.is_empty() && !problem.kind.is_empty());
        problem
    }

    /// `422 invalid-input: targets: ...`
    fn line(&self) -> String {
        let problem = self.problem();
        format!("{} {}: {}", problem.status, problem.kind, problem.detail)
    }
}

fn service_config(dir: &Path) -> ServiceConfig {
    ServiceConfig {
        data_dir: dir.to_owned(),
        database: dir.join("picket.db"),
        prefix: Prefix::default(),
        api_urls: vec!["https://127.0.0.1:8443".into()],
        brokers: vec!["127.0.0.1:8883".into()],
        policy: picket_wire::policy::AddressPolicy { allow: vec!["198.18.0.0/15".parse().unwrap()], deny: Vec::new() },
        timing: Timing::default(),
        lookup: crate::lookup::Settings::default(),
        captures: Default::default(),
    }
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &Names::default(), OffsetDateTime::now_utc()).unwrap();
        let service = Service::open(service_config(dir.path()), Arc::new(pki), Clock::system()).await.unwrap();
        let mut tokens = BTreeMap::new();
        for scope in [Scope::Read, Scope::Operate, Scope::Admin] {
            let made = service.token_add(&format!("test-{}", scope.as_str()), scope, None).await.unwrap();
            tokens.insert(scope.as_str(), made.token);
        }
        Self { _dir: dir, router: TowerToHyperService::new(router(service.clone())), service, tokens }
    }

    async fn send(&self, mut request: Request<Body>) -> Answer {
        request.extensions_mut().insert(Peer("198.18.0.99:1234".parse().unwrap()));
        let response = self.router.call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: to_bytes(body, usize::MAX).await.unwrap() }
    }

    fn request(&self, method: &Method, path: &str, token: Option<&str>) -> axum::http::request::Builder {
        let builder = Request::builder().method(method).uri(path);
        match token {
            Some(token) => builder.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => builder,
        }
    }

    fn token(&self, scope: &str) -> Option<&str> {
        Some(self.tokens.get(scope).unwrap())
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(&Method::GET, path, self.token("admin")).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        let request = self.request(&Method::POST, path, self.token("admin")).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(body.to_owned().into()).unwrap()).await
    }
}

const JOB: &str = r#"{"targets":["198.18.0.0/30"],"ports":"22,80","technique":"syn"}"#;

/// What each route asks, written down a second time: a change of a rule must be made in both places.
const RULES: [(&str, &str, &str); 26] = [
    ("GET", "/v1/health", "anybody"),
    ("POST", "/v1/enrol", "anybody"),
    ("POST", "/v1/jobs", "operate"),
    ("GET", "/v1/jobs", "read"),
    ("GET", "/v1/jobs/{id}", "read"),
    ("POST", "/v1/jobs/{id}/cancel", "operate"),
    ("GET", "/v1/results", "read"),
    ("GET", "/v1/hosts", "read"),
    ("GET", "/v1/paths", "read"),
    ("POST", "/v1/paths/accept", "operate"),
    ("GET", "/v1/captures", "read"),
    ("GET", "/v1/captures/{id}", "read"),
    ("GET", "/v1/captures/{id}/file", "operate"),
    ("DELETE", "/v1/captures/{id}", "operate"),
    ("GET", "/v1/fleet", "read"),
    ("GET", "/v1/probes", "read"),
    ("GET", "/v1/probes/{id}", "read"),
    ("POST", "/v1/probes", "admin"),
    ("POST", "/v1/probes/{id}/revoke", "admin"),
    ("POST", "/v1/tokens", "admin"),
    ("GET", "/v1/tokens", "admin"),
    ("DELETE", "/v1/tokens/{name}", "admin"),
    ("POST", "/v1/dashboard-users", "admin"),
    ("GET", "/v1/dashboard-users", "admin"),
    ("DELETE", "/v1/dashboard-users/{name}", "admin"),
    ("POST", "/v1/db/rebuild", "admin"),
];

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let lab = Lab::new().await;
    let mut listed: BTreeMap<(String, &str), &str> =
        RULES.iter().map(|(method, path, rule)| ((method.to_string(), *path), *rule)).collect();
    let ranks = ["read", "operate", "admin"];
    for route in routes() {
        let rule = listed
            .remove(&(route.method.to_string(), route.path))
            .unwrap_or_else(|| panic!("{} {} is in no rule", route.method, route.path));
        let path = route.path.replace("{id}", "no-such-thing").replace("{name}", "no-such-thing");
        let answer = lab.send(lab.request(&route.method, &path, None).body(Body::empty()).unwrap()).await;
        if rule == "anybody" {
            assert!(!matches!(answer.status.as_u16(), 401 | 403), "{path} without a token: {}", answer.status);
            continue;
        }
        assert_eq!(answer.status, 401, "{} {path} without a token", route.method);
        assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
        answer.problem();
        let forged = lab.send(lab.request(&route.method, &path, Some("picket-forged")).body(Body::empty()).unwrap()).await;
        assert_eq!(forged.status, 401, "{} {path} with a forged token", route.method);
        for scope in ranks {
            let answer = lab.send(lab.request(&route.method, &path, lab.token(scope)).body(Body::empty()).unwrap()).await;
            let may = ranks.iter().position(|s| *s == scope) >= ranks.iter().position(|s| *s == rule);
            assert_eq!(answer.status != 403, may, "{} {path} with scope {scope}: {}", route.method, answer.status);
            assert_ne!(answer.status, 401, "{} {path} with scope {scope}", route.method);
            assert!(
                answer.status != 404 || answer.problem().detail.contains("no-such-thing"),
                "{} {path}: {}",
                route.method,
                answer.status
            );
        }
    }
    assert!(listed.is_empty(), "rules without a route: {listed:?}");
}

#[tokio::test]
async fn a_revoked_token_is_good_for_nothing() {
    let lab = Lab::new().await;
    let revoked = lab.send(lab.request(&Method::DELETE, "/v1/tokens/test-read", lab.token("admin")).body(Body::empty()).unwrap()).await;
    assert_eq!(revoked.status, 204);
    let answer = lab.send(lab.request(&Method::GET, "/v1/fleet", lab.token("read")).body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn every_error_is_a_problem_that_names_the_input() {
    let lab = Lab::new().await;
    let admin = || lab.request(&Method::POST, "/v1/jobs", lab.token("admin"));
    let mut lines = Vec::new();
    let mut note = |what: &str, answer: Answer| lines.push(format!("{what}\n    {}", answer.line()));
    note("unknown path", lab.get("/v1/nothing").await);
    note("unknown path outside", lab.get("/").await);
    note("wrong method", lab.send(lab.request(&Method::PUT, "/v1/jobs", None).body(Body::empty()).unwrap()).await);
    note("no content type", lab.send(admin().body(JOB.into()).unwrap()).await);
    note("not JSON", lab.post("/v1/jobs", "{targets").await);
    note("missing field", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"]}").await);
    note("unknown field", lab.post("/v1/jobs", "{\"targets\":[],\"technique\":\"syn\",\"port\":\"80\"}").await);
    note("wrong type", lab.post("/v1/jobs", "{\"targets\":[7],\"technique\":\"syn\"}").await);
    note("wrong technique", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"technique\":\"xmas\"}").await);
    note("too large", lab.post("/v1/jobs", &format!("{{\"targets\":[\"{}\"]}}", "1".repeat(BODY_MAX))).await);
    note("too large to enrol", lab.post("/v1/enrol", &format!("{{\"probe\":\"{}\"}}", "a".repeat(ENROL_BODY_MAX))).await);
    note("wrong enrolment", lab.post("/v1/enrol", "{\"probe\":\"Attic\"}").await);
    note("job: no targets", lab.post("/v1/jobs", "{\"targets\":[],\"ports\":\"80\",\"technique\":\"syn\"}").await);
    note("job: wrong target", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.0/33\"],\"ports\":\"80\",\"technique\":\"syn\"}").await);
    note("job: wrong port", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"ports\":\"0-99999\",\"technique\":\"syn\"}").await);
    note("job: no ports", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"technique\":\"syn\"}").await);
    note("job: ports for echo", lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"ports\":\"80\",\"technique\":\"echo\"}").await);
    note(
        "job: wrong rate",
        lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"ports\":\"80\",\"technique\":\"syn\",\"rate\":\"500\"}").await,
    );
    note(
        "job: attempts",
        lab.post("/v1/jobs", "{\"targets\":[\"198.18.0.1\"],\"ports\":\"80\",\"technique\":\"syn\",\"attempts\":11}").await,
    );
    note("wrong job id", lab.get("/v1/jobs/7").await);
    note("unknown job", lab.get("/v1/jobs/0000000000000007").await);
    note("wait without since", lab.get("/v1/jobs/0000000000000007?wait=1s").await);
    note("wrong since", lab.get("/v1/jobs/0000000000000007?since=now").await);
    note("wrong wait", lab.get("/v1/jobs/0000000000000007?since=1&wait=1").await);
    note("wrong state of jobs", lab.get("/v1/jobs?state=gone").await);
    note("wrong limit", lab.get("/v1/results?limit=1001").await);
    note("zero limit", lab.get("/v1/results?limit=0").await);
    note("unknown parameter", lab.get("/v1/results?ip=198.18.0.1").await);
    note("wrong address", lab.get("/v1/results?addr=198.18.0.0/33").await);
    note("wrong ports", lab.get("/v1/results?ports=x").await);
    note("wrong state of results", lab.get("/v1/results?state=open,ajar").await);
    note("wrong cursor", lab.get("/v1/results?cursor=nonsense").await);
    note("unknown probe", lab.get("/v1/probes/attic").await);
    note("wrong probe id", lab.get("/v1/probes/At%2Bic").await);
    note("wrong probe", lab.post("/v1/probes", "{\"id\":\"Attic\"}").await);
    note("reserved probe", lab.post("/v1/probes", "{\"id\":\"picket-controller-1\"}").await);
    note("wrong scope", lab.post("/v1/tokens", "{\"name\":\"x\",\"scope\":\"root\"}").await);
    let key = admin().header(header::CONTENT_TYPE, "application/json").header("idempotency-key", "a b");
    note("wrong key", lab.send(key.body(JOB.into()).unwrap()).await);
    let header = Request::builder().uri("/v1/jobs").header(header::AUTHORIZATION, "Basic abc");
    note("wrong authorization", lab.send(header.body(Body::empty()).unwrap()).await);
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test]
async fn answers_carry_the_headers_that_browsers_need() {
    let lab = Lab::new().await;
    for path in ["/v1/health", "/v1/nothing", "/v1/fleet"] {
        let answer = lab.get(path).await;
        for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")] {
            assert_eq!(answer.headers.get(name).unwrap(), value, "{path}");
        }
        assert!(answer.headers.get("content-security-policy").unwrap().to_str().unwrap().contains("default-src 'none'"), "{path}");
    }
}

#[tokio::test]
async fn a_submission_under_one_key_makes_one_job() {
    let lab = Lab::new().await;
    let submit = |key: &'static str, body: &'static str| {
        let request = lab
            .request(&Method::POST, "/v1/jobs", lab.token("operate"))
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        lab.send(request.body(body.into()).unwrap())
    };
    let first = submit("k1", JOB).await;
    assert_eq!(first.status, 201, "{}", String::from_utf8_lossy(&first.body));
    let id = first.json::<Submitted>().job.unwrap().id;
    assert_eq!(first.headers.get("location").unwrap().to_str().unwrap(), format!("/v1/jobs/{id}"));
    assert_eq!(submit("k1", JOB).await.json::<Submitted>().job.unwrap().id, id);
    assert_ne!(submit("k2", JOB).await.json::<Submitted>().job.unwrap().id, id);
    let other = submit("k1", r#"{"targets":["198.18.0.1"],"ports":"22","technique":"syn"}"#).await;
    assert_eq!((other.status.as_u16(), other.problem().kind.as_str()), (422, "key-reused"));
    let jobs: Page<crate::view::JobView> = lab.get("/v1/jobs").await.json();
    assert_eq!(jobs.items.len(), 2);
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let lab = Lab::new().await;
    let body = JOB.replace('}', ",\"dry_run\":true}");
    let answer = lab.post("/v1/jobs", &body).await;
    assert_eq!(answer.status, 200);
    let submitted: Submitted = answer.json();
    assert!(submitted.job.is_none());
    assert_eq!((submitted.plan.addresses, submitted.plan.targets), (4, 8));
    assert!(lab.get("/v1/jobs").await.json::<Page<crate::view::JobView>>().items.is_empty());
}

#[tokio::test]
async fn a_long_poll_ends_with_the_change() {
    let lab = Lab::new().await;
    let submitted: Submitted = lab.post("/v1/jobs", JOB).await.json();
    let job = submitted.job.unwrap();
    let known: crate::view::JobView = lab.get(&format!("/v1/jobs/{}", job.id)).await.json();
    let path = format!("/v1/jobs/{}?since={}&wait=30s", job.id, known.version);
    let (polled, cancelled) = tokio::join!(lab.get(&path), async {
        tokio::task::yield_now().await;
        lab.post(&format!("/v1/jobs/{}/cancel", job.id), "").await
    });
    assert_eq!((polled.status.as_u16(), cancelled.status.as_u16()), (200, 200));
    assert!(polled.json::<crate::view::JobView>().version > known.version);
}

#[tokio::test]
async fn results_come_as_pages_and_as_lines() {
    let lab = Lab::new().await;
    let page: Page<crate::view::ResultRow> = lab.get("/v1/results?state=open,up&limit=10").await.json();
    assert!(page.items.is_empty() && page.next.is_none());
    let request =
        lab.request(&Method::GET, "/v1/results", lab.token("read")).header(header::ACCEPT, "text/html, application/x-ndjson;q=0.9");
    let lines = lab.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(lines.headers.get(header::CONTENT_TYPE).unwrap(), "application/x-ndjson");
    assert!(lines.body.is_empty());
}

#[tokio::test]
async fn probes_users_and_tokens_come_and_go() {
    let lab = Lab::new().await;
    let invited = lab.post("/v1/probes", r#"{"id":"attic","site":"hq","labels":["top"]}"#).await;
    assert_eq!(invited.status, 201);
    let token: crate::view::ProbeInvited = invited.json();
    assert!(token.token.parse::<picket_wire::enrol::Token>().is_ok());
    assert_eq!(lab.get("/v1/probes").await.json::<Page<crate::view::ProbeView>>().items.len(), 1);
    assert_eq!(lab.post("/v1/probes/attic/revoke", r#"{"reason":"stolen"}"#).await.status, 200);
    assert_eq!(lab.post("/v1/dashboard-users", r#"{"name":"grafana"}"#).await.status, 201);
    let users: Page<crate::view::DashboardUser> = lab.get("/v1/dashboard-users").await.json();
    assert_eq!(users.items.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["grafana"]);
    let removed =
        lab.send(lab.request(&Method::DELETE, "/v1/dashboard-users/grafana", lab.token("admin")).body(Body::empty()).unwrap()).await;
    assert_eq!(removed.status, 204);
    let tokens: Page<crate::view::TokenView> = lab.get("/v1/tokens").await.json();
    assert!(tokens.items.len() >= 3);
    assert!(lab.service.health().await.database.is_none());
}

/// The listener with bounds of its own, over a router that answers nothing but errors.
fn server(limits: Limits) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let pki = Pki::open(dir.path(), &Names::default(), now).unwrap();
    let tls = pki.server_tls().api_server(&pki.crl(&[], now).unwrap()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Server::start(listener, tls, Router::new(), limits).unwrap();
    (dir, server)
}

/// Waits until the other side has hung up, whatever it says before.
async fn hung_up(stream: &mut tokio::net::TcpStream) {
    use tokio::io::AsyncReadExt;
    let mut buffer = [0; 256];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

#[tokio::test]
async fn who_says_nothing_or_no_tls_is_hung_up_on() {
    use tokio::io::AsyncWriteExt;
    let (_dir, server) = server(Limits { handshake_timeout: std::time::Duration::from_millis(50), ..Limits::default() });
    let mut silent = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    hung_up(&mut silent).await;
    let mut plain = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    plain.write_all(b"GET /v1/health HTTP/1.1\r\n\r\n").await.unwrap();
    hung_up(&mut plain).await;
}

#[tokio::test]
async fn one_address_cannot_take_every_place() {
    let (_dir, server) = server(Limits { connections_per_address: 2, ..Limits::default() });
    let connect = || tokio::net::TcpStream::connect(server.address());
    let (first, _second) = (connect().await.unwrap(), connect().await.unwrap());
    hung_up(&mut connect().await.unwrap()).await;
    // A place that is given back can be taken again; when that is seen is up to the server.
    drop(first);
    loop {
        let mut again = connect().await.unwrap();
        if tokio::time::timeout(std::time::Duration::from_millis(100), hung_up(&mut again)).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn the_end_does_not_wait_for_those_who_never_come_to_one() {
    let (_dir, server) = server(Limits { shutdown: std::time::Duration::from_millis(50), ..Limits::default() });
    let _idle = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    server.shutdown().await;
    assert!(tokio::net::TcpStream::connect(server.address()).await.is_err());
}
