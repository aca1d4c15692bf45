//! Prompts that stand before their answers.

use serde_json::Map;
use strata_wire::chat::{Content, FinishReason, Message};
use strata_wire::completion::CompletionLogprobs;

use super::answer;
use super::completions::{Head, note_logprob};
use crate::runtime::{Piece, PieceToken};
use crate::sampling::ScoredToken;
use crate::tokenizer::Tokenizer;

/// The text of the last message, where it is of this role: the answer goes on with it.
pub(super) fn last_message(messages: &[Message], role: &str) -> String {
    let last = messages.last().filter(|message| message.role == role);
    match last.and_then(|message| message.content.as_ref()) {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
    }
}

/// What is told of a piece. Where the prompt alone is wanted, the one token that comes of reading it is
/// not.
pub(super) fn told(head: &Head, piece: Piece) -> Piece {
    if !head.prompt_only {
        return piece;
    }
    let finish = piece.finish.map(|reason| match reason {
        FinishReason::Abort => FinishReason::Abort,
        _ => FinishReason::Length,
    });
    Piece { choice: piece.choice, text: String::new(), token: None, finish, stop: None }
}

/// The log probabilities of an echoed prompt, and then those of its answer.
pub(super) fn logprobs(
    head: &Head,
    prompt: usize,
    scored: &[ScoredToken],
    tokenizer: &Tokenizer,
    answer: CompletionLogprobs,
) -> CompletionLogprobs {
    let (top, by_id) = (head.logprobs.unwrap_or(0), head.tokens.by_id);
    let mut list = CompletionLogprobs::default();
    let mut chars = 0;
    if let Some(first) = head.prompts[prompt].first() {
        list.tokens.push(answer::token_name(*first, tokenizer, by_id));
        list.token_logprobs.push(None);
        list.top_logprobs.get_or_insert_default().push(Map::new());
        list.text_offset.push(0);
        chars += tokenizer.text(*first).chars().count();
    }
    for token in scored {
        let mut logprobs = token.logprobs.clone();
        logprobs.top.truncate(top);
        let piece = PieceToken { id: token.token, logprobs: Some(logprobs) };
        note_logprob(&mut list, &piece, tokenizer, chars, by_id);
        chars += tokenizer.text(token.token).chars().count();
    }
    list.tokens.extend(answer.tokens);
    list.token_logprobs.extend(answer.token_logprobs);
    list.top_logprobs.get_or_insert_default().extend(answer.top_logprobs.unwrap_or_default());
    list.text_offset.extend(answer.text_offset.into_iter().map(|offset| offset + chars));
    list
}
