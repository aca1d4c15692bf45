//! The top level of a body: where each member lies.

use super::scan::{Event, Sink};
use crate::toplevel::{MAX_KEY_BYTES, MAX_MEMBERS, Member, ScanError, TopLevel, unescape};

/// Notes the members as they come.
#[derive(Debug)]
pub(crate) struct Members {
    top: TopLevel,
    /// Where the key that was read last begins, and where it ends.
    key_at: std::ops::Range<usize>,
    /// Its text as it stands, quotes included.
    raw: Vec<u8>,
    key: String,
    in_key: bool,
    value_at: usize,
}

impl Members {
    pub(crate) fn new() -> Self {
        let top = TopLevel { members: Vec::new(), open: 0, close: 0 };
        let (raw, key) = (Vec::new(), String::new());
        Self { top, key_at: 0..0, raw, key, in_key: false, value_at: 0 }
    }

    /// What was noted, once the body has ended.
    pub(crate) fn finish(self) -> TopLevel {
        self.top
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        if self.raw.len() + bytes.len() > MAX_KEY_BYTES {
            return Err(ScanError::KeyTooLong { at: self.key_at.start });
        }
        self.raw.extend_from_slice(bytes);
        Ok(())
    }

    fn key_ended(&mut self, end: usize) -> Result<(), ScanError> {
        self.in_key = false;
        self.raw.push(b'"');
        let at = self.key_at.start;
        let key =
            unescape(&self.raw).ok_or(ScanError::Syntax { at, what: "a key that is not valid text" })?;
        if self.top.get(&key).is_some() {
            return Err(ScanError::Duplicate { key });
        }
        if self.top.members.len() == MAX_MEMBERS {
            return Err(ScanError::TooMany);
        }
        self.key_at.end = end;
        self.key = key;
        Ok(())
    }

    fn value(&mut self, at: usize, end: usize) {
        let key = std::mem::take(&mut self.key);
        self.top.members.push(Member { key, key_at: self.key_at.clone(), value_at: at..end });
    }
}

impl Sink for Members {
    #[inline]
    fn event(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError> {
        // Most events are of texts deep in the body.
        if depth > 1 { Ok(()) } else { self.at_top(depth, event) }
    }

    fn text(&mut self, _: &[u8]) -> usize {
        0
    }
}

impl Members {
    fn at_top(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError> {
        match (depth, event) {
            (0, Event::Open { at, .. }) => self.top.open = at,
            (0, Event::Close { end }) => self.top.close = end - 1,
            (1, Event::String { at, key: true }) => {
                self.key_at.start = at;
                self.in_key = true;
                self.raw.clear();
                self.raw.push(b'"');
            }
            (1, Event::Piece(piece)) if self.in_key => self.take(piece)?,
            (1, Event::Escape(byte)) if self.in_key => self.take(&[b'\\', byte])?,
            (1, Event::StringEnd { end }) if self.in_key => self.key_ended(end)?,
            (1, Event::String { at, key: false } | Event::Open { at, .. }) => self.value_at = at,
            (1, Event::StringEnd { end } | Event::Close { end }) => self.value(self.value_at, end),
            (1, Event::Scalar { at, end, .. }) => self.value(at, end),
            _ => {}
        }
        Ok(())
    }
}
