//! `config.json`: from the parameters of a transformers class to a [`ModelSpec`].

use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;
use super::rope::{self, RopeParameters};
use crate::model::spec::{ModelSpec, Rope, RopeLayout};

/// The classes that can be run.
pub(super) const ARCHITECTURES: &[&str] =
    &["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];

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
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    sliding_window: Window,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_act: Option<String>,
    quantization_config: Option<Value>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<OneOrMany>,
}

/// Absent and null differ: the first is the class's default.
#[derive(Clone, Copy, Debug, Default)]
enum Window {
    #[default]
    Absent,
    Given(Option<usize>),
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Window, D::Error> {
    Option::deserialize(deserializer).map(Window::Given)
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
    /// The network's shape.
    pub(super) fn spec(&self) -> Result<ModelSpec, Refusal> {
        let architecture = self.architectures.first().map_or("", String::as_str);
        if !ARCHITECTURES.contains(&architecture) {
            return Err(Refusal::Architecture(architecture.to_owned()));
        }
        if let Some(method) = &self.quantization_config {
            let method = method.get("quant_method").and_then(Value::as_str).unwrap_or("of unknown method");
            let reason = format!(
                "weights quantised by `{method}` are not supported; use the unquantised model or a GGUF"
            );
            return Err(Refusal::Unsupported(reason));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(Refusal::Unsupported(format!(
                "the activation `{act}` is not supported, only `silu`"
            )));
        }
        let need = |value: Option<usize>, key| value.ok_or(CheckpointError::MissingKey(key));
        let hidden = need(self.hidden_size, "hidden_size")?;
        let heads = need(self.num_attention_heads, "num_attention_heads")?;
        let head_dim = match (self.head_dim, architecture) {
            (Some(dim), _) => dim,
            (None, "Qwen3ForCausalLM") => 128,
            (None, _) => hidden / heads.max(1),
        };
        let max_context = need(self.max_position_embeddings, "max_position_embeddings")?;
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = parameters.and_then(|p| p.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let spec = ModelSpec {
            architecture: architecture.to_owned(),
            vocab: need(self.vocab_size, "vocab_size")?,
            hidden,
            layers: need(self.num_hidden_layers, "num_hidden_layers")?,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            intermediate: need(self.intermediate_size, "intermediate_size")?,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope: Rope {
                theta: theta as f32,
                layout: RopeLayout::Halves,
                factors: rope::factors(parameters, theta, head_dim).map_err(Refusal::Unsupported)?,
            },
            max_context,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: architecture == "Qwen2ForCausalLM" || self.attention_bias.unwrap_or(false),
            qk_norm: architecture == "Qwen3ForCausalLM",
            sliding_window: self.window(architecture)?,
        };
        spec.check().map_err(Refusal::Unsupported)?;
        Ok(spec)
    }

    /// How far attention looks back, the same in all layers.
    fn window(&self, architecture: &str) -> Result<Option<usize>, Refusal> {
        /// What `MistralConfig` takes when the key is absent.
        const MISTRAL_DEFAULT: usize = 4096;
        let given = match self.sliding_window {
            Window::Given(window) => window,
            Window::Absent => (architecture == "MistralForCausalLM").then_some(MISTRAL_DEFAULT),
        };
        let window = match architecture {
            "MistralForCausalLM" => given,
            "LlamaForCausalLM" => None,
            _ => given.filter(|_| self.use_sliding_window == Some(true)),
        };
        let mixed = match &self.layer_types {
            Some(types) => types.iter().any(|t| t == "full_attention"),
            None => architecture != "MistralForCausalLM" && self.max_window_layers != Some(0),
        };
        match window {
            Some(0) => Err(Refusal::Unsupported("a sliding window of 0 tokens sees nothing".to_owned())),
            Some(_) if mixed => Err(Refusal::Unsupported(
                "layers with and without a sliding window in one model are not supported".to_owned(),
            )),
            window => Ok(window),
        }
    }
}
