//! Which replica holds which blocks of prompts, as the replicas tell it themselves.
//!
//! One map of all replicas together: from a block to those that hold it ([`blocks`]). A choice among a
//! thousand replicas then looks up each block of the prompt once, not a thousand times. What one
//! replica holds at a time is a *lane*: a replica that begins anew gets another, which takes the old one's
//! place when it is whole, and what the old one held is swept away later ([`lanes`]). What arrives from a
//! replica, and in which order it must, is [`told`]'s.

pub mod blocks;
pub mod lanes;
pub mod told;

pub use blocks::{BlockIndex, Found};
pub use lanes::Lane;
pub use told::{OutOfOrder, Told};
