//! Numbers of the KV cache, as they are stored.
#![allow(clippy::inline_always)]

use serde::{Deserialize, Serialize};

use super::lines::{LANES, Line};
use super::simd::Simd;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// 32-bit floats.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// bfloat16: as wide as half precision, with the range of 32-bit floats.
    Bf16,
    /// Signed bytes, with a scale for each token's key and value in each head.
    Int8,
}

impl CacheType {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Whether a token's numbers in a head have a scale.
    pub(super) fn scaled(self) -> bool {
        self == Self::Int8
    }
}

/// A stored number's form.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// The form's name.
    const TYPE: CacheType;
    /// Sixteen numbers.
    type Row: Copy + Sync + 'static;

    /// Sixteen numbers, without their scale.
    fn load<S: Simd>(s: S, row: &Self::Row) -> S::V;

    /// The rows that lie in these bytes.
    fn rows(bytes: &[u8]) -> &[Self::Row];

    /// Sixteen numbers that were divided by their scale, as they are stored.
    fn store<S: Simd>(s: S, numbers: S::V) -> Self::Row;

    /// The bytes of stored numbers.
    fn bytes(row: &Self::Row) -> &[u8];
}

/// Sixteen numbers, one by one: plain Rust, that the compiler vectorises for what it is inlined into.
#[inline(always)]
fn numbers<S: Simd>(s: S, v: S::V) -> [f32; LANES] {
    let mut line = Line::ZERO;
    s.store(&mut line, v);
    line.0
}

#[inline(always)]
fn single<S: Simd>(s: S, v: S::V) -> [u8; 4 * LANES] {
    let mut row = [0; 4 * LANES];
    for (to, x) in row.as_chunks_mut().0.iter_mut().zip(numbers(s, v)) {
        *to = x.to_le_bytes();
    }
    row
}

#[inline(always)]
fn half<S: Simd>(s: S, v: S::V) -> [u8; 2 * LANES] {
    s.to_halves(v)
}

#[inline(always)]
fn brain<S: Simd>(s: S, v: S::V) -> [u8; 2 * LANES] {
    let mut row = [0; 2 * LANES];
    for (to, x) in row.as_chunks_mut().0.iter_mut().zip(numbers(s, v)) {
        *to = half::bf16::from_f32(x).to_le_bytes();
    }
    row
}

#[inline(always)]
fn byte<S: Simd>(s: S, v: S::V) -> [u8; LANES] {
    let mut row = [0; LANES];
    for (to, x) in row.iter_mut().zip(numbers(s, v)) {
        *to = x.round_ties_even() as i8 as u8;
    }
    row
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $type:ident, $load:ident, $bytes:literal, $store:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Element for $name {
            const TYPE: CacheType = CacheType::$type;
            type Row = [u8; $bytes * LANES];

            #[inline(always)]
            fn load<S: Simd>(s: S, row: &Self::Row) -> S::V {
                s.$load(row)
            }

            #[inline(always)]
            fn rows(bytes: &[u8]) -> &[Self::Row] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn store<S: Simd>(s: S, numbers: S::V) -> Self::Row {
                $store(s, numbers)
            }

            #[inline(always)]
            fn bytes(row: &Self::Row) -> &[u8] {
                row
            }
        }
    };
}

element!(
    /// 32-bit floats.
    Single, F32, words, 4, single
);
element!(
    /// Half precision, rounded to the nearest.
    Half, F16, halves, 2, half
);
element!(
    /// bfloat16, rounded to the nearest.
    Brain, Bf16, upper_halves, 2, brain
);
element!(
    /// Signed bytes, rounded to the nearest.
    Byte, Int8, signed_row, 1, byte
);

/// Calls `$body` with `$element` naming the type of this form.
macro_rules! with_element {
    ($type:expr, $element:ident => $body:expr) => {
        match $type {
            CacheType::F32 => {
                type $element = crate::backend::cpu::element::Single;
                $body
            }
            CacheType::F16 => {
                type $element = crate::backend::cpu::element::Half;
                $body
            }
            CacheType::Bf16 => {
                type $element = crate::backend::cpu::element::Brain;
                $body
            }
            CacheType::Int8 => {
                type $element = crate::backend::cpu::element::Byte;
                $body
            }
        }
    };
}
pub(super) use with_element;
