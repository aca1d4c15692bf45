//! Guessed tokens change how fast an answer comes and nothing else.

use std::sync::Arc;

use strata_engine::backend::Backend;
use strata_engine::runtime::{
    Engine, EngineConfig, GenerationRequest, OutputRules, Speculation, SpeculativeConfig,
};
use strata_engine::sampling::{Penalties, SamplingParams};
use strata_engine::step::StepLimits;
use strata_engine::{EngineOptions, KvCache, assemble};

use crate::backend::{FakeBackend, by_hash};
use crate::real_model::real_model;
use crate::scheduling::{counter, crowd_on, drained, finish, prompt, request};
use crate::support::{blocks_of, config, guessing};

fn ngram(max: usize, min: usize) -> Speculation {
    Speculation::new(&lookup(max, min), None).unwrap()
}

fn lookup(max: usize, min: usize) -> SpeculativeConfig {
    SpeculativeConfig::Ngram {
        num_speculative_tokens: 4,
        prompt_lookup_max: max,
        prompt_lookup_min: min,
        adaptive: false,
    }
}

fn asking(model: &str) -> SpeculativeConfig {
    SpeculativeConfig::DraftModel { model: model.into(), num_speculative_tokens: 3, adaptive: false }
}

fn draft(backend: impl Backend + 'static) -> Speculation {
    Speculation::new(&asking("draft"), Some(Box::new(backend))).unwrap()
}

/// Many at once; greedy and sampled; each as if it were alone and without guesses.
async fn crowd(blocks: usize, limits: EngineConfig, speculation: Speculation) -> Arc<Engine> {
    crowd_on(guessing(FakeBackend::new(blocks), limits, Some(speculation))).await
}

#[tokio::test]
async fn wrong_guesses_change_nothing() {
    // Single tokens are looked up: nearly every step guesses, and nearly every guess is wrong.
    let engine = crowd(blocks_of(8192), config(), ngram(1, 1)).await;
    let (drafted, accepted) = counted(&engine);
    assert!(drafted > 50.0 && accepted < drafted / 4.0, "{accepted} of {drafted}");
}

#[tokio::test]
async fn right_guesses_change_nothing() {
    let engine = crowd(blocks_of(8192), config(), draft(FakeBackend::new(blocks_of(8192)))).await;
    let (drafted, accepted) = counted(&engine);
    assert!(accepted > 50.0, "{accepted} of {drafted}");
    assert!(counter(&engine, "vllm:spec_decode_num_drafts_total") > 10.0);
    let text = engine.metrics().render();
    assert!(text.contains("_per_pos_total{model_name=\"test-model\",position=\"2\""), "{text}");
}

#[tokio::test]
async fn guesses_yield_to_running_sequences_when_blocks_are_few() {
    let limits =
        EngineConfig { step: StepLimits { tokens: 24, sequences: 8 }, max_model_len: Some(256), ..config() };
    let engine = crowd(16, limits, draft(FakeBackend::new(16))).await;
    assert!(counter(&engine, "vllm:num_preemptions_total") > 0.0);
}

#[tokio::test]
async fn a_draft_model_that_fails_is_left_alone() {
    let broken = FakeBackend::new(blocks_of(8192));
    let remote = broken.remote();
    remote.panic_next();
    let engine = crowd(blocks_of(8192), config(), draft(broken)).await;
    assert_eq!((remote.begun(), counted(&engine).0 > 0.0), (1, false));
}

fn counted(engine: &Engine) -> (f64, f64) {
    let of = |name| counter(engine, name);
    (of("vllm:spec_decode_num_draft_tokens_total"), of("vllm:spec_decode_num_accepted_tokens_total"))
}

