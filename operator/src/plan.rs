//! From objects to wanted workloads and a verdict on each object. Pure.

pub(crate) mod prefill;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use strata_kinds::unbuilt::{self, Place};
use strata_kinds::validate::FieldError;
use strata_kinds::{ModelDeployment, ModelDeploymentSpec, NAMESPACE, QuotaPolicy, Tenant};
use strata_wire::model_uri::ModelUri;
use strata_wire::replicas::Role;

pub use status::{ModelObservation, ObjectStatus, statuses};

use crate::Mode;
use crate::condition::Reason;
use crate::render::too_few_devices;
use crate::workload::{EngineWorkload, Owner, SchedulerWorkload, Workload};

/// Annotation of a ModelDeployment: with another value its pods are made anew, as this version of the
/// operator makes them.
pub const REFRESH_ANNOTATION: &str = "strata.dev/refresh";

/// The objects to plan for.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// ModelDeployments.
    pub models: &'a [ModelDeployment],
    /// Tenants.
    pub tenants: &'a [Tenant],
    /// QuotaPolicies.
    pub policies: &'a [QuotaPolicy],
    /// Names of the Secrets in Strata's namespace and of their entries; `None` where they cannot be
    /// listed.
    pub secrets: Option<&'a BTreeMap<String, BTreeSet<String>>>,
    /// Strata's own namespace, the only one where Tenants and QuotaPolicies are read.
    pub namespace: &'a str,
}

/// An object by kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is made of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in force.
    Accepted,
    /// It is left out.
    Refused {
        /// Why.
        reason: Reason,
        /// Why, and what to do.
        message: String,
    },
}

/// One object's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The object.
    pub key: ObjectKey,
    /// Its generation.
    pub generation: i64,
    /// What is made of it.
    pub verdict: Verdict,
}

/// What should be running.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The workloads, top layer first.
    pub workloads: Vec<Workload>,
    /// Every object, in the order of kinds, age and name.
    pub judged: Vec<Judged>,
}

/// Plans for the objects of a cluster or of a folder. The same objects give the same plan, whatever
/// their order.
pub fn plan(world: &World<'_>, place: Place, mode: Mode) -> Plan {
    let mut plan = Plan::default();
    let engines = judge_models(world.models, place, mode, &mut plan.judged);
    judge_tenants(world, mode, &mut plan.judged);
    judge_policies(world, mode, &mut plan.judged);
    if place == Place::Host {
        plan.workloads.push(Workload::Platform);
        if mode.has_gateway() {
            plan.workloads.push(Workload::Gateway);
        }
    }
    if mode.has_scheduler() {
        plan.workloads.extend(schedulers(&engines, place).into_iter().map(Workload::Scheduler));
    }
    plan.workloads.extend(engines.into_iter().map(Workload::Engine));
    plan
}

impl Plan {
    /// Objects that are left out, with the reason and the message.
    pub fn refused(&self) -> impl Iterator<Item = (&ObjectKey, Reason, &str)> {
        self.judged.iter().filter_map(|judged| match &judged.verdict {
            Verdict::Accepted => None,
            Verdict::Refused { reason, message } => Some((&judged.key, *reason, message.as_str())),
        })
    }
}

fn key<K: ResourceExt>(kind: &'static str, object: &K) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: object.namespace().unwrap_or_else(|| NAMESPACE.to_owned()),
        name: object.name_any(),
    }
}

/// Older objects first. Those of a folder have no age: there the name decides.
fn by_age<'a, K: ResourceExt + 'a>(
    kind: &'static str,
    objects: impl IntoIterator<Item = &'a K>,
) -> Vec<(ObjectKey, &'a K)> {
    let mut keyed: Vec<_> = objects.into_iter().map(|o| (key(kind, o), o)).collect();
    keyed.sort_by_cached_key(|(key, object)| (object.creation_timestamp().map(|time| time.0), key.clone()));
    keyed
}

fn not_built(errors: &[FieldError]) -> Option<Verdict> {
    let message = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    (!errors.is_empty()).then_some(Verdict::Refused { reason: Reason::NotBuilt, message })
}

