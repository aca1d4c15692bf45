//! What a vLLM publishes of its KV cache (`--kv-events-config`), told to the index of this scheduler.
//!
//! A vLLM tells blocks of token ids, the index knows byte blocks of the canonical text. What stands between
//! them is how the vLLM renders and tokenises a prompt, and nobody knows that better than itself: it is asked
//! by its route `/tokenize`, when it has begun to answer the prompt and once for each that is new
//! ([`prompt`]). With the tokens it is known which token blocks the prompt's byte blocks end in, whoever
//! computes them and when ([`ledger`], [`tree`]). Batches arrive by ZeroMQ ([`sockets`], [`batch`]) and count
//! in their order ([`order`]). As long as anything of this is missing, what was routed counts
//! ([`crate::pick::PrefixIndex`]), less what is told to be gone. See decision 0016.

pub mod ask;
pub mod batch;
pub mod follow;
pub mod ledger;
pub mod notes;
pub mod order;
pub mod prompt;
pub mod sockets;
pub mod tree;

use strata_wire::replicas::KvEvents;

pub use follow::Following;
pub use notes::{Note, Notes};
pub use prompt::Sent;

/// Checks where a vLLM publishes: what can be reached of what it can be told.
pub fn check(events: &KvEvents) -> Result<(), String> {
    let wrong = |name: &str, address: &str| {
        Err(format!(
            "kv_events: `{name}` is `{address}`; write tcp://HOST:PORT, as this scheduler reaches it"
        ))
    };
    for (name, address) in [("publish", Some(&events.publish)), ("replay", events.replay.as_ref())] {
        let Some(address) = address else { continue };
        let Some((host, port)) = address.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')) else {
            return wrong(name, address);
        };
        if host.is_empty() || host.contains(['*', '/']) || port.parse::<u16>().map_or(true, |port| port == 0)
        {
            return wrong(name, address);
        }
    }
    Ok(())
}
