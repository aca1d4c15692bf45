//! Which replica a request goes to, and why. Pure: replicas, time and chance come in as arguments.

pub mod admission;
pub mod affinity;
pub mod breaker;
pub mod budget;
pub mod cached;
pub mod decision;
pub mod index;
pub mod lengths;
pub mod load;
mod picker;
pub mod predict;
pub mod score;
pub mod split;

pub use admission::{Standing, admit};
pub use affinity::{Answer, Fit, Homes, Lean};
pub use breaker::{Breaker, Gate};
pub use budget::RetryBudget;
pub use cached::Cached;
pub use decision::{Brought, Decision, Prompt, Why};
pub use index::PrefixIndex;
pub use lengths::Lengths;
pub use load::{Gauges, InterToken, Load, Own};
pub use predict::{Forecast, Learnt, Objectives};
pub use score::{Ask, Parts, Patience, Weights};
pub use split::Split;
pub use strata_wire::replicas::Policy;
use strata_wire::replicas::Track;

/// A replica as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Which revision it runs, while one is tried out.
    pub track: Track,
    /// Whether it may get requests at all, and has not already failed this one.
    pub eligible: bool,
    /// How loaded it is.
    pub load: Load,
    /// What it has of the request's prompt.
    pub cached: Cached,
    /// Bytes of canonical text to one token, as observed there.
    pub bytes_per_token: f64,
    /// What it is expected to take.
    pub forecast: Forecast,
    /// Its place in the orders of keys ([`affinity`]): its name as a number.
    pub seed: u64,
    /// How near the request's adapter is there, where it is for one.
    pub adapter: Option<Fit>,
}

impl Candidate<'_> {
    /// Whether it can take a request now.
    pub fn is_open(&self) -> bool {
        self.eligible && !self.load.is_saturated()
    }

    /// Whether it should take a request that may wait, of whose prompt no replica has more than `most` tokens:
    /// the last places of a queue are for those whose prompts are here. Without it an overload takes
    /// prompts to whichever replica has the next place, the caches become alike, and what they save is lost
    /// when it is needed most.
    fn is_for(&self, most: f64) -> bool {
        let holds = most > 0.0 && self.cached.tokens >= HOLDS * most;
        holds || self.load.waiting.unwrap_or(0.0) < FREE_FOR_ALL
    }
}

/// What came of choosing.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The candidate at this place.
    Picked(usize, Decision),
    /// There are eligible replicas, and all are full, or it should wait for another than those that are
    /// not: hold the request.
    Saturated,
    /// No replica is eligible.
    NoneReady,
}

/// Waiting sequences up to which a replica takes any request.
const FREE_FOR_ALL: f64 = 2.0;
/// A replica that has such a part of what the one with the most has is as good as that.
const HOLDS: f64 = 0.75;
/// Scores closer than this are equal.
const TIE: f64 = 1e-6;

/// Chooses a replica. `turn` counts the model's requests and serves round robin; `random` breaks the
/// ties that the number of requests in flight leaves, and serves the policies that go by chance. The same arguments give the same choice.
pub fn pick(
    policy: Policy,
    ask: &Ask,
    candidates: &[Candidate<'_>],
    weights: &Weights,
    turn: u64,
    random: u64,
) -> Outcome {
    if !candidates.iter().any(|c| c.eligible) {
        return Outcome::NoneReady;
    }
    let idle = sibling_inter_token(candidates);
    let most = candidates.iter().filter(|c| c.eligible).map(|c| c.cached.tokens).fold(0.0, f64::max);
    let waits = if most > 0.0 { ask.patience.for_holder } else { ask.patience.for_room };
    let home = session_home(ask, candidates);
    let open: Vec<(usize, Parts)> = candidates
        .iter()
        .enumerate()
        .filter(|(place, c)| c.is_open() && (!waits || c.is_for(most) || home == Some(*place)))
        .map(|(place, c)| (place, parts(ask, c, idle, home == Some(place))))
        .collect();
    if open.is_empty() {
        return Outcome::Saturated;
    }
    let key = if most > 0.0 { ask.lean.homes.known } else { ask.lean.homes.unknown };
    let key = key.filter(|_| !candidates.iter().any(|c| c.eligible && c.cached.told));
    let ((place, parts), why) = picker::choose(policy, &open, ask, candidates, weights, key, (turn, random));
    let chosen = &candidates[place];
    let decision = Decision {
        replica: chosen.name.to_owned(),
        track: None,
        score: parts.score(weights),
        parts,
        cached_blocks: chosen.cached.blocks(chosen.bytes_per_token, ask.blocks),
        cached: chosen.cached,
        blocks: ask.blocks,
        candidates: open.len(),
        why,
        prompt: None,
        brought: Brought {
            session: ask.lean.session.is_some(),
            adapter: chosen.adapter,
            answer: ask.lean.answer,
        },
    };
    Outcome::Picked(place, decision)
}

/// How each of them stands, for those who ask why: its scores, and whether it can take a request.
pub fn table(ask: &Ask, candidates: &[Candidate<'_>]) -> impl Iterator<Item = (Parts, bool)> {
    let idle = sibling_inter_token(candidates);
    let home = session_home(ask, candidates);
    let row =
        move |(place, c): (usize, &Candidate<'_>)| (parts(ask, c, idle, home == Some(place)), c.is_open());
    candidates.iter().enumerate().map(row)
}

/// The home of the request's session: of those that can take it, so that one that is full, broken or about to
/// go has none.
fn session_home(ask: &Ask, candidates: &[Candidate<'_>]) -> Option<usize> {
    let open = candidates.iter().enumerate().filter(|(_, c)| c.is_open());
    ask.lean.session.and_then(|key| affinity::home(key, open.map(|(place, c)| (place, c.seed))))
}

fn parts(ask: &Ask, candidate: &Candidate<'_>, idle: Option<f64>, at_home: bool) -> Parts {
    Parts {
        session: f64::from(u8::from(at_home)),
        adapter: candidate.adapter.map_or(0.0, Fit::score),
        ..score::parts(ask, &candidate.cached, candidate.bytes_per_token, &candidate.load, idle)
    }
}

/// The mean time between tokens of the replicas that measure one: the best guess for a sibling that
/// has nothing to measure.
fn sibling_inter_token(candidates: &[Candidate<'_>]) -> Option<f64> {
    let known: Vec<f64> = candidates
        .iter()
        .filter(|c| c.eligible)
        .filter_map(|c| match c.load.inter_token {
            InterToken::Seconds(seconds) => Some(seconds),
            _ => None,
        })
        .collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod complaints;
#[cfg(test)]
mod tests;
