//! What an adapter is known by.

use std::sync::Arc;

/// The identity of one loading of an adapter inside one engine, never used twice: what is loaded under
/// the same name again has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u64);

/// An adapter as the planner and the events know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterKey {
    /// Which loading of it.
    pub id: AdapterId,
    /// The name that requests ask for.
    pub name: Arc<str>,
    /// The name's number in vLLM's block events, from 1 on; a name that is loaded again keeps it.
    pub number: u64,
    /// The hash of everything that it changes answers by: see [`super::LoraWeights::digest`].
    pub digest: [u8; 32],
}
