//! The model's vocabulary as the grammar compiler needs it.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::tokenizer::Tokenizer;

/// A trie over the bytes of all tokens. Special tokens stand apart: no text spells one, only a grammar
/// that names it. Ends of answers are not in it: whether an answer may end is asked of the grammar.
pub(super) fn trie(tokenizer: &Tokenizer, size: usize) -> TokEnv {
    let words: Vec<Vec<u8>> = (0..size as u32)
        .map(|id| {
            let bytes = tokenizer.bytes(id);
            if tokenizer.is_special(id) && !bytes.is_empty() {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        })
        .collect();
    let info = TokRxInfo::new(size as u32, INVALID_TOKEN);
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
}
