//! A batch of block events as vLLM 0.32 packs it: the batch an array, each event a map with its type
//! first, and members that have their default left out.

use rmp::encode;

use crate::block::{BLOCK_TOKENS, BlockHash, Change};
use crate::lora::AdapterKey;

/// Where blocks of the pool are, in vLLM's words.
const MEDIUM: &str = "GPU";

/// Which of the model's caches the blocks are of: there is one.
const GROUP: u64 = 0;
/// What that cache keeps, in vLLM's words: the whole prompt.
const KIND: &str = "full_attention";

/// One event of a batch; blocks that follow each other are one.
enum Event<'a> {
    Stored(Stored<'a>),
    Removed(Vec<&'a BlockHash>),
    Cleared,
}

struct Stored<'a> {
    hashes: Vec<&'a BlockHash>,
    parent: Option<&'a BlockHash>,
    tokens: Vec<u32>,
    adapter: Option<&'a AdapterKey>,
    /// The cache salt of the first.
    salt: Option<&'a str>,
}

fn events(changes: &[Change]) -> Vec<Event<'_>> {
    let mut events: Vec<Event<'_>> = Vec::new();
    for change in changes {
        match (change, events.last_mut()) {
            (Change::Stored { hash, parent: Some(parent), tokens, .. }, Some(Event::Stored(last)))
                if last.hashes.last() == Some(&parent) =>
            {
                last.hashes.push(hash);
                last.tokens.extend(tokens);
            }
            (Change::Removed { hash, .. }, Some(Event::Removed(hashes))) => hashes.push(hash),
            // It says what these said.
            (Change::Cleared, Some(last @ Event::Removed(_))) => *last = Event::Cleared,
            (Change::Stored { hash, parent, tokens, adapter, salt, .. }, _) => {
                let (parent, tokens, adapter) = (parent.as_ref(), tokens.to_vec(), adapter.as_deref());
                let salt = salt.as_deref().filter(|salt| !salt.is_empty());
                events.push(Event::Stored(Stored { hashes: vec![hash], parent, tokens, adapter, salt }));
            }
            (Change::Removed { hash, .. }, _) => events.push(Event::Removed(vec![hash])),
            (Change::Cleared, _) => events.push(Event::Cleared),
        }
    }
    events
}

/// The batch of these changes, which happened `seconds` after 1970 began.
pub(super) fn batch(seconds: f64, changes: &[Change]) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = write(&mut out, seconds, changes);
    out
}

fn write(out: &mut Vec<u8>, seconds: f64, changes: &[Change]) -> Result<(), encode::ValueWriteError> {
    let events = events(changes);
    encode::write_array_len(out, 3)?;
    encode::write_f64(out, seconds)?;
    encode::write_array_len(out, events.len() as u32)?;
    for event in &events {
        match event {
            Event::Stored(stored) => write_stored(out, stored)?,
            Event::Removed(hashes) => {
                write_type(out, "BlockRemoved", 3)?;
                write_hashes(out, hashes)?;
                write_medium(out)?;
                write_group(out)?;
            }
            Event::Cleared => write_type(out, "AllBlocksCleared", 0)?,
        }
    }
    // The data-parallel rank: there is one.
    encode::write_uint(out, 0).map(drop)
}

fn write_stored(out: &mut Vec<u8>, stored: &Stored<'_>) -> Result<(), encode::ValueWriteError> {
    let Stored { hashes, parent, tokens, adapter, salt } = stored;
    write_type(out, "BlockStored", 10)?;
    write_hashes(out, hashes)?;
    encode::write_str(out, "parent_block_hash")?;
    match parent {
        Some(parent) => encode::write_bin(out, parent.as_bytes())?,
        None => write_nil(out)?,
    }
    encode::write_str(out, "token_ids")?;
    encode::write_array_len(out, tokens.len() as u32)?;
    for token in tokens {
        encode::write_uint(out, u64::from(*token))?;
    }
    encode::write_str(out, "block_size")?;
    encode::write_uint(out, BLOCK_TOKENS as u64)?;
    encode::write_str(out, "lora_id")?;
    match adapter {
        Some(adapter) => drop(encode::write_uint(out, adapter.number)?),
        None => write_nil(out)?,
    }
    write_medium(out)?;
    encode::write_str(out, "lora_name")?;
    match adapter {
        Some(adapter) => encode::write_str(out, &adapter.name)?,
        None => write_nil(out)?,
    }
    encode::write_str(out, "extra_keys")?;
    encode::write_array_len(out, hashes.len() as u32)?;
    for salt in std::iter::once(*salt).chain(std::iter::repeat(None)).take(hashes.len()) {
        let keys: Vec<&str> = adapter.map(|adapter| &*adapter.name).into_iter().chain(salt).collect();
        if keys.is_empty() {
            write_nil(out)?;
            continue;
        }
        encode::write_array_len(out, keys.len() as u32)?;
        keys.iter().try_for_each(|key| encode::write_str(out, key))?;
    }
    write_group(out)?;
    encode::write_str(out, "kv_cache_spec_kind")?;
    encode::write_str(out, KIND)
}

