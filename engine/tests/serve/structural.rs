//! How JSON is written, and text with bound parts between marks (vLLM's structural tags).

use std::fmt::Write;

use axum::Router;
use serde_json::{Value, json};
use strata_engine::serve::router;
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{post, streamed_text};
use crate::support::{blocks_of, config, engine};

const CHAT: &str = "/v1/chat/completions";

fn serve(backend: FakeBackend) -> Router {
    router(engine(backend, config()), Above::default())
}

/// A backend that wants to say this, and then to end.
fn says(text: &str) -> Router {
    serve(FakeBackend::says(blocks_of(1024), text.bytes().map(u32::from).collect()))
}

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}],
                          "temperature": 0, "seed": 3, "max_tokens": 400});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn text(router: &Router, more: &Value) -> String {
    let answer = post(router, CHAT, &chat(more)).await.json().await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test]
async fn white_space_is_what_the_request_says() {
    let router = serve(FakeBackend::new(blocks_of(1024)));
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": ["x"]}},
                        "required": ["a", "b"], "additionalProperties": false});
    let ask = |options: Value| {
        let mut form = json!({"json": schema});
        form.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        // White space of all kinds wherever it may come.
        json!({"structured_outputs": form, "logit_bias": {"32": 100, "9": 99, "10": 98}})
    };
    let free = text(&router, &ask(json!({}))).await;
    assert!(free.matches(' ').count() > 20, "{free:?}");
    let none = text(&router, &ask(json!({"disable_any_whitespace": true}))).await;
    assert_eq!(none, r#"{"a":1,"b":"x"}"#);
    let some = text(&router, &ask(json!({"whitespace_pattern": "\t{1,2}"}))).await;
    assert_eq!(some, "{\t\t\"a\"\t\t:\t\t1\t\t,\t\t\"b\"\t\t:\t\t\"x\"\t\t}");
    // As vLLM's guides have it: a space or none.
    let old = json!({"guided_json": schema, "guided_whitespace_pattern": "[ ]?", "logit_bias": {"32": 100}});
    assert_eq!(text(&router, &old).await, r#"{ "a" : 1 , "b" : "x" }"#);
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let both = json!({"response_format": format, "structured_outputs": {"disable_any_whitespace": true},
                      "logit_bias": {"32": 100}});
    assert_eq!(text(&router, &both).await, r#"{"a":1,"b":"x"}"#);
}

#[tokio::test]
async fn a_closed_schema_lets_no_other_property_come() {
    let schema = json!({"type": "object", "required": ["in"],
                        "properties": {"in": {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}}});
    let router = says(r#"{"in": {"a": 1, "c": 2}, "b": 3}"#);
    let open = text(&router, &json!({"structured_outputs": {"json": schema}})).await;
    assert_eq!(open, r#"{"in": {"a": 1, "c": 2}, "b": 3}"#);
    let closed =
        json!({"structured_outputs": {"json": schema.to_string(), "disable_additional_properties": true}});
    let closed: Value = serde_json::from_str(&text(&router, &closed).await).unwrap();
    assert_eq!(closed, json!({"in": {"a": 1}}));
}

fn get() -> Value {
    json!({"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": false})
}

#[tokio::test]
async fn marks_begin_bound_parts_in_the_older_form() {
    let tag = json!({"type": "structural_tag", "triggers": ["<f="], "structures": [
        {"begin": "<f=get>", "schema": get(), "end": "</f>"},
        {"begin": "<f=put>", "schema": {"type": "integer"}, "end": "</f>"},
    ]});
    let forms = [
        json!({"structured_outputs": {"structural_tag": tag.to_string(), "disable_any_whitespace": true}}),
        json!({"structured_outputs": {"structural_tag": tag, "disable_any_whitespace": true}}),
        json!({"response_format": tag, "structured_outputs": {"disable_any_whitespace": true}}),
    ];
    for form in &forms {
        let router = says("No calls <f here > at all.");
        assert_eq!(text(&router, form).await, "No calls <f here > at all.", "text is free");
        let router = says(r#"Well: <f=gzzzz"x":2}</f> and <f=put>34</f>!"#);
        assert_eq!(text(&router, form).await, r#"Well: <f=get>{"x":2}</f> and <f=put>34</f>!"#);
    }
    // It wants to end within a part, and may not.
    let router = says("<f=");
    let whole = text(&router, &forms[0]).await;
    assert!(whole.starts_with("<f=") && whole.ends_with("</f>"), "{whole}");
    let mut streamed = chat(&forms[0]);
    streamed["stream"] = json!(true);
    assert_eq!(streamed_text(&post(&router, CHAT, &streamed).await.events().await), whole);
}

#[tokio::test]
async fn formats_are_followed() {
    let tag = |name: &str| {
        json!({"type": "tag", "begin": format!("<{name}>"), "content": {"type": "json_schema", "json_schema": get()},
               "end": format!("</{name}>")})
    };
    let cases = [
        (
            json!({"type": "sequence", "elements": [
                {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
                {"type": "const_string", "value": "\n"},
                {"type": "or", "elements": [{"type": "regex", "pattern": "[0-9]{2}"}, {"type": "const_string", "value": "no"}]},
            ]}),
            "<think>So <it> goes</think>\n42 and more",
            "<think>So <it> goes</think>\n42",
        ),
        (
            json!({"type": "triggered_tags", "triggers": ["<a"], "tags": [tag("a")], "at_least_one": true,
                   "stop_after_first": true}),
            "xxxxxxxx\"x\":1}zzzzz",
            "<a>{\"x\":1}</a>",
        ),
        (
            json!({"type": "triggered_tags", "triggers": ["<a"], "tags": [tag("a")], "at_least_one": true}),
            "<a>{\"x\":1}</a> then <a>{\"x\":2}</a> done",
            "<a>{\"x\":1}</a> then <a>{\"x\":2}</a> done",
        ),
        (
            json!({"type": "triggered_tags", "triggers": ["<a"], "tags": [tag("a")], "stop_after_first": true}),
            "so <a>{\"x\":1}</a> then",
            "so <a>{\"x\":1}</a>",
        ),
        (
            json!({"type": "tags_with_separator", "tags": [tag("a"), tag("b")], "separator": ", ", "at_least_one": true}),
            "<a>{\"x\":1}</a>, <b>{\"x\":2}</b>",
            "<a>{\"x\":1}</a>, <b>{\"x\":2}</b>",
        ),
        (
            // Inside a tag, free text with parts of its own ends where the tag does.
            json!({"type": "tag", "begin": "<all>", "end": ["</all>", "<stop>"], "content": {
                "type": "triggered_tags", "triggers": ["<a"], "tags": [tag("a")]}}),
            "<all>x <a>{\"x\":1}</a> y<stop> z",
            "<all>x <a>{\"x\":1}</a> y<stop>",
        ),
        (
            json!({"type": "sequence", "elements": [
                {"type": "repeat", "min": 2, "max": 3, "content": {"type": "const_string", "value": "ab"}},
                {"type": "optional", "content": {"type": "const_string", "value": "!"}},
                {"type": "plus", "content": {"type": "const_string", "value": "-"}},
                {"type": "star", "content": {"type": "grammar", "grammar": "root ::= \"c\" d\nd ::= \"d\""}},
            ]}),
            "ababab--cdcd",
            "ababab--cdcd",
        ),
        (
            json!({"type": "dispatch", "rules": [["#", {"type": "regex", "pattern": "[0-9]"}], ["@", {"type": "const_string", "value": "me"}]]}),
            "a #12 @you b",
            "a #12 @meu b",
        ),
        (
            json!({"type": "sequence", "elements": [{"type": "const_string", "value": "> "}, {"type": "any_text", "excludes": ["bad", "worse"]}]}),
            "> a bade",
            "> a bae",
        ),
    ];
    for (format, wants, gets) in cases {
        let router = says(wants);
        let ask = json!({"response_format": {"type": "structural_tag", "format": format},
                         "structured_outputs": {"disable_any_whitespace": true}});
        let got = text(&router, &ask).await;
        if format["elements"][1]["excludes"].is_array() {
            assert!(got.starts_with("> a ba") && !got.contains("bad"), "{got}");
        } else {
            assert_eq!(got, gets, "{format}");
        }
    }
}

#[tokio::test]
async fn special_tokens_are_marks_too() {
    // `<|im_start|>` is a special token here, which no text spells.
    let begin = u32::from(b'c');
    let tokens =
        [b'o', b'k'].map(u32::from).into_iter().chain([256]).chain([begin]).chain(b"zzz".map(u32::from));
    for begin in [
        json!("<|im_start|>"),
        json!({"type": "token", "token": 256}),
        json!({"type": "token", "token": "<|im_start|>"}),
    ] {
        let router = serve(FakeBackend::says(blocks_of(1024), tokens.clone().collect()));
        let tag = json!({"type": "tag", "begin": begin, "content": {"type": "const_string", "value": "call"}, "end": ";"});
        let format = if begin.is_string() {
            json!({"type": "triggered_tags", "triggers": ["<|im_start|>"], "tags": [tag]})
        } else {
            json!({"type": "sequence", "elements": [{"type": "const_string", "value": "ok"}, tag]})
        };
        let ask = json!({"response_format": {"type": "structural_tag", "format": format}, "skip_special_tokens": false});
        assert_eq!(text(&router, &ask).await, "ok<|im_start|>call;", "{begin}");
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_by_its_member() {
    let router = serve(FakeBackend::new(64));
    let text = json!({"type": "any_text"});
    let tag = json!({"begin": "<a>", "content": {"type": "const_string", "value": "x"}, "end": "</a>"});
    let formats = [
        json!({"type": "qwen_xml_parameter", "json_schema": {}}),
        json!({"type": "token_triggered_tags"}),
        json!({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}),
        json!({"type": "json_schema", "json_schema": {}, "any_order": true}),
        json!({"type": "json_schema", "json_schema": {}, "excludes": ["a"]}),
        json!({"type": "json_schema"}),
        json!({"type": "any_text", "max_tokens": 5}),
        json!({"type": "sequence", "elements": [text, {"type": "const_string", "value": "x"}]}),
        json!({"type": "sequence", "elements": []}),
        json!({"type": "star", "content": text}),
        json!({"type": "tag", "begin": "<a>", "content": text, "end": ["</a>", ""]}),
        json!({"type": "tags_with_separator", "separator": ",", "tags": [{"begin": "a", "content": text, "end": ""}]}),
        json!({"type": "triggered_tags", "triggers": ["<b>"], "tags": [tag]}),
        json!({"type": "triggered_tags", "triggers": ["<a>", "<b>"], "tags": [tag]}),
        json!({"type": "triggered_tags", "triggers": [""], "tags": [tag]}),
        json!({"type": "triggered_tags", "triggers": ["a<|im_end|>"], "tags": [tag]}),
        json!({"type": "regex", "pattern": "("}),
        json!({"type": "grammar", "grammar": "root ::= other"}),
        json!({"type": "token", "token": "<|none|>"}),
        json!({"type": "token", "token": 4000}),
        json!({"type": "repeat", "min": 2, "max": 1, "content": {"type": "const_string", "value": "x"}}),
        json!({"type": "repeat", "min": 0, "max": 5000, "content": {"type": "const_string", "value": "x"}}),
        json!({"type": "const_string", "value": "x", "colour": 1}),
        json!({"type": "poem"}),
        json!([]),
    ];
    let legacy = |structures: Value, triggers: Value| {
        json!({"structured_outputs": {"structural_tag":
            {"type": "structural_tag", "structures": structures, "triggers": triggers}}})
    };
    let mut asks: Vec<Value> = formats
        .into_iter()
        .map(|format| json!({"response_format": {"type": "structural_tag", "format": format}}))
        .collect();
    asks.extend([
        legacy(json!([{"begin": "<a>", "end": "</a>"}]), json!(["<a"])),
        legacy(json!([{"begin": "<a>", "schema": {}, "end": "</a>"}]), json!(["<b"])),
        legacy(json!([]), json!(["<b"])),
        json!({"structured_outputs": {"structural_tag": "{"}}),
        json!({"structured_outputs": {"structural_tag": "{}"}}),
        json!({"structured_outputs": {"structural_tag": {"type": "structural_tag"}}}),
        json!({"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": {"type": "any_text"}},
                                      "regex": "a"}}),
    ]);
    let mut said = String::new();
    for ask in asks {
        let answer = post(&router, CHAT, &chat(&ask)).await;
        let status = answer.status;
        let body: Value = serde_json::from_str(&answer.text().await).unwrap();
        assert_eq!(status, 400, "{ask}: {body}");
        writeln!(said, "{}: {}", body["error"]["param"], body["error"]["message"]).unwrap();
    }
    insta::assert_snapshot!("structural_refusals", said);
}
