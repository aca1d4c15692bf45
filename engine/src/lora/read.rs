//! Reads a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The files are read whole, not mapped: an adapter is small, and who replaces its file while it is
//! served must not change what is served.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::Config;
use super::error::LoraError;
use super::names::{self, Half, Module, Named};
use super::weights::{LayerLora, LoraWeights, LowRank, Part, Target};
use crate::model::load::LoadError;
use crate::model::spec::{ModelSpec, RopeLayout};
use crate::safetensors::Shards;
use crate::tensor::{Bytes, Tensor};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Bytes of a configuration, and of a safetensors header, that nobody exceeds.
const HEADER: u64 = 16 << 20;

/// What to read, and within which bounds.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// The shape of the model that it is for.
    pub spec: &'a ModelSpec,
    /// The largest rank that is taken.
    pub max_rank: usize,
    /// Where its files must lie; none for anywhere.
    pub within: Option<&'a Confined>,
}

/// A folder that what is read must not lead out of, by `..` or by links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined {
    /// As it was named.
    named: PathBuf,
    /// Where it truly is.
    folder: PathBuf,
}

impl Confined {
    /// What lies below this folder, which must exist.
    pub fn below(named: &Path) -> std::io::Result<Self> {
        let folder = named.canonicalize()?;
        if !folder.is_dir() {
            return Err(std::io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { named: named.into(), folder })
    }

    /// The true place of what is there, if it lies below.
    fn place(&self, path: &Path) -> Result<PathBuf, LoraError> {
        let outside = || LoraError::Outside { path: path.into(), folder: self.named.clone() };
        let inside = [&self.folder, &self.named].into_iter().find_map(|from| path.strip_prefix(from).ok());
        let inside = inside.unwrap_or(path);
        // Said before it is looked for: who asks must not learn what lies elsewhere.
        let climbs = inside.components().any(|part| part == Component::ParentDir);
        if climbs || inside.is_absolute() {
            return Err(outside());
        }
        let path = self.folder.join(inside);
        let place = path.canonicalize().map_err(|error| missing(&path, &error))?;
        if place.starts_with(&self.folder) { Ok(place) } else { Err(outside()) }
    }
}

fn missing(path: &Path, error: &std::io::Error) -> LoraError {
    LoraError::NotAnAdapter { path: path.into(), found: error.to_string() }
}

/// Reads the adapter in `folder`; a relative one, where adapters are confined, is below that folder.
pub fn read(folder: &Path, how: Read<'_>) -> Result<LoraWeights, LoraError> {
    let placed = |path: &Path| match how.within {
        Some(within) => within.place(path),
        None => Ok(path.to_owned()),
    };
    let folder = placed(folder)?;
    if !folder.is_dir() {
        let found = if folder.exists() { "a file" } else { "nothing" };
        return Err(LoraError::NotAnAdapter { path: folder, found: found.into() });
    }
    let (config_path, weights_path) = (placed(&file(&folder, CONFIG)?)?, placed(&file(&folder, WEIGHTS)?)?);
    let text = whole(&config_path, HEADER)?
        .ok_or_else(|| LoraError::NotAnAdapter { path: folder, found: format!("{CONFIG} is too large") })?;
    let members: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|e| LoadError::Checkpoint { path: config_path.clone(), source: e.into() })?;
    let config = Config::read(&members, &config_path, how.max_rank)?;
    let most = most_bytes(how);
    let Some(bytes) = whole(&weights_path, most)? else {
        let bytes = std::fs::metadata(&weights_path).map_or(0, |meta| meta.len());
        return Err(LoraError::TooLarge { path: weights_path, bytes, rank: how.max_rank, most });
    };
    let shards = Shards::of(&weights_path, Bytes::from(bytes))?;
    assemble(&config, &shards, how.spec, &weights_path, &config_path)
}

/// A file of an adapter's folder; PEFT's older form of the weights is told apart from none.
fn file(folder: &Path, name: &str) -> Result<PathBuf, LoraError> {
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let old = name == WEIGHTS && folder.join("adapter_model.bin").is_file();
    let found = if old {
        "adapter_model.bin, which is not read; save the adapter with safe_serialization=True".to_owned()
    } else {
        format!("no {name}")
    };
    Err(LoraError::NotAnAdapter { path: folder.into(), found })
}

