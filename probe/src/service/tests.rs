//! The shell against servers on the loopback: what they say is real, what they are is not.

use core::net::IpAddr;
use core::time::Duration;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use picket_wire::job::{ServiceOptions, Transport};
use picket_wire::service::{Service, ServiceOutcome};
use picket_wire::units::{PacketsPerSecond, UnixMillis};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::net::clock;
use crate::net::drive::Gate;
use crate::net::pacer::Pacer;

fn options() -> DetectOptions {
    DetectOptions {
        interface: Arc::new(Mutex::new(Pacer::new(Limits::UNLIMITED))),
        rate: Limits::UNLIMITED,
        targets: None,
        max_open: 64,
        options: ServiceOptions::default(),
        site: fragile::SitePolicy::default(),
        fingerprints: Arc::default(),
        source: Source { v4: None, v6: None },
        mark: None,
        wall: Some(UnixMillis(1_796_126_400_000)),
        // Short, so that silence is cheap; servers here answer at once.
        deadlines: Deadlines {
            listen: Duration::from_millis(100),
            greeting: Duration::from_millis(600),
            answer: Duration::from_millis(300),
            follow: Duration::from_millis(600),
            again: Duration::from_millis(50),
            port: Duration::from_secs(5),
            ..Deadlines::default()
        },
    }
}

fn target(port: u16) -> ServiceTarget {
    ServiceTarget { id: u64::from(port), addr: IpAddr::from([127, 0, 0, 1]), port, transport: Transport::Tcp }
}

async fn detect_all(options: DetectOptions, gate: Arc<dyn Gate>, targets: &[ServiceTarget]) -> Vec<Detected> {
    let (sender, receiver) = mpsc::channel(1);
    let (found, mut told) = mpsc::channel(1);
    let feed = async {
        for target in targets {
            sender.send(*target).await.unwrap();
        }
        drop(sender);
    };
    let collect = async {
        let mut all = Vec::new();
        while let Some(detected) = told.recv().await {
            all.push(detected);
        }
        all
    };
    let (_, _, mut all) = tokio::join!(feed, detect(options, gate, receiver, found), collect);
    all.sort_by_key(|detected| detected.id);
    assert_eq!(all.iter().map(|detected| detected.target).collect::<Vec<_>>().len(), targets.len(), "each is told once");
    all
}

async fn outcome(port: u16) -> ServiceOutcome {
    let [detected] = detect_all(options(), Arc::new(|_| true), &[target(port)]).await.try_into().unwrap();
    detected.outcome
}

fn identified(outcome: ServiceOutcome) -> Service {
    match outcome {
        ServiceOutcome::Identified(service) => *service,
        other => panic!("{other:?}"),
    }
}

/// A server that handles each connection by `serve`; returns its port.
async fn server<F: Future<Output = ()> + Send + 'static>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Says `greeting`, then after each piece heard the next of `answers`, then hears on until the other side closes.
async fn play(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, greeting: &[u8], answers: &[&[u8]]) {
    let _ = stream.write_all(greeting).await;
    let mut heard = [0; 4096];
    for answer in answers {
        match stream.read(&mut heard).await {
            Ok(len) if len > 0 => {
                let _ = stream.write_all(answer).await;
            }
            _ => return,
        }
    }
    while stream.read(&mut heard).await.is_ok_and(|len| len > 0) {}
}

fn acceptor(versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["box.example.test".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 11, 1);
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap()))
}

#[tokio::test]
async fn a_greeting_is_gone_on_with() {
    let port = server(|stream| async move {
        play(stream, b"220 mx.example.test ESMTP Postfix\r\n", &[b"250-mx.example.test\r\n250 SIZE 1000\r\n", b"221 bye\r\n"]).await;
    });
    let service = identified(outcome(port.await).await);
    assert_eq!((service.name.as_str(), service.tls), ("smtp", false));
    assert_eq!(service.fact("smtp.capabilities"), Some("SIZE 1000"));
    assert_eq!(service.hostname.as_deref(), Some("mx.example.test"));
    assert!(service.banner.starts_with(b"220 mx.example.test"));
}

