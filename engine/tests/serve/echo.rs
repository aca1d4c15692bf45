//! Prompts and messages that stand before their answers.

use axum::Router;
use serde_json::{Value, json};
use strata_engine::serve::router;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{post, streamed_text};
use crate::support::{blocks_of, config, engine};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn serve() -> Router {
    router(engine(FakeBackend::new(blocks_of(1024)), config()), Above::default())
}

fn with(base: &Value, more: Value) -> Value {
    let mut body = base.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What all chunks of a stream say of one choice: its text, its log probabilities joined, and its end.
fn joined(chunks: &[Value], index: usize) -> (String, Value, Value) {
    let (mut text, mut finish) = (String::new(), Value::Null);
    let mut logprobs = json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []});
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        if choice["index"] != index {
            continue;
        }
        text.push_str(choice["text"].as_str().unwrap());
        for (name, list) in logprobs.as_object_mut().unwrap() {
            let more = choice["logprobs"][name].as_array().cloned().unwrap_or_default();
            list.as_array_mut().unwrap().extend(more);
        }
        finish = choice["finish_reason"].clone();
    }
    (text, logprobs, finish)
}

#[tokio::test]
async fn a_prompt_alone_is_scored_and_nothing_is_generated() {
    let router = serve();
    let body = json!({"model": "test-model", "prompt": "Hello", "echo": true, "logprobs": 1, "max_tokens": 0,
                      "temperature": 0});
    let whole = post(&router, COMPLETIONS, &body).await.json().await;
    let choice = &whole["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Hello"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["H", "e", "l", "l", "o"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2, 3, 4]));
    assert_eq!(choice["logprobs"]["token_logprobs"][0], Value::Null);
    assert_eq!(whole["usage"]["completion_tokens"], 0);
    // What the harness compares: the prompt's scores are those that it has before an answer.
    let answered = post(&router, COMPLETIONS, &with(&body, json!({"max_tokens": 3}))).await.json().await;
    for member in ["tokens", "token_logprobs", "top_logprobs"] {
        let before = &answered["choices"][0]["logprobs"][member].as_array().unwrap()[..5];
        assert_eq!(choice["logprobs"][member].as_array().unwrap(), before, "{member}");
    }
    let ids = json!({"prompt": [[72, 101], [108, 108, 111]], "logprobs": 5, "n": 2});
    let several = post(&router, COMPLETIONS, &with(&body, ids)).await.json().await;
    let texts: Vec<&Value> = several["choices"].as_array().unwrap().iter().map(|c| &c["text"]).collect();
    assert_eq!(texts, ["He", "He", "llo", "llo"]);
    let plain = json!({"logprobs": null});
    let plain = post(&router, COMPLETIONS, &with(&body, plain)).await.json().await;
    assert_eq!(
        (&plain["choices"][0]["text"], &plain["choices"][0]["logprobs"]),
        (&json!("Hello"), &Value::Null)
    );
    let alone = with(&body, json!({"echo": false}));
    let refused = post(&router, COMPLETIONS, &alone).await;
    assert_eq!(refused.status, 400, "an answer of nothing, and no prompt either");
}

#[tokio::test]
async fn a_streamed_echo_says_the_same() {
    let router = serve();
    for (max_tokens, logprobs) in [(0, Some(1)), (4, Some(2)), (0, None), (4, None)] {
        let body = json!({"model": "test-model", "prompt": ["Hello", "Hi there, all of you"], "echo": true, "n": 2,
                          "logprobs": logprobs, "max_tokens": max_tokens, "temperature": 0});
        let whole = post(&router, COMPLETIONS, &body).await.json().await;
        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let mut chunks = post(&router, COMPLETIONS, &with(&body, streamed)).await.events().await;
        assert_eq!(chunks.pop(), Some(Value::Null), "it is whole");
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let (text, told, finish) = joined(&chunks, index);
            assert_eq!(
                (Value::from(text), finish),
                (choice["text"].clone(), choice["finish_reason"].clone())
            );
            if logprobs.is_some() {
                assert_eq!(told, choice["logprobs"], "{max_tokens} tokens, choice {index}");
            }
        }
        let usage = &chunks.last().unwrap()["usage"];
        assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert_eq!(usage["completion_tokens"], 4 * max_tokens);
    }
}

#[tokio::test]
async fn a_chat_s_last_message_stands_before_its_answer_where_it_is_the_assistant_s() {
    let router = serve();
    let ask = json!({"model": "test-model", "temperature": 0, "max_tokens": 6, "continue_final_message": true,
                     "messages": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, "}]});
    let content = async |body: Value| {
        let answer = post(&router, CHAT, &body).await.json().await;
        let message = &answer["choices"][0]["message"];
        (message["role"].as_str().unwrap().to_owned(), message["content"].as_str().unwrap().to_owned())
    };
    let (role, plain) = content(ask.clone()).await;
    assert_eq!((role.as_str(), plain.len()), ("assistant", 6));
    let echo = with(&ask, json!({"echo": true}));
    assert_eq!(content(echo.clone()).await.1, format!("One, {plain}"));
    let chunks = post(&router, CHAT, &with(&echo, json!({"stream": true, "n": 2}))).await.events().await;
    let of_first: Vec<Value> =
        chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == 0).cloned().collect();
    assert_eq!(streamed_text(&of_first), format!("One, {plain}"));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");

    let mut parts = echo.clone();
    parts["messages"][1]["content"] =
        json!([{"type": "text", "text": "One,"}, {"type": "text", "text": "two"}]);
    parts["continue_final_message"] = json!(false);
    assert!(content(parts).await.1.starts_with("One,\ntwo"));

    // The last message is the user's and the answer the assistant's.
    let mut other = echo.clone();
    other["messages"] = json!([{"role": "user", "content": "Count"}]);
    other["continue_final_message"] = json!(false);
    assert_eq!(content(other.clone()).await.1.len(), 6);
    // Without a beginning of the assistant's the user goes on.
    other["add_generation_prompt"] = json!(false);
    let (role, text) = content(other).await;
    assert_eq!((role.as_str(), text.len(), &text[..5]), ("user", 11, "Count"));

    let scored = with(&echo, json!({"logprobs": true, "top_logprobs": 2}));
    let scored = post(&router, CHAT, &scored).await.json().await;
    assert_eq!(scored["prompt_logprobs"][0], Value::Null);
    assert!(scored["prompt_logprobs"][1].as_object().unwrap().len() >= 2, "{scored}");
}
