//! Which queries of a step read the cache together. Pure.

use super::Shape;
use crate::backend::SequenceSpan;

/// Queries that read the cache together at most.
pub(super) const WIDE: usize = 12;
/// Sequences read blocks together if these are at least such a part of each one's.
const LEAST_SHARE: usize = 4;
/// Tasks that each thread is left with where sequences go together.
const LEAST_TASKS: usize = 2;

/// A step's queries, divided.
#[derive(Debug, Default)]
pub(in crate::backend::cpu) struct Tasks {
    entries: Vec<Entry>,
    /// Spans of one token that could share blocks, those with the same blocks side by side.
    order: Vec<usize>,
    /// Those that do: where in `order` they are, and how many of their first blocks are the same.
    gangs: Vec<(usize, usize, usize)>,
    /// Which spans are in one.
    in_gang: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kv_head: usize,
    queries: Queries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queries {
    /// Of a span's (token, head in the group) pairs so many from one on.
    Of { span: usize, first: usize, count: usize },
    /// All of some spans of one token, from a place in the order on.
    Gang { first: usize, spans: usize, shared: usize },
}

/// Queries of one key and value head, at most [`WIDE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    pub(super) kv_head: usize,
    /// Spans of which there are queries, in order.
    pub(super) spans: Spans<'a>,
    /// The first query, among the pairs of the first span.
    pub(super) first: usize,
    pub(super) count: usize,
    /// So many of the spans' first blocks are the same.
    pub(super) shared: usize,
}

/// The spans of a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spans<'a> {
    One(usize),
    Several(&'a [usize]),
}

impl Task<'_> {
    /// The span of the `i`-th query, and which of its (token, head in the group) pairs it is.
    pub(super) fn query(&self, i: usize, group: usize) -> (usize, usize) {
        match self.spans {
            Spans::One(span) => (span, self.first + i),
            Spans::Several(spans) => (spans[i / group], i % group),
        }
    }
}

impl Tasks {
    /// Divides a step's queries anew, for so many threads.
    pub(in crate::backend::cpu) fn divide(&mut self, spans: &[SequenceSpan], shape: Shape, threads: usize) {
        self.entries.clear();
        self.find_gangs(spans, shape, threads);
        // By heads, so that neighbours read the same part of the shared blocks.
        for kv_head in 0..shape.kv_heads {
            for &(first, spans, shared) in &self.gangs {
                self.entries.push(Entry { kv_head, queries: Queries::Gang { first, spans, shared } });
            }
        }
        for (span, s) in spans.iter().enumerate().filter(|(span, _)| !self.in_gang[*span]) {
            for kv_head in 0..shape.kv_heads {
                let pairs = s.len * shape.group;
                self.entries.extend((0..pairs).step_by(WIDE).map(|first| {
                    let count = WIDE.min(pairs - first);
                    Entry { kv_head, queries: Queries::Of { span, first, count } }
                }));
            }
        }
    }

