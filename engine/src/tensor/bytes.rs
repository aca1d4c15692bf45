//! A shared, read-only range of bytes: a part of a mapped file, or memory of our own.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// A range of a mapped file or of owned memory. Cloning shares it.
#[derive(Clone)]
pub struct Bytes {
    storage: Storage,
    range: Range<usize>,
}

#[derive(Clone)]
enum Storage {
    Mapped(Arc<Mmap>),
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// A part of a mapped file; none when the file is shorter.
    pub fn mapped(map: &Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        Some(Self { storage: Storage::Mapped(Arc::clone(map)), range })
    }

    /// A part of it.
    ///
    /// # Panics
    /// When it is shorter.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "bytes {range:?} of {}", self.len());
        let start = self.range.start;
        Self { storage: self.storage.clone(), range: start + range.start..start + range.end }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let all: &[u8] = match &self.storage {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }

    /// Gives the memory of a mapped file's pages back; they are read again when they are asked for.
    #[allow(unsafe_code)]
    pub(crate) fn forget_pages(&self) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &self.storage {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file and is never written to, so its pages come back as they were.
            // Refused, they only stay.
            let _ = unsafe { map.unchecked_advise_range(advice, self.range.start, self.range.len()) };
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), storage: Storage::Owned(bytes.into()) }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.storage {
            Storage::Mapped(_) => "mapped",
            Storage::Owned(_) => "owned",
        };
        write!(f, "{} bytes {source}", self.len())
    }
}
