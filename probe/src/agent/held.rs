//! Finished chunks of one lease that wait until their open ports have been asked what serves there.
//!
//! A batch is the checkpoint of all that it covers, services included: it may go to the spool only behind them. Meanwhile the scan
//! goes on, and later chunks wait in line. Late answers to a waiting chunk wait behind it. Pure: it opens nothing and knows no time.
//!
//! **Invariant:** what comes out is in the order of positions, each batch behind the services of its ports, each late answer behind
//! the batch of its position.
//! **Invariant:** when nothing more comes out, fewer than `FOUND_MAX` services, of less than `FOUND_BYTES`, wait in memory.

use std::collections::{BTreeSet, VecDeque};

use picket_wire::codec;
use picket_wire::result::{LateAnswer, ResultBatch};
use picket_wire::service::{ServiceFound, ServiceOutcome};

/// Services of one record, at most; [`picket_wire::result::EXTRAS_MAX`] is the protocol's bound.
const FOUND_MAX: usize = 256;
/// Bytes of one record of services, about: several must fit one message.
const FOUND_BYTES: usize = 12 * 1024;

/// What may go to the spool now.
#[derive(Debug, Clone, PartialEq)]
pub enum Ready {
    /// What serves on some ports.
    Services(Vec<ServiceFound>),
    /// A batch whose ports are all asked.
    Batch(Box<ResultBatch>),
    /// Late answers to batches that came out before.
    Late(Vec<LateAnswer>),
}

#[derive(Debug)]
enum Item {
    Chunk { batch: Box<ResultBatch>, waiting: BTreeSet<u64> },
    Late(Vec<LateAnswer>),
}

/// The line of chunks.
#[derive(Debug, Default)]
pub struct HeldChunks {
    items: VecDeque<Item>,
    /// Services of chunks in line, in the order in which they were found.
    found: Vec<ServiceFound>,
    found_bytes: usize,
    /// Ports that answered late and are being asked; nothing in line waits for them.
    stragglers: BTreeSet<u64>,
}

impl HeldChunks {
    /// A chunk is finished, and these positions of it are being asked.
    pub fn push(&mut self, batch: ResultBatch, asked: impl IntoIterator<Item = u64>) {
        self.items.push_back(Item::Chunk { batch: Box::new(batch), waiting: asked.into_iter().collect() });
    }

    /// A position answered late; `asked` where it is being asked what serves there.
    pub fn push_late(&mut self, answer: LateAnswer, asked: bool) {
        if asked {
            self.stragglers.insert(answer.position);
        }
        match self.items.back_mut() {
            Some(Item::Late(answers)) => answers.push(answer),
            _ => self.items.push_back(Item::Late(vec![answer])),
        }
    }

    /// It is known what asking a port came to. `false` where nobody asked, or asked no more.
    pub fn found(&mut self, position: u64, outcome: ServiceOutcome) -> bool {
        let was_waiting = |item: &mut Item| match item {
            Item::Chunk { waiting, .. } => waiting.remove(&position),
            Item::Late(_) => false,
        };
        let asked = self.stragglers.remove(&position) || self.items.iter_mut().any(was_waiting);
        if asked {
            let found = ServiceFound { position, outcome };
            self.found_bytes += codec::encode(&found).len();
            self.found.push(found);
        }
        asked
    }

