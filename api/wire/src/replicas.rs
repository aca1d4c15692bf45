//! The replicas of a model, as the operator's host backend writes them for the scheduler, and as the
//! scheduler reports them on `GET /replicas`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The endpoints file: every model of one place and where its replicas listen. The host backend
/// replaces the file atomically; the scheduler reads it again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoints {
    /// By the name that requests ask for.
    pub models: BTreeMap<String, ModelEndpoints>,
}

/// One model's replicas and how to route among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelEndpoints {
    /// Replicas that should get traffic. One that is starting, draining or dead is not listed.
    pub replicas: Vec<Endpoint>,
    /// Weights of the scorers; absent ones take the defaults.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name: the pod's.
    pub name: String,
    /// Where it listens, such as `http://127.0.0.1:41001`.
    pub url: String,
}

/// What `GET /replicas` returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// By model.
    pub models: BTreeMap<String, Vec<ReplicaState>>,
}

/// A replica as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Whether it gets traffic now.
    pub ready: bool,
    /// Why it does not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Requests that this scheduler has sent it and that have not ended.
    pub in_flight: u64,
    /// Sequences that it runs, by its own metrics.
    pub running: f64,
    /// Sequences that wait there.
    pub waiting: f64,
    /// Share of its KV blocks in use.
    pub kv_usage: f64,
    /// Prompt tokens it looked up in its prefix cache since it started.
    pub prefix_queries: f64,
    /// Prompt tokens it found there.
    pub prefix_hits: f64,
    /// Requests that this scheduler has sent it.
    pub requests: u64,
}
