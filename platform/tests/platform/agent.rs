//! The loop of model and tools.

use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn the_server_runs_its_own_tool_and_the_model_goes_on() {
    let world = World::new().await;
    world.script([calls(&[("calculator", &sum("19.99*3")), ("calculator", &sum("1/0"))]), says(&["59.97"])]);
    let response = world
        .create(
            json!({"model": "m", "input": "?", "tools": [{"type": "calculator"}], "tool_choice": "required"}),
        )
        .await;
    insta::assert_snapshot!(normal(&serde_json::to_string_pretty(&response["output"]).unwrap()));
    let chats = world.chats();
    assert_eq!(chats[0]["tool_choice"], "required");
    assert_eq!(chats[0]["tools"][0]["function"]["name"], "calculator");
    assert_eq!(chats[1].get("tool_choice"), None, "a forced call is forced once");
    insta::assert_snapshot!(normal(&serde_json::to_string_pretty(&chats[1]["messages"]).unwrap()));
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 30, "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 0},
            "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 36}),
        "summed over the loop"
    );
}

#[tokio::test]
async fn a_function_of_the_application_makes_the_round_trip() {
    let world = World::new().await;
    world.script([calls(&[("weather", r#"{"city":"Oslo"}"#)]), says(&["Rain."])]);
    let tools = json!([{"type": "function", "name": "weather", "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": true}]);
    let choice = json!({"type": "function", "name": "weather"});
    let first =
        world.create(json!({"model": "m", "input": "Oslo?", "tools": tools, "tool_choice": choice})).await;
    let call = &first["output"][0];
    assert_eq!((&call["type"], &call["status"]), (&json!("function_call"), &json!("completed")));
    assert_eq!((&call["name"], &call["arguments"]), (&json!("weather"), &json!(r#"{"city":"Oslo"}"#)));
    assert_eq!(call["call_id"], "call_0");
    let answer = json!({"type": "function_call_output", "call_id": "call_0", "output": "rain"});
    let second = world
        .create(json!({"model": "m", "previous_response_id": first["id"], "input": [answer], "tools": tools}))
        .await;
    assert_eq!(output_text(&second), "Rain.");
    let chats = world.chats();
    assert_eq!(chats[0]["tool_choice"], json!({"type": "function", "function": {"name": "weather"}}));
    assert_eq!(
        chats[0]["tools"],
        json!([{"type": "function", "function": {"name": "weather", "description": "d",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": true}}])
    );
    assert_eq!(
        chats[1]["messages"],
        json!([
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "call_0", "type": "function",
                "function": {"name": "weather", "arguments": r#"{"city":"Oslo"}"#}}]},
            {"role": "tool", "content": "rain", "tool_call_id": "call_0"},
        ])
    );
}

#[tokio::test]
async fn mixed_calls_are_run_or_handed_back() {
    let world = World::new().await;
    world.script([calls(&[("calculator", &sum("6*7")), ("weather", "{}")])]);
    let tools = json!([{"type": "calculator"}, {"type": "function", "name": "weather"}]);
    let response = world.create(json!({"model": "m", "input": "?", "tools": tools})).await;
    let shown: Vec<_> =
        response["output"].as_array().unwrap().iter().map(|i| (&i["type"], &i["output"])).collect();
    assert_eq!(shown, [(&json!("mcp_call"), &json!("42")), (&json!("function_call"), &Value::Null)]);
    assert_eq!(response["status"], "completed");
}

#[tokio::test]
async fn max_tool_calls_bounds_the_servers_calls() {
    let world = World::new().await;
    world.script([
        calls(&[("calculator", &sum("1+1")), ("calculator", &sum("2+2"))]),
        says(&["2 and I know not what"]),
    ]);
    let response = world
        .create(json!({"model": "m", "input": "?", "tools": [{"type": "calculator"}], "max_tool_calls": 1}))
        .await;
    let output = &response["output"];
    assert_eq!((&output[0]["status"], &output[0]["output"]), (&json!("completed"), &json!("2")));
    assert_eq!((&output[1]["status"], &output[1]["output"]), (&json!("failed"), &Value::Null));
    assert_eq!(response["status"], "completed");
    assert_eq!(world.chats()[1]["tool_choice"], "none", "the model is told to answer");
}

#[tokio::test]
async fn the_loop_ends_after_ten_steps() {
    let world = World::new().await;
    world.script((0..10).map(|_| calls(&[("calculator", &sum("1+1"))])));
    let response = world.create(json!({"model": "m", "input": "?", "tools": [{"type": "calculator"}]})).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"]["reason"], "max_messages");
    assert_eq!(world.seen().len(), 10);
    assert_eq!(world.chats()[8].get("tool_choice"), None);
    assert_eq!(world.chats()[9]["tool_choice"], "none", "the last step is for an answer");
    assert_eq!(response["usage"]["output_tokens"], 50);
}

#[tokio::test]
async fn the_limit_on_output_spans_the_loop() {
    let world = World::new().await;
    let cut = Reply::Events(vec![text("It is"), chunk(json!({}), Some("length")), ending(10, 0, 3)]);
    world.script([calls(&[("calculator", &sum("1+1"))]), cut, calls(&[("calculator", &sum("1+1"))])]);
    let body = json!({"model": "m", "input": "?", "tools": [{"type": "calculator"}], "max_output_tokens": 8});
    let response = world.create(body.clone()).await;
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["output"][1]["status"], "incomplete");
    let limits: Vec<_> = world.chats().iter().map(|c| c["max_completion_tokens"].clone()).collect();
    assert_eq!(limits, [8, 3], "the second step may use what the first left");
    let mut spent = body;
    spent["max_output_tokens"] = json!(5);
    let response = world.create(spent).await;
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(world.seen().len(), 3, "nothing is left for another step");
}

#[tokio::test]
async fn one_call_at_a_time_when_asked_for() {
    let world = World::new().await;
    world.script([calls(&[("f", "{}"), ("f", "{}")])]);
    let tools = json!([{"type": "function", "name": "f"}]);
    let response =
        world.create(json!({"model": "m", "input": "?", "tools": tools, "parallel_tool_calls": false})).await;
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
    assert_eq!(world.chats()[0]["parallel_tool_calls"], false);
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_not_run_and_not_repeated() {
    let world = World::new().await;
    let cut = chunk(
        json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
            "function": {"name": "calculator", "arguments": "{\"expr"}}]}),
        None,
    );
    world.script([
        Reply::Events(vec![cut, chunk(json!({}), Some("length")), ending(10, 0, 3)]),
        says(&["hello"]),
    ]);
    let first = world.create(json!({"model": "m", "input": "?", "tools": [{"type": "calculator"}]})).await;
    assert_eq!(
        (&first["status"], &first["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    world.create(json!({"model": "m", "input": "go on", "previous_response_id": first["id"]})).await;
    assert_eq!(
        world.chats()[1]["messages"],
        json!([{"role": "user", "content": "?"}, {"role": "user", "content": "go on"}])
    );
}

#[tokio::test]
async fn a_clients_own_copy_of_the_output_can_be_sent_back() {
    let world = World::new().await;
    world.script([calls(&[("calculator", &sum("6*7"))]), says(&["42"]), says(&["yes"])]);
    let first = world
        .create(json!({"model": "m", "input": "6*7?", "tools": [{"type": "calculator"}], "store": false}))
        .await;
    let mut input = vec![json!({"role": "user", "content": "6*7?"})];
    input.extend(first["output"].as_array().unwrap().clone());
    input.push(json!({"role": "user", "content": "sure?"}));
    world.create(json!({"model": "m", "input": input, "store": false})).await;
    let roles: Vec<_> = world.chats()[2]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant", "user"]);
}
