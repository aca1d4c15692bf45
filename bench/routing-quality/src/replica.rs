//! A replica's engine in simulated time: continuous batching with chunked prefill, and a prefix cache of
//! blocks, the least recently used first out, the ends of chains before their beginnings.

use std::collections::{BTreeMap, HashMap, VecDeque};

use strata_wire::engine_events::{BlockChanges, Load, Medium, Removed, Stored};
use strata_wire::prefix::BlockHash;

use crate::workload::{Arrival, BLOCK_TOKENS};

/// What a step costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Seconds of any step.
    pub(crate) step: f64,
    /// Seconds for each sequence that decodes.
    pub(crate) decode: f64,
    /// Prompt tokens a second.
    pub(crate) prefill: f64,
    /// Tokens of a step, decodes among them.
    pub(crate) budget: usize,
    pub(crate) sequences: usize,
}

#[derive(Debug)]
struct Held {
    users: u32,
    /// When it was last let go; its place among those that nobody uses.
    stamp: u64,
}

#[derive(Debug)]
struct Sequence {
    request: usize,
    /// Blocks of prompt and answer that it uses.
    blocks: Vec<BlockHash>,
    /// Tokens of the prompt that are not computed yet.
    to_read: usize,
    to_write: usize,
    prompt_blocks: usize,
}

/// What a step came to.
#[derive(Debug, Default)]
pub(crate) struct Stepped {
    /// Requests whose first token came.
    pub(crate) begun: Vec<usize>,
    /// Requests that ended.
    pub(crate) ended: Vec<usize>,
    /// Requests that were admitted, and the tokens of their prompts that the cache had.
    pub(crate) admitted: Vec<(usize, usize)>,
    pub(crate) changes: BlockChanges,
}

#[derive(Debug)]
pub(crate) struct Engine {
    cost: Cost,
    capacity: usize,
    held: HashMap<BlockHash, Held>,
    idle: BTreeMap<u64, BlockHash>,
    stamps: u64,
    sequence: u64,
    waiting: VecDeque<usize>,
    running: Vec<Sequence>,
    changes: BlockChanges,
    admitted: Vec<(usize, usize)>,
    /// Prompt tokens, and those that the cache had.
    pub(crate) prompt_tokens: usize,
    pub(crate) had: usize,
}

