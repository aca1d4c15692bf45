//! Models whose prompts are computed by replicas of their own.

use proptest::prelude::*;
use serde_json::{Value, json};
use strata_operator::Mode;
use strata_operator::cluster::{Capabilities, Picker};

use super::world::{GPU, Phase, SimPod, World};

fn vllm(args: &[&str]) -> Value {
    json!({ "runtime": "Vllm", "image": "vllm/vllm-openai:v0.18.0", "args": args })
}

/// Two replicas that answer and two that compute prompts.
fn world() -> World {
    World::new(json!({ "engine": vllm(&[]), "replicas": 2, "prefill": { "replicas": 2 } }))
}

fn names(world: &World, track: &str) -> Vec<String> {
    world.of_track(track).iter().map(|p| p.name.clone()).collect()
}

fn child(world: &World, kind: &str, name: &str) -> Value {
    let apply = world.decide().unwrap().apply;
    let found = apply.into_iter().find(|c| c.key().kind == kind && c.name() == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}")).object
}

fn has(world: &World, name: &str) -> bool {
    world.decide().unwrap().apply.iter().any(|c| c.name().starts_with(name))
}

#[test]
fn it_is_ready_with_both_alone() {
    let mut world = world();
    world.operate();
    world.kubernetes();
    assert_eq!((names(&world, "stable").len(), names(&world, "prefill").len()), (2, 2));
    let slow = world.pods.iter().position(|p| p.track == "prefill").unwrap();
    world.pods[slow].says = Some(json!({}));
    world.pods[slow].phase = Phase::Loading;
    for _ in 0..4 {
        world.operate();
        world.kubernetes();
    }
    assert_eq!(
        world.said().lines().next().unwrap(),
        "Ready=False Starting: 1 of 2 prefill replicas serve",
        "the others serve"
    );
    let status = world.status();
    assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(2), &json!(2)));
    assert!(status["selector"].as_str().unwrap().ends_with(",strata.dev/role notin (prefill)"), "{status}");
    world.pods[slow].says = None;
    world.settle();
    assert_eq!(world.said(), "Ready=True Serving: 2 of 2 replicas serve; 2 of 2 prefill replicas serve");
    assert!(!world.operate(), "a second look writes nothing");

    world.routed = false;
    assert!(world.said().contains("sends requests to 0 of 2 replicas"));
}

/// A scheduler from before there were roles would send requests to whatever it finds.
#[test]
fn schedulers_must_know_what_prefill_replicas_are_for() {
    let mut world = world();
    world.settle();
    let mut views = world.look(|seen| seen.schedulers.to_vec());
    let mut report = (**views[1].report.as_ref().unwrap()).clone();
    for state in report.models.values_mut().flatten() {
        state.role = strata_wire::replicas::Role::Decode;
    }
    views[1].report = Ok(std::sync::Arc::new(report));
    world.schedulers = views;
    assert_eq!(
        world.said().lines().next().unwrap(),
        "Ready=False NotRouted: the scheduler strata-scheduler-1 sends prompts to 0 of 2 prefill replicas"
    );
}

#[test]
fn an_edit_of_one_restarts_none_of_the_other() {
    let mut world = world();
    world.settle();
    let (decode, prefill) = (names(&world, "stable"), names(&world, "prefill"));
    let env = |value: &str| json!({ "env": [{ "name": "V", "value": value }] });
    world.edit(json!({ "prefill": { "replicas": 2, "podTemplate": env("a") } }));
    let mut least = 2;
    for _ in 0..60 {
        world.operate();
        world.kubernetes();
        least = least.min(world.of_track("prefill").iter().filter(|p| p.is_ready()).count());
    }
    assert!(world.ready() && least == 2, "{least}: a new one is ready before an old one stops");
    assert_eq!(names(&world, "stable"), decode);
    let edited = names(&world, "prefill");
    assert!(edited.iter().all(|name| !prefill.contains(name)));

    world.edit(json!({ "podTemplate": { "env": [{ "name": "V", "value": "b" }] } }));
    world.settle();
    assert_eq!(names(&world, "prefill"), edited, "it has variables of its own");
    assert!(names(&world, "stable").iter().all(|name| !decode.contains(name)));

    world.edit(json!({ "prefill": { "replicas": 1, "podTemplate": env("a") } }));
    world.settle();
    assert!(world.ready() && edited.contains(&names(&world, "prefill")[0]), "another number restarts none");
    assert_eq!(world.revisions.len(), 4, "each has its own");
}

