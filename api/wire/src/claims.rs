//! Where the byte blocks of a prompt's canonical text end among its tokens.
//!
//! The canonical text is made of the request's body, the tokens of what the chat template makes of it.
//! Both hold the messages' texts in the same order, so these are looked for in the rendered prompt one
//! after the other; the first place where one can stand is never behind the one where it does stand, so
//! whatever is found makes the counts lower than they are and never higher.

use crate::defaults::BLOCK_BYTES;
use crate::prefix::{BlockHash, Passage, Prefix};

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

/// The claims of a prompt with this prefix and these passages, which was rendered as `rendered` and whose
/// tokens end at `ends` in it. Blocks that hold no token are left out.
pub fn claims(prefix: &Prefix, passages: &[Passage<'_>], rendered: &str, ends: &[usize]) -> Vec<Claim> {
    let laid = lay(passages, rendered);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::with_passages;

    #[test]
    fn what_cannot_be_found_claims_no_more_than_what_stands_before_it() {
        let (known, other) = ("k".repeat(600), "o".repeat(600));
        let body = serde_json::json!({"model": "m", "messages": [
            {"role": "system", "content": known}, {"role": "user", "content": other}]})
        .to_string();
        let (prefix, passages) = with_passages("", body.as_bytes()).unwrap();
        let rendered = format!("<s>{known}</s><u>changed</u>");
        let ends: Vec<usize> = (1..=rendered.len()).collect();
        let tokens: Vec<u32> =
            claims(&prefix, &passages, &rendered, &ends).iter().map(|claim| claim.tokens).collect();
        // Canonical: `system`, a separator, the text.
        assert_eq!(tokens, [256 - 7 + 3, 512 - 7 + 3, 603, 603]);
    }
}
