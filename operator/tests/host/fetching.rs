//! Models that are fetched before their engine starts.

use strata_operator::condition::Reason;
use strata_operator::host::status::StackStatus;
use strata_operator::workload::Component;

use crate::run::{Run, position};

fn fetched(replicas: i32) -> String {
    format!(
        "apiVersion: strata.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: a}}\nspec:\n  model: {{name: a-served, uri: 'hf://owner/a', credentialsSecretRef: {{name: hub}}}}\n  replicas: {replicas}\n"
    )
}

const SECRET: &str =
    "apiVersion: v1\nkind: Secret\nmetadata: {name: hub}\nstringData: {HF_TOKEN: hf_secret}\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_starts_once_its_model_is_there() {
    let mut run = Run::prepare(&[("model.yaml", &fetched(1)), ("secret.yaml", SECRET)]);
    run.steer("hold-fetch", Some(""));
    run.start_with(run.options());
    run.wait_for("the progress in the status", |run| {
        run.told().len() > 1
            && run.first_status().is_some()
            && run
                .layers(Component::Engine)
                .iter()
                .any(|l| l.message.as_deref() == Some("fetches the model: 25% of 4 MiB"))
    })
    .await;
    assert!(!run.events().iter().any(|e| e.0 == "engine"), "the engine does not run yet");
    run.steer("hold-fetch", None);
    run.wait_for("the engine to serve", |run| run.serving().len() == 1).await;
    assert_eq!(run.serving()[0].message, None);
    let events = run.events();
    assert!(position(&events, "fetch", "token hf_secret") < position(&events, "engine", "starts"));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_fails_is_told_and_tried_again() {
    let mut run = Run::prepare(&[("model.yaml", &fetched(1)), ("secret.yaml", SECRET)]);
    run.steer("fail-fetch", Some("the model is gated"));
    run.start_with(run.options());
    run.wait_for("the reason in the status", |run| {
        let gated = |status: StackStatus| {
            let mut conditions = status.objects.into_iter().flat_map(|o| o.conditions);
            conditions.any(|c| c.reason == Reason::Failing && c.message.contains("the model is gated"))
        };
        run.told().len() > 1 && run.first_status().is_some_and(gated)
    })
    .await;
    assert!(
        run.problems().iter().any(|p| p.contains("container fetch ended with status 1")),
        "{:?}",
        run.problems()
    );
    run.steer("fail-fetch", None);
    run.wait_for("the engine to serve", |run| run.serving().len() == 1).await;
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fetches_stops_on_order() {
    let mut run = Run::prepare(&[("model.yaml", &fetched(2)), ("secret.yaml", SECRET)]);
    run.steer("hold-fetch", Some(""));
    run.start_with(run.options());
    run.wait_for("both to fetch", |run| {
        run.events().iter().filter(|e| e.0 == "fetch" && e.3 == "starts").count() == 2
    })
    .await;
    run.write("model.yaml", &fetched(1));
    run.wait_for("one to be told", |run| run.events().iter().any(|e| e.0 == "fetch" && e.3 == "TERM")).await;
    run.wait_for("one to be left", |run| run.layers(Component::Engine).len() == 1).await;
    run.stop().await;
}
