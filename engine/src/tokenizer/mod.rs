//! Text to token ids and back, built from what the checkpoint says.

mod build;
mod detokenize;
mod pieces;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::Tokenizer as Inner;

pub use detokenize::Detokenizer;

use crate::model::load::{SpecialTokens, TokenizerSource};
use pieces::Pieces;

/// Why there is no tokenizer, or no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The algorithm is none that is known.
    #[error("the tokenizer model `{model}` is not supported; supported are gpt2 (byte-level BPE) and llama")]
    UnknownModel {
        /// Its name in the file.
        model: String,
    },
    /// The rule that splits text into words is none that is known; guessing would give wrong tokens.
    #[error("the pre-tokenizer `{pre}` is not supported; supported are {}", known.join(", "))]
    UnknownPreTokenizer {
        /// Its name in the file.
        pre: String,
        /// The names that are known.
        known: Vec<&'static str>,
    },
    /// The checkpoint's tokenizer is unusable.
    #[error("the tokenizer cannot be built: {0}")]
    Malformed(String),
    /// `tokenizer.json` cannot be read.
    #[error("cannot read the tokenizer {}: {message}", path.display())]
    Unreadable {
        /// Where it should be.
        path: std::path::PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A text could not be tokenized.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

/// A model's tokenizer. Shared by all requests.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    pieces: Pieces,
    special: SpecialTokens,
    /// Whether the tokenizer's own post-processor, not [`SpecialTokens::add_bos`], says what is put
    /// around plain text.
    post_processes: bool,
}

impl Tokenizer {
    /// Builds the tokenizer of a checkpoint.
    pub fn build(source: &TokenizerSource, special: &SpecialTokens) -> Result<Self, TokenizerError> {
        let (inner, kind) = match source {
            TokenizerSource::Gguf(gguf) => build::from_gguf(gguf)?,
            TokenizerSource::HuggingFace { tokenizer_json, .. } => build::from_file(tokenizer_json)?,
        };
        let pieces = Pieces::new(&inner, kind);
        if let Some(id) = special.bos.iter().chain(&special.eos).find(|id| **id as usize >= pieces.len()) {
            let size = pieces.len();
            let message =
                format!("token {id} begins or ends a text, and the vocabulary has ids below {size} only");
            return Err(TokenizerError::Malformed(message));
        }
        let post_processes = matches!(source, TokenizerSource::HuggingFace { .. });
        Ok(Self { inner, pieces, special: special.clone(), post_processes })
    }

    /// The tokens of a text. Special tokens that stand in it are recognised. With `add_special` the
    /// tokens that begin plain text for this model are put before it, and those that end it after it;
    /// a chat template's output has them already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        // A file can be read and still hold what the library panics over.
        let encode = || self.inner.encode_fast(text, add_special && self.post_processes);
        let encoding = catch_unwind(AssertUnwindSafe(encode))
            .map_err(|_| TokenizerError::Encode("the tokenizer library panicked".into()))?
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special
            && !self.post_processes
            && self.special.add_bos
            && let Some(bos) = self.special.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        if add_special
            && !self.post_processes
            && self.special.add_eos
            && let Some(eos) = self.special.eos.first()
            && ids.last() != Some(eos)
        {
            ids.push(*eos);
        }
        Ok(ids)
    }

    /// The tokens of two texts as one input with special tokens around and between them, and where the
    /// second text begins.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, usize), TokenizerError> {
        let encoding = self.inner.encode((first, second), self.post_processes);
        let encoding = encoding.map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let kinds = encoding.get_type_ids();
        let begin = kinds.iter().position(|kind| *kind == 1).unwrap_or(kinds.len());
        Ok((encoding.get_ids().to_vec(), begin))
    }

    /// The text of these tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&detokenizer.push(self, id));
        }
        text.push_str(&detokenizer.flush());
        text
    }

    /// The bytes that a token stands for: not always whole characters. Empty for ids beyond the
    /// vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// The token as text, for log probabilities; bytes that are no UTF-8 become U+FFFD.
    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    /// The token as it is written in the vocabulary.
    pub fn written(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// The special token of this text.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| self.is_special(*id))
    }

    /// The token that alone is this text.
    pub fn single_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Whether a token is special: part of the protocol, not of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// Whether text of this tokenizer begins with a space that is not part of it.
    pub(crate) fn strips_first_space(&self) -> bool {
        self.pieces.strips_first_space()
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Fewer tokens than this cannot cover so many bytes of text.
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        // Normalisation can shorten a text, though hardly to a quarter.
        let shrink = if self.inner.get_normalizer().is_some() { 4 } else { 1 };
        bytes / (shrink * self.pieces.longest().max(1))
    }

    /// Tokens that begin and end a sequence.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
}
