//! Every kind of bad request, and what the client is told: one table.

use std::fmt::Write;

use serde_json::{Value, json};
use strata_engine::runtime::MAX_TEXT_BYTES;
use strata_engine::serve::router;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{get, post, send};
use crate::support::{config, engine};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn with(base: &Value, more: Value) -> String {
    let mut body = base.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

#[tokio::test]
async fn bad_requests() {
    let router = router(engine(FakeBackend::new(256), config()), Above::default());
    let chat = json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]});
    let completion = json!({"model": "test-model", "prompt": "Hi"});
    let mut cases: Vec<(&str, String)> = Vec::new();
    for body in [
        "",
        "{",
        "[1]",
        "{\"model\": nope}",
        "{\"model\": \"a\", \"model\": \"b\"}",
        "{\"model\": \"\\ud800\"}",
    ] {
        cases.push((CHAT, body.to_owned()));
    }
    for body in [
        json!({"messages": [{"role": "user", "content": "Hi"}]}),
        json!({"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]}),
        json!({"model": 7, "messages": []}),
        json!({"model": "test-model"}),
    ] {
        cases.push((CHAT, body.to_string()));
    }
    for messages in [
        json!([]),
        json!("Hi"),
        json!(["Hi"]),
        json!([{"content": "Hi"}]),
        json!([{"role": "wizard", "content": "Hi"}]),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": 5}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": ["Hi"]}]),
        json!([{"role": "assistant", "tool_calls": [{"id": 1}]}]),
        json!([{"role": "user", "content": "x".repeat(2000)}]),
    ] {
        cases.push((CHAT, with(&chat, json!({"messages": messages}))));
    }
    for (name, values) in [
        ("temperature", vec![json!(-0.1), json!(2.1), json!("hot"), json!([])]),
        ("top_p", vec![json!(0), json!(1.01)]),
        ("top_k", vec![json!(-2), json!(1.5)]),
        ("min_p", vec![json!(-1), json!(2)]),
        ("seed", vec![json!("x"), json!(1.5)]),
        ("frequency_penalty", vec![json!(-2.1)]),
        ("presence_penalty", vec![json!(2.1)]),
        ("repetition_penalty", vec![json!(0)]),
        ("n", vec![json!(0), json!(129), json!("2")]),
        ("best_of", vec![json!(3)]),
        ("max_tokens", vec![json!(-5), json!(0), json!(1.5), json!("many")]),
        ("max_completion_tokens", vec![json!(-1)]),
        ("min_tokens", vec![json!(-1), json!(5000)]),
        ("logprobs", vec![json!(3)]),
        ("top_logprobs", vec![json!(5), json!(21)]),
        ("stop", vec![json!(5), json!([1]), json!([""]), json!(vec!["x"; 17])]),
        ("stop_token_ids", vec![json!([259]), json!(7)]),
        ("logit_bias", vec![json!({"300": 1}), json!({"5": 101}), json!({"x": 1}), json!([])]),
        ("stream", vec![json!("yes")]),
        ("stream_options", vec![json!({"include_usage": true})]),
        ("ignore_eos", vec![json!(1)]),
        ("priority", vec![json!("high")]),
        ("cache_salt", vec![json!(5)]),
        ("tools", vec![json!([{"type": "web"}]), json!([{"type": "function"}]), json!({})]),
        (
            "tool_choice",
            vec![
                json!("required"),
                json!({"type": "function", "function": {"name": "f"}}),
                json!({}),
                json!("maybe"),
                json!(1),
            ],
        ),
        ("functions", vec![json!([])]),
        ("response_format", vec![json!({"type": "xml"}), json!({"type": "json_schema"}), json!("json")]),
        ("modalities", vec![json!(["text", "audio"])]),
        ("audio", vec![json!({})]),
        ("kv_transfer_params", vec![json!([]), json!({"do_remote_decode": true})]),
        ("guided_json", vec![json!([]), json!("{")]),
        ("use_beam_search", vec![json!(true)]),
        ("chat_template", vec![json!("{{ x }}")]),
        ("continue_final_message", vec![json!("yes")]),
        ("truncation_side", vec![json!("middle"), json!(1)]),
        ("guided_whitespace_pattern", vec![json!(" ?"), json!(1)]),
        ("documents", vec![json!([{"text": "x"}])]),
        ("repetition_detection", vec![json!({"max_pattern_size": 3})]),
        ("logprob_token_ids", vec![json!([1])]),
        ("thinking_token_budget", vec![json!(64)]),
        ("reasoning_effort", vec![json!("extreme"), json!(3)]),
        ("add_special_tokens", vec![json!("no")]),
        ("spaces_between_special_tokens", vec![json!("no")]),
        ("max_tokens", vec![json!(1u64 << 63)]),
        ("seed", vec![json!(1u64 << 63), json!(1e30)]),
    ] {
        for value in values {
            cases.push((CHAT, with(&chat, json!({name: value}))));
        }
    }
    cases.push((CHAT, with(&chat, json!({"stream": true, "stream_options": {"include_usage": 1}}))));
    for (name, values) in [
        (
            "prompt",
            vec![
                json!(null),
                json!(""),
                json!([]),
                json!({}),
                json!(["a", 1]),
                json!([1, "a"]),
                json!([300]),
                json!([[]]),
                json!("x".repeat(1024)),
                json!("x".repeat(40_000)),
            ],
        ),
        ("logprobs", vec![json!(6), json!(true)]),
        ("echo", vec![json!("no")]),
        ("suffix", vec![json!("end")]),
    ] {
        for value in values {
            cases.push((COMPLETIONS, with(&completion, json!({name: value}))));
        }
    }
    for more in [
        json!({"echo": true, "max_tokens": -1}),
        json!({"best_of": 2, "n": 3}),
        json!({"best_of": 2, "stream": true}),
        json!({"prompt_logprobs": 1, "stream": true}),
        json!({"prompt_logprobs": 21}),
        json!({"truncate_prompt_tokens": 0}),
        json!({"allowed_token_ids": []}),
        json!({"bad_words": [" "]}),
        json!({"return_token_ids": 1}),
    ] {
        cases.push((COMPLETIONS, with(&completion, more)));
    }
    cases.push((COMPLETIONS, with(&completion, json!({"prompt": vec!["a"; 40], "n": 2}))));
    // Refused for their number, before the first is looked at.
    cases.push((COMPLETIONS, with(&completion, json!({"prompt": vec!["x".repeat(2000); 65]}))));
    for (path, body) in [
        ("/tokenize", json!({"prompt": "x".repeat(MAX_TEXT_BYTES + 1)})),
        ("/tokenize", json!({})),
        ("/tokenize", json!({"prompt": 5})),
        ("/tokenize", json!({"model": "other", "prompt": "a"})),
        ("/detokenize", json!({})),
        ("/detokenize", json!({"tokens": ["a"]})),
        ("/detokenize", json!({"tokens": [4000]})),
    ] {
        cases.push((path, body.to_string()));
    }
    let mut table = String::new();
    for (path, body) in cases {
        let answer = send(&router, "POST", path, &[("content-type", "application/json")], body.clone()).await;
        note(
            &mut table,
            &format!("POST {path} {}", shorten(&body)),
            answer.status.as_u16(),
            &answer.text().await,
        );
    }
    for (method, path) in [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("GET", "/v1/nothing"),
        ("DELETE", "/health"),
    ] {
        let answer = send(&router, method, path, &[], String::new()).await;
        note(&mut table, &format!("{method} {path}"), answer.status.as_u16(), &answer.text().await);
    }
    let body = chat.to_string();
    let answer = send(&router, "POST", CHAT, &[("x-strata-request-id", "a/b")], body).await;
    note(&mut table, "POST with a bad request id", answer.status.as_u16(), &answer.text().await);
    insta::assert_snapshot!("bad_requests", table);
}

