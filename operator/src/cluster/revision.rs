//! The templates that pods are made of, each recorded in a ControllerRevision.
//!
//! A template is rendered once for its inputs: what the user wrote, and the annotation that asks for a
//! new one. As long as they are the same the recorded template is applied as it is, so that a new
//! operator, which may render otherwise, restarts no pod.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};
use strata_kinds::model_deployment::Runtime;

use super::{ClusterSite, Trust};
use crate::workload::EngineWorkload;

/// Revisions that are kept beside those that pods run.
const HISTORY_LIMIT: usize = 10;

/// A recorded template.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Revision {
    /// Its hash, in ten hexadecimal digits: the pods' label.
    pub hash: String,
    /// Hash of the inputs.
    pub inputs: String,
    /// Its place in the order of revisions.
    pub number: i64,
    /// The pod template, without the labels of revision and track.
    pub template: Value,
}

/// The recorded templates of a workload, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    revisions: Vec<Revision>,
}

/// A revision to run, and whether it must be recorded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settled {
    pub revision: Revision,
    pub record: bool,
}

impl History {
    /// Reads what is recorded for a workload; what cannot be read is nobody's.
    pub(super) fn of(workload: &str, recorded: &[Arc<ControllerRevision>]) -> Self {
        let mut revisions: Vec<Revision> = recorded
            .iter()
            .filter_map(|object| {
                let hash = object.metadata.name.as_deref()?.strip_prefix(workload)?.strip_prefix('-')?;
                // Another workload's, whose name goes on where this one's ends.
                if hash.contains('-') {
                    return None;
                }
                let data = &object.data.as_ref()?.0;
                Some(Revision {
                    hash: hash.to_owned(),
                    inputs: data.get("inputs")?.as_str()?.to_owned(),
                    number: object.revision,
                    template: data.get("template").filter(|t| t.is_object())?.clone(),
                })
            })
            .collect();
        revisions.sort_by(|a, b| (a.number, &a.hash).cmp(&(b.number, &b.hash)));
        Self { revisions }
    }

    /// The recorded revision with these inputs, if there is one.
    pub(super) fn with_inputs(&self, inputs: &str) -> Option<&Revision> {
        self.revisions.iter().rev().find(|r| r.inputs == inputs)
    }

    /// The recorded revision of this hash.
    pub(super) fn get(&self, hash: &str) -> Option<&Revision> {
        self.revisions.iter().find(|r| r.hash == hash)
    }

    /// The revision for these inputs: a recorded one, which becomes the newest again, or a new one.
    pub(super) fn settle(&self, inputs: &str, render: impl FnOnce() -> PodTemplateSpec) -> Settled {
        let newest = self.revisions.last();
        let next = newest.map_or(1, |r| r.number.saturating_add(1));
        match self.with_inputs(inputs) {
            Some(found) if newest.is_some_and(|n| n.hash == found.hash) => {
                Settled { revision: found.clone(), record: false }
            }
            Some(found) => Settled { revision: Revision { number: next, ..found.clone() }, record: true },
            None => {
                let template = serde_json::to_value(render()).unwrap_or_default();
                let hash = digest(&json!([inputs, template]));
                let inputs = inputs.to_owned();
                Settled { revision: Revision { hash, inputs, number: next, template }, record: true }
            }
        }
    }

    /// Hashes of the recorded revisions to keep: those in use, and the newest.
    pub(super) fn keep(&self, in_use: &BTreeSet<&str>) -> Vec<&str> {
        let from = self.revisions.len().saturating_sub(HISTORY_LIMIT);
        self.revisions
            .iter()
            .enumerate()
            .filter(|(index, r)| *index >= from || in_use.contains(r.hash.as_str()))
            .map(|(_, r)| r.hash.as_str())
            .collect()
    }
}

impl Revision {
    /// The object that records it. `meta` is that of the workload's other children.
    pub(super) fn object(&self, workload: &str, meta: &ObjectMeta) -> ControllerRevision {
        ControllerRevision {
            metadata: ObjectMeta { name: Some(self.name(workload)), ..meta.clone() },
            data: Some(RawExtension(json!({ "inputs": self.inputs, "template": self.template }))),
            revision: self.number,
        }
    }

    /// The object's name.
    pub(super) fn name(&self, workload: &str) -> String {
        format!("{workload}-{}", self.hash)
    }

    /// The template with the labels that tell its pods from others.
    pub(super) fn labelled(&self, labels: &[(&str, &str)]) -> Value {
        let mut template = self.template.clone();
        // Another may have written the record: what is no template is left as it is, and refused later.
        let mut found = Some(&mut template);
        for inner in ["metadata", "labels"] {
            found = found.and_then(Value::as_object_mut).map(|o| o.entry(inner).or_insert_with(|| json!({})));
        }
        if let Some(found) = found.and_then(Value::as_object_mut) {
            found.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
        }
        template
    }
}

/// Hash of what an engine's template is made for: what a user wrote, and how the layers know each other.
pub(super) fn engine_inputs(engine: &EngineWorkload, site: &ClusterSite) -> String {
    let spec = &engine.spec;
    // An image that is not Strata's has no part in it.
    let mtls = site.trust == Trust::Mtls && spec.runtime() == Runtime::Native;
    digest(&json!({
        "model": spec.model, "task": spec.task, "adapters": spec.adapters, "engine": spec.engine,
        "parallelism": spec.parallelism, "podTemplate": spec.pod_template,
        "experimental": spec.experimental, "refresh": engine.refresh,
        "mtls": mtls.then_some(true), "role": engine.role,
    }))
}

