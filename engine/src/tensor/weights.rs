//! All parameters of a model, under one set of names whatever the file calls them.

use super::Tensor;
use crate::model::spec::ModelSpec;

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
    /// Norm before the feed-forward layer, `hidden` long.
    pub feed_forward_norm: Box<[f32]>,
    /// Gate, `intermediate` by `hidden`.
    pub gate: Linear,
    /// Up projection, `intermediate` by `hidden`.
    pub up: Linear,
    /// Down projection, `hidden` by `intermediate`.
    pub down: Linear,
}

/// A matrix and perhaps a bias of one number for each of its rows.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Outputs by inputs.
    pub weight: Tensor,
    /// Added to the outputs.
    pub bias: Option<Box<[f32]>>,
}

impl Weights {
    /// Bytes of all matrices, as stored.
    pub fn matrix_bytes(&self) -> usize {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| [&l.query, &l.key, &l.value, &l.attention_output, &l.gate, &l.up, &l.down]);
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

    /// The vector of this name and length, as 32-bit floats.
    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, Self::Error>;
}

/// What a file format calls the parameters. Those of a layer follow `{layers}{index}.`; a matrix is
/// `….weight`, a bias `….bias`.
pub(crate) struct Names {
    embedding: &'static str,
    output_norm: &'static str,
    output: &'static str,
    layers: &'static str,
    attention_norm: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    query_norm: &'static str,
    key_norm: &'static str,
    attention_output: &'static str,
    feed_forward_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

/// GGUF's names.
pub(crate) const GGUF_NAMES: Names = Names {
    embedding: "token_embd",
    output_norm: "output_norm",
    output: "output",
    layers: "blk.",
    attention_norm: "attn_norm",
    query: "attn_q",
    key: "attn_k",
    value: "attn_v",
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    attention_output: "attn_output",
    feed_forward_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
};

/// The names of Hugging Face's `…ForCausalLM` classes.
pub(crate) const HUGGING_FACE_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    output_norm: "model.norm",
    output: "lm_head",
    layers: "model.layers.",
    attention_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    attention_output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

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
        output_norm: source.vector(&weight(names.output_norm), spec.hidden)?,
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
    let norm = |name: &str, len| source.vector(&format!("{}.weight", full(name)), len);
    let head_norm = |name: &str| spec.qk_norm.then(|| norm(name, spec.head_dim)).transpose();
    let matrix = |name: &str, rows, cols, bias| linear(source, &full(name), rows, cols, bias);
    let (hidden, inner, bias) = (spec.hidden, spec.intermediate, spec.qkv_bias);
    let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    Ok(LayerWeights {
        attention_norm: norm(names.attention_norm, hidden)?,
        query: matrix(names.query, queries, hidden, bias)?,
        key: matrix(names.key, keys, hidden, bias)?,
        value: matrix(names.value, keys, hidden, bias)?,
        query_norm: head_norm(names.query_norm)?,
        key_norm: head_norm(names.key_norm)?,
        attention_output: matrix(names.attention_output, hidden, queries, false)?,
        feed_forward_norm: norm(names.feed_forward_norm, hidden)?,
        gate: matrix(names.gate, inner, hidden, false)?,
        up: matrix(names.up, inner, hidden, false)?,
        down: matrix(names.down, hidden, inner, false)?,
    })
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
