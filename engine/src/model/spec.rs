//! The network's shape, independent of the file format it came from. A backend interprets a
//! [`ModelSpec`]; an architecture of the Llama family is a set of its flags, not code of its own.

/// A decoder-only transformer of the Llama family.
#[derive(Clone, Debug, PartialEq)]
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
    /// Rotary embedding.
    pub rope: Rope,
    /// Longest context that the model was made for.
    pub max_context: usize,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Whether query, key and value projections add a bias (Qwen2).
    pub qkv_bias: bool,
    /// Whether query and key heads are normalised before rotation (Qwen3).
    pub qk_norm: bool,
    /// Attention looks back this many tokens at most (Mistral).
    pub sliding_window: Option<usize>,
}

/// How positions are rotated into queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How the two halves of a pair lie in a head.
    pub layout: RopeLayout,
    /// Divides each frequency; Llama 3's scaling is expressed so. Empty means all ones.
    pub factors: Vec<f32>,
}

/// Order of the rotated pairs in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// (0, 1), (2, 3), …: GGUF's `llama` tensors are permuted to this order.
    Interleaved,
    /// (0, d/2), (1, d/2 + 1), …: Hugging Face's order.
    Halves,
}

/// No model has a dimension beyond this; a larger one in a file is damage.
const MAX_DIMENSION: usize = 1 << 24;

impl ModelSpec {
    /// Says in words what about the shape cannot be run, so that a backend may rely on the rest: every
    /// dimension is at least one and small enough that two of them multiply, heads divide evenly into
    /// groups, a head has an even width, and the scalars are finite and positive.
    pub fn check(&self) -> Result<(), String> {
        let dimensions = [
            ("vocabulary size", self.vocab),
            ("hidden size", self.hidden),
            ("number of layers", self.layers),
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
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads do not share {} key and value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if self.heads * self.head_dim > MAX_DIMENSION {
            return Err(format!("{} heads of {} are too wide", self.heads, self.head_dim));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head width {} is odd, so it has no pairs to rotate", self.head_dim));
        }
        if !self.rope.factors.is_empty() && self.rope.factors.len() != self.head_dim / 2 {
            let (have, want) = (self.rope.factors.len(), self.head_dim / 2);
            return Err(format!("{have} rotary factors were given, expected {want}"));
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !positive(self.norm_eps) || !positive(self.rope.theta) {
            let (eps, theta) = (self.norm_eps, self.rope.theta);
            return Err(format!("norm epsilon {eps} and rotary base {theta} must be positive"));
        }
        if !self.rope.factors.iter().all(|f| positive(*f)) {
            return Err("a rotary factor is not a positive number".to_owned());
        }
        Ok(())
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
            rope: Rope { theta: 10_000.0, layout: RopeLayout::Halves, factors: Vec::new() },
            max_context: 512,
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
        }
    }
}