#[tokio::test]
async fn who_waits_for_a_question_is_asked() {
    let page = b"HTTP/1.1 200 OK\r\nServer: lab/1.2\r\nContent-Length: 29\r\n\r\n<title>A  lab\r\npage</title>\r\n";
    let port = server(move |stream| async move { play(stream, b"", &[page]).await }).await;
    let service = identified(outcome(port).await);
    assert_eq!((service.name.as_str(), service.product.as_deref(), service.version.as_deref()), ("http", Some("lab"), Some("1.2")));
    assert_eq!((service.fact("http.status"), service.fact("http.title")), (Some("200"), Some("A lab page")));
}

#[tokio::test]
async fn redirects_are_followed_on_the_very_port_alone() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let port = server(move |mut stream| {
        let count = count.clone();
        async move {
            let mut heard = vec![0; 4096];
            while let Ok(len) = stream.read(&mut heard).await
                && len > 0
            {
                let text = String::from_utf8_lossy(&heard[..len]).into_owned();
                let answer = if text.starts_with("GET / ") {
                    "HTTP/1.1 302 Found\r\nLocation: /start\r\nContent-Length: 0\r\n\r\n".to_owned()
                } else if text.starts_with("GET /start ") {
                    count.fetch_add(1, Ordering::Relaxed);
                    "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 20\r\n\r\n<title>next</title>.".to_owned()
                } else if text.starts_with("GET") {
                    count.fetch_add(100, Ordering::Relaxed);
                    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
                } else {
                    return;
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let service = identified(outcome(port).await);
    assert_eq!((service.fact("http.status"), service.fact("http.location")), (Some("302"), Some("/start")));
    assert_eq!((service.fact("http.followed.status"), service.fact("http.title")), (Some("302"), Some("next")));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one hop, no more");
}

#[tokio::test]
async fn redirects_elsewhere_are_recorded() {
    let answer = b"HTTP/1.1 301 Moved\r\nLocation: https://198.18.0.9/\r\nContent-Length: 0\r\n\r\n";
    let port = server(move |stream| async move { play(stream, b"", &[answer]).await }).await;
    let service = identified(outcome(port).await);
    assert_eq!((service.fact("http.status"), service.fact("http.location")), (Some("301"), Some("https://198.18.0.9/")));
}

#[tokio::test]
async fn silence_is_told_in_bounded_time() {
    let port = server(|stream| async move { play(stream, b"", &[]).await }).await;
    let begun = clock::now();
    assert_eq!(outcome(port).await, ServiceOutcome::Silent);
    assert!(clock::now().saturating_since(begun) >= Duration::from_millis(400), "it was listened to, and asked");
}

#[tokio::test]
async fn a_tarpit_holds_nobody() {
    let port = server(|mut stream| async move {
        // A byte at a time, for ever.
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(90)).await;
        }
    });
    let port = port.await;
    let [detected] = detect_all(options(), Arc::new(|_| true), &[target(port)]).await.try_into().unwrap();
    match detected.outcome {
        ServiceOutcome::Unidentified { banner } => assert!(banner.iter().all(|byte| *byte == b'x') && !banner.is_empty()),
        other => panic!("{other:?}"),
    }
    // Its budget, and the time to say good-bye; no more than a machine may stumble.
    assert!(detected.took < Duration::from_secs(20), "{:?}", detected.took);
}

#[tokio::test]
async fn a_flood_is_cut() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let port = server(move |mut stream| {
        let count = count.clone();
        async move {
            while stream.write_all(&[b'z'; 8192]).await.is_ok() {
                count.fetch_add(8192, Ordering::Relaxed);
            }
        }
    });
    let outcome = outcome(port.await).await;
    assert!(matches!(&outcome, ServiceOutcome::Unidentified { banner } if banner.len() == 512), "{outcome:?}");
}

#[tokio::test]
async fn who_closes_at_once_is_silent() {
    let port = server(|stream| async move { drop(stream) }).await;
    assert_eq!(outcome(port).await, ServiceOutcome::Silent);
}

/// A server that has room for its second visitor alone, and tells the others `busy`; returns its port and how many came.
async fn crowded(busy: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
    let visitors = Arc::new(AtomicUsize::new(0));
    let count = visitors.clone();
    let port = server(move |mut stream| {
        let visitor = count.fetch_add(1, Ordering::Relaxed);
        async move {
            match visitor {
                1 => play(stream, b"SSH-2.0-OpenSSH_9.2p1\r\n", &[]).await,
                _ => drop(stream.write_all(busy).await),
            }
        }
    })
    .await;
    (port, visitors)
}

#[tokio::test]
async fn who_was_sent_away_comes_again() {
    for busy in [&b""[..], b"Exceeded MaxStartups\r\n", b"Not allowed at this time\r\n"] {
        let (port, visitors) = crowded(busy).await;
        let service = identified(outcome(port).await);
        assert_eq!((service.name.as_str(), service.version.as_deref()), ("ssh", Some("9.2p1")), "{}", busy.escape_ascii());
        assert_eq!(visitors.load(Ordering::Relaxed), 2, "nothing was guessed at");
    }
}

#[tokio::test]
async fn who_sends_everybody_away_has_said_who_it_is() {
    let port = server(|stream| async { play(stream, b"Exceeded MaxStartups\r\n", &[]).await }).await;
    assert_eq!(identified(outcome(port).await).name, "ssh");
}

#[tokio::test]
async fn an_echo_is_recognised() {
    let port = server(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    assert_eq!(identified(outcome(port.await).await).name, "echo");
}

#[tokio::test]
async fn closed_ports_and_refused_addresses_are_told_as_such() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(outcome(closed).await, ServiceOutcome::Lost("connection refused".into()));
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let port = server(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        core::future::ready(())
    });
    let [detected] = detect_all(options(), Arc::new(|_: IpAddr| false), &[target(port.await)]).await.try_into().unwrap();
    assert_eq!(detected.outcome, ServiceOutcome::Refused);
    assert_eq!(accepted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn fragile_ports_hear_nothing() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let port = server(move |mut stream| {
        let kept = kept.clone();
        async move {
            let mut all = Vec::new();
            let end = stream.read_to_end(&mut all).await;
            kept.lock().unwrap().push((all, end.is_ok()));
        }
    })
    .await;
    let site = fragile::SitePolicy { more: Some(port.to_string().parse().unwrap()), ..fragile::SitePolicy::default() };
    let spared = DetectOptions { site, ..options() };
    let [detected] = detect_all(spared, Arc::new(|_| true), &[target(port)]).await.try_into().unwrap();
    assert_eq!(detected.outcome, ServiceOutcome::Spared);
    // The server's task may still have to run.
    while heard.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*heard.lock().unwrap(), [(Vec::new(), true)], "one connection, no word, an end in order");
}

