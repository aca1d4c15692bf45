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
        SharedRows {
            start: flat_mut(&mut self.lines).as_mut_ptr(),
            stride: self.width.div_ceil(LANES) * LANES,
            width: self.width,
            count: self.count,
            borrow: PhantomData,
        }
    }
}

/// [`Rows`] that several threads write to at once, each to its own columns or rows.
#[derive(Clone, Copy)]
pub(super) struct SharedRows<'a> {
    start: *mut f32,
    stride: usize,
    width: usize,
    count: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a pointer into an exclusive borrow of floats; `set` leaves it to its caller that no two
// threads write to one place.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl SharedRows<'_> {
    /// Writes one number.
    ///
    /// # Safety
    /// No other thread writes to or reads from this place during the borrow.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) unsafe fn set(&self, row: usize, column: usize, value: f32) {
        assert!(row < self.count && column < self.width, "({row}, {column}) is outside the rows");
        // SAFETY: the place lies inside the borrowed rows by the check above; the caller vouches that
        // nobody else touches it.
        unsafe { self.start.add(row * self.stride + column).write(value) };
    }
}
