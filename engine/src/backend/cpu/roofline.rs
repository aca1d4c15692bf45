//! What the machine can do at best, by which the speed of the kernels is judged: how fast memory is
//! read, and how many operations the widest instructions for a type do when they wait for nothing
//! (Williams, Waterman and Patterson, "Roofline", 2009).

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::lines::{Line, ZeroedLines, bytes, bytes_mut};

/// The limits, over all threads that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// Threads that worked at once.
    pub threads: usize,
    /// Memory read, in 10⁹ bytes a second.
    pub read_gb_per_s: f64,
    /// Multiplications and additions of f32, in 10⁹ a second.
    pub f32_gflop_per_s: f64,
    /// The same of bf16 summed in f32; `None` where no instruction does it.
    pub bf16_gflop_per_s: Option<f64>,
    /// The same of int8 summed in int32; `None` where no instruction does it.
    pub int8_gop_per_s: Option<f64>,
    /// The same of bf16 by AMX, a tile with a tile; `None` where there is none.
    pub bf16_tiles_gflop_per_s: Option<f64>,
    /// The same of int8 by AMX.
    pub int8_tiles_gop_per_s: Option<f64>,
}

/// Of each thread's own buffer: well beyond its share of the last cache.
const BUFFER: usize = 128 << 20;
/// Each limit is the best of this many trials, for whatever disturbs one only slows it.
const TRIALS: usize = 5;
const TRIAL: Duration = Duration::from_millis(150);
/// Sums that do not wait for each other; more than an instruction's latency times its ports.
const SUMS: usize = 12;
pub(super) const ROUNDS: u64 = 1 << 14;

/// Measures for some seconds, with `threads` threads, at least 1, which take [`BUFFER`] bytes each.
pub fn measure(threads: usize) -> Roofline {
    Roofline {
        threads,
        read_gb_per_s: read(threads),
        f32_gflop_per_s: rate(threads, f32_kernel()),
        bf16_gflop_per_s: bf16_kernel().map(|kernel| rate(threads, kernel)),
        int8_gop_per_s: int8_kernel().map(|kernel| rate(threads, kernel)),
        bf16_tiles_gflop_per_s: bf16_tiles_kernel().map(|kernel| rate(threads, kernel)),
        int8_tiles_gop_per_s: int8_tiles_kernel().map(|kernel| rate(threads, kernel)),
    }
}

/// Does some work and says how many operations that was.
pub(super) type Kernel = fn() -> u64;

fn rate(threads: usize, kernel: Kernel) -> f64 {
    best(threads, || kernel)
}

fn read(threads: usize) -> f64 {
    best(threads, || {
        // In large pages, as weights are: at the end of a small one the processor stops reading ahead.
        let mut buffer = ZeroedLines::new(BUFFER / size_of::<Line>());
        if let Some(buffer) = &mut buffer {
            buffer.use_large_pages();
            bytes_mut(buffer).fill(1);
        }
        move || {
            let Some(buffer) = &buffer else { return 0 };
            let mut sums = [0_u64; 32];
            for line in black_box(bytes(buffer)).as_chunks::<8>().0.chunks_exact(32) {
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(u64::from_ne_bytes(*value));
                }
            }
            black_box(sums);
            BUFFER as u64
        }
    })
}

/// The best of some trials, in 10⁹ a second, of what `prepare` makes on each thread.
fn best<W: FnMut() -> u64>(threads: usize, prepare: impl Fn() -> W + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let trials = || {
        let mut work = prepare();
        [(); TRIALS].map(|()| {
            barrier.wait();
            let begin = Instant::now();
            let mut done = 0;
            while begin.elapsed() < TRIAL {
                done += work();
            }
            done as f64 / begin.elapsed().as_secs_f64() / 1e9
        })
    };
    let of_threads: Vec<[f64; TRIALS]> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(trials)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    (0..TRIALS).map(|trial| of_threads.iter().map(|thread| thread[trial]).sum()).fold(0.0, f64::max)
}

fn f32_portable() -> u64 {
    let mut sums = [0.5_f32; 64];
    let (by, add) = (black_box(0.999_f32), black_box(0.001_f32));
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * by + add;
        }
    }
    black_box(sums);
    ROUNDS * 64 * 2
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_kernel() -> Kernel {
    f32_portable
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_kernel() -> Option<Kernel> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_kernel() -> Option<Kernel> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_tiles_kernel() -> Option<Kernel> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_tiles_kernel() -> Option<Kernel> {
    None
}

#[cfg(target_arch = "x86_64")]
use super::amx::{bf16_tiles_kernel, int8_tiles_kernel};
#[cfg(target_arch = "x86_64")]
use x86::{bf16_kernel, f32_kernel, int8_kernel};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_fmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm512_cvtne2ps_pbh,
        _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8, _mm512_set1_epi32,
        _mm512_set1_ps,
    };

    use super::{Kernel, ROUNDS, SUMS, black_box};

    pub(super) fn f32_kernel() -> Kernel {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            || unsafe { f32_avx512() }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instructions.
            || unsafe { f32_avx2() }
        } else {
            super::f32_portable
        }
    }

    pub(super) fn bf16_kernel() -> Option<Kernel> {
        // SAFETY: the processor has the instructions.
        is_x86_feature_detected!("avx512bf16").then_some(|| unsafe { bf16_avx512() })
    }

    pub(super) fn int8_kernel() -> Option<Kernel> {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has the instructions.
            Some(|| unsafe { int8_avx512() })
        } else if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            Some(|| unsafe { int8_avx2() })
        } else {
            None
        }
    }

    /// Different beginnings, or the compiler would compute one sum for all.
    fn begin(i: usize) -> f32 {
        black_box(i as f32)
    }

    #[target_feature(enable = "avx512f")]
    fn f32_avx512() -> u64 {
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(begin(i)));
        let (by, add) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, by, add);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 16 * 2
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_avx2() -> u64 {
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm256_set1_ps(begin(i)));
        let (by, add) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, by, add);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 8 * 2
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_avx512() -> u64 {
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(begin(i)));
        let (a, b) = (_mm512_set1_ps(black_box(0.25)), _mm512_set1_ps(black_box(0.125)));
        let (a, b) = (_mm512_cvtne2ps_pbh(a, b), _mm512_cvtne2ps_pbh(b, a));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 32 * 2
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_avx512() -> u64 {
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm512_set1_epi32(black_box(i as i32)));
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 64 * 2
    }

    #[target_feature(enable = "avx2")]
    fn int8_avx2() -> u64 {
        let mut sums: [__m256i; SUMS] = std::array::from_fn(|i| _mm256_set1_epi32(black_box(i as i32)));
        let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-5)));
        let ones = _mm256_set1_epi16(black_box(1));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // Of the sum itself, or the compiler would compute the product once for all rounds.
                let pairs = _mm256_maddubs_epi16(a, *sum);
                *sum = _mm256_add_epi32(b, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 32 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_measured_and_wider_types_do_less() {
        let one = measure(1);
        assert!(one.read_gb_per_s > 0.1, "{one:?}");
        assert!(one.f32_gflop_per_s > 0.1, "{one:?}");
        // By instruction 4 times as many; by half is left to whatever runs beside the test.
        if let Some(int8) = one.int8_gop_per_s {
            assert!(int8 > one.f32_gflop_per_s, "{one:?}");
        }
    }
}
