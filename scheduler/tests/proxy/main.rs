//! The scheduler against engines that hold, break, refuse and die.

// The lint spares test functions, not the functions that they share.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod boundary;
mod canary;
mod complaints;
mod discovery;
mod failover;
mod hold;
mod prefill;
mod readiness;
mod stopping;
mod streaming;
mod told;
mod waking;
