//! How much is left: sliding windows, calendar budgets and requests in flight, all or nothing.
//!
//! Pure: the time comes in as milliseconds since 1970, nothing here reads a clock or does I/O, and
//! all arithmetic is on whole numbers.
#![deny(clippy::disallowed_methods)]

pub mod book;
pub mod calendar;
pub mod counter;
pub mod policy;
pub mod resolve;
pub mod rule;
pub mod standing;
pub mod window;

pub use book::{Admitted, Book, BudgetReading, Refusal, Why};
pub use counter::{CounterKey, Owner};
pub use policy::compile;
pub use resolve::{Policy, Resolution, Selected, resolve};
pub use rule::{Amounts, Measure, Rule, Subject, exactness, in_force};
pub use standing::{Meter, Standing};
