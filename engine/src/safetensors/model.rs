//! Opens a Hugging Face checkpoint.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config::{Config, OneOrMany, Refusal};
use super::family::{ARCHITECTURES, Ending};
use super::shards::Shards;
use super::{pooling, wrapper};
use crate::model::load::{Head, LoadError, LoadedModel, SpecialTokens, TokenizerSource};
use crate::tensor::{self, Linear, ParameterSource};

/// `generation_config.json`, where the ids that end an answer may be more than the model's own.
#[derive(Default, Deserialize)]
struct Generation {
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

/// Opens the checkpoint in `folder`; its weights are `weights`, if given, rather than what the folder's
/// usual names say.
pub(crate) fn load(folder: &Path, weights: Option<&Path>) -> Result<LoadedModel, LoadError> {
    let path = folder.join("config.json");
    let config: Value = read_json(&path)?.ok_or_else(|| LoadError::NotAModel {
        path: weights.unwrap_or(folder).into(),
        found: "no config.json beside it".to_owned(),
    })?;
    let refused = |refusal| match refusal {
        Refusal::Architecture(architecture) => {
            LoadError::UnknownArchitecture { path: path.clone(), architecture, supported: ARCHITECTURES }
        }
        Refusal::Unsupported(reason) => LoadError::Unsupported { path: path.clone(), reason },
        Refusal::Bad(source) => LoadError::Checkpoint { path: path.clone(), source },
    };
    let config: Config = serde_json::from_value(wrapper::text_part(config))
        .map_err(|e| LoadError::Checkpoint { path: path.clone(), source: e.into() })?;
    let (family, ending) = config.family().map_err(refused)?;
    let mut spec = config.spec(family).map_err(refused)?;
    // Another class has no output head that could be looked for.
    spec.tied_embeddings |= ending != Ending::Tokens;
    let shards = Shards::open(folder, weights)?.with_base();
    let weights = tensor::assemble(&spec, family.names(), &shards)?;
    let head = match ending {
        Ending::Tokens => Head::Tokens,
        Ending::Nothing => Head::Nothing,
        Ending::Classes => {
            let labels = config.labels().map_err(refused)?;
            let weight = shards.matrix("score.weight", labels.len(), spec.hidden)?;
            Head::Classes { labels, scores: Linear { weight, bias: None } }
        }
    };
    let embedding = pooling::pooling(folder).map_err(|reason| refused(Refusal::Unsupported(reason)))?;
    let longest_text = pooling::longest(folder).map_err(|reason| refused(Refusal::Unsupported(reason)))?;
    let generation: Generation = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
    let tokenizer_config: Value = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let eos = generation.eos_token_id.or(config.eos_token_id);
    Ok(LoadedModel {
        spec,
        weights,
        chat_template: chat_template(folder, &tokenizer_config)?,
        special: SpecialTokens {
            bos: generation.bos_token_id.or(config.bos_token_id),
            eos: eos.map_or_else(Vec::new, OneOrMany::into_vec),
            add_bos: tokenizer_config["add_bos_token"].as_bool().unwrap_or(false),
            add_eos: false,
        },
        head,
        embedding,
        longest_text,
        name: folder.file_name().map(|name| name.to_string_lossy().into_owned()),
        tokenizer_source: TokenizerSource::HuggingFace {
            tokenizer_json: folder.join("tokenizer.json"),
            tokenizer_config,
        },
    })
}

/// The template: a file of its own, or a string in `tokenizer_config.json`, or the one named `default`
/// of a list there.
fn chat_template(folder: &Path, tokenizer_config: &Value) -> Result<Option<String>, LoadError> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|source| LoadError::Io { path, source })?;
        return Ok(Some(text));
    }
    let template = match &tokenizer_config["chat_template"] {
        Value::Array(named) => named.iter().find(|t| t["name"] == "default").map(|t| &t["template"]),
        other => Some(other),
    };
    Ok(template.and_then(Value::as_str).map(str::to_owned))
}

/// A JSON file; none when it is not there.
pub(super) fn read_json<T: DeserializeOwned>(path: &PathBuf) -> Result<Option<T>, LoadError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Io { path: path.clone(), source }),
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|e| LoadError::Checkpoint { path: path.clone(), source: e.into() })
}
