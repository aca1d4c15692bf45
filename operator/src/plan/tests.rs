// Specs are written as JSON at the call.
#![allow(clippy::needless_pass_by_value)]

use kube::core::ObjectMeta;
use proptest::prelude::*;
use serde_json::{Value, json};
use strata_kinds::{ModelDeploymentSpec, QuotaPolicySpec, TenantSpec};

use super::*;
use crate::condition::Truth;

fn meta(name: &str, age: Option<i64>) -> ObjectMeta {
    let time = age.map(|second| {
        let text = format!("2026-01-01T00:00:{second:02}Z");
        serde_json::from_value(Value::from(text)).unwrap()
    });
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("strata".into()),
        creation_timestamp: time,
        ..ObjectMeta::default()
    }
}

fn model(name: &str, age: Option<i64>, spec: Value) -> ModelDeployment {
    let mut whole = json!({ "model": { "name": "m", "uri": "/m.gguf" } });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let spec: ModelDeploymentSpec = serde_json::from_value(whole).unwrap();
    ModelDeployment { metadata: meta(name, age), spec, status: None }
}

fn named(name: &str, served: &str) -> ModelDeployment {
    model(name, None, json!({ "model": { "name": served, "uri": "/m.gguf" } }))
}

fn tenant(name: &str, spec: Value) -> Tenant {
    let spec: TenantSpec = serde_json::from_value(spec).unwrap();
    Tenant { metadata: meta(name, None), spec, status: None }
}

fn policy(name: &str, spec: Value) -> QuotaPolicy {
    let spec: QuotaPolicySpec = serde_json::from_value(spec).unwrap();
    QuotaPolicy { metadata: meta(name, None), spec, status: None }
}

fn world<'a>(models: &'a [ModelDeployment], tenants: &'a [Tenant], policies: &'a [QuotaPolicy]) -> World<'a> {
    World { models, tenants, policies, secrets: None, namespace: "strata" }
}

fn summary(plan: &Plan) -> String {
    let workloads = plan.workloads.iter().map(Workload::name).collect::<Vec<_>>().join(" ");
    let refused = plan
        .refused()
        .map(|(key, reason, message)| format!("\n{} {}: {}: {message}", key.kind, key.name, reason.as_str()));
    format!("{workloads}{}", refused.collect::<String>())
}

#[test]
fn each_mode_has_its_chain() {
    let models = [named("a", "m")];
    let chain = |mode| summary(&plan(&world(&models, &[], &[]), Place::Host, mode));
    assert_eq!(chain(Mode::Development), "strata-platform a-engine");
    assert_eq!(chain(Mode::Production), "strata-platform strata-scheduler a-engine");
    assert_eq!(chain(Mode::Enterprise), "strata-platform strata-gateway strata-scheduler a-engine");
    let cluster = summary(&plan(&world(&models, &[], &[]), Place::Cluster, Mode::Enterprise));
    assert_eq!(cluster, "strata-scheduler a-engine", "platform and gateway come from the chart");
    assert_eq!(summary(&plan(&world(&[], &[], &[]), Place::Cluster, Mode::Enterprise)), "");
}

#[test]
fn the_older_of_two_with_one_name_wins() {
    let young_first = [model("a", Some(30), json!({})), model("b", Some(10), json!({}))];
    let made = plan(&world(&young_first, &[], &[]), Place::Cluster, Mode::Production);
    insta::assert_snapshot!(summary(&made));
}