fn refused(reason: Reason, message: String) -> Verdict {
    Verdict::Refused { reason, message }
}

/// The verdict on each of these models, which are all that can matter to each other, and the workloads
/// of the accepted ones.
pub(crate) fn judge_models<'a>(
    models: impl IntoIterator<Item = &'a ModelDeployment>,
    place: Place,
    mode: Mode,
    judged: &mut Vec<Judged>,
) -> Vec<EngineWorkload> {
    let mut engines: Vec<EngineWorkload> = Vec::new();
    let mut serves: BTreeMap<&str, ObjectKey> = BTreeMap::new();
    for (key, model) in by_age("ModelDeployment", models) {
        let spec = &model.spec;
        let uri = ModelUri::parse(&spec.model.uri, spec.model.revision.as_deref());
        let verdict = if let Some(verdict) = not_built(&unbuilt::model_deployment(spec, place)) {
            verdict
        } else if let (Place::Cluster, Err(error)) = (place, uri) {
            refused(Reason::Invalid, format!("`spec.model.uri`: {error}"))
        } else if let Some(message) = too_few_devices_of_any(spec).or_else(|| adapter_without_folder(spec)) {
            refused(Reason::Invalid, message)
        } else if let Some(message) = taken_name(spec, &serves) {
            refused(Reason::NameConflict, message)
        } else if mode == Mode::Development && spec.wanted_replicas() > 1 {
            refused(
                Reason::ModeLimit,
                format!(
                    "mode development has one replica a model, and `spec.replicas` is {}: set it to 1, or use --mode production",
                    spec.wanted_replicas()
                ),
            )
        } else if let (Mode::Development, Some(field)) = (mode, beyond_development(spec)) {
            refused(
                Reason::ModeLimit,
                format!(
                    "mode development has one replica a model and no scheduler, which `spec.{field}` needs: remove it, or use mode production"
                ),
            )
        } else if mode == Mode::Development && !engines.is_empty() {
            refused(
                Reason::ModeLimit,
                "mode development has one model: delete the others, or use --mode production".to_owned(),
            )
        } else {
            Verdict::Accepted
        };
        // One that is refused for its names holds the others of them: who is refused for those depends on
        // nobody else then, and schedulers decide alike.
        let holds =
            matches!(verdict, Verdict::Accepted | Verdict::Refused { reason: Reason::NameConflict, .. });
        if holds {
            for name in spec.served_names() {
                serves.entry(name).or_insert_with(|| key.clone());
            }
        }
        if verdict == Verdict::Accepted {
            engines.push(workload(model));
        }
        judged.push(Judged { key, generation: model.metadata.generation.unwrap_or(1), verdict });
    }
    engines
}

/// Which name an older model has already, of a model or an adapter.
fn taken_name(spec: &ModelDeploymentSpec, serves: &BTreeMap<&str, ObjectKey>) -> Option<String> {
    let (name, older) = spec.served_names().find_map(|name| Some((name, serves.get(name)?)))?;
    let this = if name == spec.model.name {
        "this one another `spec.model.name`"
    } else {
        "the adapter another name"
    };
    Some(format!(
        "ModelDeployment {}/{} serves `{name}` already: give {this}, or delete one",
        older.namespace, older.name
    ))
}

/// Which adapter's URI names no folder.
fn adapter_without_folder(spec: &ModelDeploymentSpec) -> Option<String> {
    spec.adapters.iter().enumerate().find_map(|(index, adapter)| {
        let said = match ModelUri::parse(&adapter.uri, None) {
            Err(error) => error.to_string(),
            Ok(uri) => format!(
                "names the file {}, and an adapter is a folder with adapter_config.json and its weights: name the folder",
                uri.file()?
            ),
        };
        Some(format!("`spec.adapters[{index}].uri`: {said}"))
    })
}

/// A field that needs a scheduler, or several replicas.
fn beyond_development(spec: &ModelDeploymentSpec) -> Option<&'static str> {
    let canary = spec.rollout.as_ref().is_some_and(|r| r.canary.is_some());
    let prefill = spec.prefill.as_ref().map(|_| "prefill");
    spec.autoscaling.as_ref().map(|_| "autoscaling").or(canary.then_some("rollout.canary")).or(prefill)
}

