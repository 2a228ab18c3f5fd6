//! Sets of positions as disjoint half-open ranges.
//!
//! **Invariant:** ranges are sorted, disjoint, not adjacent and never empty.

use std::collections::BTreeMap;

/// A half-open range of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First position.
    pub from: u64,
    /// One past the last position.
    pub to: u64,
}

impl Span {
    /// How many positions; zero where `to` is not after `from`.
    pub fn len(self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// Whether it holds no position.
    pub fn is_empty(self) -> bool {
        self.to <= self.from
    }

    /// Whether it shares a position with `other`.
    pub fn overlaps(self, other: Span) -> bool {
        self.from < other.to && other.from < self.to
    }
}

/// A set of positions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spans {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl Spans {
    /// The set of one range.
    pub fn of(span: Span) -> Self {
        let mut spans = Self::default();
        spans.insert(span);
        spans
    }

    /// Adds a range; what is there already stays.
    pub fn insert(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        let Span { mut from, mut to } = span;
        while let Some((&start, &end)) = self.ranges.range(..=to).next_back().filter(|(_, end)| **end >= from) {
            self.ranges.remove(&start);
            self.len -= end - start;
            from = from.min(start);
            to = to.max(end);
        }
        self.ranges.insert(from, to);
        self.len += to - from;
    }

    /// Takes a range out.
    pub fn remove(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..span.to).next_back().filter(|(_, end)| **end > span.from) {
            self.ranges.remove(&start);
            self.len -= end - start;
            for (from, to) in [(start, span.from), (span.to, end)] {
                if from < to {
                    self.ranges.insert(from, to);
                    self.len += to - from;
                }
            }
            if start < span.from {
                break;
            }
        }
    }

    /// The parts of `span` that are not in the set, ascending.
    pub fn missing(&self, span: Span) -> Vec<Span> {
        let mut gaps = Vec::new();
        let mut at = span.from;
        let before = self.ranges.range(..=span.from).next_back().map(|(start, end)| (*start, *end));
        let after = self.ranges.range(span.from.saturating_add(1)..).map(|(start, end)| (*start, *end));
        for (start, end) in before.into_iter().chain(after) {
            if start >= span.to {
                break;
            }
            if start > at {
                gaps.push(Span { from: at, to: start });
            }
            at = at.max(end);
        }
        if at < span.to {
            gaps.push(Span { from: at, to: span.to });
        }
        gaps
    }

    /// How many positions.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.ranges.iter().map(|(from, to)| Span { from: *from, to: *to })
    }

    /// The first range.
    pub fn first(&self) -> Option<Span> {
        self.iter().next()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..40), at in 0u64..60, len in 0u64..30) {
            let mut spans = Spans::default();
            let mut model = std::collections::BTreeSet::new();
            for (insert, from, len) in steps {
                let span = Span { from, to: from + len };
                if insert {
                    spans.insert(span);
                    model.extend(from..from + len);
                } else {
                    spans.remove(span);
                    model.retain(|n| *n < from || *n >= from + len);
                }
                prop_assert_eq!(spans.len(), model.len() as u64);
                let listed: Vec<u64> = spans.iter().flat_map(|s| s.from..s.to).collect();
                prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());
                let ranges: Vec<Span> = spans.iter().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].to < w[1].from));
            }
            let gaps: Vec<u64> = spans.missing(Span { from: at, to: at + len }).into_iter().flat_map(|s| s.from..s.to).collect();
            prop_assert_eq!(gaps, (at..at + len).filter(|n| !model.contains(n)).collect::<Vec<_>>());
        }
    }
}
