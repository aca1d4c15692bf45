//! The real model, over HTTP.

use std::sync::Arc;

use serde_json::json;
use strata_engine::backend::cpu::{CacheType, Precision};
use strata_engine::lora::{LoraOptions, Part, Target};
use strata_engine::model::load::load;
use strata_engine::runtime::Engine;
use strata_engine::serve::router;
use strata_engine::{EngineOptions, KvCache, assemble};
use strata_hop::Above;

use crate::client::{metric, post, streamed_text};
use crate::real_model::real_model;

fn start() -> Option<Arc<Engine>> {
    start_with(None)
}

fn start_with(lora: Option<LoraOptions>) -> Option<Arc<Engine>> {
    let options = EngineOptions {
        lora,
        served_model_name: Some("smollm2".into()),
        kv_cache: KvCache::Blocks(128),
        // "The" and "L" are as likely as each other after the question below, so what follows is a
        // matter of rounding.
        precision: Precision::Exact,
        kv_cache_dtype: CacheType::F32,
        ..EngineOptions::new(real_model()?.to_str().unwrap())
    };
    Some(assemble(&options, 0).unwrap())
}

#[tokio::test]
async fn a_chat_and_its_second_turn() {
    let Some(engine) = start() else { return };
    let router = router(engine.clone(), Above::default());
    let question = json!({"role": "user", "content": "What is the capital of France?"});
    let ask = |messages, stream| json!({"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 40, "stream": stream});
    let first = post(&router, "/v1/chat/completions", &ask(json!([question]), false)).await.json().await;
    let text = first["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, "The capital of France is Paris.");
    assert_eq!(first["choices"][0]["finish_reason"], "stop");
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    let events = post(&router, "/v1/chat/completions", &ask(json!([question]), true)).await.events().await;
    assert_eq!(streamed_text(&events), text, "streamed and cached is whole and uncached");

    let turn = json!([question, {"role": "assistant", "content": text}, {"role": "user", "content": "And of Italy?"}]);
    let second = post(&router, "/v1/chat/completions", &ask(turn, false)).await.json().await;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= 32, "the first turn is reused: {}", second["usage"]);
    assert!(second["choices"][0]["message"]["content"].as_str().unwrap().contains("Rome"), "{second}");
    engine.idle().await;
    assert!((metric(&router, "vllm:kv_cache_usage_perc").await).abs() < 1e-9);
}

#[tokio::test]
async fn two_requests_that_share_384_tokens_share_their_blocks() {
    let Some(engine) = start() else { return };
    let router = router(engine.clone(), Above::default());
    let shared: Vec<u32> = (0..384u32).map(|i| 1000 + i * 37 % 20_000).collect();
    let ask = |own: u32| {
        let prompt: Vec<u32> = shared.iter().copied().chain((0..32).map(|i| 500 + own * 100 + i)).collect();
        json!({"model": "smollm2", "prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": true})
    };
    let (one, two) = (ask(1), ask(2));
    let (a, b) = tokio::join!(post(&router, "/v1/completions", &one), post(&router, "/v1/completions", &two));
    let (a, b) = (a.json().await, b.json().await);
    let cached =
        |v: &serde_json::Value| v["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&a) + cached(&b), 384, "one computed the prefix, the other held its blocks");
    let again = post(&router, "/v1/completions", &one).await.json().await;
    assert_eq!(
        again["choices"][0]["text"], a["choices"][0]["text"],
        "batched equals alone, cached equals uncached"
    );
    engine.idle().await;
    assert!(
        (metric(&router, "vllm:kv_cache_usage_perc").await).abs() < 1e-9,
        "all blocks are free afterwards"
    );
}

/// Writes a random adapter of all modules for a model, as PEFT would save it.
fn adapter(folder: &std::path::Path, model: &std::path::Path, rank: usize) {
    use safetensors::tensor::{Dtype, TensorView};
    let spec = load(model).unwrap().spec;
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let mut state = 88_172_645_463_325_252_u64;
    let mut tensors = Vec::new();
    for layer in 0..spec.layers {
        for (module, target) in modules.iter().zip(Target::ALL) {
            let (rows, cols) = target.shape(&spec, Part::Shared);
            let inside = if target.is_feed_forward() { "mlp" } else { "self_attn" };
            for (half, shape) in [("A", [rank, cols]), ("B", [rows, rank])] {
                let name =
                    format!("base_model.model.model.layers.{layer}.{inside}.{module}.lora_{half}.weight");
                let bytes: Vec<u8> = (0..shape[0] * shape[1])
                    .flat_map(|_| {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_le_bytes()
                    })
                    .collect();
                tensors.push((name, shape, bytes));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 0.2, "target_modules": modules});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

#[tokio::test]
async fn an_adapter_answers_otherwise_and_the_model_as_ever() {
    let Some(model) = real_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path(), &model, 8);
    let module = format!("random={}", folder.path().display()).parse().unwrap();
    let lora = LoraOptions { modules: vec![module], ..LoraOptions::default() };
    let (plain, adapted) = (start().unwrap(), start_with(Some(lora)).unwrap());
    let question = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let ask = |model: &str| json!({"model": model, "messages": question, "temperature": 0, "max_tokens": 24});
    let text = async |engine: &Arc<Engine>, body: serde_json::Value| {
        let router = router(engine.clone(), Above::default());
        let answer = post(&router, "/v1/chat/completions", &body).await.json().await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let base = text(&plain, ask("smollm2")).await;
    let (mixed, random) = tokio::join!(text(&adapted, ask("smollm2")), text(&adapted, ask("random")));
    assert_eq!(mixed, base, "beside the adapter's");
    assert_ne!(random, base);
    assert_eq!(text(&adapted, ask("random")).await, random, "alone, and on a cached prefix");
}

#[tokio::test]
async fn marks_bind_what_the_model_says_and_prompts_are_scored_alone() {
    let Some(engine) = start() else { return };
    let router = router(engine.clone(), Above::default());
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
                        "required": ["city", "days"], "additionalProperties": false});
    let older = json!({"type": "structural_tag", "triggers": ["<call"],
                       "structures": [{"begin": "<call>", "schema": schema, "end": "</call>"}]});
    let call = json!({"type": "tag", "begin": "<call>", "content": {"type": "json_schema", "json_schema": schema},
                      "end": "</call>"});
    let newer = json!({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<call"],
                       "tags": [call], "at_least_one": true, "stop_after_first": true}});
    let ask = |content: &str, format| {
        json!({"model": "smollm2", "temperature": 0, "max_tokens": 40, "response_format": format,
               "structured_outputs": {"disable_any_whitespace": true},
               "messages": [{"role": "user", "content": content}]})
    };
    let said = async |body| {
        let answer = post(&router, "/v1/chat/completions", &body).await.json().await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let bound = said(ask("I fly to Rome for 3 days.", newer)).await;
    eprintln!("bound: {bound}");
    let inside = bound.strip_prefix("<call>").unwrap().strip_suffix("</call>").unwrap();
    let inside: serde_json::Value = serde_json::from_str(inside).unwrap();
    assert!(inside["city"] == "Rome" || inside["city"] == "Paris", "{inside}");
    assert!(inside["days"].is_i64(), "{inside}");
    // Without a mark the answer is what it is without a grammar.
    let free = said(ask("What is the capital of France?", older)).await;
    assert_eq!(free, "The capital of France is Paris.");

    let echo = json!({"model": "smollm2", "prompt": "The capital of France is Paris", "echo": true, "logprobs": 1,
                      "max_tokens": 0, "temperature": 0});
    let scored = post(&router, "/v1/completions", &echo).await.json().await;
    let logprobs = &scored["choices"][0]["logprobs"];
    eprintln!("scored: {} {}", logprobs["tokens"], logprobs["token_logprobs"]);
    assert_eq!(scored["choices"][0]["text"], "The capital of France is Paris");
    let last = logprobs["token_logprobs"].as_array().unwrap().last().unwrap().as_f64().unwrap();
    assert!(last > -3.0, "{logprobs}");
}
