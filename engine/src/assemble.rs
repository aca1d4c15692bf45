//! From options to a running engine: opens the model, sizes the KV cache, builds the parts.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;
use strata_hop::{Component, Upstream};
use strata_wire::chat::Message;

use crate::EngineError;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{BLOCK_TOKENS, Backend};
use crate::embed;
use crate::lora::Adapters;
use crate::memory;
use crate::model::load::{LoadedModel, SpecialTokens, load};
use crate::options::{EngineOptions, KvCache, ReasoningParser, ToolCallParser};
use crate::runtime::{
    Engine, EngineConfig, EngineParts, ModelCard, Reopen, Speculation, SpeculativeConfig, StartError,
};
use crate::step::StepLimits;
use crate::telemetry::SampleShare;
use crate::template::{ChatTemplate, Prompt, ReasoningFormat, ToolFormat};
use crate::tier::{Disk, KvDisk, RamTier, Tiers, fingerprint};
use crate::tokenizer::Tokenizer;
use crate::transfer::Transfer;

/// Opens the model and starts its engine, which generates. Takes time and blocks: not for a server's
/// thread. `now` is in seconds since 1970.
pub fn assemble(options: &EngineOptions, now: i64) -> Result<Arc<Engine>, EngineError> {
    let path = local_path(&options.model)?;
    check(options)?;
    let model = load(&path)?;
    if embed::reads(options.task, &model).map_err(EngineError::Task)?.is_some() {
        let message = "only a model that generates can be opened here, and by its checkpoint or `task` this one \
                       embeds; set `task` to generate";
        return Err(EngineError::Task(message.to_owned()));
    }
    assemble_loaded(options, &path, model, now)
}

/// Refuses what no model could be opened with.
pub(crate) fn check(options: &EngineOptions) -> Result<(), EngineError> {
    // Said before the cache is sized by them, which would blame the cache.
    for (name, value) in
        [("max_sequences", options.max_sequences), ("max_model_len", options.max_model_len.unwrap_or(1))]
    {
        if value == 0 {
            return Err(StartError::Zero { name }.into());
        }
    }
    if options.served_model_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(EngineError::ServedName);
    }
    Ok(())
}

/// The engine of a model that was opened from `path`.
pub(crate) fn assemble_loaded(
    options: &EngineOptions,
    path: &Path,
    model: LoadedModel,
    now: i64,
) -> Result<Arc<Engine>, EngineError> {
    let followed = options.kv_cache_metrics_sample.map(SampleShare::try_from).transpose();
    let followed = followed.map_err(|e| EngineError::KvCache(format!("kv_cache_metrics_sample {e}")))?;
    let LoadedModel { spec, weights, tokenizer_source, chat_template, special, name, .. } = model;
    // A text that goes on has no end.
    let special = SpecialTokens { add_eos: false, ..special };
    let tokenizer = Tokenizer::build(&tokenizer_source, &special)?;
    let token = |id: Option<u32>| id.map(|id| tokenizer.written(id)).unwrap_or_default();
    let template = chat_template
        .map(|source| ChatTemplate::new(source, token(special.bos), token(special.eos.first().copied())))
        .transpose()?
        .map(|template| read_as(template, options));
    let context = options.max_model_len.unwrap_or(spec.max_context);
    if context > spec.max_context {
        return Err(StartError::BeyondModel { asked: context, model: spec.max_context }.into());
    }
    let block_bytes = CpuBackend::block_bytes(&spec, options.kv_cache_dtype);
    let most = options.max_sequences.saturating_mul(context.div_ceil(BLOCK_TOKENS));
    let kv_blocks = blocks(options.kv_cache, block_bytes, most, memory::available)?;
    let cpu = CpuOptions {
        threads: options.threads,
        kv_blocks,
        max_model_len: context,
        precision: options.precision,
        cache: options.kv_cache_dtype,
    };
    let shape = options.lora.is_some().then(|| spec.clone());
    let backend = CpuBackend::new(spec, weights, cpu)?;
    let file = path.to_owned();
    let reopen: Reopen = Box::new(move || {
        let LoadedModel { spec, weights, .. } = load(&file).map_err(|e| e.to_string())?;
        let backend = CpuBackend::new(spec, weights, cpu).map_err(|e| e.to_string())?;
        Ok(Box::new(backend))
    });
    let info = crate::backend::Backend::info(&backend).clone();
    let card = ModelCard {
        name: served_name(options, name, path),
        created: now,
        template_overhead: template.as_ref().map_or(0, |t| template_overhead(t, &tokenizer)),
    };
    tracing::info!(
        model = card.name,
        path = %path.display(),
        device = info.device,
        kv_blocks,
        kv_tokens = kv_blocks * BLOCK_TOKENS,
        kv_mib = kv_blocks * block_bytes / (1024 * 1024),
        chat_template = template.is_some(),
        "model opened"
    );
    let name = OnceCell::new();
    let tiers = tiers(options, path, &backend, &name)?;
    let transfer = transfer(options, path, &backend, &name)?;
    let speculation = match &options.speculative {
        None => None,
        Some(config) => {
            let draft = draft_backend(config, options, &tokenizer, info.vocab, kv_blocks, context)?;
            Some(Speculation::new(config, draft).map_err(EngineError::Speculative)?)
        }
    };
    let adapters = match (&options.lora, shape) {
        (Some(lora), Some(spec)) => {
            Some(Adapters::open(spec, &card.name, lora.clone(), now).map_err(EngineError::Lora)?)
        }
        _ => None,
    };
    let parts = EngineParts {
        backend: Box::new(backend),
        tokenizer,
        template,
        card,
        tiers,
        transfer,
        speculation,
        reopen: Some(reopen),
        adapters,
    };
    let engine = Engine::start(
        parts,
        EngineConfig {
            step: StepLimits { tokens: options.step_tokens, sequences: options.max_sequences },
            max_model_len: options.max_model_len,
            prefix_cache: options.enable_prefix_cache,
            max_waiting: options.max_waiting,
            step_timeout: options.step_timeout,
        },
    )?;
    if let Some(share) = followed {
        engine.follow_blocks(share);
    }
    if engine.max_model_len() < context {
        let served = engine.max_model_len();
        tracing::warn!(
            served,
            model = context,
            "the context is cut to what the KV cache holds; enlarge kv_cache for more"
        );
    }
    Ok(engine)
}

