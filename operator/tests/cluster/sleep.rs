//! Sleep and wake: a model that nobody asks for goes to sleep, and never one that somebody asks for.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use strata_operator::cluster::SchedulerView;
use strata_wire::replicas::{Demand, ReplicaReport};

use super::world::{Phase, World};

fn sleepy() -> World {
    let mut world =
        World::new(json!({ "autoscaling": { "min": 0, "max": 4, "targetWaiting": 3, "sleepAfter": "60s" } }));
    world.site.capabilities.external_metrics = true;
    world.settle();
    world
}

fn idle(seconds: f64) -> Demand {
    Demand { idle_s: seconds, ..Demand::default() }
}

fn replicas(world: &World) -> i32 {
    world.deployments["a-engine"].replicas
}

#[test]
fn it_sleeps_after_its_time_and_wakes_when_asked() {
    let mut world = sleepy();
    assert_eq!(replicas(&world), 1, "a new model shows first that it loads");
    world.demand = idle(20.0);
    world.now += 20;
    let step = world.decide().unwrap();
    assert_eq!(step.scale, None);
    assert!(step.look_again.unwrap().as_secs() <= 41, "{:?}", step.look_again);
    world.demand = idle(100.0);
    world.now += 80;
    world.settle();
    assert!(world.pods.is_empty() && world.ready());
    assert_eq!(world.decide().unwrap().look_again, None, "a sleeping model costs nothing");

    world.demand = Demand { held: 1, in_flight: 0, idle_s: 0.0 };
    world.settle();
    assert_eq!(replicas(&world), 1);
    assert!(world.ready());
}

#[test]
fn who_asks_for_an_adapter_keeps_it_awake_and_wakes_it() {
    let mut world = sleepy();
    world.edit(json!({ "adapters": [{ "name": "sql", "uri": "/sql" }] }));
    world.settle();
    world.now += 1000;
    let report = |adapter: Demand| {
        let demand = [("m".to_owned(), idle(1000.0)), ("sql".to_owned(), adapter)].into();
        let report = Ok(Arc::new(ReplicaReport { models: BTreeMap::default(), demand }));
        vec![SchedulerView { pod: "s".into(), ready: true, report }]
    };
    for asked in [Demand { in_flight: 1, ..idle(0.0) }, idle(30.0)] {
        world.schedulers = report(asked);
        assert_eq!(world.decide().unwrap().scale, None, "{asked:?}");
    }
    world.schedulers = report(idle(1000.0));
    world.settle();
    assert!(world.pods.is_empty());
    world.schedulers = report(Demand { held: 1, ..idle(0.0) });
    assert_eq!(world.decide().unwrap().scale, Some(1));
}

#[test]
fn a_canary_does_not_keep_it_awake() {
    let mut world = sleepy();
    world.edit(json!({ "rollout": { "canary": { "weight": 50 } } }));
    world.edit(json!({ "podTemplate": { "env": [{ "name": "V", "value": "new" }] } }));
    world.settle();
    assert_eq!(world.of_track("canary").len(), 1);
    world.demand = idle(1000.0);
    world.now += 1000;
    assert_eq!(world.decide().unwrap().scale, Some(0));
}

#[test]
fn loading_counts_as_being_asked_for() {
    let mut world = sleepy();
    world.pods[0].phase = Phase::Loading;
    world.demand = idle(10_000.0);
    world.now += 10_000;
    assert_eq!(world.decide().unwrap().scale, None);
}

#[test]
fn who_cannot_be_asked_may_hold_requests() {
    let mut world = sleepy();
    world.now += 1000;
    let report = |demand: Demand| {
        let report = ReplicaReport { models: BTreeMap::default(), demand: [("m".to_owned(), demand)].into() };
        Ok(Arc::new(report))
    };
    let view = |report| SchedulerView { pod: "s".into(), ready: true, report };
    for second in [
        Err("timed out".to_owned()),
        report(Demand { held: 1, ..idle(0.0) }),
        report(Demand { in_flight: 1, ..idle(0.0) }),
        report(idle(30.0)),
        Ok(Arc::new(ReplicaReport::default())),
    ] {
        world.schedulers = vec![view(report(idle(1000.0))), view(second)];
        assert_eq!(world.decide().unwrap().scale, None);
    }
    world.schedulers = vec![view(report(idle(1000.0))), view(report(idle(61.0)))];
    assert_eq!(world.decide().unwrap().scale, Some(0));
}

