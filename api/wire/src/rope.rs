//! A body in the parts that it was received in, never joined: cheap to clone for a second try, and
//! patched by putting other parts between its own.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// Largest part that a [`Spool`] makes. What a body takes beyond its own size is less than one of these.
pub const PART_BYTES: usize = 64 * 1024;
/// Smallest part that a [`Spool`] makes, where it is not told that less will come.
const FIRST_PART: usize = 4 * 1024;

/// A body of which any part can be read again.
pub trait Spooled {
    /// The bytes of a range, in order, in as many slices as they lie in.
    fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]>;
}

impl Spooled for [u8] {
    fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        self.get(range).into_iter()
    }
}

/// A part and where it begins.
#[derive(Clone, Debug)]
struct Part {
    at: usize,
    bytes: Bytes,
}

/// The parts that hold a range, with what of each is in it.
fn within(parts: &[Part], range: Range<usize>) -> impl Iterator<Item = (&Bytes, Range<usize>)> {
    let first = parts.partition_point(|part| part.at + part.bytes.len() <= range.start);
    parts[first..].iter().take_while(move |part| part.at < range.end).map(move |part| {
        let end = (range.end - part.at).min(part.bytes.len());
        (&part.bytes, range.start.saturating_sub(part.at)..end)
    })
}

/// Takes a body as it comes. It copies: a chunk of a connection holds the buffer that it was read into,
/// which may be a hundred times its size, and a body of one-byte chunks would hold thousands of them.
#[derive(Debug, Default)]
pub struct Spool {
    parts: Vec<Part>,
    open: BytesMut,
    /// Where `open` begins.
    open_at: usize,
    /// Bytes that are still to come, as the sender says.
    expected: Option<usize>,
}

impl Spool {
    /// An empty spool, for a body of this length if it is known.
    pub fn new(expected: Option<usize>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.open_at + self.open.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes.
    pub fn push(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            if self.open.len() == self.open.capacity() {
                self.close();
                self.open = BytesMut::with_capacity(self.next_part());
            }
            let take = (self.open.capacity() - self.open.len()).min(chunk.len());
            self.open.extend_from_slice(&chunk[..take]);
            chunk = &chunk[take..];
        }
    }

    /// What comes next in one part: what is promised, or as much as has come.
    fn next_part(&self) -> usize {
        let promised = self.expected.map(|all| all.saturating_sub(self.open_at)).filter(|left| *left > 0);
        promised.unwrap_or(self.open_at.max(FIRST_PART)).min(PART_BYTES)
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let bytes = std::mem::take(&mut self.open).freeze();
            let at = self.open_at;
            self.open_at += bytes.len();
            self.parts.push(Part { at, bytes });
        }
    }

    /// The whole body.
    pub fn finish(mut self) -> Rope {
        self.close();
        Rope { len: self.open_at, parts: self.parts.into() }
    }
}

impl Spooled for Spool {
    fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let (from, to) = (range.start.max(self.open_at), range.end);
        let open = (from < to).then(|| &self.open[from - self.open_at..to - self.open_at]);
        within(&self.parts, range).map(|(bytes, at)| &bytes[at]).chain(open)
    }
}

/// A body in parts. A clone shares them.
#[derive(Clone, Debug)]
pub struct Rope {
    parts: Arc<[Part]>,
    len: usize,
}

impl Rope {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().map(|part| &part.bytes)
    }

    /// A range of it, which shares its bytes.
    pub fn share(&self, range: Range<usize>) -> impl Iterator<Item = Bytes> {
        within(&self.parts, range).map(|(bytes, at)| bytes.slice(at))
    }

    /// A range of it in one piece: copied where it lies in several parts, so for small ones.
    pub fn joined(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        let mut slices = self.slices(range.clone());
        match (slices.next(), slices.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => Cow::Borrowed(only),
            (Some(_), Some(_)) => Cow::Owned(self.slices(range).flatten().copied().collect()),
        }
    }
}

impl Spooled for Rope {
    fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        within(&self.parts, range).map(|(bytes, at)| &bytes[at])
    }
}

impl FromIterator<Bytes> for Rope {
    fn from_iter<I: IntoIterator<Item = Bytes>>(bytes: I) -> Self {
        let (mut parts, mut len) = (Vec::new(), 0);
        for bytes in bytes {
            if !bytes.is_empty() {
                let at = len;
                len += bytes.len();
                parts.push(Part { at, bytes });
            }
        }
        Self { parts: parts.into(), len }
    }
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        std::iter::once(bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_byte_chunks_of_large_buffers_are_not_held() {
        let mut spool = Spool::new(None);
        for _ in 0..200_000 {
            spool.push(&Bytes::from(vec![b'x'; 8192]).slice(..1));
        }
        let rope = spool.finish();
        assert_eq!(rope.len(), 200_000);
        assert!(rope.parts().count() < 10);
    }

    #[test]
    fn a_promise_is_taken_at_its_word_and_no_further() {
        let mut spool = Spool::new(Some(10));
        spool.push(b"0123456789");
        assert_eq!(spool.open.capacity(), 10);
        spool.push(b"more than was promised");
        assert_eq!(spool.finish().len(), 32);
        let mut spool = Spool::new(Some(usize::MAX));
        spool.push(b"x");
        assert_eq!(spool.open.capacity(), PART_BYTES);
    }

    proptest! {
        /// However a body is cut, every range of it reads the same before and after its end.
        #[test]
        fn ranges_read_the_same(bytes in prop::collection::vec(any::<u8>(), 0..20_000), cut in 1usize..9000, a: prop::sample::Index, b: prop::sample::Index, promised: bool) {
            let (a, b) = (a.index(bytes.len() + 1), b.index(bytes.len() + 1));
            let range = a.min(b)..a.max(b);
            let mut spool = Spool::new(promised.then_some(bytes.len()));
            for chunk in bytes.chunks(cut) {
                spool.push(chunk);
            }
            prop_assert_eq!(spool.slices(range.clone()).collect::<Vec<_>>().concat(), &bytes[range.clone()]);
            let rope = spool.finish();
            prop_assert_eq!(rope.len(), bytes.len());
            prop_assert_eq!(&*rope.joined(range.clone()), &bytes[range.clone()]);
            let shared: Rope = rope.share(range.clone()).collect();
            prop_assert_eq!(shared.parts().flatten().copied().collect::<Vec<_>>(), &bytes[range]);
        }
    }
}
