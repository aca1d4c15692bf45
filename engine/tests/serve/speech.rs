//! Calls that are required, and reasoning told from answers.

use std::sync::Arc;

use axum::Router;
use serde_json::{Value, json};
use strata_engine::runtime::{Engine, EngineParts, ModelCard};
use strata_engine::serve::router;
use strata_engine::template::{ChatTemplate, ReasoningFormat, ToolFormat};
use strata_engine::tier::Tiers;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{post, streamed_text};
use crate::support::{config, tokenizer};

const CHAT: &str = "/v1/chat/completions";
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        <|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}\
                        <think>\n\n</think>\n\n{% endif %}";

fn serve(backend: FakeBackend, change: impl FnOnce(ChatTemplate) -> ChatTemplate) -> Router {
    let template = ChatTemplate::new(TEMPLATE.into(), String::new(), "<|im_end|>".into()).unwrap();
    let parts = EngineParts {
        backend: Box::new(backend),
        tokenizer: tokenizer(),
        template: Some(change(template)),
        card: ModelCard { name: "test-model".into(), created: 0, template_overhead: 40 },
        tiers: Tiers::default(),
        transfer: None,
        reopen: None,
        adapters: None,
        speculation: None,
    };
    let engine: Arc<Engine> = Engine::start(parts, config()).unwrap();
    router(engine, Above::default())
}

fn says(text: &str) -> FakeBackend {
    FakeBackend::says(256, text.bytes().map(u32::from).collect())
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}],
                          "max_tokens": 300, "seed": 2});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
                      "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": city, "strict": true}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// What an answer says and which calls it makes.