#[test]
fn an_adapter_s_name_is_a_model_s_to_all_others() {
    let adapters = |name: &str, age, served: &str, adapters: &[(&str, &str)]| {
        let all: Vec<Value> =
            adapters.iter().map(|(name, uri)| json!({ "name": name, "uri": uri })).collect();
        model(name, Some(age), json!({ "model": { "name": served, "uri": "/m" }, "adapters": all }))
    };
    let models = [
        adapters("a", 1, "m", &[("sql", "/sql"), ("fr", "hf://team/fr")]),
        adapters("b", 2, "sql", &[]),
        adapters("c", 3, "n", &[("m", "/m"), ("de", "/de")]),
        // Whoever holds a name holds it, refused or not: schedulers know only who is older.
        adapters("d", 4, "de", &[]),
        adapters("e", 5, "o", &[("es", "/es"), ("it", "hf://team/it/it.gguf")]),
        adapters("f", 6, "p", &[("pt", "pt")]),
        adapters("g", 7, "es", &[]),
    ];
    let made = plan(&world(&models, &[], &[]), Place::Cluster, Mode::Production);
    insta::assert_snapshot!(summary(&made), @"
    strata-scheduler a-engine g-engine
    ModelDeployment b: NameConflict: ModelDeployment strata/a serves `sql` already: give this one another `spec.model.name`, or delete one
    ModelDeployment c: NameConflict: ModelDeployment strata/a serves `m` already: give the adapter another name, or delete one
    ModelDeployment d: NameConflict: ModelDeployment strata/c serves `de` already: give this one another `spec.model.name`, or delete one
    ModelDeployment e: Invalid: `spec.adapters[1].uri`: names the file it.gguf, and an adapter is a folder with adapter_config.json and its weights: name the folder
    ModelDeployment f: Invalid: `spec.adapters[0].uri`: `pt` must be file://PATH, an absolute path, hf://OWNER/NAME, oci://REGISTRY/NAME:TAG, s3://BUCKET/PATH, pvc://CLAIM/PATH or https://HOST/PATH
    ");
}

#[test]
fn what_is_refused_says_what_to_do() {
    let models = [
        named("a", "m"),
        model("b", None, json!({ "model": { "name": "n", "uri": "pvc://a/b" } })),
        model(
            "c",
            None,
            json!({ "model": { "name": "o", "uri": "/m" }, "autoscaling": { "min": 1, "max": 2 } }),
        ),
    ];
    let tenants = [
        tenant("t", json!({ "models": ["*"] })),
        tenant("u", json!({ "apiKeys": [{ "name": "k", "secretRef": { "name": "s" } }] })),
        tenant("v", json!({ "apiKeys": [{ "name": "k", "secretRef": { "name": "half" } }] })),
    ];
    let policies = [policy("q", json!({ "budget": { "amount": "5", "period": "Day" } }))];
    let secrets = BTreeMap::from([("half".to_owned(), BTreeSet::from(["id".to_owned()]))]);
    let world = World { secrets: Some(&secrets), ..world(&models, &tenants, &policies) };
    insta::assert_snapshot!(summary(&plan(&world, Place::Host, Mode::Enterprise)));
}

#[test]
fn a_replica_needs_a_device_for_each_of_its_parts() {
    let judged = |limits: serde_json::Value| {
        let parallelism = json!({ "tensor": 2, "pipeline": 2 });
        let template = json!({ "resources": { "limits": limits } });
        let spec = json!({
            "model": { "name": "m", "uri": "pvc://c/m" }, "engine": { "runtime": "Vllm", "image": "x" },
            "parallelism": parallelism, "podTemplate": template,
        });
        summary(&plan(&world(&[model("a", None, spec)], &[], &[]), Place::Cluster, Mode::Production))
    };
    let too_few = judged(json!({ "nvidia.com/gpu": 2 }));
    assert!(too_few.contains("2 nvidia.com/gpu for a replica") && too_few.contains("ask for 4"), "{too_few}");
    for enough in [json!({ "nvidia.com/gpu": 4 }), json!({ "rdma/hca": 1 }), json!({ "memory": "1Gi" })] {
        assert_eq!(judged(enough), "strata-scheduler a-engine");
    }
}

#[test]
fn modes_have_limits() {
    let many = [model("a", None, json!({ "replicas": 2 })), named("b", "n"), named("c", "o")];
    let tenants = [tenant("t", json!({}))];
    let policies = [policy("q", json!({}))];
    let made = plan(&world(&many, &tenants, &policies), Place::Host, Mode::Development);
    insta::assert_snapshot!(summary(&made));
}

#[test]
fn readiness_says_what_is_seen() {
    let models = [model("a", None, json!({ "replicas": 2 }))];
    let made = plan(&world(&models, &[], &[]), Place::Host, Mode::Production);
    let full = ModelObservation { replicas: 2, ready: 2, routed: Some(2), ..ModelObservation::default() };
    let say = |seen: Option<ModelObservation>| {
        let observed = seen.map(|s| (("strata".to_owned(), "a".to_owned()), s)).into_iter().collect();
        let status = statuses(&made, &observed).remove(0);
        let condition = status.conditions[0].clone();
        format!("{} {}: {}", condition.status.as_str(), condition.reason.as_str(), condition.message)
    };
    let lines = [
        say(None),
        say(Some(ModelObservation { ready: 1, ..full.clone() })),
        say(Some(ModelObservation { ready: 1, trouble: Some("no such file".into()), ..full.clone() })),
        say(Some(ModelObservation { ready: 1, outdated: 1, ..full.clone() })),
        say(Some(ModelObservation { replicas: 3, ..full.clone() })),
        say(Some(ModelObservation { routed: Some(1), ..full.clone() })),
        say(Some(ModelObservation { routed: None, ..full.clone() })),
        say(Some(full)),
    ];
    insta::assert_snapshot!(lines.join("\n"));
    let asleep = [model("a", None, json!({ "replicas": 0 }))];
    let made = plan(&world(&asleep, &[], &[]), Place::Host, Mode::Production);
    let observed = BTreeMap::from([(("strata".to_owned(), "a".to_owned()), ModelObservation::default())]);
    let status = statuses(&made, &observed).remove(0);
    assert_eq!(
        (status.conditions[0].status, status.conditions[0].reason),
        (Truth::True, Reason::ScaledToZero)
    );
}

fn any_spec() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z:/~.]{0,12}".prop_map(Value::from)
    ];
    let tree = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(
                "(replicas|engine|kvCache|memory|podTemplate|env|name|value|routing|policy|args)",
                inner,
                0..4
            )
            .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(
        "(replicas|engine|podTemplate|routing|access|parallelism|autoscaling)",
        tree,
        0..4,
    )
    .prop_map(|m| Value::Object(m.into_iter().collect()))
}

