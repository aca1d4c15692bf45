//! What is seen of one streamed answer. Pure: times come in as arguments.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// Reads the chunks of one completion or chat completion.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    first: Option<Duration>,
    last: Duration,
    gaps: Vec<Duration>,
    usage: Option<Usage>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    /// When the first text came.
    pub(crate) first: Duration,
    /// When the last came.
    pub(crate) last: Duration,
    /// Times between pieces of text.
    pub(crate) gaps: Vec<Duration>,
    /// Tokens, as the server counts them.
    pub(crate) usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Tokens of the prompt that the server had in its cache, where it says so.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning_content")]
    reasoning: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

impl Choice {
    /// Whether something was generated: the chunk that only opens a chat answer, and the one that only
    /// says why it ended, are no tokens.
    fn says_something(&self) -> bool {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        some(&self.text)
            || self.delta.as_ref().is_some_and(|delta| {
                some(&delta.content)
                    || some(&delta.reasoning)
                    || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
            })
    }
}

impl Answer {
    /// Takes one event's data, which came at this time after the request was sent.
    pub(crate) fn chunk(&mut self, data: &str, at: Duration) -> Result<(), String> {
        if data.trim() == strata_wire::sse::DONE {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|e| format!("a chunk of the answer is not understood: {e}"))?;
        if let Some(error) = chunk.error {
            return Err(format!("in the stream: {}", message(&error)));
        }
        // With continuous usage each chunk has it, and the last is the whole.
        self.usage = chunk.usage.or(self.usage);
        if chunk.choices.iter().any(Choice::says_something) {
            match self.first {
                None => self.first = Some(at),
                Some(_) => self.gaps.push(at.saturating_sub(self.last)),
            }
            self.last = at;
        }
        Ok(())
    }

    /// The answer, now that its stream has ended, or why it is none.
    pub(crate) fn end(self) -> Result<Seen, String> {
        let usage = self.usage.ok_or("the answer ended without `usage`, by which tokens are counted")?;
        let first = self.first.ok_or("the answer has no text")?;
        Ok(Seen { first, last: self.last, gaps: self.gaps, usage })
    }
}

/// The message of an OpenAI error object, or the object itself.
pub(crate) fn message(error: &Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    inner.get("message").and_then(Value::as_str).map_or_else(|| inner.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[(u64, &str)]) -> Result<Seen, String> {
        let mut answer = Answer::default();
        for (at, data) in chunks {
            answer.chunk(data, Duration::from_millis(*at))?;
        }
        answer.end()
    }

    #[test]
    fn times_are_those_of_text_and_tokens_those_of_usage() {
        let seen = read(&[
            (5, r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#),
            (20, r#"{"choices":[{"delta":{"content":"Two tokens"}}]}"#),
            (50, r#"{"choices":[{"delta":{"content":"!"}}],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#),
            (60, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#),
            (
                61,
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}"#,
            ),
            (62, "[DONE]"),
        ])
        .unwrap();
        assert_eq!((seen.first.as_millis(), seen.last.as_millis()), (20, 50));
        assert_eq!(seen.gaps, [Duration::from_millis(30)]);
        assert_eq!((seen.usage.completion_tokens, seen.usage.cached_tokens()), (4, 8));
    }

    #[test]
    fn an_answer_without_usage_or_text_is_none() {
        assert_eq!(
            read(&[(1, r#"{"choices":[{"text":"a"}]}"#)]).unwrap_err(),
            "the answer ended without `usage`, by which tokens are counted"
        );
        assert_eq!(read(&[(1, r#"{"choices":[],"usage":{}}"#)]).unwrap_err(), "the answer has no text");
    }

    #[test]
    fn an_error_in_the_stream_is_an_error() {
        let error = read(&[(1, r#"{"error":{"message":"out of blocks","code":500}}"#)]).unwrap_err();
        assert_eq!(error, "in the stream: out of blocks");
        assert!(read(&[(1, "{")]).unwrap_err().starts_with("a chunk of the answer is not understood"));
    }
}
