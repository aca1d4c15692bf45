//! Quantised matrices in the layout of [`codes`](super::codes), made once when a model is opened.

use std::ops::Range;

use super::codes::{
    Ahead, Codes, Eight, Five, Floats, Four, Plain, SUPER_TILES, Scales, Seven, Six, Super, Three, Two,
    VECTORS, Vector, WithMinima,
};
use super::lines::{LANES, Line, Shared, ZeroedLines, bytes, bytes_mut};
use super::quantise::BLOCK;
use super::simd::CODES;
use super::team::Machine;
use crate::tensor::{StoredTile, Tensor, TensorKind, stored_tile};

/// Rows of a group.
pub(super) const GROUP: usize = LANES;

/// A quantised matrix, repacked.
pub(super) struct Packed {
    kind: TensorKind,
    rows: usize,
    cols: usize,
    layout: Layout,
    lines: ZeroedLines,
}

/// Where a group's parts begin, in bytes from its own beginning.
#[derive(Clone, Copy, Debug)]
struct Layout {
    tiles: usize,
    form: Form,
    low: usize,
    high: usize,
    scales: usize,
    minima: usize,
    scale_of_scales: usize,
    scale_of_minima: usize,
    /// Bytes of a group.
    len: usize,
}

/// What a kind's tiles consist of.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Bits of a code in the first and in the second part.
    low_bits: usize,
    high_bits: usize,
    /// Bytes of a scale: 2 for a half-precision one, 1 for one that is itself scaled.
    scale_bytes: usize,
    /// Scales of a row in a tile.
    parts: usize,
    minima: bool,
}

impl Form {
    /// How this kind is packed; none for those that are not quantised.
    fn of(kind: TensorKind) -> Option<Self> {
        let form = |low_bits, high_bits, scale_bytes, parts, minima| {
            Some(Self { low_bits, high_bits, scale_bytes, parts, minima })
        };
        match kind {
            TensorKind::F32 | TensorKind::F16 | TensorKind::BF16 => None,
            TensorKind::Q4_0 => form(4, 0, 2, 1, false),
            TensorKind::Q4_1 => form(4, 0, 2, 1, true),
            TensorKind::Q5_0 => form(4, 1, 2, 1, false),
            TensorKind::Q5_1 => form(4, 1, 2, 1, true),
            TensorKind::Q8_0 => form(8, 0, 2, 1, false),
            TensorKind::Q2K => form(2, 0, 1, 2, true),
            TensorKind::Q3K => form(2, 1, 1, 2, false),
            TensorKind::Q4K => form(4, 0, 1, 1, true),
            TensorKind::Q5K => form(4, 1, 1, 1, true),
            TensorKind::Q6K => form(4, 2, 1, 2, false),
        }
    }
}

impl Layout {
    fn new(form: Form, tiles: usize) -> Self {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(size_of::<Line>());
            start
        };
        let scale_bytes = tiles * form.parts * form.scale_bytes * LANES;
        let supers = if form.scale_bytes == 1 { tiles.div_ceil(SUPER_TILES) * 2 * LANES } else { 0 };
        let scale_of_scales = take(supers);
        let scale_of_minima = take(if form.minima { supers } else { 0 });
        let scales = take(scale_bytes);
        let minima = take(if form.minima { scale_bytes } else { 0 });
        let low = take(tiles * form.low_bits * CODES);
        let high = take(tiles * form.high_bits * CODES);
        Self { tiles, form, low, high, scales, minima, scale_of_scales, scale_of_minima, len: end }
    }
}

