//! The decisions about a cluster, on a simulated one.
// Specs and statuses are written as JSON at the call.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, unreachable_pub)]

mod children;
mod controller;
mod kstatus;
mod prefill;
mod roll;
mod sleep;
mod status;
mod world;
