//! Rollouts on a simulated cluster: what is promised holds at every step, and all ends well.

use proptest::prelude::*;
use serde_json::{Value, json};

use strata_operator::cluster::REVISION_LABEL;

use super::controller::bounds;
use super::world::{GPU, Phase, World};

/// A spec whose engine is told `value`.
fn told(value: &str) -> Value {
    json!({ "podTemplate": { "env": [{ "name": "V", "value": value }] } })
}

fn ready(world: &World, track: &str) -> usize {
    world.of_track(track).iter().filter(|p| p.is_ready()).count()
}

#[test]
fn a_second_look_writes_nothing() {
    let mut world = World::new(json!({ "replicas": 3 }));
    world.settle();
    let first = world.decide();
    assert!(!world.operate());
    assert_eq!(world.decide(), first);
    assert!(world.ready());
}

#[test]
fn a_new_operator_restarts_no_pod() {
    let mut world = World::new(json!({ "replicas": 2 }));
    world.settle();
    let before: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    world.site.image = "strata:2".into();
    world.site.log_format = Some("json".into());
    world.settle();
    let after: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    assert_eq!(before, after);
    let image = |world: &World| {
        world.deployments["a-engine"].object["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    assert_eq!(image(&world), "strata:1");
    // Who wants the new version says so.
    world.model["metadata"]["annotations"] = json!({ "strata.dev/refresh": "2026-11-24" });
    world.settle();
    assert_eq!(image(&world), "strata:2");
    assert!(world.pods.iter().all(|p| !before.contains(&p.name)));
    // And back: the recorded template, with the old image.
    world.model["metadata"]["annotations"] = json!({});
    world.settle();
    assert_eq!(image(&world), "strata:1");
    assert_eq!(world.revisions.len(), 2);
}

#[test]
fn history_is_short() {
    let mut world = World::new(json!({}));
    for n in 0..25 {
        world.edit(told(&n.to_string()));
        world.settle();
    }
    assert!(world.revisions.len() <= 11, "{}", world.revisions.len());
    let numbers: Vec<i64> = world.revisions.iter().map(|r| r.revision).collect();
    assert_eq!(numbers.iter().max(), Some(&25));
}

#[test]
fn a_bad_revision_takes_nothing_down_and_is_taken_back() {
    let mut world = World::new(json!({ "replicas": 2 }));
    world.settle();
    let good: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    world.bad.insert("bad".into());
    world.edit(told("bad"));
    for _ in 0..50 {
        world.operate();
        world.kubernetes();
        assert_eq!(ready(&world, "stable"), 2);
    }
    assert!(!world.ready());
    world.edit(json!({ "podTemplate": null }));
    world.settle();
    assert!(world.ready());
    let now: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    assert_eq!(now, good, "the pods that served all along");
}

#[test]
fn scarce_devices_are_passed_on_and_surge_comes_back() {
    let mut world = World::new(json!({
        "replicas": 2, "engine": { "runtime": "Custom", "image": "x" },
        "podTemplate": { "resources": { "limits": { GPU: 1 } } },
    }));
    world.devices = Some(2);
    world.settle();
    world.edit(json!({ "engine": { "runtime": "Custom", "image": "y" } }));
    let mut least = 2;
    let mut surges = Vec::new();
    for _ in 0..120 {
        world.operate();
        world.kubernetes();
        least = least.min(ready(&world, "stable"));
        let surge = bounds(&world.deployments["a-engine"]).0;
        if surges.last() != Some(&surge) {
            surges.push(surge);
        }
    }
    assert!(world.ready());
    assert_eq!(least, 1, "one at a time");
    assert_eq!(surges, [1, 0, 1], "and back, once");
}

/// kueue#8769: a rollout that needs one pod more than the namespace may have never ends.
#[test]
fn a_quota_without_room_for_one_more_is_kept_to() {
    for replicas in [1, 2] {
        let mut world = World::new(json!({ "replicas": replicas }));
        world.quota = Some(replicas);
        world.settle();
        world.edit(told("new"));
        world.operate();
        world.kubernetes();
        world.operate();
        let said = world.status()["conditions"].to_string();
        assert!(said.contains("NoSpareDevice") && said.contains("ResourceQuota"), "{said}");
        for _ in 0..60 {
            world.operate();
            world.kubernetes();
        }
        assert!(world.ready());
        assert_eq!(bounds(&world.deployments["a-engine"]).0, 1, "surge is back");
    }
    let mut world = World::new(json!({ "replicas": 2 }));
    world.quota = Some(1);
    world.settle();
    let said = world.status()["conditions"].to_string();
    assert!(said.contains("QuotaExceeded"), "nothing of it is given back by waiting: {said}");
}

#[test]
fn devices_that_come_in_time_cost_no_replica() {
    let mut world = World::new(json!({
        "engine": { "runtime": "Custom", "image": "x" },
        "podTemplate": { "resources": { "limits": { GPU: 1 } } },
    }));
    world.devices = Some(1);
    world.settle();
    world.edit(json!({ "engine": { "runtime": "Custom", "image": "y" } }));
    for _ in 0..5 {
        world.operate();
        world.kubernetes();
    }
    let step = world.decide().unwrap();
    let left = step.look_again.unwrap().as_secs();
    assert!((1..=10).contains(&left), "a deadline, not a guess: {left}");
    world.devices = Some(2);
    for _ in 0..60 {
        world.operate();
        world.kubernetes();
        assert!(ready(&world, "stable") >= 1);
    }
    assert!(world.ready());
}

#[test]
fn a_canary_has_its_share_and_is_promoted_without_a_gap() {
    let mut world = World::new(json!({ "replicas": 10, "rollout": { "canary": { "weight": 25 } } }));
    world.settle();
    assert_eq!(world.of_track("canary").len(), 0, "the first revision is no canary");
    world.edit(told("new"));
    world.settle();
    assert_eq!((ready(&world, "stable"), ready(&world, "canary")), (10, 3));
    let status = world.status();
    assert_eq!(status["canary"]["readyReplicas"], 3);
    assert_eq!(status["replicas"], 10);
    assert_ne!(status["canary"]["revision"], status["revision"]);
    world.edit(json!({ "replicas": 4 }));
    world.settle();
    assert_eq!((ready(&world, "stable"), ready(&world, "canary")), (4, 1));
    let tried = world.of_track("canary")[0].revision.clone();
    world.edit(json!({ "rollout": null }));
    let mut served_new = true;
    for _ in 0..60 {
        world.operate();
        world.kubernetes();
        assert!(ready(&world, "stable") >= 4);
        served_new &= world.pods.iter().any(|p| p.revision == tried && p.is_ready() && p.stays());
    }
    assert!(served_new, "the new revision serves all the time");
    assert!(world.of_track("canary").is_empty() && world.deployments.len() == 1);
    assert!(world.of_track("stable").iter().all(|p| p.revision == tried));
    assert!(world.ready());
}

#[test]
fn a_bad_canary_is_given_up_by_editing_back() {
    let mut world = World::new(json!({ "replicas": 2, "rollout": { "canary": { "weight": 50 } } }));
    world.settle();
    let good: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    world.bad.insert("bad".into());
    world.edit(told("bad"));
    world.settle();
    assert!(!world.ready());
    assert_eq!(ready(&world, "stable"), 2);
    world.edit(json!({ "podTemplate": null }));
    world.settle();
    let now: Vec<String> = world.pods.iter().map(|p| p.name.clone()).collect();
    assert!(now == good && world.ready());
}

#[test]
fn a_canary_gives_its_device_back_when_it_is_promoted() {
    let mut world = World::new(json!({
        "replicas": 1, "engine": { "runtime": "Custom", "image": "x" },
        "rollout": { "canary": { "weight": 10 } },
        "podTemplate": { "resources": { "limits": { GPU: 1 } } },
    }));
    world.devices = Some(2);
    world.settle();
    world.edit(json!({ "engine": { "runtime": "Custom", "image": "y" } }));
    world.settle();
    assert_eq!((ready(&world, "stable"), ready(&world, "canary")), (1, 1));
    world.edit(json!({ "rollout": null }));
    for _ in 0..60 {
        world.operate();
        world.kubernetes();
        assert!(ready(&world, "stable") + ready(&world, "canary") >= 1);
    }
    assert!(world.ready());
}

#[test]
fn an_autoscaler_keeps_its_number() {
    let mut world = World::new(json!({ "replicas": 3 }));
    world.site.capabilities.external_metrics = true;
    world.settle();
    world.edit(json!({ "replicas": null, "autoscaling": { "min": 1, "max": 5 } }));
    world.settle();
    assert_eq!(ready(&world, "stable"), 3, "handing over changes nothing");
    assert!(!world.deployments["a-engine"].owns_replicas());
    assert_eq!(world.decide().unwrap().scale, None);
    world.deployments.get_mut("a-engine").unwrap().scale(5);
    world.settle();
    assert_eq!(ready(&world, "stable"), 5);
    assert!(world.ready());
    world.edit(json!({ "autoscaling": null, "replicas": 2 }));
    world.settle();
    assert_eq!(ready(&world, "stable"), 2);
    assert!(!world.others.keys().any(|k| k.starts_with("HorizontalPodAutoscaler")));
}

/// As many as the environment asks for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// What may happen between two looks of the operator.
#[derive(Clone, Debug)]
enum Happens {
    Edit(u8),
    EditBad,
    Replicas(i32),
    Canary(Option<i32>),
    Surge(i32, i32),
    Autoscaled(bool),
    PodDies(usize),
    Devices(usize),
    Kubernetes(u8),
    Operator,
    Upgrade,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (0u8..4).prop_map(Happens::Edit),
        1 => Just(Happens::EditBad),
        1 => (0i32..5).prop_map(Happens::Replicas),
        1 => prop::option::of(0i32..=100).prop_map(Happens::Canary),
        1 => (0i32..3, 0i32..3).prop_map(|(s, u)| Happens::Surge(s, u)),
        1 => any::<bool>().prop_map(Happens::Autoscaled),
        2 => (0usize..8).prop_map(Happens::PodDies),
        1 => (1usize..8).prop_map(Happens::Devices),
        8 => (1u8..15).prop_map(Happens::Kubernetes),
        6 => Just(Happens::Operator),
        1 => Just(Happens::Upgrade),
    ]
}

/// What must hold after every step of Kubernetes in which nobody but rollouts moved anything.
fn check_bounds(world: &World, there: usize, served: usize) -> Result<(), TestCaseError> {
    let Some(live) = world.deployments.get("a-engine") else { return Ok(()) };
    let (surge, unavailable) = bounds(live);
    let stable = world.of_track("stable");
    let wanted = live.replicas as usize;
    prop_assert!(
        stable.len() <= (wanted + surge as usize).max(there),
        "{} pods, {wanted} wanted, surge {surge}, {there} before",
        stable.len()
    );
    let serve = ready(world, "stable");
    let least = wanted.saturating_sub(unavailable as usize);
    prop_assert!(serve >= least.min(served), "{serve} serve, {least} must, {served} did");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Edits good and bad, scaling, canaries, dying pods, devices that come and go, operators that look
    /// late or are replaced: no rollout goes beyond its bounds, and once all is well again all serve.
    #[test]
    fn rollouts_keep_their_bounds_and_converge(script in prop::collection::vec(happens(), 1..30), gpus: bool) {
        let engine = json!({ "runtime": "Custom", "image": "x" });
        let limits = if gpus { json!({ GPU: 1 }) } else { json!({ "memory": "1Gi" }) };
        let pods = |value: &str| json!({
            "resources": { "limits": limits }, "env": [{ "name": "V", "value": value }],
        });
        let mut world = World::new(json!({ "replicas": 2, "engine": engine, "podTemplate": pods("0") }));
        world.site.capabilities.external_metrics = true;
        world.bad.insert("bad".into());
        world.devices = gpus.then_some(4);
        world.settle();
        for event in script {
            match event {
                Happens::Edit(n) => world.edit(json!({ "podTemplate": pods(&n.to_string()) })),
                Happens::EditBad => world.edit(json!({ "podTemplate": pods("bad") })),
                Happens::Replicas(n) => {
                    if world.model["spec"].get("autoscaling").is_some() {
                        world.deployments.get_mut("a-engine").unwrap().scale(n.clamp(1, 4));
                    } else {
                        world.edit(json!({ "replicas": n }));
                    }
                }
                Happens::Canary(weight) => {
                    let mut rollout = world.model["spec"].get("rollout").cloned().unwrap_or_else(|| json!({}));
                    rollout["canary"] = json!({ "weight": weight });
                    if weight.is_none() {
                        rollout.as_object_mut().unwrap().remove("canary");
                    }
                    world.edit(json!({ "rollout": rollout }));
                }
                Happens::Surge(surge, unavailable) => {
                    let mut rollout = world.model["spec"].get("rollout").cloned().unwrap_or_else(|| json!({}));
                    rollout["maxSurge"] = json!(surge);
                    rollout["maxUnavailable"] = json!(if surge == 0 { unavailable.max(1) } else { unavailable });
                    world.edit(json!({ "rollout": rollout }));
                }
                Happens::Autoscaled(true) => world.edit(json!({ "replicas": null, "autoscaling": { "min": 1, "max": 4 } })),
                Happens::Autoscaled(false) => world.edit(json!({ "replicas": 3, "autoscaling": null })),
                Happens::PodDies(n) => {
                    if !world.pods.is_empty() {
                        let index = n % world.pods.len();
                        world.pods.remove(index);
                    }
                }
                Happens::Devices(n) => world.devices = world.devices.map(|_| n.max(world.pods.iter().filter(|p| p.is_placed()).count())),
                Happens::Kubernetes(steps) => {
                    for _ in 0..steps {
                        // A pod that died comes back, also above a surge that has become smaller since.
                        let asked = world.deployments.get("a-engine").map_or(0, |d| d.sets.values().sum::<i32>());
                        let there = world.of_track("stable").len().max(asked as usize);
                        let served = ready(&world, "stable");
                        world.kubernetes();
                        check_bounds(&world, there, served)?;
                    }
                }
                Happens::Operator => {
                    world.operate();
                }
                Happens::Upgrade => world.site.image = format!("strata:{}", world.now),
            }
            let share = world.model["spec"]["rollout"]["canary"]["weight"].as_i64();
            if let (Some(step), Some(weight)) = (world.decide(), share) {
                let of = |name: &str| step.apply.iter().find(|c| c.key().kind == "Deployment" && c.name() == name);
                let wanted = of("a-engine").map(|d| d.object["spec"]["replicas"].as_i64());
                let revision = |name: &str| of(name).map(|d| d.object["spec"]["template"]["metadata"]["labels"][REVISION_LABEL].clone());
                // One that was promoted serves on with what it has until the others have its revision.
                let tries = weight < 100 && revision("a-engine") != revision("a-engine-canary");
                if let (Some(Some(wanted)), Some(canary), true) = (wanted, of("a-engine-canary"), tries) {
                    let tried = canary.object["spec"]["replicas"].as_i64().unwrap();
                    prop_assert!(tried >= 1 && tried == ((wanted * weight + 99) / 100).max(1), "{tried} of {wanted} at {weight}%");
                }
            }
        }
        // The trouble is over: a good spec, devices enough, nobody edits.
        world.edit(json!({ "podTemplate": pods("last"), "rollout": null, "autoscaling": null, "replicas": 2 }));
        world.devices = gpus.then_some(2);
        for pod in &mut world.pods {
            if gpus && pod.phase == Phase::Crashing {
                pod.leaving = Some(1);
            }
        }
        let mut quiet = 0;
        for _ in 0..200 {
            let wrote = world.operate();
            let still = !world.kubernetes() && !wrote && world.decide().unwrap().look_again.is_none();
            quiet = if still { quiet + 1 } else { 0 };
            if quiet > 2 {
                break;
            }
        }
        prop_assert!(world.ready(), "{}\n{:#?}", world.said(), world.pods);
        prop_assert_eq!(world.pods.len(), 2);
        prop_assert!(!world.operate(), "a second look writes nothing");
    }
}
