//! Parameters as they lie in a file: mapped bytes, in the precision that the file has them in, and how
//! to turn them into 32-bit floats.

mod bytes;
mod float;
mod kind;
mod kquant;
mod names;
mod quant;
mod random;
mod stored;
mod weights;

use std::ops::Range;

pub use bytes::Bytes;
pub(crate) use float::half_to_f32;
pub use kind::TensorKind;
pub(crate) use names::{GGUF, HUGGING_FACE, HUGGING_FACE_GEMMA, HUGGING_FACE_MIXTRAL, Names};
pub(crate) use stored::{StoredTile, stored_tile};
pub use weights::{Experts, FeedForward, Gated, LayerWeights, Linear, Weights};
pub(crate) use weights::{ParameterSource, assemble};

/// A matrix of parameters: `rows` outputs by `cols` inputs, row-major. A vector is one row.
#[derive(Clone, Debug)]
pub struct Tensor {
    kind: TensorKind,
    rows: usize,
    cols: usize,
    data: Bytes,
}

impl Tensor {
    /// A matrix over `data`, or in words what about its size is wrong.
    pub fn new(kind: TensorKind, rows: usize, cols: usize, data: Bytes) -> Result<Self, String> {
        let row = kind.bytes_for(cols).ok_or_else(|| {
            format!("has rows of {cols}, not a multiple of {kind}'s block of {}", kind.block_len())
        })?;
        let want = row.checked_mul(rows).ok_or_else(|| format!("of {rows} by {cols} is too large"))?;
        if data.len() != want {
            return Err(format!("of {rows} by {cols} in {kind} takes {want} bytes, not {}", data.len()));
        }
        Ok(Self { kind, rows, cols, data })
    }

    /// How its numbers are stored.
    pub fn kind(&self) -> TensorKind {
        self.kind
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the whole matrix.
    pub fn byte_len(&self) -> usize {
        self.data.len()
    }

    /// The stored bytes of one row.
    ///
    /// # Panics
    /// When `row` is not below [`Tensor::rows`].
    pub fn row(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of a tensor of {} rows", self.rows);
        let len = self.data.len() / self.rows;
        &self.data.as_slice()[row * len..(row + 1) * len]
    }

    /// Some of its rows, as a matrix of their own over the same bytes.
    ///
    /// # Panics
    /// When it has fewer rows.
    #[must_use]
    pub fn rows_at(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let len = self.data.len() / self.rows.max(1);
        Self { rows: rows.len(), data: self.data.slice(rows.start * len..rows.end * len), ..*self }
    }

    /// Tells the system that these bytes are not needed soon. They stay what they are.
    pub(crate) fn forget_pages(&self) {
        self.data.forget_pages();
    }

    /// All numbers as 32-bit floats, row-major.
    pub fn to_f32(&self) -> Box<[f32]> {
        let mut out = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                dequantise(self.kind, self.row(row), out);
            }
        }
        out.into_boxed_slice()
    }
}

/// Turns a row of stored blocks into 32-bit floats. Every value is rounded at most once, so it is the
/// same number on every instruction set.
///
/// Inlined into functions with wider instruction sets, where the compiler vectorises it for them.
///
/// # Panics
/// When `out` and `bytes` differ in how many blocks they hold.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(crate) fn dequantise(kind: TensorKind, bytes: &[u8], out: &mut [f32]) {
    // A macro, for neither a closure nor a function passed on is sure to be inlined, and without that it
    // would be compiled for the narrowest instruction set.
    macro_rules! each_block {
        ($one:path) => {{
            let (blocks, _) = bytes.as_chunks();
            let (outs, _) = out.as_chunks_mut();
            for (block, out) in blocks.iter().zip(outs) {
                $one(block, out);
            }
        }};
    }
    assert_eq!(kind.bytes_for(out.len()), Some(bytes.len()), "row and output differ in length");
    match kind {
        TensorKind::F32 => float::f32(bytes, out),
        TensorKind::F16 => float::f16(bytes, out),
        TensorKind::BF16 => float::bf16(bytes, out),
        TensorKind::Q4_0 => each_block!(quant::q4_0),
        TensorKind::Q4_1 => each_block!(quant::q4_1),
        TensorKind::Q5_0 => each_block!(quant::q5_0),
        TensorKind::Q5_1 => each_block!(quant::q5_1),
        TensorKind::Q8_0 => each_block!(quant::q8_0),
        TensorKind::Q2K => each_block!(kquant::q2_k),
        TensorKind::Q3K => each_block!(kquant::q3_k),
        TensorKind::Q4K => each_block!(kquant::q4_k),
        TensorKind::Q5K => each_block!(kquant::q5_k),
        TensorKind::Q6K => each_block!(kquant::q6_k),
    }
}
