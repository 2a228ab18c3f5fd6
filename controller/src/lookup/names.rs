//! Names of addresses: a bounded cache before a resolver that may be slow, dead or hostile.
//!
//! **Invariant:** at most [`AT_ONCE`] questions are open, and at most [`CACHED_MAX`] answers are kept.
//! **Invariant:** a resolver that says nothing at all is asked nothing for [`REST`], so that page after page does not wait for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Questions that are open at once, over all who ask.
pub(super) const AT_ONCE: usize = 32;
/// Answers that are kept. One has some hundred bytes.
const CACHED_MAX: usize = 8_192;
/// Names of one address that are kept.
const NAMES_MAX: usize = 4;
/// Characters of a name: as many as one without escapes can have (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 253;
/// The least and the most that an answer is believed, with a name and without one.
const NAME_TTL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
const NONE_TTL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// How long an address that got no answer is not asked about again.
const FAILED: Duration = Duration::from_secs(30);
/// How long a resolver is not asked that did not answer anything.
const REST: Duration = Duration::from_secs(10);
/// So many questions without any answer speak against the resolver, not against the addresses.
const DEAD_AFTER: usize = 4;

/// The names that an address has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pointer {
    /// The labels of each name as they came, without the root; no name where there is none.
    pub names: Vec<Vec<Vec<u8>>>,
    /// How long that is good; `None` where nobody said so.
    pub ttl: Option<Duration>,
}

/// Why the names of an address are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody answered.
    #[error("{0}")]
    Silent(String),
    /// Somebody answered that he does not know or does not tell.
    #[error("{0}")]
    Failed(String),
}

/// Who knows names.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The names of an address.
    async fn pointer(&self, addr: IpAddr) -> Result<Pointer, ResolveError>;
}

/// See the module.
pub(super) struct Names {
    resolver: Arc<dyn Resolver>,
    timeout: Duration,
    cache: Mutex<Cache>,
    slots: Semaphore,
}

impl core::fmt::Debug for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(super) fn new(resolver: Arc<dyn Resolver>, timeout: Duration) -> Self {
        Self { resolver, timeout, cache: Mutex::new(Cache::new(CACHED_MAX)), slots: Semaphore::new(AT_ONCE) }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of those addresses that have any, and what is lacking.
    pub(super) async fn of(&self, addrs: &BTreeSet<IpAddr>) -> (BTreeMap<IpAddr, Vec<String>>, Option<String>) {
        let begun = Instant::now();
        let mut names = BTreeMap::new();
        let (mut unknown, mut failed, mut asked) = (Vec::new(), 0, Asked::default());
        let rests = {
            let cache = self.cache();
            for addr in addrs {
                match cache.get(*addr, begun) {
                    Some(Answer::Names(found)) if found.is_empty() => {}
                    Some(Answer::Names(found)) => drop(names.insert(*addr, found.clone())),
                    Some(Answer::Failed) => failed += 1,
                    None => unknown.push(*addr),
                }
            }
            cache.rests(begun)
        };
        if rests.is_none() && !unknown.is_empty() {
            // Whatever was answered until then is kept.
            let asking = timeout_at(begun + self.timeout, self.ask(&unknown, &mut names, &mut asked)).await;
            if asking.is_err() {
                asked.error.get_or_insert_with(|| format!("the resolver did not answer within {} ms", self.timeout.as_millis()));
            }
            self.settle(unknown.len(), &mut asked);
        }
        let lacking = failed + unknown.len() - asked.answered;
        let why = rests.or(asked.error).unwrap_or_else(|| "not answered a moment ago".to_owned());
        let said = format!("names of {lacking} of {} addresses are lacking: {why}", addrs.len());
        (names, (lacking > 0).then_some(said))
    }

    /// Asks for names, several at a time.
    async fn ask(&self, addrs: &[IpAddr], names: &mut BTreeMap<IpAddr, Vec<String>>, asked: &mut Asked) {
        let Asked { answered, heard, error, open } = asked;
        let open = &*open;
        let lock = || open.lock().unwrap_or_else(PoisonError::into_inner);
        let question = |addr: IpAddr| async move {
            let _slot = self.slots.acquire().await;
            lock().insert(addr);
            let answer = self.resolver.pointer(addr).await;
            lock().remove(&addr);
            (addr, answer)
        };
        let mut answers = stream::iter(addrs.iter().copied().map(question)).buffer_unordered(AT_ONCE);
        while let Some((addr, answer)) = answers.next().await {
            let now = Instant::now();
            match answer {
                Ok(pointer) => {
                    *answered += 1;
                    let (found, ttl) = believed(&pointer);
                    self.cache().put(addr, Answer::Names(found.clone()), now + ttl);
                    if !found.is_empty() {
                        names.insert(addr, found);
                    }
                }
                Err(why) => {
                    self.cache().put(addr, Answer::Failed, now + FAILED);
                    *heard |= matches!(why, ResolveError::Failed(_));
                    error.get_or_insert(why.to_string());
                }
            }
        }
    }

    /// Remembers who did not answer in time.
    fn settle(&self, count: usize, asked: &mut Asked) {
        let now = Instant::now();
        let mut cache = self.cache();
        let open = asked.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        open.iter().for_each(|addr| cache.put(*addr, Answer::Failed, now + FAILED));
        if asked.answered == 0 && !asked.heard && count >= DEAD_AFTER {
            cache.rest = asked.error.clone().map(|error| (now + REST, error));
        }
    }
}

