//! What an answer must not depend on: what else runs, what is cached, how a prompt is cut.

use std::sync::Arc;

use crate::backend::FakeBackend;
use crate::support::{IM_END, blocks_of, config, engine};
use strata_engine::runtime::{Engine, EngineConfig, Event, GenerationRequest, OutputRules};
use strata_engine::sampling::SamplingParams;
use strata_engine::step::StepLimits;
use strata_wire::chat::FinishReason;

pub(crate) fn prompt(family: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| 33 + (i * 7 + family * 13) % 90).collect()
}

pub(crate) fn request(prompt: Vec<u32>, tokens: usize, sampling: SamplingParams) -> GenerationRequest {
    GenerationRequest {
        id: "r".into(),
        prompts: vec![prompt],
        n: 1,
        sampling,
        rules: OutputRules { max_tokens: tokens, ..OutputRules::default() },
        structure: None,
        claims: Vec::new(),
        keeps: false,
        cache_salt: None,
        priority: 0,
        adapter: None,
        span: None,
    }
}

/// The tokens of each answer, and the tokens that the cache had.
pub(crate) async fn finish(engine: &Engine, request: GenerationRequest) -> (Vec<Vec<u32>>, usize) {
    let mut answers = vec![Vec::new(); request.prompts.len() * request.n];
    let mut cached = 0;
    let mut generation = engine.submit(request).unwrap();
    while let Some(event) = generation.next().await {
        match event {
            Event::Admitted { cached_tokens, .. } => cached += cached_tokens,
            Event::Piece(piece) => answers[piece.choice].extend(piece.token.map(|t| t.id)),
            Event::Failed(failure) => panic!("{failure}"),
            Event::Scored { .. } => {}
        }
    }
    (answers, cached)
}

pub(crate) fn sampled() -> SamplingParams {
    SamplingParams { temperature: 1.5, seed: 42, ..SamplingParams::default() }
}

pub(crate) async fn alone(prompt: Vec<u32>, tokens: usize, sampling: SamplingParams) -> Vec<u32> {
    let limits =
        EngineConfig { prefix_cache: false, step: StepLimits { tokens: 4096, sequences: 1 }, ..config() };
    let engine = engine(FakeBackend::new(blocks_of(1024)), limits);
    finish(&engine, request(prompt, tokens, sampling)).await.0.remove(0)
}

pub(crate) async fn drained(engine: &Engine) {
    engine.idle().await;
    let text = engine.metrics().render();
    let usage = text.lines().find(|l| l.starts_with("vllm:kv_cache_usage_perc{")).unwrap();
    assert!(usage.ends_with(" 0.0"), "all blocks are free afterwards: {usage}");
}

/// Many at once, with shared beginnings, on a machine with too few blocks and small steps.
async fn crowd(blocks: usize, limits: EngineConfig) -> Arc<Engine> {
    crowd_on(engine(FakeBackend::new(blocks), limits)).await
}

/// Each answer of an engine's crowd is what it is alone.
pub(crate) async fn crowd_on(engine: Arc<Engine>) -> Arc<Engine> {
    let cases: Vec<(Vec<u32>, SamplingParams)> = (0..12u32)
        .map(|i| {
            let tokens = [prompt(i % 3, 70), prompt(i, 9 + i as usize)].concat();
            (tokens, if i % 2 == 0 { SamplingParams::greedy() } else { sampled() })
        })
        .collect();
    let running = cases.iter().map(|(p, s)| finish(&engine, request(p.clone(), 60, s.clone())));
    let got = futures::future::join_all(running).await;
    for ((tokens, sampling), (answers, _)) in cases.into_iter().zip(got) {
        assert_eq!(answers[0], alone(tokens, 60, sampling).await);
    }
    drained(&engine).await;
    engine
}

