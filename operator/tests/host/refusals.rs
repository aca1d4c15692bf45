//! What is not started, and what is said then.

use std::net::TcpListener;

use strata_operator::Mode;

use crate::run::{Run, model, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_anything_wrong_is_not_started() {
    let bad = model("a", 1).replace("replicas: 1", "replicas: many");
    let mut run = Run::prepare(&[("a.yaml", &bad), ("b.yaml", &tenant("x"))]);
    let message = run.refusal(run.options()).await;
    assert_eq!(message, "a.yaml:6: ModelDeployment a: `spec.replicas` must be an integer, not \"many\"");
    assert!(!run.state().join("status.json").exists());

    let mut none = Run::prepare(&[("b.yaml", &tenant("x"))]);
    let message = none.refusal(none.options()).await;
    assert!(message.contains("has no ModelDeployment"), "{message}");

    let mut missing = Run::prepare(&[]);
    let mut options = missing.options();
    options.folder = missing.root().join("nowhere");
    let message = missing.refusal(options).await;
    assert!(message.contains("nowhere: `folder` does not exist"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_refuse_what_they_cannot_hold() {
    let mut run = Run::prepare(&[("a.yaml", &model("a", 2))]);
    let mut options = run.options();
    options.mode = Some(Mode::Development);
    let message = run.refusal(options).await;
    assert!(message.contains("one replica a model") && message.contains("--mode production"), "{message}");

    let mut open = run.options();
    open.listen = "0.0.0.0:0".to_owned();
    let message = run.refusal(open).await;
    assert!(message.contains("--insecure-no-auth") && message.contains("production"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut run = Run::prepare(&[("a.yaml", &model("a", 1))]);
    let mut options = run.options();
    options.listen = taken.local_addr().unwrap().to_string();
    let listen = options.listen.clone();
    let message = run.refusal(options).await;
    assert!(message.contains(&listen) && message.contains("--listen"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_on_the_same_state_says_so() {
    let run = Run::start(&[("a.yaml", &model("a", 1))]).await;
    let mut second = Run::prepare(&[("a.yaml", &model("a", 1))]);
    let mut options = second.options();
    options.state = run.state();
    let message = second.refusal(options).await;
    assert!(
        message.contains("already runs") && message.contains(&std::process::id().to_string()),
        "{message}"
    );
    assert!(run.status().ready, "the first one goes on");
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn development_and_production_have_their_chains() {
    for (mode, layers) in [(Mode::Development, 2), (Mode::Production, 3)] {
        let mut run = Run::prepare(&[("a.yaml", &model("a", 1))]);
        let mut options = run.options();
        options.mode = Some(mode);
        run.start_with(options);
        run.wait_for("ready", |run| {
            strata_operator::host::status::read(&run.state()).unwrap().is_some_and(|s| s.ready)
        })
        .await;
        assert_eq!(run.status().layers.len(), layers);
        run.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_no_effect_without_a_gateway_and_that_is_said() {
    let run = Run::start(&[("a.yaml", &model("a", 1))]).await;
    run.write("t.yaml", &tenant("late"));
    run.wait_for("the problem", |run| run.problems().iter().any(|p| p.contains("mode enterprise"))).await;
    assert!(run.status().ready);
    run.stop().await;
}
