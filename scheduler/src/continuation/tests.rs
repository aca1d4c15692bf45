use proptest::prelude::*;

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn chat(more: &str) -> String {
    format!(r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"hi"}}]{more}}}"#)
}

fn plan(body: &str) -> Option<Plan> {
    Plan::of(CHAT, body.as_bytes())
}

#[test]
fn only_what_is_exact_is_gone_on_with() {
    for more in [
        "",
        r#","n":1,"logprobs":false,"tools":[],"seed":null,"stop":["x"],"temperature":0.7"#,
        r#","seed":7,"temperature":0,"response_format":{"type":"text"},"presence_penalty":0"#,
    ] {
        assert!(plan(&chat(more)).is_some(), "{more}");
    }
    for more in [
        r#","n":2"#,
        r#","tools":[{"type":"function"}]"#,
        r#","logprobs":true"#,
        r#","response_format":{"type":"json_object"}"#,
        r#","guided_regex":"a+""#,
        r#","seed":7"#,
        r#","seed":7,"temperature":0.1"#,
        r#","frequency_penalty":0.5"#,
        r#","continue_final_message":true"#,
        r#","return_token_ids":true"#,
    ] {
        assert_eq!(plan(&chat(more)), None, "{more}");
    }
    assert_eq!(plan(&chat("").replace("true", "false")), None, "nothing has been sent of it");
    let completion = r#"{"model":"m","stream":true,"prompt":"hi"}"#;
    assert!(Plan::of("/v1/completions", completion.as_bytes()).is_some());
    let tokens = completion.replace(r#""hi""#, "[1,2]");
    assert_eq!(Plan::of("/v1/completions", tokens.as_bytes()), None);
    assert_eq!(Plan::of("/v1/responses", completion.as_bytes()), None);
}

#[test]
fn the_rest_is_asked_for() {
    let plan = plan(&chat(r#","max_tokens":10,"min_tokens":6,"cache_salt":"s""#)).unwrap();
    let body: Value = serde_json::from_str(&plan.body("so far", 4).unwrap()).unwrap();
    assert_eq!(
        body,
        json!({
            "model": "m", "stream": true, "cache_salt": "s", "max_tokens": 6, "min_tokens": 2,
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}],
            "continue_final_message": true, "add_generation_prompt": false,
        })
    );
    assert_eq!(plan.body("so far", 10), None, "nothing is left");
    let text = Plan::of("/v1/completions", br#"{"model":"m","stream":true,"prompt":"hi"}"#).unwrap();
    let body: Value = serde_json::from_str(&text.body(" there", 4).unwrap()).unwrap();
    assert_eq!(body, json!({"model": "m", "stream": true, "prompt": "hi there"}));
    let asked: Value = serde_json::from_str(&text.to_tokenize(None)).unwrap();
    assert_eq!(asked, json!({"model": "m", "prompt": "hi"}));
}

fn event(delta: &str, usage: &str) -> Bytes {
    sse::data(&format!(
        r#"{{"id":"c1","created":5,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]{usage}}}"#
    ))
}

fn some() -> Vec<Bytes> {
    let role = event(r#"{"role":"assistant","content":""}"#, "");
    vec![role, event(r#"{"content":"Hel"}"#, ""), event(r#"{"content":"lo"}"#, "")]
}

#[test]
fn words_are_read_that_were_sent() {
    let sent = Sent::read(&some()).unwrap();
    assert_eq!((sent.text.as_str(), sent.pieces, sent.head["id"].as_str()), ("Hello", 2, Some("c1")));
    let with = |last: Bytes| Sent::read(&[some(), vec![last]].concat());
    assert_eq!(with(event(r#"{"reasoning":"hm"}"#, "")), None);
    assert_eq!(with(event(r#"{"tool_calls":[{}]}"#, "")), None);
    assert_eq!(with(sse::data("[DONE]")), None, "it has ended");
    let ended = event("{}", "");
    let ended = Bytes::from(String::from_utf8(ended.to_vec()).unwrap().replace("null", r#""stop""#));
    assert_eq!(with(ended), None);
    assert_eq!(with(sse::data(r#"{"error":{"message":"x"}}"#)), None);
    assert_eq!(Sent::read(&some()[..1]), None, "no word was sent");
    assert_eq!(with(Bytes::from_static(b"data: {\"cho")), None);
}

#[test]
fn other_tokens_are_noticed() {
    let sent = Sent::read(&some()).unwrap();
    assert_eq!(sent.tokens(&[1, 2], &[1, 2, 3, 4]), Some(2));
    assert_eq!(sent.tokens(&[1, 2], &[1, 2, 3]), None, "one that is both pieces");
    assert_eq!(sent.tokens(&[1, 2], &[1, 2, 3, 4, 5]), None);
    assert_eq!(sent.tokens(&[1, 2], &[1, 9, 3, 4]), None, "the prompt reads otherwise");
    let usage =
        r#","usage":{"prompt_tokens":2,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}"#;
    let counted = Sent::read(&[some(), vec![event(r#"{"content":"!"}"#, usage)]].concat()).unwrap();
    assert_eq!(counted.tokens(&[1], &[1, 2, 3, 4]), Some(3));
    assert_eq!(counted.tokens(&[1], &[1, 2, 3]), None);
    let letters = Sent::read(&[event(r#"{"content":"\u00e9"}"#, "")]).unwrap();
    assert_eq!(letters.tokens(&[1], &[1, 2, 3]), Some(2), "a letter of two tokens");
}

#[test]
fn the_second_part_looks_like_the_first() {
    let join = Join::new(Sent::read(&some()).unwrap(), 7, 2);
    assert_eq!(join.event(r#"{"id":"c2","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#), None);
    let read = |bytes: Bytes| -> Value {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap()
    };
    let more = read(
        join.event(r#"{"id":"c2","created":9,"model":"m","choices":[{"index":0,"delta":{"content":"!"}}]}"#)
            .unwrap(),
    );
    assert_eq!(
        (&more["id"], &more["created"], &more["choices"][0]["delta"]["content"]),
        (&json!("c1"), &json!(5), &json!("!"))
    );
    let last = read(join.event(r#"{"id":"c2","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":8}}}"#).unwrap());
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 7}})
    );
    assert_eq!(join.event("[DONE]"), Some(sse::data("[DONE]")));
}

proptest! {
    #[test]
    fn no_stream_breaks_it(events in prop::collection::vec("[a-z{}\":,\\[\\] \n]{0,60}", 0..6), data in ".{0,80}") {
        let events: Vec<Bytes> = events.into_iter().map(Bytes::from).collect();
        let _ = Sent::read(&events);
        let _ = Plan::of(CHAT, data.as_bytes());
        let _ = Join::new(Sent::default(), 1, 2).event(&data);
    }
}
