//! Requests over HTTP against a backend that the test holds still.

use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use serde_json::{Value, json};
use strata_engine::runtime::Engine;
use strata_engine::serve::router;
use strata_hop::{Above, Bound, HopToken};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::backend::{FakeBackend, Remote};
use crate::client::{self, get, metric, post, send, streamed_text, until};
use crate::support::{TOOL_CALL, blocks_of, config, engine};

fn chat(more: Value) -> Value {
    let mut body =
        json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn serve(backend: FakeBackend) -> (Router, Arc<Engine>) {
    let engine = engine(backend, config());
    (router(engine.clone(), Above::default()), engine)
}

fn says(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn an_answer_and_its_usage() {
    let (router, _engine) = serve(FakeBackend::says(256, says("Hello, you.")));
    let mut answer = post(&router, "/v1/chat/completions", &chat(json!({}))).await.json().await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    answer["id"] = "chatcmpl-1".into();
    assert!(answer["created"].as_i64().unwrap() > 1_700_000_000);
    answer["created"] = 0.into();
    insta::assert_json_snapshot!("chat_whole", answer);
}

#[tokio::test]
async fn a_stream_is_openais() {
    let (router, _engine) = serve(FakeBackend::says(256, says("Hé!")));
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let answer = post(&router, "/v1/chat/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let mut events = answer.events().await;
    for event in events.iter_mut().filter(|e| e.is_object()) {
        event["id"] = "chatcmpl-1".into();
        event["created"] = 0.into();
    }
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    insta::assert_snapshot!("chat_stream", lines.join("\n"));
}

#[tokio::test]
async fn a_completion_streams_and_its_pieces_are_the_whole() {
    let (router, _engine) = serve(FakeBackend::new(256));
    let body = |stream: bool| {
        json!({"model": "test-model", "prompt": ["One", "Two"], "n": 2, "max_tokens": 9, "seed": 5, "echo": true,
               "stream": stream})
    };
    let mut whole = post(&router, "/v1/completions", &body(false)).await.json().await;
    let events = post(&router, "/v1/completions", &body(true)).await.events().await;
    assert_eq!(events.last(), Some(&Value::Null));
    let mut texts = vec![String::new(); 4];
    let mut reasons = vec![Value::Null; 4];
    for choice in events.iter().flat_map(|e| e["choices"].as_array().cloned().unwrap_or_default()) {
        let at = choice["index"].as_u64().unwrap() as usize;
        texts[at].push_str(choice["text"].as_str().unwrap());
        reasons[at] = choice["finish_reason"].clone();
    }
    for (at, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["text"], texts[at]);
        assert_eq!((&choice["finish_reason"], &reasons[at]), (&json!("length"), &json!("length")));
        assert!(texts[at].starts_with(["One", "One", "Two", "Two"][at]));
    }
    assert_eq!(
        whole["usage"].take(),
        json!({
            "prompt_tokens": 6, "completion_tokens": 36, "total_tokens": 42,
            "prompt_tokens_details": {"cached_tokens": 0},
        })
    );
}

#[tokio::test]
async fn log_probabilities_cover_every_token_once() {
    let (router, _engine) = serve(FakeBackend::says(256, says("abcSTOP")));
    let body = chat(json!({"logprobs": true, "top_logprobs": 2, "stop": "STOP", "stream": true}));
    let events = post(&router, "/v1/chat/completions", &body).await.events().await;
    assert_eq!(streamed_text(&events), "abc");
    let tokens: Vec<String> = events
        .iter()
        .flat_map(|e| e["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .map(|t| {
            assert_eq!(t["top_logprobs"].as_array().unwrap().len(), 2);
            assert_eq!(t["token"], t["top_logprobs"][0]["token"]);
            assert!(t["logprob"].as_f64().unwrap() < 0.0);
            t["token"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(tokens.concat(), "abcSTOP");

    let body = json!({"model": "test-model", "prompt": "assistant\n", "temperature": 0, "logprobs": 1, "max_tokens": 3});
    let answer = post(&router, "/v1/completions", &body).await.json().await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "c"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 1);
}

/// Streaming is streaming: the client has piece k in hand while the step of piece k + 1 is held.
#[tokio::test]
async fn a_piece_arrives_before_the_next_step_runs() {
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let (backend, gate) = FakeBackend::says(256, says("abcdef")).gated();
        let remote = backend.remote();
        let (router, _engine) = serve(backend);
        let mut body = chat(json!({"stream": true}));
        body["prompt"] = "assistant\n".into();
        gate.send(()).unwrap();
        let mut answer = post(&router, path, &body).await;
        for (k, letter) in "abcdef".chars().enumerate() {
            let text = loop {
                let event = answer.json_event().await.unwrap();
                let text = streamed_text(&[event]);
                if !text.is_empty() {
                    break text;
                }
            };
            assert_eq!(text, letter.to_string());
            assert_eq!(remote.steps(), k + 1, "the step of the next piece has not begun");
            gate.send(()).unwrap();
        }
        drop(gate);
        let rest = answer.events().await;
        assert_eq!(rest.len(), 2, "the end and [DONE]: {rest:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_blocks_back() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let remote = backend.remote();
    let (router, _engine) = serve(backend);
    let body = chat(json!({"stream": true, "max_tokens": 500}));
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    let mut answer = post(&router, "/v1/chat/completions", &body).await;
    answer.json_event().await.unwrap();
    until(async || metric(&router, "vllm:kv_cache_usage_perc").await > 0.0).await;
    drop(answer);
    drop(gate);
    until(async || metric(&router, "vllm:kv_cache_usage_perc").await == 0.0).await;
    assert!(remote.steps() < 500, "it was not generated to its end: {} steps", remote.steps());
    assert!((metric(&router, "vllm:num_requests_running").await).abs() < 0.5);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_is_forgotten() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let remote = backend.remote();
    let (router, engine) = serve(backend);
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { post(&router, "/v1/chat/completions", &chat(json!({}))).await.status }
    });
    until(async || remote.begun() == 1).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    drop(gate);
    engine.idle().await;
    assert!(remote.steps() <= 2, "it ended with the step that was running: {}", remote.steps());
    assert!((metric(&router, "vllm:kv_cache_usage_perc").await).abs() < 1e-9);
}

#[tokio::test]
async fn abort_ends_a_stream_with_its_usage() {
    let (backend, gate) = FakeBackend::new(256).gated();
    let (router, _engine) = serve(backend);
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 400}))
        .to_string();
    gate.send(()).unwrap();
    let headers = [("x-strata-request-id", "0190-minted")];
    let mut answer = send(&router, "POST", "/v1/chat/completions", &headers, body).await;
    let first = answer.json_event().await.unwrap();
    assert_eq!(first["id"], "chatcmpl-0190-minted");
    let abort = tokio::spawn({
        let router = router.clone();
        async move {
            let path = "/internal/v1/abort/chatcmpl-0190-minted";
            send(&router, "POST", path, &[], String::new()).await.json().await
        }
    });
    // Steps go on until the abort is taken, which it is between two of them.
    until(async || {
        let _ = gate.send(());
        abort.is_finished()
    })
    .await;
    let aborted = abort.await.unwrap();
    drop(gate);
    assert_eq!(aborted, json!({"id": "chatcmpl-0190-minted", "aborted": true}));
    let rest = answer.events().await;
    let end = &rest[rest.len() - 3];
    assert_eq!(end["choices"][0]["finish_reason"], "abort");
    let usage = &rest[rest.len() - 2]["usage"];
    assert!((1..400).contains(&usage["completion_tokens"].as_u64().unwrap()), "{usage}");
    assert_eq!(rest.last(), Some(&Value::Null));
    let again =
        send(&router, "POST", "/internal/v1/abort/0190-minted", &[], String::new()).await.json().await;
    assert_eq!(again["aborted"], false);
}

