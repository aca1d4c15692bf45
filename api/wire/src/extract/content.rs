//! Contents of messages: a text, or parts of which some are texts.

use std::ops::Range;

use super::hashing::{Around, Bytes, Name, Text, UNIT, ValueReader};
use super::scan::Event;
use super::text::{Found, Level};
use crate::prefix::Mark;
use crate::rope::Spooled;

/// A value that is hashed as it stands.
#[derive(Debug)]
pub(super) struct Raw {
    depth: usize,
    bytes: Option<Bytes>,
}

impl Raw {
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, bytes: None }
    }
}

impl ValueReader for Raw {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        let end = match event {
            Event::String { at, .. } => {
                self.bytes.get_or_insert(Bytes::begin(at));
                around.string_begins(Level::Bytes);
                return false;
            }
            Event::Open { at, .. } => {
                self.bytes.get_or_insert(Bytes::begin(at));
                return false;
            }
            Event::Piece(_) | Event::Escape(_) => return false,
            Event::StringEnd { end } => {
                around.string_ends();
                end
            }
            Event::Close { end } => end,
            Event::Scalar { at, end, .. } => {
                if depth == self.depth {
                    around.push_again(at..end);
                }
                end
            }
        };
        if depth > self.depth {
            return false;
        }
        if let Some(mut bytes) = self.bytes.take() {
            bytes.up_to(end, around);
        }
        true
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        if let Some(bytes) = &mut self.bytes {
            bytes.up_to(around.end(), around);
        }
    }
}

/// A value that is one text, or else its bytes.
#[derive(Debug)]
pub(super) struct Whole {
    raw: Raw,
    text: Option<Text>,
}

impl Whole {
    pub(super) fn new(depth: usize) -> Self {
        Self { raw: Raw::new(depth), text: None }
    }
}

impl ValueReader for Whole {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        match (event, self.text.take()) {
            (Event::String { at, .. }, None) if depth == self.raw.depth => {
                self.text = Some(Text::begin(at, around));
                false
            }
            (Event::StringEnd { end }, Some(text)) => {
                text.end(end, around);
                true
            }
            (_, Some(text)) => {
                self.text = Some(text);
                false
            }
            (_, None) => self.raw.event(depth, event, around),
        }
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        self.raw.chunk_over(around);
    }
}

/// A message's content. A single text part is the same as the text.
#[derive(Debug)]
pub(super) struct Content {
    depth: usize,
    /// A content that is no list is one value.
    whole: Option<Whole>,
    parts: usize,
    part: Option<Part>,
}

impl Content {
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, whole: None, parts: 0, part: None }
    }
}

impl ValueReader for Content {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        if let Some(whole) = &mut self.whole {
            return whole.event(depth, event, around);
        }
        if let Some(part) = &mut self.part {
            if part.event(depth, event, around) {
                self.part = None;
            }
            return false;
        }
        match event {
            Event::Open { object: false, .. } if depth == self.depth => return false,
            Event::Close { .. } => return true,
            Event::Scalar { null: true, .. } if depth == self.depth => return true,
            _ if depth == self.depth => {
                return self.whole.insert(Whole::new(depth)).event(depth, event, around);
            }
            _ => {}
        }
        if self.parts > 0 {
            around.push(UNIT);
        }
        self.parts += 1;
        let mut part = Part::begin(depth, event, around);
        if !part.event(depth, event, around) {
            self.part = Some(part);
        }
        false
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        match (&mut self.whole, &mut self.part) {
            (Some(whole), _) => whole.chunk_over(around),
            (None, Some(Part::Raw(raw))) => raw.chunk_over(around),
            (None, Some(Part::Fields(fields))) => fields.chunk_over(around),
            (None, None) => {}
        }
    }
}

/// A part of a content.
#[derive(Debug)]
enum Part {
    Raw(Raw),
    Fields(Box<Fields>),
}