/// A file's bytes; none when it has more than `most`.
fn whole(path: &Path, most: u64) -> Result<Option<Vec<u8>>, LoraError> {
    use std::io::Read;
    let io = |source| LoadError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// What an adapter of the largest rank takes, in the widest form.
fn most_bytes(how: Read<'_>) -> u64 {
    let spec = how.spec;
    let per_rank = |targets: &[Target], part| -> u64 {
        let size = |target: &Target| {
            let (rows, cols) = target.shape(spec, part);
            (rows + cols) as u64
        };
        targets.iter().map(size).sum()
    };
    let experts = spec
        .experts
        .map_or(0, |experts| experts.count as u64 * per_rank(&Target::OF_EXPERT, Part::Expert(0)));
    let layer = per_rank(&Target::ALL, Part::Shared) + experts;
    HEADER + 4 * layer * how.max_rank as u64 * spec.layers as u64
}

/// The halves of one module of one layer.
#[derive(Default)]
struct Halves {
    a: Option<String>,
    b: Option<String>,
    /// What transformers calls the module.
    path: String,
}

fn assemble(
    config: &Config,
    shards: &Shards,
    spec: &ModelSpec,
    path: &Path,
    config_path: &Path,
) -> Result<LoraWeights, LoraError> {
    let bad = |tensor: &str, problem: String| {
        let tensor = tensor.chars().take(200).collect();
        LoraError::Tensor { path: path.into(), tensor, problem }
    };
    let mut found: BTreeMap<(usize, Part, Module), Halves> = BTreeMap::new();
    for name in shards.names() {
        let named = names::parse(name).map_err(|problem| bad(name, problem))?;
        let Named { layer, part, module, half, path } = named;
        if layer >= spec.layers {
            let problem =
                format!("is of layer {layer}, and this model has {}; use an adapter of it", spec.layers);
            return Err(bad(name, problem));
        }
        if config.modules.as_ref().is_some_and(|modules| !modules.contains(&module)) {
            let problem =
                format!("is of `{}`, which `target_modules` in {CONFIG} does not name", module.short);
            return Err(bad(name, problem));
        }
        if !module.targets.iter().all(|target| target.is_in(spec, layer, part)) {
            let has = match (spec.per_layer[layer].experts, spec.experts) {
                (true, Some(experts)) => format!("a mixture of {} experts", experts.count),
                _ => "no mixture of experts".to_owned(),
            };
            let problem =
                format!("is not in this model, whose layer {layer} has {has}; use an adapter of it");
            return Err(bad(name, problem));
        }
        let halves = found.entry((layer, part, module)).or_default();
        path.clone_into(&mut halves.path);
        *(if half == Half::A { &mut halves.a } else { &mut halves.b }) = Some(name.to_owned());
    }
    for module in config.modules.iter().flatten() {
        if !found.keys().any(|(_, _, other)| other == module) {
            let problem = format!("names `{}`, of which {WEIGHTS} has no weights", module.short);
            let field = "target_modules".into();
            return Err(LoraError::Field { path: config_path.into(), field, problem });
        }
    }
    let mut layers = vec![LayerLora::default(); spec.layers];
    for ((layer, part, module), halves) in found {
        let (a, b) = match (halves.a, halves.b) {
            (Some(a), Some(b)) => (a, b),
            (Some(alone), None) | (None, Some(alone)) => {
                return Err(bad(&alone, "has no other half: lora_A and lora_B belong together".into()));
            }
            (None, None) => continue,
        };
        let (rank, scale) = config.of(&halves.path);
        let outputs: usize = module.targets.iter().map(|target| target.shape(spec, part).0).sum();
        let inputs = module.targets[0].shape(spec, part).1;
        let whole_a = finite(shards.tensor(&a, &[rank, inputs])?).map_err(|problem| bad(&a, problem))?;
        let whole_b = finite(shards.tensor(&b, &[outputs, rank])?).map_err(|problem| bad(&b, problem))?;
        let mut first = 0;
        for target in module.targets {
            let rows = target.shape(spec, part).0;
            let own = whole_b.rows_at(first..first + rows);
            first += rows;
            let pair = LowRank {
                a: whole_a.clone(),
                b: in_the_bases_order(own, *target, spec).map_err(|problem| bad(&b, problem))?,
                scale,
            };
            if !layers[layer].set(part, *target, pair) {
                return Err(bad(&b, "changes a projection that another tensor changes too".into()));
            }
        }
    }
    Ok(LoraWeights { layers: Arc::from(layers) })
}

/// A number that is none would spread to every token that its row is computed with.
fn finite(tensor: Tensor) -> Result<Tensor, String> {
    let all = tensor.to_f32().iter().all(|x| x.is_finite());
    if all { Ok(tensor) } else { Err("holds a number that is infinite or none; train it again".into()) }
}

/// GGUF's `llama` tensors have the rows of queries and keys permuted, head by head, so that the numbers
/// that are rotated together are neighbours; an adapter's rows are in transformers' order.
fn in_the_bases_order(b: Tensor, target: Target, spec: &ModelSpec) -> Result<Tensor, String> {
    let rotated = matches!(target, Target::Query | Target::Key);
    if !rotated || spec.rope.layout == RopeLayout::Halves {
        return Ok(b);
    }
    if spec.rope.dims != spec.head_dim {
        return Err("is of a projection that this GGUF rotates in part, which is not supported".into());
    }
    let (head, half) = (spec.head_dim, spec.head_dim / 2);
    let mut bytes = Vec::with_capacity(b.byte_len());
    for row in 0..b.rows() {
        let (start, at) = (row / head * head, row % head);
        bytes.extend_from_slice(b.row(start + at % 2 * half + at / 2));
    }
    Tensor::new(b.kind(), b.rows(), b.cols(), Bytes::from(bytes))
}