#[tokio::test]
async fn a_failed_step_fails_its_requests_and_no_others() {
    let backend = FakeBackend::new(256);
    let remote = backend.remote();
    let (router, engine) = serve(backend);
    for sabotage in [Remote::fail_next, Remote::panic_next] {
        sabotage(&remote);
        let failed = post(&router, "/v1/chat/completions", &chat(json!({}))).await;
        assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
        let text = failed.text().await;
        assert!(text.contains("the fake device failed"), "{text}");
        let fine = post(&router, "/v1/chat/completions", &chat(json!({"max_tokens": 3}))).await;
        assert_eq!(fine.status, StatusCode::OK);
    }
    engine.idle().await;
    assert!((metric(&router, "vllm:kv_cache_usage_perc").await).abs() < 1e-9);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_event_and_no_done_follows() {
    let (backend, gate) = FakeBackend::new(256).gated();
    let remote = backend.remote();
    let (router, _engine) = serve(backend);
    gate.send(()).unwrap();
    let mut answer =
        post(&router, "/v1/chat/completions", &chat(json!({"stream": true, "max_tokens": 9}))).await;
    answer.json_event().await.unwrap();
    remote.fail_next();
    drop(gate);
    let rest = answer.events().await;
    let last = rest.last().unwrap();
    assert_eq!(last["error"]["type"], "server_error", "{rest:?}");
}

#[tokio::test]
async fn draining_finishes_streams_and_refuses_new_requests() {
    let (backend, gate) = FakeBackend::says(256, says("abc")).gated();
    let (router, engine) = serve(backend);
    gate.send(()).unwrap();
    let answer = post(&router, "/v1/chat/completions", &chat(json!({"stream": true}))).await;
    engine.drain();
    let refused = post(&router, "/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(get(&router, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
    drop(gate);
    let events = answer.events().await;
    assert_eq!(streamed_text(&events), "abc");
    assert_eq!(events.last(), Some(&Value::Null));
    engine.idle().await;
}

#[tokio::test]
async fn too_much_waiting_is_refused() {
    let (backend, gate) = FakeBackend::new(256).gated();
    let small = strata_engine::runtime::EngineConfig { max_waiting: 2, ..config() };
    let engine = engine(backend, small);
    let router = router(engine.clone(), Above::default());
    let many = post(&router, "/v1/chat/completions", &chat(json!({"n": 3}))).await;
    assert_eq!(many.status, StatusCode::BAD_REQUEST);
    let running: Vec<_> = (0..2)
        .map(|_| {
            let router = router.clone();
            tokio::spawn(async move {
                post(&router, "/v1/chat/completions", &chat(json!({"n": 2, "max_tokens": 2}))).await
            })
        })
        .collect();
    // One of the two is in the step that is held, or waits; the other may be refused or run.
    until(async || post_is_full(&router).await).await;
    drop(gate);
    for answer in running {
        let status = answer.await.unwrap().status;
        assert!(status == StatusCode::OK || status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
    }
    engine.idle().await;
    let fine = post(&router, "/v1/chat/completions", &chat(json!({"n": 2, "max_tokens": 2}))).await;
    assert_eq!(fine.status, StatusCode::OK, "the places were given back");
}

/// Whether a request is refused now; one that is taken is left at once.
async fn post_is_full(router: &Router) -> bool {
    let body = chat(json!({"n": 2, "max_tokens": 2}));
    let ask = post(router, "/v1/chat/completions", &body);
    match tokio::time::timeout(std::time::Duration::from_millis(20), ask).await {
        Ok(answer) => answer.status == StatusCode::SERVICE_UNAVAILABLE,
        Err(_) => false,
    }
}

fn tool_script() -> Vec<u32> {
    let mut script = says("Let me look. ");
    script.push(TOOL_CALL);
    script.extend(says("\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>"));
    script
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
}

#[tokio::test]
async fn tool_calls_are_found_whole_and_streamed() {
    let (router, _engine) = serve(FakeBackend::says(256, tool_script()));
    let body = |stream| chat(json!({"tools": tools(), "stream": stream}));
    let answer = post(&router, "/v1/chat/completions", &body(false)).await.json().await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Let me look.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        call["function"],
        json!({"name": "weather", "arguments": "{\"city\": \"Köln\"}"}),
        "its own bytes"
    );
    assert!(call["id"].as_str().unwrap().starts_with("call_"));

    let events = post(&router, "/v1/chat/completions", &body(true)).await.events().await;
    assert_eq!(streamed_text(&events), "Let me look.");
    let deltas: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]).filter(|d| d.is_object()).collect();
    assert!(deltas.len() > 5, "the arguments come as they are generated");
    assert_eq!((&deltas[0]["index"], &deltas[0]["type"]), (&json!(0), &json!("function")));
    assert_eq!(deltas[0]["function"], json!({"name": "weather", "arguments": ""}));
    let arguments: String = deltas.iter().filter_map(|d| d["function"]["arguments"].as_str()).collect();
    assert_eq!(call["function"]["arguments"], arguments);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "tool_calls");

    let none = chat(json!({"tools": tools(), "tool_choice": "none"}));
    let answer = post(&router, "/v1/chat/completions", &none).await.json().await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains("<tool_call>"));
}

