//! JSON's grammar as a machine that bytes are pushed into: it can stop between any two of them, and keeps
//! nothing of what it has read but which brackets are open.
//!
//! It is as lax inside strings as a router can be: what stands there is for the engine to judge.

use memchr::memchr2;

use super::scalar::{Scalar, continues};
use crate::toplevel::{MAX_DEPTH, ScanError};

/// What comes next in the text. Places count from the body's first byte.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'t> {
    /// An object or an array begins.
    Open { at: usize, object: bool },
    /// It has ended.
    Close { end: usize },
    /// A string begins: a member's key, or a value.
    String { at: usize, key: bool },
    /// Text of a string, without escapes.
    Piece(&'t [u8]),
    /// A backslash and this byte. The digits of `\u` are the next piece's.
    Escape(u8),
    /// The string has ended.
    StringEnd { end: usize },
    /// A number, `true`, `false` or `null`.
    Scalar { at: usize, end: usize, null: bool },
}

/// Who is told of the events.
pub(crate) trait Sink {
    /// `depth` is the number of objects and arrays around what the event tells of.
    fn event(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError>;

    /// Takes what it can of a value's text by itself, before it is told of in pieces. `text` is what has
    /// come of the string and of what is behind it. Returns the bytes that it took: none of the string's
    /// end, and no half of an escape.
    fn text(&mut self, text: &[u8]) -> usize;
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the body's object.
    Start,
    /// After `{`.
    KeyOrClose,
    /// After a comma in an object.
    Key,
    Colon,
    Value,
    /// After `[`.
    ValueOrClose,
    /// After a value.
    Comma,
    String {
        at: usize,
        key: bool,
        escaped: bool,
    },
    Scalar {
        at: usize,
        read: Scalar,
    },
    /// After the whole.
    End,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    at: usize,
    depth: usize,
    /// Around how many brackets the whole stands.
    floor: usize,
    /// For each open bracket but the first, from the lowest bit, whether it is an object's.
    objects: u128,
}

const NO_KEY: &str = "a missing `\"`";
const NO_COLON: &str = "a missing `:`";

fn syntax(at: usize, what: &'static str) -> ScanError {
    ScanError::Syntax { at, what }
}

impl Scanner {
    /// For a body, which is an object.
    pub(crate) fn new() -> Self {
        Self { state: State::Start, at: 0, depth: 0, floor: 0, objects: 0 }
    }

