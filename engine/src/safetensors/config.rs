//! `config.json`: from the parameters of a transformers class to a [`ModelSpec`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;
use super::family::{Ending, Family};
use super::pooling;
use super::rope::{self, Contexts, RopeParameters};
use crate::model::spec::{Activation, ExpertsSpec, MAX_LAYERS, ModelSpec, Rope};

/// Why a configuration is refused.
pub(super) enum Refusal {
    Architecture(String),
    Unsupported(String),
    Bad(CheckpointError),
}

impl From<CheckpointError> for Refusal {
    fn from(error: CheckpointError) -> Self {
        Self::Bad(error)
    }
}

/// The keys that matter here, of those that transformers writes.
#[derive(Debug, Deserialize)]
#[allow(clippy::struct_field_names)] // They are the file's.
pub(super) struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    moe_intermediate_size: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    rope_local_base_freq: Option<f64>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    use_bidirectional_attention: Option<bool>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    attn_logit_softcapping: Member<f32>,
    #[serde(default, deserialize_with = "given")]
    final_logit_softcapping: Member<f32>,
    #[serde(default, deserialize_with = "given")]
    pub(super) sliding_window: Member<usize>,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<usize>,
    #[serde(alias = "_sliding_window_pattern")]
    pub(super) sliding_window_pattern: Option<usize>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) no_rope_layers: Option<Vec<u32>>,
    pub(super) no_rope_layer_interval: Option<usize>,
    #[serde(alias = "num_local_experts")]
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    norm_topk_prob: Option<bool>,
    pub(super) decoder_sparse_step: Option<usize>,
    pub(super) mlp_only_layers: Option<Vec<usize>>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    quantization_config: Option<Value>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<OneOrMany>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
}

/// Absent and null differ: the first is the class's default.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Member<T> {
    #[default]
    Absent,
    Given(Option<T>),
}

impl<T> Member<T> {
    pub(super) fn or(self, default: Option<T>) -> Option<T> {
        match self {
            Self::Absent => default,
            Self::Given(value) => value,
        }
    }
}

fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Member<T>, D::Error> {
    Option::deserialize(deserializer).map(Member::Given)
}

/// An id or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl Config {
    /// Which classes it is of, and what follows the last layer.
    pub(super) fn family(&self) -> Result<(Family, Ending), Refusal> {
        let architecture = self.architectures.first().map_or("", String::as_str);
        Family::of(architecture).ok_or_else(|| Refusal::Architecture(architecture.to_owned()))
    }

    /// The names of the classes that it scores.
    pub(super) fn labels(&self) -> Result<Vec<String>, Refusal> {
        pooling::labels(self.id2label.as_ref(), self.num_labels).map_err(Refusal::Unsupported)
    }

    /// The network's shape.
    pub(super) fn spec(&self, family: Family) -> Result<ModelSpec, Refusal> {
        if let Some(method) = &self.quantization_config {
            let method = method.get("quant_method").and_then(Value::as_str).unwrap_or("of unknown method");
            let reason = format!(
                "weights quantised by `{method}` are not supported; use the unquantised model or a GGUF"
            );
            return Err(Refusal::Unsupported(reason));
        }
        if self.use_bidirectional_attention == Some(true) {
            let reason = "a decoder whose tokens see those after them (`use_bidirectional_attention`) is not supported";
            return Err(Refusal::Unsupported(reason.to_owned()));
        }
        let need = |value: Option<usize>, key| value.ok_or(CheckpointError::MissingKey(key));
        let hidden = need(self.hidden_size, "hidden_size")?;
        let heads = need(self.num_attention_heads, "num_attention_heads")?;
        let head_dim = self.head_dim.or(family.head_dim()).unwrap_or(hidden / heads.max(1));
        let layers = need(self.num_hidden_layers, "num_hidden_layers")?;
        let gemma = family.is_gemma();
        let caps = family == Family::Gemma2;
        let per_layer = self.per_layer(family, layers.min(MAX_LAYERS)).map_err(Refusal::Unsupported)?;
        let (rope, local_rope) = self.ropes(family, head_dim).map_err(Refusal::Unsupported)?;
        let spec = ModelSpec {
            architecture: self.architectures.first().cloned().unwrap_or_default(),
            vocab: need(self.vocab_size, "vocab_size")?,
            hidden,
            layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            intermediate: need(self.intermediate_size, "intermediate_size")?,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope,
            local_rope,
            max_context: need(self.max_position_embeddings, "max_position_embeddings")?,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(gemma || family == Family::SmolLm3),
            qkv_bias: family == Family::Qwen2 || self.attention_bias.unwrap_or(false),
            qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3),
            post_norms: gemma,
            activation: self.activation(family)?,
            embedding_scale: gemma.then(|| (hidden as f64).sqrt() as f32),
            attention_scale: gemma.then(|| self.query_pre_attn_scalar.unwrap_or(256.0).powf(-0.5) as f32),
            attention_softcap: self.attn_logit_softcapping.or(caps.then_some(50.0)).filter(|_| gemma),
            logit_softcap: self.final_logit_softcapping.or(caps.then_some(30.0)).filter(|_| gemma),
            experts: self.experts(family)?,
            per_layer,
        };
        spec.check().map_err(Refusal::Unsupported)?;
        Ok(spec)
    }

    fn activation(&self, family: Family) -> Result<Activation, Refusal> {
        // Gemma's files keep an outdated `hidden_act` beside the key that counts.
        let gemma = family.is_gemma();
        let given = if gemma { &self.hidden_activation } else { &self.hidden_act };
        match given.as_deref() {
            None if gemma => Ok(Activation::GeluTanh),
            None | Some("silu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(other) => Err(Refusal::Unsupported(format!(
                "the activation `{other}` is not supported, only `silu` and `gelu_pytorch_tanh`"
            ))),
        }
    }

    fn experts(&self, family: Family) -> Result<Option<ExpertsSpec>, Refusal> {
        let width = match family {
            Family::Mixtral => self.intermediate_size.ok_or("intermediate_size"),
            Family::Qwen3Moe => self.moe_intermediate_size.ok_or("moe_intermediate_size"),
            _ => return Ok(None),
        };
        let need = |value: Option<usize>, key| value.ok_or(CheckpointError::MissingKey(key));
        Ok(Some(ExpertsSpec {
            count: need(self.num_experts, "num_experts")?,
            used: need(self.num_experts_per_tok, "num_experts_per_tok")?,
            intermediate: width.map_err(CheckpointError::MissingKey)?,
            normalise: family == Family::Mixtral || self.norm_topk_prob.unwrap_or(false),
        }))
    }

    /// The embedding of all layers, and of those with a window where that is another.
    fn ropes(&self, family: Family, head_dim: usize) -> Result<(Rope, Option<Rope>), String> {
        let all = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let global = all.and_then(|p| p.full_attention.as_deref()).or(all);
        let contexts = Contexts {
            longest: self.max_position_embeddings.unwrap_or(0),
            original: self.original_max_position_embeddings,
        };
        let partial =
            global.and_then(|p| p.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(1.0);
        let dims = (head_dim as f64 * partial) as usize;
        let theta = global.and_then(|p| p.rope_theta).or(self.rope_theta).unwrap_or(family.theta());
        let rope = rope::rope(global, theta, dims, contexts)?;
        if family != Family::Gemma3 {
            return Ok((rope, None));
        }
        let local = all.and_then(|p| p.sliding_attention.as_deref());
        let theta = local.and_then(|p| p.rope_theta).or(self.rope_local_base_freq).unwrap_or(10_000.0);
        Ok((rope, Some(rope::rope(local, theta, dims, contexts)?)))
    }
}
