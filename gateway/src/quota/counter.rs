//! One counter, and whose it is.

use std::sync::Arc;

use jiff::tz::TimeZone;
use strata_kinds::quota_policy::{LimitScope, Per, Period};

use super::calendar::{Span, span};
use super::rule::{Measure, Rule, Subject};
use super::window::Window;

/// Whose counter it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// One key.
    Key(Arc<str>),
    /// One user of a tenant; requests that name none share one.
    User(Arc<str>, Option<Arc<str>>),
    /// All users of a tenant for whom there was no room of their own.
    OtherUsers(Arc<str>),
    /// One tenant.
    Tenant(Arc<str>),
    /// All tenants of a tier.
    Tier(Arc<str>),
    /// Everyone.
    All,
}

/// What names a counter. It holds nothing that an edit of a policy's ceiling or selector changes, so
/// that counters survive such edits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CounterKey {
    /// The policy.
    pub policy: Arc<str>,
    /// What is measured.
    pub measure: Measure,
    /// Whose it is.
    pub owner: Owner,
    /// The model, where each has its own.
    pub model: Option<Arc<str>>,
}

impl CounterKey {
    /// The counter that `rule` uses for `subject`.
    pub fn of(rule: &Rule, subject: &Subject) -> Self {
        let tenant = subject.tenant.clone();
        let (owner, each) = match rule.measure {
            Measure::Window { per, scope, .. } => (
                match per {
                    Per::Key => Owner::Key(subject.key.clone()),
                    Per::User => Owner::User(tenant, subject.user.clone()),
                    Per::Tenant => Owner::Tenant(tenant),
                    Per::Tier => Owner::Tier(subject.tier.clone()),
                    Per::All => Owner::All,
                },
                scope == LimitScope::EachModel,
            ),
            Measure::Budget(_) | Measure::InFlight => (Owner::Tenant(tenant), false),
        };
        let model = each.then(|| subject.model.clone());
        Self { policy: rule.policy.clone(), measure: rule.measure, owner, model }
    }
}

/// What was used in the current period, and in the one before for charges that are settled late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    period: Period,
    zone: TimeZone,
    span: Span,
    used: u64,
    before: Option<(Span, u64)>,
}

impl Budget {
    /// The current period.
    pub fn span(&self) -> Span {
        self.span
    }

    fn turn(&mut self, now: i64) {
        if now >= self.span.end {
            let next = span(self.period, &self.zone, now);
            self.before = Some((self.span, self.used));
            (self.span, self.used) = (next, 0);
        }
    }

    fn cell(&mut self, at: i64) -> Option<&mut u64> {
        let within = |span: &Span| span.start <= at && at < span.end;
        if within(&self.span) {
            return Some(&mut self.used);
        }
        self.before.as_mut().filter(|(span, _)| within(span)).map(|(_, used)| used)
    }
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A sliding window.
    Window(Window),
    /// A calendar budget.
    Budget(Budget),
    /// Requests in flight.
    InFlight(u64),
}

/// Whether an amount fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Fits,
    /// It will, in this many milliseconds.
    In(i64),
    /// It will when something else ends, nobody knows when.
    Later,
    /// It never will: it is more than the ceiling.
    Never,
}

impl Counter {
    /// An empty counter for this measure, at `now`.
    pub fn new(measure: Measure, zone: &TimeZone, now: i64) -> Self {
        match measure {
            Measure::Window { length_ms, .. } => Self::Window(Window::new(length_ms)),
            Measure::Budget(period) => Self::Budget(Budget {
                period,
                zone: zone.clone(),
                span: span(period, zone, now),
                used: 0,
                before: None,
            }),
            Measure::InFlight => Self::InFlight(0),
        }
    }

    /// Lets time pass.
    pub fn turn(&mut self, now: i64) {
        match self {
            Self::Window(window) => window.expire(now),
            Self::Budget(budget) => budget.turn(now),
            Self::InFlight(_) => {}
        }
    }

    /// Where a charge at `at` goes: the slot under which it is settled later.
    pub fn slot(&self, at: i64) -> i64 {
        match self {
            Self::Window(window) => window.slot(at),
            Self::Budget(_) | Self::InFlight(_) => at,
        }
    }

    /// How much is used.
    pub fn used(&self) -> u64 {
        match self {
            Self::Window(window) => window.used(),
            Self::Budget(budget) => budget.used,
            Self::InFlight(n) => *n,
        }
    }

    /// Whether `amount` fits under `ceiling`.
    pub fn room(&self, amount: u64, ceiling: u64, now: i64) -> Room {
        if amount > ceiling {
            return Room::Never;
        }
        if self.used().saturating_add(amount) <= ceiling || amount == 0 {
            return Room::Fits;
        }
        match self {
            Self::Window(window) => window.wait(amount, ceiling, now).map_or(Room::Never, Room::In),
            Self::Budget(budget) => Room::In(budget.span.end - now),
            Self::InFlight(_) => Room::Later,
        }
    }

    /// Adds a charge.
    pub fn add(&mut self, slot: i64, amount: u64, now: i64) {
        match self {
            Self::Window(window) => window.add(slot, amount, now),
            Self::Budget(budget) => {
                if let Some(used) = budget.cell(slot) {
                    *used = used.saturating_add(amount);
                }
            }
            Self::InFlight(n) => *n = n.saturating_add(amount),
        }
    }

    /// Takes back part of a charge.
    pub fn take_back(&mut self, slot: i64, amount: u64) {
        match self {
            Self::Window(window) => window.take_back(slot, amount),
            Self::Budget(budget) => {
                if let Some(used) = budget.cell(slot) {
                    *used = used.saturating_sub(amount);
                }
            }
            Self::InFlight(n) => *n = n.saturating_sub(amount),
        }
    }

    /// Whether a charge of this slot is in the present period; of a budget only.
    pub fn is_of_this_period(&self, slot: i64) -> bool {
        matches!(self, Self::Budget(budget) if budget.span.start <= slot && slot < budget.span.end)
    }

    /// Milliseconds until the counter is whole again if nothing else is charged.
    pub fn reset(&self, now: i64) -> i64 {
        match self {
            Self::Window(window) => window.reset(now),
            Self::Budget(budget) if budget.used > 0 => budget.span.end - now,
            Self::Budget(_) | Self::InFlight(_) => 0,
        }
    }

    /// Whether forgetting it changes nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Window(window) => window.is_empty(),
            Self::Budget(budget) => budget.used == 0 && budget.before.is_none_or(|(_, used)| used == 0),
            Self::InFlight(n) => *n == 0,
        }
    }
}