/// Tokens drawn behind guesses follow the model's distribution: a chi-square test over three classes
/// (the likeliest token, the second, all others), whose probabilities are known.
#[tokio::test]
async fn sampling_keeps_its_distribution() {
    // A draft that guesses the likeliest token by another rule half of the time would be accepted too
    // often if acceptance leaked into the draw.
    let engine =
        guessing(FakeBackend::new(blocks_of(2048)), config(), Some(draft(FakeBackend::new(blocks_of(2048)))));
    let mut seen = [0.0f64; 3];
    let asked = prompt(3, 20);
    for seed in 0..250 {
        let sampling = SamplingParams { seed, ..SamplingParams::default() };
        let (answers, _) = finish(&engine, request(asked.clone(), 20, sampling)).await;
        let mut held = asked.clone();
        for token in &answers[0] {
            let likely = by_hash(&held);
            let second = 32 + (likely + 1) % 95;
            seen[if *token == likely { 0 } else { 1 + usize::from(*token != second) }] += 1.0;
            held.push(*token);
        }
    }
    assert!(counted(&engine).1 > 1000.0);
    // The fake backend's logits: 8, 7, and a slope that hardly depends on which two are left out.
    let rest: f64 = (0..259).map(|t| (-f64::from(t) / 100.0).exp()).sum::<f64>() - 0.8;
    let weights = [8f64.exp(), 7f64.exp(), rest];
    let (all, n) = (weights.iter().sum::<f64>(), seen.iter().sum::<f64>());
    let chi: f64 = seen
        .iter()
        .zip(weights)
        .map(|(seen, weight)| {
            let expected = n * weight / all;
            (seen - expected).powi(2) / expected
        })
        .sum();
    assert!(chi < 13.8, "chi-square {chi} of {seen:?}: beyond the 0.999 quantile at 2 degrees of freedom");
}

fn real(speculative: Option<SpeculativeConfig>) -> Option<Arc<Engine>> {
    let options = EngineOptions {
        speculative,
        kv_cache: KvCache::Blocks(128),
        max_model_len: Some(1024),
        ..EngineOptions::new(real_model()?.to_str().unwrap())
    };
    Some(assemble(&options, 0).unwrap())
}

#[tokio::test]
async fn the_real_model_answers_the_same_under_every_rule() {
    let model = real_model().map(|path| path.display().to_string()).unwrap_or_default();
    let Some(plain) = real(None) else { return };
    let text =
        "Repeat this list: alpha, beta, gamma, delta.\nalpha, beta, gamma, delta.\nalpha, beta, gamma,";
    let tokens = plain.tokenizer().encode(text, false).unwrap();
    let greedy = SamplingParams::greedy();
    let penalties = Penalties { frequency: 0.5, presence: 0.3, repetition: 1.1 };
    let end = plain.tokenizer().special().eos[0];
    let rules = OutputRules { max_tokens: 24, ..OutputRules::default() };
    let cases = [
        (greedy.clone(), rules.clone()),
        (SamplingParams { penalties, logprobs: Some(3), ..greedy.clone() }, rules.clone()),
        (
            SamplingParams { logit_bias: vec![(end, 12.0)], ..greedy.clone() },
            OutputRules { min_tokens: 9, ..rules.clone() },
        ),
        (greedy, OutputRules { stop: vec!["beta, g".into()], ..rules.clone() }),
        (SamplingParams { seed: 5, top_p: 0.9, ..SamplingParams::default() }, rules),
    ];
    for config in [lookup(4, 2), asking(&model)] {
        let guessing = real(Some(config.clone())).unwrap();
        for (sampling, rules) in &cases {
            let ask =
                GenerationRequest { rules: rules.clone(), ..request(tokens.clone(), 0, sampling.clone()) };
            assert_eq!(
                pieces(&guessing, ask.clone()).await,
                pieces(&plain, ask).await,
                "{config:?} {rules:?}"
            );
        }
        drained(&guessing).await;
        let (drafted, accepted) = counted(&guessing);
        assert!(accepted > 4.0, "{config:?}: {accepted} of {drafted}");
    }
}

/// Everything that is said of an answer.
async fn pieces(engine: &Engine, ask: GenerationRequest) -> Vec<strata_engine::runtime::Piece> {
    let mut generation = engine.submit(ask).unwrap();
    let mut pieces = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            strata_engine::runtime::Event::Piece(piece) => pieces.push(piece),
            strata_engine::runtime::Event::Failed(failure) => panic!("{failure}"),
            strata_engine::runtime::Event::Admitted { .. } | strata_engine::runtime::Event::Scored { .. } => {
            }
        }
    }
    pieces
}
