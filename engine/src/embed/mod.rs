//! The engine of an encoder: texts in, one vector each out.
//!
//! It stands beside [`crate::runtime`], which generates: there are no blocks, no sampling and no
//! streams here. A thread takes what waits, as many texts as fit a budget of tokens, runs them in one
//! forward pass and answers each.

mod batch;
mod handle;
mod worker;

pub use handle::{Cancelled, EmbedConfig, EmbedError, Embedder, EmbedderParts, Pending};

use std::path::Path;
use std::sync::Arc;

use crate::EngineError;
use crate::backend::cpu::encoder::CpuEncoder;
use crate::model::encoder::{self, LoadedEncoder};
use crate::options::EngineOptions;
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
    if options.served_model_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(EngineError::ServedName);
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
    let architecture = &encoder.spec().architecture;
    tracing::info!(model = name, path = %path.display(), architecture, max_len, "encoder opened");
    let parts =
        EmbedderParts { encoder, tokenizer, card: ModelCard { name, created: now, template_overhead: 0 } };
    let config = EmbedConfig {
        max_len,
        batch_tokens: options.step_tokens,
        max_sequences: options.max_sequences,
        max_waiting: options.max_waiting,
    };
    Ok(Some(Embedder::start(parts, config)?))
}
