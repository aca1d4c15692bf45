//! What a checkpoint says about text: the raw material of a tokenizer, and which tokens are special.

use std::path::PathBuf;

/// What a tokenizer is built from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The vocabulary is inside the GGUF file.
    Gguf(GgufTokenizer),
    /// The vocabulary is a file of the `tokenizers` library beside the weights.
    HuggingFace {
        /// `tokenizer.json`; it may be missing, which is an error only for who needs text.
        tokenizer_json: PathBuf,
        /// `tokenizer_config.json`, or null when there is none.
        tokenizer_config: serde_json::Value,
    },
}

/// The keys `tokenizer.ggml.*` of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The algorithm: `gpt2` (byte-level BPE) or `llama` (SentencePiece-like BPE with scores).
    pub model: String,
    /// Which pre-tokenizer splits the text, for `gpt2`: `smollm`, `llama-bpe`, `qwen2`, …
    pub pre: String,
    /// The token of each id.
    pub tokens: Vec<String>,
    /// The kind of each id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Empty
    /// when the file has none.
    pub token_types: Vec<i32>,
    /// Merges in order of rank, each `left right`, for `gpt2`.
    pub merges: Vec<String>,
    /// The score of each id, for `llama`.
    pub scores: Vec<f32>,
    /// Whether a space is put before the text, for `llama`; the default is the algorithm's.
    pub add_space_prefix: Option<bool>,
    /// The id for text that no token covers.
    pub unknown: Option<u32>,
}

/// Tokens that begin and end a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Each of these ends a sequence.
    pub eos: Vec<u32>,
    /// Whether plain text (not a chat template's output) gets `bos` put before it.
    pub add_bos: bool,
    /// Whether text that is read, not continued, gets the first of `eos` put after it.
    pub add_eos: bool,
}
