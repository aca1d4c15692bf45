//! Token ids to text, one at a time, never cutting a character.

use std::sync::Arc;

use super::Tokenizer;

/// The state of one sequence's text. At most three bytes are ever held back.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    pending: Vec<u8>,
    skip_special: bool,
    /// Special tokens that give text in any case.
    kept: Arc<[u32]>,
    begun: bool,
}

impl Detokenizer {
    /// Nothing decoded yet. With `skip_special`, special tokens give no text.
    pub fn new(skip_special: bool) -> Self {
        Self { pending: Vec::new(), skip_special, kept: Arc::default(), begun: false }
    }

    /// The same, but these special tokens give text in any case.
    pub fn keeping(skip_special: bool, kept: Arc<[u32]>) -> Self {
        Self { kept, ..Self::new(skip_special) }
    }

    /// For text that goes on from other text, so that a leading space is part of it.
    pub fn continuing(skip_special: bool) -> Self {
        Self { begun: true, ..Self::new(skip_special) }
    }

    /// The text that this token completes; empty when it ends inside a character.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.skip_special && tokenizer.is_special(id) && !self.kept.contains(&id) {
            return String::new();
        }
        let mut bytes = tokenizer.bytes(id);
        if !self.begun && !tokenizer.is_special(id) {
            self.begun = true;
            if tokenizer.strips_first_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() - unfinished(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }

    /// What is left when no more tokens come: a cut character becomes U+FFFD.
    pub fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Bytes at the end that begin a character and could still become one.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - back..];
        let length = match tail[0] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 0,
        };
        let open = length > back && std::str::from_utf8(tail).is_err_and(|e| e.error_len().is_none());
        return if open { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_still_become_a_character_is_held_back() {
        for (bytes, held) in [
            (&b"abc"[..], 0),
            ("é".as_bytes(), 0),
            (&b"a\xc3"[..], 1),
            (&"👍".as_bytes()[..3], 3),
            (&"👍".as_bytes()[..1], 1),
            (b"\x80\x80", 0),
            (b"\xff", 0),
            (b"\xe0\x80", 0),
        ] {
            assert_eq!(unfinished(bytes), held, "{bytes:x?}");
        }
    }
}