    /// How many chunks are in line.
    pub fn chunks(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::Chunk { .. })).count()
    }

    /// Whether nothing is in line and nothing is being asked.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.found.is_empty() && self.stragglers.is_empty()
    }

    /// How many ports are being asked.
    pub fn asking(&self) -> usize {
        let waiting = |item: &Item| match item {
            Item::Chunk { waiting, .. } => waiting.len(),
            Item::Late(_) => 0,
        };
        self.stragglers.len() + self.items.iter().map(waiting).sum::<usize>()
    }

    /// The next thing for the spool.
    pub fn pop(&mut self) -> Option<Ready> {
        let head_done = match self.items.front() {
            Some(Item::Chunk { waiting, .. }) => waiting.is_empty(),
            Some(Item::Late(_)) | None => true,
        };
        let full = self.found.len() >= FOUND_MAX || self.found_bytes >= FOUND_BYTES;
        // Services may go ahead of their batch, and those of later chunks with them: only the batch says what is done.
        if !self.found.is_empty() && (full || head_done) {
            return Some(Ready::Services(self.take_found()));
        }
        match head_done.then(|| self.items.pop_front())?? {
            Item::Chunk { batch, .. } => Some(Ready::Batch(batch)),
            Item::Late(answers) => Some(Ready::Late(answers)),
        }
    }

    /// As many services as one record holds.
    fn take_found(&mut self) -> Vec<ServiceFound> {
        let mut bytes = 0;
        let fits = |found: &&ServiceFound| {
            let before = bytes;
            bytes += codec::encode(*found).len();
            before < FOUND_BYTES
        };
        let count = self.found.iter().take(FOUND_MAX).take_while(fits).count();
        let taken: Vec<ServiceFound> = self.found.drain(..count).collect();
        self.found_bytes = self.found.iter().map(|found| codec::encode(found).len()).sum();
        taken
    }

    /// Nothing more will be found: every port that is still being asked is told as lost, for this reason.
    pub fn give_up(&mut self, why: &str) {
        let mut left = core::mem::take(&mut self.stragglers);
        for item in &mut self.items {
            if let Item::Chunk { waiting, .. } = item {
                left.append(waiting);
            }
        }
        for position in left {
            let found = ServiceFound { position, outcome: ServiceOutcome::Lost(why.to_owned()) };
            self.found_bytes += codec::encode(&found).len();
            self.found.push(found);
        }
    }

    /// Whoever goes on with the lease asks again: chunks from the first unfinished one on are forgotten. Ports that answered late to
    /// a chunk that is not forgotten are asked by nobody any more, and told as lost, for this reason.
    pub fn forget_unfinished(&mut self, why: &str) {
        let unfinished = |item: &Item| matches!(item, Item::Chunk { waiting, .. } if !waiting.is_empty());
        let kept = self.items.iter().position(unfinished).unwrap_or(self.items.len());
        for item in self.items.drain(kept..) {
            if let Item::Late(answers) = item {
                self.stragglers.retain(|position| answers.iter().all(|answer| answer.position != *position));
            }
        }
        self.give_up(why);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use picket_wire::ids::{JobId, LeaseId};
    use picket_wire::result::{BatchHead, Runs, State};
    use picket_wire::units::{RttCode, UnixMillis};
    use proptest::prelude::*;

    use super::*;

    fn batch(from: u64, to: u64) -> ResultBatch {
        let lease = LeaseId { job: JobId(1), grant: 1 };
        let head = BatchHead { lease, from, to, started: UnixMillis(0), took: Duration::ZERO, packets: 1, duplicates: 0 };
        ResultBatch::new(head, vec![], Runs::default(), vec![])
    }

    fn late(position: u64) -> LateAnswer {
        LateAnswer { position, state: State::Open, rtt: RttCode::encode(Duration::ZERO), ttl: 1 }
    }

    fn all(held: &mut HeldChunks) -> Vec<Ready> {
        core::iter::from_fn(|| held.pop()).collect()
    }

    fn positions(found: &[ServiceFound]) -> Vec<u64> {
        found.iter().map(|found| found.position).collect()
    }

    #[test]
    fn a_batch_waits_for_its_services_and_for_those_before_it() {
        let mut held = HeldChunks::default();
        held.push(batch(0, 10), [3, 4]);
        held.push(batch(10, 20), []);
        held.push_late(late(5), false);
        assert!(all(&mut held).is_empty());
        assert!(held.found(4, ServiceOutcome::Silent) && all(&mut held).is_empty());
        assert!(!held.found(4, ServiceOutcome::Silent), "once is enough");
        assert!(!held.found(17, ServiceOutcome::Silent), "nobody asked");
        assert!(held.found(3, ServiceOutcome::Spared));
        let ready = all(&mut held);
        let [Ready::Services(found), Ready::Batch(first), Ready::Batch(second), Ready::Late(lates)] = ready.as_slice() else {
            panic!("{ready:?}")
        };
        assert_eq!((positions(found), first.to, second.to, lates.len()), (vec![4, 3], 10, 20, 1));
        assert!(held.is_empty());
    }

    #[test]
    fn a_port_that_answers_late_is_asked_and_holds_nothing_up() {
        let mut held = HeldChunks::default();
        held.push_late(late(5), true);
        assert_eq!(all(&mut held), [Ready::Late(vec![late(5)])]);
        assert!(!held.is_empty());
        assert!(held.found(5, ServiceOutcome::Silent));
        assert!(matches!(all(&mut held).as_slice(), [Ready::Services(found)] if positions(found) == [5]));
        assert!(held.is_empty());
    }

    #[test]
    fn who_gives_up_keeps_everything_and_says_what_was_not_asked() {
        let mut held = HeldChunks::default();
        held.push(batch(0, 10), [3, 4]);
        held.found(3, ServiceOutcome::Silent);
        held.give_up("the job was cancelled");
        let ready = all(&mut held);
        let [Ready::Services(found), Ready::Batch(_)] = ready.as_slice() else { panic!("{ready:?}") };
        assert_eq!(found[1].outcome, ServiceOutcome::Lost("the job was cancelled".into()));
    }

    #[test]
    fn who_leaves_the_rest_to_others_keeps_what_is_finished() {
        let mut held = HeldChunks::default();
        held.push(batch(0, 10), []);
        held.push(batch(10, 20), [13]);
        held.push(batch(20, 30), []);
        held.forget_unfinished("paused");
        assert!(matches!(all(&mut held).as_slice(), [Ready::Batch(batch)] if batch.to == 10));
        assert!(held.is_empty());
    }

    #[test]
    fn late_ports_that_nobody_asks_any_more_are_told_as_lost() {
        let mut held = HeldChunks::default();
        held.push_late(late(5), true);
        assert_eq!(all(&mut held), [Ready::Late(vec![late(5)])], "it is told as open, and being asked");
        held.push(batch(10, 20), [13]);
        held.push_late(late(12), true);
        held.forget_unfinished("paused");
        let lost = ServiceFound { position: 5, outcome: ServiceOutcome::Lost("paused".into()) };
        assert_eq!(all(&mut held), [Ready::Services(vec![lost])], "the other is measured again");
        assert!(held.is_empty());
    }

    #[test]
    fn records_of_services_are_bounded() {
        let mut held = HeldChunks::default();
        held.push(batch(0, 3000), 0..2000);
        let mut told = 0;
        for position in 0..2000 {
            held.found(position, ServiceOutcome::Unidentified { banner: vec![7; 100] });
            while let Some(Ready::Services(found)) = held.pop() {
                assert!(found.len() <= FOUND_MAX && codec::encode(&found).len() < FOUND_BYTES + 1024);
                told += found.len();
            }
            assert!(held.found.len() <= FOUND_MAX && held.found_bytes <= FOUND_BYTES);
        }
        assert!(told >= 1500);
        held.give_up("end");
        assert!(matches!(all(&mut held).last(), Some(Ready::Batch(_)) | None));
        assert!(held.is_empty());
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_and_in_order(
            sizes in proptest::collection::vec((1u64..20, any::<u32>()), 1..12),
            order in any::<u64>(),
            eager in any::<bool>(),
        ) {
            let mut held = HeldChunks::default();
            let mut next = 0;
            let mut asked: Vec<u64> = Vec::new();
            for (size, mask) in sizes {
                let ports: Vec<u64> = (0..size).filter(|bit| mask >> bit & 1 == 1).map(|bit| next + bit).collect();
                held.push(batch(next, next + size), ports.clone());
                asked.extend(ports);
                next += size;
            }
            let mut told: BTreeMap<u64, usize> = BTreeMap::new();
            let (mut done, mut services) = (0, BTreeSet::new());
            let mut take = |held: &mut HeldChunks| -> Result<(), TestCaseError> {
                while let Some(ready) = held.pop() {
                    match ready {
                        Ready::Services(found) => for found in found {
                            *told.entry(found.position).or_default() += 1;
                            services.insert(found.position);
                        },
                        Ready::Batch(batch) => {
                            prop_assert_eq!(batch.from, done);
                            prop_assert!(asked.iter().filter(|at| **at < batch.to).all(|at| services.contains(at)));
                            done = batch.to;
                        }
                        Ready::Late(_) => prop_assert!(false, "nothing was late"),
                    }
                }
                Ok(())
            };
            let mut left = asked.clone();
            let mut at = order;
            while !left.is_empty() {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let position = left.swap_remove((at >> 33) as usize % left.len());
                prop_assert!(held.found(position, ServiceOutcome::Silent));
                if eager {
                    take(&mut held)?;
                }
            }
            take(&mut held)?;
            prop_assert!(held.is_empty() && done == next);
            prop_assert!(told.len() == asked.len() && told.values().all(|count| *count == 1));
        }
    }
}
