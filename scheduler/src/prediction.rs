//! What an engine says that an answer took, and how what was thought of its cache compares with that. Pure.

use bytes::Bytes;
use serde::Deserialize;
use strata_wire::defaults::{BLOCK_BYTES, BLOCK_TOKENS};

/// Pieces of an answer that are kept until it ends: the usage, the `[DONE]` of a stream, and one that was cut.
const KEPT: usize = 3;
/// Bytes at the end of an answer in which its usage is looked for.
const LOOKED_AT: usize = 4096;
/// The member that holds it. A text cannot: there, quotes have a backslash before them.
const MEMBER: &[u8] = br#""usage":"#;

/// The tokens of one answer, as its engine counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the answer.
    pub completion: u64,
    /// Of the prompt those that were cached, where the engine says so.
    pub cached: Option<u64>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(alias = "output_tokens", default)]
    completion_tokens: u64,
    #[serde(alias = "input_tokens_details", default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// The last pieces of an answer as they passed. Nothing is copied or read before the answer ends.
#[derive(Debug, Default)]
pub struct Tail([Bytes; KEPT]);

impl Tail {
    /// A piece has passed.
    pub fn push(&mut self, piece: &Bytes) {
        if !piece.is_empty() {
            self.0.rotate_left(1);
            self.0[KEPT - 1] = piece.clone();
        }
    }

    /// What the engine said last of the tokens.
    pub fn usage(&self) -> Option<Usage> {
        let mut end = Vec::new();
        let whole: usize = self.0.iter().map(Bytes::len).sum();
        let mut before = whole.saturating_sub(LOOKED_AT);
        for piece in &self.0 {
            let skip = before.min(piece.len());
            before -= skip;
            end.extend_from_slice(&piece[skip..]);
        }
        // The last piece of a stream may have `null`.
        memchr::memmem::rfind_iter(&end, MEMBER).find_map(|at| read(&end[at + MEMBER.len()..]))
    }
}

/// The value that stands here, whatever follows it.
fn read(text: &[u8]) -> Option<Usage> {
    let said: Said = serde_json::Deserializer::from_slice(text).into_iter().next()?.ok()?;
    let cached = said.prompt_tokens_details.and_then(|details| details.cached_tokens);
    Some(Usage { prompt: said.prompt_tokens, completion: said.completion_tokens, cached })
}

/// What was thought of a replica's cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Tokens of the prompt that it was thought to have.
    pub tokens: f64,
    /// Bytes of the prompt's canonical text.
    pub bytes: usize,
}

/// How a prediction came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Right, to one block.
    Within,
    /// More was thought to be cached.
    Over,
    /// Less was.
    Under,
}

impl Outcome {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Within => "within_block",
            Self::Over => "over",
            Self::Under => "under",
        }
    }
}

impl Prediction {
    /// How it came out when so many of the prompt's tokens were cached. A block is what both sides count in:
    /// [`BLOCK_BYTES`] of this prompt in tokens, or [`BLOCK_TOKENS`] where these are more.
    pub fn judge(&self, prompt: u64, cached: u64) -> Outcome {
        let by_bytes = (BLOCK_BYTES as u64 * prompt) as f64 / self.bytes.max(1) as f64;
        let block = by_bytes.max(BLOCK_TOKENS as f64);
        let off = self.tokens - cached as f64;
        if off.abs() <= block {
            Outcome::Within
        } else if off > 0.0 {
            Outcome::Over
        } else {
            Outcome::Under
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(pieces: &[&str]) -> Option<Usage> {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.push(&Bytes::copy_from_slice(piece.as_bytes()));
        }
        tail.usage()
    }

    const USAGE: &str = r#"{"prompt_tokens":70,"total_tokens":74,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":64}}"#;
    const READ: Usage = Usage { prompt: 70, completion: 4, cached: Some(64) };

    #[test]
    fn what_an_engine_says_is_read_at_the_end() {
        let whole = format!(r#"{{"choices":[],"usage":{USAGE},"more":{{"a":[1]}}}}"#);
        assert_eq!(said(&[&whole]), Some(READ));
        let event = format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n");
        assert_eq!(said(&["data: {\"usage\":null}\n\n", &event, "data: [DONE]\n\n"]), Some(READ));
        let last = "data: {\"usage\": null}\n\n";
        assert_eq!(said(&[&event, last]), Some(READ), "the last that says something");
        let (begins, ends) = whole.split_at(40);
        assert_eq!(said(&[begins, ends]), Some(READ), "wherever it was cut");
        let long = "x".repeat(100_000);
        assert_eq!(said(&[&long, &whole]), Some(READ));
        assert_eq!(said(&[&whole, &long]), None, "no more than the end is looked at");
        let response =
            r#"{"usage":{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":0}}}"#;
        assert_eq!(said(&[response]), Some(Usage { prompt: 9, completion: 2, cached: Some(0) }));
        let vllm = r#"{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}}"#;
        assert_eq!(said(&[vllm]), Some(Usage { prompt: 9, completion: 2, cached: None }));
    }

    #[test]
    fn what_somebody_wrote_is_not_believed() {
        let text = serde_json::json!({"content": format!("\"usage\":{USAGE}")}).to_string();
        assert_eq!(said(&[&text]), None);
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["{\"usage\":\"none\"}"]), None);
    }

    #[test]
    fn a_prediction_is_right_to_one_block() {
        // 1000 bytes of 250 tokens: a block is 64.
        let thought = |tokens: f64| Prediction { tokens, bytes: 1000 }.judge(250, 128);
        assert_eq!([64.0, 128.0, 192.0].map(thought), [Outcome::Within; 3]);
        assert_eq!((thought(63.0), thought(193.0)), (Outcome::Under, Outcome::Over));
        let dense = |tokens: f64| Prediction { tokens, bytes: 100_000 }.judge(250, 128);
        assert_eq!((dense(144.0), dense(145.0)), (Outcome::Within, Outcome::Over), "an engine's own block");
    }

    proptest! {
        #[test]
        fn no_end_breaks_it(pieces in prop::collection::vec("[\\\\\"usage:{}0-9,null ]{0,40}", 0..6)) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let _ = said(&pieces);
        }

        #[test]
        fn more_thought_is_never_less_over(tokens in 0f64..1e6, more in 0f64..1e6, bytes: u16, prompt: u16, cached: u16) {
            let rank = |tokens| match (Prediction { tokens, bytes: bytes.into() }).judge(prompt.into(), cached.into()) {
                Outcome::Under => 0,
                Outcome::Within => 1,
                Outcome::Over => 2,
            };
            prop_assert!(rank(tokens) <= rank(tokens + more));
        }
    }
}
