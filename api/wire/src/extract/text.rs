//! The text of strings, decoded as it comes.

use super::json_text::letter;

/// How closely a string is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Only its form, as of a value that nobody reads.
    Form,
    /// That it is UTF-8 as well: its bytes are hashed as they stand.
    Bytes,
    /// Decoded.
    Text,
}

/// What a string has turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Found {
    /// What was asked for.
    Fine,
    /// Valid JSON that stands for no text: half a surrogate pair.
    NoText,
    /// No JSON.
    Broken,
}

/// Decodes one string after the other.
#[derive(Debug)]
pub(super) struct Decoder {
    level: Level,
    found: Found,
    /// Digits of `\u` that are still to come, and what the others say.
    digits: u8,
    unit: u16,
    /// The first half of a surrogate pair, whose second must follow.
    high: Option<u16>,
    /// The beginning of a character that goes on in the next piece.
    begun: [u8; 4],
    begun_len: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            level: Level::Form,
            found: Found::Fine,
            digits: 0,
            unit: 0,
            high: None,
            begun: [0; 4],
            begun_len: 0,
        }
    }

    /// A string begins.
    pub(super) fn begin(&mut self, level: Level) {
        *self = Self { level, ..Self::new() };
    }

    /// The string has ended.
    pub(super) fn end(&mut self) -> Found {
        if self.digits > 0 {
            self.is(Found::Broken);
        }
        self.between();
        if self.high.take().is_some() {
            self.is(Found::NoText);
        }
        self.found
    }

    /// Whether what comes next is a character of its own, in a text that is fine so far.
    #[inline]
    pub(super) fn between_characters(&self) -> bool {
        self.found == Found::Fine && self.digits == 0 && self.high.is_none() && self.begun_len == 0
    }

    fn is(&mut self, found: Found) {
        self.found = self.found.max(found);
    }

    /// No character may go on over this place.
    fn between(&mut self) {
        if std::mem::take(&mut self.begun_len) > 0 {
            self.is(Found::Broken);
        }
    }

    /// Text without escapes.
    pub(super) fn piece(&mut self, mut piece: &[u8], out: &mut impl FnMut(&[u8])) {
        while self.digits > 0 {
            let Some((digit, rest)) = piece.split_first() else { return };
            piece = rest;
            self.digit(*digit, out);
        }
        if piece.is_empty() || self.found == Found::Broken {
            return;
        }
        if self.high.take().is_some() {
            self.is(Found::NoText);
        }
        // Over all of them, without a way out on the way: many bytes are looked at at once.
        let (least, bits) =
            piece.iter().fold((u8::MAX, 0), |(least, bits), byte| (least.min(*byte), bits | byte));
        if least < 0x20 {
            self.is(Found::Broken);
        } else if bits < 0x80 && self.begun_len == 0 {
            out(piece);
        } else if self.level > Level::Form {
            self.characters(piece, out);
        }
    }

    fn characters(&mut self, mut piece: &[u8], out: &mut impl FnMut(&[u8])) {
        while self.begun_len > 0 {
            let Some((byte, rest)) = piece.split_first() else { return };
            piece = rest;
            self.begun[self.begun_len] = *byte;
            self.begun_len += 1;
            match std::str::from_utf8(&self.begun[..self.begun_len]) {
                Ok(character) => {
                    out(character.as_bytes());
                    self.begun_len = 0;
                }
                Err(error) if error.error_len().is_some() => return self.between(),
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(text) => out(text.as_bytes()),
            Err(error) if error.error_len().is_some() => self.is(Found::Broken),
            Err(error) => {
                let (text, begun) = piece.split_at(error.valid_up_to());
                out(text);
                self.begun[..begun.len()].copy_from_slice(begun);
                self.begun_len = begun.len();
            }
        }
    }

    /// A backslash and this byte.
    pub(super) fn escape(&mut self, byte: u8, out: &mut impl FnMut(&[u8])) {
        self.between();
        if self.digits > 0 {
            return self.is(Found::Broken);
        }
        if byte != b'u' && self.high.take().is_some() {
            self.is(Found::NoText);
        }
        match letter(byte) {
            Some(byte) => out(&[byte]),
            None if byte == b'u' => (self.digits, self.unit) = (4, 0),
            None => self.is(Found::Broken),
        }
    }

    fn digit(&mut self, digit: u8, out: &mut impl FnMut(&[u8])) {
        let Some(value) = char::from(digit).to_digit(16) else {
            self.digits = 0;
            return self.is(Found::Broken);
        };
        self.unit = self.unit << 4 | value as u16;
        self.digits -= 1;
        if self.digits > 0 {
            return;
        }
        let scalar = match (self.high.take(), self.unit) {
            (None, high @ 0xd800..=0xdbff) => {
                self.high = Some(high);
                return;
            }
            (None, unit) => u32::from(unit),
            (Some(high), low @ 0xdc00..=0xdfff) => {
                0x1_0000 + (u32::from(high - 0xd800) << 10) + u32::from(low - 0xdc00)
            }
            (Some(_), _) => return self.is(Found::NoText),
        };
        match char::from_u32(scalar) {
            Some(character) => out(character.encode_utf8(&mut [0; 4]).as_bytes()),
            None => self.is(Found::NoText),
        }
    }
}
