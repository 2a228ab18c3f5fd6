//! The lab tested by itself: what the other whole-system tests stand on must hold first.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use picket_tests::lab::sink::Sink;
use picket_tests::lab::site::{DEVICE, SegmentPlan, Site};
use picket_tests::lab::target::{self, Service};
use picket_tests::lab::truth::{HostState, Mix, PortTruth, TruthSpec};
use picket_tests::lab::watch::{Content, Direction, Watch};
use picket_tests::lab::{Lab, Run, collect_stale, require_root, wait_until};

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn namespaces() -> BTreeSet<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn sleeper() -> Run {
    Run::new("sleep").arg("3600")
}

#[test]
fn namespaces_and_processes_go_with_their_guards() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("guards").unwrap();
    let dir = lab.dir().to_owned();
    let namespace = lab.namespace("one").unwrap();
    let name = namespace.name().to_owned();
    assert!(namespaces().contains(&name) && dir.is_dir());
    let proc = namespace.spawn(&sleeper()).unwrap();
    let pid = proc.id();
    // A stopped one must die too, and one whose guard was lost goes with the namespace.
    let mut frozen = namespace.spawn(&sleeper()).unwrap();
    frozen.freeze().unwrap();
    let lost = namespace.spawn(&sleeper()).unwrap();
    let pids = [pid, frozen.id(), lost.id()];
    std::mem::forget(lost);
    drop((proc, frozen));
    assert!(!alive(pid));
    drop((namespace, lab));
    // A forgotten child stays as a zombie of this process; it must not run.
    let running = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(pids.iter().all(|pid| !running(*pid)));
    assert!(!namespaces().contains(&name) && !dir.exists());
}

#[test]
fn a_panic_leaves_nothing_behind() {
    if !require_root() {
        return;
    }
    let panicked = std::thread::spawn(|| {
        let lab = Lab::new("panics").unwrap();
        let namespace = lab.namespace("one").unwrap();
        let proc = namespace.spawn(&sleeper()).unwrap();
        std::panic::panic_any((namespace.name().to_owned(), proc.id()));
    });
    let (name, pid) = *panicked.join().unwrap_err().downcast::<(String, u32)>().unwrap();
    assert!(!namespaces().contains(&name));
    assert!(!alive(pid));
}

