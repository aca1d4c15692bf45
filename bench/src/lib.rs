//! Measures servers of the OpenAI API over HTTP, and the engine in process. Options and the members of
//! the results carry vLLM's names (`vllm bench`), so that figures can be laid side by side.
//!
//! - `dataset`: which prompts; pure, the same for the same seed.
//! - `arrival`: when requests are sent.
//! - `client`, `stream`: one request over HTTP, and what is seen of its answer.
//! - `summary`, `report`: from what was seen to figures, and how they are told.
//! - `serve`, `offline`: the benchmarks.

pub mod arrival;
mod client;
pub mod dataset;
pub mod offline;
mod random;
pub mod report;
pub mod serve;
mod stream;
pub mod summary;

pub use client::{Api, Target, TargetError};
pub use random::Random;
