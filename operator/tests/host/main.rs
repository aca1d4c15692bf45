//! The host backend with a stand-in for the binary: real processes, signals, ports and files.
#![allow(clippy::unwrap_used, clippy::assigning_clones)]

mod edits;
mod faults;
mod fetching;
mod refusals;
mod run;
