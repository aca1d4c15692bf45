//! One sequence's sampler: what it has seen, and the next token from its row of logits.

use std::collections::{HashMap, HashSet};

use super::draw::{Truncation, draw, likeliest};
use super::mask::TokenMask;
use super::params::{Penalties, SamplingParams};
use super::random;

/// Temperatures below this take the likeliest token: dividing by them would leave no finite number.
const COLDEST: f32 = 1e-5;

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Log probabilities, when they were asked for: by the model's own logits, before penalties and
    /// temperature.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log probabilities at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// A token that was given, and how likely the model had found it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// Its id.
    pub token: u32,
    /// Its log probability, and those of the likeliest.
    pub logprobs: TokenLogprobs,
    /// Its place among all tokens by likelihood, from 1.
    pub rank: usize,
}

/// Scores a given token by the logits before it.
pub fn score(logits: &[f32], token: u32, top: usize) -> ScoredToken {
    let own = logits[token as usize];
    let rank = 1 + logits.iter().filter(|logit| **logit > own).count();
    ScoredToken { token, logprobs: logprobs(logits, token, top), rank }
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// All logits are NaN or minus infinity.
    #[error("no token can be chosen: the model gives none a finite logit")]
    NoFiniteLogit,
    /// They are after bias, bans and masks.
    #[error(
        "no token can be chosen: none is left by what the request allows, bans and wants the answer to be; \
         loosen one of these"
    )]
    NothingAllowed,
}

/// What may be chosen at one place, beside what the parameters say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Tokens that must not come.
    pub banned: &'a [u32],
    /// The only tokens that may come, where there are such, and some `beside` them.
    pub mask: Option<&'a TokenMask>,
    /// Allowed although the mask does not have them.
    pub beside: &'a [u32],
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    prompt: HashSet<u32>,
    generated: HashMap<u32, u32>,
    /// The last tokens, as many as the longest bad word needs.
    recent: Vec<u32>,
    place: u64,
}

impl Sampler {
    /// The sampler of the `choice`-th answer to this prompt.
    pub fn new(params: SamplingParams, choice: usize, prompt: &[u32]) -> Self {
        let seen = if params.penalties.repeats_are_free() {
            HashSet::new()
        } else {
            prompt.iter().copied().collect()
        };
        let seed = random::fork(params.seed, choice as u64);
        Self { params, seed, prompt: seen, generated: HashMap::new(), recent: Vec::new(), place: 0 }
    }

    /// Chooses the next token from its row of logits, and remembers it.
    pub fn sample(&mut self, logits: &[f32], allowed: Allowed<'_>) -> Result<Sampled, SamplingError> {
        let adjusted = self.adjust(logits, allowed);
        let row = adjusted.as_deref().unwrap_or(logits);
        let p = &self.params;
        let token = if p.temperature < COLDEST {
            likeliest(row)
        } else {
            let cut = Truncation { top_k: p.top_k, top_p: p.top_p, min_p: p.min_p };
            draw(row, p.temperature, cut, random::uniform(self.seed, self.place))
        }
        .ok_or_else(|| match likeliest(logits) {
            Some(_) => SamplingError::NothingAllowed,
            None => SamplingError::NoFiniteLogit,
        })?;
        let logprobs = p.logprobs.map(|top| logprobs(logits, token, top));
        self.place += 1;
        if p.penalties != Penalties::NONE {
            *self.generated.entry(token).or_default() += 1;
        }
        self.remember(token);
        Ok(Sampled { token, logprobs })
    }

    /// Keeps as many tokens as the longest bad word has before its last.
    fn remember(&mut self, token: u32) {
        let longest = self.params.bad_words.iter().map(Vec::len).max().unwrap_or(0);
        if longest > 1 {
            self.recent.push(token);
            if self.recent.len() >= longest {
                self.recent.remove(0);
            }
        }
    }

