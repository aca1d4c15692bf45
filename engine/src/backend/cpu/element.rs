//! Numbers of the KV cache, as they are stored.
#![allow(clippy::inline_always)]

use serde::{Deserialize, Serialize};

use super::lines::LANES;
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

    /// Puts a number, divided by its scale, where it is read from.
    fn put(bytes: &mut [u8], at: usize, x: f32);
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $type:ident, $load:ident, $bytes:literal, |$x:ident| $stored:expr) => {
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
            fn put(bytes: &mut [u8], at: usize, $x: f32) {
                let stored: [u8; $bytes] = $stored;
                bytes[at * $bytes..(at + 1) * $bytes].copy_from_slice(&stored);
            }
        }
    };
}

element!(
    /// 32-bit floats.
    Single, F32, words, 4, |x| x.to_le_bytes()
);
element!(
    /// Half precision, rounded to the nearest.
    Half, F16, halves, 2, |x| half::f16::from_f32(x).to_le_bytes()
);
element!(
    /// bfloat16, rounded to the nearest.
    Brain, Bf16, upper_halves, 2, |x| half::bf16::from_f32(x).to_le_bytes()
);
element!(
    /// Signed bytes, rounded to the nearest.
    Byte, Int8, signed_row, 1, |x| (x.round_ties_even() as i8).to_le_bytes()
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
