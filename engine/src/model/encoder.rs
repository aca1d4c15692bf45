//! The shape and the parameters of an encoder: a transformer whose tokens all see each other, which
//! turns a text into one vector, or into scores of classes.

use super::load::{LoadError, SpecialTokens, TokenizerSource};
use super::vectors::VectorOutput;
use crate::safetensors;
use crate::tensor::{Linear, Tensor};
use std::path::Path;

/// An encoder of BERT's kind: learned positions, layer norms after each half layer, a plain
/// feed-forward layer.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    /// The architecture's name in its file, for messages.
    pub architecture: String,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Positions that have an embedding.
    pub max_positions: usize,
    /// Kinds of text that have an embedding: the first of a pair, the second.
    pub types: usize,
    /// What becomes of the last layer's rows.
    pub output: VectorOutput,
}

impl EncoderSpec {
    /// Length of the vector that one text gives.
    pub fn outputs(&self) -> usize {
        self.output.width(self.hidden)
    }

    /// Says in words what about the shape cannot be run.
    pub fn check(&self) -> Result<(), String> {
        const MOST: usize = 1 << 20;
        let dimensions = [
            ("vocabulary size", self.vocab),
            ("hidden size", self.hidden),
            ("number of heads", self.heads),
            ("feed-forward width", self.intermediate),
            ("number of positions", self.max_positions),
            ("number of token types", self.types),
            ("number of classes", self.outputs()),
        ];
        for (name, value) in dimensions {
            if value == 0 || value > MOST {
                return Err(format!("the {name} is {value}, expected 1 to {MOST}"));
            }
        }
        if self.layers == 0 || self.layers > super::spec::MAX_LAYERS {
            let most = super::spec::MAX_LAYERS;
            return Err(format!("the number of layers is {}, expected 1 to {most}", self.layers));
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not divide the hidden size {}", self.heads, self.hidden));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(format!("the norm epsilon {} must be positive", self.norm_eps));
        }
        Ok(())
    }
}

/// The parameters of an [`EncoderSpec`].
#[derive(Clone, Debug)]
pub struct EncoderWeights {
    /// Token embeddings, `vocab` by `hidden`.
    pub words: Tensor,
    /// Position embeddings, `max_positions` by `hidden`.
    pub positions: Tensor,
    /// Embeddings of the kinds of text, `types` by `hidden`.
    pub types: Tensor,
    /// Norm of the embeddings' sum.
    pub embedding_norm: LayerNorm,
    /// The layers, first to last.
    pub layers: Vec<EncoderLayer>,
    /// With classes: the first row's projection, and the classes' scores from it.
    pub head: Option<(Linear, Linear)>,
}

/// One layer of an encoder.
#[derive(Clone, Debug)]
pub struct EncoderLayer {
    /// Query projection.
    pub query: Linear,
    /// Key projection.
    pub key: Linear,
    /// Value projection.
    pub value: Linear,
    /// Attention's output projection.
    pub attention_output: Linear,
    /// Norm of attention's output and the stream.
    pub attention_norm: LayerNorm,
    /// The feed-forward layer's first half, `intermediate` by `hidden`.
    pub up: Linear,
    /// Its second half.
    pub down: Linear,
    /// Norm of its output and the stream.
    pub output_norm: LayerNorm,
}

/// Parameters of a layer norm.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Multiplies what is normalised.
    pub weight: Box<[f32]>,
    /// Is added to it.
    pub bias: Box<[f32]>,
}

/// An encoder's checkpoint, opened.
#[derive(Debug)]
pub struct LoadedEncoder {
    /// The network's shape.
    pub spec: EncoderSpec,
    /// Its parameters.
    pub weights: EncoderWeights,
    /// What to build the tokenizer from.
    pub tokenizer_source: TokenizerSource,
    /// Tokens that begin and end a sequence: an encoder's tokenizer puts them itself.
    pub special: SpecialTokens,
    /// The name that the folder gives the model.
    pub name: Option<String>,
    /// The longest text that the model was made for, where that is less than its positions.
    pub max_len: usize,
}

/// Opens the folder at `path` if it holds an encoder; none when it holds something else, or is none.
pub fn load(path: &Path) -> Result<Option<LoadedEncoder>, LoadError> {
    if path.join("config.json").is_file() { safetensors::load_encoder(path) } else { Ok(None) }
}
