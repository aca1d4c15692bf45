//! The host backend with a stand-in for the binary: real processes, signals, ports and files.

mod edits;
mod faults;
mod refusals;
mod run;
