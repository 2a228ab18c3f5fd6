//! Service detection against real services, whose truth is what was started, and against those that waste time.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use picket_probe::net::pacer::Limits;
use picket_probe::net::target_pacer::{BURST, TargetLimits, TargetPacer};
use picket_probe::service::fragile::{SiteLeave, SitePolicy};
use picket_probe::service::{Deadlines, DetectOptions, Detected, ServiceTarget, WIDTH};
use picket_tests::lab::require_root;
use picket_tests::lab::services::{self, Daemon, Known, Services};
use picket_tests::lab::watch::{Direction, Watch};
use picket_tests::system::services::{Pair, ask, options, target, tcp};
use picket_wire::job::ServiceOptions;
use picket_wire::service::{Service, ServiceOutcome};

/// Whether the test can run: in a lab, with the services' packages. Says aloud when it cannot.
fn ready() -> bool {
    if !require_root() {
        return false;
    }
    let Some(lacks) = services::missing() else { return true };
    let required = std::env::var_os("PICKET_REQUIRE_LAB").is_some_and(|value| value == "1");
    assert!(!required, "PICKET_REQUIRE_LAB=1, but this test cannot run: missing {lacks}");
    eprintln!("\n*** SKIP: this test needs real services and did NOT run: missing {lacks} ***\n");
    false
}

fn identified(detected: &Detected) -> Option<&Service> {
    match &detected.outcome {
        ServiceOutcome::Identified(service) => Some(service),
        _ => None,
    }
}

/// How what was found differs from the truth; empty when it does not.
fn differs(known: &Known, detected: &Detected) -> String {
    let Some(found) = identified(detected) else { return format!("{known:?}\n  is {:?}", detected.outcome) };
    let same = found.name == known.name
        && found.tls == known.tls
        && found.product.as_deref() == Some(known.product)
        && (known.version.is_none() || found.version == known.version);
    if same {
        return String::new();
    }
    let Service { name, tls, product, version, .. } = found;
    format!("{known:?}\n  is name {name:?}, tls {tls}, product {product:?}, version {version:?}")
}

#[test]
fn real_services_are_identified_by_name_product_and_version() {
    if !ready() {
        return;
    }
    let pair = Pair::new("real").unwrap();
    // Two that want the same port sit at two addresses.
    let most: Vec<Daemon> = Daemon::ALL.into_iter().filter(|daemon| *daemon != Daemon::Dnsmasq).collect();
    let first = Services::start(&pair.servers, Pair::host(1), &most).unwrap();
    let second = Services::start(&pair.servers, Pair::host(2), &[Daemon::Dnsmasq]).unwrap();
    let known: Vec<&Known> = first.known().iter().chain(second.known()).collect();
    let targets: Vec<ServiceTarget> =
        known.iter().enumerate().map(|(at, known)| ServiceTarget { id: at as u64, ..target(known) }).collect();
    let begun = Instant::now();
    // Everything here answers; how soon is the machine's business.
    let patient = Deadlines {
        greeting: Duration::from_secs(20),
        answer: Duration::from_secs(20),
        follow: Duration::from_secs(20),
        port: Duration::from_secs(120),
        ..Deadlines::default()
    };
    let told = ask(&pair.probe, DetectOptions { deadlines: patient, ..options(Limits::UNLIMITED) }, &targets).unwrap();
    eprintln!("{} ports in {:?}", told.len(), begun.elapsed());
    assert_eq!(told.len(), known.len());
    let wrong: Vec<String> = told
        .iter()
        .map(|detected| differs(known[usize::try_from(detected.id).unwrap()], detected))
        .filter(|text| !text.is_empty())
        .collect();
    assert!(wrong.is_empty(), "{} of {} are not what they are:\n{}", wrong.len(), told.len(), wrong.join("\n"));
    // What only some tell.
    let of = |daemon: Daemon, port: u16| {
        let at = known.iter().position(|known| known.daemon == daemon && known.port == port).unwrap();
        identified(told.iter().find(|detected| detected.id == at as u64).unwrap()).unwrap()
    };
    let tls = of(Daemon::Nginx, 443);
    assert!(tls.facts.iter().any(|(name, value)| name.starts_with("tls.") && value.contains("attic.example")), "{:?}", tls.facts);
    assert_eq!(of(Daemon::Exim, 25).hostname.as_deref(), Some("attic.example"));
    assert!(of(Daemon::Openssh, 22).cpes.iter().any(|cpe| cpe.starts_with("cpe:/a:openbsd:openssh:")));
}

