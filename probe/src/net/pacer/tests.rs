use super::*;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn pps(rate: u32) -> PacketsPerSecond {
    PacketsPerSecond::new(rate).unwrap()
}

fn bps(rate: u64) -> BitsPerSecond {
    BitsPerSecond::new(rate).unwrap()
}

/// Sends as a loop does that wakes `late` after each deadline; returns (moment, length) of each frame.
fn run(limits: Limits, until: u64, len: impl Fn(usize) -> usize, mut late: impl FnMut(usize) -> u64) -> Vec<(u64, usize)> {
    let mut pacer = Pacer::new(limits);
    let mut sent = Vec::new();
    let mut now = 0;
    pacer.idle(Instant::ZERO);
    while now < until {
        let at = Instant::from_nanos(now);
        while pacer.take(at, len(sent.len())) {
            sent.push((now, len(sent.len())));
        }
        now = pacer.wake_at().as_nanos().max(now) + late(sent.len());
    }
    sent
}

/// The most that any closed window of `width` holds: frames, and bits.
fn busiest(sent: &[(u64, usize)], width: u64) -> (u64, u64) {
    let (mut from, mut bits, mut most) = (0, 0, (0, 0));
    for (to, (at, len)) in sent.iter().enumerate() {
        bits += *len as u64 * 8;
        while sent[from].0 + width < *at {
            bits -= sent[from].1 as u64 * 8;
            from += 1;
        }
        most = (most.0.max((to - from + 1) as u64), most.1.max(bits));
    }
    most
}

#[test]
fn budgets_of_a_millisecond_hold_for_punctual_and_late_senders() {
    for (rate, most) in [(100, 1), (1_000, 2), (10_000, 12), (100_000, 110)] {
        for late in [0, 1_000, 20_000, 60_000, 200_000, 900_000, 7 * MS] {
            let sent = run(Limits::packets(pps(rate)), 300 * MS, |_| 54, |n| if n % 7 == 0 { late } else { late / 3 });
            let (frames, _) = busiest(&sent, MS);
            assert!(frames <= most, "{rate} pps, {late} ns late: {frames} in a millisecond");
        }
    }
}

#[test]
fn the_mean_is_exact_when_late() {
    for (rate, late) in
        [(100, 60_000), (1_000, 30_000), (1_900, 50_000), (2_000, 50_000), (7_000, 60_000), (10_000, 60_000), (100_000, 30_000)]
    {
        let sent = run(Limits::packets(pps(rate)), 10_000 * MS, |_| 54, |_| late);
        let due = u64::from(rate) * 10;
        let count = sent.len() as u64;
        assert!(count <= due + 1 && count + 2 + due / 2_000 >= due, "{rate} pps, {late} ns late: {count} of {due}");
    }
}

#[test]
fn one_wake_up_serves_several_frames_at_high_rates() {
    for (rate, wakes) in [(100, 100), (1_000, 500), (10_000, 5_000), (50_000, 10_000), (100_000, 12_500)] {
        // A limit that does not matter does not matter here either.
        for bits in [None, Some(bps(10_000_000_000))] {
            let mut calls = 0;
            let limits = Limits { bits, ..Limits::packets(pps(rate)) };
            let count = |_| {
                calls += 1;
                0
            };
            run(limits, 1_000 * MS, |_| 54, count);
            assert!(calls <= wakes + 1 + wakes / 20, "{rate} pps: {calls} wake-ups");
        }
    }
}

#[test]
fn what_a_late_sender_may_cost_is_known() {
    let packets = |rate| Pacer::new(Limits::packets(pps(rate))).tolerance().map(|span| span.as_micros());
    assert_eq!([100, 1_000, 10_000, 50_000, 100_000].map(packets), [None, None, Some(150), Some(190), Some(95)]);
    let bits = |rate| Pacer::new(Limits::bits(bps(rate))).tolerance().map(|span| span.as_micros());
    assert_eq!([1_000_000, 100_000_000].map(bits), [None, Some(250)]);
    assert_eq!(Pacer::new(Limits::UNLIMITED).tolerance(), None);
    // And it is true: late by that much every time, the mean still holds.
    for (rate, late) in [(10_000, 150_000), (50_000, 165_000), (100_000, 70_000)] {
        let sent = run(Limits::packets(pps(rate)), 10_000 * MS, |_| 54, |_| late).len() as u64;
        let due = u64::from(rate) * 10;
        assert!(sent + due / 2_000 >= due, "{rate} pps, {late} ns late: {sent} of {due}");
    }
}

#[test]
fn a_sender_that_lags_behind_knows_it() {
    let mut pacer = Pacer::new(Limits { bits: Some(bps(100_000_000)), ..Limits::packets(pps(100_000)) });
    let at = Instant::from_nanos;
    pacer.idle(at(0));
    assert!(!pacer.is_behind(at(MS - 1)) && pacer.is_behind(at(MS)));
    // Long frames use up the bits: that limit holds, and it is on schedule although the other one is not.
    (0..8).for_each(|_| pacer.charge(at(MS), 1, 1_500));
    assert!(!pacer.is_behind(at(MS)) && pacer.is_behind(at(2 * MS)));
    assert!(Pacer::new(Limits::UNLIMITED).is_behind(at(0)), "no limit holds it");
    // It has used its share of the millisecond: that is what it waits for, and not its processor.
    let mut pacer = Pacer::new(Limits::packets(pps(100_000)));
    pacer.idle(at(0));
    let held_up = |pacer: &Pacer, ns| pacer.plan(at(ns)).is_held_up();
    assert!(!held_up(&pacer, 0) && held_up(&pacer, 5 * MS));
    pacer.charge(at(5 * MS), 100, 0);
    assert!(pacer.is_behind(at(5 * MS)) && !held_up(&pacer, 5 * MS) && held_up(&pacer, 7 * MS));
}

