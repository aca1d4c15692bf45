//! Rows of numbers in cache lines: what every kernel reads and writes.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Numbers in a line. Kernels keep one partial result for each, so results do not depend on how wide
/// the processor's registers are.
pub(super) const LANES: usize = 16;

/// Sixteen numbers, aligned as a cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; LANES]);

impl Line {
    pub(super) const ZERO: Self = Self([0.0; LANES]);
}

/// The lines' numbers, one after the other.
#[inline]
pub(super) fn flat(lines: &[Line]) -> &[f32] {
    // SAFETY: a Line is 16 floats without padding, so n lines are 16 n floats in a row.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The lines' numbers, one after the other.
#[inline]
pub(super) fn flat_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as for `flat`; the borrow is exclusive and passes on.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// The lines' bytes, one after the other.
#[inline]
pub(super) fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a Line is 64 bytes without padding, and any float is four valid bytes.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The lines' bytes, one after the other.
#[inline]
pub(super) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as for `bytes`; the borrow is exclusive and passes on, and any bytes are valid floats.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// Lines of zeros that cost memory only once they are written to.
pub(super) struct ZeroedLines {
    map: MmapMut,
    count: usize,
}

impl ZeroedLines {
    /// `count` lines; none when the system refuses.
    pub(super) fn new(count: usize) -> Option<Self> {
        // The allocator would write every page to align it so; the system hands zeroed pages out late.
        let bytes = count.checked_mul(size_of::<Line>()).filter(|bytes| isize::try_from(*bytes).is_ok())?;
        Some(Self { map: MmapMut::map_anon(bytes.max(1)).ok()?, count })
    }

    /// Asks for large pages, of which fewer have to be looked up. For memory that is going to be written
    /// whole, or from its beginning on: a large page is taken at its first byte.
    pub(super) fn use_large_pages(&self) {
        // Only a hint; without it everything is slower and still right.
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
    }
}

impl Deref for ZeroedLines {
    type Target = [Line];

    #[inline]
    fn deref(&self) -> &[Line] {
        // SAFETY: the map begins at a page, so it is aligned to a line; it holds `count` lines, and any
        // bytes are valid floats.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

impl DerefMut for ZeroedLines {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above; the borrow of the map is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.count) }
    }
}

/// A matrix of activations: a row for each token, padded with zeros to whole lines.
#[derive(Debug, Default)]
pub(super) struct Rows {
    lines: Vec<Line>,
    width: usize,
    count: usize,
}

impl Rows {
    /// Makes it `count` rows of `width`, whose numbers are unspecified but for the padding.
    pub(super) fn reshape(&mut self, count: usize, width: usize) {
        if self.width != width {
            self.lines.clear();
        }
        self.width = width;
        self.count = count;
        self.lines.resize(count * width.div_ceil(LANES), Line::ZERO);
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Lines of a row.
    pub(super) fn stride(&self) -> usize {
        self.width.div_ceil(LANES)
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// One row, without its padding.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        let stride = self.stride();
        &flat(&self.lines[row * stride..(row + 1) * stride])[..self.width]
    }

    /// One row, without its padding.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let stride = self.stride();
        &mut flat_mut(&mut self.lines[row * stride..(row + 1) * stride])[..self.width]
    }

    /// Access for several threads that write to different places.
    pub(super) fn shared(&mut self) -> SharedRows<'_> {
        let (stride, width, count) = (self.stride(), self.width, self.count);
        SharedRows { lines: Shared::new(&mut self.lines), stride, width, count, base: 0 }
    }
}

/// [`Rows`] that several threads write to at once, each to its own columns or rows.
#[derive(Clone, Copy)]
pub(super) struct SharedRows<'a> {
    lines: Shared<'a, Line>,
    stride: usize,
    width: usize,
    count: usize,
    /// The line that the rows begin with.
    base: usize,
}

impl<'a> SharedRows<'a> {
    /// The same rows, taken for a part of wider ones that begins with this line.
    pub(super) fn starting_at(self, base: usize) -> Self {
        Self { base, ..self }
    }

    /// Writes one number.
    ///
    /// # Safety
    /// No other thread writes to or reads from this place during the borrow.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) unsafe fn set(&self, row: usize, column: usize, value: f32) {
        let column = column - self.base * LANES;
        assert!(row < self.count && column < self.width, "({row}, {column}) is outside the rows");
        // SAFETY: the line lies inside the borrowed rows by the check above; the caller vouches that
        // nobody else touches the place, and nothing but the place is touched.
        unsafe {
            let line = self.lines.start.add(row * self.stride + column / LANES);
            (&raw mut (*line).0).cast::<f32>().add(column % LANES).write(value);
        }
    }

    /// Asks for a line that will be written soon, so that the stores before it need not wait for it.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) fn prefetch(&self, row: usize, line: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let address = self.lines.start.wrapping_add(row * self.stride + line - self.base);
            // SAFETY: a prefetch of any address has no effect but on caches.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (row, line);
    }

    /// Lines of one row, for the caller alone.
    ///
    /// # Safety
    /// No other thread writes to or reads from these lines during the borrow.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) unsafe fn lines(&self, row: usize, first: usize, count: usize) -> &'a mut [Line] {
        let first = first - self.base;
        assert!(row < self.count && first + count <= self.stride, "lines outside the rows");
        // SAFETY: the caller vouches for it.
        unsafe { self.lines.slice(row * self.stride + first, count) }
    }
}

/// A slice that several threads write to at once, each to its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a pointer into an exclusive borrow; `slice` leaves it to its caller that no two threads
// have one place at once.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// A part of it.
    ///
    /// # Safety
    /// Nobody else has any of this part while the returned slice lives.
    #[inline(always)]
    #[allow(clippy::inline_always, clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, first: usize, count: usize) -> &'a mut [T] {
        assert!(first <= self.len && count <= self.len - first, "{count} from {first} of {}", self.len);
        // SAFETY: the part lies inside the borrow by the check above; the caller vouches that it is his.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
