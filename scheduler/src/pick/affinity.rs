//! What leans a request toward some replicas beside what these hold and do: its session, the adapter that it
//! asks for, and where prompts that begin like it belong.
//!
//! Nothing is remembered of sessions and prompts. Each key has an order of the replicas, by highest random
//! weight (Thaler and Ravishankar 1998), which every scheduler finds alike: of those that can take the
//! request, the first in the order is the key's home. When a replica goes, only its keys find another home;
//! when one comes, it takes its share of each of the others.

use strata_wire::prefix::Prefix;

use super::load::{ASSUMED_MAX_SEQUENCES, Load};
use crate::scheduler::mix;

/// Blocks of a prompt's beginning that tell it from others: what prompts share that begin with the same
/// instructions.
const BEGINNING: usize = 8;
/// A home has no more above the least busy than this part of what it can run at once. Loads are bounded, as in
/// consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016): however many prompts begin
/// alike, the others get theirs; and a replica of few sequences is no home while another has fewer.
const SLACK: f64 = 1.0 / 32.0;

/// A text as a number that every scheduler finds, of whatever build (FNV-1a, then mixed).
pub fn number(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        // Their lengths too: else two parts could be cut otherwise and be the same.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    mix(hash)
}

/// Where a replica of this seed stands in the order of a key: the highest is the home.
fn weight(key: u64, seed: u64) -> u64 {
    mix(key ^ seed)
}

/// The home of a key among replicas, each a place and a seed.
pub(super) fn home(key: u64, among: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    among.max_by_key(|(_, seed)| weight(key, *seed)).map(|(place, _)| place)
}

/// Whether a replica may get one more as a home, when the least busy has so many sequences.
pub(super) fn is_within(load: &Load, least: f64) -> bool {
    load.sequences() <= least + SLACK * load.max_sequences.unwrap_or(ASSUMED_MAX_SEQUENCES)
}

/// What of a request leans it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lean {
    /// Its session's key.
    pub session: Option<u64>,
    /// Where its prompt belongs.
    pub homes: Homes,
    /// What is expected of its answer.
    pub answer: Option<Answer>,
}

impl Lean {
    /// Nothing does.
    pub const NONE: Self = Self { session: None, homes: Homes { unknown: None, known: None }, answer: None };
}

/// The keys by which a prompt finds its home, of replicas that seem alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Homes {
    /// Where nobody is known to have any of it: the beginning's, so that prompts that begin alike are computed
    /// in one place.
    pub unknown: Option<u64>,
    /// Where its beginning is known in several places: the conversation's, so that its next turn finds it by
    /// another scheduler too.
    pub known: Option<u64>,
}

impl Homes {
    /// Those of a prompt. A beginning that is shorter than the blocks that tell it ends with the first
    /// question, so that the conversation's later turns have the same.
    pub fn of(prefix: &Prefix) -> Self {
        let long = |opening: &strata_wire::prefix::Opening| opening.blocks >= BEGINNING;
        let beginning = || {
            let last = prefix.blocks.len().min(BEGINNING);
            last.checked_sub(1).map(|last| prefix.blocks[last].0)
        };
        let unknown = match &prefix.opening {
            Some(opening) if !long(opening) => Some(opening.hash),
            _ => beginning(),
        };
        Self { unknown, known: prefix.opening.map(|opening| opening.hash) }
    }
}

/// What is expected of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Tokens.
    pub tokens: f64,
    /// The same as a share of what is expected where the request sets no limit: what it counts for among the
    /// sequences that run, beside one that is as long as most.
    pub share: f64,
}

/// The least that an answer counts for: it takes a place in each step, however few these are.
const LEAST_SHARE: f64 = 0.1;

impl Answer {
    /// Of a model of whose answers so many tokens are expected, to a request that allows so many.
    pub fn expected(usual: f64, limit: Option<u64>) -> Self {
        let tokens = limit.map_or(usual, |limit| usual.min(limit as f64));
        Self { tokens, share: (tokens / usual.max(1.0)).clamp(LEAST_SHARE, 1.0) }
    }
}

/// How near an adapter is at a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is loaded, as far as is known.
    Loaded,
    /// There is room for it.
    Room,
    /// Requests for it wait there, so that it comes.
    Coming,
    /// Other adapters have all the room.
    NoRoom,
    /// The replica says nothing of adapters.
    Unknown,
}

impl Fit {
    /// What it is worth, from 0 to 1: as in llm-d's scorer.
    pub fn score(self) -> f64 {
        match self {
            Self::Loaded => 1.0,
            Self::Room => 0.8,
            Self::Coming => 0.6,
            Self::NoRoom => 0.0,
            Self::Unknown => super::score::UNKNOWN,
        }
    }
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loaded => "loaded",
            Self::Room => "room",
            Self::Coming => "coming",
            Self::NoRoom => "no-room",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests;
