//! From verdicts and what was observed to conditions. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ObjectKey, Plan, Verdict};
use crate::condition::{Condition, Reason, Truth};
use crate::workload::Workload;

/// What was seen of a model's replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelObservation {
    /// Replicas that exist and are not on their way out.
    pub replicas: i32,
    /// Those of the current revision that are ready.
    pub ready: i32,
    /// Those of older revisions.
    pub outdated: i32,
    /// Ready replicas of the current revision that every scheduler sends requests to. `None` in a mode
    /// without a scheduler.
    pub routed: Option<i32>,
    /// What a replica that ended again and again said last.
    pub trouble: Option<String>,
    /// Hash of the current template.
    pub revision: Option<String>,
    /// Where the model is served.
    pub url: Option<String>,
}

/// What is said about an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The generation that this speaks of.
    pub observed_generation: i64,
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// Replicas that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Replicas of the current revision that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Labels of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Hash of its pods' template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl ObjectStatus {
    /// Whether its main condition holds.
    pub fn is_good(&self) -> bool {
        self.conditions.first().is_some_and(|c| c.status == Truth::True)
    }
}

/// The status of every object of a plan. Observations are by the ModelDeployment's namespace and name.
pub fn statuses(plan: &Plan, observed: &BTreeMap<(String, String), ModelObservation>) -> Vec<ObjectStatus> {
    plan.judged
        .iter()
        .map(|judged| {
            let key = &judged.key;
            let mut status = ObjectStatus {
                kind: key.kind.to_owned(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                observed_generation: judged.generation,
                conditions: Vec::new(),
                replicas: None,
                ready_replicas: None,
                selector: None,
                url: None,
                revision: None,
            };
            let condition = match &judged.verdict {
                Verdict::Refused { reason, message } => {
                    Condition::main(key.kind, Truth::False, *reason, message.clone())
                }
                Verdict::Accepted if key.kind == "ModelDeployment" => {
                    let seen = observed.get(&(key.namespace.clone(), key.name.clone()));
                    status.selector = Some(crate::render::selector(&key.name, false));
                    if let Some(seen) = seen {
                        status.replicas = Some(seen.replicas);
                        status.ready_replicas = Some(seen.ready);
                        status.url.clone_from(&seen.url);
                        status.revision.clone_from(&seen.revision);
                    }
                    model_condition(wanted(plan, key), seen)
                }
                Verdict::Accepted => Condition::main(key.kind, Truth::True, Reason::Accepted, accepted(key)),
            };
            status.conditions.push(condition);
            status
        })
        .collect()
}

fn accepted(key: &ObjectKey) -> &'static str {
    if key.kind == "QuotaPolicy" { "in force at the gateway" } else { "known to the gateway" }
}

fn wanted(plan: &Plan, key: &ObjectKey) -> i32 {
    plan.workloads
        .iter()
        .find_map(|workload| match workload {
            Workload::Engine(e) if e.namespace == key.namespace && e.owner.name == key.name => {
                Some(e.spec.wanted_replicas())
            }
            _ => None,
        })
        .unwrap_or(0)
}

fn model_condition(wanted: i32, seen: Option<&ModelObservation>) -> Condition {
    let kind = "ModelDeployment";
    let no = |reason, message: String| Condition::main(kind, Truth::False, reason, message);
    let Some(seen) = seen else {
        return Condition::main(kind, Truth::Unknown, Reason::Starting, "not looked at yet");
    };
    if let Some(trouble) = seen.trouble.as_ref().filter(|_| seen.ready < wanted) {
        return no(
            Reason::Failing,
            format!("{} of {wanted} replicas serve; one ends again and again: {trouble}", seen.ready),
        );
    }
    if seen.outdated > 0 {
        return no(Reason::Updating, format!("{} of {wanted} replicas are of the new revision", seen.ready));
    }
    if seen.ready < wanted || seen.replicas > wanted {
        return no(Reason::Starting, format!("{} of {wanted} replicas serve", seen.ready));
    }
    if wanted == 0 {
        return Condition::main(kind, Truth::True, Reason::ScaledToZero, "no replica is wanted");
    }
    match seen.routed {
        Some(routed) if routed < wanted => {
            no(Reason::NotRouted, format!("the scheduler sends requests to {routed} of {wanted} replicas"))
        }
        _ => Condition::main(
            kind,
            Truth::True,
            Reason::Serving,
            format!("{wanted} of {wanted} replicas serve"),
        ),
    }
}
