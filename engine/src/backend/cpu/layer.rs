//! A layer's parameters as the kernels read them.

use super::lines::{Line, Rows};
use super::pointwise::padded;
use super::product::{Factor, Matrix, Product};
use super::team::Machine;
use crate::tensor::{self, Experts, Gated, LayerWeights, Linear};

/// One transformer layer.
pub(super) struct Layer {
    pub(super) attention_norm: Box<[Line]>,
    pub(super) query: Projection,
    pub(super) key: Projection,
    pub(super) value: Projection,
    pub(super) query_norm: Option<Box<[Line]>>,
    pub(super) key_norm: Option<Box<[Line]>>,
    pub(super) attention_output: Projection,
    pub(super) attention_post_norm: Option<Box<[Line]>>,
    pub(super) feed_forward_norm: Box<[Line]>,
    pub(super) feed_forward: FeedForward,
    pub(super) feed_forward_post_norm: Option<Box<[Line]>>,
}

/// A layer's second half.
pub(super) enum FeedForward {
    Dense(Box<GatedLayer>),
    Experts(ExpertsLayer),
}

/// `down (activation(gate x) × up x)`.
pub(super) struct GatedLayer {
    pub(super) gate: Projection,
    pub(super) up: Projection,
    pub(super) down: Projection,
}

/// A mixture of experts.
pub(super) struct ExpertsLayer {
    pub(super) router: Projection,
    pub(super) experts: Vec<GatedLayer>,
}

/// A matrix and its bias.
pub(super) struct Projection {
    matrix: Matrix,
    bias: Option<Box<[Line]>>,
}

impl Projection {
    /// Takes a matrix over; `exact` keeps its products in 32-bit floats.
    pub(super) fn new(machine: &mut Machine, linear: Linear, exact: bool) -> Result<Self, String> {
        let bias = linear.bias.as_deref().map(padded);
        Ok(Self { matrix: Matrix::new(machine, linear.weight, exact)?, bias })
    }

    /// The matrix and its bias.
    pub(super) fn factor(&self) -> Factor<'_> {
        Factor { weight: &self.matrix, bias: self.bias.as_deref() }
    }

    /// The product that writes to `out`.
    pub(super) fn to<'a>(&'a self, out: &'a mut Rows) -> Product<'a> {
        Product::new(&self.matrix, self.bias.as_deref(), out)
    }
}

impl GatedLayer {
    fn new(machine: &mut Machine, gated: Gated, exact: bool) -> Result<Self, String> {
        let Gated { gate, up, down } = gated;
        Ok(Self {
            gate: Projection::new(machine, gate, exact)?,
            up: Projection::new(machine, up, exact)?,
            down: Projection::new(machine, down, exact)?,
        })
    }
}

impl FeedForward {
    fn new(machine: &mut Machine, weights: tensor::FeedForward, exact: bool) -> Result<Self, String> {
        match weights {
            tensor::FeedForward::Dense(gated) => {
                Ok(Self::Dense(Box::new(GatedLayer::new(machine, gated, exact)?)))
            }
            tensor::FeedForward::Experts(Experts { router, experts }) => {
                let router = Projection::new(machine, router, exact)?;
                let experts = experts.into_iter().map(|expert| GatedLayer::new(machine, expert, exact));
                Ok(Self::Experts(ExpertsLayer { router, experts: experts.collect::<Result<_, _>>()? }))
            }
        }
    }
}

impl Layer {
    /// Takes a layer's weights over.
    pub(super) fn new(machine: &mut Machine, layer: LayerWeights, exact: bool) -> Result<Self, String> {
        let norm = |norm: Option<Box<[f32]>>| norm.as_deref().map(padded);
        let mut projection = |linear| Projection::new(machine, linear, exact);
        Ok(Self {
            attention_norm: padded(&layer.attention_norm),
            query: projection(layer.query)?,
            key: projection(layer.key)?,
            value: projection(layer.value)?,
            query_norm: norm(layer.query_norm),
            key_norm: norm(layer.key_norm),
            attention_output: projection(layer.attention_output)?,
            attention_post_norm: norm(layer.attention_post_norm),
            feed_forward_norm: padded(&layer.feed_forward_norm),
            feed_forward: FeedForward::new(machine, layer.feed_forward, exact)?,
            feed_forward_post_norm: norm(layer.feed_forward_post_norm),
        })
    }
}
