//! The engine of a model that reads, an encoder or a decoder: texts in, one vector each out.
//!
//! It stands beside [`crate::runtime`], which generates: there are no blocks, no sampling and no
//! streams here. A thread takes what waits, as many texts as fit a budget of tokens, runs them in one
//! forward pass and answers each.

mod batch;
mod decoder;
mod handle;
mod reader;
mod steps;
mod worker;

pub(crate) use decoder::assemble as assemble_decoder;
pub use decoder::reads;
pub use handle::{Cancelled, EmbedConfig, EmbedError, Embedder, EmbedderParts, Pending};
pub use reader::Reader;

use std::path::Path;
use std::sync::Arc;

use crate::EngineError;
use crate::backend::cpu::encoder::CpuEncoder;
use crate::backend::vectors::VectorBackend;
use crate::model::encoder::{self, LoadedEncoder};
use crate::options::{EngineOptions, Task};
use crate::runtime::{ModelCard, StartError};
use crate::tokenizer::Tokenizer;

/// Starts the engine of the encoder at `path`; none when something else is there. Takes time and
/// blocks. `now` is in seconds since 1970.
pub(crate) fn assemble(
    options: &EngineOptions,
    path: &Path,
    now: i64,
) -> Result<Option<Arc<Embedder>>, EngineError> {
    let Some(LoadedEncoder { spec, weights, tokenizer_source, special, name, max_len }) =
        encoder::load(path)?
    else {
        return Ok(None);
    };
    if options.task == Task::Generate {
        let message =
            format!("{} is an encoder, which generates no text; leave `task` out", spec.architecture);
        return Err(EngineError::Task(message));
    }
    if options.lora.is_some() {
        let message =
            "adapters are for models that generate, and this is an encoder; leave --enable-lora out";
        return Err(EngineError::Lora(message.into()));
    }
    let positions = spec.max_positions;
    let max_len = match options.max_model_len {
        Some(asked) if asked > positions => {
            return Err(StartError::BeyondModel { asked, model: positions }.into());
        }
        asked => asked.unwrap_or(max_len),
    };
    let tokenizer = Tokenizer::build(&tokenizer_source, &special)?;
    let name = options.served_model_name.clone().or(name).unwrap_or_else(|| "model".to_owned());
    let encoder = CpuEncoder::new(spec, weights, options.threads)?;
    let architecture = &encoder.info().architecture;
    tracing::info!(model = name, path = %path.display(), architecture, max_len, "encoder opened");
    start(options, Box::new(encoder), tokenizer, name, max_len, now).map(Some)
}

fn start(
    options: &EngineOptions,
    model: Box<dyn VectorBackend>,
    tokenizer: Tokenizer,
    name: String,
    max_len: usize,
    now: i64,
) -> Result<Arc<Embedder>, EngineError> {
    let parts =
        EmbedderParts { model, tokenizer, card: ModelCard { name, created: now, template_overhead: 0 } };
    let config = EmbedConfig {
        max_len,
        batch_tokens: options.step_tokens,
        max_sequences: options.max_sequences,
        max_waiting: options.max_waiting,
    };
    Ok(Embedder::start(parts, config)?)
}
