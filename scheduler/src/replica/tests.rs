use strata_wire::prefix::BlockHash;

use super::*;
use crate::pick::{Answer, Brought, Parts, Why};

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
        parts: Parts::default(),
        cached: Cached::default(),
        cached_blocks: 0,
        blocks: 4,
        candidates: 1,
        why: Why::OnlyOne,
        prompt: None,
        brought: Brought::default(),
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
fn a_short_answer_counts_for_less_as_long_as_it_comes() {
    let (r, changed) = (replica(), Arc::new(Notify::new()));
    let busy = Reading { running: Some(2.0), waiting: Some(0.0), ..reading(10.0) };
    r.scraped(busy, Own::default(), Duration::ZERO);
    let lease = |limit| {
        let brought = Brought { answer: Some(Answer::expected(400.0, limit)), ..Brought::default() };
        let decision = Decision { brought, ..decision() };
        r.lease(decision, &prefix(4), 1024, &changed, Duration::ZERO)
    };
    let brief = || r.glance(Duration::ZERO, STALE).load.brief;
    let (short, half, long) = (lease(Some(4)), lease(Some(200)), lease(None));
    assert!((brief() - 1.4).abs() < 1e-9, "{}", brief());
    drop(short);
    assert!((brief() - 0.5).abs() < 1e-9, "{}", brief());
    drop(half);
    drop(long);
    assert_eq!(brief().to_bits(), 0.0f64.to_bits());
}

#[test]
fn another_process_has_no_adapters() {
    let r = replica();
    assert_eq!(r.fit("a"), Fit::Unknown);
    r.scraped(reading(10.0), Own::default(), Duration::ZERO);
    let one = Shown::parse(
        "vllm:lora_requests_info{max_lora=\"1\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1\n",
    );
    r.shows(one.clone());
    r.loads("a");
    assert_eq!((r.fit("a"), r.fit("b")), (Fit::Loaded, Fit::Room));
    r.scraped(reading(2.0), Own::default(), Duration::ZERO);
    r.shows(one);
    assert_eq!(r.fit("a"), Fit::Room);
    r.shows(None);
    assert_eq!(r.fit("a"), Fit::NoRoom, "it serves none any more");
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