/// The tiers below the KV cache. A tier without the prefix cache would never be read.
fn tiers(
    options: &EngineOptions,
    model: &Path,
    backend: &dyn Backend,
    name: &OnceCell<[u8; 32]>,
) -> Result<Tiers, EngineError> {
    let received = options.kv_transfer.as_ref().map_or(0, |transfer| transfer.bytes);
    let wanted = options.kv_offloading_bytes > 0 || options.kv_disk.is_some() || received > 0;
    if wanted && !options.enable_prefix_cache {
        let message = "tiers below it need the prefix cache: enable it, or leave kv_offloading, kv_disk and \
                       kv_transfer out";
        return Err(EngineError::KvCache(message.into()));
    }
    let block = backend.info().block_bytes;
    fits_memory("kv_offloading", options.kv_offloading_bytes, memory::total())?;
    fits_memory("kv_transfer", received, memory::total())?;
    // What other engines have computed comes through memory.
    let in_memory = options.kv_offloading_bytes.max(received);
    let ram = match usize::try_from(in_memory / block as u64).unwrap_or(usize::MAX) {
        0 if in_memory > 0 => {
            let bytes = in_memory;
            let message = format!("kv_offloading of {bytes} bytes holds no block: one takes {block} bytes");
            return Err(EngineError::KvCache(message));
        }
        0 => None,
        blocks => Some(RamTier::new(blocks)),
    };
    let open =
        |disk: &KvDisk| Disk::open(disk, named(model, backend, name)?, block).map_err(EngineError::from);
    Ok(Tiers { ram, disk: options.kv_disk.as_ref().map(open).transpose()? })
}

/// Refuses blocks in memory that this machine, or what it gives to the process, can never hold: they
/// would come one by one until the process is killed.
fn fits_memory(option: &str, bytes: u64, memory: Option<u64>) -> Result<(), EngineError> {
    let Some(memory) = memory.filter(|memory| bytes > *memory) else { return Ok(()) };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Err(EngineError::KvCache(format!(
        "{option} of {bytes} bytes ({:.1} GiB) is more than the {memory} bytes ({:.1} GiB) of memory that there are \
         here; lower --{}-size",
        gib(bytes),
        gib(memory),
        option.replace('_', "-"),
    )))
}

/// How blocks go to and come from other engines.
fn transfer(
    options: &EngineOptions,
    model: &Path,
    backend: &dyn Backend,
    name: &OnceCell<[u8; 32]>,
) -> Result<Option<Arc<Transfer>>, EngineError> {
    let Some(wanted) = &options.kv_transfer else { return Ok(None) };
    let upstream = Upstream::to(options.mtls.as_ref(), &[Component::Engine]);
    let (name, block) = (named(model, backend, name)?, backend.info().block_bytes);
    let transfer = Transfer::new(wanted.clone(), name, block, upstream, options.hop_token.clone());
    Ok(Some(Arc::new(transfer)))
}

