//! What is said in each situation, and how others judge it.

use serde_json::json;
use strata_operator::Mode;
use strata_operator::cluster::{Progress, Refused, SchedulerView, Trust};
use strata_wire::download::DownloadState;
use strata_wire::replicas::Demand;

use super::kstatus::{Health, kstatus, kubectl_wait};
use super::world::{GPU, Phase, World};

fn serving(replicas: i32) -> World {
    let mut world = World::new(json!({ "replicas": replicas }));
    world.settle();
    world
}

/// A pod that does not serve and says so.
fn pod_says(status: serde_json::Value) -> World {
    let mut world = World::new(json!({}));
    world.operate();
    world.kubernetes();
    world.pods[0].phase = Phase::Loading;
    world.pods[0].says = Some(status);
    world
}

fn container(name: &str, state: serde_json::Value, restarts: i32) -> serde_json::Value {
    let mut status =
        json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": restarts });
    for (key, value) in state.as_object().unwrap() {
        status[key] = value.clone();
    }
    json!([status])
}

fn waiting(reason: &str, message: &str) -> serde_json::Value {
    json!({ "state": { "waiting": { "reason": reason, "message": message } } })
}

/// kserve#6072: a condition that leads astray. What keeps a model from being scaled is said, and no more.
#[test]
fn an_autoscaler_that_cannot_scale_is_told_of() {
    let mut world = World::new(json!({ "autoscaling": { "min": 1, "max": 4 } }));
    world.site.capabilities.external_metrics = true;
    world.settle();
    let says = |world: &mut World, kind: &str, status: &str, reason: &str| -> Option<String> {
        let condition =
            json!({ "type": kind, "status": status, "reason": reason, "message": "no metrics known." });
        let autoscaler =
            json!({ "metadata": { "name": "a-engine" }, "status": { "conditions": [condition] } });
        world.autoscaler = Some(serde_json::from_value(autoscaler).unwrap());
        let status = world.status();
        let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Autoscaling");
        found.map(|c| format!("{}: {}", c["reason"].as_str().unwrap(), c["message"].as_str().unwrap()))
    };
    let failing = says(&mut world, "ScalingActive", "False", "FailedGetExternalMetric").unwrap();
    assert!(
        failing.starts_with("AutoscalerFailing: ")
            && failing.contains("a-engine cannot scale it: no metrics known;")
    );
    assert!(world.ready(), "it serves on");
    assert_eq!(says(&mut world, "ScalingActive", "False", "ScalingDisabled"), None, "it sleeps");
    assert_eq!(says(&mut world, "ScalingActive", "True", "ValidMetricFound"), None);
    assert_eq!(says(&mut world, "ScalingLimited", "True", "TooManyReplicas"), None, "it has all that it may");
}

/// Without a gateway the platform is the one entrance: what it does not reach is not served.
#[test]
fn a_model_without_an_entrance_is_refused() {
    let refusal = |world: &mut World| -> Option<String> {
        let status = world.status();
        let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
        (ready["reason"] == "ModeLimit").then(|| ready["message"].as_str().unwrap().to_owned())
    };
    let mut world = World::new(json!({}));
    world.site.platform_namespace = Some("strata".to_owned());
    assert!(refusal(&mut world).unwrap().contains("namespace `strata` alone"));
    world.site.mode = Mode::Enterprise;
    assert_eq!(refusal(&mut world), None, "gateways find every namespace");

    let mut world = World::new(json!({ "engine": { "runtime": "Vllm", "image": "x" } }));
    world.site.mode = Mode::Development;
    assert_eq!(refusal(&mut world), None);
    world.site.trust = Trust::Mtls;
    assert!(refusal(&mut world).unwrap().contains("internalTls=false"));
    world.edit(json!({ "engine": null }));
    assert_eq!(refusal(&mut world), None);
}