impl Packed {
    /// Repacks a quantised matrix on all threads: `Ok(None)` for other formats, an error when the system
    /// has no memory for it.
    pub(super) fn new(machine: &mut Machine, tensor: &Tensor) -> Result<Option<Self>, String> {
        let Some(form) = Form::of(tensor.kind()) else { return Ok(None) };
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let layout = Layout::new(form, cols / BLOCK);
        let (groups, group_lines) = (rows.div_ceil(GROUP), layout.len / size_of::<Line>());
        let no_memory = || format!("no memory for a matrix of {rows} by {cols}");
        let mut lines = groups.checked_mul(group_lines).and_then(ZeroedLines::new).ok_or_else(no_memory)?;
        lines.use_large_pages();
        let shared = Shared::new(&mut lines);
        machine.for_ranges(groups, 1, |_, groups| {
            for group in groups {
                // SAFETY: each group is written by the one task that has it.
                let out = bytes_mut(unsafe { shared.slice(group * group_lines, group_lines) });
                pack(tensor, group * GROUP..rows.min((group + 1) * GROUP), &layout, out);
            }
        });
        Ok(Some(Self { kind: tensor.kind(), rows, cols, layout, lines }))
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Calls `visitor` with `N` groups from one on, in their own types.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) fn visit<V: Visitor, const N: usize>(&self, first: usize, visitor: V) -> V::Output {
        let group_lines = self.layout.len / size_of::<Line>();
        let layout = self.layout;
        let groups = bytes(&self.lines[first * group_lines..(first + N) * group_lines]);
        let ahead = Ahead::new::<N>(groups, layout.tiles);
        let part = |n: usize, start: usize, len: usize| &groups[n * layout.len + start..][..len];
        let low = |n: usize| part(n, layout.low, layout.tiles * layout.form.low_bits * CODES);
        let high = |n: usize| -> &[Vector] {
            part(n, layout.high, layout.tiles * layout.form.high_bits * CODES).as_chunks().0
        };
        let halves = |n: usize, start: usize, count: usize| part(n, start, count * 2 * LANES).as_chunks().0;
        let plain = |n: usize| Plain(halves(n, layout.scales, layout.tiles));
        let with_minima = |n: usize| {
            WithMinima(halves(n, layout.scales, layout.tiles), halves(n, layout.minima, layout.tiles))
        };
        let small =
            |n: usize, start: usize| part(n, start, layout.tiles * layout.form.parts * LANES).as_chunks().0;
        let supers = layout.tiles.div_ceil(SUPER_TILES);
        macro_rules! scaled {
            ($halves:literal, true) => {
                |n: usize| Super::<$halves, true> {
                    scales: small(n, layout.scales),
                    minima: small(n, layout.minima),
                    scale_of_scales: halves(n, layout.scale_of_scales, supers),
                    scale_of_minima: halves(n, layout.scale_of_minima, supers),
                }
            };
            ($halves:literal, false) => {
                |n: usize| Super::<$halves, false> {
                    scales: small(n, layout.scales),
                    minima: &[],
                    scale_of_scales: halves(n, layout.scale_of_scales, supers),
                    scale_of_minima: &[],
                }
            };
        }
        macro_rules! visit {
            ($codes:expr, $scales:expr, $zero:expr) => {{
                let (codes, scales) = (std::array::from_fn($codes), std::array::from_fn($scales));
                visitor.visit::<_, _, N>(Packs { codes, scales, zero: $zero, ahead })
            }};
        }
        let four = |n: usize| Four(low(n).as_chunks::<CODES>().0.as_chunks().0);
        let two = |n: usize| Two(low(n).as_chunks::<CODES>().0.as_chunks().0);
        match self.kind {
            TensorKind::Q4_0 => visit!(four, plain, Some(3)),
            TensorKind::Q4_1 => visit!(four, with_minima, None),
            TensorKind::Q5_0 => visit!(|n| Five(four(n), high(n)), plain, Some(4)),
            TensorKind::Q5_1 => visit!(|n| Five(four(n), high(n)), with_minima, None),
            TensorKind::Q8_0 => {
                visit!(|n| Eight(low(n).as_chunks::<CODES>().0.as_chunks().0), plain, Some(7))
            }
            TensorKind::Q2K => visit!(two, scaled!(true, true), None),
            TensorKind::Q3K => visit!(|n| Three(two(n), high(n)), scaled!(true, false), Some(2)),
            TensorKind::Q4K => visit!(four, scaled!(false, true), None),
            TensorKind::Q5K => visit!(|n| Five(four(n), high(n)), scaled!(false, true), None),
            TensorKind::Q6K => {
                visit!(|n| Six(four(n), Two(high(n).as_chunks().0)), scaled!(true, false), Some(5))
            }
            TensorKind::F32 | TensorKind::F16 | TensorKind::BF16 => unreachable!("not packed"),
        }
    }
}

/// Neighbouring groups of one format. A weight is `scale × (code − 2^zero) + minimum`, or without `zero`
/// `scale × code + minimum`.
#[derive(Clone, Copy)]
pub(super) struct Packs<'a, C, X, const N: usize> {
    pub(super) codes: [C; N],
    pub(super) scales: [X; N],
    pub(super) zero: Option<u32>,
    pub(super) ahead: Ahead<'a>,
}

/// What is done with groups of any format.
pub(super) trait Visitor {
    type Output;