#[test]
fn what_a_dead_owner_left_is_collected_and_nothing_else() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("living").unwrap();
    let living = lab.namespace("one").unwrap();
    // Process 1 lives, but did not start at tick 999999999999: its id was re-used, as far as the names tell.
    let stale = format!("pk-lab-1-999999999999-0-stale-{}", std::process::id());
    let foreign = format!("pk-other-1-999999999999-{}", std::process::id());
    let ip = |args: &[&str]| assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
    ip(&["netns", "add", &stale]);
    ip(&["netns", "add", &foreign]);
    let mut child = std::process::Command::new("ip").args(["netns", "exec", &stale, "sleep", "3600"]).spawn().unwrap();
    let dir = std::env::temp_dir().join(format!("picket-lab-1-999999999999-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    // Another test's lab may have been quicker; what counts is that it is gone.
    collect_stale().unwrap();
    let status = child.wait().unwrap();
    let now = namespaces();
    ip(&["netns", "delete", &foreign]);
    assert!(!status.success());
    assert!(!now.contains(&stale) && !dir.exists());
    assert!(now.contains(living.name()) && now.contains(&foreign));
}

#[test]
fn programs_are_heard_and_ended() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("programs").unwrap();
    let namespace = lab.namespace("one").unwrap();
    let shell = |script: &str| Run::new("sh").args(["-c", script]);
    let done = namespace.run(&shell("echo out; echo err >&2; echo $X; exit 3").env("X", "environment"), PATIENCE).unwrap();
    assert_eq!((done.status.code(), done.stdout.as_str(), done.stderr.as_str()), (Some(3), "out\nenvironment\n", "err\n"));
    assert!(done.ok().unwrap_err().to_string().contains("err"));

    let mut proc = namespace.spawn(&shell("trap 'echo bye; exit 0' TERM; echo ready now; while :; do sleep 0.01; done")).unwrap();
    assert_eq!(proc.wait_for_line("ready", PATIENCE).unwrap(), "ready now");
    proc.freeze().unwrap();
    assert!(proc.running());
    proc.thaw().unwrap();
    assert!(proc.resident_kib().unwrap() > 0);
    proc.processor_time().unwrap();
    assert!(proc.terminate(PATIENCE).unwrap().success());
    assert!(proc.stdout().ends_with("bye\n"));

    let read = Run::new("cat").input("typed").under(["env", "A=b", "nice", "-n", "1"]);
    assert_eq!(namespace.run(&read, PATIENCE).unwrap().ok().unwrap(), "typed");

    let mut proc = namespace.spawn(&shell("echo last words; exit 1")).unwrap();
    let error = format!("{:#}", proc.wait_for_line("never said", PATIENCE).unwrap_err());
    assert!(error.contains("exit status: 1") && error.contains("last words"), "{error}");

    // What a program started dies with it.
    let mut proc = namespace.spawn(&shell("sleep 3600 & echo child $!; wait")).unwrap();
    let child: u32 = proc.wait_for_line("child ", PATIENCE).unwrap()["child ".len()..].parse().unwrap();
    proc.kill().unwrap();
    let start = Instant::now();
    while alive(child) {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(namespace.processes().unwrap().is_empty());
    assert!(namespace.spawn(&sleeper()).unwrap().signal(Signal::SIGCONT).is_ok());
}

#[test]
fn a_lab_holds_no_other_device_and_leads_nowhere() {
    if !require_root() {
        return;
    }
    let machine = || std::fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>();
    let before = machine();
    let site = Site::builder("devices").probe("north").build().unwrap();
    assert_eq!(machine(), before, "the machine's own devices stay where they are, and no new ones appear");
    let north = site.probe("north").unwrap().namespace();
    north.check().unwrap();
    let outside = "203.0.113.1:80".parse().unwrap();
    assert!(!north.reaches(outside, Duration::from_secs(2)).unwrap());
    assert!(north.address(DEVICE, "10.0.0.1".parse().unwrap(), 24).is_err());
    if north.ip(&["link", "add", "v0", "type", "vlan", "id", "7", "dev", DEVICE]).is_err() {
        // Not every kernel has one of these; one that has neither cannot break the promise this way.
        if north.ip(&["link", "add", "v0", "type", "dummy"]).is_err() {
            return;
        }
    }
    assert!(north.check().unwrap_err().to_string().contains("v0"));
}

const PORTS: [u16; 4] = [22, 80, 443, 8080];

#[test]
fn truth_holds_by_real_connections() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(11, &["198.18.0.0/24", "2001:db8:1::/120"], &PORTS).unwrap();
    let (ssh, web): (IpAddr, IpAddr) = ("198.18.0.10".parse().unwrap(), "2001:db8:1::10".parse().unwrap());
    let spec = spec.host(ssh, HostState::Up).port(ssh, 22, PortTruth::Open);
    let spec = spec.host(web, HostState::Up).port(web, 80, PortTruth::Open);
    let plan = SegmentPlan::new("office", spec);
    let plan = plan.service(22, Service::Banner("SSH-2.0-lab".to_owned())).service(80, Service::Http("lab/1".to_owned()));
    let site = Site::builder("truth").probe("north").probe_in("desk", "office").segment(plan).build().unwrap();
    let target = site.segment("office").unwrap().target();
    for name in ["north", "desk"] {
        target.self_check(site.probe(name).unwrap().namespace(), 24).unwrap();
    }
    let north = site.probe("north").unwrap().namespace();
    // A port that nobody listens on is refused by a host that is there.
    let unlisted = SocketAddr::new(ssh, 4000);
    assert_eq!(north.enter(|| target::connect(unlisted, false)).unwrap().unwrap(), PortTruth::Closed);
    let talk = |to: SocketAddr, say: &str| {
        north.enter(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(say.as_bytes()).unwrap();
            let mut buffer = [0; 200];
            let length = stream.read(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        })
    };
    assert_eq!(talk(SocketAddr::new(ssh, 22), "").unwrap(), "SSH-2.0-lab\r\n");
    assert!(talk(SocketAddr::new(web, 80), "GET / HTTP/1.1\r\n\r\n").unwrap().contains("Server: lab/1"));
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(target.truth_file()).unwrap()).unwrap();
    assert_eq!(written["hosts"].as_array().unwrap().len(), 512);
    assert_eq!(written["seed"], 11);
}

