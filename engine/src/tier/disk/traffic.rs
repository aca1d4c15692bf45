//! A bound on the bytes that are on their way.

use std::sync::{Condvar, Mutex, PoisonError};

/// Counts bytes on their way, up to a limit.
#[derive(Debug)]
pub(super) struct Traffic {
    state: Mutex<State>,
    less: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    closed: bool,
}

impl Traffic {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), less: Condvar::new(), limit }
    }

    /// Takes room for `bytes` when there is some.
    pub(super) fn try_acquire(&self, bytes: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = state.bytes + bytes <= self.limit;
        if fits {
            state.bytes += bytes;
        }
        fits
    }

    /// Waits for room for `bytes`; `false` when it was closed.
    pub(super) fn acquire(&self, bytes: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut State| !state.closed && state.bytes + bytes > self.limit;
        let mut state = self.less.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes;
        !state.closed
    }

    /// Gives room back.
    pub(super) fn release(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
        self.less.notify_one();
    }

    /// Ends all waiting.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.less.notify_all();
    }
}
