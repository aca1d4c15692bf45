//! Opens a checkpoint: from a path to the network's shape, its weights, its tokenizer and its chat
//! template, whichever file format they lie in.

use std::path::{Path, PathBuf};

pub use super::source::{GgufTokenizer, SpecialTokens, TokenizerSource};
use super::spec::ModelSpec;
use super::vectors::Embedding;
use crate::gguf::{self, GgufError};
use crate::safetensors::{self, CheckpointError};
use crate::tensor::{Linear, Weights};

/// A checkpoint, opened. The weights are mapped, not read: opening costs no time that grows with them.
#[derive(Debug)]
pub struct LoadedModel {
    /// The network's shape.
    pub spec: ModelSpec,
    /// Its parameters, in the precision that the file has them in.
    pub weights: Weights,
    /// What to build the tokenizer from.
    pub tokenizer_source: TokenizerSource,
    /// The Jinja template that turns messages into a prompt.
    pub chat_template: Option<String>,
    /// Tokens that begin and end a sequence.
    pub special: SpecialTokens,
    /// The name that the file gives the model.
    pub name: Option<String>,
    /// What follows its last layer.
    pub head: Head,
    /// How its rows become a text's vector, where the checkpoint says so.
    pub embedding: Option<Embedding>,
    /// The longest text that it was made to read, where that is less than its context.
    pub longest_text: Option<usize>,
}

/// What follows a decoder's last layer.
#[derive(Clone, Debug)]
pub enum Head {
    /// The next token's logits, by [`Weights::output`].
    Tokens,
    /// Nothing: the checkpoint is of a class without a head.
    Nothing,
    /// Scores of classes, from a text's last row.
    Classes {
        /// The classes' names, in order.
        labels: Vec<String>,
        /// Their scores, `labels` by `hidden`.
        scores: Linear,
    },
}

/// Why a checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing is there, or it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file or folder of no known kind.
    #[error(
        "{} is not a model: expected a GGUF file, a .safetensors file with config.json beside it, or a folder \
         that holds either ({found})",
        path.display()
    )]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// The GGUF file is bad.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The Hugging Face checkpoint is bad.
    #[error("{}: {source}", path.display())]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// An architecture that is not of the Llama family.
    #[error(
        "{}: the architecture `{architecture}` is not supported; supported are {}",
        path.display(), supported.join(", ")
    )]
    UnknownArchitecture {
        /// Which file says so.
        path: PathBuf,
        /// The name in it.
        architecture: String,
        /// What could be run.
        supported: &'static [&'static str],
    },
    /// The shape that the file describes cannot be run.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What about it, and what to do.
        reason: String,
    },
    /// A weight that the architecture needs is missing or has another shape.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// Which file.
        path: PathBuf,
        /// The weight's name.
        tensor: String,
        /// `is missing`, or how its shape differs.
        problem: String,
    },
}

/// Opens the checkpoint at `path`: a GGUF file, a `.safetensors` file with its `config.json`, or a
/// folder that holds a Hugging Face checkpoint or exactly one GGUF file.
pub fn load(path: &Path) -> Result<LoadedModel, LoadError> {
    let meta = std::fs::metadata(path).map_err(|source| LoadError::Io { path: path.into(), source })?;
    if meta.is_dir() {
        return load_folder(path);
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        let folder = path.parent().unwrap_or(Path::new("."));
        return safetensors::load(folder, Some(path));
    }
    gguf::load(path)
}

fn load_folder(folder: &Path) -> Result<LoadedModel, LoadError> {
    if folder.join("config.json").is_file() {
        return safetensors::load(folder, None);
    }
    let entries =
        std::fs::read_dir(folder).map_err(|source| LoadError::Io { path: folder.into(), source })?;
    let mut ggufs: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
        .collect();
    if ggufs.len() == 1 {
        return gguf::load(&ggufs.remove(0));
    }
    let found = match ggufs.len() {
        0 => "no config.json and no .gguf file".to_owned(),
        n => format!("{n} .gguf files: name one of them"),
    };
    Err(LoadError::NotAModel { path: folder.into(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_names_it() {
        let error = load(Path::new("/nonexistent/model.gguf")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nonexistent/model.gguf: "), "{error}");
    }

    #[test]
    fn a_folder_without_a_model_says_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("(no config.json and no .gguf file)"), "{error}");
        for name in ["a.gguf", "b.gguf"] {
            std::fs::write(folder.path().join(name), b"GGUF").unwrap();
        }
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("(2 .gguf files: name one of them)"), "{error}");
    }
}
