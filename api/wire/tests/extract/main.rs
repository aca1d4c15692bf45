//! The reader of bodies, beside a full parser.
#![allow(clippy::unwrap_used)]

mod bodies;
mod fuzz;
mod reference;
mod responses;
mod same;
