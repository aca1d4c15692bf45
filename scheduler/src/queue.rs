//! Requests that wait for a replica. Pure.
//!
//! They are offered a place in the order they came, but who waits for a particular replica does not hold
//! up those behind it. How often each is overtaken is counted, so that it can stop being choosy.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pick::Patience;

/// Requests that are offered a place at a time. More wait behind them for these to go: looking at all
/// would make an overload worse.
const WINDOW: usize = 256;
/// A request whose prompt no replica has takes any place after others took so many before it.
const OVERTAKEN: u32 = 64;
/// A request that has waited for such a part of the time that it may wait takes any place that is left, and
/// no longer only one where its prompt is.
const PATIENT_PART: u32 = 2;

/// Requests in the order they came.
#[derive(Debug)]
pub struct Queue<T> {
    entries: VecDeque<Entry<T>>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    ticket: u64,
    overtaken: u32,
    since: Duration,
    item: T,
}

/// What came of offering a request a place.
#[derive(Debug)]
pub enum Offer<R> {
    /// It takes this one.
    Placed(R),
    /// There is none for it now.
    Waits,
    /// There is none for anybody.
    NoRoom,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), next: 0 }
    }
}

/// How choosy a request is that has waited for `waited` of the `most` that it may, and was overtaken so
/// often. What nobody wants whose prompt is there is `left` to those whose prompts nobody has, and to those
/// that have waited long.
pub fn patience(waited: Duration, most: Duration, overtaken: u32, left: bool) -> Patience {
    let for_holder = !left || waited < most / PATIENT_PART;
    Patience { for_holder, for_room: overtaken < OVERTAKEN && !left }
}

impl<T> Queue<T> {
    /// Puts a request behind all others, or before them. Returns its ticket.
    pub fn push(&mut self, item: T, before_all: bool, now: Duration) -> u64 {
        let ticket = self.next;
        self.next += 1;
        let entry = Entry { ticket, overtaken: 0, since: now, item };
        if before_all {
            self.entries.push_front(entry);
        } else {
            self.entries.push_back(entry);
        }
        ticket
    }

    /// Takes one out, if it is still there.
    pub fn remove(&mut self, ticket: u64) -> Option<T> {
        let at = self.entries.iter().position(|entry| entry.ticket == ticket)?;
        self.entries.remove(at).map(|entry| entry.item)
    }

    /// Offers places to the first in the queue, and what is left of them once more. `place` gets each one's
    /// [`patience`], of `most` that it may wait; `placed` is told of each that took a place.
    pub fn offer<R>(
        &mut self,
        (now, most): (Duration, Duration),
        mut place: impl FnMut(&T, Patience) -> Offer<R>,
        mut placed: impl FnMut(T, R),
    ) {
        for left in [false, true] {
            let mut at = 0;
            while at < self.entries.len().min(WINDOW) {
                let entry = &self.entries[at];
                let waited = now.saturating_sub(entry.since);
                match place(&entry.item, patience(waited, most, entry.overtaken, left)) {
                    Offer::Placed(result) => {
                        if let Some(entry) = self.entries.remove(at) {
                            placed(entry.item, result);
                        }
                        for before in self.entries.range_mut(..at) {
                            before.overtaken += 1;
                        }
                    }
                    Offer::Waits => at += 1,
                    Offer::NoRoom => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(items: &[u32]) -> Queue<u32> {
        let mut queue = Queue::default();
        for item in items {
            queue.push(*item, false, Duration::ZERO);
        }
        queue
    }

    const TIMES: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(30));

    fn placed(queue: &mut Queue<u32>, mut takes: impl FnMut(u32, Patience) -> Offer<()>) -> Vec<u32> {
        let mut out = Vec::new();
        queue.offer(TIMES, |item, patience| takes(*item, patience), |item, ()| out.push(item));
        out
    }

    #[test]
    fn who_waits_for_another_place_holds_nobody_up() {
        let mut queue = queue(&[1, 2, 3, 4]);
        let odd = |item: u32, _| if item % 2 == 1 { Offer::Waits } else { Offer::Placed(()) };
        assert_eq!(placed(&mut queue, odd), [2, 4]);
        queue.push(9, true, Duration::ZERO);
        let mut room = 2;
        let few = |_, _| {
            room -= 1;
            if room >= 0 { Offer::Placed(()) } else { Offer::NoRoom }
        };
        assert_eq!(placed(&mut queue, few), [9, 1]);
        let last = queue.push(5, false, Duration::ZERO);
        assert_eq!(
            (queue.remove(last), queue.remove(last), queue.entries.is_empty()),
            (Some(5), None, false)
        );
    }

    #[test]
    fn what_is_left_goes_to_those_without_a_holder() {
        // 2 waits for a replica that has its prompt, nobody has the others'.
        let mut queue = queue(&[1, 2, 3]);
        let takes = |item: u32, patience: Patience| {
            let waits = if item == 2 { patience.for_holder } else { patience.for_room };
            if waits { Offer::Waits } else { Offer::Placed(()) }
        };
        assert_eq!(placed(&mut queue, takes), [1, 3]);
    }

    #[test]
    fn patience_ends() {
        let (half, most) = (Duration::from_secs(15), Duration::from_secs(30));
        let all = Patience { for_holder: true, for_room: true };
        assert_eq!(patience(Duration::ZERO, most, 0, false), all);
        assert_eq!(patience(half, most, 0, false), all);
        assert_eq!(patience(half, most, 0, true), Patience { for_holder: false, for_room: false });
        assert_eq!(patience(Duration::ZERO, most, OVERTAKEN, false), Patience { for_room: false, ..all });
        assert_eq!(patience(Duration::ZERO, most, 0, true), Patience { for_room: false, ..all });
    }

    proptest! {
        /// One place at a time, which some take first: nobody is lost or placed twice, and a request that
        /// waits for room is overtaken so often and no more.
        #[test]
        fn nobody_is_overtaken_for_ever(holders in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut queue = Queue::default();
            for (item, holder) in holders.iter().enumerate() {
                queue.push((item, *holder), false, Duration::ZERO);
            }
            let (mut order, mut overtaken) = (Vec::new(), vec![0; holders.len()]);
            while order.len() < holders.len() {
                let mut room = 1;
                queue.offer(
                    TIMES,
                    |(_, holder), patience| {
                        if room == 0 {
                            Offer::NoRoom
                        } else if patience.for_room && !holder {
                            Offer::Waits
                        } else {
                            room -= 1;
                            Offer::Placed(())
                        }
                    },
                    |(item, _), ()| order.push(item),
                );
                prop_assert_eq!(room, 0, "no place is left while somebody waits");
                let last = order[order.len() - 1];
                for (earlier, times) in overtaken.iter_mut().enumerate().take(last) {
                    *times += u32::from(!order.contains(&earlier));
                }
            }
            prop_assert!(overtaken.iter().all(|times| *times <= OVERTAKEN));
        }
    }
}
