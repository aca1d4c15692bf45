//! What a body asks for, and what goes on.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn read(endpoint: Endpoint, body: &str) -> Ask {
    Ask::read(endpoint, Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

fn facts() -> ModelFacts {
    ModelFacts { template_overhead: Some(10), max_model_len: Some(4096) }
}

#[test]
fn the_output_bound_is_the_largest_limit_times_the_answers() {
    for (endpoint, body, output) in [
        (Endpoint::Chat, r#"{"model":"m","max_tokens":5,"max_completion_tokens":7}"#, 7),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":5,"min_tokens":9,"n":3}"#, 27),
        (Endpoint::Chat, r#"{"model":"m"}"#, 1024),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":null}"#, 1024),
        (Endpoint::Completions, r#"{"model":"m","prompt":"x"}"#, 16),
        (Endpoint::Completions, r#"{"model":"m","prompt":["a","b"],"n":2,"best_of":4,"max_tokens":3}"#, 24),
        (Endpoint::Completions, r#"{"model":"m","prompt":[[1],[2,3]],"max_tokens":3}"#, 6),
        (Endpoint::Embeddings, r#"{"model":"m","input":["a","b"],"max_tokens":9}"#, 0),
        (Endpoint::Chat, r#"{"model":"m","max_tokens":18446744073709551615,"n":9}"#, u64::MAX),
    ] {
        assert_eq!(read(endpoint, body).bound(&facts()).unwrap().output, output, "{body}");
    }
    let small = ModelFacts { max_model_len: Some(512), ..facts() };
    assert_eq!(read(Endpoint::Chat, r#"{"model":"m"}"#).bound(&small).unwrap().output, 256);
}

#[test]
fn the_input_bound_is_bytes_for_text_and_the_count_for_ids() {
    let text = r#"{"model":"m","prompt":["a","b"]}"#;
    assert_eq!(read(Endpoint::Completions, text).bound(&facts()).unwrap().input, text.len() as u64 + 20);
    for (prompt, tokens) in [("[1,22,333]", 3), ("[ [1, 2] , [3] ]", 3), ("[]", 0), ("[[]]", 0)] {
        let body = format!("{{\"model\":\"m\",\"prompt\":{prompt}}}");
        assert_eq!(read(Endpoint::Completions, &body).bound(&facts()).unwrap().input, tokens, "{prompt}");
    }
    for prompt in ["[1.5]", "[-1]", "[true]", "[\"1\"]", "[[[1]]]", "[1,\"a\"]", "[{\"a\":1}]"] {
        let body = format!("{{\"model\":\"m\",\"prompt\":{prompt}}}");
        let input = read(Endpoint::Completions, &body).bound(&facts()).unwrap().input;
        assert!(input >= body.len() as u64, "{prompt}: {input}");
    }
    let broken =
        Ask::read(Endpoint::Chat, Bytes::from_static(b"{\"model\":\"m\",\"messages\":[\"\xff\"]}")).unwrap();
    assert!(broken.bound(&facts()).unwrap().input > 90);
}

#[test]
fn strings_and_arrays_are_told_apart() {
    assert_eq!(prompts(br#""a,b""#), Prompts { count: 1, tokens: None });
    assert_eq!(prompts(br#"["a]\"[", "b"]"#), Prompts { count: 2, tokens: None });
    assert_eq!(prompts(b"[[1,2],[3]]"), Prompts { count: 2, tokens: Some(3) });
    assert_eq!(prompts(br#"[["a"],[1]]"#), Prompts { count: 2, tokens: None });
}

#[test]
fn bad_bodies_say_what_is_wrong() {
    let mut shown = Vec::new();
    for body in [
        "",
        "[]",
        "{\"model\":",
        "{}",
        r#"{"model":7}"#,
        r#"{"model":"m","mod\u0065l":"n"}"#,
        r#"{"model":"m","stream":"yes"}"#,
        r#"{"model":"m","stream":true,"stream_options":[]}"#,
        r#"{"model":"m","max_tokens":-1}"#,
        r#"{"model":"m","n":1.5}"#,
    ] {
        let fault = Ask::read(Endpoint::Chat, Bytes::copy_from_slice(body.as_bytes()))
            .and_then(|ask| ask.bound(&facts()))
            .unwrap_err();
        let param = fault.body.error.param.unwrap_or_default();
        shown.push(format!("{} {param}: {}", fault.kind.status(), fault.body.error.message));
    }
    insta::assert_snapshot!(shown.join("\n"), @r#"
    400 : the body must be a JSON object, and it starts with something else at byte 0
    400 : the body must be a JSON object, and it starts with something else at byte 0
    400 : the body is not valid JSON: the end where a value should be at byte 9
    400 model: you must name a model: set `model` to one that `GET /v1/models` lists
    400 model: `model` must be a string
    400 model: the body has the member `model` twice; send it once
    400 stream: `stream` must be true or false
    400 stream_options: `stream_options` must be an object
    400 max_tokens: `max_tokens` must be a whole number, zero or more
    400 n: `n` must be a whole number, zero or more
    "#);
}

#[test]
fn text_that_is_no_utf8_passes_unchanged() {
    let body =
        Bytes::from_static(b"{\"messages\":[\"\xff\xfe\"],\"user\":\"u\",\"model\":\"m\",\"max_tokens\":1}");
    let ask = Ask::read(Endpoint::Chat, body).unwrap();
    assert_eq!(
        ask.forwarded(&facts()).unwrap(),
        &b"{\"messages\":[\"\xff\xfe\"],\"model\":\"m\",\"max_tokens\":1}"[..]
    );
}

proptest! {
    /// Whatever a body holds, what goes on is the same to the byte, in the same order, but for the
    /// members that the contract lists.
    #[test]
    fn only_the_listed_members_change(
        keys in proptest::sample::subsequence(
            vec!["model", "user", "messages", "metadata", "n", "stream", "stream_options", "max_tokens",
                 "safety_identifier", "temperature", "cache_salt", "kv_transfer_params", "priority", "store"], 0..=14).prop_shuffle(),
        text in proptest::collection::vec(any::<u8>().prop_filter("plain", |b| !matches!(b, b'"' | b'\\' | 0..=31)), 0..40),
        stream: bool, pad in 0usize..3,
    ) {
        let mut keys = keys;
        if !keys.contains(&"model") { keys.push("model"); }
        let space = " ".repeat(pad);
        let mut body: Vec<u8> = b"{".to_vec();
        for (i, key) in keys.iter().enumerate() {
            if i > 0 { body.extend_from_slice(b","); }
            body.extend_from_slice(format!("{space}\"{key}\"{space}:{space}").as_bytes());
            match *key {
                "model" => body.extend_from_slice(b"\"m\""),
                "stream" => body.extend_from_slice(stream.to_string().as_bytes()),
                "stream_options" => body.extend_from_slice(b"{ \"x\":1 , \"include_usage\":false}"),
                "n" | "max_tokens" | "priority" => body.extend_from_slice(b"3"),
                "user" | "safety_identifier" => body.extend_from_slice(b"\"me\""),
                _ => { body.extend_from_slice(b"[\""); body.extend_from_slice(&text); body.extend_from_slice(b"\", 1.50]"); }
            }
        }
        body.extend_from_slice(b"}");
        let body = Bytes::from(body);
        let ask = Ask::read(Endpoint::Chat, body.clone()).unwrap();
        prop_assert!(ask.patches(&facts()).unwrap().iter().all(|p| p.is_allowed(&patch::GATEWAY)));
        let out = ask.forwarded(&facts()).unwrap();
        let (before, after) = (TopLevel::scan(&body).unwrap(), TopLevel::scan(&out).unwrap());
        let streams = stream && keys.contains(&"stream");
        let touched = |key: &str| patch::GATEWAY.remove.contains(&key)
            || (key == "stream_options" && streams);
        let rest: Vec<&str> = keys.iter().copied().filter(|k| !touched(k)).collect();
        let kept: Vec<&str> = after.members.iter().map(|m| m.key.as_str())
            .filter(|k| !touched(k) && (*k != "max_tokens" || keys.contains(&"max_tokens"))).collect();
        prop_assert_eq!(&rest, &kept);
        for key in rest {
            prop_assert_eq!(before.raw(&body, key), after.raw(&out, key));
        }
        for key in patch::GATEWAY.remove {
            prop_assert!(after.get(key).is_none());
        }
        if streams {
            let options: Value = serde_json::from_slice(after.raw(&out, "stream_options").unwrap()).unwrap();
            prop_assert_eq!(&options["include_usage"], &Value::Bool(true));
            prop_assert_eq!(&options["continuous_usage_stats"], &Value::Bool(true));
        }
        prop_assert_eq!(after.raw(&out, "max_tokens").unwrap(),
            if keys.contains(&"max_tokens") { &b"3"[..] } else { &b"1024"[..] });
    }
}
