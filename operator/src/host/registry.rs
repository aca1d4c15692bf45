//! What an API server would keep of the folder's objects: their age and generation, and the last
//! version of each that was accepted.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use strata_kinds::ModelDeployment;
use strata_kinds::manifest::Folder;
use strata_kinds::unbuilt::Place;

use crate::Mode;
use crate::plan::{Plan, World, plan};

/// The objects that are gone by, and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Registry {
    known: BTreeMap<(&'static str, String), Known>,
    accepted: BTreeMap<String, ModelDeployment>,
}

#[derive(Debug)]
struct Known {
    created: Timestamp,
    generation: i64,
    spec: Value,
}

/// A plan, and what stands in the way of the folder's latest content.
#[derive(Debug)]
pub(super) struct Planned {
    pub plan: Plan,
    pub problems: Vec<String>,
    /// Whether one of the problems is of a ModelDeployment.
    pub models_refused: bool,
}

impl Registry {
    /// Gives every object its age and generation, as of `now`.
    pub(super) fn stamp(&mut self, folder: &mut Folder, now: Timestamp) {
        for model in &mut folder.models {
            let spec = as_value(&model.spec);
            self.stamp_one("ModelDeployment", &mut model.metadata, spec, now);
        }
        for tenant in &mut folder.tenants {
            let spec = as_value(&tenant.spec);
            self.stamp_one("Tenant", &mut tenant.metadata, spec, now);
        }
        for policy in &mut folder.policies {
            let spec = as_value(&policy.spec);
            self.stamp_one("QuotaPolicy", &mut policy.metadata, spec, now);
        }
        let there: BTreeSet<(&str, String)> = folder
            .models
            .iter()
            .map(|m| ("ModelDeployment", m.name_any()))
            .chain(folder.tenants.iter().map(|t| ("Tenant", t.name_any())))
            .chain(folder.policies.iter().map(|p| ("QuotaPolicy", p.name_any())))
            .collect();
        self.known.retain(|(kind, name), _| there.contains(&(*kind, name.clone())));
    }

    fn stamp_one(
        &mut self,
        kind: &'static str,
        metadata: &mut kube::core::ObjectMeta,
        spec: Value,
        now: Timestamp,
    ) {
        let name = metadata.name.clone().unwrap_or_default();
        let known = self.known.entry((kind, name)).or_insert_with(|| Known {
            created: now,
            generation: 1,
            spec: spec.clone(),
        });
        if known.spec != spec {
            known.generation += 1;
            known.spec = spec;
        }
        metadata.creation_timestamp = Some(Time(known.created));
        metadata.generation = Some(known.generation);
    }

    /// Plans for a stamped folder. A ModelDeployment whose new version cannot be had goes on as it was.
    pub(super) fn plan(&mut self, folder: &Folder, mode: Mode) -> Planned {
        let secrets: BTreeMap<String, BTreeSet<String>> = folder
            .secrets
            .iter()
            .map(|s| (s.name_any(), s.data.iter().flatten().map(|(key, _)| key.clone()).collect()))
            .collect();
        let plan_with = |models: &[ModelDeployment]| {
            let world = World {
                models,
                tenants: &folder.tenants,
                policies: &folder.policies,
                secrets: Some(&secrets),
                namespace: strata_kinds::NAMESPACE,
            };
            plan(&world, Place::Host, mode)
        };
        let first = plan_with(&folder.models);
        let refused: Vec<String> = first
            .refused()
            .filter(|(key, ..)| key.kind == "ModelDeployment")
            .map(|(key, ..)| key.name.clone())
            .collect();
        let problems = first
            .refused()
            .map(|(key, _, message)| format!("{} {}: {message}", key.kind, key.name))
            .collect();
        let mut models = folder.models.clone();
        let mut kept = false;
        for model in &mut models {
            let name = model.name_any();
            if let Some(last) = self.accepted.get(&name).filter(|_| refused.contains(&name)) {
                *model = last.clone();
                kept = true;
            }
        }
        let plan = if kept { plan_with(&models) } else { first };
        let still_refused: BTreeSet<String> = plan.refused().map(|(key, ..)| key.name.clone()).collect();
        self.accepted = models
            .into_iter()
            .map(|m| (m.name_any(), m))
            .filter(|(name, _)| !still_refused.contains(name))
            .collect();
        Planned { plan, problems, models_refused: !refused.is_empty() }
    }
}

fn as_value<T: Serialize>(spec: &T) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use strata_kinds::manifest::from_texts;

    use super::*;
    use crate::workload::Workload;

    fn folder(specs: &[(&str, &str, i32)]) -> Folder {
        let texts = specs.iter().map(|(name, served, replicas)| {
            let text = format!(
                "apiVersion: strata.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {name}}}\nspec: {{model: {{name: {served}, uri: /m}}, replicas: {replicas}}}\n"
            );
            (format!("{name}.yaml"), text)
        });
        let folder = from_texts(texts.collect());
        assert!(folder.problems.is_empty(), "{:?}", folder.problems);
        folder
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_newcomer_does_not_take_a_name_away() {
        let mut registry = Registry::default();
        let mut first = folder(&[("zeta", "m", 1)]);
        registry.stamp(&mut first, at(1));
        assert!(registry.plan(&first, Mode::Production).problems.is_empty());
        let mut second = folder(&[("alpha", "m", 1), ("zeta", "m", 2)]);
        registry.stamp(&mut second, at(2));
        assert_eq!(second.models[1].metadata.generation, Some(2));
        let planned = registry.plan(&second, Mode::Production);
        assert!(planned.models_refused && planned.problems[0].starts_with("ModelDeployment alpha: "));
        let engines: Vec<_> =
            planned.plan.workloads.iter().filter(|w| matches!(w, Workload::Engine(_))).collect();
        assert_eq!((engines.len(), engines[0].name()), (1, "zeta-engine".to_owned()));
    }

    #[test]
    fn a_version_that_cannot_be_had_leaves_the_last_one() {
        let mut registry = Registry::default();
        let mut good = folder(&[("a", "m", 1)]);
        registry.stamp(&mut good, at(1));
        registry.plan(&good, Mode::Development);
        let mut bad = folder(&[("a", "m", 2)]);
        registry.stamp(&mut bad, at(2));
        for _ in 0..2 {
            let planned = registry.plan(&bad, Mode::Development);
            assert!(planned.problems[0].contains("--mode production"), "{:?}", planned.problems);
            let Some(Workload::Engine(engine)) = planned.plan.workloads.last() else { panic!("no engine") };
            assert_eq!(engine.spec.replicas, Some(1));
        }
    }
}
