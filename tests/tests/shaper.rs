//! The kernel's shaper holds the sum of what is marked, whoever sends it, and nothing else; measured at the other end of the link.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use picket_probe::shaper::{ABOVE_PERCENT, MARK};
use picket_tests::lab::flood::Flood;
use picket_tests::lab::programs::Programs;
use picket_tests::lab::sink::Sink;
use picket_tests::lab::watch::{Capture, Direction, Timing, Watch};
use picket_tests::lab::{Finished, Lab, require_root, wait_until};
use serde_json::Value;

const TARGET: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const LONG: Duration = Duration::from_secs(60);
/// What is said where the kernel has no shaper.
const WITHOUT_HTB: &str = "the kernel lacks the HTB queueing discipline (sch_htb)";

/// A box with a shaper, its link, and its site's limits.
struct Site {
    sink: Sink,
    packets: &'static str,
    bits: &'static str,
}

impl Site {
    fn new(name: &str, packets: &'static str, bits: &'static str) -> Self {
        Self { sink: Sink::new(&Lab::new(name).unwrap()).unwrap(), packets, bits }
    }

    fn probe(&self, args: &[&str]) -> Finished {
        let run = Programs::locate().unwrap().probe(args).unwrap().args(["--interface", Sink::DEVICE]);
        let run = run.env("PICKET_INTERFACE__PACKETS", self.packets).env("PICKET_INTERFACE__BITS", self.bits);
        self.sink.sender().run(&run.env("PICKET_POLICY__ALLOW", "198.18.0.0/15"), LONG).unwrap()
    }

    fn shaper(&self, args: &[&str]) -> Finished {
        self.probe(&[&["shaper"], args].concat())
    }

    /// False, said aloud, where this kernel has no shaper; then the program has to say why, and may leave nothing.
    fn install(&self) -> bool {
        let said = self.shaper(&["install"]);
        assert!(said.status.success(), "a box without a shaper still measures: {said:?}");
        if said.stderr.contains("the kernel lacks") {
            assert!(said.stderr.contains(WITHOUT_HTB) && said.stderr.contains("the pacer alone"), "{said:?}");
            assert!(!self.disciplines().contains("7069:"));
            eprintln!("\n*** This kernel has no HTB: only the words about it were tested, no shaper ***\n");
            return false;
        }
        assert!(said.stdout.contains("5 % above"), "{said:?}");
        true
    }

    fn disciplines(&self) -> String {
        self.sink.sender().tc(&["qdisc", "show", "dev", Sink::DEVICE]).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.shaper(&["status", "--json"]).stdout).unwrap()
    }

    /// Sends floods at the same time and gives what passed the link meanwhile. Marked packets go through the shaper or are
    /// dropped by it, each of them and nothing else; this waits until they have.
    fn flood(&self, floods: &[Flood]) -> Capture {
        let watch = Watch::start(self.sink.sink(), Sink::DEVICE, Direction::In, Some("udp and dst net 198.18.0.0/15")).unwrap();
        let marked: u64 = floods.iter().filter(|flood| flood.mark == Some(MARK)).map(Flood::count).sum();
        let handled = || {
            let status = self.status();
            status["packets"].as_u64().unwrap() + status["drops"].as_u64().unwrap()
        };
        let before = handled();
        std::thread::scope(|scope| {
            for flood in floods {
                scope.spawn(|| flood.send(self.sink.sender()).unwrap());
            }
        });
        if self.status()["installed"] == true {
            wait_until("empty queue", LONG, || Ok((handled() - before == marked).then_some(()))).unwrap();
        }
        watch.stop().unwrap()
    }
}

fn to_port(capture: &Capture, port: u16) -> Timing {
    capture.timing(|frame| frame.packet().is_some_and(|packet| packet.destination_port() == Some(port)))
}

fn above(limit: f64) -> f64 {
    limit * (100 + ABOVE_PERCENT) as f64 / 100.0
}

/// The kernel's burst in units of the limit: twice the pacer's 10 ms of the raised limit and the frame that is being sent; a quarter of
/// that for a clock that is late.
fn burst(limit: f64, frame: f64) -> f64 {
    above(limit) * 0.025 + frame
}

/// True when what passed is held to the shaper's limit and no less passed. Whether enough was offered all the time is the machine's
/// to say, so too little is no failure yet; too much always is.
fn held(passed: f64, seconds: f64, seen: f64, stated: f64, limit: f64) -> bool {
    let (rate, kernels) = (passed / seconds, above(limit));
    eprintln!("{:.4} of the kernel's limit, {:.4} of the site's; burst {seen:.1} (stated {stated:.1})", rate / kernels, rate / limit);
    assert!(seen <= stated, "a burst of {seen:.1}, {stated:.1} is stated");
    assert!(rate <= kernels * 1.03, "{rate:.1} a second, {kernels} is the limit");
    rate >= kernels * 0.97
}

fn held_packets(timing: &Timing, limit: f64) -> bool {
    let seen = timing.burst_packets(above(limit));
    held(timing.packets() as f64, timing.span().as_secs_f64(), seen, burst(limit, 1.0), limit)
}

