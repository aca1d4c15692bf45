//! The same blocks as vLLM tells of them: ZeroMQ, MessagePack, and **the prompts' token ids** and
//! their cache salts. Whoever can read this socket can read what was asked, so it is off until somebody
//! turns it on; our own stream ([`super::EventLog`]) carries hashes alone.

mod outlet;
mod payload;
mod publisher;

use serde::{Deserialize, Serialize};

pub use publisher::{KvPublisher, PublishError};

pub(crate) use publisher::KvFeed;

/// What `--kv-events-config` says, in vLLM's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvEventsConfig {
    /// Whether anything is published.
    pub enable_kv_cache_events: bool,
    /// `zmq`, or `null` for nothing. Without one, `zmq` where events are enabled.
    pub publisher: Option<Publisher>,
    /// Where to publish: bound where it holds a `*` or `::`, else connected to, as often as it takes.
    pub endpoint: String,
    /// Where past batches can be asked for.
    pub replay_endpoint: Option<String>,
    /// Batches that can be asked for.
    pub buffer_steps: usize,
    /// Batches that wait for a slow subscriber. Taken and not used: here it is always 100,000.
    pub hwm: usize,
    /// Batches that wait to be published; what is more is lost, and leaves a gap in the numbers.
    pub max_queue_size: usize,
    /// What stands before each message, for subscribers to choose by.
    pub topic: String,
}

/// Ways to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publisher {
    /// None.
    Null,
    /// A PUB socket.
    Zmq,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            enable_kv_cache_events: false,
            publisher: None,
            endpoint: "tcp://*:5557".into(),
            replay_endpoint: None,
            buffer_steps: 10_000,
            hwm: 100_000,
            max_queue_size: 100_000,
            topic: String::new(),
        }
    }
}

impl KvEventsConfig {
    /// Whether anything is to be published.
    pub fn publishes(&self) -> bool {
        self.enable_kv_cache_events && self.publisher != Some(Publisher::Null)
    }
}
