//! Every metric is there under vLLM's name, and moves when what it counts happens.

use std::collections::BTreeMap;

use serde_json::json;
use strata_engine::runtime::{EngineConfig, PauseMode, Speculation, SpeculativeConfig};
use strata_engine::sampling::SamplingParams;
use strata_engine::serve::router;
use strata_engine::step::StepLimits;
use strata_engine::tier::{RamTier, Tiers};
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{metric, post};
use crate::scheduling::{finish, prompt, request};
use crate::support::{config, guessing, with_tiers};

/// The samples of a scrape, summed over labels other than buckets.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.contains("le=\"")) {
        let (name, value) = (line.split(['{', ' ']).next().unwrap(), line.rsplit(' ').next().unwrap());
        *sums.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap();
    }
    sums
}

#[tokio::test]
async fn each_moves_with_what_it_counts() {
    let guess: SpeculativeConfig = r#"{"method": "ngram", "adaptive": false}"#.parse().unwrap();
    let limits =
        EngineConfig { step: StepLimits { tokens: 48, sequences: 8 }, max_model_len: Some(256), ..config() };
    let script: Vec<u32> = b"again and again and again and again.".iter().map(|b| u32::from(*b)).collect();
    let engine =
        guessing(FakeBackend::says(16, script), limits, Some(Speculation::new(&guess, None).unwrap()));
    let router = router(engine.clone(), Above::default());
    let before = samples(&engine.metrics().render());
    let chat =
        json!({"model": "test-model", "messages": [{"role": "user", "content": "Say it"}], "temperature": 0});
    for _ in 0..2 {
        post(&router, "/v1/chat/completions", &chat).await.json().await;
    }
    // Too many for the blocks, and all there when the first begins.
    engine.pause(PauseMode::Keep).await;
    let crowd = (0..5).map(|i| {
        let mut ask = request(prompt(i, 60), 60, SamplingParams::greedy());
        ask.rules.ignore_eos = true;
        finish(&engine, ask)
    });
    futures::join!(futures::future::join_all(crowd), engine.resume());
    engine.idle().await;
    let after = samples(&engine.metrics().render());
    for name in [
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "prompt_tokens_total",
        "prompt_tokens_cached_total",
        "generation_tokens_total",
        "request_success_total",
        "iteration_tokens_total_count",
        "iteration_tokens_total_sum",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "request_time_per_output_token_seconds_count",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_count",
        "request_inference_time_seconds_count",
        "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count",
        "request_prompt_tokens_sum",
        "request_generation_tokens_sum",
        "request_params_n_sum",
        "request_params_max_tokens_sum",
        "spec_decode_num_drafts_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "spec_decode_num_accepted_tokens_per_pos_total",
    ] {
        let name = format!("vllm:{name}");
        let of = |samples: &BTreeMap<String, f64>| samples.get(&name).copied().unwrap_or(0.0);
        assert!(of(&after) > of(&before), "{name} stands still at {}", of(&after));
    }
    for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"] {
        assert!(after[&format!("vllm:{name}")].abs() < 1e-9, "{name}: nothing runs");
    }
    for name in ["cache_config_info", "engine_sleep_state"] {
        assert!((after[&format!("vllm:{name}")] - 1.0).abs() < 1e-9, "{name}");
    }
    let counted = |name: &str| after[&format!("vllm:{name}")] - before[&format!("vllm:{name}")];
    assert!((counted("request_success_total") - 7.0).abs() < 1e-9);
    assert!((counted("request_generation_tokens_sum") - counted("generation_tokens_total")).abs() < 1e-9);
    assert!((counted("request_params_n_sum") - 7.0).abs() < 1e-9);
}

#[tokio::test]
async fn what_came_from_below_and_how_long_blocks_are_of_use() {
    let tiers = Tiers { ram: Some(RamTier::new(64)), disk: None };
    let engine = with_tiers(FakeBackend::new(16), config(), tiers);
    let router = router(engine.clone(), Above::default());
    assert!(!engine.metrics().render().contains("kv_block_lifetime"), "only where it is asked for");
    engine.follow_blocks(1.0.try_into().unwrap());
    let ask = |family| finish(&engine, request(prompt(family, 100), 4, SamplingParams::greedy()));
    ask(1).await;
    ask(1).await;
    // Others push it out of the pool, into memory.
    for family in 2..5 {
        ask(family).await;
    }
    let before = samples(&engine.metrics().render());
    let (_, cached) = ask(1).await;
    let after = samples(&engine.metrics().render());
    let grown = |name: &str| after[&format!("vllm:{name}")] - before[&format!("vllm:{name}")];
    assert_eq!(cached, 96);
    assert!((grown("external_prefix_cache_hits_total") - 96.0).abs() < 0.1);
    assert!((grown("external_prefix_cache_queries_total") - 100.0).abs() < 0.1);
    assert!(grown("prefix_cache_hits_total").abs() < 0.1, "not in the pool itself");
    assert!((grown("prompt_tokens_cached_total") - 96.0).abs() < 0.1);
    for name in ["kv_block_lifetime_seconds_count", "kv_block_idle_before_evict_seconds_count"] {
        assert!(after[&format!("vllm:{name}")] >= 12.0, "{name}");
    }
    assert!(metric(&router, "vllm:kv_block_reuse_gap_seconds_count").await >= 0.0);
}