#[tokio::test]
async fn tokens_and_back() {
    let (router, _engine) = serve(FakeBackend::new(64));
    let answer = post(&router, "/tokenize", &json!({"prompt": "é<|im_end|>", "return_token_strs": true}))
        .await
        .json()
        .await;
    let wanted = json!({"count": 3, "max_model_len": 1024, "tokens": [195, 169, 257],
                        "token_strs": ["Ã", "©", "<|im_end|>"]});
    assert_eq!(answer, wanted);
    let back = post(&router, "/detokenize", &json!({"tokens": [195, 169, 257]})).await.json().await;
    assert_eq!(back, json!({"prompt": "é<|im_end|>"}));
    let chat = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]});
    let count = post(&router, "/tokenize", &chat).await.json().await["count"].as_u64().unwrap();
    assert_eq!(count, "#user\nHi#\n#assistant\n".len() as u64);
}

#[tokio::test]
async fn models_health_version_and_metrics() {
    let (router, _engine) = serve(FakeBackend::new(256));
    insta::assert_json_snapshot!("models", get(&router, "/v1/models").await.json().await);
    assert_eq!(get(&router, "/v1/models/test-model").await.status, StatusCode::OK);
    assert_eq!(get(&router, "/v1/models/other").await.status, StatusCode::NOT_FOUND);
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
    assert_eq!(get(&router, "/version").await.json().await, json!({"version": env!("CARGO_PKG_VERSION")}));
    post(&router, "/v1/chat/completions", &chat(json!({"max_tokens": 5}))).await.json().await;
    let text = get(&router, "/metrics").await.text().await;
    let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    insta::assert_snapshot!("metric_names", names.join("\n"));
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.contains("{model_name=\"test-model\""), "{line}");
    }
    assert!((metric(&router, "vllm:generation_tokens_total").await - 5.0).abs() < 0.5);
    assert!(metric(&router, "strata:prefill_tokens_per_second").await > 0.0);
}

