//! Reads everything before the tensors' data. Pure: it looks at bytes and never beyond them, and asks
//! for no more memory than the file could fill.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{GgufError, Value};
use crate::tensor::TensorKind;

/// What a GGUF file says before its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Version of the format.
    pub version: u32,
    /// Typed keys and values.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name, each checked to lie inside the file.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// One tensor's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its numbers are stored.
    pub kind: TensorKind,
    /// Its dimensions, the contiguous one first.
    pub dims: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMS: u32 = 4;
/// Arrays of arrays exist in the format; none is known to nest deeper than two.
const MAX_NESTING: usize = 4;
/// The largest vocabularies have a million merges. Items in memory are up to 32 times those in the file.
const MAX_ITEMS: u64 = 1 << 24;

impl Header {
    /// Reads the header of a whole file.
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut r = Reader { file, at: 0 };
        let magic = &file[..file.len().min(4)];
        if magic != MAGIC {
            return Err(GgufError::NotGguf { found: String::from_utf8_lossy(magic).into_owned() });
        }
        r.at = 4;
        let version = r.u32("the version")?;
        match version {
            2 | 3 => {}
            v if v.swap_bytes() <= 3 && v != 0 => return Err(GgufError::BigEndian),
            v => return Err(GgufError::Version(v)),
        }
        let tensor_count = r.u64("the number of tensors")?;
        let key_count = r.u64("the number of keys")?;

        let mut metadata = BTreeMap::new();
        for i in 0..key_count {
            let key = r.string(|| format!("the {i}th of {key_count} keys"))?;
            let kind = r.u32(&format!("the type of key `{key}`"))?;
            let value = r.value(&key, kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Duplicate { what: "key", name: key });
            }
        }

        let mut raw = Vec::new();
        for i in 0..tensor_count {
            raw.push(r.tensor(|| format!("the description of the {i}th of {tensor_count} tensors"))?);
        }
        let tensors = place(raw, r.at as u64, alignment(&metadata)?, file.len())?;
        Ok(Self { version, metadata, tensors })
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => value.as_u64().filter(|n| n.is_power_of_two()).ok_or_else(|| GgufError::WrongValue {
            key: KEY.into(),
            expected: "a power of two",
            found: value.describe(),
        }),
    }
}

struct RawTensor {
    name: String,
    kind: TensorKind,
    dims: Vec<usize>,
    offset: u64,
    size: u64,
}

/// Finds each tensor's bytes behind the header, which ends at `end`.
fn place(
    raw: Vec<RawTensor>,
    end: u64,
    alignment: u64,
    file_len: usize,
) -> Result<BTreeMap<String, TensorInfo>, GgufError> {
    let overflow = |tensor: &str| GgufError::Shape {
        tensor: tensor.to_owned(),
        problem: "lies beyond what a file can hold".to_owned(),
    };
    let mut tensors = BTreeMap::new();
    let base = end.checked_next_multiple_of(alignment);
    for tensor in raw {
        let RawTensor { name, kind, dims, offset, size } = tensor;
        if !offset.is_multiple_of(alignment) {
            let problem = format!("begins at offset {offset}, not a multiple of {alignment}");
            return Err(GgufError::Shape { tensor: name, problem });
        }
        let begin = base.and_then(|b| b.checked_add(offset)).ok_or_else(|| overflow(&name))?;
        let end = begin.checked_add(size).ok_or_else(|| overflow(&name))?;
        if end > file_len as u64 {
            return Err(GgufError::TensorTruncated { len: file_len as u64, tensor: name, begin, end });
        }
        let info = TensorInfo { kind, dims, bytes: begin as usize..end as usize };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(GgufError::Duplicate { what: "tensor", name });
        }
    }
    Ok(tensors)
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> usize {
        self.file.len() - self.at
    }

    fn truncated(&self, what: &str) -> GgufError {
        GgufError::Truncated { len: self.file.len() as u64, what: what.to_owned() }
    }

    fn damaged(&self, what: String) -> GgufError {
        GgufError::Damaged { at: self.at as u64, what }
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.file.len());
        let end = end.ok_or_else(|| self.truncated(what))?;
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: impl Fn() -> String) -> Result<String, GgufError> {
        let start = self.at;
        let len = self.u64(&what())?;
        let len = usize::try_from(len).map_err(|_| self.truncated(&what()))?;
        let bytes = self.take(len, &what())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            self.at = start;
            self.damaged(format!("text that is not UTF-8 in {}", what()))
        })
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value, GgufError> {
        let what = &format!("the value of key `{key}`");
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>(what)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            4 => Value::Unsigned(self.u32(what)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => match self.array::<1>(what)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.damaged(format!("{other} for true or false in {what}"))),
            },
            8 => Value::String(self.string(|| what.clone())?),
            9 => self.list(key, what, depth)?,
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.damaged(format!("the unknown value type {other} of key `{key}`"))),
        })
    }

    fn list(&mut self, key: &str, what: &str, depth: usize) -> Result<Value, GgufError> {
        if depth == MAX_NESTING {
            return Err(self.damaged(format!("arrays nested deeper than {MAX_NESTING} in {what}")));
        }
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return Err(self.damaged(format!("the unknown item type {other} of key `{key}`"))),
        };
        if count > MAX_ITEMS {
            return Err(self.damaged(format!("an array of {count} items in {what}")));
        }
        let fits = usize::try_from(count).ok().filter(|n| *n <= self.remaining() / smallest);
        let count = fits.ok_or_else(|| self.truncated(what))?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.value(key, kind, depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn tensor(&mut self, what: impl Fn() -> String) -> Result<RawTensor, GgufError> {
        let name = self.string(&what)?;
        let what = what();
        let shape = |problem: String| GgufError::Shape { tensor: name.clone(), problem };
        let dim_count = self.u32(&what)?;
        if dim_count > MAX_DIMS {
            return Err(shape(format!("has {dim_count} dimensions, more than {MAX_DIMS}")));
        }
        let mut dims = Vec::new();
        let mut len: usize = 1;
        for _ in 0..dim_count {
            let dim = usize::try_from(self.u64(&what)?).ok();
            let product = dim.and_then(|d| len.checked_mul(d));
            (len, dims) = match (product, dim) {
                (Some(product), Some(dim)) if dim > 0 => {
                    dims.push(dim);
                    (product, dims)
                }
                (Some(_), _) => return Err(shape("has a dimension of 0".to_owned())),
                _ => return Err(shape("has more elements than can be counted".to_owned())),
            };
        }
        let id = self.u32(&what)?;
        let kind = TensorKind::from_ggml(id).ok_or_else(|| GgufError::TensorType {
            tensor: name.clone(),
            kind: ggml_name(id),
            supported: TensorKind::ALL.map(|k| k.to_string()).join(", "),
        })?;
        let row = dims.first().copied().unwrap_or(1);
        let size = kind
            .bytes_for(row)
            .ok_or_else(|| {
                shape(format!("has rows of {row}, not a multiple of {kind}'s block of {}", kind.block_len()))
            })?
            .checked_mul(len / row)
            .ok_or_else(|| shape("has more bytes than can be counted".to_owned()))?;
        let offset = self.u64(&what)?;
        Ok(RawTensor { name, kind, dims, offset, size: size as u64 })
    }
}

/// The name of a type that is not read, where it has one.
fn ggml_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("number {other}"),
    };
    name.to_owned()
}
