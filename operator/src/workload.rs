//! What should be running, before it is written as Kubernetes objects.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use strata_kinds::ModelDeploymentSpec;
use strata_kinds::model_deployment::{Routing, RoutingPolicy};
use strata_wire::replicas::{Affinity, Objectives, Policy, Role};

/// A layer of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// What workflow is being executed?
    Platform,
    /// Who is allowed, and under what policy?
    Gateway,
    /// Where should this request run?
    Scheduler,
    /// How is it executed?
    Engine,
}

impl Component {
    /// The subcommand of `strata`, and the label `app.kubernetes.io/component`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Gateway => "gateway",
            Self::Scheduler => "scheduler",
            Self::Engine => "engine",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The object that a workload is owned by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The ModelDeployment's name.
    pub name: String,
    /// Its uid; none on a host.
    pub uid: Option<String>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// The replicas of a model.
    Engine(EngineWorkload),
    /// The scheduler of a namespace.
    Scheduler(SchedulerWorkload),
    /// The gateway; on Kubernetes it comes from the chart.
    Gateway,
    /// The platform; on Kubernetes it comes from the chart.
    Platform,
}

/// The replicas of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineWorkload {
    /// The namespace.
    pub namespace: String,
    /// The ModelDeployment.
    pub owner: Owner,
    /// What it asks for.
    pub spec: Box<ModelDeploymentSpec>,
    /// The value of its annotation `strata.dev/refresh`.
    pub refresh: Option<String>,
    /// Which part of a request its replicas do; `None` where they do all of it.
    pub role: Option<Role>,
}

impl EngineWorkload {
    /// Its name, and the prefix of its pods' names.
    pub fn name(&self) -> String {
        let suffix = if self.role == Some(Role::Prefill) { "-prefill" } else { "" };
        format!("{}-engine{suffix}", self.owner.name)
    }
}

/// The scheduler of a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerWorkload {
    /// The namespace.
    pub namespace: String,
    /// The models that it routes to.
    pub owners: Vec<Owner>,
}

impl Workload {
    /// Its layer.
    pub fn component(&self) -> Component {
        match self {
            Self::Engine(_) => Component::Engine,
            Self::Scheduler(_) => Component::Scheduler,
            Self::Gateway => Component::Gateway,
            Self::Platform => Component::Platform,
        }
    }

    /// Name of the ModelDeployment, of an engine.
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Engine(engine) => Some(&engine.owner.name),
            _ => None,
        }
    }

    /// Its name, and the prefix of its pods' names. Engines are named after their ModelDeployment, with
    /// a suffix that keeps them apart from anything else of that name.
    pub fn name(&self) -> String {
        match self {
            Self::Engine(engine) => engine.name(),
            Self::Scheduler(_) => "strata-scheduler".to_owned(),
            Self::Gateway => "strata-gateway".to_owned(),
            Self::Platform => "strata-platform".to_owned(),
        }
    }
}

/// How a model's replicas are to be picked, as schedulers name it.
pub fn policy(spec: &ModelDeploymentSpec) -> Option<Policy> {
    let asked = spec.routing.as_ref()?.policy?;
    Some(match asked {
        RoutingPolicy::PrefixAware => Policy::Prefix,
        RoutingPolicy::RoundRobin => Policy::RoundRobin,
        RoutingPolicy::WeightedRandom => Policy::WeightedRandom,
        RoutingPolicy::PowerOfTwo => Policy::PowerOfTwo,
        RoutingPolicy::LeastLoaded => Policy::LeastLoaded,
        RoutingPolicy::Random => Policy::Random,
        RoutingPolicy::SloAware => Policy::SloAware,
    })
}

/// What a model's requests aim at, as schedulers read it.
pub fn objectives(spec: &ModelDeploymentSpec) -> Objectives {
    let (ttft_ms, tpot_ms) = spec.routing.as_ref().map(Routing::objectives_ms).unwrap_or_default();
    Objectives { ttft_ms, tpot_ms }
}

/// What leans a model's requests toward some replicas, as schedulers read it.
pub fn affinity(spec: &ModelDeploymentSpec) -> Affinity {
    let routing = spec.routing.clone().unwrap_or_default();
    Affinity {
        session_header: routing.session_header,
        output_percentile: routing.output_percentile.map(|percent| percent.clamp(0, 99) as u8),
        hash_prefixes: routing.hash_prefixes,
    }
}

/// The scorers' weights that a model sets, by the names that the scheduler reads.
pub fn weights(spec: &ModelDeploymentSpec) -> BTreeMap<String, f64> {
    spec.routing.as_ref().map(Routing::weights).unwrap_or_default()
}