#[test]
fn a_bad_edit_of_prefill_is_said_and_takes_nothing_down() {
    let mut world = world();
    world.settle();
    world.bad.insert("bad".into());
    world.edit(
        json!({ "prefill": { "replicas": 2, "podTemplate": { "env": [{ "name": "V", "value": "bad" }] } } }),
    );
    for _ in 0..40 {
        world.operate();
        world.kubernetes();
        assert_eq!(world.of_track("prefill").iter().filter(|p| p.is_ready()).count(), 2);
    }
    let said = world.said();
    assert!(said.contains("prefill replicas") && said.contains("Stalled=True Failing"), "{said}");
}

#[test]
fn prefill_comes_and_goes() {
    let mut world = World::new(json!({ "engine": vllm(&[]), "replicas": 2 }));
    world.settle();
    let first = names(&world, "stable");
    assert!(!has(&world, "a-engine-prefill"));
    world.edit(json!({ "prefill": {} }));
    let mut least = 2;
    for _ in 0..60 {
        world.operate();
        world.kubernetes();
        least = least.min(world.of_track("stable").iter().filter(|p| p.is_ready()).count());
    }
    assert!(world.ready() && least == 2);
    assert_eq!(names(&world, "prefill").len(), 1, "one when no number is said");
    world.edit(json!({ "prefill": null }));
    world.settle();
    assert!(names(&world, "prefill").is_empty() && !has(&world, "a-engine-prefill"));
    assert_eq!(world.deployments.len(), 1);
    assert!(world.revisions.iter().all(|r| !r.metadata.name.as_ref().unwrap().contains("prefill")));
    assert_eq!(world.said(), "Ready=True Serving: 2 of 2 replicas serve");
    assert_eq!(names(&world, "stable").len(), first.len());
}

#[test]
fn it_sleeps_and_wakes_with_those_it_works_for() {
    let mut world = World::new(json!({
        "engine": vllm(&[]), "prefill": {}, "autoscaling": { "min": 0, "max": 4, "sleepAfter": "1m" },
    }));
    world.site.capabilities.external_metrics = true;
    world.settle();
    assert!(world.ready());
    world.demand.idle_s = 1000.0;
    world.now += 1000;
    world.settle();
    assert!(world.pods.is_empty());
    assert_eq!(world.said(), "Ready=True ScaledToZero: asleep: the next request wakes it");
    world.demand.held = 1;
    world.settle();
    assert_eq!((names(&world, "stable").len(), names(&world, "prefill").len()), (1, 1));
    let deployment = &world.deployments["a-engine"].object["spec"];
    assert!(deployment.get("replicas").is_none(), "the autoscaler's");
}

#[test]
fn a_canary_is_of_those_that_answer() {
    let mut world = world();
    world.edit(json!({ "rollout": { "canary": { "weight": 50 }, "maxSurge": 2 } }));
    world.settle();
    world.edit(json!({ "engine": vllm(&["--enforce-eager"]) }));
    world.settle();
    assert_eq!(
        ["stable", "canary", "prefill"].map(|track| names(&world, track).len()),
        [2, 1, 2],
        "{}",
        world.said()
    );
    let rolling = &world.deployments["a-engine-prefill"].object["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(rolling["maxSurge"], 2, "the same rules");
    let revision = |pod: &&SimPod| pod.revision.clone();
    let one: std::collections::BTreeSet<String> = world.of_track("prefill").iter().map(revision).collect();
    assert_eq!(one.len(), 1, "the new engine at once");
}

#[test]
fn neither_takes_the_pods_of_the_other() {
    let mut world = world();
    world.site.capabilities = Capabilities::found(|_| true, true);
    world.site.picker = Some(Picker::default());
    let spec = |name: &str| child(&world, "Deployment", name)["spec"].clone();
    let (decode, prefill) = (spec("a-engine"), spec("a-engine-prefill"));
    let labels = |spec: &Value| spec["template"]["metadata"]["labels"].clone();
    let selects = |selector: &Value, labels: &Value| {
        selector.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value)
    };
    for (own, other) in [(&decode, &prefill), (&prefill, &decode)] {
        let selector = &own["selector"]["matchLabels"];
        assert!(selects(selector, &labels(own)) && !selects(selector, &labels(other)));
    }
    assert_eq!(labels(&decode)["strata.dev/role"], "decode");
    assert_eq!(labels(&prefill)["strata.dev/role"], "prefill");
    // A Deployment's selector cannot be changed: it is that of a model without prefill.
    let without = World::new(json!({ "engine": vllm(&[]) }));
    assert_eq!(decode["selector"], child(&without, "Deployment", "a-engine")["spec"]["selector"]);
    for selector in [
        child(&world, "Service", "a-engine")["spec"]["selector"].clone(),
        child(&world, "InferencePool", "a")["spec"]["selector"]["matchLabels"].clone(),
    ] {
        assert!(selects(&selector, &labels(&decode)) && !selects(&selector, &labels(&prefill)));
    }
}

