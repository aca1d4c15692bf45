//! Products of bytes on tiles: sixteen rows of weights with sixteen tokens in one instruction
//! ("Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1, chapter 18).
//!
//! The sums of a tile are those of [`integer`](super::integer), integers that have no order, and what is
//! done with them is done in the same order: so the results have the same bits.
#![allow(clippy::wildcard_imports)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::codes::{Codes, Scales, VECTORS};
use super::integer::Groups;
use super::lines::{LANES, Line};
use super::pack::{Packs, Unpacked, Visitor};
use super::quantise::BLOCK;
use super::roofline::{Kernel, ROUNDS};
use super::tiled::Tile;
use super::x86::Avx512;

/// From so many tokens on a whole tile costs less than its tokens one by one.
pub(super) const LEAST_TOKENS: usize = 6;

/// A processor with AMX for bytes, of which the system lets this process use the tiles, and with
/// AVX-512 VNNI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amx(Avx512<true>);

impl Amx {
    pub(super) fn detect() -> Option<Self> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let simd = Avx512::<true>::detect()?;
        PERMITTED.get_or_init(|| has_tiles() && permit_tiles()).then_some(Self(simd))
    }

    /// What runs everything that is no product of bytes.
    pub(super) fn simd(self) -> Avx512<true> {
        self.0
    }

    /// Computes some groups' part of a product with activations that were taken for tiles.
    pub(super) fn multiply(self, groups: Groups<'_>) {
        // SAFETY: `self` exists only where these features were detected.
        unsafe { multiply(self.0, groups) }
    }
}

const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;

/// Whether the processor has tiles and products of bytes on them, and the system saves them.
fn has_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATES: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the system has enabled XGETBV, as was asked above.
    let saved = unsafe { saved_states() };
    features & (AMX_TILE | AMX_INT8) == AMX_TILE | AMX_INT8 && saved & TILE_STATES == TILE_STATES
}

#[target_feature(enable = "xsave")]
fn saved_states() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tiles' state, which a process does not have by itself; false when it refuses, or
/// on another system.
fn permit_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: this call takes two numbers and changes nothing but what the process may use.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shapes of the tile registers, as LDTILECFG reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers 0 and 1 hold sums of sixteen tokens by sixteen rows; 2 and 3 `inputs` numbers of each
    /// token; 4 and 5 the weights of four inputs of all sixteen rows in each of their rows; 6 more sums.
    const fn new(inputs: u8) -> Self {
        let mut bytes_of_a_row = [0; 16];
        let mut rows = [0; 16];
        let mut register = 0;
        while register < 7 {
            let of_tokens = register == 2 || register == 3;
            bytes_of_a_row[register] = if of_tokens { inputs as u16 } else { 64 };
            rows[register] = if register < 4 || register == 6 { LANES as u8 } else { inputs / 4 };
            register += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_a_row, rows }
    }
}

static FULL: Shapes = Shapes::new(64);
static WHOLE: Shapes = Shapes::new(32);
static HALVES: Shapes = Shapes::new(16);

/// What a group's format is like.
struct Shape {
    halves: bool,
    minima: bool,
}

/// Unpacks a group's codes as signed bytes, less their zero.
struct Unpack<'a> {
    simd: Avx512<true>,
    tiles: usize,
    unpacked: &'a mut Unpacked,
}

impl Visitor for Unpack<'_> {
    type Output = Shape;

    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn visit<C: Codes, X: Scales, const N: usize>(self, groups: Packs<'_, C, X, N>) -> Shape {
        let Packs { codes, scales, zero, ahead } = groups;
        self.unpacked.take(self.simd, codes[0], scales[0], self.tiles, zero, Some(ahead));
        Shape { halves: X::HALVES, minima: X::MINIMA }
    }
}

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn multiply(simd: Avx512<true>, groups: Groups<'_>) {
    let Groups { weight, bias, x, tokens, out, range, unpacked: [unpacked, _] } = groups;
    let x = x.tiled();
    let mut stage = [[Line::ZERO; LANES]; STAGES];
    let mut shaped = None;
    for group in range {
        let shape = weight.visit::<_, 1>(group, Unpack { simd, tiles: x.stride(), unpacked: &mut *unpacked });
        if shaped != Some(shape.halves) {
            let shapes = if shape.halves { &HALVES } else { &WHOLE };
            // SAFETY: `Amx` exists only where there are tiles; the configuration is a valid one.
            unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly)) }
            shaped = Some(shape.halves);
        }
        let bias = bias.map_or(_mm512_setzero_ps(), |bias| load(&bias[group]));
        for (first, tile) in (0..tokens).step_by(LANES).zip(x.tiles()) {
            for token in first..tokens.min(first + LANES) {
                out.prefetch(token, group);
            }
            let sums = match (shape.halves, shape.minima) {
                (false, false) => sums::<1, false>(unpacked, tile, &mut stage),
                (false, true) => sums::<1, true>(unpacked, tile, &mut stage),
                (true, false) => sums::<2, false>(unpacked, tile, &mut stage),
                (true, true) => sums::<2, true>(unpacked, tile, &mut stage),
            };
            for (token, sum) in (first..tokens).zip(sums) {
                // SAFETY: a group's columns are written only by the task that has the group, and the
                // products of one call have different outputs.
                let [line] = (unsafe { out.lines(token, group, 1) }) else { return };
                let sum = _mm512_add_ps(sum, bias);
                // SAFETY: a line is 16 floats, aligned to 64 bytes.
                unsafe { _mm512_store_ps(line.0.as_mut_ptr(), sum) }
            }
        }
    }
    // SAFETY: as above. Registers that are not in use cost nothing when threads change places.
    unsafe { asm!("tilerelease", options(nomem, nostack)) }
}