    /// Tokens that would complete a bad word.
    fn completing(&self) -> impl Iterator<Item = u32> {
        self.params.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            self.recent.ends_with(before).then_some(*last)
        })
    }

    /// What [`Sampler::sample`] would probably choose from these logits, so many places ahead: with the
    /// same random number, but without what bias, penalties and bans would change.
    pub fn guess(&self, logits: &[f32], ahead: usize) -> Option<u32> {
        let p = &self.params;
        if p.temperature < COLDEST {
            return likeliest(logits);
        }
        let cut = Truncation { top_k: p.top_k, top_p: p.top_p, min_p: p.min_p };
        draw(logits, p.temperature, cut, random::uniform(self.seed, self.place + ahead as u64))
    }

    /// The logits with bias, penalties and bans; `None` when nothing changes them.
    fn adjust(&self, logits: &[f32], allowed: Allowed<'_>) -> Option<Vec<f32>> {
        let p = &self.params;
        let bounded = p.allowed.is_some() || !p.bad_words.is_empty() || allowed.mask.is_some();
        if p.logit_bias.is_empty() && p.penalties == Penalties::NONE && allowed.banned.is_empty() && !bounded
        {
            return None;
        }
        let mut row = logits.to_vec();
        for &(token, bias) in &p.logit_bias {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if !p.penalties.repeats_are_free() {
            let seen = self.prompt.iter().chain(self.generated.keys().filter(|t| !self.prompt.contains(t)));
            for &token in seen {
                if let Some(logit) = row.get_mut(token as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / p.penalties.repetition
                    } else {
                        *logit * p.penalties.repetition
                    };
                }
            }
        }
        for (&token, &count) in &self.generated {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit -= p.penalties.presence + p.penalties.frequency * count as f32;
            }
        }
        if let Some(only) = &p.allowed {
            only.apply(&mut row, &[]);
        }
        if let Some(mask) = allowed.mask {
            mask.apply(&mut row, allowed.beside);
        }
        for token in allowed.banned.iter().copied().chain(self.completing()) {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Some(row)
    }
}

