//! Checkpoints as Hugging Face lays them out: `config.json`, weights in one or several safetensors
//! files, the tokenizer's files.

mod config;
mod encoder;
mod error;
mod family;
mod model;
mod pooling;
mod rope;
mod shards;
#[cfg(test)]
mod tests;
mod wrapper;

pub(crate) use encoder::load as load_encoder;
pub use error::CheckpointError;
pub(crate) use model::load;
pub(crate) use shards::Shards;