    /// For one value that stands at this place and depth of a body.
    pub(crate) fn value(at: usize, depth: usize) -> Self {
        Self { state: State::Value, at, depth, floor: depth, objects: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Reads on.
    pub(crate) fn push(&mut self, chunk: &[u8], sink: &mut impl Sink) -> Result<(), ScanError> {
        let base = self.at;
        let mut i = 0;
        while let Some(&byte) = chunk.get(i) {
            i = match self.state {
                State::String { at, key, escaped } => self.string(chunk, i, (at, key, escaped), sink)?,
                State::Scalar { at, read } => self.scalar(chunk, i, at, read, sink)?,
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => i + 1,
                state => self.structure(state, byte, base + i, sink).map(|()| i + 1)?,
            };
        }
        self.at = base + chunk.len();
        Ok(())
    }

    /// Says that no more comes.
    pub(crate) fn finish(&mut self, sink: &mut impl Sink) -> Result<(), ScanError> {
        if let State::Scalar { at, read } = self.state {
            self.scalar_end(at, self.at, read, sink)?;
        }
        let at = self.at;
        match self.state {
            State::End => Ok(()),
            State::Start => Err(ScanError::NotAnObject { at }),
            State::KeyOrClose | State::Key => Err(syntax(at, NO_KEY)),
            State::Colon => Err(syntax(at, NO_COLON)),
            State::Value | State::ValueOrClose if self.depth > MAX_DEPTH => Err(ScanError::TooDeep { at }),
            State::Value | State::ValueOrClose => Err(syntax(at, "the end where a value should be")),
            State::Comma => Err(self.no_comma(at)),
            State::String { at, .. } => Err(syntax(at, "a string that does not end")),
            State::Scalar { at, .. } => Err(syntax(at, "something that is no JSON value")),
        }
    }

    fn no_comma(&self, at: usize) -> ScanError {
        let top = self.depth == 1;
        syntax(at, if top { "a missing `,` or `}`" } else { "a missing `,` or closing bracket" })
    }

    fn in_object(&self) -> bool {
        self.depth == 1 || self.objects & 1 == 1
    }

    fn open(&mut self, at: usize, object: bool, sink: &mut impl Sink) -> Result<(), ScanError> {
        sink.event(self.depth, Event::Open { at, object })?;
        if self.depth > 0 {
            self.objects = self.objects << 1 | u128::from(object);
        }
        self.depth += 1;
        self.state = if object { State::KeyOrClose } else { State::ValueOrClose };
        Ok(())
    }

    fn close(&mut self, end: usize, sink: &mut impl Sink) -> Result<(), ScanError> {
        self.depth -= 1;
        self.objects >>= 1;
        self.value_ended();
        sink.event(self.depth, Event::Close { end })
    }

    fn value_ended(&mut self) {
        self.state = if self.depth == self.floor { State::End } else { State::Comma };
    }

    /// A byte between values that is no space.
    fn structure(
        &mut self,
        state: State,
        byte: u8,
        at: usize,
        sink: &mut impl Sink,
    ) -> Result<(), ScanError> {
        match (state, byte) {
            (State::Start, b'{') => self.open(at, true, sink),
            (State::Start, _) => Err(ScanError::NotAnObject { at }),
            (State::KeyOrClose, b'}') | (State::ValueOrClose, b']') => self.close(at + 1, sink),
            (State::KeyOrClose | State::Key, b'"') => self.open_string(at, true, sink),
            (State::KeyOrClose | State::Key, _) => Err(syntax(at, NO_KEY)),
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(())
            }
            (State::Colon, _) => Err(syntax(at, NO_COLON)),
            (State::Comma, b',') => {
                self.state = if self.in_object() { State::Key } else { State::Value };
                Ok(())
            }
            (State::Comma, b'}') if self.in_object() => self.close(at + 1, sink),
            (State::Comma, b']') if !self.in_object() => self.close(at + 1, sink),
            (State::Comma, _) => Err(self.no_comma(at)),
            (State::End, _) => Err(syntax(at, "text after the object")),
            _ if self.depth > MAX_DEPTH => Err(ScanError::TooDeep { at }),
            (_, b'"') => self.open_string(at, false, sink),
            (_, b'{' | b'[') => self.open(at, byte == b'{', sink),
            _ if continues(byte) => {
                self.state = State::Scalar { at, read: Scalar::begin(byte) };
                Ok(())
            }
            _ => Err(syntax(at, "something that is no JSON value")),
        }
    }

    fn open_string(&mut self, at: usize, key: bool, sink: &mut impl Sink) -> Result<(), ScanError> {
        self.state = State::String { at, key, escaped: false };
        sink.event(self.depth, Event::String { at, key })
    }

    /// Inside a string: on to its end, or the chunk's.
    fn string(
        &mut self,
        chunk: &[u8],
        mut i: usize,
        (at, key, mut escaped): (usize, bool, bool),
        sink: &mut impl Sink,
    ) -> Result<usize, ScanError> {
        loop {
            if escaped {
                let Some(&byte) = chunk.get(i) else { break };
                sink.event(self.depth, Event::Escape(byte))?;
                i += 1;
            }
            if !key {
                i += sink.text(&chunk[i..]);
            }
            let rest = &chunk[i..];
            let found = memchr2(b'"', b'\\', rest);
            let piece = &rest[..found.unwrap_or(rest.len())];
            if !piece.is_empty() {
                sink.event(self.depth, Event::Piece(piece))?;
            }
            i += piece.len();
            escaped = false;
            match found.map(|found| rest[found]) {
                Some(b'"') => {
                    if key {
                        self.state = State::Colon;
                    } else {
                        self.value_ended();
                    }
                    sink.event(self.depth, Event::StringEnd { end: self.at + i + 1 })?;
                    return Ok(i + 1);
                }
                Some(_) => {
                    escaped = true;
                    i += 1;
                }
                None => break,
            }
        }
        self.state = State::String { at, key, escaped };
        Ok(i)
    }

    fn scalar(
        &mut self,
        chunk: &[u8],
        mut i: usize,
        at: usize,
        mut read: Scalar,
        sink: &mut impl Sink,
    ) -> Result<usize, ScanError> {
        while let Some(&byte) = chunk.get(i) {
            if !continues(byte) {
                self.scalar_end(at, self.at + i, read, sink)?;
                return Ok(i);
            }
            read = read.step(byte);
            i += 1;
        }
        self.state = State::Scalar { at, read };
        Ok(i)
    }

    fn scalar_end(
        &mut self,
        at: usize,
        end: usize,
        read: Scalar,
        sink: &mut impl Sink,
    ) -> Result<(), ScanError> {
        if !read.is_whole() {
            return Err(syntax(at, "something that is no JSON value"));
        }
        self.value_ended();
        sink.event(self.depth, Event::Scalar { at, end, null: read.is_null() })
    }
}
