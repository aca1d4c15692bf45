//! What becomes of blocks outside of the pool: the tiers that they go down to and come up from, and who
//! is told of it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use strata_wire::engine_events::Medium;

use crate::backend::Backend;
use crate::block::{BlockHash, Change};
use crate::events::{Claim, EventLog, KvFeed};
use crate::lora::AdapterId;
use crate::step::{Load, Planner, SequenceId};
use crate::tier::{TierEvent, Tiers};
use crate::transfer::Kept;

/// Bytes that are copied up from memory between two steps: running sequences wait for it.
const COPIED_AT_ONCE: usize = 64 * 1024 * 1024;

/// Follows the planner's blocks.
pub(super) struct BlockKeeper {
    log: Arc<EventLog>,
    tiers: Tiers,
    /// Loads of blocks that are in memory.
    near: VecDeque<Load>,
    /// Blocks that other engines may fetch.
    kept: Option<Arc<Kept>>,
    /// Who wants to know of changes as vLLM tells them.
    feed: Option<KvFeed>,
}

impl BlockKeeper {
    pub(super) fn new(log: Arc<EventLog>, tiers: Tiers, kept: Option<Arc<Kept>>) -> Self {
        Self { log, tiers, near: VecDeque::new(), kept, feed: None }
    }

    /// Notes a new sequence: offers the planner what the tiers have of it. Returns the blocks that it
    /// speaks of, for [`BlockKeeper::leave`].
    pub(super) fn enter(
        &mut self,
        planner: &mut Planner,
        id: SequenceId,
        claims: &[Claim],
        adapter: Option<AdapterId>,
    ) -> Vec<BlockHash> {
        let names = planner.names(id).to_vec();
        for hash in &names {
            let below = self.tiers.has(hash);
            if below {
                planner.offer(*hash);
            }
            if self.tiers.on_disk(hash) {
                // Of an earlier run's blocks this one knows nothing until somebody asks for them.
                self.log.change(|directory, told| directory.stored(*hash, Medium::Disk, told));
            }
            if !below && !planner.has(hash) {
                break;
            }
        }
        self.log.claim(claims, &names, adapter)
    }

    /// Notes what the blocks of these names are known by, as far as they are there.
    pub(super) fn claim(&self, claims: &[Claim], names: &[BlockHash]) {
        let claimed = self.log.claim(claims, names, None);
        self.log.change(|directory, _| directory.forget(&claimed));
    }

    /// Publishes changes from now on.
    pub(super) fn feed(&mut self, feed: KvFeed) {
        self.feed = Some(feed);
    }

    /// Notes that a request is over.
    pub(super) fn leave(&mut self, claimed: &[BlockHash]) {
        if !claimed.is_empty() {
            self.log.change(|directory, _| directory.forget(claimed));
        }
    }

