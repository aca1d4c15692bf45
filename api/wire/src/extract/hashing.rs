//! What the readers of values share: the canonical text as far as it is hashed, and the body around them.

use std::ops::Range;

use super::scan::{Event, Scanner, Sink};
use super::text::{Decoder, Found, Level};
use crate::prefix::{Mark, PrefixHasher};
use crate::rope::Spooled;
use crate::toplevel::ScanError;

/// Separates a role from its content and a message from the next: bytes that text seldom holds.
pub(super) const UNIT: &[u8] = &[0x1f];
pub(super) const RECORD: &[u8] = &[0x1e];

/// Where a text stands: bytes of the canonical text before it, and its string in the body.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) at: usize,
    pub(crate) body: Range<usize>,
}

/// The canonical text as far as it has been hashed.
#[derive(Debug)]
pub(super) struct Hashing {
    pub(super) hasher: PrefixHasher,
    pub(super) decoder: Decoder,
    /// Where the text of the string goes that is being read.
    pub(super) text_goes: Goes,
    /// Whether the body is found to be one that has no canonical text.
    pub(super) broken: bool,
    /// Where the texts stand, if somebody asks.
    pub(super) places: Option<Vec<Place>>,
}

/// Where the text of a string goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    /// To whoever reads the value.
    Up,
    /// Into the canonical text. It need not be handed up and down again.
    In,
    /// Nowhere: it is looked at alone.
    Nowhere,
}

/// A chunk of a body while it is read, and whatever came before it.
pub(super) struct Around<'a, S: ?Sized> {
    pub(super) hashing: &'a mut Hashing,
    /// The body up to the end of the chunk.
    pub(super) body: &'a S,
    pub(super) chunk: &'a [u8],
    /// Where the chunk begins.
    pub(super) base: usize,
}

impl<S: Spooled + ?Sized> Around<'_, S> {
    /// Where the chunk ends.
    pub(super) fn end(&self) -> usize {
        self.base + self.chunk.len()
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        self.hashing.hasher.push(text);
    }

    pub(super) fn breaks(&mut self) {
        self.hashing.broken = true;
    }

    /// Hashes a range of this chunk as it stands.
    pub(super) fn push_of_chunk(&mut self, range: Range<usize>) {
        self.hashing.hasher.push(&self.chunk[range.start - self.base..range.end - self.base]);
    }

    /// Hashes a range of the body as it stands.
    pub(super) fn push_again(&mut self, range: Range<usize>) {
        for slice in self.body.slices(range) {
            self.hashing.hasher.push(slice);
        }
    }

    /// A string begins whose text is looked at alone.
    pub(super) fn string_begins(&mut self, level: Level) {
        self.hashing.begin(level, Goes::Nowhere);
    }

    /// A string begins whose text is hashed.
    pub(super) fn text_begins(&mut self) {
        self.hashing.begin(Level::Text, Goes::In);
    }

    /// A string begins whose text is a name, for [`Around::decode_name`].
    pub(super) fn name_begins(&mut self) {
        self.hashing.begin(Level::Text, Goes::Up);
    }

    pub(super) fn string_ends(&mut self) -> Found {
        self.hashing.text_goes = Goes::Up;
        let found = self.hashing.decoder.end();
        self.hashing.broken |= found == Found::Broken;
        found
    }

    /// Hashes a string's text, decoded, which is a name that matters.
    pub(super) fn hash_name(&mut self, event: Event<'_>, name: &mut Name) {
        let Hashing { hasher, decoder, .. } = &mut *self.hashing;
        feed(decoder, event, |text| {
            hasher.push(text);
            name.push(text);
        });
    }

    /// Decodes a string's text, and hashes nothing.
    pub(super) fn decode_name(&mut self, event: Event<'_>, out: impl FnMut(&[u8])) {
        feed(&mut self.hashing.decoder, event, out);
    }

    /// Reads a value of the body again that stands at this depth.
    pub(super) fn read_again(&mut self, range: Range<usize>, depth: usize, reader: &mut impl ValueReader) {
        read_again(self.hashing, self.body, range, depth, reader);
    }
}

fn feed(decoder: &mut Decoder, event: Event<'_>, mut out: impl FnMut(&[u8])) {
    match event {
        Event::Piece(piece) => decoder.piece(piece, &mut out),
        Event::Escape(byte) => decoder.escape(byte, &mut out),
        _ => {}
    }
}

/// Reads one value and hashes what of it belongs to the canonical text.
pub(super) trait ValueReader {
    /// Takes the next event of the value. Returns whether it was its last.
    fn event<S: Spooled + ?Sized>(
        &mut self,
        depth: usize,
        event: Event<'_>,
        around: &mut Around<'_, S>,
    ) -> bool;