    /// Gangs of decodes: of those in the order of their blocks, as many neighbours as fit a tile.
    fn find_gangs(&mut self, spans: &[SequenceSpan], shape: Shape, threads: usize) {
        self.gangs.clear();
        self.in_gang.clear();
        self.in_gang.resize(spans.len(), false);
        self.order.clear();
        self.order.extend((0..spans.len()).filter(|span| spans[*span].len == 1));
        let most =
            (self.order.len() * shape.kv_heads / (LEAST_TASKS * threads.max(1))).min(WIDE / shape.group);
        if most < 2 {
            return;
        }
        let blocks = |span: usize| spans[span].blocks.as_slice();
        self.order.sort_unstable_by(|a, b| blocks(*a).cmp(blocks(*b)).then(a.cmp(b)));
        let mut first = 0;
        while first < self.order.len() {
            let (mut len, mut shared) = (1, usize::MAX);
            while len < most && first + len < self.order.len() {
                let (a, b) = (blocks(self.order[first]), blocks(self.order[first + len]));
                let same = shared_blocks(a, b);
                if same * LEAST_SHARE < a.len().max(b.len()) {
                    break;
                }
                shared = shared.min(same);
                len += 1;
            }
            if len > 1 {
                self.gangs.push((first, len, shared));
                for span in &self.order[first..first + len] {
                    self.in_gang[*span] = true;
                }
            }
            first += len;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn task(&self, index: usize, group: usize) -> Task<'_> {
        let Entry { kv_head, queries } = self.entries[index];
        match queries {
            Queries::Of { span, first, count } => {
                Task { kv_head, spans: Spans::One(span), first, count, shared: usize::MAX }
            }
            Queries::Gang { first, spans, shared } => {
                let several = Spans::Several(&self.order[first..first + spans]);
                Task { kv_head, spans: several, first: 0, count: spans * group, shared }
            }
        }
    }
}

/// How many blocks two tables begin with that are the same.
fn shared_blocks(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::backend::LogitRows;

    fn span(start: usize, len: usize, blocks: Vec<u32>) -> SequenceSpan {
        let context = blocks.len() * 16 - len;
        SequenceSpan { start, len, context, blocks: Arc::new(blocks), logits: LogitRows::None, adapter: None }
    }

    fn shape(group: usize) -> Shape {
        Shape { head_dim: 64, kv_heads: 2, group, window: None, scale: 1.0, softcap: None }
    }

    fn queries(tasks: &Tasks, group: usize) -> Vec<(usize, usize, usize)> {
        let of = |task: Task<'_>| {
            (0..task.count)
                .map(|i| task.query(i, group))
                .map(|(s, p)| (task.kv_head, s, p))
                .collect::<Vec<_>>()
        };
        (0..tasks.len()).flat_map(|i| of(tasks.task(i, group))).collect()
    }

    #[test]
    fn decodes_that_begin_alike_go_together() {
        let tables = [vec![1, 2, 3, 4], vec![9, 8], vec![1, 2, 5], vec![1, 7, 6, 6, 6, 6], vec![1, 2, 3, 9]];
        let spans: Vec<_> = tables.into_iter().enumerate().map(|(i, t)| span(i, 1, t)).collect();
        let mut tasks = Tasks::default();
        tasks.divide(&spans, shape(3), 1);
        let first = tasks.task(0, 3);
        assert!(matches!(first.spans, Spans::Several([0, 4, 2])), "{first:?}");
        assert_eq!((first.count, first.shared), (9, 2));
        assert_eq!(queries(&tasks, 3).len(), 5 * 3 * 2);
        tasks.divide(&spans, shape(8), 1);
        let alone = |tasks: &Tasks, group| {
            (0..tasks.len()).all(|i| matches!(tasks.task(i, group).spans, Spans::One(_)))
        };
        assert!(alone(&tasks, 8), "no room for two");
        tasks.divide(&spans, shape(3), 4);
        assert!(alone(&tasks, 3), "every thread has something to do");
        let long = [vec![1; 40], [vec![1; 9], vec![2; 31]].concat(), vec![1; 9]];
        let spans: Vec<_> = long.into_iter().enumerate().map(|(i, t)| span(i, 1, t)).collect();
        tasks.divide(&spans, shape(3), 1);
        assert!(alone(&tasks, 3), "too little in common");
    }

    proptest! {
        /// Whatever the step, each query is in one task, and a task's spans do share what it says.
        #[test]
        fn every_query_is_in_one_task(
            parts in prop::collection::vec((1usize..5, prop::collection::vec(0u32..3, 1..5)), 1..30),
            group in 1usize..14,
            threads in 1usize..4,
        ) {
            let mut start = 0;
            let spans: Vec<_> = parts.into_iter().map(|(len, blocks)| {
                start += len;
                span(start - len, len, blocks)
            }).collect();
            let mut tasks = Tasks::default();
            tasks.divide(&spans, shape(group), threads);
            let mut got = queries(&tasks, group);
            got.sort_unstable();
            let want: Vec<_> = (0..2)
                .flat_map(|head| spans.iter().enumerate().map(move |(s, span)| (head, s, span.len * group)))
                .flat_map(|(head, s, pairs)| (0..pairs).map(move |pair| (head, s, pair)))
                .collect();
            prop_assert_eq!(got, want);
            for i in 0..tasks.len() {
                let task = tasks.task(i, group);
                prop_assert!((1..=WIDE).contains(&task.count));
                if let Spans::Several(several) = task.spans {
                    for span in several {
                        let same = shared_blocks(&spans[several[0]].blocks, &spans[*span].blocks);
                        prop_assert!(same >= task.shared);
                    }
                }
            }
        }
    }
}
