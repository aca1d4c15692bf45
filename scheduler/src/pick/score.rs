//! Scores of a replica for one request, each from 0 to 1 and, but for the session's home, absolute: a
//! replica's score does not depend on which others there are.

use std::collections::BTreeMap;

use super::affinity::Lean;
use super::cached::Cached;
use super::load::{InterToken, Load};
use super::predict::Objectives;

/// The value of a score whose metric is missing: neither praise nor blame.
pub const UNKNOWN: f64 = 0.5;
/// Latency is told apart in steps of this share of the objective; what is finer is noise, and routing
/// by noise sends everything to one of two equal replicas.
const LATENCY_STEP: f64 = 0.05;

/// Saving so short a time is half as good as saving any time at all: without it the few tokens that all
/// conversations begin with would draw them all to one replica.
const UNNOTICED_SECONDS: f64 = 0.3;

/// How much each score counts. The signs are fixed: a hit, a session and an adapter speak for a replica, the
/// rest against it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the prefix-cache hit.
    pub hit: f64,
    /// Of the prompt tokens that wait.
    pub queue: f64,
    /// Of the sequences that run.
    pub decode: f64,
    /// Of the time between two tokens.
    pub latency: f64,
    /// Of the session's home: more than all others together, so that a session goes home as long as that can
    /// take it.
    pub session: f64,
    /// Of how near the adapter is.
    pub adapter: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { hit: 50.0, queue: 20.0, decode: 15.0, latency: 10.0, session: 100.0, adapter: 20.0 }
    }
}

impl Weights {
    /// The defaults with these changes. Returns the names that are no weight, or whose value is no
    /// number from 0 to 1000, beside the weights.
    pub fn with(changes: &BTreeMap<String, f64>) -> (Self, Vec<String>) {
        let mut weights = Self::default();
        let mut refused = Vec::new();
        for (name, value) in changes {
            let slot = match name.as_str() {
                // The manifests' name of what decisions show as `hit`.
                "prefix" => &mut weights.hit,
                "queue" => &mut weights.queue,
                "decode" => &mut weights.decode,
                "latency" => &mut weights.latency,
                "session" => &mut weights.session,
                "adapter" => &mut weights.adapter,
                _ => {
                    refused.push(name.clone());
                    continue;
                }
            };
            if (0.0..=1000.0).contains(value) {
                *slot = *value;
            } else {
                refused.push(name.clone());
            }
        }
        (weights, refused)
    }
}

/// The scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// Prefill seconds that the cache saves / (these + the predicted wait until the prompt is done + 0.3).
    pub hit: f64,
    /// Waiting prompt tokens / (these + the prompt tokens processed in one second).
    pub queue: f64,
    /// Running sequences / the most that run, those with a short answer counted for less.
    pub decode: f64,
    /// Time between two tokens / the objective, at most 1.
    pub latency: f64,
    /// 1 where the request's session is at home.
    pub session: f64,
    /// How near its adapter is.
    pub adapter: f64,
}

impl Parts {
    /// The weighted sum: the higher, the better.
    pub fn score(&self, weights: &Weights) -> f64 {
        weights.hit * self.hit + weights.session * self.session + weights.adapter * self.adapter
            - weights.queue * self.queue
            - weights.decode * self.decode
            - weights.latency * self.latency
    }
}

/// What of a request matters to a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Whole blocks of the prompt's canonical prefix.
    pub blocks: usize,
    /// Bytes of the prompt's canonical text.
    pub bytes: usize,
    /// What the model's requests aim at.
    pub aims: Objectives,
    /// What it may wait for.
    pub patience: Patience,
    /// What leans it toward some replicas.
    pub lean: Lean,
}

/// What a request may wait for, while there are replicas that could take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// For a replica that has its prompt.
    pub for_holder: bool,
    /// Where none has: for one that has room beside the requests whose prompts it has.
    pub for_room: bool,
}

