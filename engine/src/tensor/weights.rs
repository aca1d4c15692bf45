//! All parameters of a model, under one set of names whatever the file calls them.

use std::ops::Range;

use super::Tensor;
use super::names::Names;
use crate::model::spec::{ExpertsSpec, ModelSpec};

/// The parameters of a [`ModelSpec`].
#[derive(Clone, Debug)]
pub struct Weights {
    /// Token embeddings, `vocab` by `hidden`; the output head too when `output` is none.
    pub embedding: Tensor,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// Norm before the output head, `hidden` long.
    pub output_norm: Box<[f32]>,
    /// Output head, `vocab` by `hidden`.
    pub output: Option<Linear>,
}

/// One transformer layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Norm before attention, `hidden` long.
    pub attention_norm: Box<[f32]>,
    /// Query projection, `heads × head_dim` by `hidden`.
    pub query: Linear,
    /// Key projection, `kv_heads × head_dim` by `hidden`.
    pub key: Linear,
    /// Value projection, as the key's.
    pub value: Linear,
    /// Norm of each query head, `head_dim` long.
    pub query_norm: Option<Box<[f32]>>,
    /// Norm of each key head, `head_dim` long.
    pub key_norm: Option<Box<[f32]>>,
    /// Attention's output projection, `hidden` by `heads × head_dim`.
    pub attention_output: Linear,
    /// Norm of attention's output, `hidden` long.
    pub attention_post_norm: Option<Box<[f32]>>,
    /// Norm before the feed-forward layer, `hidden` long.
    pub feed_forward_norm: Box<[f32]>,
    /// What follows attention.
    pub feed_forward: FeedForward,
    /// Norm of the feed-forward layer's output, `hidden` long.
    pub feed_forward_post_norm: Option<Box<[f32]>>,
}

/// A layer's second half.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// The same for all tokens.
    Dense(Gated),
    /// A mixture of experts.
    Experts(Experts),
}

/// A gated feed-forward layer: `down (activation(gate x) × up x)`.
#[derive(Clone, Debug)]
pub struct Gated {
    /// Gate, `intermediate` by `hidden`.
    pub gate: Linear,
    /// Up projection, `intermediate` by `hidden`.
    pub up: Linear,
    /// Down projection, `hidden` by `intermediate`.
    pub down: Linear,
}

/// A mixture of experts.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Which experts a token goes to, `experts` by `hidden`.
    pub router: Linear,
    /// The experts.
    pub experts: Vec<Gated>,
}

impl FeedForward {
    /// Its gated layers.
    pub fn gated(&self) -> &[Gated] {
        match self {
            Self::Dense(gated) => std::slice::from_ref(gated),
            Self::Experts(experts) => &experts.experts,
        }
    }
}

/// A matrix and perhaps a bias of one number for each of its rows.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Outputs by inputs.
    pub weight: Tensor,
    /// Added to the outputs.
    pub bias: Option<Box<[f32]>>,
}

impl Linear {
    fn rows_at(&self, rows: Range<usize>) -> Self {
        let bias = self.bias.as_ref().map(|bias| bias[rows.clone()].into());
        Self { weight: self.weight.rows_at(rows), bias }
    }
}

impl Weights {
    /// Bytes of all matrices, as stored.
    pub fn matrix_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|l| {
            let router = match &l.feed_forward {
                FeedForward::Experts(experts) => Some(&experts.router),
                FeedForward::Dense(_) => None,
            };
            let gated = l.feed_forward.gated().iter().flat_map(|g| [&g.gate, &g.up, &g.down]);
            [&l.query, &l.key, &l.value, &l.attention_output].into_iter().chain(gated).chain(router)
        });
        let linears = layers.chain(&self.output).map(|l| l.weight.byte_len());
        self.embedding.byte_len() + linears.sum::<usize>()
    }

    /// The output head's matrix.
    pub fn head(&self) -> &Tensor {
        self.output.as_ref().map_or(&self.embedding, |output| &output.weight)
    }
}

/// Where parameters come from, by name.
pub(crate) trait ParameterSource {
    /// Why one is not to be had.
    type Error;

    /// Whether there is a parameter of this name.
    fn has(&self, name: &str) -> bool;

    /// The matrix of this name and shape.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Self::Error>;