fn said(answer: &Value) -> (String, Vec<(String, String)>) {
    let message = &answer["choices"][0]["message"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let call = |call: &Value| (text(&call["function"]["name"]), text(&call["function"]["arguments"]));
    let calls = message["tool_calls"].as_array().map(|calls| calls.iter().map(call).collect());
    (text(&message["content"]), calls.unwrap_or_default())
}

#[tokio::test]
async fn strict_arguments_follow_their_schema_where_the_model_is_free_to_call() {
    // What the model wants to say once it has begun a call; the schema knows Rome and Oslo.
    let wish = |open: &str, call: &str| format!("Let me see.\n{open}{call}");
    let cases = [
        (
            ToolFormat::Hermes,
            wish(
                "<tool_call>",
                "\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Xanten\"}}\n</tool_call>",
            ),
        ),
        (ToolFormat::Llama3, "{\"name\": \"weather\", \"parameters\": {\"city\": \"Xanten\"}}".to_owned()),
        (
            ToolFormat::Llama3,
            "{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Xanten\"}}"
                .to_owned(),
        ),
        (
            ToolFormat::Llama3,
            wish("<|python_tag|>", "{\"name\": \"weather\", \"parameters\": {\"city\": \"Xanten\"}}"),
        ),
        (
            ToolFormat::Mistral,
            wish("[TOOL_CALLS]", "[{\"name\": \"weather\", \"arguments\": {\"city\": \"Xanten\"}}]"),
        ),
    ];
    for (format, wish) in &cases {
        let router = serve(says(wish), |template| template.calling(*format));
        let ask = |tools: Value, more: Value| {
            let mut body = chat(json!({"tools": tools, "temperature": 0}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let loose = json!([{"type": "function", "function": {"name": "weather"}}]);
        let (_, calls) = said(&post(&router, CHAT, &ask(loose, json!({}))).await.json().await);
        assert_eq!(calls, [("weather".to_owned(), "{\"city\": \"Xanten\"}".to_owned())], "free as ever");
        let strict =
            post(&router, CHAT, &ask(tools(), json!({"parallel_tool_calls": false}))).await.json().await;
        let (text, calls) = said(&strict);
        assert_eq!(text, if wish.starts_with("Let") { "Let me see." } else { "" });
        let city: Value = serde_json::from_str(&calls[0].1).unwrap_or_else(|e| panic!("{e}: {strict}"));
        assert_eq!((calls.len(), calls[0].0.as_str()), (1, "weather"), "{strict}");
        assert!(city["city"] == "Rome" || city["city"] == "Oslo", "{strict}");
        let events = post(&router, CHAT, &ask(tools(), json!({"stream": true}))).await.events().await;
        let streamed: String = events
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
            .collect();
        assert!(streamed.starts_with(calls[0].1.as_str()), "{streamed}");
    }
}

#[tokio::test]
async fn strict_tools_leave_text_and_other_tools_free() {
    let ask = |tools: Value| chat(json!({"tools": tools, "temperature": 0}));
    for format in [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
        let text = "No {\"name\"} here.\n<tool is a [TOOL that é\u{1f600} {\"name\": 1}";
        let router = serve(says(text), |template| template.calling(format));
        let answer = post(&router, CHAT, &ask(tools())).await.json().await;
        assert_eq!(said(&answer), (text.to_owned(), Vec::new()), "{format:?}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let other = "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": [1, {}]}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\nDone.";
    let router = serve(says(other), |template| template);
    let (text, calls) = said(&post(&router, CHAT, &ask(tools())).await.json().await);
    let names: Vec<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((text.trim(), names), ("Done.", vec!["now", "weather"]));
    assert_eq!(calls[0].1, "{\"zone\": [1, {}]}", "a tool that is not strict takes any object");
    let odd = json!([{"type": "function", "function": {"name": "f", "strict": "yes"}}]);
    let refused = post(&router, CHAT, &ask(odd)).await;
    assert_eq!(refused.status, 400);
    insta::assert_snapshot!(refused.text().await, @r#"{"error":{"message":"`tools[0].function.strict` must be true or false, and it is a string","type":"invalid_request_error","param":"tools[0].function.strict","code":null}}"#);
}

#[tokio::test]
async fn a_required_call_comes_whatever_the_model_would_say() {
    for format in [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
        let router = serve(FakeBackend::new(256), |template| template.calling(format));
        let named = json!({"type": "function", "function": {"name": "weather"}});
        let ask = |choice: &Value, more: Value| {
            let mut body = chat(json!({"tools": tools(), "tool_choice": choice}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let answer = post(&router, CHAT, &ask(&named, json!({}))).await.json().await;
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("weather")), "{format:?}");
        let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
        let city = serde_json::from_str::<Value>(arguments).unwrap();
        assert!(city["city"] == "Rome" || city["city"] == "Oslo", "{arguments}");

        let events = post(&router, CHAT, &ask(&named, json!({"stream": true}))).await.events().await;
        let deltas: Vec<&Value> =
            events.iter().filter_map(|e| e["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        assert_eq!(deltas[0]["function"]["name"], "weather");
        assert!(deltas.len() > 5 && deltas[1]["id"].is_null(), "arguments come as they are generated");
        let streamed: String = deltas.iter().filter_map(|d| d["function"]["arguments"].as_str()).collect();
        assert_eq!(streamed, arguments, "{format:?}");

        let more = json!({"parallel_tool_calls": false});
        let answer = post(&router, CHAT, &ask(&json!("required"), more)).await.json().await;
        assert_eq!(answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1, "{format:?}");
        let more = json!({"max_tokens": 150});
        let answer = post(&router, CHAT, &ask(&json!("required"), more)).await.json().await;
        assert!(!answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().is_empty(), "{format:?}");
    }
}

#[tokio::test]
async fn reasoning_is_told_from_the_answer() {
    let text = "<think>\nHm.\n</think>\n\nTwo.";
    let router = serve(says(text), |template| template.reasoning(Some(ReasoningFormat::Qwen3)));
    let greedy = json!({"temperature": 0});
    let answer = post(&router, CHAT, &chat(greedy.clone())).await.json().await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Two.");
    assert_eq!((&message["reasoning"], &message["reasoning_content"]), (&json!("Hm."), &json!("Hm.")));
    let quiet = chat(json!({"temperature": 0, "include_reasoning": false}));
    let message = &post(&router, CHAT, &quiet).await.json().await["choices"][0]["message"];
    assert!(message["content"] == "Two." && message.get("reasoning").is_none(), "{message}");
    let events = post(&router, CHAT, &chat(json!({"temperature": 0, "stream": true}))).await.events().await;
    let thought: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["reasoning"].as_str()).collect();
    assert_eq!((thought.as_str(), streamed_text(&events).as_str()), ("Hm.", "Two."));
    let off = json!({"temperature": 0, "chat_template_kwargs": {"enable_thinking": false}});
    let router = serve(says("12345678901234567890Two.</think>"), |template| {
        template.reasoning(Some(ReasoningFormat::Qwen3))
    });
    let message = &post(&router, CHAT, &chat(off)).await.json().await["choices"][0]["message"];
    assert!(message["content"].as_str().unwrap().ends_with("Two.</think>"), "none was to come: {message}");

    let always = serve(says("Hm.</think>Two."), |t| t.reasoning(Some(ReasoningFormat::DeepSeekR1)));
    let message = &post(&always, CHAT, &chat(greedy.clone())).await.json().await["choices"][0]["message"];
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("Hm."), &json!("Two.")));
    let never = serve(says(text), |template| template.reasoning(None));
    let message = &post(&never, CHAT, &chat(greedy)).await.json().await["choices"][0]["message"];
    assert_eq!(message["content"], text);
}

#[tokio::test]
async fn a_grammar_begins_behind_the_reasoning() {
    let text = "Hm, {1}.</think>Two.";
    let router = serve(says(text), |t| t.reasoning(Some(ReasoningFormat::DeepSeekR1)));
    let form = json!({"temperature": 0, "structured_outputs": {"choice": ["one", "two"]}});
    let answer = post(&router, CHAT, &chat(form)).await.json().await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning"], "Hm, {1}.", "free");
    assert!(message["content"] == "one" || message["content"] == "two", "{message}");
}