proptest! {
    /// Whatever an object holds, planning and rendering do not panic, and order does not matter.
    #[test]
    fn any_object_is_planned(specs in prop::collection::vec((any_spec(), "[mn]", "[a-z/:~.]{0,10}"), 0..4), development: bool) {
        let mut models: Vec<ModelDeployment> = specs
            .into_iter()
            .enumerate()
            .filter_map(|(i, (mut spec, name, uri))| {
                spec["model"] = json!({ "name": name, "uri": uri });
                let spec = serde_json::from_value(spec).ok()?;
                Some(ModelDeployment { metadata: meta(&format!("x{i}"), None), spec, status: None })
            })
            .collect();
        let mode = if development { Mode::Development } else { Mode::Enterprise };
        let first = plan(&world(&models, &[], &[]), Place::Cluster, mode);
        models.reverse();
        prop_assert_eq!(&first, &plan(&world(&models, &[], &[]), Place::Cluster, mode));
        let names: BTreeSet<_> = first.workloads.iter().map(Workload::name).collect();
        prop_assert_eq!(names.len(), first.workloads.len());
        for workload in &first.workloads {
            let cluster = crate::cluster::ClusterSite::new("i", mode, "strata");
            for site in [crate::render::Site::Cluster(&cluster), crate::render::Site::Host(&crate::render::HostSite::default())] {
                let rendered = crate::render::render(workload, site);
                prop_assert_eq!(rendered.revision().len(), 10);
            }
        }
    }
}
