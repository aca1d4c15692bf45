//! One forward pass of an encoder over several texts.
//!
//! A row's products, norms and activation depend on that row alone, and attention and pooling on the
//! rows of one text: so a text gives the same bits alone and with others.

mod attend;
mod pointwise;

use std::num::NonZero;
use std::ops::Range;

use self::attend::attend;
use self::pointwise::{gelu_rows, layer_norm_rows};
use super::layer::Projection;
use super::lines::{Line, Rows};
use super::pointwise::{add_rows, padded};
use super::product::multiply;
use super::quantise::Quantised;
use super::simd::Level;
use super::tanh::cap_rows;
use super::team::Machine;
use crate::backend::BackendError;
use crate::backend::vectors::{TextInput, VectorBackend, VectorInfo};
use crate::model::encoder::{EncoderLayer, EncoderSpec, EncoderWeights, LayerNorm};
use crate::model::vectors::{Embedding, Pooling, VectorOutput, normalise};
use crate::tensor::{Tensor, dequantise};

/// An encoder on the processor.
pub struct CpuEncoder {
    info: VectorInfo,
    spec: EncoderSpec,
    network: Network,
    machine: Machine,
    activations: Activations,
}

/// The parameters as the kernels read them.
struct Network {
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    head: Option<(Projection, Projection)>,
}

struct Layer {
    query: Projection,
    key: Projection,
    value: Projection,
    attention_output: Projection,
    attention_norm: Norm,
    up: Projection,
    down: Projection,
    output_norm: Norm,
}

/// A layer norm's parameters as the kernels read them.
pub(super) struct Norm {
    weight: Box<[Line]>,
    bias: Box<[Line]>,
    eps: f32,
}

/// Everything between the parameters, kept from batch to batch.
#[derive(Default)]
struct Activations {
    stream: Rows,
    queries: Rows,
    keys: Rows,
    values: Rows,
    attended: Rows,
    inner: Rows,
    projected: Rows,
    quantised: Quantised,
}

impl Norm {
    fn new(norm: &LayerNorm, eps: f32) -> Self {
        Self { weight: padded(&norm.weight), bias: padded(&norm.bias), eps }
    }
}

impl Layer {
    fn new(machine: &mut Machine, layer: EncoderLayer, eps: f32) -> Result<Self, String> {
        let mut projection = |linear| Projection::new(machine, linear, true);
        Ok(Self {
            query: projection(layer.query)?,
            key: projection(layer.key)?,
            value: projection(layer.value)?,
            attention_output: projection(layer.attention_output)?,
            attention_norm: Norm::new(&layer.attention_norm, eps),
            up: projection(layer.up)?,
            down: projection(layer.down)?,
            output_norm: Norm::new(&layer.output_norm, eps),
        })
    }
}

