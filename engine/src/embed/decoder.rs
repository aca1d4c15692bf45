//! Whether a decoder is opened to read, and the engine of one that is.

use std::path::Path;
use std::sync::Arc;

use super::{Embedder, Reader};
use crate::EngineError;
use crate::assemble::{blocks, served_name};
use crate::backend::BLOCK_TOKENS;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::vectors::{VectorBackend, VectorInfo};
use crate::memory;
use crate::model::load::{Head, LoadedModel};
use crate::model::vectors::{Embedding, Pooling, VectorOutput};
use crate::options::{EngineOptions, Task};
use crate::runtime::StartError;
use crate::tokenizer::Tokenizer;

/// What a text becomes when the model is opened for this task; none when it is to generate.
pub fn reads(task: Task, model: &LoadedModel) -> Result<Option<VectorOutput>, String> {
    // As vLLM does when the checkpoint is silent.
    let silent = Embedding { pooling: Pooling::Last, normalise: true };
    match (&model.head, task) {
        (Head::Tokens, Task::Generate) => Ok(None),
        (Head::Tokens, Task::Auto) => Ok(model.embedding.map(VectorOutput::Embedding)),
        (Head::Tokens, Task::Embed) | (Head::Nothing, Task::Auto | Task::Embed) => {
            Ok(Some(VectorOutput::Embedding(model.embedding.unwrap_or(silent))))
        }
        (Head::Classes { labels, .. }, Task::Auto | Task::Embed) => {
            Ok(Some(VectorOutput::Classes { labels: labels.clone() }))
        }
        (Head::Nothing | Head::Classes { .. }, Task::Generate) => Err(format!(
            "the checkpoint is of the class {}, which has no output head to generate with; leave `task` out, or \
             set it to embed",
            model.spec.architecture
        )),
    }
}

/// Starts the engine of a decoder whose texts become `output`. Takes time and blocks. `now` is in
/// seconds since 1970.
pub(crate) fn assemble(
    options: &EngineOptions,
    path: &Path,
    model: LoadedModel,
    output: VectorOutput,
    now: i64,
) -> Result<Arc<Embedder>, EngineError> {
    let LoadedModel { spec, weights, tokenizer_source, special, name, head, longest_text, .. } = model;
    let tokenizer = Tokenizer::build(&tokenizer_source, &special)?;
    let asked = options.max_model_len;
    if let Some(asked) = asked.filter(|asked| *asked > spec.max_context) {
        return Err(StartError::BeyondModel { asked, model: spec.max_context }.into());
    }
    let longest = asked.unwrap_or_else(|| longest_text.unwrap_or(usize::MAX).min(spec.max_context));
    // No prompt is kept, so that the cache need not hold more than one batch.
    let batch = options.step_tokens.div_ceil(BLOCK_TOKENS) + options.max_sequences;
    let most = longest.div_ceil(BLOCK_TOKENS).max(batch);
    let block_bytes = CpuBackend::block_bytes(&spec, options.kv_cache_dtype);
    let kv_blocks = blocks(options.kv_cache, block_bytes, most, memory::available)?.min(most);
    let held = kv_blocks * BLOCK_TOKENS;
    let max_tokens = longest.min(held);
    if max_tokens < longest {
        tracing::warn!(
            served = max_tokens,
            model = longest,
            "texts are cut to what the KV cache holds; enlarge kv_cache for more"
        );
    }
    let cpu = CpuOptions {
        threads: options.threads,
        kv_blocks,
        max_model_len: max_tokens,
        precision: options.precision,
        cache: options.kv_cache_dtype,
    };
    let name = served_name(options, name, path);
    let reader = Reader::open(spec, weights, head, output, cpu, options.step_tokens)?;
    let VectorInfo { architecture, output, .. } = reader.info();
    let path = path.display();
    tracing::info!(model = name, %path, architecture, ?output, max_tokens, kv_blocks, "decoder opened to read");
    super::start(options, Box::new(reader), tokenizer, name, max_tokens, now)
}