#[test]
fn truth_holds_on_a_shared_wire() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(5, &["198.18.64.0/26", "2001:db8:2::/122"], &PORTS).unwrap();
    let plan = SegmentPlan::new("lan", spec).on_link();
    let site = Site::builder("wire").probe("north").probe_in("desk", "lan").segment(plan).build().unwrap();
    let target = site.segment("lan").unwrap().target();
    let desk = site.probe("desk").unwrap().namespace();
    // A dead host on the wire does not even answer ARP: the kernel says "no route" where a routed one is silent.
    let live = |(address, _): &(IpAddr, HostState)| target.truth().host(*address) != Some(HostState::Dead);
    let mut seen = 0;
    for (address, state) in target.truth().hosts().filter(live).step_by(7) {
        let wait = if state == HostState::Up { PATIENCE } else { Duration::from_millis(200) };
        assert_eq!(desk.enter(|| target::echo(address, wait)).unwrap().unwrap(), state == HostState::Up, "{address}");
        seen += 1;
    }
    assert!(seen > 10);
    let (dead, _) = target.truth().hosts().find(|(_, state)| *state == HostState::Dead).unwrap();
    assert!(!desk.enter(|| target::echo(dead, Duration::from_millis(200))).unwrap().unwrap());
    let neighbours = desk.ip(&["neighbour", "show", "dev", DEVICE]).unwrap();
    let of_dead = neighbours.lines().find(|line| line.starts_with(&format!("{dead} "))).unwrap();
    assert!(!of_dead.contains("lladdr"), "{of_dead}");
    let open = target.truth().sample(PortTruth::Open, 8);
    let watch = site.watch("desk", Some("tcp")).unwrap();
    for (address, port) in open.clone() {
        let seen = desk.enter(|| target::connect(SocketAddr::new(address, port), false)).unwrap().unwrap();
        assert_eq!(seen, PortTruth::Open, "{address} port {port}");
    }
    // On a wire that others share the watch sees what this probe sends and nothing else.
    let capture = watch.stop().unwrap();
    let place = site.probe("desk").unwrap();
    assert!(capture.packets().all(|packet| place.is(packet.source)));
    assert_eq!(capture.probed_ports(|_| true), open.iter().map(|probed| (*probed, 1)).collect());
    // Its cable can be pulled as any other's.
    let controller = IpAddr::V4(site.controller_v4());
    site.link_down("desk").unwrap();
    assert!(!desk.enter(|| target::echo(controller, Duration::from_millis(100)).unwrap_or(false)).unwrap());
    site.link_up("desk").unwrap();
    let again = || Ok(desk.enter(|| target::echo(controller, Duration::from_millis(200)).unwrap_or(false))?.then_some(()));
    wait_until("an echo over the link that is up again", PATIENCE, again).unwrap();
}

#[test]
fn a_slash_20_of_16_ports_can_be_installed() {
    if !require_root() {
        return;
    }
    let ports: Vec<u16> = (0..16).map(|n| 1000 + n * 7).collect();
    let mix = Mix { dead: 100, shy: 100, open: 330, silent: 330 };
    let start = Instant::now();
    let spec = TruthSpec::new(20, &["198.18.16.0/20", "2001:db8:3::/116"], &ports).unwrap().mix(mix);
    let site = Site::builder("big").probe("north").segment(SegmentPlan::new("big", spec)).build().unwrap();
    eprintln!("a /20 and a /116 with 16 ports: {:?}", start.elapsed());
    let target = site.segment("big").unwrap().target();
    assert_eq!(target.truth().iter().count(), 2 * 4096 * 16);
    let north = site.probe("north").unwrap().namespace();
    target.self_check(north, 60).unwrap();
    // Many in a row, as fast as this sender can: nothing in the target limits refusals or echo replies.
    let start = Instant::now();
    north
        .enter(|| {
            for state in [PortTruth::Open, PortTruth::Closed] {
                for (address, port) in target.truth().sample(state, 2000) {
                    assert_eq!(target::connect(SocketAddr::new(address, port), false).unwrap(), state, "{address} port {port}");
                }
            }
            for (address, _) in target.truth().hosts().filter(|(_, state)| *state == HostState::Up).step_by(3) {
                assert!(target::echo(address, PATIENCE).unwrap(), "{address}");
            }
        })
        .unwrap();
    eprintln!("thousands of connections and echoes: {:?}", start.elapsed());
}

