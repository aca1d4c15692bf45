//! One forward pass over all tokens of a step.

use super::attention::{Attention, Shape, Tasks};
use super::cache::Cache;
use super::experts::{Adapted, Mixture};
use super::layer::{FeedForward, Layer, Projection};
use super::lines::{Line, Rows};
use super::lora::{LoraRuns, Loras};
use super::pointwise::{Rotation, add_rows, gate_rows, norm_rows, padded};
use super::product::{multiply, multiply_gated};
use super::quantise::Quantised;
use super::simd::{Kernel, Simd};
use super::tanh::{cap_rows, scale_rows};
use super::team::Machine;
use crate::backend::{BLOCK_TOKENS, Logits, StepBatch};
use crate::lora::{AdapterId, LoraWeights, Part, Target};
use crate::model::spec::{self, ModelSpec};
use crate::tensor::{Linear, Tensor, Weights, dequantise};

/// From so many tokens on, what lies between two products no longer fits the nearest caches.
const MANY_TOKENS: usize = 32;

/// A model ready to run, with its KV cache.
pub(super) struct Model {
    spec: ModelSpec,
    /// Looked up row by row, as it is stored.
    embedding: Tensor,
    layers: Vec<Layer>,
    output_norm: Box<[Line]>,
    /// Without one the last norm's rows are what is returned.
    head: Option<Projection>,
    cache: Cache,
    loras: Loras,
}

/// Everything between the layers' parameters, kept from step to step.
pub(super) struct Activations {
    rotation: Rotation,
    local_rotation: Option<Rotation>,
    positions: Vec<u32>,
    slots: Vec<(u32, u32)>,
    lora_runs: LoraRuns,
    tasks: Tasks,
    /// The residual stream.
    stream: Rows,
    normed: Rows,
    quantised: Quantised,
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
            lora_runs: LoraRuns::default(),
            tasks: Tasks::default(),
            stream: Rows::default(),
            normed: Rows::default(),
            quantised: Quantised::default(),
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
        self.lora_runs.place(&step.spans);
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
    fn add_projected(&mut self, machine: &mut Machine, norm: Option<&[Line]>, eps: f32) {
        match norm {
            Some(norm) => {
                norm_rows(machine, &self.projected, norm, eps, &mut self.normed);
                add_rows(machine, &mut self.stream, &self.normed);
            }
            None => add_rows(machine, &mut self.stream, &self.projected),
        }
    }
}

