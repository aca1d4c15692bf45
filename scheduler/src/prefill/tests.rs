use proptest::prelude::*;
use serde_json::json;
use strata_wire::extract::Extractor;
use strata_wire::prefix::BlockHash;

use super::*;

fn read(body: &str) -> Extracted {
    let mut extractor = Extractor::new(None, None);
    extractor.push(body.as_bytes()).unwrap();
    extractor.finish().unwrap()
}

fn text(rope: &Rope) -> String {
    String::from_utf8(rope.parts().flatten().copied().collect()).unwrap()
}

#[test]
fn short_prompts_and_those_that_are_there_stay() {
    let prefix = |bytes: usize| Prefix {
        blocks: (0..bytes / BLOCK_BYTES).map(|n| BlockHash(n as u64)).collect(),
        bytes,
        opening: None,
    };
    assert!(!is_worth_it(&prefix(2047), 0) && is_worth_it(&prefix(2048), 0));
    assert!(is_worth_it(&prefix(10_000), 31) && !is_worth_it(&prefix(10_000), 32));
    assert!(!is_worth_it(&Prefix::default(), 0) && !is_worth_it(&prefix(100), 9));
}

#[test]
fn only_one_answer_to_one_prompt_is_divided() {
    let is = |path: &str, body: &str| is_divisible(path, &read(body));
    for body in ["{}", r#"{"n":1}"#, r#"{"n":null,"echo":false}"#, r#"{"logprobs":true}"#] {
        assert!(is("/v1/chat/completions", body) && is("/v1/completions", body), "{body}");
        assert!(!is("/v1/embeddings", body) && !is("/tokenize", body));
    }
    for body in [r#"{"n":2}"#, r#"{"best_of":3}"#, r#"{"echo":true}"#, r#"{"prompt_logprobs":0}"#] {
        assert!(!is("/v1/completions", body), "{body}");
    }
}

#[test]
fn both_bodies_change_in_what_is_named_alone() {
    let Extracted { body, top, .. } = read(
        r#"{ "model":"m", "stream":true,"stream_options":{"x":1} ,"min_tokens":9,"max_completion_tokens":50,"messages":[ 1 ],"cache_salt":"s" }"#,
    );
    insta::assert_snapshot!(text(&for_prefill(&body, &top).unwrap()), @r#"{ "model":"m", "stream":false,"max_completion_tokens":1,"messages":[ 1 ],"cache_salt":"s","max_tokens":1,"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null} }"#);
    insta::assert_snapshot!(text(&for_decode(&body, &top, "{\"a\": 1.50}".to_owned()).unwrap().0), @r#"{ "model":"m", "stream":true,"stream_options":{"x":1} ,"min_tokens":9,"max_completion_tokens":50,"messages":[ 1 ],"cache_salt":"s","kv_transfer_params":{"a": 1.50} }"#);
    let Extracted { body, top, .. } = read(r#"{"max_tokens":7}"#);
    let short = for_prefill(&body, &top).unwrap();
    assert!(
        text(&short).starts_with(r#"{"max_tokens":1,"#) && !text(&short).contains("max_completion_tokens")
    );
}

#[test]
fn what_keeps_nothing_is_not_passed_on() {
    let said = |params: serde_json::Value| {
        words(json!({"id": "x", "kv_transfer_params": params}).to_string().as_bytes())
    };
    let whole = json!({"do_remote_prefill": true, "remote_block_ids": [[1, 2]], "remote_host": "10.0.0.1"});
    assert_eq!(said(whole.clone()), Some(whole.to_string()));
    assert!(said(json!({"of": "another connector"})).is_some());
    for nothing in [json!(null), json!({}), json!("x"), json!([1])] {
        assert_eq!(said(nothing.clone()), None, "{nothing}");
    }
    for blocks in [json!(null), json!([]), json!([[], []])] {
        assert_eq!(said(json!({"do_remote_prefill": true, "remote_block_ids": blocks})), None);
    }
    for answer in [
        &b""[..],
        b"[]",
        b"{}",
        br#"{"kv_transfer_params":{"a":1}"#,
        b"{\"kv_transfer_params\":{\"a\":\"\xff\"}}",
    ] {
        assert_eq!(words(answer), None);
    }
}

proptest! {
    /// No answer makes it panic, and what is passed on is an object.
    #[test]
    fn answers_are_not_trusted(bytes in prop::collection::vec(any::<u8>(), 0..200), inner in ".{0,40}") {
        let _ = words(&bytes);
        let answer = format!("{{\"kv_transfer_params\":{inner}}}");
        if let Some(said) = words(answer.as_bytes()) {
            let parsed: Value = serde_json::from_str(&said).unwrap();
            prop_assert!(parsed.is_object());
        }
    }
}
