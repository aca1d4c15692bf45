//! From a GGUF file's keys to the network's shape.

use super::model::Opened;
use super::{GgufError, Value};
use crate::model::load::LoadError;
use crate::model::rope::{LongRope, Yarn};
use crate::model::spec::{
    Activation, ExpertsSpec, LayerSpec, MAX_HEAD_DIM, MAX_LAYERS, ModelSpec, Rope, RopeLayout, Rotation,
};
use crate::model::vectors::{Embedding, Pooling};
use crate::tensor::ParameterSource;

/// The values of `general.architecture` that can be run.
const ARCHITECTURES: &[&str] =
    &["llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "smollm3"];
/// Divisors of the rotary frequencies, for Llama 3's scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same for Phi-3: up to its first context, and beyond.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

impl Opened<'_> {
    /// The network's shape.
    pub(super) fn spec(&self) -> Result<ModelSpec, LoadError> {
        let bad = |source| self.bad(source);
        let architecture = self.keys.string("general.architecture").map_err(bad)?;
        if !ARCHITECTURES.contains(&architecture) {
            return Err(LoadError::UnknownArchitecture {
                path: self.path.into(),
                architecture: architecture.to_owned(),
                supported: ARCHITECTURES,
            });
        }
        let keys = Scoped { file: self, architecture };
        let hidden = keys.size("embedding_length")?;
        let heads = keys.size("attention.head_count")?;
        let layers = keys.size("block_count")?;
        self.check_layers(architecture, layers)?;
        let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(hidden / heads.max(1));
        let value_dim = keys.optional_size("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            let reason =
                format!("heads with {head_dim} numbers a key but {value_dim} a value are not supported");
            return Err(self.unsupported(reason));
        }
        let dims = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
        if dims > head_dim.min(MAX_HEAD_DIM) {
            return Err(self.unsupported(format!("{dims} of a head's {head_dim} numbers cannot be rotated")));
        }
        let embedding = self.info("token_embd.weight")?;
        let vocab = embedding.dims.get(1).copied().unwrap_or(0);
        if let Some(told) = keys.optional_size("vocab_size")?.filter(|told| *told != vocab) {
            return Err(self.unsupported(format!(
                "`{architecture}.vocab_size` is {told}, and `token_embd.weight` has {vocab} tokens; convert the model \
                 again"
            )));
        }
        let gemma = matches!(architecture, "gemma2" | "gemma3");
        let cap = |key: &str, default: Option<f32>| match keys.float(key) {
            Ok(None) => Ok(default.filter(|_| architecture == "gemma2")),
            other => other.map(|cap| cap.filter(|_| gemma)),
        };
        let experts = keys.experts()?;
        let rope = keys.rope(dims)?;
        let local_rope = match architecture {
            "gemma3" => {
                let theta = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
                Some(Rope::plain(theta, rope.layout, dims))
            }
            _ => None,
        };
        // The files do not say what divides the queries: of Gemma's largest models it is not the head.
        let scaled_by = match (architecture, layers) {
            ("gemma2", 46) | ("gemma3", 62) => hidden / heads.max(1),
            _ => head_dim,
        };
        let spec = ModelSpec {
            architecture: architecture.to_owned(),
            vocab,
            hidden,
            layers,
            heads,
            kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate: keys.size("feed_forward_length")?,
            norm_eps: self
                .keys
                .float(&format!("{architecture}.attention.layer_norm_rms_epsilon"))
                .map_err(bad)?,
            rope,
            local_rope,
            max_context: keys.size("context_length")?,
            tied_embeddings: !self.tensors.contains_key("output.weight"),
            qkv_bias: architecture == "qwen2" || self.tensors.contains_key("blk.0.attn_q.bias"),
            qk_norm: matches!(architecture, "qwen3" | "qwen3moe" | "gemma3"),
            per_layer: keys.per_layer(layers.min(MAX_LAYERS), experts.is_some())?,
            post_norms: gemma,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            embedding_scale: gemma.then(|| (hidden as f64).sqrt() as f32),
            attention_scale: gemma.then(|| (scaled_by as f64).powf(-0.5) as f32),
            attention_softcap: cap("attn_logit_softcapping", Some(50.0))?,
            logit_softcap: cap("final_logit_softcapping", Some(30.0))?,
            experts,
        };
        spec.check().map_err(|reason| self.unsupported(reason))?;
        Ok(spec)
    }

    /// Refuses a file with more layers than it says: run without them, the model writes rubbish.
    fn check_layers(&self, architecture: &str, layers: usize) -> Result<(), LoadError> {
        let layer = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
        let last = self.tensors.keys().filter_map(|name| Some((layer(name)?, name))).max();
        match last {
            Some((last, name)) if last >= layers => Err(self.unsupported(format!(
                "`{architecture}.block_count` is {layers}, and there is a tensor `{name}`, of layer {} of the model; \
                 convert it again",
                last.saturating_add(1)
            ))),
            _ => Ok(()),
        }
    }

    /// How the rows become a text's vector, in a file that is meant for that.
    pub(super) fn embedding(&self, architecture: &str) -> Result<Option<Embedding>, LoadError> {
        let key = "pooling_type";
        let pooling = match (Scoped { file: self, architecture }).optional_size(key)? {
            None | Some(0) => return Ok(None),
            Some(1) => Pooling::Mean,
            Some(2) => Pooling::First,
            Some(3) => Pooling::Last,
            Some(other) => {
                return Err(self.unsupported(format!(
                    "`{architecture}.{key}` is {other}; 1 (mean), 2 (first) and 3 (last) are supported, ranking \
                     heads only in safetensors"
                )));
            }
        };
        Ok(Some(Embedding { pooling, normalise: true }))
    }

    fn bad(&self, source: GgufError) -> LoadError {
        LoadError::Gguf { path: self.path.into(), source }
    }

    fn unsupported(&self, reason: String) -> LoadError {
        LoadError::Unsupported { path: self.path.into(), reason }
    }
}

