//! What was thought of the replicas' caches, against what their engines say that they had.

use crate::support::{Does, Engine, Rig, quick};

/// The counts of within, over, under and untold, and the tokens thought, had and asked.
async fn counts(rig: &Rig) -> ([u64; 4], [u64; 3]) {
    let text = String::from_utf8(rig.get("/metrics").await.body.to_vec()).unwrap();
    let of = |name: String| {
        let line = text.lines().find(|line| line.starts_with(&name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    let outcome = |outcome| {
        of(format!("strata_scheduler_cache_predictions_total{{model_name=\"m\",outcome=\"{outcome}\"}}"))
    };
    let tokens = |what| of(format!("strata_scheduler_cache_{what}_tokens_total{{model_name=\"m\"}}"));
    (["within_block", "over", "under", "untold"].map(outcome), ["predicted", "actual", "prompt"].map(tokens))
}

#[tokio::test]
async fn answers_and_streams_say_whether_it_was_right() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    // 20 blocks of 256 bytes, of which the last is not whole; four bytes are taken for a token.
    let prompt = "x".repeat(5000);
    assert_eq!(rig.chat(&prompt).await.status, 200);
    assert_eq!(counts(&rig).await.0, [0, 0, 0, 1], "it does not say");
    // All of it is thought to be there.
    engine.says_cached(1200, 1250);
    assert_eq!(rig.chat(&prompt).await.status, 200);
    let (outcomes, [predicted, actual, asked]) = counts(&rig).await;
    assert_eq!((outcomes, actual, asked), ([1, 0, 0, 1], 1200, 1250));
    assert!(predicted.abs_diff(1200) <= 64, "{predicted}");
    // Said in a stream, by its last event but one.
    engine.says_cached(0, 1250);
    assert_eq!(rig.stream(&prompt).await.rest().await.last().unwrap(), "[DONE]");
    assert_eq!(counts(&rig).await.0, [1, 1, 0, 1]);
    engine.says_cached(1200, 1250);
    assert_eq!(rig.chat(&"other".repeat(1000)).await.status, 200);
    let (outcomes, [_, actual, asked]) = counts(&rig).await;
    assert_eq!((outcomes, actual, asked), ([1, 1, 1, 1], 2400, 3750));
}

#[tokio::test]
async fn what_fails_breaks_or_has_no_prefix_says_nothing() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.says_cached(0, 1250);
    let prompt = "x".repeat(5000);
    assert_eq!(rig.chat("short").await.status, 200);
    for (does, stream) in [(Does::Reject, false), (Does::Fail, false), (Does::Break(2), true)] {
        engine.does(does);
        rig.open(rig.chat_request(&prompt, stream)).await.rest().await;
    }
    assert_eq!(counts(&rig).await, ([0; 4], [0; 3]));
}
