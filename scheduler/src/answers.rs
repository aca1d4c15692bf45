//! Learns from answers on their way back how long a model's answers are. The text passes unread but for the
//! number of its tokens: what the usage in it says, or else how many pieces it came in.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use memchr::memmem;

use crate::pick::Lengths;
use crate::registry::Pool;
use crate::stream::Chunks;
use crate::wishes::Wishes;

/// The percentile that is expected of an answer, for models that do not say.
const PERCENTILE: u8 = 75;
/// The end of an answer that is not streamed is kept so far, for its usage is there.
const TAIL: usize = 1024;
/// Pieces of a stream that are no token: the role that begins it, and the reason that ends it.
const NO_TOKENS: u64 = 2;

/// How long a model's answers are.
#[derive(Debug, Default)]
pub struct Answers {
    lengths: Mutex<Lengths>,
    /// What is expected, in tokens; 0 while nothing is.
    expected: AtomicU32,
}

impl Answers {
    /// Tokens that are expected of an answer whose request sets no limit.
    pub fn expected(&self) -> Option<f64> {
        let tokens = self.expected.load(Ordering::Relaxed);
        (tokens > 0).then(|| f64::from(tokens))
    }

    /// An answer had so many tokens, of `limit` that it might have. `percentile` is what is to be expected
    /// from now on.
    pub fn learn(&self, tokens: u64, limit: Option<u64>, percentile: u8) {
        let mut lengths = self.lengths.lock().unwrap_or_else(PoisonError::into_inner);
        lengths.observe(tokens, limit.is_some_and(|limit| tokens >= limit), self.expected());
        let expected = lengths.percentile(percentile).map_or(0, |tokens| tokens.round() as u32);
        self.expected.store(expected, Ordering::Relaxed);
    }
}

/// Counts the tokens of one answer.
#[derive(Debug)]
struct Counter {
    /// The member of its usage that has the number, with the colon.
    member: &'static [u8],
    events: bool,
    said: Option<u64>,
    pieces: u64,
    tail: Vec<u8>,
}

impl Counter {
    /// Of an answer of this route. `None` of one that generates nothing.
    fn of(path: &str, events: bool) -> Option<Self> {
        let member: &[u8] = match path {
            "/v1/chat/completions" | "/v1/completions" => b"\"completion_tokens\":",
            "/v1/responses" => b"\"output_tokens\":",
            _ => return None,
        };
        Some(Self { member, events, said: None, pieces: 0, tail: Vec::new() })
    }

    fn see(&mut self, chunk: &[u8]) {
        if self.events {
            self.pieces += memmem::find_iter(chunk, b"\n\n").count() as u64;
            self.said = said(chunk, self.member).or(self.said);
        } else {
            let from = chunk.len().saturating_sub(TAIL);
            let kept = self.tail.len().saturating_sub(TAIL - (chunk.len() - from));
            self.tail.drain(..kept);
            self.tail.extend_from_slice(&chunk[from..]);
        }
    }

    /// The number of tokens, once all has passed. Pieces are counted where each is a token: in chats and
    /// completions.
    fn tokens(&self) -> Option<u64> {
        if !self.events {
            return said(&self.tail, self.member);
        }
        let counts = self.member.starts_with(b"\"completion");
        // The last says that it is done.
        self.said.or_else(|| counts.then(|| self.pieces.saturating_sub(NO_TOKENS + 1)))
    }
}

/// The number behind this member, where it stands last.
fn said(text: &[u8], member: &[u8]) -> Option<u64> {
    let at = memmem::rfind(text, member)? + member.len();
    let rest = text[at..].trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// What is to be learnt of one answer.
pub(crate) struct Lesson {
    counter: Counter,
    pool: Arc<Pool>,
    limit: Option<u64>,
    percentile: u8,
}

impl Lesson {
    /// Of the answer to a request of this route. `None` where there is nothing to learn: several answers tell
    /// their lengths together.
    pub(crate) fn of(pool: &Arc<Pool>, path: &str, wishes: &Wishes, events: bool) -> Option<Self> {
        let percentile = pool.rules.load().affinity.output_percentile.unwrap_or(PERCENTILE);
        if wishes.several || percentile == 0 {
            return None;
        }
        let counter = Counter::of(path, events)?;
        Some(Self { counter, pool: Arc::clone(pool), limit: wishes.limit, percentile })
    }

    /// A part of the answer.
    pub(crate) fn see(&mut self, chunk: &[u8]) {
        self.counter.see(chunk);
    }

    /// That was all of it.
    pub(crate) fn learn(&self) {
        if let Some(tokens) = self.counter.tokens() {
            self.pool.answers.learn(tokens, self.limit, self.percentile);
        }
    }

    /// The same parts, of which it learns as they pass. An answer that breaks off teaches nothing.
    pub(crate) fn attend(self, rest: Chunks) -> Chunks {
        Box::pin(Learning { lesson: Some(self), rest })
    }
}

struct Learning {
    lesson: Option<Lesson>,
    rest: Chunks,
}

impl Stream for Learning {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.rest.as_mut().poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => {
                if let Some(lesson) = &mut self.lesson {
                    lesson.see(chunk);
                }
            }
            Poll::Ready(Some(Err(_))) => self.lesson = None,
            Poll::Ready(None) => {
                if let Some(lesson) = self.lesson.take() {
                    lesson.learn();
                }
            }
            Poll::Pending => {}
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(path: &str, events: bool, chunks: &[&str]) -> Option<u64> {
        let mut counter = Counter::of(path, events)?;
        for chunk in chunks {
            counter.see(chunk.as_bytes());
        }
        counter.tokens()
    }

    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn usage_says_how_long_an_answer_is() {
        let usage = r#"{"choices":[{"message":{"content":"\"completion_tokens\": 9"}}],"usage":{"completion_tokens": 31,"total_tokens":40}}"#;
        assert_eq!(tokens(CHAT, false, &[usage]), Some(31));
        for cut in 1..usage.len() {
            assert_eq!(tokens(CHAT, false, &[&usage[..cut], &usage[cut..]]), Some(31), "cut at {cut}");
        }
        let long = format!("{}{usage}", "x".repeat(5000));
        assert_eq!(tokens(CHAT, false, &[&long]), Some(31));
        assert_eq!(
            tokens("/v1/responses", false, &[r#"{"usage":{"input_tokens":3,"output_tokens":12}}"#]),
            Some(12)
        );
        assert_eq!(tokens("/v1/embeddings", false, &[usage]), None);
        assert_eq!(tokens(CHAT, false, &["{}"]), None);
    }

    #[test]
    fn without_usage_the_pieces_of_a_stream_are_counted() {
        let piece = "data: {\"choices\":[]}\n\n";
        let two = piece.repeat(2);
        let stream = [piece, &two, piece, piece, "data: [DONE]\n\n"];
        assert_eq!(tokens(CHAT, true, &stream), Some(3));
        let said = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\n";
        assert_eq!(tokens(CHAT, true, &[piece, said, "data: [DONE]\n\n"]), Some(7));
        assert_eq!(tokens("/v1/responses", true, &stream), None);
    }

    #[test]
    fn a_model_whose_answers_are_known_has_an_expectation() {
        let answers = Answers::default();
        (0..15).for_each(|_| answers.learn(200, None, 75));
        assert_eq!(answers.expected(), None);
        answers.learn(200, None, 75);
        assert!(answers.expected().is_some_and(|tokens| (200.0..240.0).contains(&tokens)));
        answers.learn(200, None, 0);
        assert_eq!(answers.expected(), None);
    }
}
