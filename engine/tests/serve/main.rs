//! The serving half of the engine, from the outside.

mod backend;
mod client;
mod scheduling;
mod support;
mod tokenizer;
