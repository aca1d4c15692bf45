//! Server-sent events, as the OpenAI API uses them: `data:` lines, an optional `event:` name, and a
//! final `data: [DONE]` for chat and completions.

use bytes::{Bytes, BytesMut};

/// The payload that ends a chat or completion stream.
pub const DONE: &str = "[DONE]";

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `event:` field, absent for chat and completion chunks.
    pub name: Option<String>,
    /// The `data:` lines, joined by a newline.
    pub data: String,
}

/// An event without a name, ready to send. `data` must hold no line break, as JSON never does.
pub fn data(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// An event with a name, as the Responses API sends them.
pub fn named(name: &str, data: &str) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// Splits a byte stream into whole raw events: the bytes of each, its closing blank line included.
/// What is not forwarded is known to the byte, so a proxy can pass events on unchanged.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: BytesMut,
    scanned: usize,
}

impl Splitter {
    /// Takes more bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole event's raw bytes, if one is there.
    pub fn next_raw(&mut self) -> Option<Bytes> {
        let bytes = &self.buffer[..];
        let mut i = self.scanned;
        while i < bytes.len() {
            if bytes[i] == b'\n' {
                let rest = &bytes[i + 1..];
                let end = match rest {
                    [b'\n', ..] => Some(i + 2),
                    [b'\r', b'\n', ..] => Some(i + 3),
                    _ => None,
                };
                if let Some(end) = end {
                    self.scanned = 0;
                    return Some(self.buffer.split_to(end).freeze());
                }
            }
            i += 1;
        }
        // A line end may be split between chunks: look at the last two bytes again.
        self.scanned = bytes.len().saturating_sub(2);
        None
    }

    /// The next whole event, parsed. Events that are only comments are skipped.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(raw) = self.next_raw() {
            if let Some(event) = parse(&raw) {
                return Some(event);
            }
        }
        None
    }

    /// Bytes of an event that is not whole yet.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the bytes of an event that never became whole.
    pub fn take_rest(&mut self) -> Bytes {
        self.scanned = 0;
        self.buffer.split().freeze()
    }
}

/// Parses one raw event. `None` when it carries no data (a comment or a keep-alive).
pub fn parse(raw: &[u8]) -> Option<Event> {
    let text = String::from_utf8_lossy(raw);
    let mut name = None;
    let mut data: Option<String> = None;
    for line in text.lines() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = Some(value.to_owned()),
            "data" => match &mut data {
                Some(d) => {
                    d.push('\n');
                    d.push_str(value);
                }
                None => data = Some(value.to_owned()),
            },
            _ => {}
        }
    }
    data.map(|data| Event { name, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the bytes are cut, the same events come out and no byte is lost.
        #[test]
        fn any_cut_gives_the_same_events(cuts in proptest::collection::vec(1usize..9, 0..60)) {
            let whole: Vec<u8> = [data("{\"a\":1}"), named("x.y", "{}"), Bytes::from_static(b": ping\n\n"), data(DONE)].concat();
            let mut splitter = Splitter::default();
            let (mut at, mut raws) = (0, Vec::new());
            for cut in cuts.into_iter().chain(std::iter::repeat(7)) {
                if at >= whole.len() { break; }
                let end = (at + cut).min(whole.len());
                splitter.push(&whole[at..end]);
                while let Some(raw) = splitter.next_raw() { raws.push(raw); }
                at = end;
            }
            prop_assert_eq!(raws.concat(), whole);
            prop_assert_eq!(raws.len(), 4);
            prop_assert_eq!(parse(&raws[1]), Some(Event { name: Some("x.y".into()), data: "{}".into() }));
            prop_assert_eq!(parse(&raws[2]), None);
        }
    }

    #[test]
    fn carriage_returns_end_lines_too() {
        let mut s = Splitter::default();
        s.push(b"event: a\r\ndata: 1\r\ndata: 2\r\n\r");
        assert_eq!(s.next_event(), None);
        s.push(b"\n");
        assert_eq!(s.next_event(), Some(Event { name: Some("a".into()), data: "1\n2".into() }));
    }
}
