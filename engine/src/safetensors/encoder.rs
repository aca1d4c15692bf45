//! Opens a Hugging Face checkpoint of an encoder, with what sentence-transformers says about pooling.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::model::read_json;
use super::shards::Shards;
use crate::model::encoder::{
    EncoderLayer, EncoderOutput, EncoderSpec, EncoderWeights, LayerNorm, LoadedEncoder, Pooling,
};
use crate::model::load::{LoadError, SpecialTokens, TokenizerSource};
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

/// One entry of sentence-transformers' `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    class: String,
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
    let said: Value = read_json(&folder.join("sentence_bert_config.json"))?.unwrap_or(Value::Null);
    let max_len = said["max_seq_length"].as_u64().map_or(usize::MAX, |n| n as usize);
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
    let output = if architecture == CLASSIFIER { classes(config)? } else { pooling(folder)? };
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

fn classes(config: &Config) -> Result<EncoderOutput, String> {
    const MOST: usize = 65_536;
    let named = config.id2label.as_ref();
    // Without names there are two classes.
    let count = named.map(std::collections::BTreeMap::len).or(config.num_labels).unwrap_or(2);
    if count == 0 || count > MOST {
        return Err(format!("the number of classes is {count}, expected 1 to {MOST}"));
    }
    let label = |i: usize| {
        let own = named.and_then(|labels| labels.get(&i.to_string()).cloned());
        own.unwrap_or_else(|| format!("LABEL_{i}"))
    };
    Ok(EncoderOutput::Classes { labels: (0..count).map(label).collect() })
}

/// What `modules.json` says; without it, the first row, normalised, as BERT's own classes have it.
fn pooling(folder: &Path) -> Result<EncoderOutput, String> {
    let read =
        |path: PathBuf| -> Result<Option<Value>, String> { read_json(&path).map_err(|e| e.to_string()) };
    let Some(modules) = read(folder.join("modules.json"))? else {
        return Ok(EncoderOutput::Embedding { pooling: Pooling::First, normalise: true });
    };
    let modules: Vec<Module> =
        serde_json::from_value(modules).map_err(|e| format!("modules.json is not as expected: {e}"))?;
    let (mut pooling, mut normalise) = (None, false);
    for module in modules {
        match module.class.rsplit('.').next() {
            Some("Transformer") => {}
            Some("Normalize") => normalise = true,
            Some("Pooling") => {
                let inside = !module.path.contains("..") && !module.path.starts_with('/');
                let path = folder.join(if inside { module.path.as_str() } else { "" }).join("config.json");
                let config = read(path)?.ok_or("the pooling module has no config.json")?;
                pooling = Some(pooling_mode(&config)?);
            }
            _ => return Err(format!("the module `{}` of modules.json is not supported", module.class)),
        }
    }
    let pooling = pooling.ok_or("modules.json has no pooling module")?;
    Ok(EncoderOutput::Embedding { pooling, normalise })
}

fn pooling_mode(config: &Value) -> Result<Pooling, String> {
    let flags = config.as_object().into_iter().flatten();
    let set = flags.filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true));
    let mut names: Vec<&str> = set.map(|(key, _)| key.as_str()).collect();
    names.extend(config["pooling_mode"].as_str());
    match names[..] {
        ["pooling_mode_mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token" | "cls"] => Ok(Pooling::First),
        _ => Err(format!("the pooling {names:?} is not supported; one of `mean` and `cls` is")),
    }
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
            EncoderOutput::Classes { labels } => Some((
                linear(source, &format!("{base}pooler.dense"), hidden, hidden)?,
                linear(source, "classifier", labels.len(), hidden)?,
            )),
            EncoderOutput::Embedding { .. } => None,
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
