//! What to reconcile next. Pure: the time comes in as an argument.
//!
//! An item that is pointed at while it waits is reconciled once; one that is pointed at while it is
//! being reconciled is reconciled once more. What somebody changed goes before what was merely found at
//! the start, so that a new object does not wait behind ten thousand old ones.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::backoff;
use super::key::Item;

/// How much an item matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// It was found in a list, or all are looked at again.
    Bulk,
    /// Something about it changed.
    Urgent,
}

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As wanted; look again at a deadline, if there is one.
    Done(Option<Duration>),
    /// It did not work; the API server may have said when to try again.
    Failed(Option<Duration>),
}

/// An item whose failures are remembered is not tried again sooner than this, whatever changes.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// After so many urgent items one other gets its turn.
const URGENT_RUN: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Schedule {
    urgent: VecDeque<Item>,
    bulk: VecDeque<Item>,
    /// Where each waiting item waits, and since when.
    waiting: HashMap<Item, (Lane, Instant)>,
    running: HashSet<Item>,
    /// Pointed at while running.
    again: HashMap<Item, Lane>,
    later: BTreeSet<(Instant, Item)>,
    due: HashMap<Item, Instant>,
    failures: HashMap<Item, Failures>,
    paused_until: Option<Instant>,
    run_of_urgent: u32,
}

impl Schedule {
    /// Something about the item may have changed.
    pub(super) fn poke(&mut self, item: Item, lane: Lane, now: Instant) {
        if self.running.contains(&item) {
            let known = self.again.entry(item).or_insert(lane);
            *known = lane.max(*known);
            return;
        }
        if let Some(failed) = self.failures.get(&item) {
            let earliest = failed.last + AFTER_FAILURE;
            if earliest > now {
                self.poke_at(item, earliest);
                return;
            }
        }
        self.enqueue(item, lane, now);
    }

    fn enqueue(&mut self, item: Item, lane: Lane, now: Instant) {
        match self.waiting.get_mut(&item) {
            Some((Lane::Bulk, _)) if lane == Lane::Urgent => {
                // Its place among the others is found empty when its turn comes.
                self.waiting.insert(item.clone(), (lane, now));
                self.urgent.push_back(item);
            }
            Some(_) => {}
            None => {
                self.waiting.insert(item.clone(), (lane, now));
                match lane {
                    Lane::Urgent => self.urgent.push_back(item),
                    Lane::Bulk => self.bulk.push_back(item),
                }
            }
        }
    }