    /// The matrices of this shape in the tensor of this name, which has one dimension more.
    fn stack(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>, Self::Error>;

    /// The vector of this name and length, as 32-bit floats.
    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, Self::Error>;
}

/// Collects the parameters that `spec` needs from `source`.
pub(crate) fn assemble<S: ParameterSource>(
    spec: &ModelSpec,
    names: &Names,
    source: &S,
) -> Result<Weights, S::Error> {
    let weight = |name: &str| format!("{name}.weight");
    let output = if spec.tied_embeddings {
        None
    } else {
        Some(linear(source, names.output, spec.vocab, spec.hidden, false)?)
    };
    Ok(Weights {
        embedding: source.matrix(&weight(names.embedding), spec.vocab, spec.hidden)?,
        layers: (0..spec.layers).map(|i| layer(spec, names, source, i)).collect::<Result<_, _>>()?,
        output_norm: norm(source, names, names.output_norm, spec.hidden)?,
        output,
    })
}

fn layer<S: ParameterSource>(
    spec: &ModelSpec,
    names: &Names,
    source: &S,
    index: usize,
) -> Result<LayerWeights, S::Error> {
    let full = |name: &str| format!("{}{index}.{name}", names.layers);
    let norm = |name: &str, len| norm(source, names, &full(name), len);
    let head_norm = |name: &str| spec.qk_norm.then(|| norm(name, spec.head_dim)).transpose();
    let post_norm = |name: &str| spec.post_norms.then(|| norm(name, spec.hidden)).transpose();
    let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let attention_norm = norm(names.attention_norm, spec.hidden)?;
    let parts = [(names.query, queries), (names.key, keys), (names.value, keys)];
    let [query, key, value] = parted(source, full, names.query_key_value, parts, spec.hidden, spec.qkv_bias)?;
    let feed_forward = match spec.experts {
        Some(experts) if spec.per_layer[index].experts => {
            FeedForward::Experts(mixture(spec.hidden, experts, names, source, full)?)
        }
        _ => {
            let parts = [(names.gate, spec.intermediate), (names.up, spec.intermediate)];
            let [gate, up] = parted(source, full, names.gate_up, parts, spec.hidden, false)?;
            let down = linear(source, &full(names.down), spec.hidden, spec.intermediate, false)?;
            FeedForward::Dense(Gated { gate, up, down })
        }
    };
    Ok(LayerWeights {
        attention_norm,
        query,
        key,
        value,
        query_norm: head_norm(names.query_norm)?,
        key_norm: head_norm(names.key_norm)?,
        attention_output: linear(source, &full(names.attention_output), spec.hidden, queries, false)?,
        attention_post_norm: post_norm(names.attention_post_norm)?,
        feed_forward_norm: norm(names.feed_forward_norm, spec.hidden)?,
        feed_forward,
        feed_forward_post_norm: post_norm(names.feed_forward_post_norm)?,
    })
}

fn norm<S: ParameterSource>(
    source: &S,
    names: &Names,
    name: &str,
    len: usize,
) -> Result<Box<[f32]>, S::Error> {
    let mut weights = source.vector(&format!("{name}.weight"), len)?;
    weights.iter_mut().for_each(|w| *w += names.norm_offset);
    Ok(weights)
}

/// Matrices that a file holds each by itself or, when the first is not there, all in the one called
/// `together`.
fn parted<S: ParameterSource, const N: usize>(
    source: &S,
    full: impl Fn(&str) -> String,
    together: &str,
    parts: [(&str, usize); N],
    cols: usize,
    bias: bool,
) -> Result<[Linear; N], S::Error> {
    let is_there = |name: &str| source.has(&format!("{}.weight", full(name)));
    let whole = if !is_there(parts[0].0) && is_there(together) {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        Some(linear(source, &full(together), rows, cols, bias)?)
    } else {
        None
    };
    let mut first = 0;
    let mut all = Vec::with_capacity(N);
    for (name, rows) in parts {
        all.push(match &whole {
            Some(whole) => whole.rows_at(first..first + rows),
            None => linear(source, &full(name), rows, cols, bias)?,
        });
        first += rows;
    }
    Ok(all.try_into().unwrap_or_else(|_| unreachable!("one for each part")))
}

fn mixture<S: ParameterSource>(
    hidden: usize,
    spec: ExpertsSpec,
    names: &Names,
    source: &S,
    full: impl Fn(&str) -> String,
) -> Result<Experts, S::Error> {
    let inner = spec.intermediate;
    let shapes = [(inner, hidden), (inner, hidden), (hidden, inner)];
    let each = |part: usize, expert: usize| {
        let (before, after) = names.experts.each[part];
        full(&format!("{before}.{expert}{after}.weight"))
    };
    let stack = |name: &str| format!("{}.weight", full(name));
    // A file with neither is told of the form that is written today.
    let stacked =
        names.experts.stacked.filter(|[gate, ..]| source.has(&stack(gate)) || !source.has(&each(0, 0)));
    let part = |part: usize| {
        let (rows, cols) = shapes[part];
        match stacked {
            Some(stacked) => source.stack(&stack(stacked[part]), spec.count, rows, cols),
            None => (0..spec.count).map(|i| source.matrix(&each(part, i), rows, cols)).collect(),
        }
    };
    let plain = |weight| Linear { weight, bias: None };
    let gated = |((gate, up), down)| Gated { gate: plain(gate), up: plain(up), down: plain(down) };
    let experts = part(0)?.into_iter().zip(part(1)?).zip(part(2)?).map(gated).collect();
    Ok(Experts { router: linear(source, &full(names.router), spec.count, hidden, false)?, experts })
}

/// A matrix with its bias: one that is there is used, one that is `needed` and missing is an error.
fn linear<S: ParameterSource>(
    source: &S,
    name: &str,
    rows: usize,
    cols: usize,
    needed: bool,
) -> Result<Linear, S::Error> {
    let bias = format!("{name}.bias");
    let bias = if needed || source.has(&bias) { Some(source.vector(&bias, rows)?) } else { None };
    Ok(Linear { weight: source.matrix(&format!("{name}.weight"), rows, cols)?, bias })
}
