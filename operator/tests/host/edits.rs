//! What the person in front of it changes.

use std::io::{Read, Write};
use std::net::TcpStream;

use strata_operator::Mode;
use strata_operator::condition::Reason;
use strata_operator::host::status::{self, Phase};
use strata_operator::workload::Component;

use crate::run::{Run, model, position, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_run_and_stop_top_first() {
    let mut run = Run::prepare(&[("model.yaml", &model("a", 2)), ("tenant.yaml", &tenant("acme"))]);
    let mut options = run.options();
    let seen = run.state().join("hook");
    options.on_snapshot = std::sync::Arc::new(move |folder| {
        std::fs::write(&seen, folder.tenants.len().to_string()).map_err(|e| e.to_string())
    });
    run.start_with(options);
    run.wait_for("ready", |run| status::read(&run.state()).unwrap().is_some_and(|s| s.ready)).await;
    let status = run.status();
    assert_eq!((status.mode, status.pid), (Mode::Enterprise, std::process::id()));
    let components: Vec<Component> = status.layers.iter().map(|l| l.component).collect();
    let engine = Component::Engine;
    assert_eq!(components, [Component::Platform, Component::Gateway, Component::Scheduler, engine, engine]);
    assert!(status.layers.iter().all(|l| l.ready && l.pid.is_some()));
    assert_eq!(status.objects[0].conditions[0].reason, Reason::Serving);
    assert_eq!(status.objects[0].ready_replicas, Some(2));
    assert_eq!(run.endpoints().len(), 2);
    assert_eq!(std::fs::read_to_string(run.state().join("hook")).unwrap(), "1");
    let log = status::log_file(&run.state(), &status.layers[0].name);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "platform begins\n");

    let events = run.stop().await;
    for (upper, lower) in [("platform", "gateway"), ("gateway", "scheduler"), ("scheduler", "engine")] {
        assert!(position(&events, upper, "ends") < position(&events, lower, "TERM"), "{events:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_restarts_nothing_else() {
    let run = Run::start(&[("model.yaml", &model("a", 1)), ("tenant.yaml", &tenant("acme"))]).await;
    let (others, first) = (run.pids(), run.serving());
    run.write("model.yaml", &model("a", 3));
    run.wait_for("three replicas", |run| run.serving().len() == 3 && run.endpoints().len() == 3).await;
    assert!(run.serving().contains(&first[0]));
    run.write("tenant2.yaml", &tenant("beta"));
    run.write("model.yaml", &model("a", 1));
    run.wait_for("one replica", |run| run.layers(Component::Engine).len() == 1).await;
    assert_eq!((run.serving(), run.endpoints()), (first, vec![run.serving()[0].name.clone()]));
    run.wait_for("the tenant", |run| run.status().objects.iter().any(|o| o.name == "beta")).await;
    assert_eq!(run.pids(), others);
    run.write("model.yaml", &model("a", 0));
    run.wait_for("none", |run| run.layers(Component::Engine).is_empty()).await;
    assert_eq!(run.status().objects[0].conditions[0].reason, Reason::ScaledToZero);
    run.stop().await;
}

/// kthena#1589, aibrix#553: streams are cut when a replica goes away.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_unrouted_then_told_to_stop_and_finishes_its_streams() {
    let run = Run::start(&[("model.yaml", &model("a", 2))]).await;
    let leaving = run.serving().remove(1);
    let address = leaving.url.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    run.wait_for("the stream", |run| run.events().iter().any(|e| e.3 == "stream begins")).await;

    run.steer("hold-routes", Some(""));
    run.write("model.yaml", &model("a", 1));
    run.wait_for("the file to leave it out", |run| !run.endpoints().contains(&leaving.name)).await;
    let phase = |run: &Run| {
        run.layers(Component::Engine).into_iter().find(|l| l.name == leaving.name).map(|l| l.phase)
    };
    run.wait_for("it to drain", |run| phase(run) == Some(Phase::Draining)).await;
    assert!(!run.events().iter().any(|e| e.3 == "TERM"), "the scheduler still routes to it");
    run.steer("hold-routes", None);
    run.wait_for("SIGTERM", |run| run.events().iter().any(|e| e.3 == "TERM")).await;
    assert!(phase(&run).is_some(), "its stream goes on");
    run.steer("release", Some(""));
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("first\nlast\n"), "{text}");
    run.wait_for("its end", |run| phase(run).is_none()).await;
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_template_serves_before_the_old_one_stops() {
    let run = Run::start(&[("model.yaml", &model("a", 2))]).await;
    let (others, before) = (run.pids(), run.serving());
    let changed = format!("{}  engine: {{maxModelLen: 64}}\n", model("a", 2));
    run.write("model.yaml", &changed);
    run.wait_for("the new replicas", |run| {
        let now = run.serving();
        now.len() == 2 && now.iter().all(|l| l.revision != before[0].revision)
    })
    .await;
    run.wait_for("the end of the old ones", |run| run.layers(Component::Engine).len() == 2).await;
    assert_eq!(run.pids(), others);
    let events = run.stop().await;
    let new =
        |n: usize| events.iter().filter(|e| e.0 == "engine" && e.3 == "starts").nth(2 + n).unwrap().clone();
    let at = |pod: &str, what: &str| position(&events, pod, what);
    let first_stop = events.iter().position(|e| e.0 == "engine" && e.3 == "TERM").unwrap();
    assert!(at(&new(0).1, "starts") < first_stop, "{events:?}");
    assert!(first_stop < at(&new(1).1, "starts"), "one more at a time: {events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_cannot_start_takes_nothing_down() {
    let run = Run::start(&[("model.yaml", &model("a", 1))]).await;
    let before = run.serving();
    run.steer("fail", Some("cannot load the model"));
    run.write("model.yaml", &format!("{}  engine: {{maxModelLen: 64}}\n", model("a", 1)));
    run.wait_for("the failure", |run| run.status().objects[0].conditions[0].reason == Reason::Failing).await;
    let message = run.status().objects[0].conditions[0].message.clone();
    assert!(message.contains("error: cannot load the model"), "{message}");
    assert_eq!((run.serving(), run.endpoints()), (before.clone(), vec![before[0].name.clone()]));
    run.write("model.yaml", &model("a", 1));
    run.wait_for("the way back", |run| run.layers(Component::Engine).len() == 1).await;
    assert_eq!(run.serving(), before);
    assert!(run.problems().iter().any(|p| p.contains("cannot load the model") && p.contains(".log")));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_is_told_and_stops_nothing() {
    let run = Run::start(&[("model.yaml", &model("a", 1))]).await;
    let before = run.status().layers;
    run.write("model.yaml", &model("a", 1).replace("replicas", "replica"));
    run.write("new.yaml", "kind: [\n");
    // The status is written before the problems are told.
    run.wait_for("the problems", |run| run.status().problems.len() == 2 && run.problems().len() >= 2).await;
    let problems = run.problems().join("\n");
    assert!(
        problems.contains("model.yaml:6: ModelDeployment a: `spec.replica` is not a field"),
        "{problems}"
    );
    assert!(problems.contains("new.yaml:1"), "{problems}");
    run.write("model.yaml", &model("a", 1));
    run.delete("new.yaml");
    run.wait_for("the repair", |run| run.status().problems.is_empty()).await;
    assert_eq!(run.status().layers, before);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_manifest_stops_its_replicas_only() {
    let run = Run::start(&[("a.yaml", &model("a", 1)), ("b.yaml", &model("b", 1))]).await;
    let (others, before) = (run.pids(), run.serving());
    run.delete("b.yaml");
    run.wait_for("its end", |run| run.layers(Component::Engine).len() == 1).await;
    assert_eq!((run.pids(), run.serving()), (others, before[..1].to_vec()));
    assert_eq!(run.endpoints(), [before[0].name.clone()]);
    run.stop().await;
}