/// The beginning of an event with so many members beside its type.
fn write_type(out: &mut Vec<u8>, name: &str, members: u32) -> Result<(), encode::ValueWriteError> {
    encode::write_map_len(out, 1 + members)?;
    encode::write_str(out, "type")?;
    encode::write_str(out, name)
}

fn write_medium(out: &mut Vec<u8>) -> Result<(), encode::ValueWriteError> {
    encode::write_str(out, "medium")?;
    encode::write_str(out, MEDIUM)
}

fn write_group(out: &mut Vec<u8>) -> Result<(), encode::ValueWriteError> {
    encode::write_str(out, "group_idx")?;
    encode::write_uint(out, GROUP).map(drop)
}

fn write_hashes(out: &mut Vec<u8>, hashes: &[&BlockHash]) -> Result<(), encode::ValueWriteError> {
    encode::write_str(out, "block_hashes")?;
    encode::write_array_len(out, hashes.len() as u32)?;
    hashes.iter().try_for_each(|hash| encode::write_bin(out, hash.as_bytes()))
}

fn write_nil(out: &mut Vec<u8>) -> Result<(), encode::ValueWriteError> {
    encode::write_nil(out).map_err(encode::ValueWriteError::InvalidMarkerWrite)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::Arc;

    use super::*;
    use crate::lora::AdapterId;

    /// Text as it is, other bytes in hexadecimal.
    fn shown(bytes: &[u8]) -> String {
        let mut text = String::new();
        for byte in bytes {
            match byte {
                b'_' | b'a'..=b'z' | b'A'..=b'Z' => text.push(char::from(*byte)),
                _ => write!(text, "<{byte:02x}>").unwrap(),
            }
        }
        text.replace(&"<07>".repeat(32), "(a)")
            .replace(&"<08>".repeat(32), "(b)")
            .replace(&"<09>".repeat(32), "(c)")
    }

    /// The batch that both ends of the stream are tested with.
    const SHARED: &str = include_str!("../../../../api/wire/tests/data/kv_events.hex");

    fn hash(n: u8) -> BlockHash {
        BlockHash::from_bytes([n; 32])
    }

    fn first(n: u8, adapter: Option<Arc<AdapterKey>>, salt: Option<&str>) -> Change {
        let tokens: [u32; BLOCK_TOKENS] = std::array::from_fn(|i| i as u32 * 20);
        let salt = salt.map(Arc::from);
        Change::Stored { block: 1, hash: hash(n), parent: None, tokens, adapter, salt }
    }

    fn after(n: u8, parent: u8) -> Change {
        let (block, tokens) = (2, std::array::from_fn(|i| i as u32 * 20));
        let (hash, parent) = (hash(n), Some(hash(parent)));
        Change::Stored { block, hash, parent, tokens, adapter: None, salt: None }
    }

    #[test]
    fn a_batch_is_what_vllm_sends() {
        let removed = Change::Removed { block: 9, hash: hash(9) };
        let changes = [first(7, None, None), after(8, 7), removed, after(9, 7)];
        insta::assert_snapshot!("batch", shown(&batch(1.5, &changes)));
    }

    #[test]
    fn a_block_of_an_adapter_names_it() {
        let key = AdapterKey { id: AdapterId(9), name: "sql".into(), number: 2, digest: [0; 32] };
        let packed = batch(1.5, &[first(7, Some(Arc::new(key)), Some("s")), after(8, 7)]);
        let text = shown(&packed);
        assert!(text.contains("<a7>lora_id<02>") && text.contains("<a9>lora_name<a3>sql"), "{text}");
        // The salt is of the first block alone, the adapter of each.
        assert!(text.contains("<aa>extra_keys<92><92><a3>sql<a1>s<91><a3>sql<a9>group_idx<00>"), "{text}");
    }

    #[test]
    fn what_was_forgotten_at_once_is_told_at_once() {
        let removed = |n| Change::Removed { block: 1, hash: hash(n) };
        let cleared = [first(7, None, Some("")), removed(7), removed(8), Change::Cleared];
        let text = shown(&batch(1.5, &cleared));
        assert!(text.ends_with("<81><a4>type<b0>AllBlocksCleared<00>"), "{text}");
        assert!(text.contains("<aa>extra_keys<91><c0>"), "an empty salt is none: {text}");
        assert!(!text.contains("BlockRemoved"), "{text}");
        assert!(shown(&batch(1.5, &[Change::Cleared])).contains("AllBlocksCleared"));
    }

    /// The scheduler's tests read the same bytes.
    #[test]
    fn it_is_what_the_scheduler_is_tested_with() {
        let removed = |n| Change::Removed { block: 1, hash: hash(n) };
        let changes =
            [first(1, None, Some("scope")), after(2, 1), removed(2), first(3, None, None), Change::Cleared];
        let packed =
            batch(1.5, &changes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        assert_eq!(packed, SHARED.trim(), "write it to api/wire/tests/data/kv_events.hex");
    }
}
