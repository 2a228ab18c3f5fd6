//! Never too fast: what a probe sends is measured from outside, at the other end of its link.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::time::Duration;

use picket_tests::lab::require_root;
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::{Mix, TruthSpec};
use picket_tests::lab::watch::Timing;
use picket_tests::system::{Fleet, Plan, towards};

const LIMIT: f64 = 1000.0;
/// The stated burst: what 10 ms of lateness may be made up for, and the frame that is being sent.
const BURST: f64 = LIMIT * 0.010 + 1.0;
const LONG: Duration = Duration::from_secs(120);

/// Frames of a probe towards the targets while it works on three jobs at once, and by port how they lie in time.
fn three_jobs(mix: Mix) -> (Timing, Vec<Timing>) {
    // IPv4 and IPv6 together: they share one limit.
    let spec = TruthSpec::new(4, &["198.18.32.0/21", "2001:db8:6::/119"], &[80, 443, 8080]).unwrap().mix(mix);
    let site = Site::builder("rate").probe("a").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default().packets("1kpps")).unwrap();
    let watch = fleet.site().watch("a", Some(&towards(fleet.site(), &["net"]).unwrap())).unwrap();
    let ports = ["80", "443", "8080"];
    let jobs: Vec<_> = ports
        .iter()
        .map(|port| fleet.submit_job(&["scan", "198.18.32.0/21", "2001:db8:6::/119", "-p", port, "--attempts", "1"]).unwrap())
        .collect();
    for job in jobs {
        fleet.wait_done(job, LONG).unwrap();
    }
    let capture = watch.stop().unwrap();
    let all = capture.timing(|_| true);
    let of = |port: &str| {
        let port: u16 = port.parse().unwrap();
        capture.timing(|frame| frame.packet().is_some_and(|packet| packet.is_syn() && packet.destination_port() == Some(port)))
    };
    (all, ports.iter().map(|port| of(port)).collect())
}

/// `more` frames may leave before the pacer knows of them.
fn judge(timing: &Timing, more: f64) {
    eprintln!("{timing}");
    let stated = BURST + more;
    let burst = timing.burst_packets(LIMIT);
    let peak = timing.peak(Duration::from_millis(100)).packets;
    assert!(peak as f64 <= LIMIT * 0.1 + stated, "{peak} packets in 100 ms");
    assert!(burst <= stated, "a burst of {burst:.1} packets, {stated} is stated");
    let mean = timing.mean_packets();
    assert!(mean <= LIMIT * 1.01, "mean {mean:.1}/s");
}

#[test]
fn three_jobs_keep_one_limit() {
    if !require_root() {
        return;
    }
    // Nobody answers, so every target is one packet, and packets only ever wait for their turn.
    let silent = Mix { dead: 1000, shy: 0, open: 0, silent: 0 };
    let mut best: f64 = 0.0;
    // The upper bounds hold always. The mean also says that nothing is given away, which only a machine that lets the sender run
    // can show: three times to show it.
    for _ in 0..3 {
        let (all, jobs) = three_jobs(silent);
        judge(&all, 0.0);
        let targets = (2048 + 512) * 3;
        assert_eq!(all.packets(), targets, "one packet for each target and nothing else");
        assert!(jobs.iter().all(|job| job.packets() == targets / 3));
        // They ran at once: the first was not over when the last began, and by far.
        let shortest = jobs.iter().map(Timing::span).min().unwrap();
        assert!(shortest > all.span() / 2, "{:?} of {:?}", shortest, all.span());
        best = best.max(all.mean_packets());
        if best >= LIMIT * 0.99 {
            return;
        }
    }
    panic!("the mean is {best:.1} of {LIMIT} packets/s at best");
}

#[test]
fn answers_do_not_make_it_faster() {
    if !require_root() {
        return;
    }
    // Open ports answer with SYN+ACK, and the kernel of the probe's box answers that with a reset, as it knows of no connection.
    // It asks nobody first: as many as were asked together are on the wire before they can be paid for; then they are. At this rate
    // two frames share a wake-up.
    let (all, _) = three_jobs(Mix { dead: 0, shy: 0, open: 1000, silent: 0 });
    judge(&all, 2.0);
    let targets = (2048 + 512) * 3;
    assert_eq!(all.packets(), 2 * targets, "a SYN and a reset for each target");
}

/// Everything that a probe sends for one job into silence.
fn one_job(name: &str, plan: Plan, more: &[&str]) -> Timing {
    let silent = Mix { dead: 1000, shy: 0, open: 0, silent: 0 };
    let spec = TruthSpec::new(6, &["198.18.32.0/22"], &[80]).unwrap().mix(silent);
    let site = Site::builder(name).probe("a").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, plan).unwrap();
    let watch = fleet.site().watch("a", Some(&towards(fleet.site(), &["net"]).unwrap())).unwrap();
    let job = fleet.submit_job(&[&["scan", "198.18.32.0/22", "-p", "80", "--attempts", "1"], more].concat()).unwrap();
    fleet.wait_done(job, LONG).unwrap();
    let timing = watch.stop().unwrap().timing(|_| true);
    eprintln!("{timing}");
    assert_eq!(timing.packets(), 1024);
    timing
}

#[test]
fn a_job_keeps_the_rate_that_it_asks_for() {
    if !require_root() {
        return;
    }
    let timing = one_job("jobrate", Plan::default(), &["--rate", "400pps"]);
    assert!(timing.mean_packets() <= 400.0 * 1.01, "{timing}");
    assert!(timing.burst_packets(400.0) <= 400.0 * 0.010 + 1.0, "{timing}");
    // Who asks for more than the interface may gets what it may.
    let timing = one_job("clipped", Plan::default().packets("500pps"), &["--rate", "50kpps"]);
    assert!(timing.mean_packets() <= 500.0 * 1.01, "{timing}");
    assert!(timing.burst_packets(500.0) <= 500.0 * 0.010 + 1.0, "{timing}");
}

#[test]
fn bits_are_limited_too() {
    if !require_root() {
        return;
    }
    let timing = one_job("bits", Plan::default().packets("100kpps").bits("200kbit"), &[]);
    let frame = timing.bits() as f64 / timing.packets() as f64;
    assert!(timing.mean_bits() <= 200_000.0 * 1.01, "{timing}");
    assert!(timing.burst_bits(200_000.0) <= 200_000.0 * 0.010 + frame, "{timing}");
}
