//! An adapter's weights, under one set of names and in the order of the base's rows.

use std::sync::Arc;

use super::MAX_RANK;
use crate::model::spec::ModelSpec;
use crate::tensor::Tensor;

/// A projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Of queries.
    Query,
    /// Of keys.
    Key,
    /// Of values.
    Value,
    /// Of attention's output.
    Output,
    /// The feed-forward layer's gate.
    Gate,
    /// The feed-forward layer's up projection.
    Up,
    /// The feed-forward layer's down projection.
    Down,
}

impl Target {
    /// All of them, in the order of [`LayerLora`].
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Its outputs and inputs in a model of this shape.
    pub fn shape(self, spec: &ModelSpec) -> (usize, usize) {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            Self::Query => (queries, spec.hidden),
            Self::Key | Self::Value => (keys, spec.hidden),
            Self::Output => (spec.hidden, queries),
            Self::Gate | Self::Up => (spec.intermediate, spec.hidden),
            Self::Down => (spec.hidden, spec.intermediate),
        }
    }

    /// Whether it is in the feed-forward layer.
    pub fn is_feed_forward(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }
}

/// What is added to one projection: `scale × b (a x)`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `rank` by inputs.
    pub a: Tensor,
    /// Outputs by `rank`, the rows in the order of the base's.
    pub b: Tensor,
    /// Multiplies the product.
    pub scale: f32,
}

/// What an adapter changes in one layer, by [`Target`].
#[derive(Clone, Debug, Default)]
pub struct LayerLora([Option<LowRank>; Target::ALL.len()]);

impl LayerLora {
    /// What is added to this projection.
    pub fn get(&self, target: Target) -> Option<&LowRank> {
        self.0[target as usize].as_ref()
    }

    /// Adds this to a projection; `false` when something was added to it before.
    #[must_use]
    pub fn set(&mut self, target: Target, pair: LowRank) -> bool {
        self.0[target as usize].replace(pair).is_none()
    }
}

/// An adapter's weights.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// The layers, first to last, one for each of the model's.
    pub layers: Arc<[LayerLora]>,
}

impl LoraWeights {
    /// Says in words how these differ from what a model of this shape can run with.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), String> {
        if self.layers.len() != spec.layers {
            return Err(format!("the adapter has {} layers, the model {}", self.layers.len(), spec.layers));
        }
        for (layer, target) in self.layers.iter().flat_map(|layer| Target::ALL.map(|target| (layer, target)))
        {
            let Some(pair) = layer.get(target) else { continue };
            let (rows, cols) = target.shape(spec);
            let rank = pair.a.rows();
            let shape = (pair.b.rows(), pair.a.cols());
            if shape != (rows, cols) || pair.b.cols() != rank || !(1..=MAX_RANK).contains(&rank) {
                return Err(format!(
                    "the adapter changes {target:?} of {shape:?} by a rank of {rank}, expected ({rows}, {cols}) and 1 \
                     to {MAX_RANK}"
                ));
            }
        }
        Ok(())
    }

    /// A hash of all numbers, what they are added to, and by how much: adapters of the same digest give
    /// the same answers, and no others do.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("strata engine adapter v1");
        for (index, layer) in self.layers.iter().enumerate() {
            for target in Target::ALL {
                let Some(pair) = layer.get(target) else { continue };
                // Lengths before contents, so that no two adapters are written alike.
                for number in [index, target as usize, pair.a.rows(), pair.a.byte_len(), pair.b.byte_len()] {
                    hasher.update(&(number as u64).to_le_bytes());
                }
                hasher.update(&pair.scale.to_bits().to_le_bytes());
                for tensor in [&pair.a, &pair.b] {
                    let kind = tensor.kind().to_string();
                    hasher.update(&[kind.len() as u8]).update(kind.as_bytes());
                    for row in 0..tensor.rows() {
                        hasher.update(tensor.row(row));
                    }
                }
            }
        }
        *hasher.finalize().as_bytes()
    }
}
