//! The tiers below the KV cache's pool: the host's memory and a disk.
//!
//! A block that is evicted from the pool goes down to memory; with a disk, every block goes there too,
//! soon after it was computed, so that it outlives the process. What a prompt needs comes up again
//! instead of being computed. The engine's thread copies from memory itself and never waits for the
//! disk, which has a thread for each direction. Everything is bounded: the tiers in bytes, what is on its
//! way in bytes too, and what does not fit is not kept.

mod disk;
mod fingerprint;
mod ram;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use disk::{Disk, DiskError};
pub use fingerprint::fingerprint;
pub use ram::RamTier;

use crate::block::BlockHash;
use crate::step::Load;

/// The disk tier, as it is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvDisk {
    /// A folder of this engine alone.
    pub folder: PathBuf,
    /// Bytes that its blocks may take.
    pub bytes: u64,
    /// A file of at least 32 random bytes that the blocks are encrypted with. It belongs on another disk.
    pub key_file: PathBuf,
}

/// What a disk tier says to the engine's thread.
#[derive(Debug)]
pub enum TierEvent {
    /// A block is on the disk.
    Stored(BlockHash),
    /// A block is no longer on the disk.
    Removed(BlockHash),
    /// A load has come to its end.
    Loaded {
        /// Which.
        load: Load,
        /// The block's bytes; none when they could not be had.
        bytes: Option<Vec<u8>>,
    },
}

/// The tiers that an engine has.
#[derive(Debug, Default)]
pub struct Tiers {
    /// In the host's memory.
    pub ram: Option<RamTier>,
    /// On a disk.
    pub disk: Option<Disk>,
}

impl Tiers {
    /// Whether a block is in one of them.
    pub fn has(&self, hash: &BlockHash) -> bool {
        self.ram.as_ref().is_some_and(|ram| ram.has(hash)) || self.on_disk(hash)
    }

    /// Whether a block is on the disk.
    pub fn on_disk(&self, hash: &BlockHash) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.has(hash))
    }
}
