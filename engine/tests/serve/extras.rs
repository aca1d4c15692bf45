//! vLLM's extra members: scores of prompts, best of many, ids of tokens, cuts and continuations.

use axum::Router;
use serde_json::{Value, json};
use strata_engine::serve::router;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::post;
use crate::support::{config, engine};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn serve(backend: FakeBackend) -> Router {
    router(engine(backend, config()), Above::default())
}

fn with(base: &Value, more: Value) -> Value {
    let mut body = base.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn one(router: &Router, body: Value) -> Value {
    post(router, COMPLETIONS, &body).await.json().await["choices"][0].clone()
}

#[tokio::test]
async fn each_place_of_a_prompt_has_the_score_that_its_beginning_gives() {
    let router = serve(FakeBackend::new(256));
    let prompt: Vec<u32> = (0..200).map(|i| 33 + i * i % 90).collect();
    let base = json!({"model": "test-model", "temperature": 0, "max_tokens": 1});
    let whole = with(&base, json!({"prompt": prompt, "prompt_logprobs": 2}));
    let (scored, other) = tokio::join!(one(&router, whole.clone()), one(&router, whole.clone()));
    assert_eq!(scored, other, "in a batch, and again although a prefix is cached");
    let places = scored["prompt_logprobs"].as_array().unwrap();
    assert_eq!((places.len(), &places[0]), (200, &Value::Null));
    for at in [1, 63, 64, 65, 128, 199] {
        let own = &places[at][prompt[at].to_string()];
        assert!(
            own["rank"].as_u64().unwrap() >= 1 && own["logprob"].as_f64().unwrap() < 0.0,
            "{}",
            places[at]
        );
        let more = json!({"prompt": prompt[..at], "logprobs": 2, "return_token_ids": true});
        let next = one(&router, with(&base, more)).await;
        let (id, likely) = (next["token_ids"][0].to_string(), &next["logprobs"]["token_logprobs"][0]);
        let scored = places[at][&id]["logprob"].as_f64().unwrap() as f32;
        let likely = likely.as_f64().unwrap() as f32;
        assert!((scored - likely).abs() < f32::EPSILON, "place {at}: {scored} {likely}");
        assert_eq!(places[at][&id]["rank"], 1);
    }
    let two = with(&base, json!({"prompt": [prompt[..9], prompt[..5]], "prompt_logprobs": 0, "n": 2}));
    let answer = post(&router, COMPLETIONS, &two).await.json().await;
    let lengths: Vec<usize> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["prompt_logprobs"].as_array().unwrap().len())
        .collect();
    assert_eq!(lengths, [9, 9, 5, 5]);
    assert_eq!(answer["usage"]["prompt_tokens"], 14, "each prompt is counted once");

    let chat = json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
                      "prompt_logprobs": 0, "return_token_ids": true});
    let answer = post(&router, CHAT, &chat).await.json().await;
    let ids = answer["prompt_token_ids"].as_array().unwrap();
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), ids.len());
    assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_echo_has_the_log_probabilities_of_its_prompt() {
    let router = serve(FakeBackend::new(256));
    let body = json!({"model": "test-model", "prompt": "Hello", "echo": true, "logprobs": 1, "max_tokens": 2,
                      "temperature": 0});
    let answer = one(&router, body.clone()).await;
    let logprobs = &answer["logprobs"];
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(answer["text"], tokens);
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert!((1..7).all(|i| logprobs["token_logprobs"][i].as_f64().unwrap() < 0.0), "{logprobs}");
    assert!(answer.get("prompt_logprobs").is_none(), "only when it is asked for");
    let by_id = one(&router, with(&body, json!({"return_tokens_as_token_ids": true}))).await;
    assert_eq!(by_id["logprobs"]["tokens"][0], "token_id:72");
}

#[tokio::test]
async fn the_best_of_many_is_the_likeliest() {
    let router = serve(FakeBackend::new(256));
    let body = json!({"model": "test-model", "prompt": "Hello", "max_tokens": 6, "temperature": 1, "seed": 4,
                      "logprobs": 0});
    let mean = |choice: &Value| {
        let of: Vec<f64> = choice["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    let many = post(&router, COMPLETIONS, &with(&body, json!({"n": 8}))).await.json().await;
    let mut means: Vec<f64> = many["choices"].as_array().unwrap().iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let best = post(&router, COMPLETIONS, &with(&body, json!({"n": 2, "best_of": 8}))).await.json().await;
    let got: Vec<f64> = best["choices"].as_array().unwrap().iter().map(mean).collect();
    assert_eq!(got, means[..2]);
    assert_eq!(best["usage"]["completion_tokens"], 48, "all that were generated count");
}

#[tokio::test]
async fn prompts_are_cut_and_continued_and_stops_are_told() {
    let router = serve(FakeBackend::new(256));
    let body = json!({"model": "test-model", "prompt": "Hello you", "max_tokens": 8, "temperature": 0,
                      "return_token_ids": true});
    let cut = one(&router, with(&body, json!({"truncate_prompt_tokens": 3}))).await;
    assert_eq!(cut["prompt_token_ids"], json!([121, 111, 117]));
    for (side, kept) in [("left", [121, 111, 117]), ("right", [72, 101, 108])] {
        for prompt in [json!("Hello you"), json!("Hello you".bytes().collect::<Vec<_>>())] {
            let cut = json!({"prompt": prompt, "truncate_prompt_tokens": 3, "truncation_side": side});
            assert_eq!(one(&router, with(&body, cut)).await["prompt_token_ids"], json!(kept));
        }
    }
    let whole = one(&router, body.clone()).await;
    assert!(whole.get("stop_reason").is_none());
    let (text, ids) = (whole["text"].as_str().unwrap(), &whole["token_ids"]);
    let stopped =
        one(&router, with(&body, json!({"stop": [&text[3..4]], "include_stop_str_in_output": true}))).await;
    let said = stopped["text"].as_str().unwrap();
    assert!(text.starts_with(said) && said.ends_with(&text[3..4]), "{said}");
    assert_eq!(stopped["stop_reason"], text[3..4]);
    let stopped = one(&router, with(&body, json!({"stop_token_ids": [ids[2]]}))).await;
    assert_eq!((&stopped["stop_reason"], &stopped["finish_reason"]), (&ids[2], &json!("stop")));

    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let chat = json!({"model": "test-model", "messages": messages, "max_tokens": 1, "return_token_ids": true,
                      "continue_final_message": true});
    let answer = post(&router, CHAT, &chat).await.json().await;
    let prompt: Vec<u8> =
        answer["prompt_token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u8).collect();
    assert!(prompt.ends_with(b"assistant\nWell, "), "{}", String::from_utf8_lossy(&prompt));
    let both = post(&router, CHAT, &with(&chat, json!({"add_generation_prompt": true}))).await;
    assert_eq!(both.status, 400);
    let streamed = with(&body, json!({"stream": true, "stop_token_ids": [ids[2]]}));
    let events = post(&router, COMPLETIONS, &streamed).await.events().await;
    let told: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["token_ids"].as_array()).flatten().collect();
    assert_eq!(told, [&ids[0], &ids[1], &ids[2]]);
    assert!(events.iter().any(|e| e["choices"][0]["stop_reason"] == ids[2]));
}
