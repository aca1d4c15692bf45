//! What a router costs a request, apart from what the engines behind it cost.
//!
//! [`replicas`] are engines that compute nothing, [`load`] asks them through a router and tells how long
//! it took, [`decide`] is the scheduler's choice by itself. `run.py` beside this crate starts all of it
//! and puts every router between the same two ends.

pub mod decide;
pub mod load;
pub mod percentile;
pub mod prompt;
pub mod replicas;