/// The model's fingerprint, read once.
fn named(model: &Path, backend: &dyn Backend, name: &OnceCell<[u8; 32]>) -> Result<[u8; 32], EngineError> {
    if let Some(name) = name.get() {
        return Ok(*name);
    }
    let read = fingerprint(model, &backend.layout()).map_err(|error| {
        EngineError::KvCache(format!("the model's files cannot be read for kv_disk or kv_transfer: {error}"))
    })?;
    Ok(*name.get_or_init(|| read))
}

/// The template with the forms of calls and reasoning that the options name.
fn read_as(template: ChatTemplate, options: &EngineOptions) -> ChatTemplate {
    let template = match options.tool_call_parser {
        ToolCallParser::Auto => template,
        ToolCallParser::Hermes => template.calling(ToolFormat::Hermes),
        ToolCallParser::Llama3Json => template.calling(ToolFormat::Llama3),
        ToolCallParser::Mistral => template.calling(ToolFormat::Mistral),
    };
    match options.reasoning_parser {
        ReasoningParser::Auto => template,
        ReasoningParser::None => template.reasoning(None),
        ReasoningParser::Qwen3 => template.reasoning(Some(ReasoningFormat::Qwen3)),
        ReasoningParser::DeepseekR1 => template.reasoning(Some(ReasoningFormat::DeepSeekR1)),
    }
}

/// Opens the draft model, if there is one: its vocabulary must be the model's own, since its guesses
/// are token ids.
fn draft_backend(
    config: &SpeculativeConfig,
    options: &EngineOptions,
    tokenizer: &Tokenizer,
    vocab: usize,
    kv_blocks: usize,
    context: usize,
) -> Result<Option<Box<dyn crate::backend::Backend>>, EngineError> {
    let SpeculativeConfig::DraftModel { model, .. } = config else { return Ok(None) };
    let LoadedModel { spec, weights, tokenizer_source, special, .. } = load(&local_path(model)?)?;
    let theirs = Tokenizer::build(&tokenizer_source, &special)?;
    let tokens = tokenizer.vocab_size();
    let differs = (0..tokens as u32).find(|id| tokenizer.bytes(*id) != theirs.bytes(*id));
    if theirs.vocab_size() != tokens || spec.vocab != vocab || differs.is_some() {
        let mine = differs.map_or(String::new(), |id| format!(", and the token {id} is another"));
        return Err(EngineError::Speculative(format!(
            "the draft model `{model}` has another vocabulary: {} tokens and {} logits instead of {tokens} and \
             {vocab}{mine}; give a model of the same family",
            theirs.vocab_size(),
            spec.vocab,
        )));
    }
    let context = context.min(spec.max_context);
    let options = CpuOptions {
        threads: options.threads,
        kv_blocks,
        max_model_len: context,
        precision: options.precision,
        cache: options.kv_cache_dtype,
    };
    Ok(Some(Box::new(CpuBackend::new(spec, weights, options)?)))
}

/// The file or folder that a model's URI names.
pub fn local_path(uri: &str) -> Result<PathBuf, EngineError> {
    let bad = |problem: &str| EngineError::ModelUri { uri: uri.to_owned(), problem: problem.to_owned() };
    if uri.is_empty() {
        return Err(bad("it is empty"));
    }
    let Some((scheme, rest)) = uri.split_once("://") else { return Ok(PathBuf::from(uri)) };
    if scheme != "file" {
        return Err(bad("only files on this machine can be opened"));
    }
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(bad("`file://` needs an absolute path, as in file:///models/m.gguf"));
    }
    percent_decode(path)
        .map(PathBuf::from)
        .ok_or_else(|| bad("it has a `%` that two hexadecimal digits do not follow"))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

pub(crate) fn served_name(options: &EngineOptions, own: Option<String>, path: &Path) -> String {
    let stem = || path.file_stem().map(|s| s.to_string_lossy().into_owned());
    options.served_model_name.clone().or(own).or_else(stem).unwrap_or_else(|| "model".to_owned())
}

