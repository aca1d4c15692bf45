//! The CPU backend.
//!
//! Quantised weights are repacked at start for products of bytes; other weights stay as the file stores
//! them and are turned into 32-bit floats a panel at a time. All sums have an order that depends on the
//! model alone. Hence a token's logits have the same bits alone or in a batch, in one chunk or several,
//! with a cached prefix or without, on one thread or many, and on every processor.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod cache;
mod codes;
mod element;
pub mod encoder;
mod experts;
mod float;
mod forward;
mod integer;
mod layer;
mod lines;
mod lora;
#[cfg(test)]
mod merged_tests;
mod pack;
mod pointwise;
mod product;
mod quantise;
pub mod roofline;
mod simd;
mod tanh;
mod team;
#[cfg(test)]
mod tests;
mod tiled;
mod unpack;
mod validate;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::num::NonZero;

use serde::{Deserialize, Serialize};

pub use self::element::CacheType;
use self::forward::{Activations, Model};
use self::simd::Level;
use self::team::Machine;
use super::{Backend, BackendError, BackendInfo, Logits, StepBatch};
use crate::lora::{AdapterId, LoraWeights};
use crate::model::spec::ModelSpec;
use crate::tensor::{Linear, Weights};

/// More threads than this are a mistake, and asking the system for them would take all its memory.
const MAX_THREADS: usize = 1024;

/// How much of the machine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads; 0 means all that the process may use.
    pub threads: usize,
    /// Blocks of the KV cache; see [`CpuBackend::block_bytes`] for what one costs.
    pub kv_blocks: usize,
    /// Longest context, at most the model's own.
    pub max_model_len: usize,
    /// How products are computed.
    pub precision: Precision,
    /// How keys and values are stored.
    pub cache: CacheType,
}

/// How products of quantised weights are computed. Either way a token's logits have the same bits alone
/// and in a batch; weights that are not quantised are multiplied in 32-bit floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Activations are rounded to signed bytes, 32 of them to a scale, and multiplied as integers.
    #[default]
    Int8,
    /// Weights are turned into 32-bit floats: many times slower, for comparison with a reference.
    Exact,
}

/// Executes steps on the processor.
pub struct CpuBackend {
    info: BackendInfo,
    model: Model,
    activations: Activations,
    machine: Machine,
    precision: Precision,
    products: u64,
}

impl CpuBackend {
    /// A backend for a model. The KV cache is reserved here, once; the system hands its pages out as
    /// they are first written.
    ///
    /// # Panics
    /// When `weights` are not those of `spec`, which no loader returns.
    pub fn new(spec: ModelSpec, weights: Weights, options: CpuOptions) -> Result<Self, BackendError> {
        Self::with_level(spec, weights, options, Level::detect())
    }

    /// A backend for a model that reads: [`Backend::forward`] returns the products with `head`, or
    /// without one the rows after the last norm, `hidden` wide, instead of logits.
    ///
    /// # Panics
    /// When `weights` are not those of `spec`, which no loader returns.
    pub fn reading(
        spec: ModelSpec,
        weights: Weights,
        head: Option<Linear>,
        options: CpuOptions,
    ) -> Result<Self, BackendError> {
        // The cap is the logits' own.
        let spec = ModelSpec { logit_softcap: None, ..spec };
        Self::with_head(spec, weights, head, options, Level::detect())
    }

    /// Bytes of one block of the KV cache over all layers, to decide how many to ask for.
    pub fn block_bytes(spec: &ModelSpec, cache: CacheType) -> usize {
        cache::block_bytes(spec, cache)
    }

    fn with_level(
        spec: ModelSpec,
        weights: Weights,
        options: CpuOptions,
        level: Level,
    ) -> Result<Self, BackendError> {
        let tied = || Linear { weight: weights.embedding.clone(), bias: None };
        let head = weights.output.clone().unwrap_or_else(tied);
        Self::with_head(spec, weights, Some(head), options, level)
    }

    fn with_head(
        spec: ModelSpec,
        weights: Weights,
        head: Option<Linear>,
        options: CpuOptions,
        level: Level,
    ) -> Result<Self, BackendError> {
        let failed = |message| BackendError::Device { backend: "cpu", message };
        spec.check().map_err(failed)?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            n if n > MAX_THREADS => {
                return Err(failed(format!("{n} threads were asked for, expected at most {MAX_THREADS}")));
            }
            n => n,
        };
        let mut machine = Machine::new(level, threads)
            .map_err(|e| failed(format!("{threads} threads cannot be started: {e}")))?;
        let info = BackendInfo {
            name: "cpu",
            device: format!("{}, {}, {threads} threads", processor(), level.name()),
            total_blocks: options.kv_blocks,
            block_bytes: cache::block_bytes(&spec, options.cache),
            vocab: spec.vocab,
            max_model_len: options.max_model_len.min(spec.max_context),
        };
        let cache = cache::Cache::new(&spec, options.cache, options.kv_blocks).ok_or_else(|| {
            let (blocks, bytes) = (options.kv_blocks, info.block_bytes);
            failed(format!("no memory for a KV cache of {blocks} blocks of {bytes} bytes; ask for fewer"))
        })?;
        let activations = Activations::new(&spec, info.max_model_len);
        let exact = options.precision == Precision::Exact;
        let model = Model::new(&mut machine, spec, weights, head, cache, exact).map_err(failed)?;
        Ok(Self { model, info, activations, machine, precision: options.precision, products: 0 })
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn forward_into(&mut self, step: &StepBatch, logits: &mut Logits) -> Result<(), BackendError> {
        validate::check(step, &self.info, self.model.loras())?;
        self.products += self.model.forward(&mut self.machine, &mut self.activations, step, logits);
        Ok(())
    }

    fn layout(&self) -> String {
        format!("{}-{:?}", self.model.cache().layout(), self.precision)
    }

    fn export_block(&self, block: u32, bytes: &mut Vec<u8>) {
        self.model.cache().export(block, bytes);
    }

    fn import_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let expected = self.info.block_bytes;
        if bytes.len() != expected {
            return Err(BackendError::BlockSize { expected, found: bytes.len() });
        }
        self.model.cache_mut().import(block, bytes);
        Ok(())
    }

    fn release_cache(&mut self) {
        // Cannot fail: there is nothing to reserve.
        self.model.replace_cache(0);
    }

    fn restore_cache(&mut self) -> Result<(), BackendError> {
        let blocks = self.info.total_blocks;
        if self.model.replace_cache(blocks) {
            return Ok(());
        }
        let message = format!("no memory for the KV cache of {blocks} blocks");
        Err(BackendError::Device { backend: "cpu", message })
    }

    fn load_adapter(&mut self, id: AdapterId, weights: &LoraWeights) -> Result<(), BackendError> {
        self.model
            .load_adapter(id, weights)
            .map_err(|message| BackendError::Device { backend: "cpu", message })
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.model.unload_adapter(id);
    }

    fn matrix_products(&self) -> u64 {
        self.products
    }
}

/// The processor's name, as far as the system tells.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.filter(|name| !name.is_empty()).unwrap_or(std::env::consts::ARCH).to_owned()
}
