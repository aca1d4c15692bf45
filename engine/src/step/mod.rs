//! What the next forward pass runs. A pure planner: no clock, no I/O, no randomness; the same calls
//! give the same steps.
//!
//! Continuous batching with chunked prefill: each step takes one token of every sequence that
//! decodes, then fills its token budget with pieces of prompts. Prefixes that are in the cache are
//! not computed again; when blocks run out, the youngest sequence starts over later.

mod planner;
mod sequence;

pub use planner::{Admission, NewSequence, Part, Plan, Planner, PlannerState, Refused, StepLimits};
pub use sequence::SequenceId;