/// Blocks of the KV cache. `most` is what can be in use at once; `available` tells the free memory.
pub(crate) fn blocks(
    wanted: KvCache,
    block_bytes: usize,
    most: usize,
    available: impl FnOnce() -> Option<u64>,
) -> Result<usize, EngineError> {
    const GIB: u64 = 1024 * 1024 * 1024;
    let in_bytes = |bytes: u64| usize::try_from(bytes / block_bytes as u64).unwrap_or(usize::MAX);
    let unknown =
        || EngineError::KvCache("the free memory is not known here; give kv_cache in bytes or blocks".into());
    let blocks = match wanted {
        KvCache::Blocks(blocks) => blocks,
        KvCache::Bytes(bytes) => in_bytes(bytes),
        KvCache::Fraction(share) if share > 0.0 && share <= 1.0 => {
            in_bytes((available().ok_or_else(unknown)? as f64 * share) as u64)
        }
        KvCache::Fraction(share) => {
            return Err(EngineError::KvCache(format!(
                "the fraction must be above 0 and at most 1, and it is {share}"
            )));
        }
        KvCache::Auto => in_bytes(available().map_or(GIB, |free| (free / 4).min(GIB))).min(most),
    };
    if blocks == 0 {
        let message =
            format!("it holds no block: one block of {BLOCK_TOKENS} tokens takes {block_bytes} bytes");
        return Err(EngineError::KvCache(message));
    }
    Ok(blocks)
}

/// Tokens that the template adds to a prompt, whatever the messages: measured on an empty one, with
/// and without a tool.
fn template_overhead(template: &ChatTemplate, tokenizer: &Tokenizer) -> u64 {
    let messages = [Message::text("user", "")];
    let tool = [serde_json::json!({"type": "function", "function": {"name": "f"}})];
    let size = |tools| {
        let prompt = Prompt { messages: &messages, tools, add_generation_prompt: true, ..Prompt::default() };
        let text = template.render(&prompt, &Zoned::now()).ok()?;
        tokenizer.encode(&text, false).ok().map(|tokens| tokens.len() as u64)
    };
    size(None).max(size(Some(&tool))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_files_or_say_why_not() {
        let path = |uri| local_path(uri).map_err(|e| e.to_string());
        assert_eq!(path("m.gguf"), Ok("m.gguf".into()));
        assert_eq!(path("/a b/m.gguf"), Ok("/a b/m.gguf".into()));
        assert_eq!(path("file:///a%20b/m.gguf"), Ok("/a b/m.gguf".into()));
        assert_eq!(path("file://localhost/m.gguf"), Ok("/m.gguf".into()));
        insta::assert_snapshot!(path("hf://org/model").unwrap_err(), @"the model `hf://org/model` cannot be opened: only files on this machine can be opened; give file:// and an absolute path, or a path");
        insta::assert_snapshot!(path("file://m.gguf").unwrap_err(), @"the model `file://m.gguf` cannot be opened: `file://` needs an absolute path, as in file:///models/m.gguf; give file:// and an absolute path, or a path");
        insta::assert_snapshot!(path("file:///a%2").unwrap_err(), @"the model `file:///a%2` cannot be opened: it has a `%` that two hexadecimal digits do not follow; give file:// and an absolute path, or a path");
        insta::assert_snapshot!(path("").unwrap_err(), @"the model `` cannot be opened: it is empty; give file:// and an absolute path, or a path");
    }

    #[test]
    fn the_cache_has_the_size_that_was_asked_for() {
        let size =
            |kv| blocks(kv, 1024 * 1024, 100_000, || Some(8 * 1024 * 1024 * 1024)).map_err(|e| e.to_string());
        assert_eq!(size(KvCache::Auto), Ok(1024), "1 GiB");
        assert_eq!(blocks(KvCache::Auto, 1024 * 1024, 64, || None).unwrap(), 64, "no more than can be used");
        assert_eq!(
            blocks(KvCache::Auto, 1024, 100_000, || Some(4096 * 100)).unwrap(),
            100,
            "a quarter of little"
        );
        assert_eq!(size(KvCache::Blocks(7)), Ok(7));
        assert_eq!(size(KvCache::Bytes(5 * 1024 * 1024 + 9)), Ok(5));
        assert_eq!(size(KvCache::Fraction(0.5)), Ok(4096));
        insta::assert_snapshot!(size(KvCache::Fraction(1.5)).unwrap_err(), @"kv_cache: the fraction must be above 0 and at most 1, and it is 1.5");
        insta::assert_snapshot!(size(KvCache::Bytes(10)).unwrap_err(), @"kv_cache: it holds no block: one block of 16 tokens takes 1048576 bytes");
        insta::assert_snapshot!(blocks(KvCache::Fraction(0.1), 1, 1, || None).unwrap_err(), @"kv_cache: the free memory is not known here; give kv_cache in bytes or blocks");
    }
}
