//! The canonical text of a body, hashed while the body comes.
//!
//! Its order is its own: model, tools, messages, prompt. What comes in that order is hashed as it comes.
//! What comes before something that it follows is noted, and read again from the bytes that were kept:
//! when that something has come, or at the end.
//!
//! Nobody can know that no tools will follow the messages. Reading these again costs less than
//! hashing them, so they are hashed as they come only when the caller expects no tools; where tools do
//! follow, what was hashed is thrown away and hashed again.

use std::ops::Range;

use super::field::{FIELDS, Field, FieldReader, fields};
pub(crate) use super::hashing::Place;
use super::hashing::{Around, Goes, Hashing, Name, ValueReader, read_again};
use super::json_text;
use super::scan::{Event, Sink};
use super::text::{Decoder, Found, Level};
use crate::prefix::{Form, Prefix, PrefixHasher};
use crate::rope::Spooled;
use crate::toplevel::{MAX_MODEL_BYTES, ScanError};

/// Members of the top level stand at this depth.
const TOP: usize = 1;

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Reading {
    Nothing,
    Key(Name),
    Model,
    /// A field that is hashed as it comes.
    Live(usize, FieldReader),
    /// A field that will be read again, from here.
    Later(usize, usize),
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Model,
    Field(usize),
    Other,
}

/// What is expected of the order of the fields, and what became of it.
#[derive(Debug, Default)]
struct Order {
    /// Whether a field is hashed while one before it in the text may still come.
    ahead: bool,
    /// Whether there was such a field.
    was_open: bool,
    /// Whether one before it came.
    came_late: bool,
}

/// Hashes a body's canonical text.
#[derive(Debug)]
pub(crate) struct Canonical {
    scope: String,
    form: Form,
    hashing: Hashing,
    model: Option<Vec<u8>>,
    /// Whether the model is known, which is where the text begins.
    rooted: bool,
    /// Whether something came late that stands before what has been hashed.
    stale: bool,
    order: Order,
    /// The first field that has not been hashed.
    due: usize,
    /// Where the fields lie that say something.
    at: [Option<Range<usize>>; FIELDS],
    seen: [bool; FIELDS],
    next: Next,
    reading: Reading,
}

impl Canonical {
    pub(crate) fn new(form: Form, scope: &str) -> Self {
        let hasher = PrefixHasher::rootless();
        Self {
            scope: scope.to_owned(),
            form,
            hashing: Hashing {
                hasher,
                decoder: Decoder::new(),
                text_goes: Goes::Up,
                broken: false,
                places: None,
            },
            model: None,
            rooted: false,
            stale: false,
            order: Order::default(),
            due: 0,
            at: [const { None }; FIELDS],
            seen: [false; FIELDS],
            next: Next::Other,
            reading: Reading::Nothing,
        }
    }

    /// Hashes a field as it comes even where one that stands before it may follow.
    pub(crate) fn ahead(mut self, ahead: bool) -> Self {
        self.order.ahead = ahead;
        self
    }

    /// Whether a field that stands before another one in the text followed it in the body. `None` when the
    /// question did not arise.
    pub(crate) fn came_late(&self) -> Option<bool> {
        self.order.was_open.then_some(self.order.came_late)
    }

    /// Notes where the texts stand as well.
    pub(crate) fn noting_places(mut self) -> Self {
        self.hashing.places = Some(Vec::new());
        self
    }

