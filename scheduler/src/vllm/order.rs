//! In which order batches count, and when one is missing. Pure.
//!
//! A vLLM numbers its batches from 0 in each run, and keeps the last of them for a replay. Whether a replay
//! goes on from what is known is proven by its first batch: it must be the last one that was taken, to the
//! byte. After a restart another has its number, or none.

use std::collections::VecDeque;

/// Batches of a replay that are recognised when they come again. A vLLM keeps 10,000.
const BEHIND: usize = 1 << 15;

/// A batch's number and a hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number.
    pub number: u64,
    /// What it holds.
    pub print: u64,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it.
    Take,
    /// It has been taken before.
    Skip,
    /// Something is missing before it: ask for a replay, and pass this one again after it.
    Missing,
    /// It follows nothing that is known: begin anew, and take it.
    Anew,
}

/// The order of one replica's batches.
#[derive(Clone, Debug, Default)]
pub struct Order {
    last: Option<Mark>,
    /// Whether all that happened since the vLLM's start is known.
    whole: bool,
    /// What the last replay has brought and may still come live: the newest of it.
    behind: VecDeque<Mark>,
}

impl Order {
    /// From which number on a replay is to be asked for.
    pub fn from(&self) -> u64 {
        self.last.map_or(0, |last| last.number)
    }

    /// Whether all that happened since the vLLM's start is known: then what has not been told is not there.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether anything is known.
    pub fn has_begun(&self) -> bool {
        self.last.is_some()
    }

    /// A batch of a replay; `first` tells that it is its first.
    pub fn replayed(&mut self, first: bool, mark: Mark) -> Step {
        if first {
            self.behind.clear();
        } else if self.behind.len() == BEHIND {
            self.behind.pop_front();
        }
        self.behind.push_back(mark);
        match self.last {
            Some(last) if first && last == mark => Step::Skip,
            Some(last) if !first && mark.number == last.number + 1 => self.take(mark),
            _ => self.anew(mark),
        }
    }

    /// A replay has ended, and this is how many batches it had. Returns whether to begin anew: nothing of
    /// what is known is remembered there.
    pub fn replay_ended(&mut self, batches: usize) -> bool {
        let forgotten = batches == 0 && self.last.is_some();
        if forgotten {
            self.lost();
        }
        forgotten
    }

    /// What is known can no longer be relied on, and no replay can mend it.
    pub fn lost(&mut self) {
        *self = Self::default();
    }

    /// What a batch holds could not be read: from here on not all is known.
    pub fn unreadable(&mut self) {
        self.whole = false;
    }

    /// A batch as it happens. Without a replay nothing can be mended: then what is missing means to begin
    /// anew.
    pub fn live(&mut self, mark: Mark, can_replay: bool) -> Step {
        let Some(last) = self.last else { return self.anew(mark) };
        if mark.number == last.number + 1 {
            self.behind.clear();
            return self.take(mark);
        }
        if mark == last
            || self
                .behind
                .binary_search_by_key(&mark.number, |m| m.number)
                .is_ok_and(|at| self.behind[at] == mark)
        {
            return Step::Skip;
        }
        if can_replay { Step::Missing } else { self.anew(mark) }
    }

    fn take(&mut self, mark: Mark) -> Step {
        self.last = Some(mark);
        Step::Take
    }