#[test]
fn links_go_down_and_up() {
    if !require_root() {
        return;
    }
    let site = Site::builder("links").probe("north").probe("south").build().unwrap();
    let controller = [IpAddr::V4(site.controller_v4()), IpAddr::V6(site.controller_v6())];
    let reaches = |name: &str, wait| {
        let place = site.probe(name).unwrap().namespace();
        controller.map(|address| place.enter(|| target::echo(address, wait).unwrap_or(false)).unwrap())
    };
    // A first request may fall into the moment in which a link comes up; that it gets through at last is what counts.
    let reaches_again = |name: &str| {
        let start = Instant::now();
        while reaches(name, Duration::from_millis(200)) != [true, true] {
            assert!(start.elapsed() < PATIENCE, "{name} does not reach the controller again");
        }
    };
    for _ in 0..2 {
        site.link_down("north").unwrap();
        assert_eq!(reaches("north", Duration::from_millis(100)), [false, false]);
        assert_eq!(reaches("south", PATIENCE), [true, true]);
        site.link_up("north").unwrap();
        reaches_again("north");
    }
    site.controller_link_down().unwrap();
    assert_eq!(reaches("south", Duration::from_millis(100)), [false, false]);
    site.controller_link_up().unwrap();
    reaches_again("south");
}

/// Sends datagrams and notes the times between which each must have passed.
fn generate(to: SocketAddr, count: usize, payload: usize, pause: Option<Duration>) -> Vec<(u64, u64)> {
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
        u64::try_from(since.as_nanos()).expect("this side of the year 2554")
    };
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("open a UDP socket");
    let data = vec![0_u8; payload];
    let send = |_| {
        let before = now();
        socket.send_to(&data, to).expect("send a datagram");
        let after = now();
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
        (before, after)
    };
    (0..count).map(send).collect()
}

#[test]
fn the_watch_measures_a_known_sender() {
    if !require_root() {
        return;
    }
    let site = Site::builder("watch").probe("north").build().unwrap();
    let north = site.probe("north").unwrap();
    for to in [SocketAddr::from((site.controller_v4(), 9)), SocketAddr::from((site.controller_v6(), 9))] {
        // The building of the site has made the neighbours known: no frame waits for an answer.
        let mut watch = site.watch("north", Some("udp port 9")).unwrap();
        let sent = north.namespace().enter(|| generate(to, 500, 100, Some(Duration::from_millis(1)))).unwrap();
        assert!(watch.seen().unwrap() <= 500);
        let capture = watch.stop().unwrap();
        let timing = capture.timing(|_| true);
        let bytes = if to.is_ipv4() { 14 + 20 + 8 + 100 } else { 14 + 40 + 8 + 100 };
        assert_eq!((timing.packets(), timing.bits()), (500, 500 * bytes * 8));
        for (frame, (before, _)) in capture.frames().zip(&sent) {
            assert!(frame.at >= *before, "a frame was seen {} ns before it was sent", before - frame.at);
            let packet = frame.packet().unwrap();
            assert!(north.is(packet.source) && packet.destination == to.ip());
            assert!(matches!(packet.content, Content::Udp { destination: 9, .. }));
        }
        // The sender knows when it sent; what was seen lies in between, whatever the machine was doing.
        let least = Duration::from_nanos(sent[499].0 - sent[0].1);
        assert!(timing.span() + Duration::from_millis(500) > least, "{:?} and {least:?}", timing.span());
        let mean = timing.mean_packets();
        assert!(mean > 1.0 && mean < 1000.0, "{mean}");
        let [one, ten, hundred, thousand] = timing.peaks().map(|peak| peak.packets);
        assert!(1 <= one && one <= ten && ten <= hundred && hundred <= thousand && thousand <= 500);
        assert_eq!(capture.sent_to(|address| address == to.ip()), 500);
        assert_eq!(capture.sent_to(|address| address != to.ip()), 0);
    }
}

