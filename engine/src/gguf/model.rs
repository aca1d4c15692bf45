//! Opens a GGUF file: its tensors as parameters of a model.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::keys::Keys;
use super::{GgufError, Header, TensorInfo, Value};
use crate::model::load::{Head, LoadError, LoadedModel, TokenizerSource};
use crate::tensor::{self, Bytes, ParameterSource, Tensor};

/// Opens the GGUF file at `path`.
pub(crate) fn load(path: &Path) -> Result<LoadedModel, LoadError> {
    let io = |source| LoadError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    // An empty file cannot be mapped.
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(LoadError::NotAModel { path: path.into(), found: "an empty file".into() });
    }
    let map = Arc::new(map(&file).map_err(io)?);
    let header = Header::parse(&map).map_err(|source| match source {
        GgufError::NotGguf { found } => {
            LoadError::NotAModel { path: path.into(), found: format!("a file that begins with {found:?}") }
        }
        source => LoadError::Gguf { path: path.into(), source },
    })?;
    Opened { path, map, tensors: header.tensors, keys: Keys(header.metadata) }.into_model()
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only ever read, as plain bytes for which every value is valid. Who changes the
    // file while it is served changes the model; who shortens it ends the process, as with any mapped
    // executable. Both are outside what reading it once could repair at an acceptable cost.
    unsafe { Mmap::map(file) }
}

pub(super) struct Opened<'a> {
    pub(super) path: &'a Path,
    map: Arc<Mmap>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) keys: Keys,
}

impl Opened<'_> {
    fn into_model(mut self) -> Result<LoadedModel, LoadError> {
        let spec = self.spec()?;
        let embedding = self.embedding(&spec.architecture)?;
        let weights = tensor::assemble(&spec, &tensor::GGUF, &self)?;
        let bad = |source| LoadError::Gguf { path: self.path.into(), source };
        let special = self.keys.special().map_err(bad)?;
        let tokenizer = self.keys.tokenizer().map_err(bad)?;
        let chat_template = self.keys.0.get("tokenizer.chat_template").and_then(Value::as_str);
        let name = self.keys.0.get("general.name").and_then(Value::as_str);
        Ok(LoadedModel {
            spec,
            weights,
            special,
            chat_template: chat_template.map(str::to_owned),
            name: name.map(str::to_owned),
            tokenizer_source: TokenizerSource::Gguf(tokenizer),
            head: Head::Tokens,
            embedding,
            longest_text: None,
        })
    }

    pub(super) fn info(&self, name: &str) -> Result<&TensorInfo, LoadError> {
        self.tensors.get(name).ok_or_else(|| self.bad_tensor(name, "is missing".to_owned()))
    }

    fn bad_tensor(&self, name: &str, problem: String) -> LoadError {
        LoadError::Tensor { path: self.path.into(), tensor: name.to_owned(), problem }
    }

    /// The tensor `name`, which must have the dimensions `dims`, the contiguous one first.
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, LoadError> {
        let info = self.info(name)?;
        if info.dims != dims {
            let problem = format!("has the shape {:?}, expected {dims:?}", info.dims);
            return Err(self.bad_tensor(name, problem));
        }
        let data = Bytes::mapped(&self.map, info.bytes.clone());
        let data = data.ok_or_else(|| self.bad_tensor(name, "lies outside the file".to_owned()))?;
        let rows: usize = dims[1..].iter().product();
        Tensor::new(info.kind, rows, dims[0], data).map_err(|problem| self.bad_tensor(name, problem))
    }
}

impl ParameterSource for Opened<'_> {
    type Error = LoadError;

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, LoadError> {
        self.tensor(name, &[cols, rows])
    }

    fn stack(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>, LoadError> {
        let all = self.tensor(name, &[cols, rows, count])?;
        Ok((0..count).map(|i| all.rows_at(i * rows..(i + 1) * rows)).collect())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, LoadError> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }
}