    fn anew(&mut self, mark: Mark) -> Step {
        self.last = Some(mark);
        self.whole = mark.number == 0;
        Step::Anew
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(run: u64, number: u64) -> Mark {
        Mark { number, print: run * 1000 + number }
    }

    fn at(run: u64, number: u64) -> Order {
        Order { last: Some(mark(run, number)), whole: true, behind: VecDeque::new() }
    }

    #[test]
    fn batches_count_in_their_order() {
        let mut order = Order::default();
        assert_eq!((order.live(mark(1, 0), true), order.is_whole()), (Step::Anew, true));
        assert_eq!(order.live(mark(1, 1), true), Step::Take);
        assert_eq!(order.live(mark(1, 1), true), Step::Skip);
        assert_eq!(order.live(mark(1, 3), true), Step::Missing);
        assert_eq!(order.from(), 1);
        let replay: Vec<Step> = (1..=3).map(|number| order.replayed(number == 1, mark(1, number))).collect();
        assert_eq!(replay, [Step::Skip, Step::Take, Step::Take]);
        assert!(!order.replay_ended(3) && order.is_whole());
        // The live ones that the replay has brought.
        assert_eq!([2, 3].map(|number| order.live(mark(1, number), true)), [Step::Skip; 2]);
        assert_eq!(order.live(mark(1, 4), true), Step::Take);
        assert_eq!(order.live(mark(1, 2), true), Step::Missing, "it has restarted: the replay will tell");
    }

    #[test]
    fn another_run_is_noticed() {
        let mut order = at(1, 7);
        assert_eq!((order.replayed(true, mark(2, 7)), order.is_whole()), (Step::Anew, false));
        assert_eq!(order.live(mark(2, 8), true), Step::Take);
        let mut order = at(1, 7);
        assert_eq!(order.replayed(true, mark(1, 9)), Step::Anew, "the replay is too short");
        assert!(!order.is_whole());
        let mut order = at(1, 7);
        assert!(order.replay_ended(0), "it has not told anything yet");
        assert_eq!((order.live(mark(2, 0), true), order.is_whole()), (Step::Anew, true));
    }

    #[test]
    fn without_a_replay_what_is_missing_is_lost() {
        let mut order = at(1, 7);
        assert_eq!((order.live(mark(1, 9), false), order.is_whole()), (Step::Anew, false));
        assert_eq!((order.live(mark(2, 0), false), order.is_whole()), (Step::Anew, true));
        order.unreadable();
        assert_eq!((order.live(mark(2, 1), false), order.is_whole()), (Step::Take, false));
    }

    /// A vLLM with what it keeps for a replay, and who follows it.
    #[derive(Default)]
    struct Rig {
        order: Order,
        taken: Vec<Mark>,
        published: Vec<Mark>,
        kept: usize,
        can_replay: bool,
    }

    impl Rig {
        fn step(&mut self, step: Step, mark: Mark) {
            match step {
                Step::Take => self.taken.push(mark),
                Step::Anew => self.taken = vec![mark],
                Step::Skip => {}
                Step::Missing => panic!("a replay cannot be asked for now"),
            }
        }

        fn catch_up(&mut self) {
            let oldest = self.published.len().saturating_sub(self.kept) as u64;
            let from = self.order.from().max(oldest);
            let replay: Vec<Mark> = self.published.iter().filter(|m| m.number >= from).copied().collect();
            let replay = if self.can_replay { replay } else { Vec::new() };
            for (i, mark) in replay.iter().enumerate() {
                let step = self.order.replayed(i == 0, *mark);
                self.step(step, *mark);
            }
            if self.order.replay_ended(replay.len()) {
                self.taken.clear();
            }
        }

        fn live(&mut self, mark: Mark) {
            let mut step = self.order.live(mark, self.can_replay);
            if step == Step::Missing {
                self.catch_up();
                step = self.order.live(mark, false);
            }
            self.step(step, mark);
        }
    }

    proptest! {
        /// Whatever is lost on the way and however often it restarts, which breaks the connection: what was
        /// taken since the last beginning is one run's batches in a row, from 0 on if it is said to be whole.
        #[test]
        fn what_counts_is_a_row_of_one_run(
            steps in prop::collection::vec((0u8..10, any::<bool>()), 1..200),
            kept in 0usize..6, can_replay: bool,
        ) {
            let mut rig = Rig { kept, can_replay, ..Rig::default() };
            let (mut run, mut connected) = (0, false);
            for (what, lost) in steps {
                if what == 0 {
                    run += 1;
                    rig.published.clear();
                }
                connected &= what > 1;
                let new = mark(run, rig.published.len() as u64);
                // It connects before this one, or after it.
                if !connected && !lost {
                    rig.catch_up();
                    connected = true;
                }
                rig.published.push(new);
                if lost {
                    continue;
                }
                rig.live(new);
                prop_assert_eq!(rig.taken.last(), Some(&new));
                prop_assert!(rig.taken.windows(2).all(|w| w[0].number + 1 == w[1].number));
                prop_assert!(rig.taken.iter().all(|m| m.print / 1000 == run));
                prop_assert_eq!(rig.order.is_whole(), rig.taken[0].number == 0);
            }
        }
    }
}
