//! What comes from below the prefix cache, host memory, disk and other engines together, under vLLM's
//! names for its KV connectors.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

/// Prompt tokens looked up and found there.
#[derive(Debug)]
pub struct ExternalMetrics {
    queries: Counter,
    hits: Counter,
}

impl ExternalMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let queries = "Prompt tokens looked up in host memory, on disk and with other engines";
        Self {
            queries: super::counter(r, names::EXTERNAL_QUERIES, queries),
            hits: super::counter(r, names::EXTERNAL_HITS, "Prompt tokens found there"),
        }
    }

    /// Counts a prompt of which so many tokens were not in the prefix cache, and so many of these came.
    pub fn count(&self, queried: usize, came: usize) {
        self.queries.inc_by(queried as u64);
        self.hits.inc_by(came as u64);
    }
}
