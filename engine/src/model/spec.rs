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
