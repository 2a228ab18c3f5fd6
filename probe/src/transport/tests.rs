//! Back-off and delivery on a virtual clock, against a broker that forgets.

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn entry(seq: u64, after: u64, len: usize) -> Entry {
    Entry { seq, after, payload: vec![seq as u8; len] }
}

fn small() -> DeliveryConfig {
    DeliveryConfig { window_bytes: 100, message_bytes: 40, stall: at(30) }
}

#[test]
fn back_off_doubles_its_ceiling_and_fills_it_evenly() {
    let mut backoff = Backoff::new(at(1), at(60));
    let ceilings: Vec<u64> = (0..9).map(|_| backoff.next_delay(u64::MAX).as_millis().div_ceil(1000) as u64).collect();
    assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!(backoff.next_delay(0), Duration::ZERO);
    assert_eq!(backoff.next_delay(1 << 63), at(30));
    backoff.session_ended(at(29));
    assert_eq!(backoff.next_delay(1 << 63), at(30), "a short session is another failure");
    backoff.session_ended(at(30));
    assert_eq!(backoff.next_delay(1 << 63), Duration::from_millis(500));
}

#[test]
fn addresses_are_host_and_port() {
    assert_eq!(split_address("hq.example:8883"), Some(("hq.example", 8883)));
    assert_eq!(split_address("198.18.0.1:1"), Some(("198.18.0.1", 1)));
    assert_eq!(split_address("[2001:db8::1]:8883"), Some(("2001:db8::1", 8883)));
    for bad in ["", "hq", "hq:", ":1", "hq:0", "hq:+1", "hq:65536", "2001:db8::1", "[2001:db8::1]", "[hq]:1", "https://hq:1", "a@b:1"] {
        assert_eq!(split_address(bad), None, "{bad}");
    }
}

#[test]
fn nothing_is_wanted_without_a_session_or_records() {
    let mut delivery = Delivery::new(small(), 4);
    assert_eq!(delivery.want(9), None);
    delivery.begin(at(0));
    assert_eq!(delivery.want(4), None);
    assert_eq!(delivery.want(5), Some(Want { from: 5, max_bytes: 100 }));
    delivery.end();
    assert_eq!(delivery.want(5), None);
    assert_eq!(delivery.poll_timeout(), None);
}

#[test]
fn batches_respect_the_message_limit_and_gaps() {
    let delivery = Delivery::new(small(), 0);
    let batches = delivery.batches(vec![entry(1, 0, 20), entry(2, 1, 20), entry(3, 2, 1), entry(7, 3, 1), entry(8, 7, 90)]);
    let shape: Vec<_> = batches.iter().map(|b| (b.after, b.first, b.last(), b.bytes())).collect();
    assert_eq!(shape, [(0, 1, 2, 40), (2, 3, 3, 1), (3, 7, 7, 1), (7, 8, 8, 90)]);
}

#[test]
fn the_window_holds_back_and_acknowledgements_open_it() {
    let mut delivery = Delivery::new(small(), 0);
    delivery.begin(at(0));
    for seq in 1..=3 {
        assert!(delivery.want(10).is_some());
        let batch = delivery.batches(vec![entry(seq, seq - 1, 30)]).remove(0);
        delivery.sent(at(0), &batch);
    }
    assert_eq!(delivery.in_flight(), 90);
    assert_eq!(delivery.want(10), None);
    delivery.acked(at(1), 2);
    assert_eq!(delivery.want(10), Some(Want { from: 4, max_bytes: 70 }));
    // An old one changes nothing; one beyond what was sent skips it.
    delivery.acked(at(2), 1);
    delivery.acked(at(2), 6);
    assert_eq!((delivery.in_flight(), delivery.want(10)), (0, Some(Want { from: 7, max_bytes: 100 })));
}

#[test]
fn a_stall_sends_everything_again() {
    let mut delivery = Delivery::new(small(), 0);
    delivery.begin(at(0));
    for seq in 1..=2 {
        let batch = delivery.batches(vec![entry(seq, seq - 1, 30)]).remove(0);
        delivery.sent(at(10 * seq), &batch);
    }
    assert_eq!(delivery.poll_timeout(), Some(at(40)), "from the first that was sent");
    delivery.acked(at(35), 1);
    assert_eq!(delivery.poll_timeout(), Some(at(65)));
    assert!(!delivery.on_timeout(at(64)));
    assert!(delivery.on_timeout(at(65)));
    assert_eq!(delivery.want(2), Some(Want { from: 2, max_bytes: 100 }));
    assert_eq!(delivery.resent(), 1);
    assert_eq!(delivery.poll_timeout(), None);
}

#[test]
fn a_long_record_goes_alone() {
    let mut delivery = Delivery::new(small(), 0);
    delivery.begin(at(0));
    let batch = delivery.batches(vec![entry(1, 0, 5000)]).remove(0);
    delivery.sent(at(0), &batch);
    assert_eq!(delivery.want(2), None);
    delivery.acked(at(0), 1);
    assert_eq!(delivery.want(2), Some(Want { from: 2, max_bytes: 100 }));
}

proptest! {
    /// A broker that drops sessions and messages, a controller that takes only what is contiguous: all arrives, in bounds.
    #[test]
    fn everything_arrives_through_a_broker_that_forgets(
        lens in prop::collection::vec(0usize..60, 1..60),
        gaps in prop::collection::vec(0u64..3, 60),
        fates in prop::collection::vec(0u8..10, 1..200),
    ) {
        let mut spool = Vec::new();
        let mut seq = 0;
        for (len, gap) in lens.iter().zip(&gaps) {
            let after = seq;
            seq += 1 + gap;
            spool.push(entry(seq, after, *len));
        }
        let synced = seq;
        let mut delivery = Delivery::new(small(), 0);
        let mut got = 0;
        let mut received = 0;
        let mut now = at(0);
        let fates = fates.into_iter().chain(std::iter::repeat(9));
        for (round, fate) in fates.enumerate() {
            prop_assert!(round < 2000, "stuck at {got} of {synced}");
            if got == synced && delivery.in_flight() == 0 {
                break;
            }
            now += Duration::from_secs(1);
            if fate == 0 {
                delivery.end();
            }
            if fate < 2 || round == 0 {
                delivery.begin(now);
            }
            delivery.on_timeout(now);
            while let Some(want) = delivery.want(synced) {
                let mut bytes = 0;
                let entries: Vec<Entry> = spool
                    .iter()
                    .filter(|e| e.seq >= want.from)
                    .take_while(|e| { bytes += e.payload.len(); bytes <= want.max_bytes || bytes == e.payload.len() })
                    .cloned()
                    .collect();
                let batches = delivery.batches(entries);
                prop_assert!(!batches.is_empty());
                for (i, batch) in batches.iter().enumerate() {
                    delivery.sent(now, batch);
                    let dropped = fate == 2 && i % 2 == 0;
                    if !dropped && batch.after <= got && batch.last() > got {
                        received += batch.records.iter().enumerate().filter(|(i, _)| batch.first + *i as u64 > got).count();
                        got = batch.last();
                    }
                }
                prop_assert!(delivery.in_flight() <= 100 + 60);
            }
            if fate != 3 {
                delivery.acked(now, got);
            }
        }
        prop_assert_eq!(received, spool.len());
    }
}
