//! What the next forward pass runs. A pure planner: no clock, no I/O, no randomness; the same calls
//! give the same steps.
//!
//! Continuous batching with chunked prefill: each step takes one token of every sequence that
//! decodes, then pieces of prompts, as many as keep the step near the length of one without
//! ([`StepCost`]). Prefixes that are in the cache are not computed again; when blocks run out, the
//! last in order starts over later. What lies in a tier below the pool is fetched first, and others
//! run meanwhile. Nobody waits for ever: see [`Planner`].

mod adapters;
mod cost;
mod loads;
mod order;
mod plan;
mod planner;
mod prompts;
mod sequence;

pub use adapters::AdapterNames;
pub use cost::StepCost;
pub use loads::{Load, LoadId};
pub use plan::{Admission, NewSequence, Part, Plan, PlannerState, Refused, StepLimits};
pub use planner::Planner;
pub use sequence::SequenceId;
