//! The scheduler against engines that hold, break, refuse and die.

// The lint spares test functions, not the functions that they share.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod boundary;
mod breaker;
mod canary;
mod complaints;
mod continuation;
mod discovery;
mod envoy;
mod explain;
mod failover;
mod flow;
mod hold;
mod objectives;
mod peers;
mod picker;
mod pool;
mod predictions;
mod prefill;
mod readiness;
mod stopping;
mod streaming;
mod told;
mod traces;
mod vllm;
mod waking;
mod wishes;
