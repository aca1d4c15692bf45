//! What becomes of blocks outside of the pool: who is told of them.

use std::sync::Arc;

use strata_wire::engine_events::Medium;

use crate::block::{BlockHash, Change};
use crate::events::{Claim, EventLog};
use crate::step::{Planner, SequenceId};

/// Follows the planner's blocks.
pub(super) struct BlockKeeper {
    log: Arc<EventLog>,
}

impl BlockKeeper {
    pub(super) fn new(log: Arc<EventLog>) -> Self {
        Self { log }
    }

    /// Notes a new sequence. Returns the blocks that it speaks of, for [`BlockKeeper::leave`].
    pub(super) fn enter(&mut self, planner: &Planner, id: SequenceId, claims: &[Claim]) -> Vec<BlockHash> {
        self.log.claim(claims, planner.names(id))
    }

    /// Notes that a request is over.
    pub(super) fn leave(&mut self, claimed: &[BlockHash]) {
        if !claimed.is_empty() {
            self.log.change(|directory, _| directory.forget(claimed));
        }
    }

    /// Tells what changed in the pool.
    pub(super) fn follow(&mut self, planner: &mut Planner) {
        let changes = planner.take_changes();
        if changes.is_empty() {
            return;
        }
        self.log.change(|directory, told| {
            for change in &changes {
                match change {
                    Change::Stored { hash, .. } => directory.stored(*hash, Medium::Device, told),
                    Change::Removed { hash, .. } => directory.removed(hash, Medium::Device, told),
                }
            }
        });
    }

    pub(super) fn log(&self) -> &EventLog {
        &self.log
    }
}
