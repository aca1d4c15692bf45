//! The gateway on a Kubernetes API server.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::needless_pass_by_value, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod follow;
mod status;
mod world;
