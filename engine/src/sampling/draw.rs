//! Truncation (min-p, top-k, top-p, in this order) and the draw itself.

use std::cell::RefCell;

use super::weight::weigh;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    /// Its weight, relative to the likeliest token's 1.
    weight: f32,
}

/// Likeliest first; among equals the lower id, so that the order is total.
#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that sorting wants
fn by_weight(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// The likeliest token; among equals the lowest id. `None` when no logit is a number.
pub(super) fn likeliest(logits: &[f32]) -> Option<u32> {
    let top = largest(logits);
    let place = || logits.iter().position(|logit| *logit >= top);
    if top > f32::NEG_INFINITY { place().map(|i| i as u32) } else { None }
}

/// The largest number; minus infinity where there is none.
fn largest(logits: &[f32]) -> f32 {
    // As many chains as the compiler can make vectors of.
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut tops = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (top, x) in tops.iter_mut().zip(chunk) {
            *top = if x > top { *x } else { *top };
        }
    }
    tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top })
}

/// How the candidates are cut down before the draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncation {
    pub(super) top_k: usize,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
}

thread_local! {
    /// Weights of a row, kept for its buffer.
    static WEIGHTS: RefCell<Vec<f32>> = RefCell::default();
}

/// Draws a token by these logits at this temperature with the random number `at` in [0, 1).
pub(super) fn draw(logits: &[f32], temperature: f32, cut: Truncation, at: f64) -> Option<u32> {
    let top = largest(logits);
    if top == f32::NEG_INFINITY {
        return None;
    }
    WEIGHTS.with_borrow_mut(|weights| {
        weigh(logits, top, 1.0 / temperature, weights);
        // Weights below this cannot be drawn.
        let floor = cut.min_p.max(f32::MIN_POSITIVE);
        if cut.min_p > 0.0 {
            for weight in weights.iter_mut() {
                *weight = if *weight >= floor { *weight } else { 0.0 };
            }
        }
        if cut.top_k == 0 && cut.top_p >= 1.0 { pick(weights, at) } else { pick_cut(weights, cut, floor, at) }
    })
}

/// Numbers whose masses are added up together.
const RUN: usize = 256;

/// The mass of some weights, in eight chains.
fn mass(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in chunks {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*weight);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|w| f64::from(*w)).sum::<f64>()
}

/// The first of these weights up to which their sum exceeds `left`.
fn reaching(mut weights: impl Iterator<Item = f32>, mut left: f64) -> Option<usize> {
    weights.position(|weight| {
        left -= f64::from(weight);
        left < 0.0
    })
}

/// The token at the share `at` of the mass of all, in the order of their ids.
fn pick(weights: &[f32], at: f64) -> Option<u32> {
    let total: f64 = weights.chunks(RUN).map(mass).sum();
    let mut left = at * total;
    for (run, of_run) in weights.chunks(RUN).enumerate() {
        let mass = mass(of_run);
        if left >= mass {
            left -= mass;
            continue;
        }
        if let Some(i) = reaching(of_run.iter().copied(), left) {
            return Some((run * RUN + i) as u32);
        }
        // What rounding left over.
        left = 0.0;
    }
    weights.iter().rposition(|weight| *weight > 0.0).map(|i| i as u32)
}

/// Weights down to which candidates are looked for first: most cuts leave fewer than these are.
const FIRST_LOOKS: [f32; 2] = [1.0 / 256.0, 1.0 / 65536.0];

/// The same among the tokens that the cut leaves.
fn pick_cut(weights: &[f32], cut: Truncation, floor: f32, at: f64) -> Option<u32> {
    let mut candidates: Vec<Candidate> = Vec::new();
    // Without a bound on their number, the nucleus is a share of the mass of all.
    let all = if cut.top_k > 0 { None } else { Some(weights.chunks(RUN).map(mass).sum::<f64>()) };
    for least in FIRST_LOOKS.into_iter().filter(|least| *least > floor).chain([floor]) {
        candidates.clear();
        let heavy = weights.iter().enumerate().filter(|(_, weight)| **weight >= least);
        candidates.extend(heavy.map(|(i, weight)| Candidate { token: i as u32, weight: *weight }));
        let enough = match all {
            None => candidates.len() >= cut.top_k,
            Some(all) => {
                candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>() >= f64::from(cut.top_p) * all
            }
        };
        if enough {
            break;
        }
    }
    if cut.top_k > 0 && cut.top_k < candidates.len() {
        candidates.select_nth_unstable_by(cut.top_k - 1, by_weight);
        candidates.truncate(cut.top_k);
    }
    if cut.top_p < 1.0 {
        let all = all.unwrap_or_else(|| candidates.iter().map(|c| f64::from(c.weight)).sum());
        keep_nucleus(&mut candidates, f64::from(cut.top_p) * all);
    }
    // The sum runs in id order, so that truncation's reordering cannot change a rounding.
    candidates.sort_unstable_by_key(|c| c.token);
    let mass: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let drawn = reaching(candidates.iter().map(|c| c.weight), at * mass).map(|i| &candidates[i]);
    drawn.or(candidates.last()).map(|c| c.token)
}

