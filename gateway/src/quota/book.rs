//! All counters, and what is reserved in them.

use std::collections::HashMap;
use std::sync::Arc;

use super::calendar::Span;
use super::counter::{Counter, CounterKey, Owner, Room};
use super::rule::{Amounts, Measure, Rule, Subject, in_force};
use super::standing::{Meter, Standing};

/// Users of one tenant that have a counter of their own; the rest share one.
const USERS: usize = 10_000;
/// Reservations between two rounds of forgetting empty counters.
const SWEEP_EVERY: u32 = 1024;

/// Identifies a reservation: the request's minted id.
pub type ReservationId = u128;

/// The counters of a set of rules. One instance is the whole truth: reserving is atomic as long as the
/// caller holds it alone.
#[derive(Debug)]
pub struct Book {
    rules: Arc<[Rule]>,
    counters: HashMap<CounterKey, Counter>,
    users: HashMap<(Arc<str>, Arc<str>), usize>,
    open: HashMap<ReservationId, Open>,
    latest: i64,
    until_sweep: u32,
}

#[derive(Debug)]
struct Open {
    subject: Subject,
    amounts: Amounts,
    at: i64,
    charges: Vec<Charge>,
}

#[derive(Debug)]
struct Charge {
    key: CounterKey,
    slot: i64,
    amount: u64,
}

/// A request that was let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Where the caller stands now.
    pub standing: Standing,
    /// Policies that are not enforced and would have refused.
    pub would_refuse: Vec<Arc<str>>,
    /// Whether any rule counted the request at all.
    pub matched: bool,
}

/// A request that was not let through; nothing was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The policy whose limit is in the way; of several, the one that is in the way for longest.
    pub policy: Arc<str>,
    /// What it measures.
    pub measure: Measure,
    /// How much it allows.
    pub ceiling: u64,
    /// How much of that is left.
    pub remaining: u64,
    /// How much the request needs.
    pub wanted: u64,
    /// Until when.
    pub why: Why,
    /// Whether the request may be held until there is room: every limit in the way says so.
    pub may_wait: bool,
    /// Where the caller stands.
    pub standing: Standing,
}

/// How far a budget is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetReading {
    /// The current period.
    pub span: Span,
    /// Tokens counted as used, those that are only held included.
    pub used: u64,
    /// Tokens of these that are held for requests in flight.
    pub held: u64,
}

/// Why a request was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The window has room in this many milliseconds.
    Window(i64),
    /// Too many requests are in flight.
    InFlight,
    /// What is left of the budget is reserved for requests in flight, which as a rule use less.
    Held,
    /// The budget is spent; the next period begins in this many milliseconds.
    Budget(i64),
    /// The request alone is more than the limit.
    TooLarge,
}

impl Why {
    fn severity(self) -> (u8, i64) {
        match self {
            Self::InFlight | Self::Held => (0, 0),
            Self::Window(wait) => (1, wait),
            Self::Budget(wait) => (2, wait),
            Self::TooLarge => (3, 0),
        }
    }
}

