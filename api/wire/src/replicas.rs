//! The replicas of a model, as the operator's host backend writes them for the scheduler, and as the
//! scheduler reports them on `GET /replicas`.

use std::collections::BTreeMap;
use std::fmt;

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
    /// Replicas that should get traffic. One that is starting, draining or dead is not listed. A model
    /// without any is asleep or starts: its requests are held.
    pub replicas: Vec<Endpoint>,
    /// Weights of the scorers; absent ones take the defaults.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
    /// How a replica is picked. As the scheduler was started when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What its requests aim at. As the scheduler was started where absent.
    #[serde(default, skip_serializing_if = "Objectives::is_empty")]
    pub objectives: Objectives,
    /// Percent of the requests that go to replicas of [`Track::Canary`]; the others go to those of
    /// [`Track::Stable`]. When absent, tracks make no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_percent: Option<u8>,
    /// What leans requests toward some replicas, beside what these hold and do.
    #[serde(default, skip_serializing_if = "Affinity::is_empty")]
    pub affinity: Affinity,
}

/// What leans a model's requests toward some replicas, beside what these hold and do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// The header that names a request's session. [`crate::headers::SESSION_ID`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_header: Option<String>,
    /// The percentile of the lengths of the model's answers that is expected of one. 75 when absent; with 0
    /// nothing is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_percentile: Option<u8>,
    /// Whether replicas that seem alike are told apart by the prompt's beginning, where none tells what it
    /// holds. True when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_prefixes: Option<bool>,
}

impl Affinity {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How soon tokens should come, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objectives {
    /// The first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// Each after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<u64>,
}

impl Objectives {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.ttft_ms.is_none() && self.tpot_ms.is_none()
    }
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name: the pod's.
    pub name: String,
    /// Where it listens, such as `http://127.0.0.1:41001`.
    pub url: String,
    /// Whether it runs the new revision of a model whose change is tried out first.
    #[serde(default, skip_serializing_if = "Track::is_stable")]
    pub track: Track,
    /// What part of a request it does.
    #[serde(default, skip_serializing_if = "Role::is_decode")]
    pub role: Role,
    /// What it has made of a prompt is of use to replicas that say the same here, and to no others: those
    /// of another model or engine would read something else in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    /// Where it publishes what its KV cache holds, if it does so as vLLM does. A replica that has our own
    /// stream of events is followed by that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_events: Option<KvEvents>,
}

/// The ZeroMQ sockets of a vLLM that was started with `--kv-events-config`, as whoever follows it reaches
/// them: `tcp://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KvEvents {
    /// Its `endpoint`: what happens.
    pub publish: String,
    /// Its `replay_endpoint`: what has happened. Without it a message that is missed, or a connection that
    /// breaks, means to begin anew with nothing known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
}

impl Endpoint {
    /// A replica of the stable track that answers requests.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            track: Track::Stable,
            role: Role::Decode,
            handover: None,
            kv_events: None,
        }
    }
}

/// What part of a request a replica does. One of a model without prefill replicas does all of it, and
/// has the role of those that answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It answers: it generates, and computes the prompts that nobody has computed for it.
    #[default]
    Decode,
    /// It computes prompts and hands what it made of them to another. No client sees its answers.
    Prefill,
}

impl Role {
    /// Whether it is the one that a replica has when nothing is said.
    pub fn is_decode(&self) -> bool {
        *self == Self::Decode
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        })
    }
}

/// Which of a model's two sets of replicas one belongs to, while a change is tried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Track {
    /// What runs already.
    #[default]
    Stable,
    /// The new revision.
    Canary,
}

impl Track {
    /// Whether it is the one that a replica is on when nothing is said.
    pub fn is_stable(&self) -> bool {
        *self == Self::Stable
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Stable => Self::Canary,
            Self::Canary => Self::Stable,
        }
    }
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        })
    }
}

