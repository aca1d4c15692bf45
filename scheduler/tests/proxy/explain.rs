//! What a scheduler says of its choices, and what it learns for them.

use std::time::Duration;

use http::StatusCode;
use strata_scheduler::{Policy, SchedulerOptions};
use strata_wire::decisions::{Decisions, Standing};

use crate::support::{Does, Engine, Rig, quick};

async fn decisions(rig: &Rig, query: &str) -> Decisions {
    serde_json::from_value(rig.get(&format!("/debug/decisions{query}")).await.json()).unwrap()
}

#[tokio::test]
async fn a_choice_is_kept_with_all_that_there_was_to_choose_from() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let first = rig.chat(&"x".repeat(1024)).await;
    let second = rig.chat(&"x".repeat(1024)).await;
    let all = decisions(&rig, "").await.decisions;
    assert_eq!(all.len(), 2, "the latest first");
    assert_eq!(all[0].request, second.header("x-request-id"));
    let by_id = decisions(&rig, &format!("?request={}", first.header("x-request-id"))).await.decisions;
    assert_eq!(by_id, [all[1].clone()]);
    let it = &all[0];
    assert_eq!((it.replica.as_str(), it.candidates.len()), (second.header("x-strata-replica"), 2));
    let (picked, other) = (&it.candidates[0], &it.candidates[1]);
    assert_eq!((picked.standing, other.standing), (Standing::Picked, Standing::Open));
    assert!(picked.score > other.score && picked.cached_tokens > 200.0 && other.cached_tokens == 0.0);
    assert!(second.header("x-strata-decision").ends_with(&it.why), "{}", it.why);
    assert_eq!(decisions(&rig, "?last=1&model=m").await.decisions.len(), 1);
    assert_eq!(decisions(&rig, "?model=other").await, Decisions::default());
    let wrong = rig.get("/debug/decisions?lost=1").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.json()["error"]["message"].as_str().unwrap().contains("last=N"), "{:?}", wrong.body);
    assert!(!String::from_utf8_lossy(&rig.get("/debug/decisions").await.body).contains("xxx"));
}

#[tokio::test]
async fn a_slow_replica_is_learnt_of_and_left_alone() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    b.does(Does::Slow(Duration::from_millis(150)));
    let options = SchedulerOptions { policy: Policy::SloAware, ..quick() };
    let rig = Rig::before(&[&a, &b], options).await;
    let mut by = [0, 0];
    for i in 0..40 {
        let coming = rig.stream(&format!("question {i}")).await;
        let to = coming.headers["x-strata-replica"].to_str().unwrap().to_owned();
        coming.rest().await;
        if i >= 16 {
            by[usize::from(to.contains(&b.url()[7..]))] += 1;
        }
    }
    assert!(by[0] >= 22, "{by:?}");
    let last = &decisions(&rig, "?last=1").await.decisions[0];
    assert_eq!(last.why, "it is expected to stay furthest below the objectives");
    let expected = |name: &str| {
        let it = last.candidates.iter().find(|c| name[7..] == c.replica).unwrap();
        it.first_token_ms.unwrap()
    };
    assert!(expected(&a.url()) + 50.0 < expected(&b.url()), "{last:?}");
}