#[test]
fn a_burst_is_captured_whole() {
    if !require_root() {
        return;
    }
    let site = Site::builder("burst").probe("north").build().unwrap();
    let to = SocketAddr::from((site.controller_v4(), 9));
    let watch = site.watch("north", None).unwrap();
    let sent = site.probe("north").unwrap().namespace().enter(|| generate(to, 50_000, 18, None)).unwrap();
    // Stopped at once: what has passed is in the capture.
    let capture = watch.stop().unwrap();
    let timing = capture.timing(|frame| frame.packet().is_some_and(|packet| packet.destination_port() == Some(9)));
    assert_eq!(timing.packets(), sent.len() as u64);
    eprintln!("{timing}");
    assert!(timing.gaps().median < 1_000_000);
}

#[test]
fn a_limited_link_holds_its_rate() {
    if !require_root() {
        return;
    }
    let site = Site::builder("limit").probe("north").build().unwrap();
    site.limit_link("north", 10_000_000).unwrap();
    let to = SocketAddr::from((site.controller_v4(), 9));
    let watch = site.watch("north", Some("udp port 9")).unwrap();
    let place = site.probe("north").unwrap().namespace();
    // Twice what 300 ms of the link can carry, so that it is full all the time and drops.
    place.enter(|| generate(to, 600, 1200, Some(Duration::from_micros(500)))).unwrap();
    let timing = watch.stop().unwrap().timing(|_| true);
    let peak = timing.peak(Duration::from_millis(100));
    let burst = (10_000_000 / 8 / 100) * 8;
    assert!(timing.packets() > 0 && peak.bits <= 1_000_000 + burst + 10_000, "{timing}");
}

#[test]
fn a_sink_counts_and_answers_nothing() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("sink").unwrap();
    let sink = Sink::new(&lab).unwrap();
    // What the sender's own kernel says on the link is not told apart by the counters, so the sink's are compared with a capture.
    let watch = Watch::start(sink.sink(), Sink::DEVICE, Direction::In, None).unwrap();
    let answers = Watch::start(sink.sink(), Sink::DEVICE, Direction::Out, Some("udp or icmp or arp")).unwrap();
    let before = sink.arrived().unwrap();
    let to = SocketAddr::from(([198, 18, 1, 1], 9));
    sink.sender().enter(|| generate(to, 10_000, 18, None)).unwrap();
    let after = sink.arrived().unwrap();
    let seen = watch.stop().unwrap();
    let ours = seen.timing(|frame| frame.packet().is_some_and(|packet| packet.destination == to.ip()));
    assert_eq!((ours.packets(), ours.bits()), (10_000, 10_000 * 60 * 8));
    let counted = (after.0 - before.0, after.1 - before.1);
    assert!(counted.0 >= 10_000 && counted.0 <= seen.len() as u64 + 1, "{counted:?}");
    assert!(counted.1 >= 600_000);
    assert!(answers.stop().unwrap().is_empty());
    let six = SocketAddr::from((Sink::GATEWAY6, 9));
    assert!(!sink.sender().reaches(six, Duration::from_millis(200)).unwrap());
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if !require_root() {
        return;
    }
    let build = |seed| {
        let spec = TruthSpec::new(seed, &["198.18.0.0/26"], &[80]).unwrap();
        Site::builder("twins").probe("north").segment(SegmentPlan::new("lan", spec)).build().unwrap()
    };
    let sites = std::thread::scope(|scope| {
        let threads = [1, 2].map(|seed| scope.spawn(move || build(seed)));
        threads.map(|thread| thread.join().unwrap())
    });
    for site in &sites {
        site.segment("lan").unwrap().target().self_check(site.probe("north").unwrap().namespace(), 10).unwrap();
    }
    let states = sites.each_ref().map(|site| site.segment("lan").unwrap().target().truth().iter().collect::<Vec<_>>());
    assert_ne!(states[0], states[1]);
}
