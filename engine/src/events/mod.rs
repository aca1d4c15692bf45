//! What the engine says of its cache while it runs: to Strata's scheduler as byte-block hashes
//! ([`strata_wire::engine_events`]).

mod claims;
mod directory;
mod log;

pub use claims::{Claim, claims};
pub use directory::Directory;
pub use log::{EventLog, Reader};
