//! A batch of block events as vLLM packs it in MessagePack: `[seconds, events, data-parallel rank]`. Pure.
//!
//! Up to version 0.2x an event is an array that begins with its type, from 0.3x on a map with the type among
//! its members. Members were added over time, always at the end; those that are not known here are passed
//! over, and so are events of other types.

use rmpv::ValueRef;
use rmpv::decode::read_value_ref_with_max_depth;
use strata_wire::engine_events::Medium;

/// Largest batch that is read: a step of a million tokens is about eight bytes for each.
pub const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Deepest nesting. A batch has six levels.
const MAX_DEPTH: usize = 16;
/// Longest hash. vLLM's have 32 bytes.
const MAX_HASH: usize = 64;

/// What a vLLM calls a block by. It means something within one run of it alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// As older versions have it, or when told to.
    Number(u64),
    /// The hash itself.
    Bytes(Box<[u8]>),
}

/// A batch, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What happened, in its order.
    pub events: Vec<Event>,
    /// Events of types and media that are not known here.
    pub unknown: usize,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Blocks are there.
    Stored(Stored),
    /// Blocks are gone.
    Removed(Removed),
    /// All are gone.
    Cleared,
}

/// Blocks that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Their names.
    pub names: Vec<Name>,
    /// The block before the first; none when that begins the prompt.
    pub parent: Option<Name>,
    /// The tokens of all of them. Empty when they are known from elsewhere.
    pub tokens: Vec<u32>,
    /// Tokens of each.
    pub block_size: usize,
    /// The adapter that they were computed with.
    pub adapter: Option<String>,
    /// Where they are.
    pub medium: Medium,
    /// For each block, what else than its tokens tells it from others: the cache salt (of the first), images.
    /// `None` where the version does not say.
    pub extra: Option<Vec<Vec<String>>>,
    /// Which of the model's caches they are of, if it has several.
    pub group: u64,
    /// Whether that cache keeps the whole prompt, and not a window of it or a state.
    pub whole: bool,
}

/// Blocks that are gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Removed {
    /// Their names.
    pub names: Vec<Name>,
    /// Where they were.
    pub medium: Medium,
    /// As [`Stored::group`].
    pub group: u64,
}

/// Why a batch cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is no MessagePack.
    #[error("it is no MessagePack: {0}")]
    Packing(String),
    /// It is longer than [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It has another form.
    #[error("{0}")]
    Form(&'static str),
}

use Malformed::Form;

/// Reads a batch.
pub fn read(mut bytes: &[u8]) -> Result<Batch, Malformed> {
    if bytes.len() > MAX_BYTES {
        return Err(Malformed::TooLong);
    }
    let value = read_value_ref_with_max_depth(&mut bytes, MAX_DEPTH)
        .map_err(|error| Malformed::Packing(error.to_string()))?;
    let ValueRef::Array(members) = value else { return Err(Form("a batch is no array")) };
    let Some(ValueRef::Array(packed)) = members.get(1) else {
        return Err(Form("the second member of a batch is no list of events"));
    };
    let mut batch = Batch { events: Vec::with_capacity(packed.len().min(1024)), unknown: 0 };
    for event in packed {
        match read_event(event)? {
            Some(event) => batch.events.push(event),
            None => batch.unknown += 1,
        }
    }
    Ok(batch)
}

/// The members of an event, by name or by place.
enum Members<'a, 'b> {
    Named(&'a [(ValueRef<'b>, ValueRef<'b>)]),
    Placed(&'a [ValueRef<'b>]),
}

impl<'a, 'b> Members<'a, 'b> {
    /// The member of this name, whose place behind the type is this one. `None` where it is absent or null.
    fn get(&self, name: &str, place: usize) -> Option<&'a ValueRef<'b>> {
        let found = match *self {
            Self::Named(members) => {
                members.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value)
            }
            Self::Placed(members) => members.get(place),
        };
        found.filter(|value| !matches!(value, ValueRef::Nil))
    }
}

fn read_event(event: &ValueRef<'_>) -> Result<Option<Event>, Malformed> {
    let members = match event {
        ValueRef::Map(members) => Members::Named(members),
        ValueRef::Array(members) => Members::Placed(members),
        _ => return Err(Form("an event is neither a map nor an array")),
    };
    let Some(kind) = members.get("type", 0).and_then(text) else {
        return Err(Form("an event has no type"));
    };
    Ok(match kind {
        "BlockStored" => read_stored(&members)?.map(Event::Stored),
        "BlockRemoved" => read_removed(&members)?.map(Event::Removed),
        "AllBlocksCleared" => Some(Event::Cleared),
        _ => None,
    })
}

