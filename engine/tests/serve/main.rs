//! The serving half of the engine, from the outside.
// The tests' own helpers are tests too, which the lints do not see.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod adapters;
mod backend;
mod client;
mod control;
mod echo;
mod events;
mod extras;
mod http;
mod kv_events;
mod metrics;
mod process;
mod real;
#[path = "../real_model/mod.rs"]
mod real_model;
mod refusals;
mod scheduling;
mod speculation;
mod speech;
mod structural;
mod structured;
mod support;
mod tiers;
mod tokenizer;
mod traces;
mod transfer;
