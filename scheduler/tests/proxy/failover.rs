use std::sync::atomic::Ordering;
use std::time::Duration;

use strata_scheduler::SchedulerOptions;

use crate::support::{Does, Engine, PATIENCE, Rig, eventually, quick};

/// Two engines, the first of which holds the prompt and is therefore chosen while it is ready.
async fn pair(options: SchedulerOptions) -> (Engine, Engine, Rig, String) {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], options).await;
    let prompt = "long ".repeat(1000);
    b.load(|load| load.waiting = 1.0);
    eventually("the second is busier", || rig.states("m").iter().any(|s| s.waiting > 0.0)).await;
    let reply = rig.chat(&prompt).await;
    assert_eq!(reply.header("x-strata-replica"), a.url().trim_start_matches("http://"));
    (a, b, rig, prompt)
}

fn lazy() -> SchedulerOptions {
    // Scrapes so seldom that only traffic can tell that a replica is dead.
    SchedulerOptions { scrape_interval: std::time::Duration::from_secs(600), ..quick() }
}

fn name(engine: &Engine) -> String {
    engine.url().trim_start_matches("http://").to_owned()
}

#[tokio::test]
async fn a_refused_connection_goes_to_the_other_and_marks_the_replica() {
    let (mut a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], lazy()).await;
    a.kill();
    for n in 0..8 {
        let reply = rig.chat(&format!("{n} {}", "long ".repeat(500))).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, name(&b).as_str()));
    }
    let states = rig.states("m");
    let dead = states.iter().find(|s| s.name == name(&a)).unwrap();
    assert!(!dead.ready && dead.reason.as_ref().unwrap().contains("connect"), "{dead:?}");
    assert!(rig.metric("strata_scheduler_retries_total{reason=\"").await <= 1.0, "only the first found out");
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_head_goes_to_the_other() {
    let (mut a, b, rig, prompt) = pair(quick()).await;
    a.does(Does::Nothing);
    let asked = a.got().len();
    let (reply, ()) = tokio::join!(rig.chat(&prompt), async {
        eventually("the first has the request", || a.got().len() > asked).await;
        a.kill();
    });
    assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, name(&b).as_str()));
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_piece_goes_to_the_other() {
    let (a, b, rig, prompt) = pair(quick()).await;
    a.does(Does::Break(0));
    let stream = rig.stream(&prompt).await;
    assert_eq!(stream.headers["x-strata-replica"], name(&b).as_str());
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    assert_eq!(a.got().len(), 2);
}

#[tokio::test]
async fn a_replica_killed_in_prefill_loses_nothing() {
    let (mut a, b, rig, prompt) = pair(quick()).await;
    a.does(Does::Held);
    let (stream, ()) = tokio::join!(rig.stream(&prompt), async {
        // The head is out, the first piece is not.
        eventually("the first has the request", || a.open() == 1).await;
        a.kill();
    });
    assert_eq!(stream.headers["x-strata-replica"], name(&b).as_str());
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn a_draining_engine_is_passed_over() {
    let (a, b, rig, prompt) = pair(quick()).await;
    a.does(Does::Refuse);
    a.inner.health.store(503, Ordering::SeqCst);
    for _ in 0..4 {
        let reply = rig.chat(&prompt).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, name(&b).as_str()));
    }
    assert!(a.got().len() <= 3, "a replica whose health says no gets nothing more");
}

#[tokio::test]
async fn when_all_refuse_the_client_gets_their_word_and_a_time_to_retry() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], lazy()).await;
    for engine in [&a, &b] {
        engine.does(Does::Refuse);
    }
    let reply = rig.chat("hello").await;
    assert_eq!(reply.error(), (503, "draining".to_owned(), "server_error".to_owned()));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!((a.got().len(), b.got().len()), (1, 1), "each was asked once");
}

#[tokio::test]
async fn what_a_retry_cannot_mend_is_not_retried() {
    let (a, b, rig, prompt) = pair(quick()).await;
    a.does(Does::Reject);
    let reply = rig.chat(&prompt).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["param"], "max_tokens");
    assert!(b.got().is_empty());
}

#[tokio::test]
async fn a_token_that_the_engine_refuses_is_not_the_clients_fault() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::Forbid);
    assert_eq!(rig.chat("hello").await.error().0, 502);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], SchedulerOptions { retry_burst: 2, ..quick() }).await;
    for engine in [&a, &b] {
        engine.does(Does::Refuse);
    }
    for _ in 0..6 {
        assert_eq!(rig.chat("hello").await.status, 503);
    }
    let sent = a.got().len() + b.got().len();
    assert!((6..=10).contains(&sent), "{sent} requests for 6: two from the burst, few by time and share");
}

#[tokio::test]
async fn killing_a_replica_under_load_loses_no_request_that_had_not_begun() {
    let (mut a, b, c) = (Engine::start("m-0"), Engine::start("m-1"), Engine::start("m-2"));
    let rig = std::sync::Arc::new(Rig::before(&[&a, &b, &c], quick()).await);
    for engine in [&a, &b, &c] {
        engine.does(Does::Held);
    }
    let ask = |n: usize| {
        let rig = std::sync::Arc::clone(&rig);
        tokio::spawn(async move {
            let stream = rig.stream(&format!("conversation {n}")).await;
            let status = stream.status.as_u16();
            (status, stream.rest().await)
        })
    };
    let asked: Vec<_> = (0..24).map(ask).collect();
    eventually("all are under way", || a.open() + b.open() + c.open() == 24).await;
    assert!(a.open() > 0, "the one to be killed has some");
    a.kill();
    for engine in [&b, &c] {
        engine.inner.ended.store(true, Ordering::SeqCst);
        engine.let_go(1000);
    }
    for answer in asked {
        let (status, events) = answer.await.unwrap();
        assert_eq!((status, events.last().map(String::as_str)), (200, Some("[DONE]")), "{events:?}");
    }
}

/// Options under which a replica that says nothing is soon noticed.
fn noticing() -> SchedulerOptions {
    SchedulerOptions { scrape_timeout: Duration::from_millis(100), ..quick() }
}

#[tokio::test]
async fn what_waits_at_a_replica_that_freezes_goes_elsewhere() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], noticing()).await;
    for engine in [&a, &b] {
        engine.does(Does::Late);
    }
    let asked = tokio::spawn({
        let request = rig.chat_request("a question", true);
        async move { strata_hop::Upstream::new().send(request, PATIENCE).await.unwrap().status() }
    });
    eventually("one has it", || a.open() + b.open() == 1).await;
    let (frozen, other) = if a.open() == 1 { (&a, &b) } else { (&b, &a) };
    other.does(Does::Answer);
    for silent in [&frozen.inner.metrics_status, &frozen.inner.health] {
        silent.store(0, std::sync::atomic::Ordering::SeqCst);
    }
    assert_eq!(asked.await.unwrap(), 200);
    assert_eq!((frozen.got().len(), other.got().len()), (1, 1));
    assert!((rig.metric("strata_scheduler_retries_total{reason=\"frozen\"}").await - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_replica_that_is_well_and_shows_no_metrics_is_used() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], noticing()).await;
    engine.inner.metrics_status.store(0, std::sync::atomic::Ordering::SeqCst);
    let looks = || engine.inner.scrapes.load(std::sync::atomic::Ordering::SeqCst);
    let before = looks();
    eventually("it was asked often, and never said", || looks() > before + 5).await;
    assert_eq!(rig.chat("a question").await.status, 200);
}