impl Engine {
    pub(crate) fn new(cost: Cost, cache_tokens: usize) -> Self {
        Self {
            cost,
            capacity: cache_tokens / BLOCK_TOKENS,
            held: HashMap::new(),
            idle: BTreeMap::new(),
            stamps: 0,
            sequence: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            changes: BlockChanges::default(),
            admitted: Vec::new(),
            had: 0,
            prompt_tokens: 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn add(&mut self, request: usize) {
        self.waiting.push_back(request);
    }

    pub(crate) fn load(&self, arrivals: &[Arrival]) -> Load {
        let waiting: usize = self.waiting.iter().map(|request| arrivals[*request].prompt).sum();
        let reading: usize = self.running.iter().map(|s| s.to_read).sum();
        Load {
            running: self.running.len() as u64,
            waiting: self.waiting.len() as u64,
            waiting_tokens: (waiting + reading) as u64,
            free_blocks: (self.capacity - (self.held.len() - self.idle.len())) as u64,
            total_blocks: self.capacity as u64,
        }
    }

    /// Admits what there is room for, and returns how long the next step takes.
    pub(crate) fn begin(&mut self, arrivals: &[Arrival]) -> f64 {
        while let Some(request) = self.waiting.front().copied()
            && self.running.len() < self.cost.sequences
        {
            let arrival = &arrivals[request];
            let in_use = self.held.len() - self.idle.len();
            let growing: usize =
                self.running.iter().map(|s| arrivals[s.request].whole.len() - s.blocks.len()).sum();
            // Room for whole answers, shared blocks counted twice: no sequence is ever preempted.
            if in_use + growing + arrival.whole.len() > self.capacity && !self.running.is_empty() {
                break;
            }
            self.waiting.pop_front();
            self.admit(request, arrival);
        }
        let mut budget = self.cost.budget;
        let decodes = self.running.iter().filter(|s| s.to_read == 0).count();
        budget = budget.saturating_sub(decodes).max(1);
        let mut read = 0;
        for sequence in self.running.iter_mut().filter(|s| s.to_read > 0) {
            read += sequence.to_read.min(budget - read);
        }
        self.cost.step + self.cost.decode * decodes as f64 + read as f64 / self.cost.prefill
    }

    fn admit(&mut self, request: usize, arrival: &Arrival) {
        let found = arrival.chain.iter().take_while(|hash| self.held.contains_key(*hash)).count();
        let had = (found * BLOCK_TOKENS).min(arrival.prompt - 1);
        self.had += had;
        self.prompt_tokens += arrival.prompt;
        self.admitted.push((request, had));
        for hash in &arrival.whole[..found] {
            self.take(*hash);
        }
        self.running.push(Sequence {
            request,
            blocks: arrival.whole[..found].to_vec(),
            to_read: arrival.prompt - had,
            to_write: arrival.output,
            prompt_blocks: arrival.chain.len(),
        });
    }

    /// Ends the step that was begun.
    pub(crate) fn end(&mut self, arrivals: &[Arrival]) -> Stepped {
        let mut stepped = Stepped::default();
        let decodes = self.running.iter().filter(|s| s.to_read == 0).count();
        let mut budget = self.cost.budget.saturating_sub(decodes).max(1);
        let mut running = std::mem::take(&mut self.running);
        for sequence in &mut running {
            let arrival = &arrivals[sequence.request];
            if sequence.to_read > 0 {
                let read = sequence.to_read.min(budget);
                budget -= read;
                sequence.to_read -= read;
                let there = arrival.prompt - sequence.to_read;
                self.extend(sequence, arrival, (there / BLOCK_TOKENS).min(sequence.prompt_blocks));
                if sequence.to_read > 0 {
                    continue;
                }
                stepped.begun.push(sequence.request);
            }
            sequence.to_write -= 1;
            let there = arrival.prompt + arrival.output - sequence.to_write;
            self.extend(sequence, arrival, there / BLOCK_TOKENS);
        }
        running.retain(|sequence| {
            if sequence.to_write > 0 {
                return true;
            }
            stepped.ended.push(sequence.request);
            for hash in sequence.blocks.iter().rev() {
                self.release(*hash);
            }
            false
        });
        self.running = running;
        stepped.admitted = std::mem::take(&mut self.admitted);
        stepped.changes = std::mem::take(&mut self.changes);
        if stepped.changes != BlockChanges::default() {
            self.sequence += 1;
            stepped.changes.sequence = self.sequence;
        }
        stepped
    }

    fn extend(&mut self, sequence: &mut Sequence, arrival: &Arrival, blocks: usize) {
        for at in sequence.blocks.len()..blocks.min(arrival.whole.len()) {
            let hash = arrival.whole[at];
            self.take(hash);
            sequence.blocks.push(hash);
            let tokens = ((at + 1) * BLOCK_TOKENS) as u32;
            self.changes.removed.retain(|removed| removed.hash != hash);
            self.changes.stored.push(Stored { hash, tokens, medium: Medium::Device });
        }
    }

    fn take(&mut self, hash: BlockHash) {
        if let Some(held) = self.held.get_mut(&hash) {
            if held.users == 0 {
                self.idle.remove(&held.stamp);
            }
            held.users += 1;
            return;
        }
        while self.held.len() >= self.capacity
            && let Some((_, oldest)) = self.idle.pop_first()
        {
            self.held.remove(&oldest);
            self.changes.stored.retain(|stored| stored.hash != oldest);
            self.changes.removed.push(Removed { hash: oldest, medium: Medium::Device });
        }
        self.held.insert(hash, Held { users: 1, stamp: 0 });
    }

    fn release(&mut self, hash: BlockHash) {
        let Some(held) = self.held.get_mut(&hash) else { return };
        held.users -= 1;
        if held.users == 0 {
            self.stamps += 1;
            held.stamp = self.stamps;
            self.idle.insert(self.stamps, hash);
        }
    }
}