impl Network {
    fn new(machine: &mut Machine, weights: EncoderWeights, eps: f32) -> Result<Self, String> {
        let head = weights.head.map(|(pooler, classifier)| {
            Ok::<_, String>((
                Projection::new(machine, pooler, true)?,
                Projection::new(machine, classifier, true)?,
            ))
        });
        Ok(Self {
            words: weights.words,
            positions: weights.positions,
            types: weights.types,
            embedding_norm: Norm::new(&weights.embedding_norm, eps),
            head: head.transpose()?,
            layers: weights
                .layers
                .into_iter()
                .map(|layer| Layer::new(machine, layer, eps))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl CpuEncoder {
    /// An encoder on `threads` threads; 0 takes as many as the process may use.
    pub fn new(spec: EncoderSpec, weights: EncoderWeights, threads: usize) -> Result<Self, BackendError> {
        let failed = |message| BackendError::Device { backend: "cpu", message };
        spec.check().map_err(failed)?;
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            n => n.min(super::MAX_THREADS),
        };
        let mut machine = Machine::new(Level::detect(), threads)
            .map_err(|e| failed(format!("{threads} threads cannot be started: {e}")))?;
        let network = Network::new(&mut machine, weights, spec.norm_eps).map_err(failed)?;
        let info = VectorInfo {
            architecture: spec.architecture.clone(),
            vocab: spec.vocab,
            max_tokens: spec.max_positions,
            width: spec.outputs(),
            output: spec.output.clone(),
        };
        Ok(Self { info, spec, network, machine, activations: Activations::default() })
    }
}

impl VectorBackend for CpuEncoder {
    fn info(&self) -> &VectorInfo {
        &self.info
    }

    fn run(&mut self, texts: &[TextInput]) -> Result<Vec<Vec<f32>>, BackendError> {
        for (span, text) in texts.iter().enumerate() {
            let (len, most) = (text.tokens.len(), self.spec.max_positions);
            if len == 0 || len > most {
                let problem = format!("has {len} tokens, expected 1 to {most}");
                return Err(BackendError::InvalidStep { span, problem });
            }
            let vocab = self.spec.vocab;
            if let Some(&token) = text.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(BackendError::TokenOutOfRange { token, vocab });
            }
            if text.second.is_some() && self.spec.types < 2 {
                let problem = "is a pair, which this model does not tell apart".to_owned();
                return Err(BackendError::InvalidStep { span, problem });
            }
        }
        Ok(forward(&mut self.machine, &self.spec, &self.network, &mut self.activations, texts))
    }
}

fn forward(
    machine: &mut Machine,
    spec: &EncoderSpec,
    network: &Network,
    a: &mut Activations,
    texts: &[TextInput],
) -> Vec<Vec<f32>> {
    let spans = embed(spec, network, texts, &mut a.stream);
    layer_norm_rows(machine, &mut a.stream, &network.embedding_norm);
    for layer in &network.layers {
        let projections =
            [layer.query.to(&mut a.queries), layer.key.to(&mut a.keys), layer.value.to(&mut a.values)];
        multiply(machine, &a.stream, &mut a.quantised, projections);
        attend(machine, spec.heads, &spans, [&a.queries, &a.keys, &a.values], &mut a.attended);
        multiply(machine, &a.attended, &mut a.quantised, [layer.attention_output.to(&mut a.projected)]);
        add_rows(machine, &mut a.stream, &a.projected);
        layer_norm_rows(machine, &mut a.stream, &layer.attention_norm);

        multiply(machine, &a.stream, &mut a.quantised, [layer.up.to(&mut a.inner)]);
        gelu_rows(machine, &mut a.inner);
        multiply(machine, &a.inner, &mut a.quantised, [layer.down.to(&mut a.projected)]);
        add_rows(machine, &mut a.stream, &a.projected);
        layer_norm_rows(machine, &mut a.stream, &layer.output_norm);
    }
    match (&spec.output, &network.head) {
        (VectorOutput::Embedding(embedding), _) => {
            spans.into_iter().map(|span| pooled(&a.stream, span, *embedding)).collect()
        }
        (VectorOutput::Classes { .. }, head) => {
            a.inner.reshape(spans.len(), spec.hidden);
            for (row, span) in spans.iter().enumerate() {
                a.inner.row_mut(row).copy_from_slice(a.stream.row(span.start));
            }
            if let Some((pooler, classifier)) = head {
                multiply(machine, &a.inner, &mut a.quantised, [pooler.to(&mut a.projected)]);
                cap_rows(machine, &mut a.projected, 1.0);
                multiply(machine, &a.projected, &mut a.quantised, [classifier.to(&mut a.inner)]);
            }
            (0..spans.len()).map(|row| a.inner.row(row).to_vec()).collect()
        }
    }
}

/// Sums each token's embeddings, and says which rows are which text's.
fn embed(spec: &EncoderSpec, network: &Network, texts: &[TextInput], out: &mut Rows) -> Vec<Range<usize>> {
    out.reshape(texts.iter().map(|text| text.tokens.len()).sum(), spec.hidden);
    let mut part = vec![0.0; spec.hidden];
    let mut add = |tensor: &Tensor, index: usize, row: &mut [f32]| {
        dequantise(tensor.kind(), tensor.row(index), &mut part);
        row.iter_mut().zip(&part).for_each(|(sum, x)| *sum += x);
    };
    let mut spans = Vec::with_capacity(texts.len());
    let mut at = 0;
    for text in texts {
        spans.push(at..at + text.tokens.len());
        for (position, token) in text.tokens.iter().enumerate() {
            let row = out.row_mut(at);
            let kind = usize::from(text.second.is_some_and(|second| position >= second));
            dequantise(network.words.kind(), network.words.row(*token as usize), row);
            add(&network.types, kind, row);
            add(&network.positions, position, row);
            at += 1;
        }
    }
    spans
}

/// One text's vector from its rows.
fn pooled(rows: &Rows, span: Range<usize>, embedding: Embedding) -> Vec<f32> {
    let one = if embedding.pooling == Pooling::Last { span.end - 1 } else { span.start };
    let mut vector = rows.row(one).to_vec();
    if embedding.pooling == Pooling::Mean {
        let count = span.len() as f32;
        for row in span.start + 1..span.end {
            vector.iter_mut().zip(rows.row(row)).for_each(|(sum, x)| *sum += x);
        }
        for x in &mut vector {
            *x /= count;
        }
    }
    if embedding.normalise {
        normalise(&mut vector);
    }
    vector
}