#[test]
fn what_nobody_can_wake_is_not_ready() {
    let mut world = sleepy();
    world.demand = idle(1000.0);
    world.now += 1000;
    world.settle();
    assert!(world.pods.is_empty() && world.ready());
    let down = SchedulerView { pod: "s".into(), ready: false, report: Err("it does not serve".into()) };
    world.schedulers = vec![down];
    let said = world.status()["conditions"].to_string();
    assert!(said.contains("NotRouted") && said.contains("no scheduler serves that could wake it"), "{said}");
}

#[test]
fn bounds_hold_without_an_autoscaler_too() {
    let mut world = World::new(json!({ "autoscaling": { "min": 2, "max": 3 } }));
    world.settle();
    assert_eq!(replicas(&world), 2);
    world.deployments.get_mut("a-engine").unwrap().scale(9);
    world.settle();
    assert_eq!(replicas(&world), 3);
    // One that slept and may no longer do so wakes.
    let mut world = sleepy();
    world.demand = idle(100.0);
    world.now += 100;
    world.settle();
    world.edit(json!({ "autoscaling": { "min": 1, "max": 4 } }));
    world.settle();
    assert_eq!(replicas(&world), 1);
}

#[test]
fn keda_is_paused_while_the_model_sleeps() {
    let mut world = sleepy();
    world.site.capabilities.scaled_object = true;
    let paused = |world: &World| {
        world.others["ScaledObject/a-engine"]["metadata"]["annotations"]["autoscaling.keda.sh/paused"].clone()
    };
    world.settle();
    assert!(paused(&world).is_null());
    assert!(!world.others.contains_key("HorizontalPodAutoscaler/a-engine"), "one owner of the number");
    world.demand = idle(100.0);
    world.now += 100;
    world.settle();
    assert_eq!(paused(&world), "true");
    world.demand = Demand { held: 2, ..Demand::default() };
    world.settle();
    assert!(paused(&world).is_null());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever schedulers, pods and clocks do: it is never put to sleep while anybody asks, or may.
    #[test]
    fn it_never_sleeps_with_demand(
        views in prop::collection::vec(prop::option::of((0u64..2, 0u64..2, 0.0f64..200.0)), 0..4),
        loading: bool,
        age in 0i64..200,
    ) {
        let mut world = sleepy();
        world.now += age;
        if loading {
            world.pods[0].phase = Phase::Loading;
        }
        world.schedulers = views
            .iter()
            .map(|view| SchedulerView {
                pod: "s".into(),
                ready: true,
                report: view.map(|(held, in_flight, idle_s)| {
                    let demand = Demand { held, in_flight, idle_s };
                    Arc::new(ReplicaReport { models: BTreeMap::default(), demand: [("m".to_owned(), demand)].into() })
                }).ok_or_else(|| "gone".to_owned()),
            })
            .collect();
        let sleeps = world.decide().unwrap().scale == Some(0);
        // Without views the world answers with its own two schedulers, idle for no time.
        let all_calm = !views.is_empty()
            && views.iter().all(|v| v.is_some_and(|(held, flight, idle)| held + flight == 0 && idle >= 60.0));
        prop_assert_eq!(sleeps, all_calm && world.now - since(&world) >= 60);
        let wakes = {
            world.pods.clear();
            world.deployments.get_mut("a-engine").unwrap().scale(0);
            world.decide().unwrap().scale == Some(1)
        };
        prop_assert_eq!(wakes, views.iter().flatten().any(|(held, flight, _)| held + flight > 0));
    }
}

fn since(world: &World) -> i64 {
    match world.pods.first().map(|p| p.phase.clone()) {
        Some(Phase::Ready(since)) => since,
        _ => world.now,
    }
}
