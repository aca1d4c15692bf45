//! How a replica stands at the moment of a choice.

use strata_wire::prefix::{BlockHash, Prefix};

use super::Inner;
use crate::index::Found;
use crate::pick::{Cached, Learnt, Load, Standing};

/// A replica at the moment of a choice.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Whether it may get requests.
    pub ready: bool,
    /// How often it has become ready.
    pub epoch: u64,
    /// How loaded it is.
    pub load: Load,
    /// What it has of the prompt.
    pub cached: Cached,
    /// Bytes of canonical text to one token.
    pub bytes_per_token: f64,
    /// Share of its KV blocks in use, if known.
    pub kv_usage: Option<f64>,
    /// What beside its load decides.
    pub standing: Standing,
    /// What it has taken for other requests.
    pub learnt: Learnt,
    /// How to tell what it has of a prompt without another look at it.
    pub(super) holds: Holds,
}

/// What a replica has of prompts, as far as a glance tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holds {
    /// What its lane bears, and of prompts that it computes now: the first blocks of these are marked here by
    /// their hash, a bit of 64 each.
    Told { lane: u32, coming: u64 },
    /// More than that.
    Unclear,
}

impl Holds {
    pub(super) fn of(inner: &Inner) -> Self {
        match &inner.lane {
            Some(lane) if !inner.guesses => {
                let marks = inner.pledges.iter().map(|pledge| mark(pledge.first.as_ref()));
                Self::Told { lane: lane.number(), coming: marks.fold(0, |all, mark| all | mark) }
            }
            _ => Self::Unclear,
        }
    }
}

/// The bit that marks a prompt's first block.
fn mark(first: Option<&BlockHash>) -> u64 {
    first.map_or(0, |hash| 1 << (hash.0 & 63))
}

impl View {
    /// What of this prompt the replica has, if that can be told without another look at it.
    pub(super) fn cached(&self, prefix: &Prefix, found: &Found) -> Option<Cached> {
        match self.holds {
            Holds::Told { lane, coming } if coming & mark(prefix.blocks.first()) == 0 => {
                Some(Cached::told(found.tokens_of(lane)))
            }
            _ => None,
        }
    }
}
