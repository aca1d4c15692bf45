use strata_wire::prefix::BlockHash;

use super::*;
use crate::pick::{Parts, Why};

const STALE: Duration = Duration::from_secs(1);

fn replica() -> Arc<Replica> {
    Arc::new(Replica::new(Endpoint::new("m-0", "http://127.0.0.1:1/")))
}

fn prefix(blocks: u64) -> Prefix {
    Prefix { blocks: (0..blocks).map(BlockHash).collect(), bytes: blocks as usize * 256, opening: None }
}

fn decision() -> Decision {
    Decision {
        replica: "m-0".into(),
        track: None,
        score: 0.0,
        parts: Parts { hit: 0.0, queue: 0.0, decode: 0.0, latency: 0.0 },
        cached: Cached::default(),
        cached_blocks: 0,
        blocks: 4,
        candidates: 1,
        why: Why::OnlyOne,
        prompt: None,
    }
}

fn reading(prompt_tokens: f64) -> Reading {
    Reading { prompt_tokens: Some(prompt_tokens), ..Reading::default() }
}

#[test]
fn readiness_goes_and_comes_by_scrapes() {
    let r = replica();
    assert!(!r.is_ready());
    assert!(r.scraped(reading(1.0), Own::default(), Duration::ZERO));
    assert!(r.is_ready() && !r.scraped(reading(1.0), Own::default(), Duration::ZERO));
    assert!(!r.scrape_failed(ScrapeFailure::Passing("slow".into())));
    assert!(!r.scrape_failed(ScrapeFailure::Passing("slow".into())));
    assert!(r.is_ready(), "two slow scrapes are no failure");
    assert!(r.scrape_failed(ScrapeFailure::Passing("slow".into())));
    assert_eq!(r.state(Duration::ZERO).reason.as_deref(), Some("slow"));
    assert!(r.scraped(reading(1.0), Own::default(), Duration::ZERO));
    assert!(r.scrape_failed(ScrapeFailure::Certain("refused".into())));
    assert!(!r.is_ready());
}

#[test]
fn a_request_that_fails_late_does_not_unready_the_replica_that_came_back() {
    let r = replica();
    r.scraped(reading(1.0), Own::default(), Duration::ZERO);
    let epoch = r.epoch();
    assert!(r.failed("it broke off", epoch));
    r.scraped(reading(1.0), Own::default(), Duration::ZERO);
    assert!(!r.failed("it broke off", epoch) && r.is_ready());
}

#[test]
fn the_index_survives_a_slow_moment_and_no_restart() {
    let (r, changed) = (replica(), Arc::new(Notify::new()));
    r.scraped(reading(10.0), Own::default(), Duration::ZERO);
    drop(r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO));
    let has = r.view(&prefix(6), &Found::default(), Duration::ZERO, STALE).cached;
    assert_eq!(has, Cached::guessed(4, 4.0));
    r.scrape_failed(ScrapeFailure::Certain("refused".into()));
    r.scraped(reading(11.0), Own::default(), Duration::ZERO);
    assert_eq!(r.indexed_blocks(), 4, "counters that grew prove that it is the same process");
    r.scraped(reading(2.0), Own::default(), Duration::ZERO);
    assert_eq!(r.indexed_blocks(), 0, "counters that fell prove that it is another");
    drop(r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO));
    r.scrape_failed(ScrapeFailure::Certain("refused".into()));
    r.scraped(Reading::default(), Own::default(), Duration::ZERO);
    assert_eq!(r.indexed_blocks(), 0, "without proof it is another");
}

#[test]
fn a_lease_keeps_the_books() {
    let (r, changed) = (replica(), Arc::new(Notify::new()));
    r.scraped(reading(10.0), Own::default(), Duration::ZERO);
    let mut a = r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO);
    let b = r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO);
    assert_eq!(r.own(), Own { in_flight: 2, pending: 2, pending_tokens: 512.0 });
    a.spare();
    assert_eq!(r.own(), Own { in_flight: 2, pending: 2, pending_tokens: 256.0 });
    a.burden();
    a.begun(Some(Duration::ZERO));
    a.begun(Some(Duration::ZERO));
    assert_eq!(r.own(), Own { in_flight: 2, pending: 1, pending_tokens: 256.0 });
    drop(b);
    drop(a);
    assert_eq!(r.own(), Own::default());
    assert_eq!((r.state(Duration::ZERO).in_flight, r.state(Duration::ZERO).requests), (0, 2));
}

#[test]
fn a_breaker_counts_for_one_process() {
    let (r, changed) = (replica(), Arc::new(Notify::new()));
    r.scraped(reading(10.0), Own::default(), Duration::ZERO);
    let lease = || r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO);
    let old = lease();
    assert_eq!((0..5).filter(|_| lease().says(Verdict::Failed(0.0), Duration::ZERO)).count(), 1);
    assert_eq!((r.gate(Duration::ZERO), r.state(Duration::ZERO).broken), (Gate::Open, true));
    let then = Duration::from_secs(2);
    let probe = r.lease(decision(), &prefix(4), 1024, &changed, then);
    assert_eq!(r.gate(then), Gate::Open);
    drop(probe);
    assert_eq!(r.gate(then), Gate::Probe, "one that left lets another try");
    r.scraped(reading(2.0), Own::default(), then);
    assert_eq!(r.gate(then), Gate::Closed, "another process is another replica");
    assert!((0..5).all(|_| !old.says(Verdict::Failed(0.0), then)), "and was not sent this");
    let probe = r.lease(decision(), &prefix(4), 1024, &changed, then);
    probe.says(Verdict::Worked, then);
    assert_eq!(r.view(&prefix(1), &Found::default(), then, STALE).standing.ready_for, Duration::ZERO);
}

#[test]
fn the_index_is_as_large_as_the_cache() {
    let (r, changed) = (replica(), Arc::new(Notify::new()));
    // 10 blocks of 64 tokens of 4 bytes are 10 blocks of 256 bytes.
    let small = Reading { cache_tokens: Some(640.0), ..reading(1.0) };
    r.scraped(small, Own::default(), Duration::ZERO);
    drop(r.lease(decision(), &prefix(100), 25_600, &changed, Duration::ZERO));
    assert_eq!(r.indexed_blocks(), 10);
}