#[tokio::test]
async fn callers_without_the_hop_token_are_refused() {
    let engine = engine(FakeBackend::new(256), config());
    let router = router(engine, Above::new(HopToken::new("between-us"), None, &[]));
    for path in ["/metrics/more", "/v1/models", "/nowhere"] {
        let refused = get(&router, path).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(
            serde_json::from_str::<Value>(&refused.text().await).unwrap()["error"]["code"],
            "invalid_api_key"
        );
    }
    for path in ["/health", "/ready", "/ping", "/version", "/metrics"] {
        assert_eq!(get(&router, path).await.status, StatusCode::OK);
    }
    let answer =
        client::send(&router, "GET", "/v1/models", &[("x-strata-hop-token", "between-us")], String::new())
            .await;
    assert_eq!(answer.status, StatusCode::OK);
    let wrong =
        client::send(&router, "GET", "/v1/models", &[("x-strata-hop-token", "between-uS")], String::new())
            .await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn continuous_usage_grows_with_every_piece() {
    let (router, _engine) = serve(FakeBackend::says(256, says("abc")));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat(json!({"stream": true, "stream_options": options}));
    let events = post(&router, "/v1/chat/completions", &body).await.events().await;
    let counts: Vec<u64> = events.iter().filter_map(|e| e["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts, [0, 1, 2, 3, 4, 4], "the role, three letters, the end, the sum");
}

#[tokio::test]
async fn a_reader_that_does_not_read_stalls_nobody() {
    let (router, engine) = serve(FakeBackend::new(256));
    let body = chat(json!({"stream": true, "max_tokens": 300}));
    let unread = post(&router, "/v1/chat/completions", &body).await;
    let other = post(&router, "/v1/chat/completions", &body).await.events().await;
    engine.idle().await;
    assert_eq!(other.last(), Some(&Value::Null));
    assert_eq!(streamed_text(&unread.events().await), streamed_text(&other), "and it loses nothing");
}

/// Over a socket, where leaving is a closed connection and not a dropped future.
#[tokio::test]
async fn a_closed_connection_ends_its_request() {
    for stream in [true, false] {
        let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
        let remote = backend.remote();
        let (router, engine) = serve(backend);
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let mut socket = tokio::net::TcpStream::connect(bound.addr()).await.unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(bound.serve(router.clone(), stop.clone(), client::DEADLINE));
        let body = chat(json!({"stream": stream})).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).await.unwrap();
        until(async || remote.begun() == 1).await;
        gate.send(()).unwrap();
        until(async || remote.begun() == 2).await;
        drop(socket);
        // Steps go on one by one; without an end of the request there would be a thousand of them.
        until(async || {
            let _ = gate.send(());
            metric(&router, "vllm:request_success_total{model_name=\"test-model\",finished_reason=\"abort\"")
                .await
                > 0.0
        })
        .await;
        drop(gate);
        engine.idle().await;
        assert!(remote.steps() < 900, "{} steps", remote.steps());
        assert!((metric(&router, "vllm:kv_cache_usage_perc").await).abs() < 1e-9);
        stop.cancel();
        server.await.unwrap();
    }
}