#[derive(Default)]
struct Asked {
    answered: usize,
    /// Whether somebody answered, if only that he does not know.
    heard: bool,
    error: Option<String>,
    /// Questions that wait for an answer.
    open: Mutex<BTreeSet<IpAddr>>,
}

/// The names of an answer as they may be shown, and how long it is good.
fn believed(pointer: &Pointer) -> (Vec<String>, Duration) {
    let mut names: Vec<String> = pointer.names.iter().filter_map(|labels| text(labels)).collect();
    // Servers turn them round, and readers want to compare.
    names.sort_unstable();
    names.dedup();
    names.truncate(NAMES_MAX);
    let (least, most) = if names.is_empty() { NONE_TTL } else { NAME_TTL };
    (names, pointer.ttl.unwrap_or(least).clamp(least, most))
}

/// A name as text. What is no letter, digit, hyphen or underscore is written as a number (RFC 4343, section 2.1): neither a terminal nor a reader is
/// to be deceived by it.
fn text(labels: &[Vec<u8>]) -> Option<String> {
    let mut text = String::new();
    for label in labels.iter().filter(|label| !label.is_empty()) {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(*byte)),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    if text.len() > NAME_MAX {
        text.truncate(NAME_MAX - 3);
        text.push_str("...");
    }
    (!text.is_empty()).then_some(text)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Names(Vec<String>),
    Failed,
}

/// Answers, each until its end; when there are too many, the one that came first goes.
#[derive(Debug)]
struct Cache {
    most: usize,
    entries: HashMap<IpAddr, (Answer, Instant)>,
    order: VecDeque<IpAddr>,
    /// Until when the resolver is not asked, and why.
    rest: Option<(Instant, String)>,
}

impl Cache {
    fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new(), order: VecDeque::new(), rest: None }
    }

    fn get(&self, addr: IpAddr, now: Instant) -> Option<&Answer> {
        self.entries.get(&addr).filter(|(_, until)| now < *until).map(|(answer, _)| answer)
    }

    fn rests(&self, now: Instant) -> Option<String> {
        self.rest.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.clone())
    }

    fn put(&mut self, addr: IpAddr, answer: Answer, until: Instant) {
        if self.entries.insert(addr, (answer, until)).is_some() {
            return;
        }
        self.order.push_back(addr);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(name: &[u8]) -> Vec<Vec<u8>> {
        name.split(|byte| *byte == b'.').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn names_hold_nothing_that_a_terminal_would_obey() {
        let told = |name: &[u8]| text(&labels(name));
        assert_eq!(told(b"ae-1_2.Edge7.example.net").as_deref(), Some("ae-1_2.Edge7.example.net"));
        assert_eq!(told(b"a\x1b[31m.x y.\xe2\x80\xae").as_deref(), Some("a\\027\\09131m.x\\032y.\\226\\128\\174"));
        assert_eq!(text(&[b"a.b".to_vec(), b"c\\".to_vec()]).as_deref(), Some("a\\046b.c\\092"));
        assert_eq!((told(b""), told(b"..")), (None, None));
        let long = told(&[0; 255]).unwrap();
        assert!(long.len() == NAME_MAX && long.ends_with("..."), "{long}");
    }

    #[test]
    fn answers_are_believed_within_bounds() {
        let pointer = |names: &[&[u8]], ttl: Option<u64>| {
            believed(&Pointer { names: names.iter().map(|name| labels(name)).collect(), ttl: ttl.map(Duration::from_secs) })
        };
        assert_eq!(pointer(&[b"b.x", b"a.x", b"b.x"], Some(300)), (vec!["a.x".into(), "b.x".into()], Duration::from_secs(300)));
        assert_eq!(pointer(&[b"a"], Some(0)).1, NAME_TTL.0);
        assert_eq!(pointer(&[b"a"], Some(u64::MAX)).1, NAME_TTL.1);
        assert_eq!(pointer(&[], Some(u64::MAX)), (vec![], NONE_TTL.1));
        assert_eq!(pointer(&[], None).1, NONE_TTL.0);
        assert_eq!(pointer(&[b"a", b"b", b"c", b"d", b"e"], None).0.len(), NAMES_MAX);
    }

    #[test]
    fn a_cache_forgets_in_time_and_stays_small() {
        let (now, addr) = (Instant::now(), |last: u8| IpAddr::from([198, 18, 0, last]));
        let name = |text: &str| Answer::Names(vec![text.to_owned()]);
        let second = Duration::from_secs(1);
        let mut cache = Cache::new(2);
        cache.put(addr(1), name("old"), now + second);
        cache.put(addr(1), name("new"), now + 2 * second);
        assert_eq!(cache.get(addr(1), now + second), Some(&name("new")));
        assert_eq!(cache.get(addr(1), now + 2 * second), None);
        cache.put(addr(2), Answer::Failed, now + second);
        cache.put(addr(3), name("third"), now + second);
        assert_eq!(
            (cache.get(addr(1), now), cache.get(addr(2), now), cache.get(addr(3), now)),
            (None, Some(&Answer::Failed), Some(&name("third")))
        );
        assert_eq!((cache.entries.len(), cache.order.len()), (2, 2));
    }
}
