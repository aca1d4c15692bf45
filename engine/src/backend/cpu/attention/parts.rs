//! What of the cache the queries of a tile read together, and what alone. Pure.

use std::ops::Range;

use crate::backend::BLOCK_TOKENS;

/// What is known of a query: whose it is, and the positions that it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) span: usize,
    pub(super) sees: Range<usize>,
}

/// Some of a tile's queries with some blocks, or positions, of the first one's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) queries: Range<usize>,
    pub(super) range: Range<usize>,
}

/// The first block that any of them sees.
pub(super) fn first_block(sights: &[Sight]) -> usize {
    sights.iter().map(|sight| sight.sees.start).min().unwrap_or(0) / BLOCK_TOKENS
}

/// Where a table's blocks end that a query sees.
pub(super) fn end_block(sight: &Sight) -> usize {
    sight.sees.end.div_ceil(BLOCK_TOKENS)
}

/// Queries of one span, and as far as `alike` says, side by side.
fn runs(sights: &[Sight], alike: fn(&Sight, &Sight) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = sights.get(start)?;
        let same = |sight: &&Sight| sight.span == first.span && alike(sight, first);
        let end = start + sights[start..].iter().take_while(same).count();
        Some(std::mem::replace(&mut start, end)..end)
    })
}

/// Which blocks are scored for which queries: the `shared` first ones for all together, then those of
/// each span. Every query is scored with all blocks from its own [`first_block`] to its [`end_block`].
pub(super) fn scored(sights: &[Sight], shared: usize, parts: &mut Vec<Part>) {
    parts.clear();
    let first = first_block(sights);
    let last = |run: &[Sight]| run.iter().map(end_block).max().unwrap_or(first);
    let common = shared.min(last(sights)).max(first);
    if common > first {
        parts.push(Part { queries: 0..sights.len(), range: first..common });
    }
    for run in runs(sights, |_, _| true) {
        let own = first_block(&sights[run.clone()]).max(common)..last(&sights[run.clone()]);
        if !own.is_empty() {
            parts.push(Part { queries: run, range: own });
        }
    }
}

/// Which positions' values are added up for which queries, in the order of each query's positions, and
/// no position for a query that does not see it: not even with the weight zero, for what is there may be
/// no number.
pub(super) fn weighed(sights: &[Sight], shared: usize, parts: &mut Vec<Part>) {
    parts.clear();
    let start = sights.iter().map(|sight| sight.sees.start).max().unwrap_or(0);
    let end = sights.iter().map(|sight| sight.sees.end).min().unwrap_or(0);
    // All queries see the middle.
    let middle = start..end.min(shared.saturating_mul(BLOCK_TOKENS));
    let same = |a: &Sight, b: &Sight| a.sees == b.sees;
    let mut add = |queries: Range<usize>, range: Range<usize>| {
        if !range.is_empty() {
            parts.push(Part { queries, range });
        }
    };
    if middle.is_empty() {
        for run in runs(sights, same) {
            let sees = sights[run.start].sees.clone();
            add(run, sees);
        }
        return;
    }
    for run in runs(sights, same) {
        let before = sights[run.start].sees.start..middle.start;
        add(run, before);
    }
    add(0..sights.len(), middle.clone());
    for run in runs(sights, |_, _| true) {
        let ends = sights[run.clone()].iter().map(|sight| sight.sees.end);
        let together = ends.min().unwrap_or(0).max(middle.end);
        add(run.clone(), middle.end..together);
        for own in runs(&sights[run.clone()], same) {
            let own = own.start + run.start..own.end + run.start;
            let after = together..sights[own.start].sees.end;
            add(own, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sight(span: usize, sees: Range<usize>) -> Sight {
        Sight { span, sees }
    }

    #[test]
    fn two_decodes_read_their_common_blocks_together() {
        let sights = [sight(0, 0..50), sight(0, 0..50), sight(3, 0..40), sight(3, 0..40)];
        let mut parts = Vec::new();
        scored(&sights, 2, &mut parts);
        let part = |queries, range| Part { queries, range };
        assert_eq!(parts, [part(0..4, 0..2), part(0..2, 2..4), part(2..4, 2..3)]);
        weighed(&sights, 2, &mut parts);
        assert_eq!(parts, [part(0..4, 0..32), part(0..2, 32..50), part(2..4, 32..40)]);
    }

    #[test]
    fn tokens_of_a_prompt_read_what_all_see_together() {
        let sights = [sight(0, 3..20), sight(0, 3..20), sight(0, 4..21), sight(0, 4..21)];
        let mut parts = Vec::new();
        weighed(&sights, usize::MAX, &mut parts);
        let part = |queries, range| Part { queries, range };
        assert_eq!(parts, [part(0..2, 3..4), part(0..4, 4..20), part(2..4, 20..21)]);
    }

    proptest! {
        /// Each query meets each position that it sees once, in order; and each block from the first on.
        #[test]
        fn every_position_is_met_once_and_in_order(
            spans in prop::collection::vec((1usize..4, 1usize..120, 1usize..4), 1..4),
            window in prop_oneof![Just(usize::MAX), 1usize..100],
            shared in prop_oneof![Just(usize::MAX), 0usize..6],
        ) {
            let shared = if spans.len() == 1 { usize::MAX } else { shared.min(5) };
            let mut sights = Vec::new();
            for (span, (tokens, context, group)) in spans.iter().enumerate() {
                // Spans with blocks in common have them all.
                let context = if spans.len() > 1 { context + 80 } else { *context };
                for token in 0..if spans.len() > 1 { 1 } else { *tokens } {
                    let end = context + token + 1;
                    sights.extend((0..*group).map(|_| sight(span, end.saturating_sub(window)..end)));
                }
            }
            let mut parts = Vec::new();
            weighed(&sights, shared, &mut parts);
            let mut scores = Vec::new();
            scored(&sights, shared, &mut scores);
            for (i, sight) in sights.iter().enumerate() {
                let met = parts.iter().filter(|p| p.queries.contains(&i)).flat_map(|p| p.range.clone());
                prop_assert!(met.eq(sight.sees.clone()), "query {}: {:?}", i, parts);
                let met = scores.iter().filter(|p| p.queries.contains(&i)).flat_map(|p| p.range.clone());
                let own = first_block(std::slice::from_ref(sight))..end_block(sight);
                prop_assert!(met.filter(|b| own.contains(b)).eq(own.clone()), "query {}: {:?}", i, scores);
            }
            for part in parts.iter().chain(&scores) {
                let spans = &sights[part.queries.clone()];
                let alone = spans.iter().all(|sight| sight.span == spans[0].span);
                prop_assert!(alone || part.range.end <= shared.saturating_mul(BLOCK_TOKENS));
            }
        }
    }
}
