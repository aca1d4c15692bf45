//! How much is left: sliding windows, calendar budgets and requests in flight, all or nothing.
//!
//! Pure: the time comes in as milliseconds since 1970, nothing here reads a clock or does I/O, and
//! all arithmetic is on whole numbers.
#![deny(clippy::disallowed_methods)]

pub mod book;
pub mod calendar;
pub mod counter;
pub mod policy;
pub mod rule;
pub mod standing;
pub mod window;

pub use book::{Admitted, Book, Refusal, Why};
pub use policy::compile;
pub use rule::{Amounts, Measure, Rule, Subject};
pub use standing::{Meter, Standing};
