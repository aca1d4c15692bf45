//! Parameters out of a seed: a model of any shape without a file.

use super::{Bytes, ParameterSource, Tensor, TensorKind, Weights};
use crate::model::spec::ModelSpec;

impl Weights {
    /// Random parameters for `spec`, in 32-bit floats, the same for the same seed. Their spread keeps
    /// activations in range and logits apart from each other.
    pub fn random(spec: &ModelSpec, seed: u64) -> Self {
        match super::assemble(spec, &super::GGUF, &Seeded { spec, seed }) {
            Ok(weights) => weights,
            Err(never) => match never {},
        }
    }
}

struct Seeded<'a> {
    spec: &'a ModelSpec,
    seed: u64,
}

impl Seeded<'_> {
    /// Numbers evenly spread over `-width..width`, named so that no two parameters are alike.
    fn numbers(&self, name: &str, len: usize, width: f32) -> impl Iterator<Item = f32> + use<> {
        let mut state = name.bytes().fold(self.seed, |h, b| mix(h ^ u64::from(b)));
        (0..len).map(move |_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let unit = (mix(state) >> 40) as f32 / (1u64 << 24) as f32;
            (unit * 2.0 - 1.0) * width
        })
    }
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn is_bias(name: &str) -> bool {
    name.rsplit('.').next() == Some("bias")
}

impl ParameterSource for Seeded<'_> {
    type Error = std::convert::Infallible;

    fn has(&self, name: &str) -> bool {
        let qkv_bias = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];
        if name.contains("attn_qkv") {
            return false;
        }
        !is_bias(name) || (self.spec.qkv_bias && qkv_bias.iter().any(|bias| name.ends_with(bias)))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Self::Error> {
        // Uniform numbers of this width have the variance 1 / cols; an embedding's rows have norm 1 × √cols.
        let width = if name.starts_with("token_embd") { 1.7 } else { (3.0 / cols as f32).sqrt() };
        let bytes: Vec<u8> = self.numbers(name, rows * cols, width).flat_map(f32::to_le_bytes).collect();
        Ok(Tensor { kind: TensorKind::F32, rows, cols, data: Bytes::from(bytes) })
    }

    fn stack(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>, Self::Error> {
        let all = self.matrix(name, count * rows, cols)?;
        Ok((0..count).map(|i| all.rows_at(i * rows..(i + 1) * rows)).collect())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, Self::Error> {
        if is_bias(name) {
            return Ok(self.numbers(name, len, 0.5).collect());
        }
        Ok(self.numbers(name, len, 0.3).map(|x| 1.0 + x).collect())
    }
}
