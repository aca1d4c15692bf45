//! Where the files of a model lie on an engine's machine.

use super::{ModelSource, ModelUri, ModelUriError};

/// Characters of the readable part of a folder's name.
const READABLE: usize = 64;

/// Where an engine finds a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath {
    /// The folder that `strata fetch --to DIR` makes within DIR: a readable name and a hash of the
    /// canonical URI. Empty for models that are not fetched.
    pub dir: String,
    /// What `--model` names: the folder of a repository or prefix, or the single file. Relative to the
    /// folder or volume of models; for `file://` absolute, or beginning with `~/`.
    pub entry: String,
}

impl ModelPath {
    /// The engine's path where the folder or volume of models is mounted at `mount`.
    pub fn under(&self, mount: &str) -> String {
        if self.entry.starts_with(['/', '~']) {
            return self.entry.clone();
        }
        format!("{}/{}", mount.trim_end_matches('/'), self.entry).trim_end_matches('/').to_owned()
    }
}

/// Where an engine finds the model of this URI and revision. Pure: the same on every machine, before
/// anything has been fetched.
pub fn model_path(uri: &str, revision: Option<&str>) -> Result<ModelPath, ModelUriError> {
    Ok(ModelUri::parse(uri, revision)?.path())
}

impl ModelUri {
    /// Where an engine finds it.
    pub fn path(&self) -> ModelPath {
        match self {
            Self::File { path } | Self::Pvc { path, .. } => {
                ModelPath { dir: String::new(), entry: path.clone() }
            }
            _ => {
                let dir = self.key();
                let entry = self.file().map_or_else(|| dir.clone(), |file| format!("{dir}/{file}"));
                ModelPath { dir, entry }
            }
        }
    }

    /// The file that the engine opens within the fetched folder, when it is not the folder itself. An
    /// `s3://` path names a file when it ends with `.gguf`.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::Hf { file, .. } => file.as_deref(),
            Self::Https { file, .. } => Some(file),
            Self::S3 { path, .. } => {
                let name = path.rsplit('/').next().unwrap_or(path);
                let extension = name.rsplit_once('.').map(|(_, extension)| extension);
                extension.is_some_and(|e| e.eq_ignore_ascii_case("gguf")).then_some(name)
            }
            Self::Oci { .. } | Self::Pvc { .. } | Self::File { .. } => None,
        }
    }

    /// A name that is readable, fits a file name, and differs wherever the canonical URIs differ.
    fn key(&self) -> String {
        debug_assert_eq!(self.source(), ModelSource::Fetched);
        let canonical = self.to_string();
        let hash = blake3::hash(canonical.as_bytes()).to_hex();
        let mut readable = String::with_capacity(READABLE);
        for c in canonical.split(['?', '#']).next().unwrap_or_default().chars() {
            let c = if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
            if readable.len() < READABLE && !(c == '-' && readable.ends_with('-')) {
                readable.push(c);
            }
        }
        format!("{}-{}", readable.trim_end_matches('-'), &hash[..16])
    }
}