/// Why a replica could not have its devices, of those that answer or of those that compute prompts.
fn too_few_devices_of_any(spec: &ModelDeploymentSpec) -> Option<String> {
    let of_prefill = || too_few_devices(&prefill::spec(spec)?, "spec.prefill");
    too_few_devices(spec, "spec").or_else(of_prefill)
}

/// What a model asks to run, whatever the verdict on it. On a cluster a refused model keeps the children
/// that it has: an edit that is refused takes nothing down.
pub fn workload(model: &ModelDeployment) -> EngineWorkload {
    EngineWorkload {
        namespace: model.namespace().unwrap_or_else(|| NAMESPACE.to_owned()),
        owner: Owner { name: model.name_any(), uid: model.uid() },
        spec: Box::new(model.spec.clone()),
        refresh: model.annotations().get(REFRESH_ANNOTATION).cloned(),
        role: model.spec.prefill.is_some().then_some(Role::Decode),
    }
}

/// One scheduler for each namespace with models. A host has one namespace, and its scheduler runs
/// before the first model comes and after the last has gone, so that neither restarts the layers.
fn schedulers(engines: &[EngineWorkload], place: Place) -> Vec<SchedulerWorkload> {
    let mut by_namespace: BTreeMap<&str, SchedulerWorkload> = BTreeMap::new();
    let empty = |namespace: &str| SchedulerWorkload { namespace: namespace.to_owned(), owners: Vec::new() };
    if place == Place::Host {
        by_namespace.insert(NAMESPACE, empty(NAMESPACE));
    }
    for engine in engines {
        let scheduler = by_namespace.entry(&engine.namespace).or_insert_with(|| empty(&engine.namespace));
        scheduler.owners.push(engine.owner.clone());
    }
    by_namespace.into_values().collect()
}

/// Why tenants and policies have no effect here, if they have none.
fn without_effect(key: &ObjectKey, namespace: &str, mode: Mode) -> Option<Verdict> {
    if key.namespace != namespace {
        let message =
            format!("{} objects are read only from the namespace `{namespace}`: move it there", key.kind);
        return Some(refused(Reason::WrongNamespace, message));
    }
    (!mode.has_gateway()).then(|| {
        refused(
            Reason::NoGateway,
            format!(
                "mode {mode} has no gateway, which alone knows tenants and policies: use mode enterprise"
            ),
        )
    })
}

fn judge_tenants(world: &World<'_>, mode: Mode, judged: &mut Vec<Judged>) {
    for (key, tenant) in by_age("Tenant", world.tenants) {
        let verdict = without_effect(&key, world.namespace, mode)
            .or_else(|| missing_secret(tenant, world.secrets?))
            .unwrap_or(Verdict::Accepted);
        judged.push(Judged { key, generation: tenant.metadata.generation.unwrap_or(1), verdict });
    }
}

fn missing_secret(tenant: &Tenant, secrets: &BTreeMap<String, BTreeSet<String>>) -> Option<Verdict> {
    tenant.spec.api_keys.iter().enumerate().find_map(|(index, api_key)| {
        let name = &api_key.secret_ref.name;
        let field = format!("`spec.apiKeys[{index}].secretRef`");
        let message = match secrets.get(name) {
            None => format!(
                "{field} names Secret {name}, which does not exist: create it with the entries id and hash"
            ),
            Some(entries) => {
                let missing = ["id", "hash"].into_iter().find(|entry| !entries.contains(*entry))?;
                format!("{field} names Secret {name}, which has no entry `{missing}`: add it")
            }
        };
        Some(refused(Reason::SecretMissing, message))
    })
}

fn judge_policies(world: &World<'_>, mode: Mode, judged: &mut Vec<Judged>) {
    for (key, policy) in by_age("QuotaPolicy", world.policies) {
        let verdict = not_built(&unbuilt::quota_policy(&policy.spec))
            .or_else(|| without_effect(&key, world.namespace, mode))
            .unwrap_or(Verdict::Accepted);
        judged.push(Judged { key, generation: policy.metadata.generation.unwrap_or(1), verdict });
    }
}