/// Hash of what a scheduler's template is made for: it follows the image, as it holds nothing.
pub(super) fn scheduler_inputs(site: &ClusterSite) -> String {
    digest(&json!({
        "image": site.image, "imagePullPolicy": site.image_pull_policy,
        "imagePullSecrets": site.image_pull_secrets, "logFormat": site.log_format,
        "mode": site.mode, "mtls": site.trust == Trust::Mtls,
        "picker": site.picker.as_ref().map(|_| true),
    }))
}

/// Ten hexadecimal digits of the hash of a value, whatever the order of its members; members that are
/// null or empty count as absent, so that a new optional field changes nothing.
pub(crate) fn digest(value: &Value) -> String {
    crate::render::short_hash(canonical(value).to_string().as_bytes())
}

fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, Value)> =
                map.iter().map(|(k, v)| (k, canonical(v))).filter(|(_, v)| !is_absent(v)).collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), v)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use strata_kinds::model_deployment::Prefill;
    use strata_wire::replicas::Role;

    use super::*;

    fn stored(number: i64, hash: &str, inputs: &str) -> Arc<ControllerRevision> {
        let revision = Revision {
            hash: hash.to_owned(),
            inputs: inputs.to_owned(),
            number,
            template: json!({ "spec": { "n": number } }),
        };
        Arc::new(revision.object("a-engine", &ObjectMeta::default()))
    }

    #[test]
    fn recorded_templates_are_used_as_they_are() {
        let history = History::of("a-engine", &[stored(2, "bb", "y"), stored(1, "aa", "x")]);
        let same = history.settle("y", || panic!("nothing is rendered"));
        assert_eq!((same.revision.hash.as_str(), same.revision.number, same.record), ("bb", 2, false));
        let back = history.settle("x", || panic!("nothing is rendered"));
        assert_eq!((back.revision.hash.as_str(), back.revision.number, back.record), ("aa", 3, true));
        assert_eq!(back.revision.template["spec"]["n"], 1);
        let new = history.settle("z", PodTemplateSpec::default);
        assert_eq!((new.revision.hash.len(), new.revision.number, new.record), (10, 3, true));
    }

    #[test]
    fn what_is_not_ours_is_left_out() {
        let mut broken = (*stored(9, "cc", "z")).clone();
        broken.data = Some(RawExtension(json!({ "inputs": 1 })));
        let other = Arc::new(
            Revision { hash: "dd".into(), inputs: "x".into(), number: 9, template: json!({}) }
                .object("other", &ObjectMeta::default()),
        );
        let prefill = stored(8, "prefill-ee", "x");
        let history = History::of("a-engine", &[Arc::new(broken), other, prefill, stored(1, "aa", "x")]);
        assert_eq!(history.revisions.len(), 1);
        assert_eq!(History::of("a-engine", &[]).settle("x", PodTemplateSpec::default).revision.number, 1);
    }

    #[test]
    fn old_revisions_go_unless_pods_run_them() {
        let many: Vec<_> = (0..15).map(|n| stored(n, &format!("h{n}"), &format!("i{n}"))).collect();
        let history = History::of("a-engine", &many);
        let kept = history.keep(&BTreeSet::from(["h2"]));
        assert_eq!(kept.len(), HISTORY_LIMIT + 1);
        assert!(kept.contains(&"h2") && kept.contains(&"h14") && !kept.contains(&"h3"));
    }

    #[test]
    fn the_hash_of_inputs_is_frozen() {
        let spec = serde_json::from_value(json!({
            "model": { "name": "m", "uri": "hf://a/b" },
            "engine": { "args": ["--x"], "maxModelLen": 64 },
            "podTemplate": { "resources": { "limits": { "memory": "1Gi", "cpu": 2 } } },
        }))
        .unwrap();
        let mut engine = EngineWorkload {
            namespace: "n".into(),
            owner: crate::workload::Owner { name: "a".into(), uid: None },
            spec,
            refresh: None,
            role: None,
        };
        // Another hash here would make every pod of every user anew at the next upgrade.
        let mut site = ClusterSite::new("strata:1", crate::Mode::Enterprise, "strata");
        assert_eq!(engine_inputs(&engine, &site), "03daa830ad");
        let before = engine_inputs(&engine, &site);
        engine.spec.replicas = Some(3);
        assert_eq!(engine_inputs(&engine, &site), before);
        site.trust = Trust::Mtls;
        let with_certificates = engine_inputs(&engine, &site);
        assert_ne!(with_certificates, before);
        engine.refresh = Some("now".into());
        assert_ne!(engine_inputs(&engine, &site), with_certificates);
        engine.spec.engine.get_or_insert_default().runtime = Some(Runtime::Vllm);
        let of_an_image_that_is_not_ours = engine_inputs(&engine, &site);
        site.trust = Trust::Token;
        assert_eq!(engine_inputs(&engine, &site), of_an_image_that_is_not_ours);
        engine.role = Some(Role::Decode);
        let with_prefill = engine_inputs(&engine, &site);
        assert_ne!(with_prefill, of_an_image_that_is_not_ours);
        engine.spec.prefill = Some(Prefill { replicas: Some(7), ..Prefill::default() });
        assert_eq!(engine_inputs(&engine, &site), with_prefill);
    }
}