/// Keeps the likeliest candidates whose weights reach the mass `target`; at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, target: f64) {
    // Most nuclei are small: order only as many of the likeliest as turn out to be needed.
    let mut ordered = 64.min(candidates.len());
    loop {
        if ordered < candidates.len() {
            candidates.select_nth_unstable_by(ordered - 1, by_weight);
        }
        candidates[..ordered].sort_unstable_by(by_weight);
        let mut mass = 0.0;
        let reached = candidates[..ordered].iter().position(|c| {
            mass += f64::from(c.weight);
            mass >= target
        });
        match reached {
            Some(last) => return candidates.truncate(last + 1),
            None if ordered == candidates.len() => return,
            None => ordered = (ordered * 8).min(candidates.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Truncation = Truncation { top_k: 0, top_p: 1.0, min_p: 0.0 };

    fn support(logits: &[f32], cut: Truncation) -> Vec<u32> {
        let mut seen: Vec<u32> =
            (0..2000).filter_map(|i| draw(logits, 1.0, cut, f64::from(i) / 2000.0)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn each_cut_keeps_what_it_says() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        assert_eq!(support(&logits, ALL), [0, 1, 2, 3]);
        assert_eq!(support(&logits, Truncation { top_k: 2, ..ALL }), [0, 1]);
        assert_eq!(support(&logits, Truncation { top_p: 0.7, ..ALL }), [0, 1]);
        assert_eq!(support(&logits, Truncation { top_p: 0.8, ..ALL }), [0, 1, 2], "the lower id of equals");
        assert_eq!(support(&logits, Truncation { top_p: 1e-9, ..ALL }), [0]);
        assert_eq!(support(&logits, Truncation { min_p: 0.4, ..ALL }), [0, 1]);
        let share = (0..4000).filter(|i| draw(&logits, 1.0, ALL, f64::from(*i) / 4000.0) == Some(0)).count();
        assert!((1990..=2010).contains(&share), "{share}");
    }

    #[test]
    fn what_is_not_a_number_is_never_drawn() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY];
        assert_eq!(likeliest(&logits), Some(1));
        assert_eq!(support(&logits, ALL), [1]);
        assert_eq!(likeliest(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(draw(&[f32::NAN], 1.0, ALL, 0.5), None);
    }

    /// The draw by its definition: all tokens sorted, cut and laid side by side.
    fn plain(logits: &[f32], cut: Truncation, at: f64) -> u32 {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| f64::from((logit - top).exp());
        let mut left: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(i, x)| (i as u32, weight(x))).collect();
        left.retain(|(_, weight)| *weight >= f64::from(cut.min_p));
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        left.truncate(if cut.top_k > 0 { cut.top_k } else { usize::MAX });
        let target = f64::from(cut.top_p) * left.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut mass = 0.0;
        let last = left.iter().position(|(_, weight)| {
            mass += weight;
            mass >= target
        });
        left.truncate(last.map_or(left.len(), |last| last + 1));
        left.sort_by_key(|(token, _)| *token);
        let mut rest = at * left.iter().map(|(_, weight)| weight).sum::<f64>();
        let drawn = left.iter().find(|(_, weight)| {
            rest -= weight;
            rest < 0.0
        });
        drawn.or(left.last()).unwrap().0
    }

    proptest! {
        /// Every cut alone and with others, over rows as long as vocabularies are. Rounding may decide
        /// otherwise where two tokens meet, so the random number next to it may too.
        #[test]
        fn a_draw_is_that_of_the_plain_definition(
            logits in proptest::collection::vec(-12f32..12.0, 1..3000),
            top_k in prop_oneof![Just(0usize), 1usize..2000],
            top_p in prop_oneof![Just(1f32), 0.01f32..1.0],
            min_p in prop_oneof![Just(0f32), 0.0001f32..0.9],
            at in 0.001f64..0.999,
        ) {
            let cut = Truncation { top_k, top_p, min_p };
            let drawn = draw(&logits, 1.0, cut, at).unwrap();
            let near = [at, at - 1e-4, at + 1e-4].map(|at| plain(&logits, cut, at));
            let close = Truncation { top_p: top_p * 0.9999, ..cut };
            let wide = Truncation { top_p: top_p * 1.0001, ..cut };
            let edges = [plain(&logits, close, at), plain(&logits, wide, at)];
            prop_assert!(near.contains(&drawn) || edges.contains(&drawn), "{drawn} for {near:?} {edges:?}");
        }

        /// The nucleus found piece by piece is the nucleus of the sorted list.
        #[test]
        fn nucleus_equals_the_plain_definition(
            weights in proptest::collection::vec(0.001f32..1.0, 1..1500),
            top_p in 0.01f64..1.0,
        ) {
            let mut candidates: Vec<Candidate> =
                weights.iter().enumerate().map(|(i, &weight)| Candidate { token: i as u32, weight }).collect();
            let mut plain = candidates.clone();
            let target = top_p * candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>();
            plain.sort_by(by_weight);
            let mut mass = 0.0;
            let last = plain.iter().position(|c| { mass += f64::from(c.weight); mass >= target });
            plain.truncate(last.map_or(plain.len(), |l| l + 1));
            keep_nucleus(&mut candidates, target);
            prop_assert_eq!(candidates, plain);
        }
    }
}
