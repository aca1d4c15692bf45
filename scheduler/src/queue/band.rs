//! Requests of one priority, fair between their flows: start-time fair queueing. A flow's next request is
//! due when what the flow has had so far would have been done, had all flows shared alike; whoever is due
//! first goes first. A flow is charged when it is served, so what leaves unserved costs it nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Flows without a waiting request of which is remembered what they have had.
const REMEMBERED: usize = 4096;

/// The requests of one priority.
#[derive(Debug)]
pub(super) struct Band<E> {
    /// The due time of what was served last.
    clock: u64,
    flows: BTreeMap<u64, Flow<E>>,
    waiting: usize,
}

#[derive(Debug)]
struct Flow<E> {
    /// When its next request is due.
    due: u64,
    /// By ticket, each with its cost.
    entries: BTreeMap<u64, (u64, E)>,
    /// The cost of all of them.
    cost: u64,
}

impl<E> Default for Band<E> {
    fn default() -> Self {
        Self { clock: 0, flows: BTreeMap::new(), waiting: 0 }
    }
}

impl<E> Band<E> {
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// One more waits. Its ticket is above all before it.
    pub(super) fn push(&mut self, flow: u64, ticket: u64, cost: u64, entry: E) {
        if self.flows.len() > self.waiting + REMEMBERED {
            self.flows.retain(|_, flow| !flow.entries.is_empty());
        }
        let clock = self.clock;
        let flow =
            self.flows.entry(flow).or_insert_with(|| Flow { due: clock, entries: BTreeMap::new(), cost: 0 });
        if flow.entries.is_empty() {
            flow.due = flow.due.max(clock);
        }
        flow.entries.insert(ticket, (cost.max(1), entry));
        flow.cost += cost.max(1);
        self.waiting += 1;
    }

    pub(super) fn get(&self, flow: u64, ticket: u64) -> Option<&E> {
        self.flows.get(&flow)?.entries.get(&ticket).map(|(_, entry)| entry)
    }

    pub(super) fn get_mut(&mut self, flow: u64, ticket: u64) -> Option<&mut E> {
        self.flows.get_mut(&flow)?.entries.get_mut(&ticket).map(|(_, entry)| entry)
    }

    /// Takes one out. Its flow is charged when it was served.
    pub(super) fn remove(&mut self, flow: u64, ticket: u64, served: bool) -> Option<E> {
        let at = self.flows.get_mut(&flow)?;
        let (cost, entry) = at.entries.remove(&ticket)?;
        at.cost -= cost;
        self.waiting -= 1;
        if served {
            self.clock = self.clock.max(at.due);
            at.due = at.due.saturating_add(cost);
        }
        if at.entries.is_empty() && at.due <= self.clock {
            self.flows.remove(&flow);
        }
        Some(entry)
    }

    /// The first of them in the order in which they are due, as flow and ticket, if nothing changes.
    pub(super) fn first(&self, most: usize) -> Vec<(u64, u64)> {
        let mut order = Vec::with_capacity(most.min(self.waiting));
        // By due time, then by who came first.
        let mut heads = BinaryHeap::new();
        for (id, flow) in &self.flows {
            let mut rest = flow.entries.iter();
            if let Some((ticket, (cost, _))) = rest.next() {
                heads.push(Head { key: Reverse((flow.due, *ticket)), flow: *id, cost: *cost, rest });
            }
        }
        while order.len() < most
            && let Some(mut head) = heads.pop()
        {
            let Reverse((due, ticket)) = head.key;
            order.push((head.flow, ticket));
            if let Some((ticket, (cost, _))) = head.rest.next() {
                head.key = Reverse((due.saturating_add(head.cost), *ticket));
                head.cost = *cost;
                heads.push(head);
            }
        }
        order
    }

    /// Who goes when one must: the newest request of the flow with the most that waits.
    pub(super) fn victim(&self) -> Option<(u64, u64)> {
        let newest = |flow: &Flow<E>| flow.entries.last_key_value().map(|(ticket, _)| *ticket);
        let (id, flow) = self
            .flows
            .iter()
            .filter(|(_, flow)| !flow.entries.is_empty())
            .max_by_key(|(_, flow)| (flow.cost, newest(flow)))?;
        newest(flow).map(|ticket| (*id, ticket))
    }

    #[cfg(test)]
    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }
}

struct Head<'a, E> {
    key: Reverse<(u64, u64)>,
    flow: u64,
    cost: u64,
    rest: std::collections::btree_map::Iter<'a, u64, (u64, E)>,
}

impl<E> PartialEq for Head<'_, E> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<E> Eq for Head<'_, E> {}

impl<E> PartialOrd for Head<'_, E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Head<'_, E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}
