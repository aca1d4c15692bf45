//! One HTTP hop of Strata, the same code at every entrance and exit: a listener that drains, an
//! upstream client with a time limit for each phase, header hygiene by the table in
//! [`strata_wire::hops`], and the proof by which a layer knows the layer above it: a token of the run on
//! a host, mutual TLS on a cluster.
//!
//! Layers depend on this crate instead of on each other.

pub mod caller;
pub mod client;
pub mod fault;
pub mod forward;
mod head;
pub mod line;
pub mod listen;
pub mod process;
pub mod rope;
pub mod spool;
mod threads;
pub mod tls;
pub mod token;

pub use caller::Above;
pub use client::{SendError, Upstream};
pub use fault::Fault;
pub use line::Answer;
pub use listen::{Bound, ListenError, Peer, Upload};
pub use tls::{Component, Mtls, MtlsError};
pub use token::HopToken;

/// The body type of every layer, streamed.
pub type Body = axum::body::Body;
