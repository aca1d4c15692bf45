//! What an engine tells a router while it runs: which prompts it has cached, and its load. Hashes and
//! counts only; no token and no text.
//!
//! # What a hash stands for
//!
//! A router knows a prompt as a chain of byte blocks ([`crate::prefix`]), an engine as blocks of tokens.
//! They meet here: of each prompt that an engine has read it knows, for byte block `i`, how many of the
//! prompt's tokens come from the first `(i + 1) · 256` bytes of the canonical text. It rounds them down
//! to whole token blocks, and says `stored` when all of these are in one medium. So `tokens` of the
//! deepest block of a prompt's chain that a replica has stored is what the replica need not compute.
//!
//! It is a lower bound as far as the prompt begins alike: what a chat template puts between messages
//! counts only with the message behind it. A template that writes the beginning of a conversation
//! differently because of its end (the date, or whether tools are given) can make it too high; then the
//! request computes what it lacks.
//!
//! # Following the stream
//!
//! `GET /internal/v1/events` answers with server-sent events, each an [`EngineEvent`] as JSON. The
//! first is a [`Snapshot`], or what followed `?engine=…&after=…` where the engine is still the same and
//! still remembers. Whoever falls behind gets another snapshot.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::prefix::BlockHash;

/// Where a prompt's keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// In the cache that the backend computes with: nothing is to be loaded.
    Device,
    /// In the host's memory, below the backend's cache.
    Ram,
    /// On the engine's disk.
    Disk,
}

/// All media, the fastest first.
pub const MEDIA: [Medium; 3] = [Medium::Device, Medium::Ram, Medium::Disk];

/// One message of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EngineEvent {
    /// Everything that is stored.
    Snapshot(Snapshot),
    /// What changed.
    Blocks(BlockChanges),
    /// How busy the engine is: whenever it changes, and every few seconds when it does not.
    Load(Load),
}

/// A part of what is stored now. The first part replaces all that was known of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// This run of the engine. Another run has stored nothing of what this one had in memory.
    pub engine: String,
    /// The last change that it holds; the next is this and one.
    pub sequence: u64,
    /// Whether it is the first part.
    pub first: bool,
    /// Whether it is the last part.
    pub last: bool,
    /// Byte blocks and what they save.
    pub stored: Vec<Stored>,
}

/// What changed at once. No hash of a medium is both stored and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockChanges {
    /// Counts up by one.
    pub sequence: u64,
    /// Whether everything that was stored is gone, before what is listed here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cleared: bool,
    /// What is stored from now on, or saves more than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stored: Vec<Stored>,
    /// What is no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<Removed>,
}

/// A prompt whose chain has this block needs not be computed up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The byte block.
    pub hash: BlockHash,
    /// Tokens of the prompt that are there, from its first.
    pub tokens: u32,
    /// Where they are.
    pub medium: Medium,
}

/// The opposite of [`Stored`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The byte block.
    pub hash: BlockHash,
    /// Where it was.
    pub medium: Medium,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Sequences that run.
    pub running: u64,
    /// Sequences that wait.
    pub waiting: u64,
    /// Tokens of the sequences that wait, and of prompts that are being read what is left.
    pub waiting_tokens: u64,
    /// Blocks of the KV cache that no sequence holds.
    pub free_blocks: u64,
    /// All blocks.
    pub total_blocks: u64,
}

/// As 16 hexadecimal digits: JSON's numbers are not that exact everywhere.
impl Serialize for BlockHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for BlockHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let valid = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let hash = valid.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        hash.map(Self).ok_or_else(|| D::Error::custom("expected 16 lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_small_and_read_back() {
        let stored = Stored { hash: BlockHash(0xab), tokens: 48, medium: Medium::Device };
        let events = [
            EngineEvent::Snapshot(Snapshot {
                engine: "e".into(),
                sequence: 7,
                first: true,
                last: false,
                stored: vec![stored],
            }),
            EngineEvent::Blocks(BlockChanges {
                sequence: 8,
                removed: vec![Removed { hash: BlockHash(u64::MAX), medium: Medium::Ram }],
                ..BlockChanges::default()
            }),
            EngineEvent::Load(Load { running: 1, ..Load::default() }),
        ];
        let text: Vec<String> = events.iter().map(|e| serde_json::to_string(e).unwrap()).collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        {"type":"snapshot","engine":"e","sequence":7,"first":true,"last":false,"stored":[{"hash":"00000000000000ab","tokens":48,"medium":"device"}]}
        {"type":"blocks","sequence":8,"removed":[{"hash":"ffffffffffffffff","medium":"ram"}]}
        {"type":"load","running":1,"waiting":0,"waiting_tokens":0,"free_blocks":0,"total_blocks":0}
        "#);
        for (text, event) in text.iter().zip(&events) {
            assert_eq!(serde_json::from_str::<EngineEvent>(text).unwrap(), *event);
        }
        for hash in ["ab", "00000000000000AB", "00000000000000zz"] {
            let removed = format!(r#"{{"hash":"{hash}","medium":"disk"}}"#);
            assert!(serde_json::from_str::<Removed>(&removed).is_err(), "{hash}");
        }
    }
}
