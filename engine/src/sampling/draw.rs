//! Truncation (min-p, top-k, top-p, in this order) and the draw itself.

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
    let mut best: Option<(usize, f32)> = None;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |b| b.1) {
            best = Some((i, logit));
        }
    }
    best.map(|(i, _)| i as u32)
}

/// How the candidates are cut down before the draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncation {
    pub(super) top_k: usize,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
}

/// Draws a token by these logits at this temperature with the random number `at` in [0, 1).
pub(super) fn draw(logits: &[f32], temperature: f32, cut: Truncation, at: f64) -> Option<u32> {
    let top = logits[likeliest(logits)? as usize];
    let scale = 1.0 / temperature;
    // Weights below this cannot be drawn; they only cost time.
    let floor = cut.min_p.max(f32::MIN_POSITIVE);
    let mut candidates: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(i, logit)| Candidate { token: i as u32, weight: ((logit - top) * scale).exp() })
        .filter(|c| c.weight >= floor)
        .collect();
    if cut.top_k > 0 && cut.top_k < candidates.len() {
        candidates.select_nth_unstable_by(cut.top_k - 1, by_weight);
        candidates.truncate(cut.top_k);
    }
    if cut.top_p < 1.0 {
        keep_nucleus(&mut candidates, f64::from(cut.top_p));
    }
    // The sum runs in id order, so that truncation's reordering cannot change a rounding.
    candidates.sort_unstable_by_key(|c| c.token);
    let mass: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut left = at * mass;
    for candidate in &candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return Some(candidate.token);
        }
    }
    candidates.last().map(|c| c.token)
}

/// Keeps the likeliest candidates whose weights reach the share `top_p` of all; at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let target = top_p * candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>();
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

    proptest! {
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
            keep_nucleus(&mut candidates, top_p);
            prop_assert_eq!(candidates, plain);
        }
    }
}
