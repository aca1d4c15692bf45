//! Meters a stream of server-sent events and takes out of it what the client did not ask for. Every
//! other byte passes as it came. Pure.

use bytes::{Bytes, BytesMut};
use strata_wire::Usage;
use strata_wire::patch::{self, Patch};
use strata_wire::sse::{DONE, Splitter};
use strata_wire::toplevel::TopLevel;

/// Longest event that is held until it is whole.
const MAX_EVENT: usize = 16 * 1024 * 1024;

/// What a stream has shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The last usage that the engine reported.
    pub usage: Option<Usage>,
    /// Chunks with choices: the last resort where no usage comes.
    pub chunks: u64,
    /// Chunks since that usage.
    pub chunks_since: u64,
    /// Whether a layer below said that the stream failed.
    pub failed: bool,
}

/// What to do with the bytes that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes for the client, before the end.
    pub pass: Bytes,
    /// The event that ends the stream, to be sent once the usage is written.
    pub end: Option<Bytes>,
}

/// An event was longer than anything that an engine sends.
#[derive(Debug, thiserror::Error)]
#[error("the next layer sent an event of more than {MAX_EVENT} bytes")]
pub struct TooLong;

/// Rewrites one stream.
#[derive(Debug)]
pub struct Metered {
    splitter: Splitter,
    wants_usage: bool,
    wants_continuous: bool,
    /// What was seen.
    pub seen: Seen,
}

impl Metered {
    /// For a client that did or did not ask for usage at the end, and in every chunk.
    pub fn new(wants_usage: bool, wants_continuous: bool) -> Self {
        Self { splitter: Splitter::default(), wants_usage, wants_continuous, seen: Seen::default() }
    }

    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Step, TooLong> {
        self.splitter.push(bytes);
        let mut pass = BytesMut::new();
        while let Some(raw) = self.splitter.next_raw() {
            if let Some(end) = self.event(raw, &mut pass) {
                return Ok(Step { pass: pass.freeze(), end: Some(end) });
            }
        }
        if self.splitter.pending() > MAX_EVENT {
            return Err(TooLong);
        }
        Ok(Step { pass: pass.freeze(), end: None })
    }

    /// The upstream has ended: what is left of an event without a closing line.
    pub fn finish(&mut self) -> Step {
        let rest = self.splitter.take_rest();
        let mut pass = BytesMut::new();
        let end = if rest.is_empty() { None } else { self.event(rest, &mut pass) };
        Step { pass: pass.freeze(), end }
    }

    /// Passes an event on, changed or dropped; returns it instead when it ends the stream.
    fn event(&mut self, raw: Bytes, pass: &mut BytesMut) -> Option<Bytes> {
        let Some(data) = data_of(&raw) else {
            pass.extend_from_slice(&raw);
            return None;
        };
        let json = raw.slice(data.clone());
        if &json[..] == DONE.as_bytes() {
            return Some(raw);
        }
        match self.chunk(&json) {
            Chunk::Unchanged => pass.extend_from_slice(&raw),
            Chunk::Dropped => {}
            Chunk::Changed(json) => {
                pass.extend_from_slice(&raw[..data.start]);
                pass.extend_from_slice(&json);
                pass.extend_from_slice(&raw[data.end..]);
            }
        }
        None
    }

    fn chunk(&mut self, json: &Bytes) -> Chunk {
        let Ok(top) = TopLevel::scan(json) else { return Chunk::Unchanged };
        let choices = top.raw(json, "choices");
        self.seen.failed |= choices.is_none() && top.raw(json, "error").is_some_and(|raw| raw != b"null");
        let empty = choices.is_some_and(|raw| raw[1..].iter().all(|b| b" \t\r\n]".contains(b)));
        if choices.is_some() && !empty {
            self.seen.chunks += 1;
            self.seen.chunks_since += 1;
        }
        let Some(raw) = top.raw(json, "usage").filter(|raw| *raw != b"null") else { return Chunk::Unchanged };
        let Ok(usage) = serde_json::from_slice::<Usage>(raw) else { return Chunk::Unchanged };
        self.seen.usage = Some(usage);
        self.seen.chunks_since = 0;
        if empty {
            return if self.wants_usage { Chunk::Unchanged } else { Chunk::Dropped };
        }
        if self.wants_continuous {
            return Chunk::Unchanged;
        }
        let change =
            if self.wants_usage { Patch::Set("usage", "null".to_owned()) } else { Patch::Remove("usage") };
        patch::apply(json, &top, &[change]).map_or(Chunk::Unchanged, Chunk::Changed)
    }
}

