//! Numbers for what one replica holds at a time: given out, taken back, and used again only when nothing in
//! the index bears them any more. Pure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Blocks of closed lanes that may lie about until they are swept away, however few others there are.
const LEAST_DEAD: usize = 64 * 1024;
/// They are swept away when they are such a part of all.
const DEAD_PART: usize = 4;
/// So many closed lanes are swept away, however few blocks they held: a look-up's room grows with them.
const MOST_CLOSED: usize = 1024;

/// What one replica holds, from one snapshot of it on. Closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lane {
    // Here too: a choice reads it of each replica.
    number: u32,
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    number: u32,
    entries: AtomicUsize,
    closed: Arc<Closing>,
}

/// Lanes that were closed, and whether somebody sweeps.
#[derive(Debug, Default)]
struct Closing {
    numbers: std::sync::Mutex<Vec<u32>>,
    entries: AtomicUsize,
    sweeping: AtomicBool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closed.entries.fetch_add(self.entries.load(Ordering::Acquire), Ordering::AcqRel);
        lock(&self.closed.numbers).push(self.number);
    }
}

impl Lane {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Entries of the index that bear it.
    pub fn entries(&self) -> usize {
        self.open.entries.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, entries: usize) {
        self.open.entries.fetch_add(entries, Ordering::AcqRel);
    }

    pub(super) fn take(&self, entries: usize) {
        self.open.entries.fetch_sub(entries, Ordering::AcqRel);
    }
}

/// All lanes of an index.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    free: std::sync::Mutex<Numbers>,
    closed: Arc<Closing>,
}

#[derive(Debug, Default)]
struct Numbers {
    free: Vec<u32>,
    next: u32,
}

impl Lanes {
    /// A lane that bears nothing yet.
    pub(super) fn open(&self) -> Lane {
        let mut numbers = lock(&self.free);
        let number = numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        });
        let open = Open { number, entries: AtomicUsize::new(0), closed: Arc::clone(&self.closed) };
        Lane { number, open: Arc::new(open) }
    }

    /// Entries of lanes that are closed.
    pub(super) fn dead(&self) -> usize {
        self.closed.entries.load(Ordering::Acquire)
    }

    /// Whether much is to be swept away, and nobody does; `entries` are all of the index.
    pub(super) fn is_littered(&self, entries: usize) -> bool {
        let many = self.dead() > LEAST_DEAD.max(entries / DEAD_PART)
            || lock(&self.closed.numbers).len() > MOST_CLOSED;
        many && !self.closed.sweeping.load(Ordering::Acquire)
    }

    /// The numbers to sweep away, when it is time and nobody else does.
    pub(super) fn begin_sweep(&self, entries: usize) -> Option<Sweep<'_>> {
        if !self.is_littered(entries) || self.closed.sweeping.swap(true, Ordering::AcqRel) {
            return None;
        }
        let mut numbers = std::mem::take(&mut *lock(&self.closed.numbers));
        numbers.sort_unstable();
        Some(Sweep { lanes: self, numbers, swept: 0 })
    }
}

/// A sweep under way. When it ends its numbers can be given out again.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    lanes: &'a Lanes,
    numbers: Vec<u32>,
    swept: usize,
}

impl Sweep<'_> {
    /// Whether what bears this number is to go.
    pub(super) fn takes(&self, number: u32) -> bool {
        self.numbers.binary_search(&number).is_ok()
    }

    /// So many entries went.
    pub(super) fn went(&mut self, entries: usize) {
        self.swept += entries;
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        let closed = &self.lanes.closed;
        closed.entries.fetch_sub(self.swept, Ordering::AcqRel);
        lock(&self.lanes.free).free.append(&mut self.numbers);
        closed.sweeping.store(false, Ordering::Release);
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
