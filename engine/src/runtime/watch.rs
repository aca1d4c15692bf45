//! Whether the engine's thread gets on, as others see it. No clock: the time comes in.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a step may take for each of its tokens, beside the least that all may. A machine that needs
/// more serves nobody, and a step of a long prompt on a slow one is not a hang.
const PER_TOKEN: Duration = Duration::from_secs(1);

/// What the engine does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Condition {
    /// It runs them.
    Awake,
    /// It takes them and lets them wait.
    Paused,
    /// It has given the KV cache back.
    AsleepWithWeights,
    /// It has given the KV cache and the weights back.
    AsleepWithout,
}

impl Condition {
    /// Whether memory was given back, so that nothing can be run.
    pub fn is_asleep(self) -> bool {
        matches!(self, Self::AsleepWithWeights | Self::AsleepWithout)
    }
}

/// Written by the engine's thread, read by all.
#[derive(Debug)]
pub(super) struct Watch {
    epoch: Instant,
    least: Duration,
    /// Milliseconds from the epoch to the time by which the step that runs must have ended; 0 when
    /// none runs.
    due: AtomicU64,
    condition: AtomicU8,
}

impl Watch {
    /// Every step may take `least`.
    pub(super) fn new(epoch: Instant, least: Duration) -> Self {
        Self { epoch, least, due: AtomicU64::new(0), condition: AtomicU8::new(Condition::Awake as u8) }
    }

    /// A step of so many tokens begins.
    pub(super) fn begin(&self, tokens: usize, now: Instant) {
        let allowed = self.least.max(PER_TOKEN.saturating_mul(tokens as u32));
        self.due.store(self.since_epoch(now + allowed), Ordering::Relaxed);
    }

    /// The step has ended.
    pub(super) fn end(&self) {
        self.due.store(0, Ordering::Relaxed);
    }

    /// How long the step that runs has been overdue.
    pub(super) fn overdue(&self, now: Instant) -> Option<Duration> {
        let due = self.due.load(Ordering::Relaxed);
        let late = self.since_epoch(now).checked_sub(due).filter(|_| due > 0)?;
        Some(Duration::from_millis(late))
    }

    pub(super) fn set(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::Relaxed);
    }

    pub(super) fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Relaxed) {
            0 => Condition::Awake,
            1 => Condition::Paused,
            2 => Condition::AsleepWithWeights,
            _ => Condition::AsleepWithout,
        }
    }

    fn since_epoch(&self, time: Instant) -> u64 {
        // One more, so that no time is 0.
        u64::try_from(time.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_overdue_after_its_time_and_long_ones_have_more() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let watch = Watch::new(begun, Duration::from_secs(60));
        assert_eq!(watch.overdue(after(9999)), None, "nothing runs");
        watch.begin(1, begun);
        assert_eq!(watch.overdue(after(59)), None);
        assert_eq!(watch.overdue(after(61)), Some(Duration::from_secs(1)));
        watch.begin(512, begun);
        assert_eq!(watch.overdue(after(500)), None);
        assert!(watch.overdue(after(513)).is_some());
        watch.end();
        assert_eq!(watch.overdue(after(9999)), None);
    }
}