fn logprobs(logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).filter(|e| e.is_finite()).sum();
    let log_sum = max + sum.ln() as f32;
    let mut ranked: Vec<u32> = (0..logits.len() as u32).filter(|&i| !logits[i as usize].is_nan()).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = top.min(ranked.len());
    if top > 0 && top < ranked.len() {
        ranked.select_nth_unstable_by(top - 1, order);
    }
    ranked.truncate(top);
    ranked.sort_unstable_by(order);
    TokenLogprobs {
        chosen: logits[chosen as usize] - log_sum,
        top: ranked.into_iter().map(|t| (t, logits[t as usize] - log_sum)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn sampler(params: SamplingParams, prompt: &[u32]) -> Sampler {
        Sampler::new(params, 0, prompt)
    }

    fn greedy(penalties: Penalties, prompt: &[u32]) -> Sampler {
        sampler(SamplingParams { penalties, ..SamplingParams::greedy() }, prompt)
    }

    fn tokens(sampler: &mut Sampler, logits: &[f32], count: usize) -> Vec<u32> {
        (0..count).map(|_| sampler.sample(logits, Allowed::default()).unwrap().token).collect()
    }

    #[test]
    fn greedy_takes_the_likeliest_and_the_lower_id_of_equals() {
        let mut s = sampler(SamplingParams::greedy(), &[]);
        assert_eq!(tokens(&mut s, &[0.0, 2.0, 2.0, 1.0], 1), [1]);
    }

    #[test]
    fn the_coldest_temperatures_are_greedy() {
        for temperature in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e-38, 1e-6, 1.1e-5] {
            let mut s = sampler(SamplingParams { temperature, ..SamplingParams::default() }, &[]);
            assert_eq!(tokens(&mut s, &[0.0, 2.0, 2.5, -1e4], 1), [2], "{temperature:e}");
        }
    }

    #[test]
    fn penalties_grow_with_what_was_generated() {
        let logits = [3.0, 2.5, 0.0];
        let presence = Penalties { presence: 1.0, ..Penalties::NONE };
        assert_eq!(tokens(&mut greedy(presence, &[]), &logits, 4), [0, 1, 0, 0], "once for each token");
        let frequency = Penalties { frequency: 1.0, ..Penalties::NONE };
        assert_eq!(tokens(&mut greedy(frequency, &[]), &logits, 5), [0, 1, 0, 1, 0], "for each time");
        let repetition = Penalties { repetition: 2.0, ..Penalties::NONE };
        assert_eq!(tokens(&mut greedy(repetition, &[0]), &logits, 1), [1], "the prompt counts too");
        assert_eq!(tokens(&mut greedy(repetition, &[0]), &[-1.0, -1.5], 1), [1], "a negative logit sinks");
        assert_eq!(tokens(&mut greedy(presence, &[0]), &logits, 1), [0], "the prompt does not count here");
    }

    #[test]
    fn bias_and_bans_move_single_tokens() {
        let params = SamplingParams { logit_bias: vec![(2, 100.0), (9, 100.0)], ..SamplingParams::greedy() };
        let mut s = sampler(params, &[]);
        assert_eq!(
            s.sample(&[1.0, 0.0, 0.0], Allowed::default()).unwrap().token,
            2,
            "ids beyond the row are ignored"
        );
        assert_eq!(
            s.sample(&[1.0, 0.0, 0.0], Allowed { banned: &[2], ..Allowed::default() }).unwrap().token,
            0
        );
        assert_eq!(
            s.sample(&[1.0], Allowed { banned: &[0], ..Allowed::default() }),
            Err(SamplingError::NothingAllowed)
        );
        assert_eq!(s.sample(&[f32::NAN; 3], Allowed::default()), Err(SamplingError::NoFiniteLogit));
    }

    #[test]
    fn a_seed_repeats_and_answers_differ() {
        let logits = vec![0.0; 512];
        let params = SamplingParams { seed: 7, ..SamplingParams::default() };
        let run = |choice| tokens(&mut Sampler::new(params.clone(), choice, &[]), &logits, 32);
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
        assert_ne!(
            run(0),
            tokens(&mut sampler(SamplingParams { seed: 8, ..params.clone() }, &[]), &logits, 32)
        );
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln() + 3.0).collect();
        let params =
            SamplingParams { logprobs: Some(2), logit_bias: vec![(2, 50.0)], ..SamplingParams::greedy() };
        let sampled = sampler(params, &[]).sample(&logits, Allowed::default()).unwrap();
        let got = sampled.logprobs.unwrap();
        assert_eq!(sampled.token, 2);
        assert!((got.chosen - 0.25f32.ln()).abs() < 1e-5, "{got:?}");
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
        assert!((got.top[0].1 - 0.5f32.ln()).abs() < 1e-5, "{got:?}");
    }

    #[test]
    fn only_allowed_tokens_come_and_no_bad_word_is_completed() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let bad_words: Arc<[Vec<u32>]> = [vec![0, 1], vec![2]].into();
        let params = SamplingParams { bad_words, ..SamplingParams::greedy() };
        let mut s = sampler(params, &[]);
        assert_eq!(tokens(&mut s, &logits, 3), [0, 0, 0]);
        assert_eq!(tokens(&mut s, &[1.0, 3.0, 2.0, 0.0], 2), [0, 0], "1 after 0, and 2 at any time");
        let allowed = Some(Arc::new(TokenMask::of(&[1, 3])));
        let mut s = sampler(SamplingParams { allowed, ..SamplingParams::greedy() }, &[]);
        let mask = TokenMask::of(&[0, 3]);
        assert_eq!(tokens(&mut s, &logits, 1), [1]);
        let both = Allowed { mask: Some(&mask), ..Allowed::default() };
        assert_eq!(s.sample(&logits, both).unwrap().token, 3, "in both sets");
        let beside = Allowed { beside: &[1], banned: &[3], ..both };
        assert_eq!(s.sample(&logits, beside).unwrap().token, 1);
    }
}