#[test]
fn a_shaper_is_installed_once_and_removed_wholly() {
    if !require_root() {
        return;
    }
    let site = Site::new("shaperset", "1kpps", "10Mbit");
    let bare = site.disciplines();
    let none = site.shaper(&["status"]);
    assert!(none.status.code() == Some(3) && none.stdout.contains("not installed"), "{none:?}");
    assert!(site.shaper(&["remove"]).ok().unwrap().contains("there is no shaper"));
    if !site.install() {
        return;
    }
    let once = site.disciplines();
    assert!(site.install(), "again");
    assert_eq!(site.disciplines(), once, "installed twice is installed once");
    assert_eq!(site.status()["installed"], true);
    assert!(site.shaper(&["status"]).status.success());
    assert!(site.shaper(&["remove"]).ok().unwrap().contains("removed"));
    assert_eq!(site.disciplines(), bare);
    assert_eq!(site.status()["installed"], false);
}

#[test]
fn what_somebody_else_has_set_stays() {
    if !require_root() {
        return;
    }
    let site = Site::new("shaperalien", "1kpps", "10Mbit");
    let bare = site.disciplines();
    site.sink.sender().limit(Sink::DEVICE, 1_000_000, 2_000, 9_000).unwrap();
    let theirs = site.disciplines();
    let refused = site.shaper(&["install"]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(refused.stderr.contains("`tbf") && refused.stderr.contains("--replace"), "{refused:?}");
    assert!(site.shaper(&["remove"]).ok().unwrap().contains("there is no shaper"));
    assert_eq!(site.disciplines(), theirs, "neither took anything away");
    let replaced = site.shaper(&["install", "--replace"]);
    if replaced.stderr.contains(WITHOUT_HTB) {
        eprintln!("\n*** This kernel has no HTB: replacing was not tested ***\n");
        return;
    }
    replaced.ok().unwrap();
    assert_eq!(site.status()["installed"], true);
    site.shaper(&["remove"]).ok().unwrap();
    assert_eq!(site.disciplines(), bare);
}

#[test]
fn marked_packets_are_held_and_others_are_not() {
    if !require_root() {
        return;
    }
    let site = Site::new("shaperhold", "1kpps", "10Mbit");
    if !site.install() {
        return;
    }
    let time = Duration::from_secs(2);
    // Short packets meet the limit of packets, long ones that of bits.
    let shown = (0..3).any(|_| {
        let floods = [Flood::new(TARGET, 1, 5_000, time).marked(MARK), Flood::new(TARGET, 2, 5_000, time)];
        let capture = site.flood(&floods);
        assert_eq!(to_port(&capture, 2).packets(), floods[1].count(), "what is not marked passes whole");
        held_packets(&to_port(&capture, 1), 1_000.0)
    });
    assert!(shown, "less passes than the limit of packets permits");
    let site = Site::new("shaperbits", "20kpps", "5Mbit");
    assert!(site.install());
    let shown = (0..3).any(|_| {
        let flood = |port| Flood::new(TARGET, port, 1_000, time).frames(1_400);
        let floods = [flood(1).marked(MARK), flood(2)];
        let capture = site.flood(&floods);
        assert_eq!(to_port(&capture, 2).packets(), floods[1].count(), "what is not marked passes whole");
        let timing = to_port(&capture, 1);
        held(timing.bits() as f64, timing.span().as_secs_f64(), timing.burst_bits(above(5e6)), burst(5e6, 11_200.0), 5e6)
    });
    assert!(shown, "less passes than the limit of bits permits");
}

#[test]
fn two_marked_senders_share_one_limit() {
    if !require_root() {
        return;
    }
    let site = Site::new("shapersum", "1kpps", "10Mbit");
    if !site.install() {
        return;
    }
    let time = Duration::from_secs(2);
    let floods = [Flood::new(TARGET, 1, 3_000, time).marked(MARK), Flood::new(TARGET, 2, 3_000, time).marked(MARK)];
    let shown = (0..3).any(|_| {
        let capture = site.flood(&floods);
        assert!(floods.iter().all(|flood| to_port(&capture, flood.to.port()).packets() > 100), "both have a part of it");
        held_packets(&capture.timing(|_| true), 1_000.0)
    });
    assert!(shown, "less passes than the limit permits");
    site.shaper(&["remove"]).ok().unwrap();
    let capture = site.flood(&floods);
    assert_eq!(capture.len() as u64, floods.iter().map(Flood::count).sum::<u64>(), "without a shaper nothing holds them");
}

#[test]
fn a_scan_beside_another_sender_loses_nothing() {
    if !require_root() {
        return;
    }
    let site = Site::new("shaperscan", "1kpps", "10Mbit");
    if !site.install() {
        return;
    }
    let flood = Flood::new(TARGET, 1, 3_000, Duration::from_secs(3)).marked(MARK);
    let watch = Watch::start(site.sink.sink(), Sink::DEVICE, Direction::In, Some("dst net 198.18.0.0/15")).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| flood.send(site.sink.sender()).unwrap());
        site.probe(&["scan", "198.18.4.0/22", "-p", "80", "-Pn", "--attempts", "1"]).ok().unwrap();
        other.join().unwrap();
    });
    let capture = watch.stop().unwrap();
    let probed: BTreeSet<_> = capture.packets().filter(|packet| packet.is_syn()).map(|packet| packet.destination).collect();
    assert_eq!(probed.len(), 1_024, "what has no room now is sent later");
    let timing = capture.timing(|_| true);
    let burst_seen = timing.burst_packets(above(1_000.0));
    assert!(burst_seen <= burst(1_000.0, 1.0), "together a burst of {burst_seen:.1}");
    assert!(to_port(&capture, 1).packets() > 100, "the other had its part");
}