/// Every situation: what is said, and that kstatus and `kubectl wait` agree with it.
#[test]
fn each_situation_is_said_and_judged_right() {
    let mut lines = Vec::new();
    let mut check = |name: &str, mut world: World, health: Health| {
        let said = world.said();
        assert_eq!(kstatus(&world.model), health, "{name}: {said}");
        assert_eq!(kubectl_wait(&world.model), health == Health::Current, "{name}: {said}");
        lines.push(format!("== {name} ({health:?})\n{said}"));
    };

    check("new", World::new(json!({})), Health::InProgress);
    let mut world = World::new(json!({ "replicas": 2 }));
    world.operate();
    check("applied", world, Health::InProgress);
    check("serving", serving(2), Health::Current);
    check("wanted by nobody", serving(0), Health::Current);

    let mut world = serving(2);
    world.edit(json!({ "replicas": 3 }));
    check("more wanted", world, Health::InProgress);
    let mut world = serving(3);
    world.edit(json!({ "replicas": 1 }));
    check("fewer wanted", world, Health::InProgress);
    let mut world = serving(2);
    world.edit(json!({ "engine": { "maxModelLen": 64 } }));
    check("edited", world, Health::InProgress);
    let mut world = serving(2);
    world.edit(json!({ "engine": { "maxModelLen": 64 } }));
    world.operate();
    world.kubernetes();
    check("rolling", world, Health::InProgress);
    let mut world = serving(2);
    world.pods[0].phase = Phase::Loading;
    check("one loads again", world, Health::InProgress);
    let mut world = serving(1);
    world.model["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.status();
    assert_eq!(kstatus(&world.model), Health::Terminating);

    let mut world = serving(2);
    world.routed = false;
    check("not routed", world, Health::InProgress);
    let mut world = serving(1);
    world.schedulers = vec![SchedulerView { pod: "s-0".into(), ready: false, report: Err("starts".into()) }];
    check("no scheduler", world, Health::InProgress);
    let mut world = serving(1);
    world.schedulers =
        vec![SchedulerView { pod: "s-0".into(), ready: true, report: Err("timed out".into()) }];
    check("a scheduler that cannot be asked", world, Health::InProgress);
    let mut world = serving(1);
    let good = world.look(|seen| seen.schedulers.to_vec());
    let drained = SchedulerView { pod: "s-9".into(), ready: false, report: Err("gone".into()) };
    world.schedulers = good.into_iter().chain([drained]).collect();
    check("a scheduler that is drained", world, Health::Current);
    let mut world = World::new(json!({}));
    world.site.mode = Mode::Development;
    world.settle();
    check("development has no scheduler", world, Health::Current);

    let mut world = serving(1);
    world.bad.insert("bad".into());
    world.edit(json!({ "podTemplate": { "env": [{ "name": "V", "value": "bad" }] } }));
    for _ in 0..5 {
        world.operate();
        world.kubernetes();
    }
    assert_eq!(world.of_track("stable").iter().filter(|p| p.is_ready()).count(), 1);
    check("a revision that never serves", world, Health::Failed);

    for (name, status, health) in [
        (
            "image being pulled again",
            json!({ "containerStatuses": container("engine", waiting("ErrImagePull", "not found"), 0) }),
            Health::InProgress,
        ),
        (
            "image not pulled",
            json!({ "containerStatuses": container("engine", waiting("ImagePullBackOff", "Back-off pulling image \"x\""), 0) }),
            Health::Failed,
        ),
        (
            "secret missing",
            json!({ "containerStatuses": container("engine", waiting("CreateContainerConfigError", "secret \"s\" not found"), 0) }),
            Health::Failed,
        ),
        (
            "out of memory",
            json!({ "containerStatuses": container("engine", json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } }), 1) }),
            Health::InProgress,
        ),
        (
            "out of memory for good",
            json!({ "containerStatuses": container("engine", json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } }), 3) }),
            Health::Failed,
        ),
        (
            "start-up too slow",
            json!({ "containerStatuses": container("engine", json!({ "started": false, "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 137, "reason": "Error" } } }), 1) }),
            Health::InProgress,
        ),
        (
            "fetch fails",
            json!({ "initContainerStatuses": container("fetch", json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": { "exitCode": 1, "message": "start\nerror: hf://a/b: 401: set HF_TOKEN\n" } } }), 5) }),
            Health::Failed,
        ),
        (
            "ended by a signal",
            json!({ "containerStatuses": container("engine", json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": { "exitCode": 139, "signal": 11 } } }), 1) }),
            Health::InProgress,
        ),
        (
            "no room for memory",
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory." }] }),
            Health::InProgress,
        ),
        (
            "claim missing",
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "persistentvolumeclaim \"models\" not found" }] }),
            Health::InProgress,
        ),
        ("evicted", json!({ "phase": "Failed", "reason": "Evicted" }), Health::InProgress),
    ] {
        check(name, pod_says(status), health);
    }

    let mut world = pod_says(
        json!({ "initContainerStatuses": container("fetch", json!({ "state": { "running": {} } }), 0) }),
    );
    let name = world.pods[0].name.clone();
    world.downloads.insert(
        name,
        Progress {
            state: DownloadState::Fetching,
            bytes_done: 300_000_000,
            bytes_total: Some(1_200_000_000),
            remaining_s: Some(9),
            ..Progress::default()
        },
    );
    check("being fetched", world, Health::InProgress);

    let mut world = World::new(json!({ "replicas": 2 }));
    world.operate();
    world.deployments.get_mut("a-engine").unwrap().refusal =
        Some("pods \"a\" is forbidden: exceeded quota: gpu, requested: 1".into());
    check("quota", world, Health::Failed);
    let mut world = World::new(json!({}));
    world.operate();
    world.deployments.get_mut("a-engine").unwrap().refusal =
        Some("violates PodSecurity \"restricted\"".into());
    check("refused pods", world, Health::Failed);
    for transient in [true, false] {
        let mut world = serving(1);
        world.refused = vec![Refused {
            what: "Deployment models/a-engine".into(),
            reason: "Invalid".into(),
            message: "spec.x: no".into(),
            transient,
        }];
        check(
            "refused by the API server",
            world,
            if transient { Health::InProgress } else { Health::Failed },
        );
    }

    let gpu = json!({ "podTemplate": { "resources": { "limits": { GPU: 1 } } }, "engine": { "runtime": "Custom", "image": "x" } });
    for (rollout, replicas) in [(json!(null), 1), (json!(null), 2), (json!({ "maxUnavailable": 0 }), 1)] {
        let mut world = World::new(gpu.clone());
        world.edit(json!({ "replicas": replicas, "rollout": rollout }));
        world.devices = Some(replicas as usize);
        world.settle();
        world.edit(json!({ "engine": { "runtime": "Custom", "image": "y" } }));
        for _ in 0..3 {
            world.operate();
            world.kubernetes();
        }
        world.now += 20;
        world.operate();
        let forbidden = !rollout.is_null();
        check("no spare device", world, if forbidden { Health::Failed } else { Health::InProgress });
    }

    let mut world = World::new(json!({ "replicas": 4, "rollout": { "canary": { "weight": 30 } } }));
    world.settle();
    world.edit(json!({ "engine": { "maxModelLen": 64 } }));
    world.operate();
    check("a canary starts", world, Health::InProgress);
    let mut world = World::new(json!({ "replicas": 4, "rollout": { "canary": { "weight": 30 } } }));
    world.settle();
    world.edit(json!({ "engine": { "maxModelLen": 64 } }));
    world.settle();
    check("a canary serves", world, Health::Current);

    let sleepy = json!({ "autoscaling": { "min": 0, "max": 4, "sleepAfter": "1m" } });
    let mut world = World::new(sleepy);
    world.settle();
    world.demand = Demand { idle_s: 1000.0, ..Demand::default() };
    world.now += 1000;
    world.settle();
    check("asleep", world, Health::Current);

    for spec in [
        json!({ "prefill": {} }),
        json!({ "model": { "name": "m", "uri": "file://~/m.gguf" } }),
        json!({ "model": { "name": "m", "uri": "hf://x" } }),
    ] {
        check("refused", World::new(spec), Health::Failed);
    }
    let mut world = serving(2);
    world.edit(json!({ "prefill": {} }));
    check("refused while it serves", world, Health::Failed);
    insta::assert_snapshot!(lines.join("\n\n"));
}

#[test]
fn progress_is_written_in_steps() {
    let mut world = World::new(json!({ "model": { "name": "m", "uri": "hf://a/b" } }));
    world.operate();
    world.kubernetes();
    world.pods[0].phase = Phase::Loading;
    world.pods[0].says = Some(
        json!({ "initContainerStatuses": container("fetch", json!({ "state": { "running": {} } }), 0) }),
    );
    let name = world.pods[0].name.clone();
    let mut writes = 0;
    let mut last = serde_json::Value::Null;
    for done in 0..=1000u64 {
        // A thousandth each tenth of a second.
        if done % 10 == 0 {
            world.now += 1;
        }
        let progress = Progress {
            state: DownloadState::Fetching,
            bytes_done: done * 1_000_000,
            bytes_total: Some(1_000_000_000),
            ..Progress::default()
        };
        world.downloads.insert(name.clone(), progress);
        let status = world.status();
        if status != last {
            writes += 1;
            last = status;
        }
    }
    assert!((20..=32).contains(&writes), "{writes} writes");
    assert_eq!(last["download"]["bytesDone"].as_u64(), Some(1_000_000_000));
    world.pods[0].says = None;
    world.settle();
    assert!(world.status().get("download").is_none(), "it is over");
}

#[test]
fn times_change_with_the_status_alone() {
    let mut world = serving(1);
    let first = world.status();
    world.now += 100;
    assert_eq!(world.status(), first, "nothing new is nothing to write");
    assert_eq!(first["observedGeneration"], 1);
    assert_eq!(first["conditions"][0]["observedGeneration"], 1);
    assert_eq!(first["url"], "http://strata-platform.strata.svc:8000/v1");
    world.edit(json!({ "routing": { "weights": { "prefix": 60.0 } } }));
    let second = world.status();
    assert_eq!(second["conditions"][0]["observedGeneration"], 2);
    assert_eq!(second["conditions"][0]["lastTransitionTime"], first["conditions"][0]["lastTransitionTime"]);
}

/// An adapter that is new is known to the new pods alone, and counts once schedulers send it requests.
#[test]
fn ready_is_for_each_name() {
    let adapters = |names: &[&str]| {
        let all: Vec<_> = names.iter().map(|name| json!({ "name": name, "uri": "/a" })).collect();
        json!({ "adapters": all })
    };
    let mut world = World::new(adapters(&["sql"]));
    world.unheard.insert("sql".into());
    world.settle();
    assert!(
        world.said().contains("NotRouted") && world.said().contains("0 of 1 replicas"),
        "{}",
        world.said()
    );
    world.unheard.clear();
    assert!(world.ready());
    world.edit(adapters(&["sql", "fr"]));
    world.edit(json!({ "replicas": 2, "rollout": { "canary": { "weight": 50 } } }));
    world.settle();
    assert!(!world.of_track("canary").is_empty() && !world.of_track("stable").is_empty());
    assert!(!world.said().contains("NotRouted"), "old pods do not have it: {}", world.said());
    world.unheard.insert("fr".into());
    assert!(world.said().contains("NotRouted"), "{}", world.said());
}
