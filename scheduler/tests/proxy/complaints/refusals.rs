//! Who is refused, when, and with which status: 429 where there is capacity and others have it, 503 where
//! there is none, and never 500.

use std::sync::Arc;
use std::time::Duration;

use strata_scheduler::SchedulerOptions;
use tokio::task::JoinHandle;

use super::{ask, crowded, name};
use crate::support::{Engine, Rig, eventually, quick};

#[tokio::test]
async fn llm_d_router_1735_without_a_replica_it_is_503_in_the_queue_and_before_a_full_one() {
    let mut engine = Engine::start("m-0");
    let patience = Duration::from_secs(2);
    let options = SchedulerOptions { queue_per_replica: 1, queue_timeout: patience, ..quick() };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    engine.kill();
    rig.ready("m", 0).await;
    let held = ask(&rig, "held");
    eventually("it is held", || rig.held("m") == 1).await;
    let one_too_many = rig.chat("one too many").await;
    for reply in [one_too_many, held.await.unwrap()] {
        assert_eq!((reply.status.as_u16(), reply.header("retry-after").is_empty()), (503, false));
    }
}

#[tokio::test]
async fn llm_d_router_2047_a_wait_that_ends_before_a_busy_replica_is_429() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_timeout: Duration::from_millis(100), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    crowded(&engine, &rig, 50.0).await;
    let reply = rig.chat("hello").await;
    assert_eq!((reply.status.as_u16(), reply.header("retry-after").is_empty()), (429, false));
    assert!(engine.got().is_empty());
}

/// Waits that end at every moment, from before they begin: by their deadline, and because the client leaves.
#[tokio::test]
async fn llm_d_router_2097_a_wait_that_ends_early_is_no_internal_error() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], SchedulerOptions { queue_per_replica: 20, ..quick() }).await);
    crowded(&engine, &rig, 50.0).await;
    let (mut ending, mut leaving) = (Vec::new(), Vec::new());
    for n in 0..60u64 {
        let mut request = rig.chat_request("ends", false);
        request.headers_mut().insert("x-strata-deadline-ms", (n % 30).into());
        let sends = Arc::clone(&rig);
        ending.push(tokio::spawn(async move { sends.send(request).await.status.as_u16() }));
        leaving.push(ask(&rig, "leaves"));
    }
    for status in ending {
        let status = status.await.unwrap();
        assert!([429, 504].contains(&status), "{status}");
    }
    leaving.iter().for_each(JoinHandle::abort);
    eventually("nobody waits", || rig.held("m") == 0).await;
    let metrics = rig.get("/metrics").await;
    assert!(!String::from_utf8_lossy(&metrics.body).contains("error_code=\"500\""));
    assert!(engine.got().is_empty());
}

/// A router without a queue must refuse at once what arrives while all are busy, or overload one of them.
#[tokio::test]
async fn gaie_674_what_finds_all_replicas_busy_for_a_moment_waits_and_is_not_dropped() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Arc::new(Rig::before(&[&a, &b], quick()).await);
    crowded(&a, &rig, 50.0).await;
    crowded(&b, &rig, 50.0).await;
    let asked: Vec<_> = (0..20).map(|n| ask(&rig, &format!("number {n}"))).collect();
    eventually("all are held", || rig.held("m") == 20).await;
    assert_eq!((a.got().len(), b.got().len()), (0, 0), "a busy replica is not made busier");
    crowded(&b, &rig, 0.0).await;
    for reply in asked {
        let reply = reply.await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, name(&b).as_str()));
    }
}

/// Long prompts are what an overload fills the memory with: of their bytes no more are held than the bound
/// says, the process answers meanwhile, and those that are held are served.
#[tokio::test]
async fn llm_d_router_1342_an_overload_of_long_prompts_is_held_within_its_bound_of_bytes() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_bytes: 1_000_000, ..quick() };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    crowded(&engine, &rig, 50.0).await;
    let long = "x".repeat(100_000);
    let (mut asked, mut refused) = (Vec::new(), 0);
    for _ in 0..30 {
        let reply = ask(&rig, &long);
        let before = rig.held("m");
        eventually("it is held or refused", || reply.is_finished() || rig.held("m") > before).await;
        if reply.is_finished() {
            let reply = reply.await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.header("retry-after").is_empty()), (429, false));
            refused += 1;
        } else {
            asked.push(reply);
        }
    }
    assert!((8..=10).contains(&asked.len()) && refused == 30 - asked.len(), "{} held", asked.len());
    assert_eq!(rig.get("/health").await.status, 200);
    crowded(&engine, &rig, 0.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}