    /// Takes note of what changed in the pool, before a step overwrites what was evicted.
    pub(super) fn follow(&mut self, planner: &mut Planner, backend: &dyn Backend) {
        let changes = planner.take_changes();
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            match change {
                Change::Stored { block, hash, .. } => self.keep(*hash, *block, backend),
                Change::Removed { block, hash } => self.evicted(*hash, *block, planner, backend),
                Change::Cleared => {}
            }
        }
        self.log.change(|directory, told| {
            for change in &changes {
                match change {
                    Change::Stored { hash, .. } => directory.stored(*hash, Medium::Device, told),
                    Change::Removed { hash, .. } => directory.removed(hash, Medium::Device, told),
                    Change::Cleared => {}
                }
            }
        });
        if let Some(feed) = &mut self.feed {
            feed.publish(changes);
        }
    }

    /// A block that was computed goes to the disk, so that it outlives the process.
    fn keep(&self, hash: BlockHash, block: u32, backend: &dyn Backend) {
        if let Some(disk) = &self.tiers.disk {
            disk.write(hash, |bytes| backend.export_block(block, bytes));
        }
    }

    /// A block that was evicted goes to memory; what has to go there for it, to the disk.
    fn evicted(&mut self, hash: BlockHash, block: u32, planner: &mut Planner, backend: &dyn Backend) {
        if self.tiers.ram.is_some() {
            self.lower(hash, planner, |bytes| backend.export_block(block, bytes));
        } else {
            self.keep(hash, block, backend);
        }
    }

    /// Puts a block into the memory tier.
    fn lower(&mut self, hash: BlockHash, planner: &mut Planner, fill: impl FnOnce(&mut Vec<u8>)) {
        let Tiers { ram, disk } = &mut self.tiers;
        let Some(ram) = ram.as_mut().filter(|ram| !ram.has(&hash)) else { return };
        let mut spilled = None;
        let spill = |old: BlockHash, bytes: &[u8]| {
            if let Some(disk) = disk {
                disk.write(old, |to| to.extend_from_slice(bytes));
            }
            spilled = Some(old);
        };
        ram.put(hash, fill, spill);
        planner.offer(hash);
        self.log.change(|directory, told| {
            directory.stored(hash, Medium::Ram, told);
            if let Some(old) = &spilled {
                directory.removed(old, Medium::Ram, told);
            }
        });
        if let Some(old) = spilled
            && !self.tiers.on_disk(&old)
        {
            planner.withdraw(&old);
        }
    }

    /// Keeps the full blocks of a sequence's prompt for another engine, as far as there is room.
    pub(super) fn give(&self, request: &str, id: SequenceId, planner: &Planner, backend: &dyn Backend) {
        let (Some(kept), Some(blocks)) = (&self.kept, planner.blocks(id)) else { return };
        let names = planner.names(id);
        if !kept.has_room((names.len() * backend.info().block_bytes) as u64) {
            tracing::info!(request, "a prompt is not kept for another engine: too much is kept already");
            return;
        }
        let copy = |(name, block): (&BlockHash, &u32)| {
            let mut bytes = Vec::with_capacity(backend.info().block_bytes);
            backend.export_block(*block, &mut bytes);
            (*name, Bytes::from(bytes))
        };
        kept.keep(request.to_owned(), names.iter().zip(blocks).map(copy).collect());
    }

    /// Takes a block that another engine has computed into the memory tier.
    pub(super) fn receive(&mut self, hash: BlockHash, bytes: &[u8], planner: &mut Planner) {
        if !planner.has(&hash) {
            self.lower(hash, planner, |to| to.extend_from_slice(bytes));
        }
    }

    /// Begins loads. Those from memory are done by [`BlockKeeper::bring`].
    pub(super) fn begin(&mut self, loads: &[Load], planner: &mut Planner) {
        for load in loads {
            if self.tiers.ram.as_ref().is_some_and(|ram| ram.has(&load.hash)) {
                self.near.push_back(*load);
            } else {
                self.fetch(load, planner);
            }
        }
    }

    fn fetch(&mut self, load: &Load, planner: &mut Planner) {
        if !self.tiers.disk.as_ref().is_some_and(|disk| disk.load(*load)) {
            planner.withdraw(&load.hash);
            planner.loaded(load, false);
        }
    }

    /// Brings blocks up from memory, as many as may hold up a step. Returns whether some are left.
    pub(super) fn bring(&mut self, planner: &mut Planner, backend: &mut dyn Backend) -> bool {
        let mut copied = 0;
        while copied < COPIED_AT_ONCE {
            let Some(load) = self.near.pop_front() else { return false };
            if !planner.expects(&load) {
                continue;
            }
            let bytes = self.tiers.ram.as_mut().and_then(|ram| ram.get(&load.hash));
            // Gone since: for a block that was evicted meanwhile.
            let Some(bytes) = bytes else {
                self.fetch(&load, planner);
                continue;
            };
            copied += bytes.len();
            let there = import(backend, &load, bytes);
            planner.loaded(&load, there);
        }
        !self.near.is_empty()
    }

    /// Takes what the disk says.
    pub(super) fn take(&mut self, event: TierEvent, planner: &mut Planner, backend: &mut dyn Backend) {
        match event {
            TierEvent::Stored(hash) => {
                planner.offer(hash);
                self.log.change(|directory, told| directory.stored(hash, Medium::Disk, told));
            }
            TierEvent::Removed(hash) => {
                if !self.tiers.has(&hash) {
                    planner.withdraw(&hash);
                }
                self.log.change(|directory, told| directory.removed(&hash, Medium::Disk, told));
            }
            TierEvent::Loaded { load, bytes } => {
                if planner.expects(&load) {
                    let there = bytes.is_some_and(|bytes| import(backend, &load, &bytes));
                    if !there && !self.tiers.has(&load.hash) {
                        planner.withdraw(&load.hash);
                    }
                    planner.loaded(&load, there);
                }
                if let Some(disk) = &self.tiers.disk {
                    disk.taken();
                }
            }
        }
    }

    /// Whether blocks can come from anywhere below the pool.
    pub(super) fn has_below(&self) -> bool {
        self.tiers.ram.is_some() || self.tiers.disk.is_some()
    }

    pub(super) fn log(&self) -> &EventLog {
        &self.log
    }
}

fn import(backend: &mut dyn Backend, load: &Load, bytes: &[u8]) -> bool {
    let imported = backend.import_block(load.block, bytes);
    if let Err(error) = &imported {
        tracing::error!(%error, "a block from a lower tier was not taken; it is computed");
    }
    imported.is_ok()
}
