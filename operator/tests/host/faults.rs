//! What goes wrong by itself.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_operator::condition::Reason;
use strata_operator::workload::Component;

use crate::run::{Run, is_alive, model, tenant};

fn kill_9(pid: Option<u32>) {
    kill(Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_comes_back_under_its_name_and_address() {
    let run = Run::start(&[("model.yaml", &model("a", 2)), ("tenant.yaml", &tenant("acme"))]).await;
    let before = run.status().layers;
    for layer in &before {
        kill_9(layer.pid);
        run.wait_for("the process to be back", |run| {
            run.status().layers.iter().any(|l| l.name == layer.name && l.ready && l.pid != layer.pid)
        })
        .await;
    }
    run.wait_for("all to be ready", |run| run.status().ready).await;
    let after = run.status().layers;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((&old.name, &old.url, 1), (&new.name, &new.url, new.restarts));
        assert_eq!(
            new.message.as_deref().map(|m| m.starts_with("was ended by SIGKILL")),
            Some(true),
            "{new:?}"
        );
    }
    assert_eq!(run.endpoints().len(), 2);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replica_leaves_the_endpoints_at_once() {
    let run = Run::start(&[("model.yaml", &model("a", 2))]).await;
    run.steer("fail", Some("out of luck"));
    let victim = run.serving().remove(0);
    kill_9(victim.pid);
    run.wait_for("the file to leave it out", |run| run.endpoints().len() == 1).await;
    assert!(!run.endpoints().contains(&victim.name));
    run.wait_for("the wait to grow", |run| run.layers(Component::Engine).iter().any(|l| l.restarts >= 3))
        .await;
    assert_eq!(run.status().objects[0].conditions[0].reason, Reason::Failing);
    let starts = |run: &Run| run.events().iter().filter(|e| e.1 == victim.name && e.3 == "starts").count();
    assert!(starts(&run) <= 5, "it is started again and again without a wait");
    run.steer("fail", None);
    run.wait_for("both to serve", |run| run.serving().len() == 2).await;
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_left_to_its_taker() {
    let run = Run::start(&[("model.yaml", &model("a", 1))]).await;
    let scheduler = run.layers(Component::Scheduler).remove(0);
    let address = scheduler.url.trim_start_matches("http://").to_owned();
    kill_9(scheduler.pid);
    let end = Instant::now() + Duration::from_secs(5);
    let taken = loop {
        match TcpListener::bind(&address) {
            Ok(listener) => break listener,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    };
    run.wait_for("another port", |run| {
        run.status().ready
            && run.layers(Component::Scheduler).iter().any(|l| l.ready && l.url != scheduler.url)
    })
    .await;
    drop(taken);
    // The platform was told the new address: it runs with another command line.
    let platform = run.layers(Component::Platform).remove(0);
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", platform.pid.unwrap())).unwrap();
    let upstream = run.layers(Component::Scheduler).remove(0).url;
    assert!(command.replace('\0', " ").contains(&upstream), "{command} without {upstream}");
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unready_replica_gets_no_traffic_and_is_not_restarted() {
    let run = Run::start(&[("model.yaml", &model("a", 1))]).await;
    let before = run.serving().remove(0);
    run.steer("unready", Some(""));
    run.wait_for("the file to leave it out", |run| run.endpoints().is_empty()).await;
    run.wait_for("the status to say so", |run| !run.status().ready).await;
    run.steer("unready", None);
    run.wait_for("it to serve again", |run| run.endpoints().len() == 1 && run.status().ready).await;
    assert_eq!(run.serving().remove(0).pid, before.pid);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_that_takes_no_file_stops_nothing() {
    let run = Run::start(&[("model.yaml", &model("a", 1))]).await;
    let before = run.pids();
    // In the way of every new version of the file, as a full disk would be.
    let in_the_way = run.state().join("endpoints.part");
    std::fs::create_dir(&in_the_way).unwrap();
    run.write("model.yaml", &model("a", 2));
    run.wait_for("the problem", |run| run.problems().iter().any(|p| p.contains("cannot write"))).await;
    assert_eq!(run.endpoints().len(), 1);
    std::fs::remove_dir(in_the_way).unwrap();
    run.wait_for("both replicas", |run| run.endpoints().len() == 2 && run.status().ready).await;
    assert!(before.iter().all(|pod| run.pids().contains(pod)));
    assert_eq!(run.problems().iter().filter(|p| p.contains("cannot write")).count(), 1, "told once");
    run.stop().await;
}

/// This test's own binary plays the parts of `strata up` and of a component: see `parts`.
#[test]
fn a_component_dies_with_the_process_that_started_it() {
    let temp = tempfile::tempdir().unwrap();
    let told = temp.path().join("pid");
    let mut up = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::parts", "--ignored", "--nocapture"])
        .env("PART", "up")
        .env("TOLD", &told)
        .spawn()
        .unwrap();
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end, "waited for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let pid =
        || std::fs::read_to_string(&told).ok().and_then(|t| t.trim_end_matches('.').parse::<u32>().ok());
    wait_for("the component", &|| std::fs::read_to_string(&told).is_ok_and(|t| t.ends_with('.')));
    let component = pid().unwrap();
    assert!(is_alive(component));
    up.kill().unwrap();
    up.wait().unwrap();
    wait_for("its end", &|| !is_alive(component) || is_zombie(component));
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
}

#[test]
#[ignore = "a part of a_component_dies_with_the_process_that_started_it"]
fn parts() {
    let told = std::env::var_os("TOLD").expect("called by its test");
    if std::env::var("PART").as_deref() == Ok("up") {
        let mut component = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::parts", "--ignored", "--nocapture"])
            .env("PART", "component")
            .env("STRATA_PARENT", std::process::id().to_string())
            .spawn()
            .unwrap();
        component.wait().unwrap();
    } else {
        strata_operator::host::die_with_parent();
        std::fs::write(told, format!("{}.", std::process::id())).unwrap();
        std::thread::park_timeout(Duration::from_secs(60));
    }
}