impl Book {
    /// Empty counters for these rules.
    pub fn new(rules: impl Into<Arc<[Rule]>>) -> Self {
        Self {
            rules: rules.into(),
            counters: HashMap::new(),
            users: HashMap::new(),
            open: HashMap::new(),
            latest: i64::MIN,
            until_sweep: SWEEP_EVERY,
        }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Time as the counters see it: it never goes back, so that a clock that does can only make them
    /// stricter.
    fn tick(&mut self, now: i64) -> i64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn key(&self, rule: &Rule, subject: &Subject) -> CounterKey {
        let mut key = CounterKey::of(rule, subject);
        if let Owner::User(tenant, Some(_)) = &key.owner
            && !self.counters.contains_key(&key)
            && self.users.get(&(rule.policy.clone(), tenant.clone())).is_some_and(|n| *n >= USERS)
        {
            key.owner = Owner::OtherUsers(tenant.clone());
        }
        key
    }

    fn counter(&mut self, key: &CounterKey, subject: &Subject, now: i64) -> &mut Counter {
        if !self.counters.contains_key(key)
            && let Owner::User(tenant, _) = &key.owner
        {
            *self.users.entry((key.policy.clone(), tenant.clone())).or_default() += 1;
        }
        let counter =
            self.counters.entry(key.clone()).or_insert_with(|| Counter::new(key.measure, &subject.zone, now));
        counter.turn(now);
        counter
    }

    /// How much of what a budget counts as used is only reserved.
    fn held(&self, key: &CounterKey) -> u64 {
        let Some(counter) = self.counters.get(key) else { return 0 };
        let charges = self.open.values().flat_map(|open| &open.charges);
        charges
            .filter(|charge| charge.key == *key && counter.is_of_this_period(charge.slot))
            .fold(0, |sum, charge| sum.saturating_add(charge.amount))
    }

    /// Reserves `amounts` in every counter that counts for `subject`, or in none.
    pub fn reserve(
        &mut self,
        id: ReservationId,
        subject: &Subject,
        amounts: Amounts,
        now: i64,
    ) -> Result<Admitted, Box<Refusal>> {
        let now = self.tick(now);
        self.sweep_sometimes(now);
        let rules = self.rules.clone();
        let chosen = in_force(&rules, subject);
        let mut would_refuse = Vec::new();
        let mut refusal: Option<Refusal> = None;
        let mut may_wait = true;
        let mut charges = Vec::with_capacity(chosen.len());
        for i in &chosen {
            let rule = &rules[*i];
            let (key, amount) = (self.key(rule, subject), rule.measure.amount(&amounts));
            let counter = self.counter(&key, subject, now);
            let (room, used) = (counter.room(amount, rule.ceiling, now), counter.used());
            let slot = counter.slot(now);
            let why = match (room, rule.measure) {
                (Room::Fits, _) => None,
                (Room::In(wait), Measure::Budget(_)) => {
                    let spent = used.saturating_sub(self.held(&key));
                    let may_fit = spent.saturating_add(amount) <= rule.ceiling;
                    Some(if may_fit { Why::Held } else { Why::Budget(wait) })
                }
                (Room::In(wait), _) => Some(Why::Window(wait)),
                (Room::Later, _) => Some(Why::InFlight),
                (Room::Never, _) => Some(Why::TooLarge),
            };
            let remaining = rule.ceiling.saturating_sub(used);
            charges.push(Charge { key, slot, amount });
            match why {
                None => {}
                Some(_) if !rule.enforced => would_refuse.push(rule.policy.clone()),
                Some(why) => {
                    may_wait &= rule.waits;
                    if refusal.as_ref().is_none_or(|r| why.severity() > r.why.severity()) {
                        refusal = Some(Refusal {
                            policy: rule.policy.clone(),
                            measure: rule.measure,
                            ceiling: rule.ceiling,
                            remaining,
                            wanted: amount,
                            why,
                            may_wait: false,
                            standing: Standing::default(),
                        });
                    }
                }
            }
        }
        if let Some(mut refusal) = refusal {
            refusal.may_wait = may_wait;
            refusal.standing = self.standing(subject, now);
            return Err(Box::new(refusal));
        }
        for charge in &charges {
            self.counter(&charge.key, subject, now).add(charge.slot, charge.amount, now);
        }
        self.open.insert(id, Open { subject: subject.clone(), amounts, at: now, charges });
        Ok(Admitted { standing: self.standing(subject, now), would_refuse, matched: !chosen.is_empty() })
    }

    /// Replaces what was reserved by what was used, in the windows and periods of the reservation.
    /// Returns whether more was used than reserved. An unknown reservation changes nothing.
    pub fn settle(&mut self, id: ReservationId, used: Amounts, now: i64) -> bool {
        let now = self.tick(now);
        let Some(open) = self.open.remove(&id) else { return false };
        for charge in open.charges {
            let Some(counter) = self.counters.get_mut(&charge.key) else { continue };
            counter.turn(now);
            let amount = match charge.key.measure {
                Measure::InFlight => 0,
                measure => measure.amount(&used),
            };
            match charge.amount.checked_sub(amount) {
                Some(back) => counter.take_back(charge.slot, back),
                None => counter.add(charge.slot, amount - charge.amount, now),
            }
        }
        used.input > open.amounts.input || used.output > open.amounts.output
    }

    /// Takes a reservation back as if it had never been.
    pub fn release(&mut self, id: ReservationId, now: i64) {
        self.settle(id, Amounts::NONE, now);
    }

    /// The tightest windows of `subject`.
    pub fn standing(&mut self, subject: &Subject, now: i64) -> Standing {
        let now = self.tick(now);
        let rules = self.rules.clone();
        let mut standing = Standing::default();
        for i in in_force(&rules, subject) {
            let rule = &rules[i];
            if !rule.enforced {
                continue;
            }
            let mut meter = Meter { limit: rule.ceiling, remaining: rule.ceiling, reset_ms: 0 };
            if let Some(counter) = self.counters.get_mut(&self.key(rule, subject)) {
                counter.turn(now);
                meter.remaining = rule.ceiling.saturating_sub(counter.used());
                meter.reset_ms = counter.reset(now);
            }
            standing.consider(rule.measure, meter);
        }
        standing
    }

    /// Charges what was used at an earlier time, refusing nothing: to make the counters again from the
    /// ledger.
    pub fn replay(&mut self, subject: &Subject, used: Amounts, at: i64, now: i64) {
        let now = self.tick(now);
        let rules = self.rules.clone();
        for i in in_force(&rules, subject) {
            if rules[i].measure == Measure::InFlight {
                continue;
            }
            let (key, amount) = (self.key(&rules[i], subject), rules[i].measure.amount(&used));
            let counter = self.counter(&key, subject, now);
            let slot = counter.slot(at);
            counter.add(slot, amount, now);
        }
    }

    /// The reservations that are open: id, subject, what was reserved, and when.
    pub fn open(&self) -> impl Iterator<Item = (ReservationId, &Subject, Amounts, i64)> {
        self.open.iter().map(|(id, open)| (*id, &open.subject, open.amounts, open.at))
    }

    /// Takes over a reservation that was made under other rules, refusing nothing.
    pub fn adopt(&mut self, id: ReservationId, subject: &Subject, amounts: Amounts, at: i64, now: i64) {
        let now = self.tick(now);
        let rules = self.rules.clone();
        let mut charges = Vec::new();
        for i in in_force(&rules, subject) {
            let (key, amount) = (self.key(&rules[i], subject), rules[i].measure.amount(&amounts));
            let counter = self.counter(&key, subject, now);
            let slot = counter.slot(at);
            counter.add(slot, amount, now);
            charges.push(Charge { key, slot, amount });
        }
        self.open.insert(id, Open { subject: subject.clone(), amounts, at, charges });
    }

    /// How far back the counters look from `now`: what was used before matters to none of them.
    pub fn horizon(&self, zones: &[jiff::tz::TimeZone], now: i64) -> i64 {
        let back = |rule: &Rule| match rule.measure {
            // Two lengths: a charge is held a little longer than its window.
            Measure::Window { length_ms, .. } => {
                now.saturating_sub(i64::try_from(length_ms).unwrap_or(i64::MAX / 2).saturating_mul(2))
            }
            Measure::Budget(period) => {
                zones.iter().map(|zone| super::calendar::span(period, zone, now).start).min().unwrap_or(now)
            }
            Measure::InFlight => now,
        };
        self.rules.iter().map(back).min().unwrap_or(now)
    }

    /// Every budget of which anything is used in its current period.
    pub fn budgets(&mut self, now: i64) -> HashMap<CounterKey, BudgetReading> {
        let now = self.tick(now);
        let mut readings = HashMap::new();
        for (key, counter) in &mut self.counters {
            counter.turn(now);
            if let (Counter::Budget(budget), true) = (&*counter, counter.used() > 0) {
                readings.insert(
                    key.clone(),
                    BudgetReading { span: budget.span(), used: counter.used(), held: 0 },
                );
            }
        }
        for charge in self.open.values().flat_map(|open| &open.charges) {
            if let Some(reading) = readings.get_mut(&charge.key)
                && self.counters.get(&charge.key).is_some_and(|c| c.is_of_this_period(charge.slot))
            {
                reading.held = reading.held.saturating_add(charge.amount);
            }
        }
        readings
    }

    fn sweep_sometimes(&mut self, now: i64) {
        self.until_sweep -= 1;
        if self.until_sweep > 0 {
            return;
        }
        self.until_sweep = SWEEP_EVERY;
        self.counters.retain(|_, counter| {
            counter.turn(now);
            !counter.is_empty()
        });
        self.users.clear();
        for key in self.counters.keys() {
            if let Owner::User(tenant, _) = &key.owner {
                *self.users.entry((key.policy.clone(), tenant.clone())).or_default() += 1;
            }
        }
    }

    /// Counters held.
    pub fn counters(&self) -> usize {
        self.counters.len()
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
