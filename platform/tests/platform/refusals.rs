//! Requests that cannot be served: each says what is wrong and where, and the model is not asked.

use serde_json::{Value, json};
use strata_hop::Body;

use crate::support::*;

/// A good request with these members added.
fn with(members: Value) -> String {
    let mut body = json!({"model": "m", "input": "hi"});
    if let (Some(body), Value::Object(members)) = (body.as_object_mut(), members) {
        body.extend(members);
    }
    body.to_string()
}

async fn table(cases: Vec<(&str, String)>) -> String {
    let world = World::new().await;
    let mut lines = Vec::new();
    for (path, body) in cases {
        let shown = if body.len() > 110 { format!("{}…", &body[..100]) } else { body.clone() };
        let shown = shown.replace(char::is_control, "\u{b7}");
        let (status, answer) = world.send("POST", path, &[], Body::from(body)).await.json().await;
        let error = &answer["error"];
        assert!(error["type"].is_string(), "{answer}");
        lines.push(format!(
            "{shown}\n  {} {} {}: {}",
            status.as_u16(),
            error["code"].as_str().unwrap_or("-"),
            error["param"].as_str().unwrap_or("-"),
            error["message"].as_str().unwrap()
        ));
    }
    assert!(world.seen().is_empty(), "the model was asked");
    lines.join("\n")
}

#[tokio::test]
async fn malformed_requests() {
    let item = |item: Value| with(json!({"input": [{"role": "user", "content": "ok"}, item]}));
    let tool = |tool: Value| with(json!({"tools": [tool]}));
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let cases: Vec<String> = vec![
        String::new(),
        "{\"model\": \"m\", \"input\": ".to_owned(),
        "[1]".to_owned(),
        r#"{"model": "m", "input": "a", "input": "b"}"#.to_owned(),
        format!("{{\"input\": {deep}}}"),
        "{\"model\": \"m\", \"input\": \"\u{0}\"}".to_owned(),
        "{}".to_owned(),
        json!({"model": "m"}).to_string(),
        json!({"model": "", "input": "x"}).to_string(),
        json!({"model": 7, "input": "x"}).to_string(),
        with(json!({"input": 5})),
        with(json!({"input": []})),
        with(json!({"input": ["x"]})),
        with(json!({"input": vec![json!({}); 4097]})),
        item(json!({"role": "robot", "content": "x"})),
        item(json!({"role": "user"})),
        item(json!({"role": "user", "content": [{"type": "output_text", "text": "x"}]})),
        item(json!({"role": "user", "content": [{"type": "input_text"}]})),
        item(json!({"role": "user", "content": "x", "colour": "red"})),
        item(json!({"type": "nonsense"})),
        item(json!({"type": "function_call", "call_id": "c", "name": "f"})),
        item(json!({"type": "function_call_output", "call_id": "nobody", "output": "x"})),
        item(json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"})),
        with(json!({"colour": "red"})),
        with(json!({"temperature": 3})),
        with(json!({"temperature": "hot"})),
        with(json!({"top_p": -0.1})),
        with(json!({"max_output_tokens": 0})),
        with(json!({"max_output_tokens": -5})),
        with(json!({"max_output_tokens": 1.5})),
        with(json!({"max_tool_calls": 0})),
        with(json!({"stream": "yes"})),
        with(json!({"metadata": {"k": 1}})),
        with(json!({"metadata": {"k": "v".repeat(513)}})),
        with(json!({"metadata": {"k".repeat(65): "v"}})),
        with(
            json!({"metadata": (0..17).map(|n| (n.to_string(), json!(""))).collect::<serde_json::Map<_, _>>()}),
        ),
        with(json!({"tools": {}})),
        tool(json!({"type": "function"})),
        tool(json!({"type": "function", "name": "a b"})),
        tool(json!({"type": "function", "name": "f", "parameters": []})),
        tool(json!({"type": "function", "function": {"name": "f"}})),
        tool(json!({"type": "calculator", "digits": 3})),
        with(json!({"tools": [{"type": "calculator"}, {"type": "function", "name": "calculator"}]})),
        with(json!({"tool_choice": "maybe"})),
        with(json!({"tool_choice": "required"})),
        with(json!({"tool_choice": {"type": "function", "name": "f"}})),
        with(json!({"previous_response_id": "resp_none"})),
        with(json!({"previous_response_id": "a", "conversation": "b"})),
        with(json!({"conversation": {"name": "b"}})),
        with(json!({"conversation": "b", "store": false})),
        format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(100_000)),
    ];
    insta::assert_snapshot!(table(cases.into_iter().map(|c| ("/v1/responses", c)).collect()).await);
}

#[tokio::test]
async fn what_is_not_built_is_named() {
    let cases: Vec<String> = [
        json!({"background": true}),
        json!({"truncation": "auto"}),
        json!({"include": ["reasoning.encrypted_content"]}),
        json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}),
        json!({"text": {"format": {"type": "json_object"}}}),
        json!({"text": {"verbosity": "low"}}),
        json!({"reasoning": {"effort": "high"}}),
        json!({"service_tier": "flex"}),
        json!({"stream_options": {"include_obfuscation": true}}),
        json!({"top_logprobs": 3}),
        json!({"prompt": {"id": "p"}}),
        json!({"prompt_cache_key": "k"}),
        json!({"instructions": [{"role": "user", "content": "x"}]}),
        json!({"tools": [{"type": "file_search", "vector_store_ids": []}]}),
        json!({"tools": [{"type": "web_search"}]}),
        json!({"tools": [{"type": "mcp", "server_label": "s", "server_url": "u"}]}),
        json!({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
        json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}),
        json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}),
        json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
        json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
    ]
    .map(with)
    .into();
    insta::assert_snapshot!(table(cases.into_iter().map(|c| ("/v1/responses", c)).collect()).await);
}

#[tokio::test]
async fn conversations_are_checked_alike() {
    let cases = [
        json!({"items": "x"}),
        json!({"items": [{"role": "user"}]}),
        json!({"metadata": []}),
        json!({"name": "x"}),
    ];
    insta::assert_snapshot!(
        table(cases.iter().map(|c| ("/v1/conversations", c.to_string())).collect()).await
    );
}

#[tokio::test]
async fn what_changes_nothing_is_accepted() {
    let world = World::new().await;
    world.script([says(&["ok"])]);
    world
        .create(
            json!({"model": "m", "input": "hi", "background": false, "truncation": "disabled", "include": [],
            "text": {"format": {"type": "text"}}, "reasoning": {"effort": null}, "service_tier": "auto",
            "stream_options": null, "top_logprobs": 0, "tools": [], "tool_choice": "auto", "metadata": null,
            "max_output_tokens": null, "user": "u"}),
        )
        .await;
}

#[tokio::test]
async fn other_paths_and_methods() {
    let world = World::new().await;
    for (method, path, status) in [
        ("GET", "/v1/responses", 405),
        ("PUT", "/v1/responses/x", 405),
        ("GET", "/v1/files", 404),
        ("POST", "/v1/responses/x/cancel", 400),
        ("GET", "/v1/responses/%FF", 400),
        ("GET", "/v1/conversations/x/items?limit=%FF", 400),
    ] {
        let (got, body) = world.send(method, path, &[], Body::empty()).await.json().await;
        assert_eq!((got.as_u16(), body["error"]["message"].is_string()), (status, true), "{method} {path}");
    }
}
