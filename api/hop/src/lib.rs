//! One HTTP hop of Strata, the same code at every entrance and exit: a listener that drains, an
//! upstream client with a time limit for each phase, header hygiene by the table in
//! [`strata_wire::hops`], and the token by which a layer knows the layer above it.
//!
//! Layers depend on this crate instead of on each other.

pub mod client;
pub mod fault;
pub mod forward;
pub mod listen;
pub mod process;
pub mod spool;
pub mod token;

pub use client::{SendError, Upstream};
pub use fault::Fault;
pub use listen::{Bound, ListenError, Peer};
pub use token::HopToken;

/// The body type of every layer, streamed.
pub type Body = axum::body::Body;
