//! From a GGUF file's keys and tensors to a model.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::{GgufError, Header, TensorInfo, Value};
use crate::model::load::{GgufTokenizer, LoadError, LoadedModel, SpecialTokens, TokenizerSource};
use crate::model::spec::{ModelSpec, Rope, RopeLayout};
use crate::tensor::{self, Bytes, ParameterSource, Tensor};

/// The values of `general.architecture` that can be run.
const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3"];
/// Divisors of the rotary frequencies, for Llama 3's scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

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

struct Opened<'a> {
    path: &'a Path,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, TensorInfo>,
    keys: Keys,
}

impl Opened<'_> {
    fn into_model(mut self) -> Result<LoadedModel, LoadError> {
        let spec = self.spec()?;
        let weights = tensor::assemble(&spec, &tensor::GGUF_NAMES, &self)?;
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
        })
    }

    fn spec(&self) -> Result<ModelSpec, LoadError> {
        let bad = |source| LoadError::Gguf { path: self.path.into(), source };
        let unsupported = |reason| LoadError::Unsupported { path: self.path.into(), reason };
        let keys = &self.keys;
        let architecture = keys.string("general.architecture").map_err(bad)?;
        if !ARCHITECTURES.contains(&architecture) {
            return Err(LoadError::UnknownArchitecture {
                path: self.path.into(),
                architecture: architecture.to_owned(),
                supported: ARCHITECTURES,
            });
        }
        let size = |key: &str| keys.size(&format!("{architecture}.{key}"));
        let optional = |key: &str| keys.optional_size(&format!("{architecture}.{key}"));
        let float = |key: &str| keys.optional_float(&format!("{architecture}.{key}"));

        let experts = optional("expert_count").map_err(bad)?.unwrap_or(0);
        if experts > 0 {
            return Err(unsupported(format!("a mixture of {experts} experts is not supported yet")));
        }
        let hidden = size("embedding_length").map_err(bad)?;
        let heads = size("attention.head_count").map_err(bad)?;
        let head_dim = match optional("attention.key_length").map_err(bad)? {
            Some(n) => n,
            None => hidden / heads.max(1),
        };
        let value_dim = optional("attention.value_length").map_err(bad)?.unwrap_or(head_dim);
        if value_dim != head_dim {
            let reason =
                format!("heads with {head_dim} numbers a key but {value_dim} a value are not supported");
            return Err(unsupported(reason));
        }
        let rotated = optional("rope.dimension_count").map_err(bad)?.unwrap_or(head_dim);
        if rotated != head_dim {
            let reason = format!("rotating {rotated} of a head's {head_dim} numbers is not supported");
            return Err(unsupported(reason));
        }
        let embedding = self.info("token_embd.weight")?;
        let spec = ModelSpec {
            architecture: architecture.to_owned(),
            vocab: embedding.dims.get(1).copied().unwrap_or(0),
            hidden,
            layers: size("block_count").map_err(bad)?,
            heads,
            kv_heads: optional("attention.head_count_kv").map_err(bad)?.unwrap_or(heads),
            head_dim,
            intermediate: size("feed_forward_length").map_err(bad)?,
            norm_eps: keys.float(&format!("{architecture}.attention.layer_norm_rms_epsilon")).map_err(bad)?,
            rope: Rope {
                theta: float("rope.freq_base").map_err(bad)?.unwrap_or(10_000.0),
                layout: if architecture == "llama" { RopeLayout::Interleaved } else { RopeLayout::Halves },
                factors: self.rope_factors(architecture, head_dim)?,
            },
            max_context: size("context_length").map_err(bad)?,
            tied_embeddings: !self.tensors.contains_key("output.weight"),
            qkv_bias: architecture == "qwen2" || self.tensors.contains_key("blk.0.attn_q.bias"),
            qk_norm: architecture == "qwen3",
            sliding_window: optional("attention.sliding_window").map_err(bad)?.filter(|n| *n > 0),
        };
        spec.check().map_err(unsupported)?;
        Ok(spec)
    }

    fn rope_factors(&self, architecture: &str, head_dim: usize) -> Result<Vec<f32>, LoadError> {
        if self.tensors.contains_key(ROPE_FACTORS) {
            return Ok(self.vector(ROPE_FACTORS, head_dim / 2)?.into_vec());
        }
        let bad = |source| LoadError::Gguf { path: self.path.into(), source };
        let kind = format!("{architecture}.rope.scaling.type");
        let factor = self.keys.optional_float(&format!("{architecture}.rope.scaling.factor")).map_err(bad)?;
        match self.keys.0.get(&kind).and_then(Value::as_str) {
            None | Some("none") => Ok(Vec::new()),
            Some("linear") => Ok(factor.map_or_else(Vec::new, |f| vec![f; head_dim / 2])),
            Some(other) => Err(LoadError::Unsupported {
                path: self.path.into(),
                reason: format!(
                    "rotary scaling of the type `{other}` is not supported; `linear` and Llama 3's are"
                ),
            }),
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, LoadError> {
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
        let rows = dims.get(1).copied().unwrap_or(1);
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

    fn vector(&self, name: &str, len: usize) -> Result<Box<[f32]>, LoadError> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }
}

/// The metadata, with typed access.
struct Keys(BTreeMap<String, Value>);

impl Keys {
    fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let wrong = |v: &Value| GgufError::WrongValue { key: key.into(), expected, found: v.describe() };
        self.0.get(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.optional(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.optional_size(key)?.ok_or_else(|| GgufError::MissingKey(key.into()))
    }

    fn optional_float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.optional(key, "a float", Value::as_f32)
    }

    fn float(&self, key: &str) -> Result<f32, GgufError> {
        self.optional_float(key)?.ok_or_else(|| GgufError::MissingKey(key.into()))
    }

    fn string(&self, key: &str) -> Result<&str, GgufError> {
        match self.0.get(key) {
            None => Err(GgufError::MissingKey(key.into())),
            Some(value) => value.as_str().ok_or_else(|| GgufError::WrongValue {
                key: key.into(),
                expected: "text",
                found: value.describe(),
            }),
        }
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.optional(key, "a token id", |v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    fn special(&self) -> Result<SpecialTokens, GgufError> {
        let mut eos = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            if let Some(id) = self.token_id(&format!("tokenizer.ggml.{key}"))?
                && !eos.contains(&id)
            {
                eos.push(id);
            }
        }
        let bos = self.token_id("tokenizer.ggml.bos_token_id")?;
        let add_bos = self.optional("tokenizer.ggml.add_bos_token", "true or false", Value::as_bool)?;
        // SentencePiece models begin with it unless they say otherwise.
        let sentence_piece = self.0.get("tokenizer.ggml.model").and_then(Value::as_str) == Some("llama");
        Ok(SpecialTokens { bos, eos, add_bos: bos.is_some() && add_bos.unwrap_or(sentence_piece) })
    }

    /// Moves the vocabulary out of the metadata.
    fn tokenizer(&mut self) -> Result<GgufTokenizer, GgufError> {
        let model = self.string("tokenizer.ggml.model")?.to_owned();
        let pre = self.0.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default").to_owned();
        let unknown = self.token_id("tokenizer.ggml.unknown_token_id")?;
        let add_space_prefix =
            self.optional("tokenizer.ggml.add_space_prefix", "true or false", Value::as_bool)?;
        let tokens = "tokenizer.ggml.tokens";
        if !self.0.contains_key(tokens) {
            return Err(GgufError::MissingKey(tokens.into()));
        }
        let text = |value| match value {
            Value::String(s) => Ok(s),
            other => Err(other),
        };
        let integer = |v: Value| v.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or(v);
        let float = |v: Value| v.as_f32().ok_or(v);
        Ok(GgufTokenizer {
            model,
            pre,
            unknown,
            add_space_prefix,
            tokens: self.take_list(tokens, "an array of text", text)?,
            token_types: self.take_list("tokenizer.ggml.token_type", "an array of integers", integer)?,
            merges: self.take_list("tokenizer.ggml.merges", "an array of text", text)?,
            scores: self.take_list("tokenizer.ggml.scores", "an array of floats", float)?,
        })
    }

    fn take_list<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        one: impl Fn(Value) -> Result<T, Value>,
    ) -> Result<Vec<T>, GgufError> {
        self.0.remove(key).map_or_else(|| Ok(Vec::new()), |value| value.into_list(key, expected, one))
    }
}
