//! Which files of a repository an engine needs.

use super::shards;

/// Names in a message.
const SHOWN: usize = 12;

/// The files to fetch of all files of a repository, or what to tell the user. Pure.
///
/// With safetensors: those, and the configuration and tokenizer beside them; no pickled or exported
/// copies of the weights. Else the one GGUF model there is. Else pickled weights with configuration.
pub(super) fn needed<'a>(all: &[&'a str]) -> Result<Vec<&'a str>, String> {
    let top: Vec<&str> = all.iter().copied().filter(|name| !name.contains('/')).collect();
    let with = |extension: &str| -> Vec<&'a str> {
        top.iter().copied().filter(|name| has_extension(name, extension)).collect()
    };
    let mut weights = with("safetensors");
    let standard: Vec<&str> = weights.iter().copied().filter(|name| is_standard(name)).collect();
    if !standard.is_empty() {
        // The same weights often stand there again in another layout or precision.
        weights = standard;
    }
    if weights.is_empty() {
        let ggufs: Vec<&str> = all.iter().copied().filter(|name| has_extension(name, "gguf")).collect();
        if !ggufs.is_empty() {
            return one_gguf(&ggufs);
        }
        weights = with("bin").into_iter().filter(|name| name.starts_with("pytorch_model")).collect();
    }
    if weights.is_empty() {
        return Err(format!("has no safetensors and no GGUF at its top: it has {}", listed(all)));
    }
    let beside = top.iter().copied().filter(|name| is_beside(name));
    Ok(weights.iter().copied().chain(beside).collect())
}

fn one_gguf<'a>(ggufs: &[&'a str]) -> Result<Vec<&'a str>, String> {
    let firsts: Vec<&str> = ggufs.iter().copied().filter(|name| !is_later_shard(name)).collect();
    let [first] = firsts[..] else {
        return Err(format!(
            "has several GGUF models: name one of them, as in hf://OWNER/NAME/FILE: {}",
            listed(&firsts)
        ));
    };
    let wanted = shards(first);
    let found: Vec<&str> = ggufs.iter().copied().filter(|name| wanted.iter().any(|w| w == name)).collect();
    if found.len() == wanted.len() {
        Ok(found)
    } else {
        Err(format!("has {} of the {} parts of {first}", found.len(), wanted.len()))
    }
}

fn is_later_shard(name: &str) -> bool {
    let Some((stem, _)) = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-")) else {
        return false;
    };
    stem.rsplit_once('-').is_some_and(|(_, number)| {
        number.len() == 5 && number != "00001" && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// `model.safetensors` or `model-00001-of-00002.safetensors`.
fn is_standard(name: &str) -> bool {
    name == "model.safetensors" || (name.starts_with("model-") && name.contains("-of-"))
}

/// Configuration, tokenizer and chat template.
fn is_beside(name: &str) -> bool {
    let is_index_of_pickles = name.ends_with(".bin.index.json");
    (has_extension(name, "json") && !is_index_of_pickles)
        || ["jinja", "model", "tiktoken"].iter().any(|extension| has_extension(name, extension))
        || matches!(name, "merges.txt" | "vocab.txt" | "tokenizer.txt")
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        return "no files".to_owned();
    }
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_without_their_copies() {
        let all = [
            ".gitattributes",
            "README.md",
            "LICENSE",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "consolidated.safetensors",
            "tf_model.h5",
            "onnx/model.onnx",
            "original/params.json",
            "tokenizer.json",
            "tokenizer.model",
            "merges.txt",
            "chat_template.jinja",
            "model.gguf",
            "modeling.py",
        ];
        assert_eq!(
            needed(&all).unwrap(),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "config.json",
                "generation_config.json",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer.model",
                "merges.txt",
                "chat_template.jinja",
            ]
        );
        assert_eq!(needed(&["a.safetensors", "b.safetensors"]).unwrap().len(), 2);
    }

    #[test]
    fn one_gguf_or_a_question() {
        assert_eq!(needed(&["README.md", "config.json", "m.Q4.gguf"]).unwrap(), ["m.Q4.gguf"]);
        let sharded = ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"];
        assert_eq!(needed(&sharded).unwrap(), sharded);
        assert!(needed(&sharded[..1]).unwrap_err().contains("1 of the 2 parts"));
        let error = needed(&["m.Q4.gguf", "m.Q8.gguf"]).unwrap_err();
        assert!(error.ends_with("hf://OWNER/NAME/FILE: m.Q4.gguf, m.Q8.gguf"), "{error}");
    }

    #[test]
    fn pickled_weights_only_without_others() {
        assert_eq!(
            needed(&["pytorch_model.bin", "config.json", "optimizer.bin"]).unwrap(),
            ["pytorch_model.bin", "config.json"]
        );
        assert!(needed(&["README.md"]).unwrap_err().ends_with("it has README.md"));
        assert!(needed(&[]).unwrap_err().ends_with("no files"));
    }
}
