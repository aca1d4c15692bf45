use proptest::prelude::*;

use super::*;

const STALE: Duration = Duration::from_secs(1);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Equal within rounding; floats are not compared by bits.
fn near(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-6 * b.abs().max(1.0))
}

#[test]
fn reads_vllms_real_output() {
    let reading = Reading::parse(include_str!("vllm.prom"));
    insta::assert_debug_snapshot!(reading, @"
    Reading {
        running: Some(
            12.0,
        ),
        waiting: Some(
            2.0,
        ),
        kv_usage: Some(
            0.4502,
        ),
        waiting_tokens: None,
        max_sequences: None,
        prefill_rate: None,
        prefix_queries: Some(
            122880.0,
        ),
        prefix_hits: Some(
            61440.0,
        ),
        prompt_tokens: Some(
            122880.0,
        ),
        generation_tokens: Some(
            40960.0,
        ),
        inter_token: Some(
            (
                1021.0,
                40840.0,
            ),
        ),
        prompts: Some(
            (
                122880.0,
                120.0,
            ),
        ),
        prefill_seconds: Some(
            12.288,
        ),
        cache_tokens: Some(
            307328.0,
        ),
        started: Some(
            1763890123.45,
        ),
    }
    ");
    let mut trend = Trend::default();
    assert!(!trend.observe(reading, at(0)));
    let gauges = trend.gauges(Own::default(), at(0), STALE).unwrap();
    assert!(near(gauges.waiting_tokens, 2048.0), "waiting sequences times their mean prompt");
    assert!(near(gauges.prefill_rate, 10_000.0), "prompt tokens over the seconds that they took");
    assert_eq!(gauges.inter_token, InterToken::Idle, "one look shows no recent token");
    assert_eq!(trend.cache_blocks(), Some(4802));
}

#[test]
fn nonsense_is_a_missing_metric() {
    for text in [
        "",
        "<html>not found</html>",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running -1",
        "vllm:num_requests_running 1.7e308",
        "vllm:num_requests_running 1e-300",
    ] {
        assert_eq!(Reading::parse(text), Reading::default(), "{text}");
    }
}

fn with_tokens(sum: f64, count: f64) -> Reading {
    Reading { inter_token: Some((sum, count)), prompt_tokens: Some(count), ..Reading::default() }
}

#[test]
fn the_time_between_tokens_follows_and_is_forgotten() {
    let mut trend = Trend::default();
    let seen = |trend: &Trend, now| trend.gauges(Own::default(), now, Duration::MAX).unwrap().inter_token;
    trend.observe(with_tokens(0.0, 0.0), at(0));
    assert_eq!(seen(&trend, at(0)), InterToken::Idle);
    trend.observe(with_tokens(1.0, 100.0), at(200));
    let InterToken::Seconds(first) = seen(&trend, at(200)) else { panic!() };
    assert!(near(Some(first), 0.01));
    // Ten seconds of 50 ms a token: the average has gone most of the way.
    let mut last = first;
    for n in 1..=50u32 {
        let tokens = f64::from(n) * 10.0;
        trend.observe(with_tokens(1.0 + tokens * 0.05, 100.0 + tokens), at(200 + u64::from(n) * 200));
        let InterToken::Seconds(now) = seen(&trend, at(200 + u64::from(n) * 200)) else { panic!() };
        assert!(now > last);
        last = now;
    }
    assert!((0.03..0.04).contains(&last), "{last}");
    // Then nothing: a slow moment is not held against a replica for ever.
    assert_eq!(seen(&trend, at(10_200 + 10_000)), InterToken::Idle);
}

#[test]
fn a_restart_shows_in_start_time_or_counters() {
    let reading =
        |started, prompt: f64| Reading { started, prompt_tokens: Some(prompt), ..Reading::default() };
    let mut trend = Trend::default();
    assert!(!trend.observe(reading(Some(100.0), 50.0), at(0)));
    assert!(trend.proves_same_process(&reading(Some(100.0), 60.0)));
    assert!(!trend.proves_same_process(&reading(Some(200.0), 60.0)));
    assert!(trend.observe(reading(Some(200.0), 60.0), at(1)));
    let mut trend = Trend::default();
    trend.observe(reading(None, 50.0), at(0));
    assert!(trend.proves_same_process(&reading(None, 50.0)));
    assert!(!trend.proves_same_process(&Reading::default()));
    assert!(trend.observe(reading(None, 0.0), at(1)));
    assert!(!trend.proves_same_process(&reading(None, 5.0)), "counters that start from zero prove nothing");
}

#[test]
fn old_metrics_are_no_metrics() {
    let mut trend = Trend::default();
    trend.observe(Reading { waiting: Some(1000.0), ..Reading::default() }, at(0));
    assert!(trend.gauges(Own::default(), at(1000), STALE).is_some());
    assert!(trend.gauges(Own::default(), at(1001), STALE).is_none());
}

#[test]
fn bytes_to_a_token_are_observed() {
    let mut trend = Trend::default();
    let prompts = |n: f64| Reading { prompts: Some((n * 200.0, n)), ..Reading::default() };
    trend.observe(prompts(100.0), at(0));
    assert!(near(Some(trend.bytes_per_token()), DEFAULT_BYTES_PER_TOKEN));
    for _ in 0..20 {
        trend.answered(600);
    }
    // Another scheduler's prompts are in the count too.
    trend.observe(prompts(160.0), at(200));
    assert!(near(Some(trend.bytes_per_token()), 3.0));
}

proptest! {
    #[test]
    fn any_metrics_give_sane_gauges(values in prop::collection::vec((0usize..11, prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX), Just(f64::MIN_POSITIVE), any::<f64>(), -10.0..1e9f64]), 0..30)) {
        let names = [engine::RUNNING, engine::WAITING, engine::WAITING_TOKENS, engine::PREFILL_RATE, "vllm:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_count", "vllm:prompt_tokens_total", engine::KV_USAGE, "vllm:request_prompt_tokens_sum", "vllm:request_prompt_tokens_count", "vllm:request_prefill_time_seconds_sum"];
        let mut trend = Trend::default();
        for (step, chunk) in values.chunks(5).enumerate() {
            let lines: Vec<String> = chunk.iter().map(|(i, v)| format!("{}{{a=\"b\"}} {v}", names[*i])).collect();
            let text = lines.join("\n");
            trend.observe(Reading::parse(&text), at(step as u64 * 200));
            let gauges = trend.gauges(Own::default(), at(step as u64 * 200), STALE).unwrap();
            for value in [gauges.running, gauges.waiting, gauges.waiting_tokens, gauges.prefill_rate].into_iter().flatten() {
                prop_assert!(value.is_finite() && value >= 0.0);
            }
            if let InterToken::Seconds(s) = gauges.inter_token {
                prop_assert!(s.is_finite() && s >= 0.0);
            }
        }
    }
}
