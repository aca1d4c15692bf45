//! The sampler against its definition, written out plainly.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::random;
use super::{Allowed, Penalties, Sampler, SamplingParams, TokenMask};

/// The probabilities that a place has by the definitions of all parameters, in f64.
fn probabilities(
    p: &SamplingParams,
    logits: &[f32],
    prompt: &[u32],
    said: &[u32],
    banned: &[u32],
) -> Vec<f64> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for token in said {
        *counts.entry(*token).or_default() += 1;
    }
    let bias: HashMap<u32, f32> = p.logit_bias.iter().copied().collect();
    let mut row: Vec<f32> = logits.to_vec();
    for (token, logit) in (0u32..).zip(&mut row) {
        *logit += bias.get(&token).copied().unwrap_or(0.0);
        let count = counts.get(&token).copied().unwrap_or(0);
        if count > 0 || prompt.contains(&token) {
            let repetition = p.penalties.repetition;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        if count > 0 {
            *logit -= p.penalties.presence + p.penalties.frequency * count as f32;
        }
        let allowed = p.allowed.as_ref().is_none_or(|mask| mask.has(token));
        let completes = p.bad_words.iter().any(|word| {
            let (last, before) = word.split_last().unwrap();
            *last == token && said.ends_with(before)
        });
        if !allowed || completes || banned.contains(&token) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut order: Vec<usize> = (0..row.len()).filter(|i| row[*i] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let weight = |i: usize| f64::from(((row[i] - top) * (1.0 / p.temperature)).exp());
    order.retain(|i| weight(*i) >= f64::from(p.min_p.max(f32::MIN_POSITIVE)));
    if p.top_k > 0 {
        order.truncate(p.top_k);
    }
    let mass: f64 = order.iter().map(|i| weight(*i)).sum();
    let mut share = 0.0;
    let nucleus = order.iter().position(|i| {
        share += weight(*i);
        share >= f64::from(p.top_p) * mass
    });
    if p.top_p < 1.0 {
        order.truncate(nucleus.map_or(order.len(), |last| last + 1));
    }
    let mass: f64 = order.iter().map(|i| weight(*i)).sum();
    (0..row.len()).map(|i| if order.contains(&i) { weight(i) / mass } else { 0.0 }).collect()
}

proptest! {
    #[test]
    fn each_draw_is_the_definitions(
        rows in proptest::collection::vec(proptest::collection::vec(-4.0f32..4.0, 24), 1..10),
        prompt in proptest::collection::vec(0u32..24, 0..6),
        penalties in (-2.0f32..2.0, -2.0f32..2.0, 0.5f32..2.0),
        bias in proptest::collection::btree_map(0u32..24, -5.0f32..5.0, 0..4),
        cuts in (0usize..12, 0.2f32..1.0, 0.0f32..0.3, 0.3f32..2.0),
        banned in proptest::collection::vec(0u32..24, 0..3),
        bad in proptest::collection::vec(proptest::collection::vec(0u32..24, 1..3), 0..4),
        allowed in proptest::option::of(proptest::collection::vec(0u32..24, 14..24)),
        seed in any::<u64>(),
    ) {
        let (top_k, top_p, min_p, temperature) = cuts;
        let params = SamplingParams {
            temperature, top_p, top_k, min_p, seed,
            penalties: Penalties { frequency: penalties.0, presence: penalties.1, repetition: penalties.2 },
            logit_bias: bias.into_iter().collect(),
            allowed: allowed.map(|tokens| Arc::new(TokenMask::of(&tokens))),
            bad_words: bad.into(),
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params.clone(), 0, &prompt);
        let mut greedy = Sampler::new(SamplingParams { temperature: 0.0, ..params.clone() }, 0, &prompt);
        let (mut said, mut likely) = (Vec::new(), Vec::new());
        for (place, row) in rows.iter().enumerate() {
            let limits = Allowed { banned: &banned, ..Allowed::default() };
            let expected = probabilities(&params, row, &prompt, &said, &banned);
            prop_assume!(expected.iter().any(|p| *p > 0.0));
            let token = sampler.sample(row, limits).unwrap().token;
            // The place of the random number in the sum of probabilities, in the order of ids.
            let at = random::uniform(seed, place as u64);
            let before: f64 = expected[..token as usize].iter().sum();
            let own = expected[token as usize];
            prop_assert!(own > 0.0 && at >= before - 1e-5 && at <= before + own + 1e-5, "{token}: {at} {before} {own}");
            said.push(token);

            let plain = SamplingParams { top_k: 1, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..params.clone() };
            let expected = probabilities(&plain, row, &prompt, &likely, &banned);
            let token = greedy.sample(row, limits).unwrap().token;
            prop_assert!(expected[token as usize] > 0.99, "the likeliest");
            likely.push(token);
        }
    }
}
