//! Answers that must follow a grammar, from a backend that would say anything.

use std::fmt::Write;

use axum::Router;
use serde_json::{Value, json};
use strata_engine::runtime::EngineConfig;
use strata_engine::serve::router;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{metric, post, streamed_text};
use crate::support::{IM_END, config, engine};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn serve(blocks: usize, config: EngineConfig) -> Router {
    router(engine(FakeBackend::new(blocks), config), Above::default())
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}],
                          "temperature": 1, "seed": 3, "max_tokens": 400});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

fn assert_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{text}");
    assert!((0..=120).contains(&value["age"].as_i64().unwrap()), "{text}");
    assert!(value["tags"].as_array().unwrap().iter().all(|t| t == "a" || t == "b"), "{text}");
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
}

fn contents(answer: &Value) -> Vec<String> {
    let text = |c: &Value| c["message"]["content"].as_str().or(c["text"].as_str()).unwrap().to_owned();
    answer["choices"].as_array().unwrap().iter().map(text).collect()
}

#[tokio::test]
async fn every_form_binds_the_answer() {
    let router = serve(512, config());
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "p", "schema": person(), "strict": true}});
    for form in [
        json!({"response_format": schema}),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"structured_outputs": {"json": person()}}),
        json!({"response_format": schema, "n": 4, "logprobs": true, "top_logprobs": 2, "min_p": 0.01}),
    ] {
        let answer = post(&router, CHAT, &chat(form)).await.json().await;
        for text in contents(&answer) {
            assert_person(&text);
        }
        assert!(answer["choices"].as_array().unwrap().iter().all(|c| c["finish_reason"] == "stop"));
    }
    for form in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"guided_json_object": true}),
    ] {
        // Without bounds on the strings an answer may be cut, but what there is begins an object.
        let answer = post(&router, CHAT, &chat(form)).await.json().await;
        assert!(contents(&answer)[0].starts_with('{'), "{answer}");
    }
    for form in
        [json!({"guided_regex": "[a-c]{2,5}\\d"}), json!({"structured_outputs": {"regex": "[a-c]{2,5}\\d"}})]
    {
        let text = contents(&post(&router, CHAT, &chat(form)).await.json().await).remove(0);
        let (letters, digit) = text.split_at(text.len() - 1);
        assert!(
            (2..=5).contains(&letters.len()) && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)),
            "{text}"
        );
        assert!(digit.parse::<u8>().is_ok(), "{text}");
    }
    for form in [
        json!({"guided_choice": ["red", "green"]}),
        json!({"structured_outputs": {"choice": ["red", "green"]}}),
    ] {
        let text = contents(&post(&router, CHAT, &chat(form)).await.json().await).remove(0);
        assert!(text == "red" || text == "green", "{text}");
    }
    let ebnf = "root ::= \"SELECT \" col (\", \" col)? \" FROM t\"\ncol ::= \"a\" | \"b\" [0-9]";
    let lark = "start: \"SELECT \" col (\", \" col)? \" FROM t\"\ncol: \"a\" | \"b\" /[0-9]/";
    for form in [json!({"guided_grammar": ebnf}), json!({"structured_outputs": {"grammar": lark}})] {
        let text = contents(&post(&router, CHAT, &chat(form.clone())).await.json().await).remove(0);
        let columns = text.strip_prefix("SELECT ").unwrap().strip_suffix(" FROM t").unwrap();
        assert!(columns.split(", ").all(|c| c == "a" || (c.len() == 2 && c.starts_with('b'))), "{text}");
        let mut plain = json!({"model": "test-model", "prompt": ["x", "y"], "max_tokens": 60, "seed": 1});
        plain.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        let answer = post(&router, COMPLETIONS, &plain).await.json().await;
        assert!(
            contents(&answer).iter().all(|t| t.starts_with("SELECT ") && t.ends_with(" FROM t")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_answer_ends_only_where_the_grammar_does() {
    let router = serve(256, config());
    let eager = json!({IM_END.to_string(): 100});
    let ask = |more: Value| {
        let mut body = chat(json!({"guided_regex": "ab(cd)*", "logit_bias": eager}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let one = |answer: Value| {
        let choice = answer["choices"][0].clone();
        (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].clone())
    };
    let got = one(post(&router, CHAT, &ask(json!({}))).await.json().await);
    assert_eq!(got, ("ab".into(), json!("stop")), "the model wants to end from the first token on");
    let got = one(post(&router, CHAT, &ask(json!({"min_tokens": 5}))).await.json().await);
    assert_eq!(got, ("abcdcd".into(), json!("stop")), "and may from the fifth on, where the grammar lets it");
    let got = one(post(&router, CHAT, &ask(json!({"ignore_eos": true, "max_tokens": 7}))).await.json().await);
    assert_eq!(got, ("abcdcdc".into(), json!("length")));
    let got = one(post(&router, CHAT, &ask(json!({"ignore_eos": true, "stop": "cdc"}))).await.json().await);
    assert_eq!(got, ("ab".into(), json!("stop")));
    let whole = ask(json!({"guided_regex": "abc", "min_tokens": 9, "ignore_eos": true}));
    let answer = post(&router, CHAT, &whole).await.json().await;
    assert_eq!(answer["usage"]["completion_tokens"], 3, "nothing can follow, so nothing is waited for");
    assert_eq!(one(answer), ("abc".into(), json!("stop")));
}

#[tokio::test]
async fn streams_batches_and_preemption_change_nothing() {
    let roomy = serve(512, config());
    let ask = |seed: u32, stream: bool| {
        chat(json!({"guided_json": person(), "seed": seed, "stream": stream, "max_tokens": 120}))
    };
    let mut alone = Vec::new();
    for seed in 0..6 {
        let answer = post(&roomy, CHAT, &ask(seed, false)).await.json().await;
        alone.push(contents(&answer).remove(0));
    }
    // Room for some of them only.
    let tight = serve(22, config());
    let bodies: Vec<Value> = (0..6).map(|seed| ask(seed, true)).collect();
    let answers = futures::future::join_all(bodies.iter().map(|body| post(&tight, CHAT, body))).await;
    let streams = futures::future::join_all(answers.into_iter().map(crate::client::Answer::events)).await;
    for (events, alone) in streams.iter().zip(&alone) {
        assert_eq!(&streamed_text(events), alone);
    }
    assert!(metric(&tight, "vllm:num_preemptions_total").await > 0.0);
}

#[tokio::test]
async fn a_dead_end_fails_and_harms_nobody() {
    let router = serve(256, config());
    let body = chat(json!({"guided_regex": "abc", "allowed_token_ids": [97, 98], "stream": true}));
    let bad = post(&router, CHAT, &body);
    let good = chat(json!({"guided_regex": "abc"}));
    let good = post(&router, CHAT, &good);
    let (bad, good) = tokio::join!(bad, good);
    assert_eq!(contents(&good.json().await), ["abc"]);
    assert_eq!(bad.status, 200, "one token could be chosen");
    let events = bad.events().await;
    assert_eq!(streamed_text(&events), "ab");
    let error = &events.last().unwrap()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    assert!(error["message"].as_str().unwrap().contains("no token can be chosen"), "{error}");
    for (more, said) in [
        (json!({"guided_regex": "abc", "allowed_token_ids": [98]}), "no token can be chosen"),
        (json!({"guided_regex": "abc", "allowed_token_ids": [97, 98]}), "no token can be chosen"),
        (json!({"guided_regex": "abc", "allowed_token_ids": [98], "stream": true}), "no token can be chosen"),
    ] {
        let answer = post(&router, CHAT, &chat(more)).await;
        assert_eq!(answer.status, 400);
        let text = answer.text().await;
        assert!(text.contains(said), "{text}");
    }
    // Small as a text, too large as an automaton: found out while it is followed.
    let large = chat(json!({"guided_regex": format!("({}){{9}}", "[a-z]{1,900}".repeat(40))}));
    let large = post(&router, CHAT, &large).await;
    assert_eq!(large.status, 400);
    let large = large.text().await;
    assert!(large.contains("the structured output cannot go on"), "{large}");
}

#[tokio::test]
async fn classes_of_a_regular_expression_are_ascii() {
    let router = serve(256, config());
    // Bytes of Arabic digits and letters, and of wide spaces.
    let eager = json!({"217": 100, "163": 100, "226": 100, "128": 100});
    let body = chat(json!({"guided_regex": r"\d\s[\d.]\w\\", "logit_bias": eager, "temperature": 0}));
    let text = contents(&post(&router, CHAT, &body).await.json().await).remove(0);
    assert!(text.len() == 5 && text.is_ascii() && text.ends_with('\\'), "{text}");
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_by_name() {
    let router = serve(256, config());
    let refused = [
        json!({"guided_regex": "a", "guided_choice": ["a"]}),
        json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
        json!({"response_format": {"type": "xml"}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}}),
        json!({"guided_json": "{"}),
        json!({"guided_json": 7}),
        json!({"guided_json": {"type": "integer", "minimum": 5, "maximum": 4}}),
        json!({"guided_json": {"$ref": "#/$defs/none"}}),
        json!({"guided_regex": "a("}),
        json!({"guided_regex": ""}),
        json!({"guided_choice": []}),
        json!({"guided_choice": ["a", ""]}),
        json!({"guided_grammar": "root ::= missing"}),
        json!({"guided_grammar": "start: missing"}),
        json!({"guided_grammar": "x".repeat(200_000)}),
        json!({"guided_grammar": "root ::= root | root root"}),
        json!({"guided_grammar": "start: start"}),
        json!({"guided_json": {"$ref": "#"}}),
        json!({"structured_outputs": {"json": {}, "disable_any_whitespace": "yes"}}),
        json!({"structured_outputs": {"json": {}, "whitespace_pattern": "(", "disable_any_whitespace": false}}),
        json!({"structured_outputs": {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": true}}),
        json!({"structured_outputs": {"regex": "a", "disable_additional_properties": true}}),
        json!({"structured_outputs": {"whitespace_pattern": " "}}),
        json!({"guided_choice": ["a"], "guided_whitespace_pattern": " "}),
        json!({"structured_outputs": {"json": {}, "xml": {}}}),
    ];
    let mut said = String::new();
    for more in refused {
        let answer = post(&router, CHAT, &chat(more)).await;
        let status = answer.status;
        let text = answer.text().await;
        assert_eq!(status, 400, "{text}");
        let body: Value = serde_json::from_str(&text).unwrap();
        let error = &body["error"];
        writeln!(said, "{}: {}", error["param"], error["message"]).unwrap();
    }
    insta::assert_snapshot!("structured_refusals", said);
}
