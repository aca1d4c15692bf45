//! Requests that wait for a replica. Pure.
//!
//! They are offered places by priority, the highest first, and within one priority fairly between flows
//! ([`band`]), each flow in the order it came. Who waits for a particular replica does not hold up those
//! behind it; how often each is overtaken is counted, so that it can stop being choosy. One that has waited
//! for most of its time under a lower priority gets one place of a few ([`AGED_EVERY`]), so that higher ones
//! do not starve it. When there are too many, the newest of the greediest flow of the lowest priority goes.

mod band;
mod drain;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::class::Class;
use crate::pick::Patience;
use band::Band;
use drain::Drain;

/// Requests that are offered a place each time. More wait behind them for these to go: looking at all would
/// make an overload worse.
const WINDOW: usize = 256;
/// Of those behind the window, so many get their turn to be looked at each time: there may be a place where
/// their prompt is that none before them wants. Those that have just come are looked at, too.
const TURNS: usize = 64;
/// A request whose prompt no replica has takes any place after others took so many before it.
const OVERTAKEN: u32 = 64;
/// A request that has waited for such a part of the time that it may wait takes any place that is left, and
/// no longer only one where its prompt is.
const PATIENT_PART: u32 = 2;
/// A request of lower priority has aged when this much of what it may wait is left: a quarter.
const AGED_PART: u32 = 4;
/// While one has aged, it gets one place after so many that others got.
pub const AGED_EVERY: u32 = 7;
/// The band of those that go before all.
const FIRST: i64 = i64::MAX;
/// What a request costs beside its prompt, as bytes of prompt: its answer, of which nothing is known here.
const ANSWER: usize = 1024;

/// What of a request decides about its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rank {
    /// Its priority and flow.
    pub class: Class,
    /// What its flow is charged for it.
    pub cost: u64,
    /// Bytes that are kept while it waits.
    pub bytes: usize,
    /// How long it may wait, where that is not what all may.
    pub most: Option<Duration>,
    /// Whether it goes before all others, and stays whatever comes.
    pub first: bool,
}

impl Rank {
    /// What a prompt of so many bytes costs its flow.
    pub fn cost(prompt: usize) -> u64 {
        (prompt + ANSWER) as u64
    }
}

/// Requests, in no order but the one that they are offered places in.
#[derive(Debug)]
pub struct Queue<T> {
    bands: BTreeMap<i64, Band<Entry<T>>>,
    /// By ticket, which is by arrival.
    places: BTreeMap<u64, Place>,
    bytes: usize,
    next: u64,
    /// Those that came before this one have been looked at.
    looked_at: u64,
    /// The next of those behind the window whose turn it is.
    turn: u64,
    /// Places that others got while one had aged.
    owed: u32,
    drain: Drain,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    band: i64,
    flow: u64,
    since: Duration,
}

#[derive(Debug)]
struct Entry<T> {
    overtaken: u32,
    since: Duration,
    bytes: usize,
    most: Option<Duration>,
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
        Self {
            bands: BTreeMap::new(),
            places: BTreeMap::new(),
            bytes: 0,
            next: 0,
            looked_at: 0,
            turn: 0,
            owed: 0,
            drain: Drain::default(),
        }
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
    /// Puts a request where it belongs. Returns its ticket.
    pub fn push(&mut self, item: T, rank: Rank, now: Duration) -> u64 {
        if self.is_empty() {
            self.drain.began(now);
        }
        let ticket = self.next;
        self.next += 1;
        let band = if rank.first { FIRST } else { i64::from(rank.class.priority) };
        let (flow, bytes) = (rank.class.flow, rank.bytes);
        let entry = Entry { overtaken: 0, since: now, bytes, most: rank.most, item };
        self.bands.entry(band).or_default().push(flow, ticket, rank.cost, entry);
        self.places.insert(ticket, Place { band, flow, since: now });
        self.bytes += bytes;
        ticket
    }

    /// Takes one out, if it is still there.
    pub fn remove(&mut self, ticket: u64) -> Option<T> {
        self.take(ticket, false)
    }

