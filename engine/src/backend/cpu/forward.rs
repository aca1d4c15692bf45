//! One forward pass over all tokens of a step.

use super::attention::{self, Attention, Shape};
use super::cache::Cache;
use super::experts::Mixture;
use super::lines::{Line, Rows};
use super::pointwise::{Rotation, add_rows, gate_rows, norm_rows, padded};
use super::product::{Product, multiply};
use super::simd::{Kernel, Level, Simd};
use super::tanh::{cap_rows, scale_rows};
use crate::backend::{BLOCK_TOKENS, Logits, StepBatch};
use crate::model::spec::{self, ModelSpec};
use crate::tensor::{FeedForward, Gated, Linear, Tensor, Weights, dequantise};

/// A model ready to run, with its KV cache.
pub(super) struct Model {
    spec: ModelSpec,
    weights: Weights,
    norms: Vec<LayerNorms>,
    output_norm: Box<[Line]>,
    cache: Cache,
}

/// A layer's norms as the kernels read them.
struct LayerNorms {
    attention: Box<[Line]>,
    attention_post: Option<Box<[Line]>>,
    feed_forward: Box<[Line]>,
    feed_forward_post: Option<Box<[Line]>>,
    query: Option<Box<[Line]>>,
    key: Option<Box<[Line]>>,
}

/// Everything between the layers' parameters, kept from step to step.
pub(super) struct Activations {
    rotation: Rotation,
    local_rotation: Option<Rotation>,
    positions: Vec<u32>,
    slots: Vec<(u32, u32)>,
    /// The residual stream.
    stream: Rows,
    normed: Rows,
    queries: Rows,
    keys: Rows,
    values: Rows,
    attended: Rows,
    projected: Rows,
    gate: Rows,
    up: Rows,
    mixture: Mixture,
    logits: Rows,
}

impl Activations {
    /// For contexts of at most `longest` tokens.
    pub(super) fn new(spec: &ModelSpec, longest: usize) -> Self {
        let rotation = |rope| Rotation::new(rope, spec.head_dim, longest);
        Self {
            rotation: rotation(&spec.rope),
            local_rotation: spec.local_rope.as_ref().map(rotation),
            positions: Vec::new(),
            slots: Vec::new(),
            stream: Rows::default(),
            normed: Rows::default(),
            queries: Rows::default(),
            keys: Rows::default(),
            values: Rows::default(),
            attended: Rows::default(),
            projected: Rows::default(),
            gate: Rows::default(),
            up: Rows::default(),
            mixture: Mixture::default(),
            logits: Rows::default(),
        }
    }

    /// Notes where each token stands: its position, and its slot in the cache.
    fn place(&mut self, step: &StepBatch) {
        self.positions.clear();
        self.slots.clear();
        for span in &step.spans {
            for position in span.context..span.context + span.len {
                self.positions.push(position as u32);
                let block = span.blocks[position / BLOCK_TOKENS];
                self.slots.push((block, (position % BLOCK_TOKENS) as u32));
            }
        }
        self.rotation.prepare(&self.positions);
        if let Some(rotation) = &mut self.local_rotation {
            rotation.prepare(&self.positions);
        }
    }

    /// Adds a half layer's output, normalised if the model does, to the residual stream.
    fn add_projected(&mut self, level: Level, norm: Option<&[Line]>, eps: f32) {
        match norm {
            Some(norm) => {
                norm_rows(level, &self.projected, norm, eps, &mut self.normed);
                add_rows(level, &mut self.stream, &self.normed);
            }
            None => add_rows(level, &mut self.stream, &self.projected),
        }
    }
}

/// A product with a layer's matrix and its bias.
fn linear<'a>(linear: &'a Linear, x: &'a Rows, out: &'a mut Rows) -> Product<'a> {
    Product::new(&linear.weight, linear.bias.as_deref(), x, out)
}

impl Model {
    pub(super) fn new(spec: ModelSpec, weights: Weights, cache: Cache) -> Self {
        assert_eq!(weights.layers.len(), spec.layers, "the weights are of this shape");
        let norms = weights.layers.iter().map(|layer| LayerNorms {
            attention: padded(&layer.attention_norm),
            attention_post: layer.attention_post_norm.as_deref().map(padded),
            feed_forward: padded(&layer.feed_forward_norm),
            feed_forward_post: layer.feed_forward_post_norm.as_deref().map(padded),
            query: layer.query_norm.as_deref().map(padded),
            key: layer.key_norm.as_deref().map(padded),
        });
        let (norms, output_norm) = (norms.collect(), padded(&weights.output_norm));
        Self { spec, weights, norms, output_norm, cache }
    }