/// Serves each connection in a thread of its own, until the test's process ends.
fn serve(pair: &Pair, port: u16, handle: fn(TcpStream)) -> IpAddr {
    let host = Pair::host(1);
    let listener = pair.servers.enter(|| TcpListener::bind(SocketAddr::new(host, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || handle(stream));
        }
    });
    host
}

fn trickle(mut stream: TcpStream) {
    while stream.write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn flood(mut stream: TcpStream) {
    while stream.write_all(&[0xa5; 65_536]).is_ok() {}
}

fn echo(mut stream: TcpStream) {
    let mut heard = [0; 4096];
    while let Ok(len) = stream.read(&mut heard) {
        if len == 0 || stream.write_all(&heard[..len]).is_err() {
            return;
        }
    }
}

#[test]
fn who_wastes_time_gets_little_of_it() {
    if !require_root() {
        return;
    }
    let pair = Pair::new("tarpit").unwrap();
    let host = Pair::host(1);
    let _silent = services::silent(&pair.servers, 7000..7020).unwrap();
    serve(&pair, 7100, trickle);
    serve(&pair, 7101, flood);
    serve(&pair, 7102, drop);
    serve(&pair, 7103, echo);
    let ports: Vec<u16> = (7000..7020).chain(7100..7104).chain([7999]).collect();
    let targets: Vec<ServiceTarget> = ports.iter().map(|port| tcp(host, *port)).collect();
    let options = options(Limits::UNLIMITED);
    // What a port may take, and as much again for a machine that is busy with other things.
    let bound = 2 * options.deadlines.port;
    let told = ask(&pair.probe, options, &targets).unwrap();
    assert_eq!(told.len(), ports.len());
    for detected in &told {
        let port = detected.target.port;
        assert!(detected.took < bound, "{port} took {:?}", detected.took);
        match port {
            7000..7020 => assert_eq!(detected.outcome, ServiceOutcome::Silent, "{port}"),
            7100 | 7101 => assert!(matches!(detected.outcome, ServiceOutcome::Unidentified { .. }), "{port}: {:?}", detected.outcome),
            7103 => assert_eq!(identified(detected).map(|service| service.name.as_str()), Some("echo")),
            7999 => assert!(matches!(detected.outcome, ServiceOutcome::Lost(_)), "{:?}", detected.outcome),
            _ => assert!(identified(detected).is_none(), "{port}: {:?}", detected.outcome),
        }
    }
}

/// The frames to a port that carry data, and those that open, end and break connections: SYN, FIN, RST.
fn counted(pair: &Pair, port: u16, options: DetectOptions) -> (Detected, [u64; 4]) {
    const DATA: &str = "(ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2)) != 0";
    let watches = [DATA, "tcp[13] & 2 != 0", "tcp[13] & 1 != 0", "tcp[13] & 4 != 0"].map(|what| {
        let filter = format!("tcp dst port {port} and {what}");
        Watch::start(&pair.servers, Pair::DEVICE, Direction::In, Some(&filter)).unwrap()
    });
    let mut told = ask(&pair.probe, options, &[tcp(Pair::host(1), port)]).unwrap();
    let counts = watches.map(|watch| watch.stop().unwrap().len() as u64);
    (told.remove(0), counts)
}

#[test]
fn fragile_ports_are_told_nothing() {
    if !require_root() {
        return;
    }
    let pair = Pair::new("fragile").unwrap();
    let _silent = services::silent(&pair.servers, [9100, 502, 7000]).unwrap();
    let job = |ask_fragile| ServiceOptions { ask_fragile };
    let site = |leave| SitePolicy { leave, more: None };
    // The job alone does not decide.
    for asked in [false, true] {
        let (detected, counts) = counted(&pair, 9100, DetectOptions { options: job(asked), ..options(Limits::UNLIMITED) });
        assert_eq!(detected.outcome, ServiceOutcome::Spared);
        assert_eq!(counts, [0, 1, 1, 0], "data, SYN, FIN, RST");
    }
    // Job and site agree, for one of two ports.
    let agreed =
        || DetectOptions { options: job(true), site: site(SiteLeave::Ports("502".parse().unwrap())), ..options(Limits::UNLIMITED) };
    let (detected, counts) = counted(&pair, 502, agreed());
    assert_eq!(detected.outcome, ServiceOutcome::Silent);
    assert!(counts[0] > 0, "it was asked");
    assert_eq!(counted(&pair, 9100, agreed()).0.outcome, ServiceOutcome::Spared);
    // A site may name more.
    let more = SitePolicy { leave: SiteLeave::None, more: Some("7000".parse().unwrap()) };
    let (detected, counts) = counted(&pair, 7000, DetectOptions { site: more, ..options(Limits::UNLIMITED) });
    assert_eq!((detected.outcome, counts), (ServiceOutcome::Spared, [0, 1, 1, 0]));
}

#[test]
fn connections_keep_the_rate_as_seen_from_outside() {
    if !require_root() {
        return;
    }
    const LIMIT: u32 = 300;
    let pair = Pair::new("svcrate").unwrap();
    let _silent = services::silent(&pair.servers, 7000..7030).unwrap();
    serve(&pair, 7100, echo);
    let targets: Vec<ServiceTarget> = (7000..7030).chain([7100]).map(|port| tcp(Pair::host(1), port)).collect();
    let watch = Watch::start(&pair.servers, Pair::DEVICE, Direction::In, Some("tcp")).unwrap();
    let limits = Limits::packets(format!("{LIMIT}pps").parse().unwrap());
    let told = ask(&pair.probe, options(limits), &targets).unwrap();
    let timing = watch.stop().unwrap().timing(|_| true);
    assert_eq!(told.len(), targets.len());
    eprintln!("{timing}");
    assert!(timing.packets() > 500, "{} packets say little of a rate", timing.packets());
    let mean = timing.mean_packets();
    assert!(mean <= f64::from(LIMIT), "mean {mean:.1}/s");
    // The stated burst: what a late wake-up catches up, the two frames that are paid together, and what is provoked behind them: an
    // acknowledgement in each connection of the one port that answers. Two more may have been paid just before and have left late.
    let window = Duration::from_secs(1);
    let bound = f64::from(LIMIT) * (window + limits.burst).as_secs_f64() + 2.0 + WIDTH as f64 + 2.0;
    let peak = timing.peak(window).packets;
    assert!(peak as f64 <= bound, "{peak} packets in a second, {bound} at most");
}

#[test]
fn connections_keep_the_limit_of_their_address_as_seen_from_outside() {
    if !require_root() {
        return;
    }
    const LIMIT: u32 = 50;
    let pair = Pair::new("svcaddr").unwrap();
    let hosts = [Pair::host(1), Pair::host(2)];
    let _silent = services::silent(&pair.servers, 7000..7004).unwrap();
    let targets: Vec<ServiceTarget> = (7000..7004).flat_map(|port| hosts.map(|host| tcp(host, port))).collect();
    let watches = hosts.map(|host| {
        let filter = format!("tcp and dst host {host}");
        Watch::start(&pair.servers, Pair::DEVICE, Direction::In, Some(&filter)).unwrap()
    });
    let limits = TargetLimits { per_address: Some(format!("{LIMIT}pps").parse().unwrap()), per_network: None };
    let told = ask(&pair.probe, DetectOptions { targets: TargetPacer::new(limits, &[9; 16]), ..options(Limits::UNLIMITED) }, &targets);
    assert_eq!(told.unwrap().len(), targets.len());
    let window = Duration::from_secs(1);
    // What may be late, the two frames that are paid together, and two that were paid just before and have left late.
    let bound = f64::from(LIMIT) * (window + BURST).as_secs_f64() + 2.0 + 2.0;
    for watch in watches {
        let timing = watch.stop().unwrap().timing(|_| true);
        eprintln!("{timing}");
        assert!(timing.packets() > 100, "{} packets say little of a rate", timing.packets());
        let peak = timing.peak(window).packets;
        assert!(peak as f64 <= bound, "{peak} packets in a second, {bound} at most");
    }
}
