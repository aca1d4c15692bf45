//! Grouped-query attention over block tables.
//!
//! Each query is computed by itself, position after position: its scores by one chain of
//! multiply-adds each, the sum of their exponentials over sixteen lanes by position mod 16, and its
//! output by one chain for each number. Which queries share a tile decides only what is read together:
//! tokens of one sequence read its cache together, and sequences that begin with the same blocks read
//! those together (as Ye et al., "ChunkAttention", 2024).

mod parts;
mod tasks;
mod tile;

use std::marker::PhantomData;

use super::cache::LayerCache;
use super::element::{CacheType, with_element};
use super::lines::Rows;
use super::team::Machine;
use crate::backend::SequenceSpan;
pub(super) use tasks::Tasks;
pub(super) use tile::exponentials;

/// How the model attends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) head_dim: usize,
    pub(super) kv_heads: usize,
    /// Query heads that share a key and value head.
    pub(super) group: usize,
    /// A token sees so many, itself counted.
    pub(super) window: Option<usize>,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f32,
    /// Bounds what comes out of that; see [`soft_cap`](super::tanh::soft_cap).
    pub(super) softcap: Option<f32>,
}

/// Attention of one layer for a whole step.
pub(super) struct Attention<'a> {
    pub(super) shape: Shape,
    pub(super) spans: &'a [SequenceSpan],
    pub(super) queries: &'a Rows,
    pub(super) cache: &'a LayerCache,
}

impl Attention<'_> {
    /// Writes every query's output to `out`.
    pub(super) fn run(&self, machine: &mut Machine, tasks: &Tasks, out: &mut Rows) {
        out.reshape(self.queries.count(), self.queries.width());
        let out = out.shared();
        with_element!(self.cache.element(), E => {
            machine.for_ranges(tasks.len(), 1, |level, range| {
                tile::SCRATCH.with_borrow_mut(|scratch| {
                    for task in range {
                        let (task, scratch) = (tasks.task(task, self.shape.group), &mut *scratch);
                        level.run_floats(tile::Tile::<E> { attention: self, task, scratch, out, element: PhantomData });
                    }
                });
            });
        });
    }
}