    /// Runs a step that was checked, on the current pool. Returns the logits, and how many matrix
    /// products it took.
    pub(super) fn forward(&mut self, level: Level, a: &mut Activations, step: &StepBatch) -> (Logits, u64) {
        let Self { spec, weights, norms, output_norm, cache } = self;
        let eps = spec.norm_eps;
        let shape = Shape {
            head_dim: spec.head_dim,
            kv_heads: spec.kv_heads,
            group: spec.heads / spec.kv_heads,
            window: None,
            scale: spec.attention_scale.unwrap_or_else(|| 1.0 / (spec.head_dim as f32).sqrt()),
            softcap: spec.attention_softcap,
        };
        let tasks = attention::tasks(&step.spans, shape);
        let mut products = 0;
        a.place(step);
        embed(level, &weights.embedding, &step.tokens, &mut a.stream);
        if let Some(scale) = spec.embedding_scale {
            scale_rows(level, &mut a.stream, scale);
        }
        for (index, (layer, norms)) in weights.layers.iter().zip(norms.iter()).enumerate() {
            let shape = Shape { window: spec.per_layer[index].window, ..shape };
            norm_rows(level, &a.stream, &norms.attention, eps, &mut a.normed);
            multiply(
                level,
                &[
                    linear(&layer.query, &a.normed, &mut a.queries),
                    linear(&layer.key, &a.normed, &mut a.keys),
                    linear(&layer.value, &a.normed, &mut a.values),
                ],
            );
            let rotation = match spec.per_layer[index].rotation {
                spec::Rotation::Global => Some(&a.rotation),
                spec::Rotation::Local => a.local_rotation.as_ref(),
                spec::Rotation::None => None,
            };
            if let Some(rotation) = rotation {
                rotation.rotate(level, &mut a.queries, norms.query.as_deref().map(|w| (w, eps)));
                rotation.rotate(level, &mut a.keys, norms.key.as_deref().map(|w| (w, eps)));
            }
            cache.layer_mut(index).write(&a.slots, &a.keys, &a.values);
            Attention { shape, spans: &step.spans, queries: &a.queries, cache: cache.layer(index) }.run(
                level,
                &tasks,
                &mut a.attended,
            );
            multiply(level, &[linear(&layer.attention_output, &a.attended, &mut a.projected)]);
            a.add_projected(level, norms.attention_post.as_deref(), eps);

            norm_rows(level, &a.stream, &norms.feed_forward, eps, &mut a.normed);
            products += 4;
            products += match (&layer.feed_forward, spec.experts) {
                (FeedForward::Experts(experts), Some(shape)) => {
                    let mixture = (experts, shape, spec.activation);
                    a.mixture.run(level, mixture, &a.normed, &mut a.projected)
                }
                (feed_forward, _) => {
                    let Gated { gate, up, down } = &feed_forward.gated()[0];
                    multiply(
                        level,
                        &[linear(gate, &a.normed, &mut a.gate), linear(up, &a.normed, &mut a.up)],
                    );
                    gate_rows(level, spec.activation, &mut a.gate, &a.up);
                    multiply(level, &[linear(down, &a.gate, &mut a.projected)]);
                    3
                }
            };
            a.add_projected(level, norms.feed_forward_post.as_deref(), eps);
        }

        // Only the rows that somebody wants go through the output head, the widest product of all.
        let wanted: Vec<usize> = step
            .spans
            .iter()
            .flat_map(|span| span.start + span.len - span.logits.count()..span.start + span.len)
            .collect();
        a.projected.reshape(wanted.len(), spec.hidden);
        for (to, from) in wanted.iter().enumerate() {
            a.projected.row_mut(to).copy_from_slice(a.stream.row(*from));
        }
        norm_rows(level, &a.projected, output_norm, eps, &mut a.normed);
        let bias = weights.output.as_ref().and_then(|output| output.bias.as_deref());
        multiply(level, &[Product::new(weights.head(), bias, &a.normed, &mut a.logits)]);
        products += 1;
        if let Some(cap) = spec.logit_softcap {
            cap_rows(level, &mut a.logits, cap);
        }

        let mut data = Vec::with_capacity(wanted.len() * spec.vocab);
        for row in 0..wanted.len() {
            data.extend_from_slice(a.logits.row(row));
        }
        (Logits { data, vocab: spec.vocab }, products)
    }
}

/// Looks each token's embedding up.
fn embed(level: Level, embedding: &Tensor, tokens: &[u32], out: &mut Rows) {
    struct Row<'a>(&'a Tensor, usize, &'a mut [f32]);
    impl Kernel for Row<'_> {
        type Output = ();
        #[inline(always)]
        #[allow(clippy::inline_always)]
        fn run<S: Simd>(self, _: S) {
            dequantise(self.0.kind(), self.0.row(self.1), self.2);
        }
    }
    out.reshape(tokens.len(), embedding.cols());
    for (i, token) in tokens.iter().enumerate() {
        level.run(Row(embedding, *token as usize, out.row_mut(i)));
    }
}