impl Part {
    fn begin<S: Spooled + ?Sized>(depth: usize, event: Event<'_>, around: &mut Around<'_, S>) -> Self {
        match event {
            Event::Open { at, object } => Self::Fields(Box::new(Fields {
                depth,
                start: at,
                mark: around.hashing.hasher.mark(),
                bytes: Some(Bytes::begin(at)),
                values: (!object).then_some(0),
                key: None,
                is_text: false,
                text: None,
                no_text: false,
                reading: None,
            })),
            _ => Self::Raw(Raw::new(depth)),
        }
    }

    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        match self {
            Self::Raw(raw) => raw.event(depth, event, around),
            Self::Fields(fields) => fields.event(depth, event, around),
        }
    }
}

/// A part with members. It is a text when one of them is `text`, and that is one; no other kind of part
/// has a member of that name. Until it is seen the part is hashed as it stands, as an image is, and after
/// it as the text; whatever turns out otherwise at its end is hashed again.
#[derive(Debug)]
struct Fields {
    depth: usize,
    start: usize,
    /// The canonical text before it.
    mark: Mark,
    /// As it stands, while it may be no text.
    bytes: Option<Bytes>,
    /// Of a part that is a list of its members' values: how many have come.
    values: Option<usize>,
    /// The key that is being read.
    key: Option<Name>,
    /// Whether the next value is the text.
    is_text: bool,
    /// Where the text begins, once it did.
    text: Option<Range<usize>>,
    /// Whether it is no text for some reason.
    no_text: bool,
    /// Where the text begins that is being read.
    reading: Option<usize>,
}

impl Fields {
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool {
        let own = depth == self.depth + 1;
        match event {
            Event::String { key: true, .. } if own => {
                self.key = Some(Name::default());
                around.name_begins();
            }
            Event::String { at, key: false } if own => {
                if self.value_begins(around) {
                    self.reading = Some(at);
                    around.text_begins();
                } else {
                    around.string_begins(Level::Bytes);
                }
            }
            Event::Open { .. } | Event::Scalar { .. } if own => {
                let is_text = self.value_begins(around);
                self.no_text |= is_text;
            }
            Event::String { .. } => around.string_begins(Level::Bytes),
            Event::Piece(_) | Event::Escape(_) => {
                if let Some(key) = &mut self.key {
                    around.decode_name(event, |text| key.push(text));
                }
            }
            Event::StringEnd { end } => self.string_ends(end, around),
            Event::Close { end } if depth == self.depth => {
                self.ends(end, around);
                return true;
            }
            Event::Open { .. } | Event::Close { .. } | Event::Scalar { .. } => {}
        }
        false
    }

    fn string_ends<S: Spooled + ?Sized>(&mut self, end: usize, around: &mut Around<'_, S>) {
        let found = around.string_ends();
        if let Some(key) = self.key.take() {
            self.is_text = found == Found::Fine && key.get() == b"text";
            self.no_text |= found == Found::NoText;
        } else if let Some(start) = self.reading.take() {
            self.text = Some(start..end);
            self.no_text |= found == Found::NoText;
        }
    }

    /// Whether the value that begins is the text, to be hashed.
    fn value_begins<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) -> bool {
        if let Some(values) = &mut self.values {
            self.is_text = *values == 0;
            self.no_text |= *values > 0;
            *values += 1;
        }
        let is_text = std::mem::take(&mut self.is_text);
        // The text stands there twice.
        self.no_text |= is_text && self.text.is_some();
        let is_text = is_text && !self.no_text;
        if is_text {
            self.text = Some(0..0);
            self.bytes = None;
            around.hashing.hasher.go_back(self.mark.clone());
        }
        is_text
    }

    fn ends<S: Spooled + ?Sized>(&mut self, end: usize, around: &mut Around<'_, S>) {
        match (self.text.take().filter(|_| !self.no_text), &mut self.bytes) {
            (Some(text), _) => around.hashing.place(self.mark.bytes(), text),
            (None, Some(bytes)) => bytes.up_to(end, around),
            (None, None) => {
                around.hashing.hasher.go_back(self.mark.clone());
                around.push_again(self.start..end);
            }
        }
    }

    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>) {
        if let Some(bytes) = &mut self.bytes {
            bytes.up_to(around.end(), around);
        }
    }
}