pub(crate) fn counter(engine: &Engine, name: &str) -> f64 {
    let text = engine.metrics().render();
    let line = text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn batched_is_alone() {
    let engine = crowd(blocks_of(8192), config()).await;
    assert!(counter(&engine, "vllm:prefix_cache_hits_total") > 0.0);
    assert!(counter(&engine, "vllm:num_preemptions_total") < 0.5);
}

#[tokio::test]
async fn chunked_and_preempted_is_whole() {
    let limits =
        EngineConfig { step: StepLimits { tokens: 24, sequences: 8 }, max_model_len: Some(256), ..config() };
    let engine = crowd(16, limits).await;
    assert!(counter(&engine, "vllm:num_preemptions_total") > 0.0, "so few blocks force preemptions");
}

#[tokio::test]
async fn uncached_is_cached() {
    let engine = crowd(blocks_of(8192), EngineConfig { prefix_cache: false, ..config() }).await;
    assert!(counter(&engine, "vllm:prefix_cache_hits_total") < 0.5);
}

#[tokio::test]
async fn two_requests_that_share_384_tokens_share_their_blocks() {
    let (backend, gate) = FakeBackend::new(blocks_of(2048)).gated();
    let remote = backend.remote();
    let engine = engine(backend, config());
    let shared = prompt(0, 384);
    let ask = |family| request([shared.clone(), prompt(family, 64)].concat(), 30, SamplingParams::greedy());
    // The first step waits until both were submitted.
    let (a, b, ()) = tokio::join!(finish(&engine, ask(1)), finish(&engine, ask(2)), async { drop(gate) });
    assert_eq!((a.1, b.1), (0, 384));
    // Both decode at the same time in some step, on the same first blocks and different last ones.
    let batches = remote.batches();
    let both = batches.iter().find(|b| b.spans.len() == 2 && b.spans.iter().all(|s| s.len == 1)).unwrap();
    let (x, y) = (&both.spans[0].blocks, &both.spans[1].blocks);
    assert_eq!(x[..24], y[..24]);
    assert_ne!(x[24..], y[24..]);
    let computed: usize = batches.iter().map(|b| b.tokens.len()).sum();
    assert_eq!(computed, 384 + 2 * 64 + 2 * 29, "the shared tokens were computed once");
    drained(&engine).await;
}

#[tokio::test]
async fn several_answers_share_their_prompt_and_differ_by_their_series() {
    let backend = FakeBackend::new(blocks_of(2048));
    let remote = backend.remote();
    let engine = engine(backend, config());
    let ask = GenerationRequest { n: 4, ..request(prompt(5, 161), 12, sampled()) };
    let (answers, cached) = finish(&engine, ask.clone()).await;
    assert_eq!(cached, 0, "the prompt itself was new");
    let computed: usize = remote.batches().iter().map(|b| b.tokens.len()).sum();
    assert_eq!(computed, 161 + 3 + 4 * 11, "the others computed only the prompt's last token");
    assert!(answers.iter().any(|a| *a != answers[0]));
    assert_eq!(finish(&engine, ask).await.0, answers, "a seed repeats");
}

#[tokio::test]
async fn limits_hold() {
    let engine = engine(FakeBackend::new(blocks_of(2048)), config());
    let run = |rules: OutputRules, sampling: SamplingParams| {
        let ask = GenerationRequest { rules, ..request(prompt(0, 20), 0, sampling) };
        let engine = engine.clone();
        async move {
            let mut generation = engine.submit(ask).unwrap();
            let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), None);
            while let Some(event) = generation.next().await {
                if let Event::Piece(piece) = event {
                    text.push_str(&piece.text);
                    tokens.extend(piece.token.map(|t| t.id));
                    finish = piece.finish;
                }
            }
            (text, tokens, finish.unwrap())
        }
    };
    let rules = |max_tokens| OutputRules { max_tokens, ..OutputRules::default() };
    let (text, tokens, reason) = run(rules(40), SamplingParams::greedy()).await;
    assert_eq!((tokens.len(), reason), (40, FinishReason::Length));
    assert_eq!(text.len(), 40);

    let stop = text[10..13].to_owned();
    let at = text.find(&stop).unwrap();
    let stopped = OutputRules { stop: vec![stop.clone()], ..rules(40) };
    let (short, _, reason) = run(stopped.clone(), SamplingParams::greedy()).await;
    assert_eq!((short.as_str(), reason), (&text[..at], FinishReason::Stop));
    let (long, tokens, _) = run(OutputRules { min_tokens: 30, ..stopped }, SamplingParams::greedy()).await;
    assert!(tokens.len() >= 30 && text.starts_with(&long), "a stop text before min_tokens is text");

    let eager = SamplingParams { logit_bias: vec![(IM_END, 100.0)], ..SamplingParams::greedy() };
    let (text, tokens, reason) = run(rules(40), eager.clone()).await;
    assert_eq!((text.as_str(), tokens.as_slice(), reason), ("", &[IM_END][..], FinishReason::Stop));
    let (_, tokens, _) = run(OutputRules { min_tokens: 5, ..rules(40) }, eager.clone()).await;
    assert_eq!((tokens.len(), tokens[5]), (6, IM_END), "the end is banned until min_tokens");
    let (text, tokens, reason) = run(OutputRules { ignore_eos: true, ..rules(4) }, eager).await;
    assert_eq!((text.as_str(), tokens.len(), reason), ("", 4, FinishReason::Length));
    let byte = OutputRules { stop_token_ids: vec![tokens[0]], ignore_eos: true, ..rules(9) };
    let (_, tokens, reason) =
        run(byte, SamplingParams { logit_bias: vec![(IM_END, 100.0)], ..SamplingParams::greedy() }).await;
    assert_eq!((tokens.len(), reason), (1, FinishReason::Stop));
}
