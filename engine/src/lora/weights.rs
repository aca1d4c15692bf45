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
    /// Of a mixture's scores, which say which experts a token goes to.
    Router,
}

/// What of a layer a projection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What all tokens go through.
    Shared,
    /// This expert of its mixture.
    Expert(usize),
}

impl Target {
    /// All of them, in the order of [`LayerLora`].
    pub const ALL: [Self; 8] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down, Self::Router];
    /// Those of an expert.
    pub const OF_EXPERT: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// Its outputs and inputs in this part of a layer of a model of this shape.
    pub fn shape(self, spec: &ModelSpec, part: Part) -> (usize, usize) {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let experts = spec.experts.filter(|_| self == Self::Router || part != Part::Shared);
        let width = experts.map_or(spec.intermediate, |experts| experts.intermediate);
        match self {
            Self::Query => (queries, spec.hidden),
            Self::Key | Self::Value => (keys, spec.hidden),
            Self::Output => (spec.hidden, queries),
            Self::Gate | Self::Up => (width, spec.hidden),
            Self::Down => (spec.hidden, width),
            Self::Router => (experts.map_or(0, |experts| experts.count), spec.hidden),
        }
    }

    /// Whether a layer of a model of this shape has it in this part.
    pub fn is_in(self, spec: &ModelSpec, layer: usize, part: Part) -> bool {
        let experts = spec.experts.filter(|_| spec.per_layer[layer].experts);
        match part {
            Part::Expert(index) => {
                self.is_feed_forward() && experts.is_some_and(|experts| index < experts.count)
            }
            Part::Shared if self == Self::Router => experts.is_some(),
            Part::Shared => !self.is_feed_forward() || experts.is_none(),
        }
    }

    /// Whether it is one of a gated feed-forward layer.
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

/// What an adapter changes in one layer.
#[derive(Clone, Debug, Default)]
pub struct LayerLora {
    shared: [Option<LowRank>; Target::ALL.len()],
    /// Of the experts up to the last that it changes.
    experts: Vec<[Option<LowRank>; Target::OF_EXPERT.len()]>,
}

impl LayerLora {
    /// What is added to this projection.
    pub fn get(&self, target: Target) -> Option<&LowRank> {
        self.shared[target as usize].as_ref()
    }

    /// What is added to this projection of an expert.
    pub fn get_expert(&self, expert: usize, target: Target) -> Option<&LowRank> {
        self.experts.get(expert)?[expert_place(target)?].as_ref()
    }

    /// Experts up to the last that it changes.
    pub fn experts(&self) -> usize {
        self.experts.len()
    }

    /// Adds this to a projection; `false` when something was added to it before, or there is no such one.
    #[must_use]
    pub fn set(&mut self, part: Part, target: Target, pair: LowRank) -> bool {
        let place = match part {
            Part::Shared => &mut self.shared[target as usize],
            Part::Expert(index) => {
                let Some(place) = expert_place(target) else { return false };
                if self.experts.len() <= index {
                    self.experts.resize_with(index + 1, Default::default);
                }
                &mut self.experts[index][place]
            }
        };
        place.replace(pair).is_none()
    }

    /// All that it changes, in one order.
    fn all(&self) -> impl Iterator<Item = (Part, Target, &LowRank)> {
        let shared =
            Target::ALL.into_iter().filter_map(|target| Some((Part::Shared, target, self.get(target)?)));
        let experts = (0..self.experts.len()).flat_map(move |index| {
            let of = move |target| Some((Part::Expert(index), target, self.get_expert(index, target)?));
            Target::OF_EXPERT.into_iter().filter_map(of)
        });
        shared.chain(experts)
    }
}

fn expert_place(target: Target) -> Option<usize> {
    Target::OF_EXPERT.iter().position(|other| *other == target)
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
        for (index, layer) in self.layers.iter().enumerate() {
            for (part, target, pair) in layer.all() {
                if !target.is_in(spec, index, part) {
                    return Err(format!(
                        "the adapter changes {target:?} of layer {index}, which has none ({part:?})"
                    ));
                }
                let (rows, cols) = target.shape(spec, part);
                let rank = pair.a.rows();
                let shape = (pair.b.rows(), pair.a.cols());
                if shape != (rows, cols) || pair.b.cols() != rank || !(1..=MAX_RANK).contains(&rank) {
                    return Err(format!(
                        "the adapter changes {target:?} of {shape:?} by a rank of {rank}, expected ({rows}, {cols}) \
                         and 1 to {MAX_RANK}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A hash of all numbers, what they are added to, and by how much: adapters of the same digest give
    /// the same answers, and no others do.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("strata engine adapter v1");
        for (index, layer) in self.layers.iter().enumerate() {
            for (part, target, pair) in layer.all() {
                let place = match part {
                    Part::Shared => target as usize,
                    Part::Expert(expert) => (1 + expert) * Target::ALL.len() + target as usize,
                };
                // Lengths before contents, so that no two adapters are written alike.
                for number in [index, place, pair.a.rows(), pair.a.byte_len(), pair.b.byte_len()] {
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