    fn visit<C: Codes, X: Scales, const N: usize>(self, groups: Packs<'_, C, X, N>) -> Self::Output;
}

/// Writes up to sixteen rows of a matrix into the lanes of a group.
fn pack(tensor: &Tensor, rows: Range<usize>, layout: &Layout, group: &mut [u8]) {
    let Layout { tiles, form, .. } = *layout;
    let kind = tensor.kind();
    let rows: Vec<&[u8]> = rows.map(|row| tensor.row(row)).collect();
    for tile in 0..tiles {
        for (lane, row) in rows.iter().enumerate() {
            let StoredTile { codes, scales, minima, scale_of_scales, scale_of_minima } =
                stored_tile(kind, row, tile);
            put_codes(codes, form, [layout.low, layout.high], (tile, lane), group);
            let mut put_scales = |start: usize, scales: &[[u8; 2]; 2]| {
                for (part, scale) in scales.iter().take(form.parts).enumerate() {
                    let at = start + ((tile * form.parts + part) * LANES + lane) * form.scale_bytes;
                    group[at..at + form.scale_bytes].copy_from_slice(&scale[..form.scale_bytes]);
                }
            };
            put_scales(layout.scales, &scales);
            if form.minima {
                put_scales(layout.minima, &minima);
            }
            if form.scale_bytes == 1 && tile.is_multiple_of(SUPER_TILES) {
                let at = (tile / SUPER_TILES * LANES + lane) * 2;
                group[layout.scale_of_scales + at..][..2].copy_from_slice(&scale_of_scales);
                if form.minima {
                    group[layout.scale_of_minima + at..][..2].copy_from_slice(&scale_of_minima);
                }
            }
        }
    }
}

/// Writes a row's codes of a tile to its lane, the lower bits from `starts[0]` of the group on, the upper
/// from `starts[1]`.
#[inline(always)]
#[allow(clippy::inline_always)]
fn put_codes(
    words: [u32; VECTORS],
    form: Form,
    starts: [usize; 2],
    (tile, lane): (usize, usize),
    group: &mut [u8],
) {
    macro_rules! put {
        ($bits:literal, $start:expr, $from:expr) => {
            for (vector, word) in fields::<$bits>(words, $from as u32).into_iter().enumerate() {
                let at = $start + (tile * $bits + vector) * CODES + 4 * lane;
                group[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        };
    }
    match form.low_bits {
        2 => put!(2, starts[0], 0),
        4 => put!(4, starts[0], 0),
        _ => put!(8, starts[0], 0),
    }
    match form.high_bits {
        0 => {}
        1 => put!(1, starts[1], form.low_bits),
        _ => put!(2, starts[1], form.low_bits),
    }
}

/// `BITS` bits of each code from bit `from` on: those of word `i + BITS × n` in field `n` of word `i`, for
/// all four codes of a word at once.
#[inline(always)]
#[allow(clippy::inline_always)]
fn fields<const BITS: usize>(words: [u32; VECTORS], from: u32) -> [u32; BITS] {
    let mask = 0x0101_0101 * ((1 << BITS) - 1);
    std::array::from_fn(|i| {
        let field = |n: usize| ((words[i + BITS * n] >> from) & mask) << (BITS * n);
        (0..VECTORS / BITS).map(field).fold(0, |word, field| word | field)
    })
}

/// A group unpacked for many tokens: its codes as bytes, its scales as floats.
#[derive(Default)]
pub(super) struct Unpacked {
    codes: Vec<[Line; VECTORS]>,
    scales: Vec<Line>,
    minima: Vec<Line>,
}

impl Unpacked {
    /// Takes a group's numbers; with `zero` each code becomes a signed byte, less two to its power.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) fn take<S: super::simd::Simd, C: Codes, X: Scales>(
        &mut self,
        s: S,
        codes: C,
        scales: X,
        tiles: usize,
        zero: Option<u32>,
        ahead: Option<Ahead<'_>>,
    ) {
        let parts = if X::HALVES { 2 } else { 1 };
        // Only ever grown: what an earlier group left is overwritten.
        if self.codes.len() < tiles {
            self.codes.resize(tiles, [Line::ZERO; VECTORS]);
        }
        if self.scales.len() < 2 * tiles {
            self.scales.resize(2 * tiles, Line::ZERO);
            self.minima.resize(2 * tiles, Line::ZERO);
        }
        for tile in 0..tiles {
            if let Some(ahead) = ahead {
                ahead.prefetch(s, tile);
            }
            for (line, u) in self.codes[tile].iter_mut().zip(codes.tile(s, tile)) {
                let u = if let Some(zero) = zero { s.code_less(u, 1 << zero) } else { u };
                s.store_codes(line, u);
            }
            for half in 0..parts {
                s.store(&mut self.scales[parts * tile + half], scales.scale(s, tile, half));
                if X::MINIMA {
                    s.store(&mut self.minima[parts * tile + half], scales.minimum(s, tile, half));
                }
            }
        }
    }

    /// The codes.
    pub(super) fn seven(&self) -> Seven<'_> {
        Seven(self.vectors())
    }

    /// The codes, when some are beyond 127.
    pub(super) fn eight(&self) -> Eight<'_> {
        Eight(self.vectors())
    }

    /// The codes' lines, [`VECTORS`] for each tile, and the scales and minima of each tile or half tile.
    pub(super) fn lines(&self) -> (&[Line], &[Line], &[Line]) {
        (self.codes.as_flattened(), &self.scales, &self.minima)
    }

    fn vectors(&self) -> &[[Vector; VECTORS]] {
        bytes(self.codes.as_flattened()).as_chunks().0.as_chunks().0
    }

    pub(super) fn scales<const HALVES: bool, const MINIMA: bool>(&self) -> Floats<'_, HALVES, MINIMA> {
        Floats(&self.scales, &self.minima)
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