    /// Takes the events of a chunk that begins at `base`. `body` is all up to the chunk's end.
    pub(crate) fn sink<'a, S: Spooled + ?Sized>(
        &'a mut self,
        body: &'a S,
        chunk: &'a [u8],
        base: usize,
    ) -> Live<'a, S> {
        Live { canonical: self, body, chunk, base }
    }

    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        body: &S,
        chunk: &[u8],
        base: usize,
    ) {
        let mut around = Around { hashing: &mut self.hashing, body, chunk, base };
        match (event, &mut self.reading) {
            (_, Reading::Live(field, reader)) => {
                if reader.event(depth, event, &mut around) {
                    self.due = *field + 1;
                    if let (Event::StringEnd { end } | Event::Close { end }, Some(at)) =
                        (event, &mut self.at[*field])
                    {
                        at.end = end;
                    }
                    self.reading = Reading::Nothing;
                }
            }
            (Event::String { key: true, .. }, Reading::Nothing) => {
                around.name_begins();
                self.reading = Reading::Key(Name::default());
            }
            (Event::Piece(_) | Event::Escape(_), Reading::Key(key)) => {
                around.decode_name(event, |text| key.push(text));
            }
            (Event::StringEnd { .. }, Reading::Key(key)) => {
                let place =
                    |name: &[u8]| fields(self.form).iter().position(|(key, _)| key.as_bytes() == name);
                self.next = match key.get() {
                    b"model" => Next::Model,
                    name => place(name).map_or(Next::Other, Next::Field),
                };
                self.reading = Reading::Nothing;
                if around.string_ends() == Found::NoText {
                    around.breaks();
                }
            }
            (_, Reading::Nothing) if depth == TOP => self.value_begins(event, body, chunk, base),
            (Event::Piece(_) | Event::Escape(_), Reading::Model) => {
                let model = self.model.get_or_insert_default();
                around.decode_name(event, |text| model.extend_from_slice(text));
                if model.len() > MAX_MODEL_BYTES {
                    around.breaks();
                }
            }
            (_, Reading::Model) => {
                if around.string_ends() == Found::NoText {
                    around.breaks();
                }
                self.reading = Reading::Nothing;
                self.root();
            }
            (Event::StringEnd { end } | Event::Close { end }, Reading::Later(field, from)) => {
                if depth == TOP {
                    self.at[*field] = Some(*from..end);
                    self.reading = Reading::Nothing;
                }
            }
            (_, Reading::Later(..) | Reading::Nothing | Reading::Key(_)) => {}
            (_, Reading::Other) => {
                match event {
                    Event::String { .. } => around.string_begins(Level::Form),
                    Event::StringEnd { .. } => {
                        around.string_ends();
                    }
                    _ => {}
                }
                if depth == TOP && matches!(event, Event::StringEnd { .. } | Event::Close { .. }) {
                    self.reading = Reading::Nothing;
                }
            }
        }
    }

    /// A member's value begins; a scalar is over with it.
    fn value_begins<S: Spooled + ?Sized>(&mut self, event: Event<'_>, body: &S, chunk: &[u8], base: usize) {
        let (at, scalar) = match event {
            Event::String { at, .. } | Event::Open { at, .. } => (at, None),
            Event::Scalar { at, end, null } => (at, Some((end, null))),
            _ => return,
        };
        let is_string = matches!(event, Event::String { .. });
        let field = match self.next {
            Next::Model => {
                if self.model.is_some() || !is_string {
                    self.hashing.broken = true;
                }
                self.model = Some(Vec::new());
                self.hashing.begin(Level::Text, Goes::Up);
                self.reading = Reading::Model;
                return;
            }
            Next::Other => {
                if scalar.is_none() {
                    self.reading = Reading::Other;
                    if is_string {
                        self.hashing.begin(Level::Form, Goes::Nowhere);
                    }
                }
                return;
            }
            Next::Field(field) => field,
        };
        self.hashing.broken |= std::mem::replace(&mut self.seen[field], true);
        let null = matches!(scalar, Some((_, true)));
        self.order.came_late |= !null && self.at[field + 1..].iter().any(Option::is_some);
        let open = !self.seen[..field].iter().all(|seen| *seen);
        self.order.was_open |= open && !null && self.rooted;
        if let Some((end, null)) = scalar {
            if !null {
                self.at[field] = Some(at..end);
                self.stale |= field < self.due;
            } else if fields(self.form)[field].1 == Field::Messages {
                self.hashing.broken = true;
            }
            return;
        }
        self.stale |= field < self.due;
        if !self.rooted || self.stale || open && !self.order.ahead {
            self.reading = Reading::Later(field, at);
            return;
        }
        self.catch_up(field, body);
        let mut around = Around { hashing: &mut self.hashing, body, chunk, base };
        self.at[field] = Some(at..at);
        let mut reader = FieldReader::new(fields(self.form)[field].1, TOP, &mut around);
        reader.event(TOP, event, &mut around);
        self.reading = Reading::Live(field, reader);
    }

    /// The model is known.
    fn root(&mut self) {
        let model = self.model.as_deref().and_then(|model| std::str::from_utf8(model).ok());
        self.hashing.hasher = PrefixHasher::new(&self.scope, model.unwrap_or_default());
        self.rooted = true;
    }

    /// Reads the fields again that come before `field`.
    fn catch_up<S: Spooled + ?Sized>(&mut self, field: usize, body: &S) {
        for due in self.due..field {
            if let Some(range) = self.at[due].clone() {
                let mut around = Around { hashing: &mut self.hashing, body, chunk: &[], base: range.start };
                let mut reader = FieldReader::new(fields(self.form)[due].1, TOP, &mut around);
                read_again(&mut self.hashing, body, range, TOP, &mut reader);
            }
        }
        self.due = self.due.max(field);
    }

    /// The prefix of a body that was read without an error; `None` when it has no canonical text.
    pub(crate) fn finish<S: Spooled + ?Sized>(mut self, body: &S) -> Option<(Prefix, Vec<Place>)> {
        if self.hashing.broken {
            return None;
        }
        if !self.rooted || self.stale {
            self.root();
            self.due = 0;
            if let Some(places) = &mut self.hashing.places {
                places.clear();
            }
        }
        self.catch_up(fields(self.form).len(), body);
        let Hashing { hasher, broken, places, .. } = self.hashing;
        (!broken).then(|| (hasher.finish(), places.unwrap_or_default()))
    }
}

/// Takes the events of one chunk.
pub(crate) struct Live<'a, S: ?Sized> {
    canonical: &'a mut Canonical,
    body: &'a S,
    chunk: &'a [u8],
    base: usize,
}

impl<S: Spooled + ?Sized> Live<'_, S> {
    /// The chunk is over.
    pub(crate) fn chunk_over(self) {
        let Self { canonical, body, chunk, base } = self;
        if let Reading::Live(_, reader) = &mut canonical.reading {
            reader.chunk_over(&mut Around { hashing: &mut canonical.hashing, body, chunk, base });
        }
    }
}

impl<S: Spooled + ?Sized> Sink for Live<'_, S> {
    fn event(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError> {
        if !self.canonical.hashing.takes(event) {
            self.canonical.event(depth, event, self.body, self.chunk, self.base);
        }
        Ok(())
    }
    #[inline]
    fn text(&mut self, text: &[u8]) -> usize {
        match self.canonical.reading {
            // What is read again is looked at then.
            Reading::Later(..) => json_text::skim(text),
            _ => self.canonical.hashing.takes_text(text),
        }
    }
}