fn read_stored(members: &Members<'_, '_>) -> Result<Option<Stored>, Malformed> {
    let names = names(members.get("block_hashes", 1))?;
    let parent = members.get("parent_block_hash", 2).map(name).transpose()?;
    let tokens = tokens(members.get("token_ids", 3))?;
    let block_size = members.get("block_size", 4).and_then(ValueRef::as_u64).unwrap_or(0) as usize;
    if block_size == 0 {
        return Err(Form("stored blocks have no size"));
    }
    let numbered = members.get("lora_id", 5).map(|id| format!("#{id}"));
    let Some(medium) = medium(members.get("medium", 6)) else { return Ok(None) };
    let adapter = members.get("lora_name", 7).and_then(text).map(str::to_owned).or(numbered);
    let extra = members.get("extra_keys", 8).map(extra).transpose()?;
    if extra.as_ref().is_some_and(|extra| extra.len() != names.len()) {
        return Err(Form("extra keys are not one for each stored block"));
    }
    let group = members.get("group_idx", 9).and_then(ValueRef::as_u64).unwrap_or(0);
    let kind = members.get("kv_cache_spec_kind", 10).and_then(text);
    let whole = kind.is_none_or(|kind| {
        !["sliding", "mamba", "chunked", "cross", "encoder"].iter().any(|k| kind.contains(k))
    });
    Ok(Some(Stored { names, parent, tokens, block_size, adapter, medium, extra, group, whole }))
}

fn read_removed(members: &Members<'_, '_>) -> Result<Option<Removed>, Malformed> {
    let names = names(members.get("block_hashes", 1))?;
    let Some(medium) = medium(members.get("medium", 2)) else { return Ok(None) };
    let group = members.get("group_idx", 3).and_then(ValueRef::as_u64).unwrap_or(0);
    Ok(Some(Removed { names, medium, group }))
}

fn text<'a>(value: &'a ValueRef<'_>) -> Option<&'a str> {
    match value {
        ValueRef::String(text) => text.as_str(),
        _ => None,
    }
}

fn names(value: Option<&ValueRef<'_>>) -> Result<Vec<Name>, Malformed> {
    match value {
        Some(ValueRef::Array(all)) => all.iter().map(name).collect(),
        _ => Err(Form("blocks have no hashes")),
    }
}

fn name(value: &ValueRef<'_>) -> Result<Name, Malformed> {
    match value {
        ValueRef::Binary(bytes) if bytes.len() <= MAX_HASH => Ok(Name::Bytes((*bytes).into())),
        ValueRef::Integer(number) => {
            // Python's own hashes may be below zero.
            let number = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
            number.map(Name::Number).ok_or(Form("a hash is too large a number"))
        }
        _ => Err(Form("a hash is neither bytes nor a number")),
    }
}

fn tokens(value: Option<&ValueRef<'_>>) -> Result<Vec<u32>, Malformed> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let ValueRef::Array(all) = value else { return Err(Form("token ids are no list")) };
    let token = |value: &ValueRef<'_>| value.as_u64().and_then(|token| u32::try_from(token).ok());
    all.iter().map(token).collect::<Option<_>>().ok_or(Form("a token id is no number of 32 bits"))
}

/// `None` for one that is not known here.
fn medium(value: Option<&ValueRef<'_>>) -> Option<Medium> {
    let Some(value) = value else { return Some(Medium::Device) };
    match text(value)?.to_ascii_uppercase().as_str() {
        "GPU" => Some(Medium::Device),
        "CPU" => Some(Medium::Ram),
        "STORAGE" | "DISK" => Some(Medium::Disk),
        _ => None,
    }
}

fn extra(value: &ValueRef<'_>) -> Result<Vec<Vec<String>>, Malformed> {
    let wrong = Form("extra keys are no list of lists");
    let ValueRef::Array(blocks) = value else { return Err(wrong) };
    let block = |value: &ValueRef<'_>| match value {
        ValueRef::Nil => Some(Vec::new()),
        ValueRef::Array(keys) => {
            Some(keys.iter().map(|key| text(key).map_or_else(|| key.to_string(), str::to_owned)).collect())
        }
        _ => None,
    };
    blocks.iter().map(block).collect::<Option<_>>().ok_or(wrong)
}

#[cfg(test)]
mod tests;