#[tokio::test]
async fn tls_is_told_with_what_is_inside() {
    let acceptor = acceptor(&[&rustls::version::TLS12, &rustls::version::TLS13]);
    let page = b"HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"lab\"\r\nContent-Length: 0\r\n\r\n";
    let port = server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                play(stream, b"", &[page]).await;
            }
        }
    });
    let service = identified(outcome(port.await).await);
    assert_eq!((service.name.as_str(), service.tls), ("http", true));
    assert_eq!((service.fact("http.status"), service.fact("http.auth")), (Some("401"), Some("Basic realm=\"lab\"")));
    assert_eq!((service.fact("tls.version"), service.fact("tls.versions")), (Some("1.3"), Some("1.2 1.3")));
    assert_eq!((service.fact("tls.names"), service.fact("tls.self_signed")), (Some("box.example.test"), Some("yes")));
    assert_eq!(service.fact("tls.days_left"), Some("-31"), "an expired certificate is a finding");
    assert!(service.facts.iter().filter(|(name, _)| name == "tls.version").count() == 1, "{:?}", service.facts);
}

#[tokio::test]
async fn tls_is_begun_where_a_dialogue_asks_for_it() {
    let acceptor = acceptor(&[&rustls::version::TLS13]);
    let port = server(move |mut stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut heard = [0; 1024];
            let _ = stream.write_all(b"220 mx ESMTP\r\n").await;
            for answer in [&b"250-mx\r\n250 STARTTLS\r\n"[..], b"220 go\r\n"] {
                let _ = stream.read(&mut heard).await;
                let _ = stream.write_all(answer).await;
            }
            if let Ok(stream) = acceptor.accept(stream).await {
                play(stream, b"", &[b"221 bye\r\n"]).await;
            }
        }
    });
    let service = identified(outcome(port.await).await);
    assert_eq!((service.name.as_str(), service.tls), ("smtp", false));
    assert_eq!((service.fact("smtp.starttls"), service.fact("tls.names")), (Some("offered"), Some("box.example.test")));
}

