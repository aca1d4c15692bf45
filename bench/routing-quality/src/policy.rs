//! How a replica is chosen: as the scheduler does, or more simply.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use strata_scheduler::index::BlockIndex;
use strata_scheduler::pick::{
    Ask, Cached, Candidate, Homes, Lean, Objectives, Outcome, Patience, Policy as Rule, Weights, pick,
};
use strata_scheduler::replica::Replica;
use strata_scheduler::scheduler::mix;
use strata_wire::prefix::Prefix;

use crate::simulation::STALE;

/// What requests aim at.
const AIMS: Objectives = Objectives { first_token: 1.0, inter_token: 0.1 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    RoundRobin,
    Random,
    /// The fewest requests under way.
    LeastLoaded,
    /// Rendezvous hashing of the prompt's first blocks.
    PrefixHash,
    /// Ours, by what was sent to a replica.
    Approximate,
    /// Ours, by what replicas tell.
    Precise,
    /// Ours by what was sent, which leaves to chance what it does not know.
    #[cfg(test)]
    Unhashed,
    /// What runs and waits by the metrics alone, as a router does that forgets what it has sent since.
    #[cfg(test)]
    Metrics,
}

pub(crate) const ALL: [Policy; 6] = [
    Policy::RoundRobin,
    Policy::Random,
    Policy::LeastLoaded,
    Policy::PrefixHash,
    Policy::Approximate,
    Policy::Precise,
];

/// Blocks of a prompt that a prefix hash takes.
const HASHED: usize = 8;

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "round robin",
            Self::Random => "random",
            Self::LeastLoaded => "least loaded",
            Self::PrefixHash => "prefix hash",
            Self::Approximate => "approximate",
            Self::Precise => "precise",
            #[cfg(test)]
            Self::Unhashed => "approximate, not hashed",
            #[cfg(test)]
            Self::Metrics => "by metrics alone",
        })
    }
}

/// What a choice is made from.
pub(crate) struct Choice<'a> {
    pub(crate) replicas: &'a [Arc<Replica>],
    pub(crate) index: &'a BlockIndex,
    pub(crate) prefix: &'a Prefix,
    pub(crate) now: Duration,
    pub(crate) patience: Patience,
    pub(crate) turn: u64,
    pub(crate) random: u64,
}

impl Policy {
    /// Whether replicas tell the scheduler what they hold.
    pub(crate) fn is_told(self) -> bool {
        self == Self::Precise
    }

    /// The replica for a request; `None` when it must wait. Only ours hold a request back: the others
    /// know of no replica that it is full.
    pub(crate) fn choose(self, choice: &Choice<'_>) -> Option<(usize, Cached)> {
        let Choice { replicas, index, prefix, now, patience, turn, random } = *choice;
        let count = replicas.len() as u64;
        let simple = match self {
            Self::RoundRobin => Some((turn % count) as usize),
            Self::Random => Some((random % count) as usize),
            Self::LeastLoaded => (0..replicas.len()).min_by_key(|i| (replicas[*i].own().in_flight, *i)),
            Self::PrefixHash => {
                let hash = prefix.blocks.get(HASHED.min(prefix.blocks.len()).max(1) - 1).map_or(0, |b| b.0);
                (0..replicas.len()).max_by_key(|i| mix(hash ^ mix(*i as u64 + 1)))
            }
            #[cfg(test)]
            Self::Metrics => {
                let states: Vec<_> = replicas.iter().map(|replica| replica.state(now)).collect();
                let busy = |at: usize| states[at].running + 8.0 * states[at].waiting;
                (0..states.len()).min_by(|a, b| busy(*a).total_cmp(&busy(*b)))
            }
            #[cfg(test)]
            Self::Unhashed => None,
            Self::Approximate | Self::Precise => None,
        };
        if let Some(at) = simple {
            return Some((at, Cached::default()));
        }
        let found = index.find(&prefix.blocks);
        let candidates: Vec<Candidate<'_>> = replicas
            .iter()
            .map(|replica| replica.candidate(&replica.view(prefix, &found, now, STALE)))
            .collect();
        let hashes = matches!(self, Self::Approximate | Self::Precise);
        let lean = Lean { homes: if hashes { Homes::of(prefix) } else { Homes::default() }, ..Lean::NONE };
        let ask = Ask { blocks: prefix.blocks.len(), bytes: prefix.bytes, aims: AIMS, patience, lean };
        match pick(Rule::Prefix, &ask, &candidates, &Weights::default(), turn, random) {
            Outcome::Picked(at, decision) => Some((at, decision.cached)),
            Outcome::Saturated | Outcome::NoneReady => None,
        }
    }
}
