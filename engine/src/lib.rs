//! The runtime layer: how a request is executed efficiently.
//!
//! It sees batches, KV pages, tokens and memory; it never sees authorization, routing or agent
//! workflows. The parts, from the outside in:
//!
//! - `serve`: the OpenAI-compatible HTTP API, text in and out.
//! - `tokenizer`, `template`: text to tokens and back, messages to prompts, output to tool calls.
//! - `runtime`: the thread that runs step after step, and the requests that it works on; `sampling`,
//!   from logits to a token.
//! - `grammar`: what an answer may be, as masks over the tokens that may come next.
//! - `step`: the pure planner of steps (continuous batching, chunked prefill), and `block`, the paged
//!   KV cache's book-keeping with prefix reuse.
//! - `lora`: adapters, small changes to the weights that single requests run with.
//! - `embed`: the same for encoders and decoders that read: vectors of texts.
//! - `events`: what the engine tells a router of its cache and its load.
//! - `transfer`: blocks from one engine to another.
//! - `tier`: host memory and disk below the KV cache.
//! - `backend`: one forward pass over everything that a step scheduled.
//! - `model`, `gguf`, `safetensors`: what a checkpoint says about itself.

mod assemble;
pub mod backend;
pub mod block;
pub mod embed;
pub mod events;
#[cfg(test)]
mod fuzz;
pub mod gguf;
pub mod grammar;
pub mod lora;
mod memory;
pub mod model;
mod options;
mod run;
pub mod runtime;
pub mod safetensors;
pub mod sampling;
pub mod serve;
pub mod step;
pub mod telemetry;
pub mod template;
pub mod tensor;
pub mod tier;
pub mod tokenizer;
pub mod transfer;

pub use assemble::{assemble, local_path};
pub use options::{EngineOptions, KvCache, ReasoningParser, Task, ToolCallParser};
pub use run::{EngineError, run, run_on};
pub use runtime::SpeculativeConfig;
