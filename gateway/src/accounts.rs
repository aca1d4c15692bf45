//! Counters and ledger together: what is reserved is written before it counts for anything, and what
//! was used is written before the client has its last byte.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::directory::Directory;
use crate::identity::Opaque;
use crate::ledger::{Ledger, LedgerError, UsageRow};
use crate::quota::{Admitted, Amounts, Book, BudgetReading, CounterKey, Refusal, Subject};

/// The counters of one gateway.
#[derive(Debug)]
pub(crate) struct Accounts {
    book: Mutex<Book>,
    ledger: Arc<Ledger>,
    clock: Clock,
}

impl Accounts {
    /// Counters for a directory's rules, made from what the ledger says was used.
    pub(crate) fn open(
        ledger: Arc<Ledger>,
        directory: &Directory,
        clock: Clock,
    ) -> Result<Self, LedgerError> {
        let accounts = Self { book: Mutex::new(Book::new(Vec::new())), ledger, clock };
        accounts.apply(directory)?;
        Ok(accounts)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the counters from changing.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> MutexGuard<'_, Book> {
        self.book()
    }

    /// Makes the counters again for other rules, tiers or time zones, from the ledger: a changed limit
    /// counts what was used before the change. What is in flight stays reserved.
    ///
    /// Most of the ledger is read beside the traffic; only what was written meanwhile is read while
    /// requests wait.
    pub(crate) fn apply(&self, directory: &Directory) -> Result<(), LedgerError> {
        let now = self.clock.now_ms();
        let mut book = Book::new(directory.rules.clone());
        let horizon = book.horizon(&directory.zones(), now);
        let mut last = 0;
        last = self.replay(&mut book, directory, last, horizon, now)?;
        let mut current = self.book();
        self.replay(&mut book, directory, last, horizon, now)?;
        for (id, subject, amounts, at) in current.open() {
            // A call whose usage is written but not yet settled was replayed above.
            if !self.ledger.has(&uuid::Uuid::from_u128(id).to_string())? {
                book.adopt(id, &renew(subject, directory), amounts, at, now);
            }
        }
        *current = book;
        Ok(())
    }

    fn replay(
        &self,
        book: &mut Book,
        directory: &Directory,
        after: i64,
        horizon: i64,
        now: i64,
    ) -> Result<i64, LedgerError> {
        let mut last = after;
        for (number, row) in self.ledger.rows_after(after, horizon)? {
            last = number;
            if let Some(subject) = subject_of(&row, directory) {
                let used = Amounts {
                    requests: row.requests,
                    input: row.prompt_tokens,
                    output: row.completion_tokens,
                };
                book.replay(&subject, used, row.at, now);
            }
        }
        Ok(last)
    }

    /// Reserves, or says what is in the way.
    pub(crate) fn reserve(
        &self,
        id: u128,
        subject: &Subject,
        amounts: Amounts,
    ) -> Result<Admitted, Box<Refusal>> {
        let now = self.clock.now_ms();
        self.book().reserve(id, subject, amounts, now)
    }

    /// Settles at what was used; returns whether that is more than was reserved.
    pub(crate) fn settle(&self, id: u128, used: Amounts) -> bool {
        let now = self.clock.now_ms();
        self.book().settle(id, used, now)
    }

    /// Every budget of which anything is used in its current period.
    pub(crate) fn budgets(&self) -> HashMap<CounterKey, BudgetReading> {
        let now = self.clock.now_ms();
        self.book().budgets(now)
    }

    /// Takes a reservation back.
    pub(crate) fn release(&self, id: u128) {
        let now = self.clock.now_ms();
        self.book().release(id, now);
    }
}

fn renew(subject: &Subject, directory: &Directory) -> Subject {
    let mut subject = subject.clone();
    if let Some(tenant) = directory.tenant(&subject.tenant) {
        subject.tier = tenant.tier.clone();
        subject.zone = tenant.zone.clone();
    }
    subject
}

fn subject_of(row: &UsageRow, directory: &Directory) -> Option<Subject> {
    let tenant = directory.tenant(&row.tenant)?;
    Some(Subject {
        key: row.key_id.as_str().into(),
        user: row.user_hash.as_deref().map(Into::into),
        tenant: tenant.name.clone(),
        tier: tenant.tier.clone(),
        model: row.model.as_str().into(),
        zone: tenant.zone.clone(),
    })
}

/// Who asks, for the counters.
pub(crate) fn subject(
    directory_entry: &crate::directory::TenantEntry,
    key: &Arc<str>,
    model: &str,
    user: Option<&str>,
    opaque: &Opaque,
) -> Subject {
    Subject {
        key: key.clone(),
        user: user.map(|user| opaque.user(&directory_entry.name, user).into()),
        tenant: directory_entry.name.clone(),
        tier: directory_entry.tier.clone(),
        model: model.into(),
        zone: directory_entry.zone.clone(),
    }
}
