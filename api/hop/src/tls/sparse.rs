//! Keeps what strangers can cause from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(1);

/// One kind of line, of which no more than one a second is written.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<(Option<Instant>, u64)>);

impl Sparse {
    /// Whether a line may be written now, and then how many were not since the last.
    pub(crate) fn may_speak(&self) -> Option<u64> {
        self.may_speak_at(Instant::now())
    }

    fn may_speak_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < PAUSE) {
            state.1 += 1;
            return None;
        }
        let unsaid = std::mem::take(&mut state.1);
        state.0 = Some(now);
        Some(unsaid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_and_a_count() {
        let (sparse, start) = (Sparse::default(), Instant::now());
        assert_eq!(sparse.may_speak_at(start), Some(0));
        for _ in 0..41 {
            assert_eq!(sparse.may_speak_at(start + PAUSE / 2), None);
        }
        assert_eq!(sparse.may_speak_at(start + PAUSE), Some(41));
        assert_eq!(sparse.may_speak_at(start + 3 * PAUSE), Some(0));
    }
}