#[tokio::test]
async fn who_speaks_tls_but_not_ours_is_told() {
    // Whatever is offered, an alert: handshake failure.
    let port = server(|stream| async move { play(stream, b"", &[b"\x15\x03\x01\0\x02\x02\x28"]).await });
    let service = identified(outcome(port.await).await);
    assert_eq!((service.name.as_str(), service.tls), ("tls", true));
    assert!(service.fact("tls.failure").is_some(), "{:?}", service.facts);
}

#[tokio::test]
async fn datagrams_are_answered_and_lost() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut heard = [0; 2048];
        let mut dropped = false;
        while let Ok((len, from)) = socket.recv_from(&mut heard).await {
            // A question of DNS', the first of which is lost: version.bind, then the root's servers.
            if len < 13 || heard[2..4] != [1, 0] || heard[4..6] != [0, 1] {
                continue;
            }
            if !dropped {
                dropped = true;
                continue;
            }
            heard[2] = 0x81;
            heard[3] = 0x85;
            let _ = socket.send_to(&heard[..len], from).await;
        }
    });
    let target = ServiceTarget { transport: Transport::Udp, ..target(port) };
    let [detected] = detect_all(options(), Arc::new(|_| true), &[target]).await.try_into().unwrap();
    let service = identified(detected.outcome);
    assert_eq!((service.name.as_str(), service.fact("dns.rcode"), service.fact("dns.recursion")), ("domain", Some("REFUSED"), Some("no")));
}

#[tokio::test]
async fn many_are_asked_at_once_and_paced() {
    let port = server(|stream| async move { play(stream, b"SSH-1.5-lab_1.0\r\n", &[]).await }).await;
    let targets: Vec<ServiceTarget> = (1..=40).map(|n| ServiceTarget { id: n, ..target(port) }).collect();
    let interface = Arc::new(Mutex::new(Pacer::new(Limits::packets(PacketsPerSecond::new(1000).unwrap()))));
    let begun = clock::now();
    let all = detect_all(DetectOptions { interface, max_open: 8, ..options() }, Arc::new(|_| true), &targets).await;
    let took = clock::now().saturating_since(begun);
    assert!(
        all.iter().all(|detected| matches!(&detected.outcome, ServiceOutcome::Identified(service) if service.name == "ssh")),
        "{all:?}"
    );
    // 40 connections of 4 frames and an acknowledgement, but for the last one's and the burst.
    assert!(took >= Duration::from_millis(40 * 5 - 15), "{took:?}");
}

#[tokio::test]
async fn a_host_with_many_silent_ports_holds_up_itself_alone() {
    let silent = server(|stream| async move { play(stream, b"", &[]).await }).await;
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let other = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move { play(stream, b"SSH-1.5-lab\r\n", &[]).await });
        }
    });
    let mut targets: Vec<ServiceTarget> = (0..shell::PER_ADDRESS as u64 * 2).map(|id| ServiceTarget { id, ..target(silent) }).collect();
    targets.push(ServiceTarget { id: 999, addr: IpAddr::from([127, 0, 0, 2]), ..target(other) });
    let (sender, receiver) = mpsc::channel(100);
    let (found, mut told) = mpsc::channel(100);
    for target in &targets {
        sender.send(*target).await.unwrap();
    }
    drop(sender);
    let first = async { told.recv().await.unwrap() };
    let options = DetectOptions { max_open: 400, ..options() };
    let first = tokio::select! {
        () = detect(options, Arc::new(|_| true), receiver, found) => panic!("it was told"),
        first = first => first,
    };
    assert_eq!(first.id, 999, "it was the last to come, and need not wait for the others");
}

#[tokio::test]
async fn nobody_listening_ends_it() {
    let port = server(|stream| async move { play(stream, b"SSH-1.5-lab\r\n", &[]).await }).await;
    let (sender, receiver) = mpsc::channel(4);
    let (found, told) = mpsc::channel(1);
    drop(told);
    sender.send(target(port)).await.unwrap();
    // Ends although `sender` is still open.
    detect(options(), Arc::new(|_| true), receiver, found).await;
}
