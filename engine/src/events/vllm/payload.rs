//! A batch of block events as vLLM 0.32 packs it: the batch an array, each event a map with its type
//! first, and members that have their default left out.

use rmp::encode;

use crate::block::{BLOCK_TOKENS, BlockHash, Change};
use crate::lora::AdapterKey;

/// Where blocks of the pool are, in vLLM's words.
const MEDIUM: &str = "GPU";

/// One event of a batch; blocks that follow each other are one.
enum Event<'a> {
    Stored {
        hashes: Vec<&'a BlockHash>,
        parent: Option<&'a BlockHash>,
        tokens: Vec<u32>,
        adapter: Option<&'a AdapterKey>,
    },
    Removed {
        hashes: Vec<&'a BlockHash>,
    },
}

fn events(changes: &[Change]) -> Vec<Event<'_>> {
    let mut events: Vec<Event<'_>> = Vec::new();
    for change in changes {
        match (change, events.last_mut()) {
            (
                Change::Stored { hash, parent: Some(parent), tokens, .. },
                Some(Event::Stored { hashes, tokens: all, .. }),
            ) if hashes.last() == Some(&parent) => {
                hashes.push(hash);
                all.extend(tokens);
            }
            (Change::Removed { hash, .. }, Some(Event::Removed { hashes })) => hashes.push(hash),
            (Change::Stored { hash, parent, tokens, adapter, .. }, _) => {
                let (parent, tokens, adapter) = (parent.as_ref(), tokens.to_vec(), adapter.as_deref());
                events.push(Event::Stored { hashes: vec![hash], parent, tokens, adapter });
            }
            (Change::Removed { hash, .. }, _) => events.push(Event::Removed { hashes: vec![hash] }),
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
            Event::Stored { hashes, parent, tokens, adapter } => {
                encode::write_map_len(out, 8)?;
                encode::write_str(out, "type")?;
                encode::write_str(out, "BlockStored")?;
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
                encode::write_str(out, "medium")?;
                encode::write_str(out, MEDIUM)?;
                encode::write_str(out, "lora_name")?;
                match adapter {
                    Some(adapter) => encode::write_str(out, &adapter.name)?,
                    None => write_nil(out)?,
                }
            }
            Event::Removed { hashes } => {
                encode::write_map_len(out, 3)?;
                encode::write_str(out, "type")?;
                encode::write_str(out, "BlockRemoved")?;
                write_hashes(out, hashes)?;
                encode::write_str(out, "medium")?;
                encode::write_str(out, MEDIUM)?;
            }
        }
    }
    // The data-parallel rank: there is one.
    encode::write_uint(out, 0).map(drop)
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

    #[test]
    fn a_batch_is_what_vllm_sends() {
        let hash = |n| BlockHash::from_bytes([n; 32]);
        let tokens: [u32; BLOCK_TOKENS] = std::array::from_fn(|i| i as u32 * 20);
        let changes = [
            Change::Stored { block: 1, hash: hash(7), parent: None, tokens, adapter: None },
            Change::Stored { block: 2, hash: hash(8), parent: Some(hash(7)), tokens, adapter: None },
            Change::Removed { block: 9, hash: hash(9) },
            Change::Stored { block: 3, hash: hash(9), parent: Some(hash(7)), tokens, adapter: None },
        ];
        insta::assert_snapshot!("batch", shown(&batch(1.5, &changes)));
    }

    #[test]
    fn a_block_of_an_adapter_names_it() {
        let key = AdapterKey { id: AdapterId(9), name: "sql".into(), number: 2, digest: [0; 32] };
        let hash = BlockHash::from_bytes([7; 32]);
        let (tokens, adapter) = ([1; BLOCK_TOKENS], Some(Arc::new(key)));
        let packed = batch(1.5, &[Change::Stored { block: 1, hash, parent: None, tokens, adapter }]);
        let text = shown(&packed);
        assert!(text.contains("<a7>lora_id<02>") && text.contains("<a9>lora_name<a3>sql"), "{text}");
    }
}
