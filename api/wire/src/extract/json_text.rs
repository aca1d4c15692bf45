//! What the bytes of a JSON string stand for, many of them looked at together.

use wide::u8x16;

/// Bytes that are looked at together.
pub(crate) const STRIDE: usize = 32;

/// What [`STRIDE`] bytes are: a bit for each, the first one's the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Control characters, quotes and backslashes; and one behind the last.
    others: u64,
    /// What is not ASCII.
    high: u64,
}

/// Looks at the first [`STRIDE`] bytes of these.
#[inline]
pub(crate) fn marks(bytes: &[u8; 2 * STRIDE]) -> Marks {
    let (mut others, mut high) = (1 << STRIDE, 0);
    for (n, lane) in bytes[..STRIDE].as_chunks::<16>().0.iter().enumerate() {
        let lane = u8x16::new(*lane);
        let other = lane.simd_le(u8x16::splat(0x1f))
            | lane.simd_eq(u8x16::splat(b'"'))
            | lane.simd_eq(u8x16::splat(b'\\'));
        others |= u64::from(other.to_bitmask()) << (16 * n);
        high |= u64::from(lane.to_bitmask()) << (16 * n);
    }
    Marks { others, high }
}

impl Marks {
    /// How many bytes from this one on, at most the [`STRIDE`]th, stand for themselves.
    #[inline]
    pub(crate) fn plain(self, at: usize) -> usize {
        (self.others >> at).trailing_zeros() as usize
    }

    /// Whether so many bytes from this one on are ASCII.
    #[inline]
    pub(crate) fn are_ascii(self, at: usize, bytes: usize) -> bool {
        (self.high >> at) & ((1 << bytes) - 1) == 0
    }
}

/// How many bytes of a JSON string's text can be passed over, whatever they are, without passing its end.
pub(crate) fn skim(json: &[u8]) -> usize {
    let mut at = 0;
    while let Some(window) = json[at..].first_chunk() {
        let marks = marks(window);
        let mut from = 0;
        while from < STRIDE {
            from += marks.plain(from);
            match window[from] {
                _ if from >= STRIDE => {}
                b'"' => return at + from,
                b'\\' => from += 2,
                _ => from += 1,
            }
        }
        at += from;
    }
    at
}

/// What a backslash and this byte stand for; nothing when it takes more than them, or is no escape.
#[inline]
pub(crate) fn letter(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn marks_tell_bytes_apart(bytes: [u8; STRIDE], text in "[ -~é世]{32}", from in 0..STRIDE) {
            let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
            for half in [bytes, *text.as_bytes().first_chunk().unwrap()] {
                let mut window = [b'"'; 2 * STRIDE];
                window[..STRIDE].copy_from_slice(&half);
                let marks = marks(&window);
                let rest = &half[from..];
                let found = marks.plain(from);
                prop_assert_eq!(found, rest.iter().take_while(|byte| plain(**byte)).count());
                prop_assert_eq!(marks.are_ascii(from, found), rest[..found].is_ascii());
            }
        }
    }
}
