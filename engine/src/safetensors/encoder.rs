//! Opens a Hugging Face checkpoint of an encoder, with what sentence-transformers says about pooling.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::model::read_json;
use super::pooling;
use super::shards::Shards;
use crate::model::encoder::{EncoderLayer, EncoderSpec, EncoderWeights, LayerNorm, LoadedEncoder};
use crate::model::load::{LoadError, SpecialTokens, TokenizerSource};
use crate::model::vectors::{Embedding, Pooling, VectorOutput};
use crate::tensor::{Linear, ParameterSource};

const PLAIN: &str = "BertModel";
const CLASSIFIER: &str = "BertForSequenceClassification";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    layer_norm_eps: Option<f32>,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    num_labels: Option<usize>,
    id2label: Option<std::collections::BTreeMap<String, String>>,
}

/// Opens the checkpoint in `folder`; none when it is not an encoder.
pub(crate) fn load(folder: &Path) -> Result<Option<LoadedEncoder>, LoadError> {
    let path = folder.join("config.json");
    let Some(value) = read_json::<Value>(&path)? else { return Ok(None) };
    let class = value["architectures"][0].as_str().unwrap_or_default();
    if class != PLAIN && class != CLASSIFIER {
        return Ok(None);
    }
    let bad = |e: serde_json::Error| LoadError::Checkpoint { path: path.clone(), source: e.into() };
    let config = Config::deserialize(value).map_err(bad)?;
    let unsupported = |reason| LoadError::Unsupported { path: path.clone(), reason };
    let spec = spec(&config, folder).map_err(unsupported)?;
    spec.check().map_err(unsupported)?;
    let weights = weights(&spec, &Shards::open(folder, None)?)?;
    let max_len = pooling::longest(folder).map_err(unsupported)?.unwrap_or(usize::MAX);
    Ok(Some(LoadedEncoder {
        max_len: max_len.min(spec.max_positions),
        spec,
        weights,
        tokenizer_source: TokenizerSource::HuggingFace {
            tokenizer_json: folder.join("tokenizer.json"),
            tokenizer_config: Value::Null,
        },
        special: SpecialTokens::default(),
        name: folder.file_name().map(|name| name.to_string_lossy().into_owned()),
    }))
}

fn spec(config: &Config, folder: &Path) -> Result<EncoderSpec, String> {
    if let Some(act) = config.hidden_act.as_deref().filter(|act| *act != "gelu") {
        return Err(format!("the activation `{act}` is not supported in an encoder, only `gelu`"));
    }
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(format!("positions of the type `{kind}` are not supported, only `absolute`"));
    }
    let architecture = config.architectures.first().cloned().unwrap_or_default();
    let output = if architecture == CLASSIFIER {
        VectorOutput::Classes { labels: pooling::labels(config.id2label.as_ref(), config.num_labels)? }
    } else {
        // Without `modules.json` as BERT's own classes have it.
        let first = Embedding { pooling: Pooling::First, normalise: true };
        VectorOutput::Embedding(pooling::pooling(folder)?.unwrap_or(first))
    };
    Ok(EncoderSpec {
        architecture,
        vocab: config.vocab_size,
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        norm_eps: config.layer_norm_eps.unwrap_or(1e-12),
        max_positions: config.max_position_embeddings,
        types: config.type_vocab_size.unwrap_or(2),
        output,
    })
}

fn weights(spec: &EncoderSpec, source: &Shards) -> Result<EncoderWeights, LoadError> {
    // A head's class keeps the encoder under a name of its own.
    let base = if source.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
    let hidden = spec.hidden;
    let matrix = |name: &str, rows| source.matrix(&format!("{base}embeddings.{name}.weight"), rows, hidden);
    Ok(EncoderWeights {
        words: matrix("word_embeddings", spec.vocab)?,
        positions: matrix("position_embeddings", spec.max_positions)?,
        types: matrix("token_type_embeddings", spec.types)?,
        embedding_norm: norm(source, &format!("{base}embeddings.LayerNorm"), hidden)?,
        layers: (0..spec.layers)
            .map(|i| layer(spec, source, &format!("{base}encoder.layer.{i}")))
            .collect::<Result<_, _>>()?,
        head: match &spec.output {
            VectorOutput::Classes { labels } => Some((
                linear(source, &format!("{base}pooler.dense"), hidden, hidden)?,
                linear(source, "classifier", labels.len(), hidden)?,
            )),
            VectorOutput::Embedding(_) => None,
        },
    })
}

fn layer(spec: &EncoderSpec, source: &Shards, layer: &str) -> Result<EncoderLayer, LoadError> {
    let hidden = spec.hidden;
    let square = |name: &str| linear(source, &format!("{layer}.{name}"), hidden, hidden);
    Ok(EncoderLayer {
        query: square("attention.self.query")?,
        key: square("attention.self.key")?,
        value: square("attention.self.value")?,
        attention_output: square("attention.output.dense")?,
        attention_norm: norm(source, &format!("{layer}.attention.output.LayerNorm"), hidden)?,
        up: linear(source, &format!("{layer}.intermediate.dense"), spec.intermediate, hidden)?,
        down: linear(source, &format!("{layer}.output.dense"), hidden, spec.intermediate)?,
        output_norm: norm(source, &format!("{layer}.output.LayerNorm"), hidden)?,
    })
}

fn linear(source: &Shards, name: &str, rows: usize, cols: usize) -> Result<Linear, LoadError> {
    Ok(Linear {
        weight: source.matrix(&format!("{name}.weight"), rows, cols)?,
        bias: Some(source.vector(&format!("{name}.bias"), rows)?),
    })
}

fn norm(source: &Shards, name: &str, len: usize) -> Result<LayerNorm, LoadError> {
    Ok(LayerNorm {
        weight: source.vector(&format!("{name}.weight"), len)?,
        bias: source.vector(&format!("{name}.bias"), len)?,
    })
}
