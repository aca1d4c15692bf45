//! The weights of a checkpoint: one mapped safetensors file, or several with an index.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::safetensors::{Dtype, SafeTensors};
use memmap2::Mmap;
use serde::Deserialize;

use super::CheckpointError;
use crate::model::load::LoadError;
use crate::tensor::{Bytes, ParameterSource, Tensor, TensorKind};

/// All tensors by name.
pub(crate) struct Shards {
    folder: PathBuf,
    tensors: BTreeMap<String, Place>,
    base: &'static Base,
}

/// Where a decoder lies in its checkpoint: what stands there for `model.`, and before `lm_head`.
struct Base {
    model: &'static str,
    head: &'static str,
}

/// Below a head, by itself, and in a model that reads more than text: as its files were written first,
/// and as they are written now.
const BASES: [Base; 4] = [
    Base { model: "model.", head: "" },
    Base { model: "", head: "" },
    Base { model: "language_model.model.", head: "language_model." },
    Base { model: "model.language_model.", head: "" },
];

struct Place {
    file: Arc<Shard>,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

struct Shard {
    path: PathBuf,
    data: Bytes,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Maps `file` or, without one, what the folder holds.
    pub(super) fn open(folder: &Path, file: Option<&Path>) -> Result<Self, LoadError> {
        let mut shards = Self { folder: folder.into(), tensors: BTreeMap::new(), base: &BASES[0] };
        for path in files(folder, file)? {
            shards.add(path)?;
        }
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let io = |source| LoadError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        let map = if file.metadata().map_err(io)?.len() == 0 {
            return Err(LoadError::NotAModel { path, found: "an empty file".to_owned() });
        } else {
            map(&file).map_err(io)?
        };
        let map = Arc::new(map);
        let data = Bytes::mapped(&map, 0..map.len());
        data.map_or(Ok(()), |data| self.add_bytes(&path, data))
    }

    /// The tensors of one file that was read already; `path` is for messages.
    pub(crate) fn of(path: &Path, data: Bytes) -> Result<Self, LoadError> {
        let mut shards = Self { folder: path.into(), tensors: BTreeMap::new(), base: &BASES[0] };
        shards.add_bytes(path, data)?;
        Ok(shards)
    }

    fn add_bytes(&mut self, path: &Path, data: Bytes) -> Result<(), LoadError> {
        let bad =
            |e: ::safetensors::SafeTensorError| LoadError::Checkpoint { path: path.into(), source: e.into() };
        let (header, metadata) = SafeTensors::read_metadata(data.as_slice()).map_err(bad)?;
        // The header follows its length, eight bytes.
        let base = header + 8;
        let shard = Arc::new(Shard { path: path.into(), data });
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let place = Place {
                file: Arc::clone(&shard),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: base + begin..base + end,
            };
            self.tensors.insert(name, place);
        }
        Ok(())
    }

    /// From now on the names of a decoder are those below its place in this checkpoint.
    pub(super) fn with_base(self) -> Self {
        let here = |base: &&Base| self.tensors.contains_key(&format!("{}embed_tokens.weight", base.model));
        Self { base: BASES.iter().find(here).unwrap_or(self.base), ..self }
    }

    /// What the checkpoint calls the parameter of this name.
    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match name.strip_prefix("model.") {
            Some(rest) if self.base.model != "model." => format!("{}{rest}", self.base.model).into(),
            None if name.starts_with("lm_head") => format!("{}{name}", self.base.head).into(),
            _ => name.into(),
        }
    }

    fn place(&self, name: &str) -> Result<&Place, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::Tensor {
            path: self.folder.clone(),
            tensor: name.to_owned(),
            problem: "is missing".to_owned(),
        })
    }

    /// The names of all tensors, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of this name, which must have this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = &*self.own_name(name);
        let place = self.place(name)?;
        let bad = |problem| LoadError::Tensor { path: place.file.path.clone(), tensor: name.into(), problem };
        if place.shape != shape {
            return Err(bad(format!("has the shape {:?}, expected {shape:?}", place.shape)));
        }
        let kind = match place.dtype {
            Dtype::F32 => TensorKind::F32,
            Dtype::F16 => TensorKind::F16,
            Dtype::BF16 => TensorKind::BF16,
            other => {
                return Err(bad(format!("is stored as {other:?}, only F32, F16 and BF16 are supported")));
            }
        };
        if place.bytes.end > place.file.data.len() {
            return Err(bad("lies outside its file".to_owned()));
        }
        let data = place.file.data.slice(place.bytes.clone());
        let (rows, cols) = match *shape {
            [rows, cols] => (rows, cols),
            [count, rows, cols] => (count * rows, cols),
            _ => (1, shape.iter().product()),
        };
        Tensor::new(kind, rows, cols, data).map_err(bad)
    }
}

fn files(folder: &Path, file: Option<&Path>) -> Result<Vec<PathBuf>, LoadError> {
    if let Some(file) = file {
        return Ok(vec![file.into()]);
    }
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let path = folder.join("model.safetensors.index.json");
    let bad = |path: &Path, source| LoadError::Checkpoint { path: path.into(), source };
    if !path.is_file() {
        return Err(bad(folder, CheckpointError::NoWeights));
    }
    let text = std::fs::read(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| bad(&path, e.into()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let inside = |name: String| {
        let plain = Path::new(&name).file_name().is_some_and(|f| f == name.as_str());
        if plain { Ok(folder.join(name)) } else { Err(bad(&path, CheckpointError::OutsidePath(name))) }
    };
    names.into_iter().map(inside).collect()
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, as plain bytes for which every value is valid; see the GGUF reader
    // on files that change while they are served.
    unsafe { Mmap::map(file) }
}

impl ParameterSource for Shards {
    type Error = LoadError;

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&*self.own_name(name))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, LoadError> {
        self.tensor(name, &[rows, cols])
    }

    fn stack(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>, LoadError> {
        let all = self.tensor(name, &[count, rows, cols])?;
        Ok((0..count).map(|i| all.rows_at(i * rows..(i + 1) * rows)).collect())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, LoadError> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }
}
