//! The platform over HTTP, with a scripted model server below it.

// Everything in here is a test, helpers too.
#![allow(clippy::needless_pass_by_value, clippy::unwrap_used, clippy::wildcard_imports)]

mod agent;
mod chains;
mod conversations;
mod failures;
mod identity;
mod refusals;
mod relay;
mod streaming;
mod support;
