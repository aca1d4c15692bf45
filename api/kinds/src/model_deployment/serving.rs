//! How requests reach the replicas, how many there are, and how a change reaches them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cel;
use crate::quantity::duration;

/// Bounds and targets of the number of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rules(&[
    ("self.min <= self.max", "`min` must not be larger than `max`"),
    ("!has(self.sleepAfter) || self.min == 0", "`sleepAfter` is for models that may sleep: set `min` to 0, or remove it"),
])))]
pub struct Autoscaling {
    /// The fewest replicas. 0 lets the model go to sleep.
    #[schemars(range(min = 0, max = 10000))]
    pub min: i32,
    /// The most replicas.
    #[schemars(range(min = 1, max = 10000))]
    pub max: i32,
    /// KV-cache use that is aimed at, in percent. 80 when neither this nor `targetWaiting` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_kv_usage: Option<i32>,
    /// Waiting requests a replica that are aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub target_waiting: Option<i32>,
    /// How long a model is idle before it goes to sleep, with `min: 0`. 15 minutes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub sleep_after: Option<String>,
}

/// How requests are spread over the replicas.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// How a replica is picked. PrefixAware when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RoutingPolicy>,
    /// How soon tokens should come. SloAware goes by both, the latency weight by the second. A second and
    /// 100 ms when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<RoutingObjectives>,
    /// What counts how much, for policies that go by prefix or load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// The header that names a request's session, in lower case: a session's requests go to one replica while
    /// that has room. `x-session-id` when absent. Behind Strata's gateway there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = cel::header()))]
    pub session_header: Option<String>,
    /// How long an answer is expected to be: so many percent of the model's answers were no longer. A replica
    /// with short answers counts as less busy than one with as many long ones. 75 when absent; with 0 all
    /// answers count alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 99))]
    pub output_percentile: Option<i32>,
    /// Whether the beginning of a prompt decides between replicas that seem alike, so that all schedulers
    /// send it to the same one. Only where no replica tells what it has cached. True when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_prefixes: Option<bool>,
}

impl Routing {
    /// The scorers' weights that are set, by the names that schedulers read.
    pub fn weights(&self) -> BTreeMap<String, f64> {
        let set = self.weights.clone().unwrap_or_default();
        [
            ("prefix", set.prefix),
            ("queue", set.queue),
            ("decode", set.decode),
            ("latency", set.latency),
            ("session", set.session),
            ("adapter", set.adapter),
        ]
        .into_iter()
        .filter_map(|(name, weight)| Some((name.to_owned(), weight?)))
        .collect()
    }

    /// The objectives that are set, in milliseconds: of the first token, and of each after another.
    pub fn objectives_ms(&self) -> (Option<u64>, Option<u64>) {
        let set = self.objectives.as_ref();
        let ms = |text: Option<&String>| Some(duration(text?)?.as_millis() as u64);
        (ms(set.and_then(|set| set.ttft.as_ref())), ms(set.and_then(|set| set.tpot.as_ref())))
    }
}

/// How a replica is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RoutingPolicy {
    /// By cached prefix and load.
    #[default]
    PrefixAware,
    /// Each in turn.
    RoundRobin,
    /// By cached prefix and load, and by chance: the better, the likelier.
    WeightedRandom,
    /// The better of two that chance takes, by cached prefix and load.
    PowerOfTwo,
    /// By load alone.
    LeastLoaded,
    /// By chance alone.
    Random,
    /// By what each is expected to take for the request, as learnt from others: how far that stays below
    /// the objectives.
    SloAware,
}

/// How soon tokens should come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoutingObjectives {
    /// Time to the first token, such as `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub ttft: Option<String>,
    /// Time per output token, such as `50ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub tpot: Option<String>,
}

/// What counts how much: prefix, session and adapter for a replica, the others against it. An absent one
/// keeps its default: prefix 50, queue 20, decode 15, latency 10, session 100, adapter 20.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Weights {
    /// The part of the prompt that the replica has in its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub prefix: Option<f64>,
    /// Prompts that wait there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub queue: Option<f64>,
    /// Sequences that it generates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub decode: Option<f64>,
    /// How slow its tokens have been lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub latency: Option<f64>,
    /// That the request's session belongs there. With 0 sessions make no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub session: Option<f64>,
    /// The LoRA adapter that is asked for: running there, or room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub adapter: Option<f64>,
}

/// How a change reaches the replicas.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "!(has(self.maxSurge) && has(self.maxUnavailable)) || !((self.maxSurge == 0 || self.maxSurge == '0%') && (self.maxUnavailable == 0 || self.maxUnavailable == '0%'))",
    "`maxSurge` and `maxUnavailable` must not both be 0: no replica could ever be replaced",
)))]
pub struct Rollout {
    /// Replicas above the wanted number while it goes on, as a number or in percent. 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = cel::share()))]
    pub max_surge: Option<IntOrString>,
    /// Replicas below the wanted number while it goes on, as a number or in percent. When absent: 0, so
    /// that a revision that never serves takes no replica down; 1 with `maxSurge: 0`, and while there is
    /// no spare GPU for a replica above the wanted number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = cel::share()))]
    pub max_unavailable: Option<IntOrString>,
    /// Runs the new revision beside the old one, which keeps its replicas, and sends it a part of the
    /// requests. Remove it, or set the weight to 100, to go on to the new revision; change the spec back
    /// to give it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// A part of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Canary {
    /// In percent. It has the same share of the replicas, rounded up, and at least one; 0 runs that one
    /// without requests.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
}

/// Who may use the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Access {
    /// Tiers of tenants, as names with `*` for any run of characters. All when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub tiers: Vec<String>,
}
