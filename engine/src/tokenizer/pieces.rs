//! The bytes that each token stands for, looked up once so that decoding is an index.

use std::collections::HashMap;

use tokenizers::Tokenizer as Inner;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is one visible character, as GPT-2 has it.
    ByteLevel,
    /// Text with `▁` for a space and `<0x0A>` for single bytes, as SentencePiece has it.
    SentencePiece {
        /// Whether the first space of a text was put there by the tokenizer.
        strips_first_space: bool,
    },
    /// Words apart from each other by a space, with `##` before what continues one, as BERT has it.
    WordPiece,
}

#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
    special: Vec<bool>,
    longest: usize,
    spelling: Spelling,
}

impl Pieces {
    pub(super) fn new(inner: &Inner, spelling: Spelling) -> Self {
        let added = inner.get_added_tokens_decoder();
        let by_char = byte_of_char();
        let count = inner.get_vocab_size(true).max(added.keys().max().map_or(0, |m| *m as usize + 1));
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(count),
            special: vec![false; count],
            longest: 0,
            spelling,
        };
        for id in 0..count as u32 {
            let begin = pieces.bytes.len();
            if let Some(token) = added.get(&id) {
                pieces.bytes.extend(token.content.as_bytes());
                pieces.special[id as usize] = token.special;
            } else if let Some(written) = inner.id_to_token(id) {
                spell(&written, spelling, &by_char, &mut pieces.bytes);
            }
            pieces.longest = pieces.longest.max(pieces.bytes.len() - begin);
            pieces.ends.push(pieces.bytes.len() as u32);
        }
        pieces
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let begin = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[begin as usize..end as usize]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(super) fn strips_first_space(&self) -> bool {
        matches!(self.spelling, Spelling::SentencePiece { strips_first_space: true } | Spelling::WordPiece)
    }

    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

fn spell(written: &str, spelling: Spelling, by_char: &HashMap<char, u8>, out: &mut Vec<u8>) {
    match spelling {
        Spelling::ByteLevel => {
            for c in written.chars() {
                match by_char.get(&c) {
                    Some(byte) => out.push(*byte),
                    None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        }
        Spelling::SentencePiece { .. } => match byte_token(written) {
            Some(byte) => out.push(byte),
            None => out.extend(written.replace('▁', " ").as_bytes()),
        },
        Spelling::WordPiece => match written.strip_prefix("##") {
            Some(rest) => out.extend(rest.as_bytes()),
            None => out.extend([b" ", written.as_bytes()].concat()),
        },
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(written: &str) -> Option<u8> {
    let hex = written.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for characters from
/// U+0100 on.
pub(super) fn char_of_byte(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(256 + before).expect("256 to 323 are characters")
}

fn byte_of_char() -> HashMap<char, u8> {
    (0..=255).map(|byte| (char_of_byte(byte), byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_the_librarys() {
        let mut ours: Vec<char> = (0..=255).map(char_of_byte).collect();
        let mut theirs: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        assert_eq!((char_of_byte(b' '), char_of_byte(b'\n'), char_of_byte(0xad)), ('Ġ', 'Ċ', 'Ń'));
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
    }
}