impl Model {
    /// Takes a model's weights over, all but the output head, for which `head` stands; `exact` keeps all
    /// products in 32-bit floats.
    pub(super) fn new(
        machine: &mut Machine,
        spec: ModelSpec,
        weights: Weights,
        head: Option<Linear>,
        cache: Cache,
        exact: bool,
    ) -> Result<Self, String> {
        assert_eq!(weights.layers.len(), spec.layers, "the weights are of this shape");
        let layers = weights.layers.into_iter().map(|layer| Layer::new(machine, layer, exact));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            head: head.map(|head| Projection::new(machine, head, exact)).transpose()?,
            embedding: weights.embedding,
            output_norm: padded(&weights.output_norm),
            spec,
            cache,
            loras: Loras::default(),
        })
    }

    /// The adapters that it has.
    pub(super) fn loras(&self) -> &Loras {
        &self.loras
    }

    /// Takes an adapter over, or says how its shape differs.
    pub(super) fn load_adapter(&mut self, id: AdapterId, weights: &LoraWeights) -> Result<(), String> {
        weights.check(&self.spec)?;
        self.loras.load(id, weights);
        Ok(())
    }

    /// Lets go of an adapter.
    pub(super) fn unload_adapter(&mut self, id: AdapterId) {
        self.loras.unload(id);
    }

    /// The cache, for whole blocks in and out.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn cache_mut(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// An empty cache of so many blocks instead of the one there is; `false` when the system refuses.
    pub(super) fn replace_cache(&mut self, blocks: usize) -> bool {
        Cache::new(&self.spec, self.cache.layer(0).element(), blocks).is_some_and(|cache| {
            self.cache = cache;
            true
        })
    }

    /// Runs a step that was checked, and writes its logits. Returns how many matrix products it took.
    pub(super) fn forward(
        &mut self,
        machine: &mut Machine,
        a: &mut Activations,
        step: &StepBatch,
        logits: &mut Logits,
    ) -> u64 {
        let Self { spec, embedding, layers, output_norm, head, cache, loras } = self;
        let eps = spec.norm_eps;
        let shape = Shape {
            head_dim: spec.head_dim,
            kv_heads: spec.kv_heads,
            group: spec.heads / spec.kv_heads,
            window: None,
            scale: spec.attention_scale.unwrap_or_else(|| 1.0 / (spec.head_dim as f32).sqrt()),
            softcap: spec.attention_softcap,
        };
        a.tasks.divide(&step.spans, shape, machine.threads());
        let mut products = 0;
        a.place(step);
        embed(machine, embedding, &step.tokens, &mut a.stream);
        if let Some(scale) = spec.embedding_scale {
            scale_rows(machine, &mut a.stream, scale);
        }
        for (index, layer) in layers.iter().enumerate() {
            let shape = Shape { window: spec.per_layer[index].window, ..shape };
            norm_rows(machine, &a.stream, &layer.attention_norm, eps, &mut a.normed);
            let projections =
                [layer.query.to(&mut a.queries), layer.key.to(&mut a.keys), layer.value.to(&mut a.values)];
            multiply(machine, &a.normed, &mut a.quantised, projections);
            let outputs =
                [(Target::Query, &mut a.queries), (Target::Key, &mut a.keys), (Target::Value, &mut a.values)];
            loras.add(machine, &a.lora_runs, (index, Part::Shared), &a.normed, outputs);
            let rotation = match spec.per_layer[index].rotation {
                spec::Rotation::Global => Some(&a.rotation),
                spec::Rotation::Local => a.local_rotation.as_ref(),
                spec::Rotation::None => None,
            };
            if let Some(rotation) = rotation {
                rotation.rotate(machine, &mut a.queries, layer.query_norm.as_deref().map(|w| (w, eps)));
                rotation.rotate(machine, &mut a.keys, layer.key_norm.as_deref().map(|w| (w, eps)));
            }
            cache.layer_mut(index).write(machine, &a.slots, &a.keys, &a.values);
            Attention { shape, spans: &step.spans, queries: &a.queries, cache: cache.layer(index) }.run(
                machine,
                &a.tasks,
                &mut a.attended,
            );
            let projection = [layer.attention_output.to(&mut a.projected)];
            multiply(machine, &a.attended, &mut a.quantised, projection);
            let outputs = [(Target::Output, &mut a.projected)];
            loras.add(machine, &a.lora_runs, (index, Part::Shared), &a.attended, outputs);
            a.add_projected(machine, layer.attention_post_norm.as_deref(), eps);

            norm_rows(machine, &a.stream, &layer.feed_forward_norm, eps, &mut a.normed);
            products += 4;
            products += match (&layer.feed_forward, spec.experts) {
                (FeedForward::Dense(dense), _) => {
                    let (activation, quantised) = (spec.activation, &mut a.quantised);
                    // An adapter's part comes between the products and the gate.
                    if step.tokens.len() < MANY_TOKENS || !a.lora_runs.is_empty() {
                        let projections = [dense.gate.to(&mut a.gate), dense.up.to(&mut a.up)];
                        multiply(machine, &a.normed, quantised, projections);
                        let outputs = [(Target::Gate, &mut a.gate), (Target::Up, &mut a.up)];
                        loras.add(machine, &a.lora_runs, (index, Part::Shared), &a.normed, outputs);
                        gate_rows(machine, activation, &mut a.gate, &a.up);
                    } else {
                        let (gate, up) = (dense.gate.factor(), dense.up.factor());
                        multiply_gated(machine, &a.normed, quantised, activation, gate, up, &mut a.gate);
                    }
                    multiply(machine, &a.gate, &mut a.quantised, [dense.down.to(&mut a.projected)]);
                    let outputs = [(Target::Down, &mut a.projected)];
                    loras.add(machine, &a.lora_runs, (index, Part::Shared), &a.gate, outputs);
                    3
                }
                (FeedForward::Experts(experts), shape) => {
                    let shape = shape.expect("a shape with experts where its weights have them");
                    let mixture = (experts, shape, spec.activation);
                    let adapters = Adapted { loras, runs: &a.lora_runs, layer: index };
                    a.mixture.run(machine, mixture, adapters, &a.normed, &mut a.projected)
                }
            };
            a.add_projected(machine, layer.feed_forward_post_norm.as_deref(), eps);
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
        norm_rows(machine, &a.projected, output_norm, eps, &mut a.normed);
        let rows = match head {
            None => &a.normed,
            Some(head) => {
                multiply(machine, &a.normed, &mut a.quantised, [head.to(&mut a.logits)]);
                products += 1;
                if let Some(cap) = spec.logit_softcap {
                    cap_rows(machine, &mut a.logits, cap);
                }
                &a.logits
            }
        };

        logits.vocab = rows.width();
        logits.data.clear();
        for row in 0..wanted.len() {
            logits.data.extend_from_slice(rows.row(row));
        }
        products
    }
}

/// Looks each token's embedding up.
fn embed(machine: &Machine, embedding: &Tensor, tokens: &[u32], out: &mut Rows) {
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
        machine.run(Row(embedding, *token as usize, out.row_mut(i)));
    }
}
