//! What the engine says of its cache while it runs: to Strata's scheduler as byte-block hashes
//! ([`strata_wire::engine_events`]), and, where it is asked for, to others in vLLM's form.

mod claims;
mod directory;
mod log;
mod vllm;

pub use claims::{Claim, claims};
pub use directory::Directory;
pub use log::{EventLog, Reader};
pub(crate) use vllm::KvFeed;
pub use vllm::{KvEventsConfig, KvPublisher, PublishError, Publisher};
