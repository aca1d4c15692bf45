//! Where the byte blocks of a prompt's canonical text end among its tokens.
//!
//! The canonical text is made of the request's body, the tokens of what the chat template makes of it.
//! Both hold the messages' texts in the same order, so these are looked for in the rendered prompt one
//! after the other; the first place where one can stand is never behind the one where it does stand, so
//! whatever is found makes the counts lower than they are and never higher.

use strata_wire::defaults::BLOCK_BYTES;
use strata_wire::prefix::{self, BlockHash, Passage};

use crate::tokenizer::Tokenizer;

/// Texts that may be missing in the rendered prompt before the rest is not looked for: each costs a
/// pass over it.
const MAX_MISSES: usize = 8;

/// A byte block of a request, and the tokens of its prompt that lie inside the text up to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The byte block.
    pub hash: BlockHash,
    /// Tokens, from the prompt's first.
    pub tokens: u32,
}

/// The claims of a request's body, whose prompt was rendered as `rendered` and read as `tokens`. Blocks
/// that hold no token are left out, and so are those behind another of as many tokens: they say nothing
/// more.
pub fn claims(scope: &str, body: &[u8], rendered: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Vec<Claim> {
    let Some((prefix, passages)) = prefix::with_passages(scope, body) else { return Vec::new() };
    let ends = token_ends(rendered, tokens, tokenizer);
    let laid = lay(&passages, rendered);
    let claim = |(i, hash): (usize, &BlockHash)| {
        let end = rendered_end(&laid, (i + 1) * BLOCK_BYTES);
        Claim { hash: *hash, tokens: ends.partition_point(|e| *e <= end) as u32 }
    };
    prefix.blocks.iter().enumerate().map(claim).filter(|claim| claim.tokens > 0).collect()
}

/// A passage that was found in the rendered prompt.
struct Laid {
    canonical: usize,
    rendered: usize,
    len: usize,
}

fn lay(passages: &[Passage<'_>], rendered: &str) -> Vec<Laid> {
    let (mut laid, mut from, mut misses) = (Vec::new(), 0, 0);
    for passage in passages {
        // Templates strip contents.
        let text = passage.text.trim();
        let lead = passage.text.len() - passage.text.trim_start().len();
        if text.is_empty() {
            continue;
        }
        if let Some(at) = rendered[from..].find(text) {
            laid.push(Laid { canonical: passage.at + lead, rendered: from + at, len: text.len() });
            from += at + text.len();
        } else {
            misses += 1;
            if misses == MAX_MISSES {
                break;
            }
        }
    }
    laid
}

/// The bytes of the rendered prompt that stand for the first `end` of the canonical text.
fn rendered_end(laid: &[Laid], end: usize) -> usize {
    let before = laid.partition_point(|passage| passage.canonical < end);
    let last = before.checked_sub(1).map(|i| &laid[i]);
    last.map_or(0, |passage| passage.rendered + (end - passage.canonical).min(passage.len))
}

/// Where each token ends in the text, as long as their bytes are the text's own; a tokenizer that
/// changes the text ends the list.
fn token_ends(text: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::with_capacity(tokens.len()), 0);
    for &token in tokens {
        let bytes = tokenizer.bytes(token);
        let rest = &text.as_bytes()[at..];
        at += match bytes {
            [_, ..] if rest.starts_with(bytes) => bytes.len(),
            // What the tokenizer puts before a text.
            _ if at == 0 && tokenizer.is_special(token) => 0,
            [b' ', own @ ..] if at == 0 && rest.starts_with(own) => own.len(),
            _ => break,
        };
        ends.push(at);
    }
    ends
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::load::{GgufTokenizer, SpecialTokens, TokenizerSource};

    /// A token for each byte, written as GPT-2 writes them, and one for `<s>`.
    fn bytes_tokenizer() -> Tokenizer {
        let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let hidden = |b: u8| (0..b).filter(|o| !visible(*o)).count() as u32;
        let written =
            |b: u8| if visible(b) { char::from(b) } else { char::from_u32(256 + hidden(b)).unwrap() };
        let mut tokens: Vec<String> = (0..=255u8).map(|b| written(b).to_string()).collect();
        tokens.push("<s>".into());
        let mut token_types = vec![1; 256];
        token_types.push(3);
        let (model, pre) = ("gpt2".into(), "gpt-2".into());
        let source = GgufTokenizer { model, pre, tokens, token_types, ..GgufTokenizer::default() };
        let special = SpecialTokens { bos: Some(256), eos: vec![], add_bos: true, add_eos: false };
        Tokenizer::build(&TokenizerSource::Gguf(source), &special).unwrap()
    }

    fn render(messages: &[(&str, &str)]) -> String {
        let turn = |(role, text): &(&str, &str)| ["<|", role, "|>", text.trim(), "<|end|>"].concat();
        messages.iter().map(turn).collect()
    }

    fn body(messages: &[(&str, &str)]) -> String {
        let turn = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
        json!({"model": "m", "messages": messages.iter().map(turn).collect::<Vec<_>>()}).to_string()
    }

    fn of(messages: &[(&str, &str)]) -> Vec<Claim> {
        let tokenizer = bytes_tokenizer();
        let rendered = render(messages);
        let tokens = tokenizer.encode(&rendered, false).unwrap();
        claims("s", body(messages).as_bytes(), &rendered, &tokens, &tokenizer)
    }

    #[test]
    fn a_block_counts_the_tokens_inside_its_text() {
        let system = "a".repeat(600);
        // Canonical: `system`, a separator, the text; rendered: `<|system|>`, the text.
        let found: Vec<u32> =
            of(&[("system", &system), ("user", "hello")]).iter().map(|c| c.tokens).collect();
        assert_eq!(found, [256 - 7 + 10, 512 - 7 + 10]);
        let spaced = format!("  {system}");
        let found: Vec<u32> = of(&[("system", &spaced)]).iter().map(|c| c.tokens).collect();
        assert_eq!(found, [256 - 9 + 10, 512 - 9 + 10]);
    }

    #[test]
    fn a_beginning_that_the_tokenizer_adds_is_inside() {
        let tokenizer = bytes_tokenizer();
        let text = "b".repeat(300);
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokens.len(), 301);
        let body = json!({"model": "m", "prompt": text}).to_string();
        let found = claims("s", body.as_bytes(), &text, &tokens, &tokenizer);
        assert_eq!(found.iter().map(|c| c.tokens).collect::<Vec<_>>(), [257]);
        let other = claims("s", body.as_bytes(), &text, &[300, 301, 302], &tokenizer);
        assert_eq!(other, [], "tokens that are not of this text claim nothing");
    }

    proptest! {
        /// Of two conversations that share a beginning, a shared byte block claims only shared tokens.
        #[test]
        fn shared_blocks_claim_shared_tokens(
            shared in proptest::collection::vec("[ab<>|sy]{0,300}", 1..4),
            a in "[a-c ]{0,300}", b in "[a-c ]{0,300}",
        ) {
            let with = |tail: &str| {
                let mut messages: Vec<(String, String)> =
                    shared.iter().map(|text| ("user".to_owned(), text.clone())).collect();
                messages.push(("user".into(), tail.to_owned()));
                messages
            };
            let (a, b) = (with(&a), with(&b));
            let pairs = |m: &[(String, String)]| -> Vec<(String, String)> { m.to_vec() };
            let (pa, pb) = (pairs(&a), pairs(&b));
            let view = |m: &'_ [(String, String)]| -> Vec<(&'static str, String)> {
                m.iter().map(|(_, text)| ("user", text.clone())).collect()
            };
            let (va, vb) = (view(&pa), view(&pb));
            let ra: Vec<(&str, &str)> = va.iter().map(|(r, t)| (*r, t.as_str())).collect();
            let rb: Vec<(&str, &str)> = vb.iter().map(|(r, t)| (*r, t.as_str())).collect();
            let (ta, tb) = (render(&ra), render(&rb));
            let same = ta.bytes().zip(tb.bytes()).take_while(|(x, y)| x == y).count() as u32;
            let (ca, cb) = (of(&ra), of(&rb));
            for claim in &ca {
                if cb.iter().any(|other| other.hash == claim.hash) {
                    prop_assert!(claim.tokens <= same, "{} of {same}", claim.tokens);
                }
            }
            prop_assert!(ca.windows(2).all(|w| w[0].tokens <= w[1].tokens));
        }
    }
}