/// In the midst of a change old pods would read something else in what new ones make of a prompt.
#[test]
fn pods_of_one_model_and_engine_alone_are_alike() {
    let alike = |world: &World, name: &str| {
        child(world, "Deployment", name)["spec"]["template"]["metadata"]["labels"]["strata.dev/handover"]
            .clone()
    };
    let mut world = world();
    let before = alike(&world, "a-engine");
    assert_eq!(before, alike(&world, "a-engine-prefill"));
    world.edit(json!({
        "podTemplate": { "nodeSelector": { "pool": "b" } },
        "prefill": { "parallelism": { "tensor": 2 } },
    }));
    assert_eq!(
        [alike(&world, "a-engine"), alike(&world, "a-engine-prefill")],
        [before.clone(), before.clone()]
    );
    world.edit(json!({ "model": { "name": "m", "uri": "pvc://models/other" } }));
    let after = alike(&world, "a-engine");
    assert!(after != before && after == alike(&world, "a-engine-prefill"));
}

#[test]
fn what_is_applied() {
    let mut world = World::new(json!({
        "model": { "name": "m", "uri": "hf://a/b" },
        "engine": vllm(&[]), "replicas": 2, "parallelism": { "tensor": 2 },
        "podTemplate": { "nodeSelector": { "pool": "decode" }, "runtimeClassName": "nvidia" },
        "prefill": {
            "replicas": 3, "parallelism": { "tensor": 4 },
            "podTemplate": { "nodeSelector": { "pool": "prefill" }, "resources": { "limits": { GPU: 4 } } },
        },
    }));
    let apply = world.decide().unwrap().apply;
    let shown: Vec<Value> =
        apply.into_iter().filter(|c| c.key().kind != "ControllerRevision").map(|c| c.object).collect();
    insta::assert_yaml_snapshot!(shown);
    world.site.network_policies = false;
    assert!(world.decide().unwrap().apply.iter().all(|c| c.key().kind != "NetworkPolicy"));
}

#[test]
fn what_the_user_says_of_the_transfer_holds() {
    let own = json!({
        "engine": vllm(&["--kv-transfer-config={\"kv_connector\":\"Mine\"}"]), "prefill": {},
        "podTemplate": { "env": [{ "name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": "7000" }] },
    });
    let world = World::new(own);
    for name in ["a-engine", "a-engine-prefill"] {
        let main = child(&world, "Deployment", name)["spec"]["template"]["spec"]["containers"][0].clone();
        let args = main["args"].to_string();
        assert!(args.contains("Mine") && !args.contains("NixlConnector"), "{args}");
        let port = |v: &&Value| v["name"] == "VLLM_NIXL_SIDE_CHANNEL_PORT";
        let ports: Vec<&Value> = main["env"].as_array().unwrap().iter().filter(port).collect();
        assert!(ports.len() == 1 && ports[0]["value"] == "7000", "{ports:?}");
    }
}

#[test]
fn an_image_of_ones_own_is_told_its_role() {
    let world = World::new(json!({ "engine": { "runtime": "Custom", "image": "x" }, "prefill": {} }));
    for (name, role) in [("a-engine", "decode"), ("a-engine-prefill", "prefill")] {
        let main = child(&world, "Deployment", name)["spec"]["template"]["spec"]["containers"][0].clone();
        let env = main["env"].as_array().unwrap();
        assert!(env.contains(&json!({ "name": "STRATA_ROLE", "value": role })), "{env:?}");
    }
}