/// Scores a replica. `idle_inter_token` stands in for a replica that has the metric and nothing to
/// measure: what its siblings take, in seconds.
pub fn parts(
    ask: &Ask,
    has: &Cached,
    bytes_per_token: f64,
    load: &Load,
    idle_inter_token: Option<f64>,
) -> Parts {
    let tokens = ask.bytes as f64 / bytes_per_token.max(0.1);
    let cached = has.worth.min(tokens);
    // Both are tokens at the replica's own rate, which cancels out: seconds / seconds.
    let unnoticed = load.prefill_rate.unwrap_or(0.0) * UNNOTICED_SECONDS;
    let until_done = load.waiting_tokens + (tokens - cached) + unnoticed;
    let hit = if cached > 0.0 { cached / (cached + until_done) } else { 0.0 };

    let queue = if load.waiting_tokens <= 0.0 {
        0.0
    } else {
        load.prefill_rate.map_or(UNKNOWN, |rate| load.waiting_tokens / (load.waiting_tokens + rate))
    };
    let queue = if load.waiting_tokens_known { queue } else { queue.max(UNKNOWN) };

    let decode = match (load.running, load.max_sequences) {
        (Some(running), Some(most)) if most > 0.0 => ((running - load.brief) / most).clamp(0.0, 1.0),
        _ => UNKNOWN,
    };

    let share = |seconds: f64| {
        let share = (seconds / ask.aims.inter_token.max(1e-6)).clamp(0.0, 1.0);
        (share / LATENCY_STEP).round() * LATENCY_STEP
    };
    let latency = match load.inter_token {
        InterToken::Missing => UNKNOWN,
        InterToken::Idle => idle_inter_token.map_or(UNKNOWN, share),
        InterToken::Seconds(seconds) => share(seconds),
    };
    Parts { hit, queue, decode, latency, ..Parts::default() }
}

#[cfg(test)]
mod tests {
    use strata_wire::defaults::BLOCK_BYTES;

    use super::*;

    fn has(blocks: usize) -> Cached {
        Cached::guessed(blocks, 4.0)
    }

    const ASK: Ask = Ask {
        blocks: 14,
        bytes: 14 * BLOCK_BYTES,
        aims: Objectives { first_token: 1.0, inter_token: 0.1 },
        patience: Patience { for_holder: false, for_room: false },
        lean: Lean::NONE,
    };

    fn idle() -> Load {
        Load {
            running: Some(0.0),
            waiting: Some(0.0),
            waiting_tokens_known: true,
            max_sequences: Some(64.0),
            prefill_rate: Some(2000.0),
            inter_token: InterToken::Seconds(0.02),
            ..Load::default()
        }
    }

    #[test]
    fn an_idle_replica_scores_by_the_share_it_holds() {
        let p = parts(&ASK, &has(12), 4.0, &idle(), None);
        assert!((p.hit - 768.0 / (768.0 + 128.0 + 600.0)).abs() < 1e-9);
        assert_eq!((p.queue, p.decode), (0.0, 0.0));
        assert!((p.latency - 0.2).abs() < 1e-9);
        assert!((p.score(&Weights::default()) - (50.0 * p.hit - 2.0)).abs() < 1e-6);
    }

    #[test]
    fn waiting_work_devalues_a_hit() {
        let busy = Load { waiting_tokens: 2000.0, running: Some(64.0), ..idle() };
        let p = parts(&ASK, &has(14), 4.0, &busy, None);
        assert!((p.hit - 896.0 / (2896.0 + 600.0)).abs() < 1e-9, "{p:?}");
        assert!((p.queue - 0.5).abs() < 1e-9 && (p.decode - 1.0).abs() < 1e-9);
        assert!(
            p.score(&Weights::default())
                < parts(&ASK, &has(0), 4.0, &idle(), None).score(&Weights::default())
        );
    }

    #[test]
    fn a_missing_metric_is_a_half_and_never_zero() {
        let p = parts(&ASK, &has(0), 4.0, &Load::default(), None);
        assert_eq!(p, Parts { hit: 0.0, queue: 0.5, decode: 0.5, latency: 0.5, ..Parts::default() });
        let unrated = Load { prefill_rate: None, waiting_tokens: 10.0, ..idle() };
        assert_eq!(parts(&ASK, &has(0), 4.0, &unrated, None).queue.to_bits(), 0.5f64.to_bits());
        let resting = Load { inter_token: InterToken::Idle, ..idle() };
        assert_eq!(parts(&ASK, &has(0), 4.0, &resting, None).latency.to_bits(), 0.5f64.to_bits());
        assert!((parts(&ASK, &has(0), 4.0, &resting, Some(0.03)).latency - 0.3).abs() < 1e-9);
    }

    #[test]
    fn weights_take_known_names_and_sane_numbers_only() {
        let changes = BTreeMap::from([
            ("prefix".to_owned(), 80.0),
            ("latency".to_owned(), -1.0),
            ("decode".to_owned(), f64::NAN),
            ("luck".to_owned(), 1.0),
        ]);
        let (weights, refused) = Weights::with(&changes);
        assert_eq!(weights, Weights { hit: 80.0, ..Weights::default() });
        assert_eq!(refused, ["decode", "latency", "luck"]);
    }
}
