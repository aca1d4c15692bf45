//! What a folder says about reading texts: sentence-transformers' `modules.json`, and the classes of
//! `config.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::model::read_json;
use crate::model::vectors::{Embedding, Pooling};

/// One entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// What `modules.json` says; none when there is none.
pub(super) fn pooling(folder: &Path) -> Result<Option<Embedding>, String> {
    let read =
        |path: PathBuf| -> Result<Option<Value>, String> { read_json(&path).map_err(|e| e.to_string()) };
    let Some(modules) = read(folder.join("modules.json"))? else { return Ok(None) };
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
                pooling = Some(mode(&config)?);
            }
            _ => return Err(format!("the module `{}` of modules.json is not supported", module.class)),
        }
    }
    let pooling = pooling.ok_or("modules.json has no pooling module")?;
    Ok(Some(Embedding { pooling, normalise }))
}

fn mode(config: &Value) -> Result<Pooling, String> {
    let flags = config.as_object().into_iter().flatten();
    let set = flags.filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true));
    let mut names: Vec<&str> = set.map(|(key, _)| key.as_str()).collect();
    names.extend(config["pooling_mode"].as_str());
    match names[..] {
        ["pooling_mode_mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token" | "cls"] => Ok(Pooling::First),
        ["pooling_mode_lasttoken" | "lasttoken"] => Ok(Pooling::Last),
        _ => Err(format!("the pooling {names:?} is not supported; one of `mean`, `cls` and `lasttoken` is")),
    }
}

/// The longest text that `sentence_bert_config.json` lets the model read.
pub(super) fn longest(folder: &Path) -> Result<Option<usize>, String> {
    let said: Option<Value> =
        read_json(&folder.join("sentence_bert_config.json")).map_err(|e| e.to_string())?;
    Ok(said.and_then(|said| said["max_seq_length"].as_u64()).map(|n| n as usize))
}

/// The names of a classifier's classes.
pub(super) fn labels(
    named: Option<&BTreeMap<String, String>>,
    count: Option<usize>,
) -> Result<Vec<String>, String> {
    const MOST: usize = 65_536;
    // Without names there are two classes.
    let count = named.map(BTreeMap::len).or(count).unwrap_or(2);
    if count == 0 || count > MOST {
        return Err(format!("the number of classes is {count}, expected 1 to {MOST}"));
    }
    let label = |i: usize| {
        let own = named.and_then(|labels| labels.get(&i.to_string()).cloned());
        own.unwrap_or_else(|| format!("LABEL_{i}"))
    };
    Ok((0..count).map(label).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modules_say_how_rows_become_a_vector() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pooling(folder.path()), Ok(None));
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let kind = |name: &str| json!({"type": format!("sentence_transformers.models.{name}"), "path": if name == "Pooling" { "1_Pooling" } else { "" }});
        let read = |modules: &[&str], config: &Value| {
            let modules: Vec<_> = modules.iter().map(|name| kind(name)).collect();
            std::fs::write(folder.path().join("modules.json"), json!(modules).to_string()).unwrap();
            std::fs::write(folder.path().join("1_Pooling/config.json"), config.to_string()).unwrap();
            pooling(folder.path())
        };
        let last = json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false});
        let embedding = |pooling, normalise| Ok(Some(Embedding { pooling, normalise }));
        assert_eq!(read(&["Transformer", "Pooling", "Normalize"], &last), embedding(Pooling::Last, true));
        let mean = json!({"pooling_mode": "mean"});
        assert_eq!(read(&["Transformer", "Pooling"], &mean), embedding(Pooling::Mean, false));
        let two = json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true});
        let messages = [
            read(&["Transformer", "Pooling"], &two).unwrap_err(),
            read(&["Transformer", "Pooling", "Dense"], &mean).unwrap_err(),
            read(&["Transformer"], &mean).unwrap_err(),
        ];
        insta::assert_snapshot!(messages.join("\n"));
    }
}