#[test]
fn a_pause_within_the_burst_is_caught_up_and_no_more() {
    for (pause, due) in [(8 * MS, 10_000), (110 * MS, 9_000)] {
        let mut paused = false;
        let late = |sent: usize| if sent >= 1_000 && !core::mem::replace(&mut paused, true) { pause } else { 5_000 };
        let sent = run(Limits::packets(pps(10_000)), 1_000 * MS, |_| 54, late).len();
        assert!((due - 2..=due + 1).contains(&sent), "{sent} of {due}");
    }
}

#[test]
fn idle_time_earns_nothing() {
    let mut pacer = Pacer::new(Limits::packets(pps(1_000)));
    let at = Instant::from_nanos(5_000 * MS);
    pacer.idle(at);
    let mut sent = 0;
    while pacer.take(at, 60) {
        sent += 1;
    }
    assert_eq!(sent, 1);
    assert_eq!(pacer.ready_at(), at + Duration::from_millis(1));
}

#[test]
fn a_plan_charges_nothing_until_told() {
    let mut pacer = Pacer::new(Limits::bits(bps(1_000_000)));
    let now = Instant::from_nanos(MS);
    pacer.idle(now);
    let mut plan = pacer.plan(now);
    assert!(plan.admits());
    plan.add(1_250);
    assert!(!plan.admits());
    assert!(pacer.is_ready(now), "the frame has not left");
    pacer.charge(now, 1, 1_250);
    assert_eq!(pacer.ready_at(), now + Duration::from_millis(10));
}

#[test]
fn unlimited_is_always_ready() {
    let mut pacer = Pacer::new(Limits::UNLIMITED);
    assert!((0..1_000).all(|_| pacer.take(Instant::ZERO, 1_514)));
}

#[test]
fn clipping() {
    let top = Limits { packets: Some(pps(1_000)), bits: Some(bps(1_000_000)), burst: Duration::from_millis(5) };
    let asked = Limits { packets: Some(pps(5_000)), bits: None, burst: DEFAULT_BURST };
    assert!(asked.exceeds(top) && !Limits::UNLIMITED.exceeds(top) && !top.exceeds(top));
    assert_eq!(asked.clipped_to(top), top);
}

proptest! {
    #[test]
    fn never_above_limit_times_window_plus_burst(
        packets in proptest::option::of(1u32..2_000_000),
        bits in proptest::option::of(1_000u64..2_000_000_000),
        burst_us in 0u64..50_000,
        lens in proptest::collection::vec(14usize..1_515, 1..20),
        lates in proptest::collection::vec(prop_oneof![Just(0u64), 0u64..100_000, 0u64..20_000_000], 1..20),
        gaps in proptest::collection::vec(any::<bool>(), 1..20),
    ) {
        let limits = Limits {
            packets: packets.map(pps),
            bits: bits.map(bps),
            burst: Duration::from_micros(burst_us),
        };
        prop_assume!(packets.is_some() || bits.is_some());
        let mut pacer = Pacer::new(limits);
        let mut sent: Vec<(u64, usize)> = Vec::new();
        let mut now = 0u64;
        for turn in 0..400 {
            let at = Instant::from_nanos(now);
            if gaps[turn % gaps.len()] && turn % 3 == 0 {
                pacer.idle(at);
            }
            // A batch: planned at `now`, left somewhere until `done`, charged at `done`.
            let done = now + lates[(turn * 7) % lates.len()] / 4;
            let mut plan = pacer.plan(at);
            let mut batch = (0, 0);
            while plan.admits() && batch.0 < 64 {
                let len = lens[sent.len() % lens.len()];
                plan.add(len);
                batch = (batch.0 + 1, batch.1 + len);
                // Alternately the earliest and the latest moment at which it can have left.
                sent.push((if turn % 2 == 0 { now } else { done }, len));
            }
            if batch.0 > 0 {
                pacer.charge(Instant::from_nanos(done), batch.0, batch.1);
            }
            now = if turn % 5 == 0 { pacer.wake_at() } else { pacer.ready_at() }.as_nanos().max(done) + lates[turn % lates.len()];
        }
        for width in [0, 10_000, MS, 10 * MS, 100 * MS, 1_000 * MS] {
            let (most_frames, most_bits) = busiest(&sent, width);
            let span = u128::from(width) + u128::from(burst_us) * 1_000;
            if let Some(rate) = packets {
                let bound = u128::from(rate) * span / 1_000_000_000 + 1;
                prop_assert!(u128::from(most_frames) <= bound, "{most_frames} frames in {width} ns, at most {bound}");
                let near = (u128::from(rate) * 12 / 10_000).max(u128::from(rate) * 11 / 10_000 + 1);
                prop_assert!(width > MS || u128::from(most_frames) <= near, "{most_frames} frames in {width} ns, spaced {near}");
            }
            if let Some(rate) = bits {
                let longest = *lens.iter().max().unwrap() as u128 * 8;
                let bound = u128::from(rate) * span / 1_000_000_000 + longest;
                prop_assert!(u128::from(most_bits) <= bound, "{most_bits} bits in {width} ns, at most {bound}");
                let near = u128::from(rate) * 125 / 100_000 + 1 + longest;
                prop_assert!(width >= MS || u128::from(most_bits) <= near, "{most_bits} bits in {width} ns, spaced {near}");
            }
        }
    }
}
