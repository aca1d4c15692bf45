//! Which of the replicas that are left gets the request: pickers over their scores. Several schedulers that
//! all take the best send each other's bursts to the same replica between two looks at its load; those that
//! leave some of it to chance do not.

use strata_wire::replicas::Policy;

use super::affinity;
use super::decision::Why;
use super::score::{Ask, Parts, Weights};
use super::{Candidate, TIE};

/// A score lower by this is taken e times less often by weighted chance: a fifteenth of what lies between a
/// full hit and none, so that a replica that holds the prompt is nearly always taken.
const TEMPERATURE: f64 = 5.0;

/// A replica that may be picked: its place among the candidates, and its scores.
pub(super) type Scored = (usize, Parts);

/// Replicas whose scores are no further apart than this seem alike to one that looks for a prompt's home.
const ALIKE_SCORES: f64 = 2.0;

/// Picks one of `open`, which is not empty. `key` is what the prompt finds its home by, if it may.
pub(super) fn choose(
    policy: Policy,
    open: &[Scored],
    ask: &Ask,
    candidates: &[Candidate<'_>],
    weights: &Weights,
    key: Option<u64>,
    (turn, random): (u64, u64),
) -> (Scored, Why) {
    let only = open.len() == 1;
    let why = |why| if only { Why::OnlyOne } else { why };
    let loads = Weights { hit: 0.0, ..*weights };
    if !matches!(policy, Policy::RoundRobin | Policy::Random)
        && let Some(scored) = session(open, if policy == Policy::LeastLoaded { &loads } else { weights })
    {
        return (scored, why(Why::Session));
    }
    match policy {
        Policy::RoundRobin => (open[at(turn, open.len())], Why::Turn),
        Policy::Prefix => match key.and_then(|key| at_home(key, open, candidates, weights)) {
            Some(scored) => (scored, why(Why::Home)),
            None => best(open, candidates, weights, random),
        },
        Policy::LeastLoaded => {
            let (scored, by) = best(open, candidates, &loads, random);
            (scored, if by == Why::MostCached { Why::LeastLoaded } else { by })
        }
        Policy::Random => (open[at(random, open.len())], why(Why::Chance)),
        Policy::SloAware => (roomiest(open, ask, candidates, random), why(Why::Headroom)),
        Policy::WeightedRandom => (weighted(open, weights, random), why(Why::Chance)),
        Policy::PowerOfTwo => {
            let first = at(random >> 32, open.len());
            let second = (first + 1 + at(random & 0xffff_ffff, (open.len() - 1).max(1))) % open.len();
            let two = [open[first], open[second]];
            (best(&two[..open.len().min(2)], candidates, weights, random).0, why(Why::BetterOfTwo))
        }
    }
}

/// The home of the request's session, if no other scores better.
fn session(open: &[Scored], weights: &Weights) -> Option<Scored> {
    let home = open.iter().find(|(_, parts)| parts.session > 0.0 && weights.session > 0.0)?;
    let score = home.1.score(weights);
    open.iter().all(|(_, parts)| parts.score(weights) <= score).then_some(*home)
}

/// The home of a prompt: of those that are about as good as the best, and about as little busy as the least.
/// `None` when these are not several.
fn at_home(key: u64, open: &[Scored], candidates: &[Candidate<'_>], weights: &Weights) -> Option<Scored> {
    let top = open.iter().map(|(_, parts)| parts.score(weights)).fold(f64::NEG_INFINITY, f64::max);
    let load = |place: usize| &candidates[place].load;
    let least = open.iter().map(|(place, _)| load(*place).sequences()).fold(f64::INFINITY, f64::min);
    let alike = open.iter().filter(|(place, parts)| {
        parts.score(weights) >= top - ALIKE_SCORES && affinity::is_within(load(*place), least)
    });
    let alike: Vec<Scored> = alike.copied().collect();
    let home = affinity::home(key, alike.iter().map(|(place, _)| (*place, candidates[*place].seed)))?;
    alike.iter().find(|(place, _)| *place == home && alike.len() > 1).copied()
}

/// Headrooms closer than this are equal: what is learnt is no more exact.
const ALIKE: f64 = 0.02;

/// The one that stays furthest below the objectives; of several, the one with the fewest requests in flight,
/// then chance.
fn roomiest(open: &[Scored], ask: &Ask, candidates: &[Candidate<'_>], random: u64) -> Scored {
    let in_flight = |scored: &Scored| candidates[scored.0].load.in_flight;
    let headroom = |scored: &Scored| candidates[scored.0].forecast.headroom(&ask.aims, in_flight(scored));
    let top = open.iter().map(headroom).fold(f64::NEG_INFINITY, f64::max);
    let alike = || open.iter().filter(|scored| headroom(scored) >= top - ALIKE);
    let fewest = alike().map(in_flight).min().unwrap_or(0);
    let best: Vec<Scored> = alike().filter(|scored| in_flight(scored) == fewest).copied().collect();
    best[at(random, best.len())]
}

fn at(number: u64, of: usize) -> usize {
    (number % of as u64) as usize
}

/// Each by e to the power of its score.
fn weighted(open: &[Scored], weights: &Weights, random: u64) -> Scored {
    let scores: Vec<f64> = open.iter().map(|(_, parts)| parts.score(weights) / TEMPERATURE).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let mut left = (random >> 11) as f64 / (1u64 << 53) as f64 * shares.iter().sum::<f64>();
    for (scored, share) in open.iter().zip(&shares) {
        left -= share;
        if left < 0.0 {
            return *scored;
        }
    }
    open[open.len() - 1]
}

/// The best score; of several, the fewest requests in flight, then chance.
fn best(open: &[Scored], candidates: &[Candidate<'_>], weights: &Weights, random: u64) -> (Scored, Why) {
    let top = open.iter().map(|(_, p)| p.score(weights)).fold(f64::NEG_INFINITY, f64::max);
    let in_flight = |place: usize| candidates[place].load.in_flight;
    let mut tied: Vec<Scored> = open.iter().copied().filter(|(_, p)| p.score(weights) >= top - TIE).collect();
    // A score that is no number is like no other: then all are alike.
    if tied.is_empty() {
        tied = open.to_vec();
    }
    let by_score = tied.len() == 1;
    let fewest = tied.iter().map(|(place, _)| in_flight(*place)).min().unwrap_or(0);
    tied.retain(|(place, _)| in_flight(*place) == fewest);
    let (place, parts) = tied[at(random, tied.len())];
    let most_cached = open.iter().all(|(other, _)| {
        *other == place || candidates[*other].cached.tokens < candidates[place].cached.tokens
    });
    let why = if open.len() == 1 {
        Why::OnlyOne
    } else if most_cached {
        Why::MostCached
    } else if by_score {
        Why::LeastLoaded
    } else {
        Why::Tie
    };
    ((place, parts), why)
}
