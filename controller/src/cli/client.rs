//! The HTTP client: TLS with the fleet's authority alone, a bearer token, and errors that say what to do.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connect::Connection;
use super::failure::{Exit, Failure};
use crate::view::{JobView, Page, Problem};
use picket_wire::ids::JobId;

/// How long the controller may take to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take, the wait of a long poll included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the controller holds a request for news of a job.
const LONG_POLL: &str = "10s";
/// Rebuilding the tables of a large database takes its time.
const LONG_WORK: Duration = Duration::from_secs(3600);
/// The longest stream: longer than any capture.
const STREAM_MOST: Duration = Duration::from_secs(30 * 86_400);
/// A controller that has gone without a word is noticed after some of these.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longest error body that is read.
const PROBLEM_MAX: usize = 64 * 1024;

/// A client of one controller.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
}

/// Bytes as they come.
pub(super) struct Stream {
    client: Client,
    response: Response,
}

impl Stream {
    /// The next bytes; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<axum::body::Bytes>, Failure> {
        self.response.chunk().await.map_err(|error| self.client.unreachable(&error))
    }
}

/// A page of a list is asked for with these.
pub(super) type Query = Vec<(&'static str, String)>;

impl Client {
    pub(super) fn new(connection: &Connection) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(connection)?)
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("picket/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&connection.server) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::new(Exit::Failure, format!("set up the HTTP client: {}", chain(&error))))?;
        Ok(Self { http, base: connection.server.clone(), token: connection.token.clone() })
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().push("v1").extend(path);
        }
        self.http.request(method, url).bearer_auth(&self.token).timeout(REQUEST_TIMEOUT)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &Query) -> Result<T, Failure> {
        self.answer(self.request(Method::GET, path).query(query)).await
    }

    /// Opens what comes as a stream of bytes, for as long as it takes.
    pub(super) async fn open(&self, path: &[&str], query: &Query) -> Result<Stream, Failure> {
        let response = self.send(self.request(Method::GET, path).query(query).timeout(STREAM_MOST)).await?;
        Ok(Stream { client: self.clone(), response })
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    /// Posts so that a repetition after a lost answer does nothing twice.
    pub(super) async fn post_once<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize, key: &str) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path).header("idempotency-key", key).json(body)).await
    }

    /// Posts what may take long.
    pub(super) async fn post_long<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path).timeout(LONG_WORK)).await
    }

    pub(super) async fn post_empty<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path)).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path)).await.map(drop)
    }

    /// Every item of a list that comes in pages.
    pub(super) async fn all<T: DeserializeOwned>(&self, path: &[&str], query: &Query) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut query = query.clone();
        loop {
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            let Some(next) = page.next else { return Ok(items) };
            query.retain(|(name, _)| *name != "cursor");
            query.push(("cursor", next));
        }
    }

    /// A job; where `since` is given, as soon as it is newer than that version or after some seconds.
    pub(super) async fn job(&self, id: JobId, since: Option<u64>) -> Result<JobView, Failure> {
        let query = since.map(|version| vec![("since", version.to_string()), ("wait", LONG_POLL.to_owned())]);
        self.get(&["jobs", &id.to_string()], &query.unwrap_or_default()).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(Exit::Failure, format!("the answer of {} cannot be read: {error}", self.base))
                .hint("is its version the same as this program's?")
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    async fn refusal(&self, mut response: Response) -> Failure {
        let status = response.status();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > PROBLEM_MAX {
                break;
            }
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Failure::problem(&problem),
            Err(_) => {
                Failure::new(Exit::Failure, format!("{} answered {status}", self.base)).hint("is this the API of a Picket controller?")
            }
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = chain(error);
        let host = self.base.host_str().unwrap_or_default();
        let failure = Failure::new(
            Exit::Unreachable,
            format!("cannot reach the controller at {}: {cause}", self.base.as_str().trim_end_matches('/')),
        );
        let hint = if cause.contains("not valid for name") || cause.contains("NotValidForName") {
            format!("its certificate does not name `{host}`: use another name, or start it with `picket serve --name {host}`")
        } else if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
            "its certificate is not of the authority given with --ca: take ca.pem from this controller's data directory".to_owned()
        } else if cause.contains("refused") {
            "is `picket serve` running there, and is the port right?".to_owned()
        } else if cause.contains("dns error") || cause.contains("lookup") {
            format!("`{host}` has no address: is it spelled right?")
        } else {
            return failure;
        };
        failure.hint(hint)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

fn tls(connection: &Connection) -> Result<rustls::ClientConfig, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&connection.ca_pem).flatten() {
        // Whatever cannot be used is missing below.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(Failure::usage(format!("{} holds no certificate", connection.ca_path.display()))
            .hint("it is the file ca.pem of the controller's data directory"));
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(Exit::Failure, format!("set up TLS: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The innermost cause; the outer ones only say that a request was sent.
fn chain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