/// How to choose among the replicas that can take a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By score: cached prefix, queue, running sequences, latency.
    #[default]
    Prefix,
    /// Each in turn, whatever it holds: the base line of comparisons.
    RoundRobin,
    /// By weighted chance: the better the score, the likelier.
    WeightedRandom,
    /// The better score of two that chance takes.
    PowerOfTwo,
    /// By score without the cached prefix.
    LeastLoaded,
    /// By chance alone.
    Random,
    /// By how far what it is expected to take stays below the objectives.
    SloAware,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Prefix,
        Self::RoundRobin,
        Self::WeightedRandom,
        Self::PowerOfTwo,
        Self::LeastLoaded,
        Self::Random,
        Self::SloAware,
    ];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "prefix",
            Self::RoundRobin => "round-robin",
            Self::WeightedRandom => "weighted-random",
            Self::PowerOfTwo => "power-of-two",
            Self::LeastLoaded => "least-loaded",
            Self::Random => "random",
            Self::SloAware => "slo-aware",
        })
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|policy| policy.to_string() == text).ok_or_else(|| {
            let names = Self::ALL.map(|policy| policy.to_string()).join(", ");
            format!("`{text}` is no policy; use one of {names}")
        })
    }
}

/// What `GET /replicas` returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// By model.
    pub models: BTreeMap<String, Vec<ReplicaState>>,
    /// What is asked of each model, by model. Of this scheduler alone: several are added up, but for
    /// [`Demand::idle_s`], of which the least counts.
    #[serde(default)]
    pub demand: BTreeMap<String, Demand>,
}

/// What is asked of a model: by it, one that sleeps is woken and one that nobody asks is put to sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// Requests that wait because no replica can take them. They count while a replica starts, too.
    pub held: u64,
    /// Requests that a replica has and that have not ended.
    pub in_flight: u64,
    /// Seconds since the last request ended, or since the scheduler learnt of the model; 0 while any is
    /// held or in flight.
    pub idle_s: f64,
}

/// A replica as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Which revision it runs, while a change is tried out.
    #[serde(default, skip_serializing_if = "Track::is_stable")]
    pub track: Track,
    /// What part of a request it does.
    #[serde(default, skip_serializing_if = "Role::is_decode")]
    pub role: Role,
    /// Whether it gets traffic now.
    pub ready: bool,
    /// Why it does not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it is passed over because its answers failed, while others can take the requests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broken: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_tracks_is_read_and_written_as_before() {
        let text = r#"{"models":{"m":{"replicas":[{"name":"m-0","url":"http://a:1"}],"weights":{}}}}"#;
        let read: Endpoints = serde_json::from_str(text).unwrap();
        assert_eq!(read.models["m"].replicas, [Endpoint::new("m-0", "http://a:1")]);
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn tracks_and_policies_are_written_by_name() {
        let text = r#"{"models":{"m":{"replicas":[{"name":"m-1","url":"http://a:2","track":"canary"}],"weights":{},"policy":"round-robin","canary_percent":20}}}"#;
        let read: Endpoints = serde_json::from_str(text).unwrap();
        assert_eq!(read.models["m"].replicas[0].track, Track::Canary);
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn a_policy_has_one_name() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{policy}\""));
        }
        let wrong = "luck".parse::<Policy>().unwrap_err();
        assert_eq!(
            wrong,
            "`luck` is no policy; use one of prefix, round-robin, weighted-random, power-of-two, least-loaded, random, slo-aware"
        );
    }

    #[test]
    fn roles_are_written_by_name_where_they_matter() {
        let text = r#"{"models":{"m":{"replicas":[{"name":"m-1","url":"http://a:2","role":"prefill"}],"weights":{}}}}"#;
        let read: Endpoints = serde_json::from_str(text).unwrap();
        assert_eq!(read.models["m"].replicas[0].role, Role::Prefill);
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn a_report_of_an_older_scheduler_has_no_demand() {
        let report: ReplicaReport = serde_json::from_str(r#"{"models":{"m":[]}}"#).unwrap();
        assert!(report.demand.is_empty());
    }
}