#[test]
fn where_it_cannot_be_it_is_refused_with_words() {
    let mut said = Vec::new();
    let mut world = World::new(json!({ "prefill": {} }));
    said.push(world.said());
    let spread =
        json!({ "parallelism": { "tensor": 2 }, "podTemplate": { "resources": { "limits": { GPU: 1 } } } });
    let mut world = World::new(json!({ "engine": vllm(&[]), "prefill": spread }));
    said.push(world.said());
    let mut world = World::new(json!({ "engine": vllm(&[]), "prefill": {} }));
    world.site.mode = Mode::Development;
    said.push(world.said());
    let first: Vec<&str> = said.iter().map(|said| said.lines().next().unwrap()).collect();
    insta::assert_snapshot!(first.join("\n"), @"
    Ready=False NotBuilt: `spec.prefill` is not built yet: remove it, or use the runtime Vllm; Strata's engine cannot hand its KV cache to another yet
    Ready=False Invalid: `spec.prefill.podTemplate.resources.limits`: 1 nvidia.com/gpu for a replica, and `spec.prefill.parallelism` spreads it over 2: ask for 2, or leave the limit out
    Ready=False ModeLimit: mode development has one replica a model and no scheduler, which `spec.prefill` needs: remove it, or use mode production
    ");
}

/// What may happen between two looks of the operator.
#[derive(Clone, Debug)]
enum Happens {
    Edit(u8),
    EditPrefill(Option<(u8, i32)>),
    Replicas(i32),
    Canary(bool),
    PodDies(usize),
    Kubernetes(u8),
    Operator,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (0u8..3).prop_map(Happens::Edit),
        3 => prop::option::weighted(0.8, (0u8..3, 0i32..4)).prop_map(Happens::EditPrefill),
        1 => (1i32..4).prop_map(Happens::Replicas),
        1 => any::<bool>().prop_map(Happens::Canary),
        1 => (0usize..8).prop_map(Happens::PodDies),
        6 => (1u8..12).prop_map(Happens::Kubernetes),
        6 => Just(Happens::Operator),
    ]
}

fn told(value: u8) -> Value {
    json!({ "env": [{ "name": "V", "value": value.to_string() }] })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Whatever happens to either: both come to what is asked, nothing is left of what is not, and no pod
    /// that answers is made anew for what happens to those that compute prompts.
    #[test]
    fn both_converge_apart(script in prop::collection::vec(happens(), 1..30)) {
        let mut world = World::new(json!({
            "engine": vllm(&[]), "replicas": 2, "podTemplate": told(0),
            "prefill": { "replicas": 1, "podTemplate": told(0) },
        }));
        world.settle();
        for event in script {
            match event {
                Happens::Edit(n) => world.edit(json!({ "podTemplate": told(n) })),
                Happens::EditPrefill(Some((n, replicas))) => {
                    world.edit(json!({ "prefill": { "replicas": replicas, "podTemplate": told(n) } }));
                }
                Happens::EditPrefill(None) => world.edit(json!({ "prefill": null })),
                Happens::Replicas(n) => world.edit(json!({ "replicas": n })),
                Happens::Canary(true) => world.edit(json!({ "rollout": { "canary": { "weight": 40 } } })),
                Happens::Canary(false) => world.edit(json!({ "rollout": null })),
                Happens::PodDies(n) => {
                    if !world.pods.is_empty() {
                        let index = n % world.pods.len();
                        world.pods.remove(index);
                    }
                }
                Happens::Kubernetes(steps) => (0..steps).for_each(|_| {
                    world.kubernetes();
                }),
                Happens::Operator => {
                    world.operate();
                }
            }
        }
        world.edit(json!({ "rollout": null, "replicas": 2 }));
        let prefill = |n: u8| json!({ "prefill": { "replicas": 2, "podTemplate": told(n) } });
        world.edit(prefill(7));
        world.settle();
        prop_assert!(world.ready(), "{}\n{:#?}", world.said(), world.pods);
        prop_assert_eq!((names(&world, "stable").len(), names(&world, "prefill").len(), world.pods.len()), (2, 2, 4));
        let answer = names(&world, "stable");
        world.edit(prefill(8));
        world.settle();
        prop_assert_eq!(names(&world, "stable"), answer);
        prop_assert!(world.ready() && !world.operate());
        world.edit(json!({ "prefill": null }));
        world.settle();
        prop_assert!(world.ready() && names(&world, "prefill").is_empty());
        prop_assert_eq!(world.deployments.len(), 1);
    }
}
