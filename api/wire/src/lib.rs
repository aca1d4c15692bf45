//! The contract between Strata's layers: HTTP bodies, server-sent events, headers, metric names,
//! the patches that a layer may make to a body, and the one table of defaults.
//!
//! This crate is pure: it performs no I/O, reads no clock and knows no Kubernetes. Every layer may
//! use it; it uses none of them.

pub mod chat;
pub mod claims;
pub mod completion;
pub mod decisions;
pub mod defaults;
pub mod download;
pub mod engine_events;
pub mod error;
pub mod extract;
pub mod governance;
pub mod headers;
pub mod hops;
pub mod identity;
pub mod metrics;
pub mod model_uri;
pub mod models;
pub mod patch;
pub mod prefix;
pub mod replicas;
pub mod rope;
pub mod sse;
pub mod toplevel;
pub mod usage;

pub use error::{ErrorBody, ErrorKind};
pub use usage::Usage;