enum Chunk {
    Unchanged,
    Dropped,
    Changed(Bytes),
}

/// Where the payload of an event with exactly one `data:` line lies.
fn data_of(raw: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut found = None;
    let mut at = 0;
    for line in raw.split_inclusive(|b| *b == b'\n') {
        let start = at;
        at += line.len();
        let Some(rest) = line.strip_prefix(b"data:") else { continue };
        if found.is_some() {
            return None;
        }
        let lead = 5 + usize::from(rest.first() == Some(&b' '));
        let tail = line.iter().rev().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        found = Some(start + lead..(start + line.len() - tail).max(start + lead));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = concat!(
        ": hi\n\n",
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n",
        "data: {\"id\":\"1\",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5},\"choices\":[{\"delta\":{\"content\":\"usage\"}}]}\r\n\r\n",
        "event: x\ndata: {\"choices\":[ ],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn run(wants: (bool, bool), cuts: &[usize]) -> (String, Option<Bytes>, Seen) {
        let mut metered = Metered::new(wants.0, wants.1);
        let (mut at, mut out, mut end) = (0, Vec::new(), None);
        let mut cuts = cuts.iter().copied().chain(std::iter::repeat(TEXT.len()));
        while at < TEXT.len() {
            let next = (at + cuts.next().unwrap()).min(TEXT.len());
            let step = metered.push(&TEXT.as_bytes()[at..next]).unwrap();
            out.extend_from_slice(&step.pass);
            end = end.or(step.end);
            at = next;
        }
        (String::from_utf8(out).unwrap(), end, metered.seen)
    }

    #[test]
    fn a_client_that_asked_for_nothing_gets_no_usage() {
        let (out, end, seen) = run((false, false), &[]);
        insta::assert_snapshot!(out, @r#"
        : hi

        data: {"id":"1","choices":[{"delta":{"content":"a"}}]}

        data: {"id":"1","choices":[{"delta":{"content":"usage"}}]}
        "#);
        assert_eq!(end.unwrap(), "data: [DONE]\n\n");
        assert_eq!(seen.usage, Some(Usage::new(3, 1, 2)));
        assert_eq!((seen.chunks, seen.chunks_since), (2, 0));
    }

    #[test]
    fn a_client_that_asked_for_the_usage_gets_it_once() {
        let (out, _, _) = run((true, false), &[]);
        assert_eq!(out.matches("\"usage\":null").count(), 2);
        assert_eq!(out.matches("prompt_tokens\":3").count(), 1);
    }

    #[test]
    fn a_client_that_asked_for_all_gets_every_byte() {
        let (out, end, _) = run((true, true), &[]);
        assert_eq!(out + "data: [DONE]\n\n", TEXT);
        assert!(end.is_some());
    }

    #[test]
    fn what_is_not_understood_passes() {
        let mut metered = Metered::new(false, false);
        for text in [
            "data: {broken\n\n",
            "data: 1\ndata: 2\n\n",
            "id: 7\n\n",
            "data:\n\n",
            "data: {\"error\":null}\n\n",
        ] {
            let step = metered.push(text.as_bytes()).unwrap();
            assert_eq!(step.pass, text);
        }
        assert_eq!(metered.seen, Seen::default());
        metered.push(b"data: {\"choices\":[{}]}").unwrap();
        assert_eq!(metered.finish().pass, "data: {\"choices\":[{}]}");
        assert_eq!((metered.seen.chunks, metered.seen.usage), (1, None));
    }

    #[test]
    fn a_failure_told_by_a_layer_below_passes_and_is_seen() {
        let mut metered = Metered::new(false, false);
        let text = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
        assert_eq!(metered.push(text.as_bytes()).unwrap().pass, text);
        assert!(metered.seen.failed);
    }

    proptest! {
        /// However the bytes are cut, the client gets the same.
        #[test]
        fn any_cut_gives_the_same(cuts in proptest::collection::vec(1usize..20, 0..60), usage: bool, continuous: bool) {
            prop_assert_eq!(run((usage, continuous), &cuts), run((usage, continuous), &[]));
        }
    }
}