    fn take(&mut self, ticket: u64, served: bool) -> Option<T> {
        let place = self.places.remove(&ticket)?;
        let band = self.bands.get_mut(&place.band)?;
        let entry = band.remove(place.flow, ticket, served)?;
        if band.len() == 0 {
            self.bands.remove(&place.band);
        }
        self.bytes -= entry.bytes;
        Some(entry.item)
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes that are kept for them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many wait whose turn is before that of a new request of this priority, by priority alone.
    pub fn before(&self, priority: i32) -> usize {
        self.bands.range(i64::from(priority)..).map(|(_, band)| band.len()).sum()
    }

    /// How many wait by priority; those that go before all count as the highest there can be.
    pub fn by_priority(&self) -> impl Iterator<Item = (i32, usize)> {
        self.bands.iter().map(|(band, all)| (i32::try_from(*band).unwrap_or(i32::MAX), all.len()))
    }

    /// When a request of this priority that finds no place should come back.
    pub fn retry_after(&self, priority: i32, now: Duration) -> Duration {
        self.drain.wait(self.before(priority), now)
    }

    /// Takes out the one that goes when there are too many, and says whether it was the last that came.
    /// `None` when only such are left as stay whatever comes.
    pub fn evict(&mut self) -> Option<(T, bool)> {
        let (_, lowest) = self.bands.range(..FIRST).next()?;
        let (_, ticket) = lowest.victim()?;
        let newest = self.places.last_key_value().is_some_and(|(last, _)| *last == ticket);
        self.take(ticket, false).map(|item| (item, newest))
    }

    /// Offers places to those whose turn it is, and what is left of them once more. `place` gets each one's
    /// [`patience`], of `most` that it may wait; `placed` is told of each that took a place.
    pub fn offer<R>(
        &mut self,
        (now, most): (Duration, Duration),
        mut place: impl FnMut(&T, Patience) -> Offer<R>,
        mut placed: impl FnMut(T, R),
    ) {
        let (order, aged) = self.order(now, most);
        let mut gone = vec![false; order.len()];
        for left in [false, true] {
            let (mut taken, mut no_room) = (vec![false; order.len()], false);
            for (at, ticket) in order.iter().enumerate() {
                let Some(entry) = self.entry(*ticket) else { continue };
                let waited = now.saturating_sub(entry.since);
                let most = entry.most.unwrap_or(most);
                match place(&entry.item, patience(waited, most, entry.overtaken, left)) {
                    Offer::Placed(result) => {
                        (gone[at], taken[at]) = (true, true);
                        self.drain.placed(now);
                        if !aged.is_empty() {
                            let was = aged.contains(ticket);
                            self.owed =
                                if was { self.owed.saturating_sub(AGED_EVERY) } else { self.owed + 1 };
                        }
                        if let Some(item) = self.take(*ticket, true) {
                            placed(item, result);
                        }
                    }
                    Offer::Waits => {}
                    Offer::NoRoom => {
                        no_room = true;
                        break;
                    }
                }
            }
            // Those before one that took a place were overtaken by it.
            let mut by = 0;
            for (at, ticket) in order.iter().enumerate().rev() {
                by += u32::from(taken[at]);
                if by > 0
                    && !gone[at]
                    && let Some(entry) = self.entry_mut(*ticket)
                {
                    entry.overtaken += by;
                }
            }
            if no_room {
                return;
            }
        }
    }

    fn entry(&self, ticket: u64) -> Option<&Entry<T>> {
        let place = self.places.get(&ticket)?;
        self.bands.get(&place.band)?.get(place.flow, ticket)
    }

    fn entry_mut(&mut self, ticket: u64) -> Option<&mut Entry<T>> {
        let place = self.places.get(&ticket)?;
        self.bands.get_mut(&place.band)?.get_mut(place.flow, ticket)
    }

    /// The tickets to offer places to, in order, and which of all have aged.
    fn order(&mut self, now: Duration, most: Duration) -> (Vec<u64>, BTreeSet<u64>) {
        let aged = self.aged(now, most);
        if aged.is_empty() {
            self.owed = 0;
        }
        let window = |order: &Vec<u64>, requests: &Band<Entry<T>>| {
            let some = requests.first(WINDOW.saturating_sub(order.len()));
            some.into_iter().map(|(_, ticket)| ticket)
        };
        let mut order = Vec::new();
        for (_, requests) in self.bands.range(FIRST..) {
            order.extend(window(&order, requests));
        }
        order.extend(aged.iter().copied().take((self.owed / AGED_EVERY) as usize));
        for (_, requests) in self.bands.range(..FIRST).rev() {
            order.extend(window(&order, requests));
        }
        let mut seen = BTreeSet::new();
        order.retain(|ticket| seen.insert(*ticket));
        if seen.len() < self.places.len() {
            let new = self.places.range(self.looked_at..).map(|(ticket, _)| *ticket).take(WINDOW);
            let behind = self.places.range(self.turn..).chain(self.places.range(..self.turn));
            let turns = behind.map(|(ticket, _)| *ticket).filter(|ticket| !seen.contains(ticket)).take(TURNS);
            let turns: Vec<u64> = turns.collect();
            self.turn = turns.last().map_or(0, |last| last + 1);
            let band = |ticket: &u64| self.places.get(ticket).map(|place| Reverse(place.band));
            let more = new.chain(turns).filter(|ticket| !seen.contains(ticket));
            let more: BTreeSet<_> = more.map(|ticket| (band(&ticket), ticket)).collect();
            order.extend(more.into_iter().map(|(_, ticket)| ticket));
        }
        self.looked_at = self.next;
        (order, aged)
    }

    /// Those of a lower priority than the highest that have waited for most of their time. None is among
    /// them whose priority is below zero: these are refused rather than held.
    fn aged(&self, now: Duration, most: Duration) -> BTreeSet<u64> {
        let Some(highest) = self.bands.range(..FIRST).next_back().map(|(band, _)| *band) else {
            return BTreeSet::new();
        };
        let old = most / AGED_PART * (AGED_PART - 1);
        self.places
            .iter()
            .take_while(|(_, place)| now.saturating_sub(place.since) >= old)
            .filter(|(_, place)| (0..highest).contains(&place.band))
            .map(|(ticket, _)| *ticket)
            .take(WINDOW)
            .collect()
    }
}

#[cfg(test)]
mod tests;