/// Places in the cache for the sums of the products that are under way.
const STAGES: usize = 4;

/// The products of a group's sixteen rows with the sixteen tokens of a tile, in `PARTS` parts for each 32
/// inputs.
///
/// While one part is multiplied, the sums of the part before it are stored, and those of the part before
/// that are read.
#[inline]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn sums<const PARTS: usize, const MINIMA: bool>(
    weight: &Unpacked,
    tiles: &[Tile],
    stage: &mut [[Line; LANES]; STAGES],
) -> [__m512; LANES] {
    let parts = tiles.len() * PARTS;
    let (codes, scales, minima) = weight.lines();
    let mut out = [_mm512_setzero_ps(); LANES];
    for step in 0..parts + 2 {
        if step < parts {
            let codes = codes[step * VECTORS / PARTS..][..VECTORS / PARTS].as_ptr();
            let x = tiles[step / PARTS].codes.as_flattened()[step % PARTS * 16..].as_ptr();
            // SAFETY: the registers are shaped for these: sixteen tokens of 32 bytes, of which all or, from
            // the half's beginning, 16 are read; and a part's lines of weights.
            unsafe { if step.is_multiple_of(2) { start_even(x, codes) } else { start_odd(x, codes) } }
        }
        if step > 0 && step <= parts {
            let to = &raw mut stage[(step - 1) % STAGES];
            // SAFETY: sums are sixteen lines.
            unsafe { if step.is_multiple_of(2) { store_odd(to) } else { store_even(to) } }
        }
        let Some(part) = step.checked_sub(2) else { continue };
        let tile = &tiles[part / PARTS];
        let from = &stage[part % STAGES];
        let scale = load(&scales[part]);
        let of_codes = if PARTS == 1 { &tile.sums } else { &tile.half_sums[part % 2] };
        for token in 0..LANES {
            // SAFETY: a line is 64 bytes, aligned to as many.
            let sum = unsafe { _mm512_load_si512(from[token].0.as_ptr().cast()) };
            let both = _mm512_mul_ps(scale, _mm512_set1_ps(tile.scales.0[token]));
            out[token] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, out[token]);
            if MINIMA {
                out[token] =
                    _mm512_fmadd_ps(load(&minima[part]), _mm512_set1_ps(of_codes.0[token]), out[token]);
            }
        }
    }
    out
}

/// Functions that start a product of sixteen tokens with sixteen rows, and that store its sums. The
/// compiler itself never uses tile registers, so they keep their contents in between.
macro_rules! product_in {
    ($start:ident, $store:ident, $sums:tt, $tokens:tt, $weights:tt) => {
        #[inline(always)]
        #[allow(clippy::inline_always)]
        unsafe fn $start(tokens: *const i8, weights: *const Line) {
            // SAFETY: the caller vouches for what is read.
            unsafe {
                asm!(
                    concat!("tileloadd ", $weights, ", [{weights} + {line}*1]"),
                    concat!("tileloadd ", $tokens, ", [{tokens} + {block}*1]"),
                    concat!("tilezero ", $sums),
                    concat!("tdpbssd ", $sums, ", ", $tokens, ", ", $weights),
                    weights = in(reg) weights,
                    tokens = in(reg) tokens,
                    line = in(reg) size_of::<Line>(),
                    block = in(reg) BLOCK,
                    options(nostack, readonly),
                );
            }
        }

        #[inline(always)]
        #[allow(clippy::inline_always)]
        unsafe fn $store(to: *mut [Line; LANES]) {
            // SAFETY: the caller vouches for what is written.
            unsafe {
                asm!(
                    concat!("tilestored [{to} + {line}*1], ", $sums),
                    to = in(reg) to,
                    line = in(reg) size_of::<Line>(),
                    options(nostack),
                );
            }
        }
    };
}
// Alternating registers, or each product would wait for the one before it.
product_in!(start_even, store_even, "tmm0", "tmm2", "tmm4");
product_in!(start_odd, store_odd, "tmm1", "tmm3", "tmm5");

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512 {
    // SAFETY: a line is 16 floats, aligned to 64 bytes.
    unsafe { _mm512_load_ps(line.0.as_ptr()) }
}

/// What products of bytes on whole tiles can do at best; see [`roofline`](super::roofline).
pub(super) fn int8_tiles_kernel() -> Option<Kernel> {
    const OPERATIONS: u64 = 16 * 16 * 64 * 2;
    // SAFETY: there are tiles.
    Amx::detect().map(|_| (|| unsafe { best_of_tiles!("tdpbssd", OPERATIONS) }) as Kernel)
}

/// What products of bfloat16 on whole tiles can do at best.
pub(super) fn bf16_tiles_kernel() -> Option<Kernel> {
    const OPERATIONS: u64 = 16 * 16 * 32 * 2;
    let has = Amx::detect().is_some() && __cpuid_count(7, 0).edx & AMX_BF16 != 0;
    // SAFETY: there are tiles.
    has.then_some(|| unsafe { best_of_tiles!("tdpbf16ps", OPERATIONS) })
}

/// Rounds of four products that do not wait for each other.
macro_rules! best_of_tiles {
    ($product:literal, $operations:expr) => {{
        asm!("ldtilecfg [{}]", in(reg) &FULL, options(nostack, readonly));
        asm!(
            "tilezero tmm4",
            "tilezero tmm5",
            "2:",
            concat!($product, " tmm0, tmm2, tmm4"),
            concat!($product, " tmm1, tmm2, tmm4"),
            concat!($product, " tmm3, tmm2, tmm5"),
            concat!($product, " tmm6, tmm2, tmm5"),
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            rounds = inout(reg) ROUNDS => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nomem, nostack),
        );
        ROUNDS * 4 * $operations
    }};
}
use best_of_tiles;
