//! Assembles a tokenizer of the `tokenizers` library from a GGUF file's keys, or reads one.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner,
};

use super::TokenizerError;
use super::pieces::Spelling;
use crate::model::load::GgufTokenizer;

/// The kinds of tokens in a GGUF file.
mod kind {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
}

const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut into words before merging, for byte-level BPE.
#[derive(Clone, Copy)]
enum Words {
    Gpt2,
    /// Each digit by itself, then as GPT-2.
    Digits,
    Llama3,
    Qwen2,
}

const WORDS: &[(&str, Words)] = &[
    ("default", Words::Gpt2),
    ("gpt-2", Words::Gpt2),
    ("llama-bpe", Words::Llama3),
    ("llama3", Words::Llama3),
    ("qwen2", Words::Qwen2),
    ("smollm", Words::Digits),
];

pub(super) fn from_file(path: &Path) -> Result<(Inner, Spelling), TokenizerError> {
    let unreadable = |message: String| TokenizerError::Unreadable { path: path.into(), message };
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    // The library panics over some files that are not what it expects.
    let mut inner = std::panic::catch_unwind(|| Inner::from_bytes(bytes))
        .map_err(|_| unreadable("the tokenizer library panicked over it".into()))?
        .map_err(|e| unreadable(e.to_string()))?;
    // A file may carry the settings of its training; a prompt is never cut or padded.
    inner.with_truncation(None).map_err(|e| unreadable(e.to_string()))?;
    inner.with_padding(None);
    let decoder = serde_json::to_string(&inner.get_decoder()).map_err(|e| unreadable(e.to_string()))?;
    let spelling = if decoder.contains("\"ByteLevel\"") {
        Spelling::ByteLevel
    } else if decoder.contains("\"ByteFallback\"") || decoder.contains("\"Metaspace\"") {
        Spelling::SentencePiece {
            strips_first_space: decoder.contains("\"Strip\"")
                || decoder.contains("\"prepend_scheme\":\"always\""),
        }
    } else if decoder.contains("\"WordPiece\"") {
        Spelling::WordPiece
    } else {
        return Err(unreadable(
            "its decoder is neither byte-level nor SentencePiece's nor WordPiece's".into(),
        ));
    };
    Ok((inner, spelling))
}

pub(super) fn from_gguf(gguf: &GgufTokenizer) -> Result<(Inner, Spelling), TokenizerError> {
    if gguf.tokens.is_empty() {
        return Err(TokenizerError::Malformed("the file holds no tokens".into()));
    }
    let (mut inner, spelling) = match gguf.model.as_str() {
        "gpt2" => (byte_level(gguf)?, Spelling::ByteLevel),
        "llama" => sentence_piece(gguf)?,
        _ => return Err(TokenizerError::UnknownModel { model: gguf.model.clone() }),
    };
    let of_kind = |wanted: &'static [i32], special: bool| {
        gguf.tokens
            .iter()
            .zip(&gguf.token_types)
            .filter(move |(token, kind)| wanted.contains(kind) && !token.is_empty())
            .map(move |(token, _)| AddedToken::from(token.clone(), special).normalized(false))
            .collect::<Vec<_>>()
    };
    let added = inner
        .add_special_tokens(of_kind(&[kind::UNKNOWN, kind::CONTROL], true))
        .and_then(|_| inner.add_tokens(of_kind(&[kind::USER_DEFINED], false)));
    added.map_err(|e| TokenizerError::Malformed(e.to_string()))?;
    Ok((inner, spelling))
}

/// The vocabulary by text. Where a text stands twice, the lower id keeps it.
fn vocabulary(gguf: &GgufTokenizer) -> Vocab {
    let mut vocab = Vocab::default();
    for (id, token) in gguf.tokens.iter().enumerate() {
        let unused = gguf.token_types.get(id) == Some(&kind::UNUSED);
        vocab.entry(token.clone()).or_insert(id as u32);
        if unused {
            tracing::trace!(id, "the vocabulary has an unused token");
        }
    }
    vocab
}

fn byte_level(gguf: &GgufTokenizer) -> Result<Inner, TokenizerError> {
    let pre = if gguf.pre.is_empty() { "default" } else { gguf.pre.as_str() };
    let words = WORDS.iter().find(|(name, _)| *name == pre).map(|(_, words)| *words).ok_or_else(|| {
        TokenizerError::UnknownPreTokenizer {
            pre: pre.to_owned(),
            known: WORDS.iter().map(|w| w.0).collect(),
        }
    })?;
    let mut merges: Merges = Vec::with_capacity(gguf.merges.len());
    for (rank, merge) in gguf.merges.iter().enumerate() {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            TokenizerError::Malformed(format!(
                "merge {rank} is `{merge}`: expected two tokens with a space between"
            ))
        })?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(gguf), merges)
        .ignore_merges(matches!(words, Words::Llama3))
        .build()
        .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(split_words(words)?));
    if matches!(words, Words::Qwen2) {
        inner.with_normalizer(Some(NFC)).map_err(|e| TokenizerError::Malformed(e.to_string()))?;
    }
    Ok(inner)
}

fn split_words(words: Words) -> Result<PreTokenizerWrapper, TokenizerError> {
    let by = |pattern: &str| -> Result<PreTokenizerWrapper, TokenizerError> {
        let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
        Ok(PreTokenizers::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
    };
    let gpt2 = ByteLevel::new(false, true, true);
    match words {
        Words::Gpt2 => Ok(gpt2.into()),
        Words::Digits => Ok(PreTokenizers::new(vec![Digits::new(true).into(), gpt2.into()]).into()),
        Words::Llama3 => by(LLAMA3_WORDS),
        Words::Qwen2 => by(QWEN2_WORDS),
    }
}

fn sentence_piece(gguf: &GgufTokenizer) -> Result<(Inner, Spelling), TokenizerError> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(TokenizerError::Malformed(format!(
            "a `llama` vocabulary needs a score for each token: {} tokens, {} scores",
            gguf.tokens.len(),
            gguf.scores.len()
        )));
    }
    let vocab = vocabulary(gguf);
    let merges = merges_of_scores(gguf, &vocab);
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = gguf.unknown.and_then(|id| gguf.tokens.get(id as usize)) {
        builder = builder.unk_token(unknown.clone());
    }
    let mut inner = Inner::new(builder.build().map_err(|e| TokenizerError::Malformed(e.to_string()))?);
    let add_space = gguf.add_space_prefix.unwrap_or(true);
    let spaces = Replace::new(" ", "▁").map_err(|e| TokenizerError::Malformed(e.to_string()))?;
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if add_space {
        steps.push(Prepend::new("▁".into()).into());
    }
    steps.push(spaces.into());
    inner
        .with_normalizer(Some(Normalizers::new(steps)))
        .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
    Ok((inner, Spelling::SentencePiece { strips_first_space: add_space }))
}

/// SentencePiece joins the two neighbours whose union has the best score. As merges: every way to cut
/// a token into two tokens, in the order of the union's score.
fn merges_of_scores(gguf: &GgufTokenizer, vocab: &Vocab) -> Merges {
    let mut ranked: Vec<(f32, u32, u32, u32)> = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate() {
        if gguf.token_types.get(id).is_some_and(|k| *k == kind::CONTROL || *k == kind::UNKNOWN) {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (vocab.get(left), vocab.get(right)) {
                ranked.push((gguf.scores[id], id as u32, left, right));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    let text = |id: u32| gguf.tokens[id as usize].clone();
    ranked.into_iter().map(|(_, _, left, right)| (text(left), text(right))).collect()
}