/// The keys of the file's architecture.
struct Scoped<'a> {
    file: &'a Opened<'a>,
    architecture: &'a str,
}

impl Scoped<'_> {
    fn size(&self, key: &str) -> Result<usize, LoadError> {
        let key = format!("{}.{key}", self.architecture);
        self.file.keys.size(&key).map_err(|e| self.file.bad(e))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let key = format!("{}.{key}", self.architecture);
        self.file.keys.optional_size(&key).map_err(|e| self.file.bad(e))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let key = format!("{}.{key}", self.architecture);
        self.file.keys.optional_float(&key).map_err(|e| self.file.bad(e))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.file.keys.0.get(&format!("{}.{key}", self.architecture))
    }

    fn experts(&self) -> Result<Option<ExpertsSpec>, LoadError> {
        let Some(count) = self.optional_size("expert_count")?.filter(|count| *count > 0) else {
            return Ok(None);
        };
        let intermediate = match self.architecture {
            "llama" => self.size("feed_forward_length")?,
            "qwen3moe" => self.size("expert_feed_forward_length")?,
            other => {
                return Err(self.file.unsupported(format!("experts in `{other}` models are not supported")));
            }
        };
        Ok(Some(ExpertsSpec { count, used: self.size("expert_used_count")?, intermediate, normalise: true }))
    }

    /// In what each layer differs.
    fn per_layer(&self, layers: usize, experts: bool) -> Result<Vec<LayerSpec>, LoadError> {
        let window = self.optional_size("attention.sliding_window")?.filter(|n| *n > 0);
        let gemma3 = self.architecture == "gemma3";
        let period = match (self.value("attention.sliding_window_pattern"), self.architecture) {
            (Some(Value::Array(_)) | None, "gemma2") => 2,
            (Some(Value::Array(_)) | None, "gemma3") => 6,
            (Some(Value::Array(_)) | None, _) => 0,
            (Some(_), _) => self.optional_size("attention.sliding_window_pattern")?.unwrap_or(0),
        };
        let is_sliding = |index: usize| match self.value("attention.sliding_window_pattern") {
            Some(Value::Array(flags)) => flags.get(index).and_then(Value::as_bool).unwrap_or(true),
            // The last of each period sees everything; without a period all layers are alike.
            _ => !(index + 1).is_multiple_of(period),
        };
        let layer = |index: usize| {
            let sliding = window.is_some() && is_sliding(index);
            // SmolLM3's files do not say which layers have no positions: it is every fourth.
            let unrotated = self.architecture == "smollm3" && (index + 1).is_multiple_of(4);
            let rotation = match (unrotated, gemma3 && sliding) {
                (true, _) => Rotation::None,
                (_, true) => Rotation::Local,
                _ => Rotation::Global,
            };
            LayerSpec { window: window.filter(|_| sliding), rotation, experts }
        };
        Ok((0..layers).map(layer).collect())
    }

    fn rope(&self, dims: usize) -> Result<Rope, LoadError> {
        let interleaved = matches!(self.architecture, "llama" | "smollm3");
        let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::Halves };
        let theta = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let plain = Rope::plain(theta, layout, dims);
        let list = |name: &str| Ok::<_, LoadError>(self.file.vector(name, dims / 2)?.into_vec());
        if self.file.has(ROPE_FACTORS) {
            return Ok(Rope { factors: list(ROPE_FACTORS)?, ..plain });
        }
        if self.file.has(LONG_FACTORS) {
            let beyond = self.size("rope.scaling.original_context_length")?;
            let long = Some(LongRope { beyond, factors: list(LONG_FACTORS)? });
            let magnitude = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            return Ok(Rope { factors: list(SHORT_FACTORS)?, magnitude, long, ..plain });
        }
        let factor = self.float("rope.scaling.factor")?;
        match self.value("rope.scaling.type").and_then(Value::as_str) {
            None | Some("none") => Ok(plain),
            Some("linear") => {
                Ok(Rope { factors: factor.map_or_else(Vec::new, |f| vec![f; dims / 2]), ..plain })
            }
            Some("yarn") => {
                let yarn = Yarn {
                    factor: f64::from(factor.unwrap_or(1.0)),
                    context: self.size("rope.scaling.original_context_length")? as f64,
                    fast: self.float("rope.scaling.yarn_beta_fast")?.map_or(Yarn::FAST, f64::from),
                    slow: self.float("rope.scaling.yarn_beta_slow")?.map_or(Yarn::SLOW, f64::from),
                    whole: true,
                };
                let times = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
                let magnitude = Yarn::magnitude(yarn.factor) as f32 * times;
                Ok(Rope { factors: yarn.factors(f64::from(theta), dims), magnitude, ..plain })
            }
            Some(other) => Err(self.file.unsupported(format!(
                "rotary scaling of the type `{other}` is not supported; `linear`, `yarn`, Llama 3's and Phi-3's are"
            ))),
        }
    }
}
