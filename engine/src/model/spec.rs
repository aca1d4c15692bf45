//! The network's shape, independent of the file format it came from. A backend interprets a
//! [`ModelSpec`]; an architecture is a set of its flags, not code of its own.

use super::rope::positive;
pub use super::rope::{LongRope, Rope, RopeLayout};

/// A decoder-only transformer with RMS norms, rotary positions and gated feed-forward layers.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // Flags of an architecture, independent of each other.
pub struct ModelSpec {
    /// The architecture's name in its file, for messages.
    pub architecture: String,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; queries share them in groups.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding of the layers that say [`Rotation::Global`].
    pub rope: Rope,
    /// Rotary embedding of the layers that say [`Rotation::Local`] (Gemma 3's sliding layers).
    pub local_rope: Option<Rope>,
    /// Longest context that the model was made for.
    pub max_context: usize,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Whether query, key and value projections add a bias (Qwen2).
    pub qkv_bias: bool,
    /// Whether query and key heads are normalised before rotation (Qwen3).
    pub qk_norm: bool,
    /// In what the layers differ from each other, first to last, one for each of `layers`.
    pub per_layer: Vec<LayerSpec>,
    /// Whether attention's and the feed-forward layer's outputs are normalised too (Gemma 2 and 3).
    pub post_norms: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// Multiplies the embeddings (Gemma).
    pub embedding_scale: Option<f32>,
    /// Multiplies the products of queries and keys; none means `1 / √head_dim`.
    pub attention_scale: Option<f32>,
    /// Bounds attention's scores smoothly to this: `cap × tanh(score / cap)` (Gemma 2).
    pub attention_softcap: Option<f32>,
    /// The same for the logits.
    pub logit_softcap: Option<f32>,
    /// The mixture that layers with [`LayerSpec::experts`] have for a feed-forward layer.
    pub experts: Option<ExpertsSpec>,
}

/// In what one layer differs from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSpec {
    /// Attention looks back this many tokens at most, the token itself counted (Mistral).
    pub window: Option<usize>,
    /// How its queries and keys are rotated.
    pub rotation: Rotation,
    /// Whether its feed-forward layer is a mixture of experts.
    pub experts: bool,
}

/// Which rotary embedding a layer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// [`ModelSpec::rope`].
    #[default]
    Global,
    /// [`ModelSpec::local_rope`].
    Local,
    /// None: the layer sees no positions (every fourth of SmolLM3).
    None,
}

/// What a gated feed-forward layer does to its gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    #[default]
    Silu,
    /// GELU by its tanh approximation (Gemma).
    GeluTanh,
}

/// A mixture of experts: a router sends each token to the few of most weight, their outputs add up by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// How many there are.
    pub count: usize,
    /// How many work on a token.
    pub used: usize,
    /// Width of an expert's gated layer.
    pub intermediate: usize,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalise: bool,
}

/// No model has a dimension beyond this; a larger one in a file is damage.
const MAX_DIMENSION: usize = 1 << 24;
/// No model has more layers; a larger number in a file is damage.
pub(crate) const MAX_LAYERS: usize = 4096;
/// No model has wider heads; a larger number in a file is damage.
pub(crate) const MAX_HEAD_DIM: usize = 1 << 16;
/// No model has more experts in a layer; a larger number in a file is damage.
const MAX_EXPERTS: usize = 4096;

impl ModelSpec {
    /// Says in words what about the shape cannot be run, so that a backend may rely on the rest: every
    /// dimension is at least one and small enough that two of them multiply, heads divide evenly into
    /// groups, a head has an even width, and the scalars are finite and positive.
    pub fn check(&self) -> Result<(), String> {
        let dimensions = [
            ("vocabulary size", self.vocab),
            ("hidden size", self.hidden),
            ("number of heads", self.heads),
            ("number of key and value heads", self.kv_heads),
            ("head width", self.head_dim),
            ("feed-forward width", self.intermediate),
            ("longest context", self.max_context),
        ];
        for (name, value) in dimensions {
            if value == 0 || value > MAX_DIMENSION {
                return Err(format!("the {name} is {value}, expected 1 to {MAX_DIMENSION}"));
            }
        }
        if self.layers == 0 || self.layers > MAX_LAYERS || self.per_layer.len() != self.layers {
            return Err(format!("the number of layers is {}, expected 1 to {MAX_LAYERS}", self.layers));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads do not share {} key and value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if self.heads * self.head_dim > MAX_DIMENSION {
            return Err(format!("{} heads of {} are too wide", self.heads, self.head_dim));
        }
        if self.head_dim > MAX_HEAD_DIM {
            return Err(format!("the head width is {}, expected 1 to {MAX_HEAD_DIM}", self.head_dim));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head width {} is odd, so it has no pairs to rotate", self.head_dim));
        }
        self.rope.check(self.head_dim)?;
        if let Some(rope) = &self.local_rope {
            rope.check(self.head_dim)?;
        }
        if !positive(self.norm_eps) {
            return Err(format!("the norm epsilon {} must be positive", self.norm_eps));
        }
        let scalars = [
            ("embedding scale", self.embedding_scale),
            ("attention scale", self.attention_scale),
            ("soft cap of attention", self.attention_softcap),
            ("soft cap of the logits", self.logit_softcap),
        ];
        for (name, value) in scalars {
            if let Some(value) = value.filter(|x| !positive(*x)) {
                return Err(format!("the {name} is {value}, expected a positive number"));
            }
        }
        for (index, layer) in self.per_layer.iter().enumerate() {
            if layer.window == Some(0) {
                return Err("a sliding window of 0 tokens sees nothing".to_owned());
            }
            if layer.rotation == Rotation::Local && self.local_rope.is_none() {
                return Err(format!("layer {index} has no rotary embedding of its own"));
            }
            if layer.rotation == Rotation::None && self.qk_norm {
                return Err(format!("layer {index} normalises heads without rotating them"));
            }
            if layer.experts && self.experts.is_none() {
                return Err(format!("layer {index} has experts, but their number is not said"));
            }
        }
        self.experts.map_or(Ok(()), ExpertsSpec::check)
    }

    /// A model of two layers that runs in microseconds, for tests and dry runs with random weights: 4
    /// heads over 2 key and value heads, hidden size 64, context 512.
    pub fn tiny(vocab: usize) -> Self {
        Self {
            architecture: "llama".to_owned(),
            vocab,
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate: 96,
            norm_eps: 1e-5,
            rope: Rope::plain(10_000.0, RopeLayout::Halves, 16),
            local_rope: None,
            max_context: 512,
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
            per_layer: vec![LayerSpec::default(); 2],
            post_norms: false,
            activation: Activation::Silu,
            embedding_scale: None,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            experts: None,
        }
    }
}

impl ExpertsSpec {
    fn check(self) -> Result<(), String> {
        let Self { count, used, intermediate, .. } = self;
        if count == 0 || count > MAX_EXPERTS {
            return Err(format!("the number of experts is {count}, expected 1 to {MAX_EXPERTS}"));
        }
        if used == 0 || used > count {
            return Err(format!("{used} of {count} experts work on a token, expected 1 to {count}"));
        }
        if intermediate == 0 || intermediate > MAX_DIMENSION {
            return Err(format!("an expert's width is {intermediate}, expected 1 to {MAX_DIMENSION}"));
        }
        Ok(())
    }
}