    /// The chunk is over, and the value goes on in the next.
    fn chunk_over<S: Spooled + ?Sized>(&mut self, around: &mut Around<'_, S>);
}

/// Reads a value that lies in the body and was found to be JSON before.
pub(super) fn read_again<S: Spooled + ?Sized>(
    hashing: &mut Hashing,
    body: &S,
    range: Range<usize>,
    depth: usize,
    reader: &mut impl ValueReader,
) {
    let mut scanner = Scanner::value(range.start, depth);
    for chunk in body.slices(range) {
        let around = Around { hashing: &mut *hashing, body, chunk, base: scanner.at() };
        let mut sink = Again { reader: &mut *reader, around };
        // It was read before, without an error.
        let _ = scanner.push(chunk, &mut sink);
        sink.reader.chunk_over(&mut sink.around);
    }
    let around = Around { hashing, body, chunk: &[], base: scanner.at() };
    let _ = scanner.finish(&mut Again { reader, around });
}

struct Again<'a, R, S: ?Sized> {
    reader: &'a mut R,
    around: Around<'a, S>,
}

impl<R: ValueReader, S: Spooled + ?Sized> Sink for Again<'_, R, S> {
    fn event(&mut self, depth: usize, event: Event<'_>) -> Result<(), ScanError> {
        if !self.around.hashing.takes(event) {
            self.reader.event(depth, event, &mut self.around);
        }
        Ok(())
    }

    #[inline]
    fn text(&mut self, text: &[u8]) -> usize {
        self.around.hashing.takes_text(text)
    }
}

/// A value, or the part of one, that is hashed as it stands, as it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    /// Up to where it has been hashed.
    from: usize,
}

impl Bytes {
    pub(super) fn begin(at: usize) -> Self {
        Self { from: at }
    }

    pub(super) fn up_to<S: Spooled + ?Sized>(&mut self, end: usize, around: &mut Around<'_, S>) {
        around.push_of_chunk(self.from..end);
        self.from = end;
    }
}

/// A string that is hashed as the text that it is, and as it stands where it is none.
#[derive(Debug)]
pub(super) struct Text {
    mark: Mark,
    start: usize,
}

impl Text {
    pub(super) fn begin<S: Spooled + ?Sized>(start: usize, around: &mut Around<'_, S>) -> Self {
        around.text_begins();
        Self { mark: around.hashing.hasher.mark(), start }
    }

    /// Ends it before `end`.
    pub(super) fn end<S: Spooled + ?Sized>(self, end: usize, around: &mut Around<'_, S>) {
        match around.string_ends() {
            Found::Fine => around.hashing.place(self.mark.bytes(), self.start..end),
            Found::NoText => {
                around.hashing.hasher.go_back(self.mark);
                around.push_again(self.start..end);
            }
            Found::Broken => {}
        }
    }
}

impl Hashing {
    pub(super) fn begin(&mut self, level: Level, goes: Goes) {
        self.decoder.begin(level);
        self.text_goes = goes;
    }

    /// Takes an event that no reader need see: of a text whose way is known, or of a body that has no
    /// canonical text.
    #[inline]
    pub(super) fn takes(&mut self, event: Event<'_>) -> bool {
        if self.broken {
            return true;
        }
        if !matches!(event, Event::Piece(_) | Event::Escape(_)) {
            return false;
        }
        match self.text_goes {
            Goes::Up => return false,
            Goes::In => {
                let hasher = &mut self.hasher;
                feed(&mut self.decoder, event, |text| hasher.push(text));
            }
            Goes::Nowhere => feed(&mut self.decoder, event, |_| {}),
        }
        true
    }

    /// Takes what it can of a string's text at once. Returns how many bytes.
    #[inline]
    pub(super) fn takes_text(&mut self, text: &[u8]) -> usize {
        let plain = self.text_goes == Goes::In && !self.broken && self.decoder.between_characters();
        if plain { self.hasher.decode(text) } else { 0 }
    }

    /// Notes where a text stands.
    pub(super) fn place(&mut self, at: usize, body: Range<usize>) {
        if let Some(places) = &mut self.places {
            places.push(Place { at, body });
        }
    }
}

/// The first bytes of a name: enough to tell it from others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Name {
    bytes: [u8; 24],
    len: usize,
}

impl Name {
    pub(super) fn push(&mut self, text: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + text.len()) {
            place.copy_from_slice(text);
        }
        self.len += text.len();
    }

    /// The name; nothing when it is longer than any that means something.
    pub(super) fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