    /// Looks at the item at a time, or sooner if that was asked for already.
    fn poke_at(&mut self, item: Item, at: Instant) {
        match self.due.get(&item) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.later.remove(&(*known, item.clone()));
            }
            None => {}
        }
        self.due.insert(item.clone(), at);
        self.later.insert((at, item));
    }

    /// Starts nothing until then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
    }

    /// The next item, with the time that it has waited.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Item, Duration)> {
        if self.paused_until.is_some_and(|until| until > now) {
            return None;
        }
        while let Some((at, item)) = self.later.first().cloned() {
            if at > now {
                break;
            }
            self.later.remove(&(at, item.clone()));
            self.due.remove(&item);
            if self.running.contains(&item) {
                self.again.insert(item, Lane::Urgent);
            } else {
                self.enqueue(item, Lane::Urgent, now);
            }
        }
        let item = self.pop()?;
        let since = self.waiting.remove(&item).map_or(now, |(_, since)| since);
        if let Some(at) = self.due.remove(&item) {
            self.later.remove(&(at, item.clone()));
        }
        self.running.insert(item.clone());
        Some((item, now.saturating_duration_since(since)))
    }

    fn pop(&mut self) -> Option<Item> {
        loop {
            let from_bulk =
                self.urgent.is_empty() || (self.run_of_urgent >= URGENT_RUN && !self.bulk.is_empty());
            let (item, lane) = if from_bulk {
                self.run_of_urgent = 0;
                (self.bulk.pop_front()?, Lane::Bulk)
            } else {
                self.run_of_urgent += 1;
                (self.urgent.pop_front()?, Lane::Urgent)
            };
            if self.waiting.get(&item).is_some_and(|(waits_in, _)| *waits_in == lane) {
                return Some(item);
            }
        }
    }

    /// When [`Self::next`] may have something although nothing happens before.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let next = if self.waiting.is_empty() { self.later.first().map(|(at, _)| *at) } else { None };
        match (self.waiting.is_empty(), self.paused_until) {
            (false, paused) => paused,
            (true, Some(paused)) => next.map(|at| at.max(paused)),
            (true, None) => next,
        }
    }

    /// Takes an item back that [`Self::next`] gave out. Returns the failures in a row.
    pub(super) fn finish(&mut self, item: &Item, outcome: Outcome, chance: f64, now: Instant) -> u32 {
        self.running.remove(item);
        let failures = match outcome {
            Outcome::Done(again) => {
                self.failures.remove(item);
                if let Some(after) = again {
                    self.poke_at(item.clone(), now + after);
                }
                0
            }
            Outcome::Failed(at_least) => {
                let count = self.failures.get(item).map_or(1, |f| f.count.saturating_add(1));
                self.failures.insert(item.clone(), Failures { count, last: now });
                let wait = backoff::delay(count, chance).max(at_least.unwrap_or_default());
                self.poke_at(item.clone(), now + wait);
                count
            }
        };
        if let Some(lane) = self.again.remove(item) {
            self.poke(item.clone(), lane, now);
        }
        failures
    }

    /// Forgets everything that waits and that failed; what runs may still be finished.
    pub(super) fn clear(&mut self) {
        let running = std::mem::take(&mut self.running);
        *self = Self { running, ..Self::default() };
    }

    /// Items that wait for their turn.
    pub(super) fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// Items that are being reconciled.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Items that failed last time.
    pub(super) fn failing(&self) -> usize {
        self.failures.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str) -> Item {
        Item::Namespace(name.to_owned())
    }

    fn names(schedule: &mut Schedule, now: Instant) -> Vec<Item> {
        std::iter::from_fn(|| schedule.next(now).map(|(item, _)| item)).collect()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_item_is_reconciled_once_however_often_it_is_pointed_at() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        for lane in [Lane::Bulk, Lane::Urgent, Lane::Bulk, Lane::Urgent] {
            schedule.poke(item("a"), lane, now);
        }
        assert_eq!(names(&mut schedule, now), [item("a")]);
        schedule.poke(item("a"), Lane::Bulk, now);
        schedule.poke(item("a"), Lane::Urgent, now);
        assert_eq!(schedule.next(now), None, "while it runs");
        schedule.finish(&item("a"), Outcome::Done(None), 0.0, now);
        assert_eq!(names(&mut schedule, now), [item("a")], "once more, since it changed meanwhile");
        schedule.finish(&item("a"), Outcome::Done(None), 0.0, now);
        assert_eq!((schedule.next(now), schedule.wake_at()), (None, None));
    }

    #[test]
    fn what_changed_goes_first_and_the_rest_is_not_forgotten() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        for n in 0..3 {
            schedule.poke(item(&format!("old{n}")), Lane::Bulk, now);
        }
        for n in 0..20 {
            schedule.poke(item(&format!("new{n}")), Lane::Urgent, now);
        }
        let order = names(&mut schedule, now);
        assert_eq!(order.len(), 23);
        assert_eq!(order[0], item("new0"));
        assert_eq!(order[3], item("old0"), "one of the others after three");
    }

    #[test]
    fn failures_wait_longer_and_longer_and_a_success_forgets_them() {
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        schedule.poke(item("a"), Lane::Urgent, now);
        for expected in [1u64, 2, 4, 8] {
            assert_eq!(names(&mut schedule, now), [item("a")]);
            schedule.finish(&item("a"), Outcome::Failed(None), 1.0, now);
            assert_eq!(schedule.wake_at(), Some(now + SECOND * expected as u32));
            now += SECOND * expected as u32;
        }
        assert_eq!(names(&mut schedule, now), [item("a")]);
        schedule.finish(&item("a"), Outcome::Done(None), 1.0, now);
        assert_eq!((schedule.failing(), schedule.wake_at()), (0, None));
    }

    #[test]
    fn a_change_shortens_the_wait_after_a_failure_but_not_below_a_second() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.poke(item("a"), Lane::Urgent, now);
        schedule.next(now);
        schedule.finish(&item("a"), Outcome::Failed(Some(SECOND * 60)), 1.0, now);
        schedule.poke(item("a"), Lane::Urgent, now);
        assert_eq!(schedule.next(now), None);
        assert_eq!(schedule.wake_at(), Some(now + SECOND));
        assert_eq!(names(&mut schedule, now + SECOND), [item("a")]);
        schedule.finish(&item("a"), Outcome::Failed(None), 1.0, now + SECOND);
        schedule.poke(item("a"), Lane::Urgent, now + SECOND * 2);
        assert_eq!(names(&mut schedule, now + SECOND * 2), [item("a")], "the second is over");
    }

    #[test]
    fn a_deadline_is_kept_unless_something_happens_before() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.poke(item("a"), Lane::Bulk, now);
        schedule.next(now);
        schedule.finish(&item("a"), Outcome::Done(Some(SECOND * 30)), 0.0, now);
        assert_eq!(schedule.wake_at(), Some(now + SECOND * 30));
        schedule.poke(item("a"), Lane::Urgent, now);
        assert_eq!(names(&mut schedule, now), [item("a")]);
        schedule.finish(&item("a"), Outcome::Done(None), 0.0, now);
        assert_eq!(schedule.wake_at(), None, "the new result has no deadline");
    }

    #[test]
    fn a_pause_holds_everything_back() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.poke(item("a"), Lane::Urgent, now);
        schedule.pause(now + SECOND * 3);
        assert_eq!((schedule.next(now), schedule.wake_at()), (None, Some(now + SECOND * 3)));
        assert_eq!(names(&mut schedule, now + SECOND * 3), [item("a")]);
    }

    proptest! {
        /// Whatever happens, nothing runs twice at once, and whatever was pointed at runs in the end.
        #[test]
        fn nothing_is_lost_and_nothing_runs_twice(steps in prop::collection::vec((0u8..5, 0u8..4), 0..200)) {
            let mut schedule = Schedule::default();
            let mut now = Instant::now();
            let mut owed: HashSet<Item> = HashSet::new();
            let mut running: Vec<Item> = Vec::new();
            for (act, which) in steps {
                let this = item(&which.to_string());
                match act {
                    0 => { schedule.poke(this.clone(), Lane::Bulk, now); owed.insert(this); }
                    1 => { schedule.poke(this.clone(), Lane::Urgent, now); owed.insert(this); }
                    2 => now += SECOND,
                    3 => if let Some((next, _)) = schedule.next(now) {
                        prop_assert!(!running.contains(&next));
                        owed.remove(&next);
                        running.push(next);
                    },
                    _ => if let Some(done) = running.pop() {
                        let outcome = if which == 0 { Outcome::Failed(None) } else { Outcome::Done(None) };
                        if which == 0 { owed.insert(done.clone()); }
                        schedule.finish(&done, outcome, 0.5, now);
                    },
                }
            }
            for done in running.drain(..) {
                schedule.finish(&done, Outcome::Done(None), 0.5, now);
            }
            for _ in 0..100 {
                while let Some((next, _)) = schedule.next(now) {
                    owed.remove(&next);
                    schedule.finish(&next, Outcome::Done(None), 0.5, now);
                }
                now += SECOND * 300;
            }
            prop_assert!(owed.is_empty(), "{owed:?}");
            prop_assert_eq!(schedule.depth() + schedule.running(), 0);
            prop_assert_eq!(schedule.waiting.len() + schedule.due.len() + schedule.later.len(), 0);
        }
    }
}