fn shorten(body: &str) -> String {
    let body =
        body.replace("\"model\":\"test-model\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],", "…");
    if body.len() > 160 { format!("{}…", &body[..150]) } else { body }
}

fn note(table: &mut String, request: &str, status: u16, body: &str) {
    assert!((400..500).contains(&status), "{request} gave {status}: {body}");
    let error: Value =
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{request} gave no JSON: {body}"));
    let e = &error["error"];
    assert!(e["message"].is_string() && e["type"].is_string(), "{error}");
    let (param, code) = (&e["param"], &e["code"]);
    writeln!(
        table,
        "{request}\n    {status} param={param} code={code}\n    {}",
        e["message"].as_str().unwrap()
    )
    .unwrap();
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let router = router(engine(FakeBackend::new(256), config()), Above::default());
    let body = format!("{{\"model\": \"test-model\", \"prompt\": \"{}\"}}", "x".repeat(50_000_000));
    let answer = send(&router, "POST", COMPLETIONS, &[], body).await;
    assert_eq!(answer.status.as_u16(), 413);
    let text = answer.text().await;
    assert!(text.contains("32 MiB"), "{text}");
}

#[tokio::test]
async fn what_others_send_and_has_no_effect_is_accepted() {
    let router = router(engine(FakeBackend::new(256), config()), Above::default());
    let body = json!({
        "model": "test-model", "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "x"}],
        "max_tokens": 2, "user": "u", "metadata": {}, "store": false, "service_tier": "auto", "parallel_tool_calls": true,
        "response_format": {"type": "text"}, "modalities": ["text"], "temperature": null, "stop": null, "logit_bias": null,
        "tools": null, "something_new": [1, {"a": 2}], "top_k": -1, "n": 1.0, "documents": [], "reasoning_effort": "low", "spaces_between_special_tokens": false, "chat_template_kwargs": {"x": 1},
    });
    let answer = post(&router, CHAT, &body).await;
    let status = answer.status;
    assert_eq!(status.as_u16(), 200, "{}", answer.text().await);
    assert_eq!(get(&router, "/health").await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_limit_beyond_the_context_is_cut_to_the_room_that_the_prompt_leaves() {
    let router = router(engine(FakeBackend::new(256), config()), Above::default());
    let body =
        json!({"model": "test-model", "prompt": vec![1; 1000], "max_tokens": 5000, "ignore_eos": true});
    let answer = post(&router, COMPLETIONS, &body).await;
    assert_eq!(answer.status.as_u16(), 200);
    let answer: Value = serde_json::from_str(&answer.text().await).unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 1000, "completion_tokens": 24, "total_tokens": 1024, "prompt_tokens_details": {"cached_tokens": 0}})
    );
}
