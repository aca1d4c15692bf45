//! Families of transformers classes: what they take for granted, and in what their layers differ.

use super::config::Config;
use crate::model::spec::{LayerSpec, Rotation};
use crate::tensor::{self, Names};

/// The classes that can be run; those of the same families without a head, or with one that scores
/// classes, too.
pub(super) const ARCHITECTURES: &[&str] = &[
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "SmolLM3ForCausalLM",
    "Gemma3ForConditionalGeneration",
];

/// What follows a class's last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Tokens,
    Classes,
    Nothing,
}

/// Classes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

impl Family {
    /// The family of a class, and what follows its last layer.
    pub(super) fn of(architecture: &str) -> Option<(Self, Ending)> {
        const ENDINGS: [(&str, Ending); 4] = [
            ("ForCausalLM", Ending::Tokens),
            ("ForConditionalGeneration", Ending::Tokens),
            ("ForSequenceClassification", Ending::Classes),
            ("Model", Ending::Nothing),
        ];
        let (name, ending) = ENDINGS
            .into_iter()
            .find_map(|(suffix, ending)| Some((architecture.strip_suffix(suffix)?, ending)))?;
        let family = match name {
            "Llama" => Self::Llama,
            "Mistral" => Self::Mistral,
            "Mixtral" => Self::Mixtral,
            "Qwen2" => Self::Qwen2,
            "Qwen3" => Self::Qwen3,
            "Qwen3Moe" => Self::Qwen3Moe,
            "Gemma2" => Self::Gemma2,
            "Gemma3" | "Gemma3Text" => Self::Gemma3,
            "Phi3" => Self::Phi3,
            "SmolLM3" => Self::SmolLm3,
            _ => return None,
        };
        Some((family, ending))
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// What its checkpoints call the parameters.
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Gemma2 | Self::Gemma3 => &tensor::HUGGING_FACE_GEMMA,
            Self::Mixtral => &tensor::HUGGING_FACE_MIXTRAL,
            _ => &tensor::HUGGING_FACE,
        }
    }

    /// The head width when the configuration says none; none is `hidden_size / num_attention_heads`.
    pub(super) fn head_dim(self) -> Option<usize> {
        match self {
            Self::Gemma2 | Self::Gemma3 => Some(256),
            Self::Qwen3 => Some(128),
            _ => None,
        }
    }

    /// The rotary base when the configuration says none.
    pub(super) fn theta(self) -> f64 {
        match self {
            Self::Gemma3 | Self::Mixtral => 1e6,
            Self::SmolLm3 => 2e6,
            _ => 1e4,
        }
    }
}

/// The window of `MistralConfig`, `Gemma2Config` and `Gemma3TextConfig` when the key is absent.
const DEFAULT_WINDOW: usize = 4096;

impl Config {
    /// In what each layer differs.
    pub(super) fn per_layer(&self, family: Family, layers: usize) -> Result<Vec<LayerSpec>, String> {
        let window = self.window(family);
        (0..layers)
            .map(|index| {
                let rotation = self.rotation(family, index);
                let sliding = window.is_some() && self.is_sliding(family, index, rotation)?;
                Ok(LayerSpec {
                    window: window.filter(|_| sliding),
                    rotation: if family == Family::Gemma3 && sliding { Rotation::Local } else { rotation },
                    experts: self.has_experts(family, index),
                })
            })
            .collect()
    }

    /// How far layers with a window look back.
    fn window(&self, family: Family) -> Option<usize> {
        let given = |default| self.sliding_window.or(default);
        match family {
            Family::Llama => None,
            Family::Mistral | Family::Gemma2 | Family::Gemma3 => given(Some(DEFAULT_WINDOW)),
            Family::Mixtral | Family::Phi3 => given(None),
            Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3 => {
                given(None).filter(|_| self.use_sliding_window == Some(true))
            }
        }
    }

    fn is_sliding(&self, family: Family, index: usize, rotation: Rotation) -> Result<bool, String> {
        // Qwen3-MoE's classes do not read the list.
        if let Some(types) = self.layer_types.as_ref().filter(|_| family != Family::Qwen3Moe) {
            return match types.get(index).map(String::as_str) {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                Some(other) => Err(format!("a layer of the type `{other}` is not supported")),
                None => Err(format!("`layer_types` has {} entries, layer {index} has none", types.len())),
            };
        }
        Ok(match family {
            Family::Qwen2 | Family::Qwen3 => index >= self.max_window_layers.unwrap_or(28),
            Family::Gemma2 => index.is_multiple_of(2),
            Family::Gemma3 => !(index + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(6)),
            Family::SmolLm3 => rotation == Rotation::None,
            _ => true,
        })
    }

    fn rotation(&self, family: Family, index: usize) -> Rotation {
        let rotated = match &self.no_rope_layers {
            _ if family != Family::SmolLm3 => true,
            // The list says 1 where there is a rotation, whatever its name.
            Some(list) => list.get(index).is_none_or(|has_rope| *has_rope != 0),
            None => !(index + 1).is_multiple_of(self.no_rope_layer_interval.unwrap_or(4)),
        };
        if rotated { Rotation::Global } else { Rotation::None }
    }

    fn has_experts(&self, family: Family, index: usize) -> bool {
        let listed = |list: &Option<Vec<usize>>| list.as_ref().is_some_and(|list| list.contains(&index));
        match family {
            Family::Mixtral => true,
            Family::Qwen3Moe => {
                let step = self.decoder_sparse_step.unwrap_or(1);
                !listed(&self.mlp_only_layers) && (index + 1).is_multiple_of(step)
            }
            _ => false,
        }
    }
}
