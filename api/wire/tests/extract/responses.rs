//! A response's body has the canonical text of the chat that it stands for.

use serde_json::{Value, json};
use strata_wire::prefix::{Form, Prefix};

use super::same::read;

fn prefix(form: Form, body: &Value) -> Prefix {
    read(body.to_string().as_bytes(), form, false, |_| 100).unwrap().1.unwrap()
}

fn response(body: &Value) -> Prefix {
    prefix(Form::Response, body)
}

/// So long that a difference in it makes another block.
fn long(text: &str) -> String {
    text.repeat(300)
}

#[test]
fn a_response_shares_the_prefix_of_its_chat() {
    let (kind, hello) = (long("be kind "), long("hello "));
    let chat = prefix(
        Form::Chat,
        &json!({"model": "m", "messages": [{"role": "system", "content": kind}, {"role": "user", "content": hello}]}),
    );
    assert!(chat.blocks.len() > 10 && chat.opening.is_some());
    assert_eq!(response(&json!({"model": "m", "instructions": kind, "input": hello})), chat);
    assert_eq!(response(&json!({"input": hello, "instructions": kind, "model": "m"})), chat);
    let item = |role: &str, kind: &str, text: &str| json!({"type": "message", "id": "x", "content": [{"type": kind, "text": text}], "role": role});
    let items = json!([item("system", "input_text", &kind), item("user", "input_text", &hello)]);
    assert_eq!(response(&json!({"model": "m", "input": items})), chat);

    let (said, more) = (long("hi "), long("more "));
    let turns = json!([{"role": "user", "content": hello}, {"role": "assistant", "content": said}, {"role": "user", "content": more}]);
    let items = json!([
        item("user", "input_text", &hello),
        item("assistant", "output_text", &said),
        item("user", "input_text", &more)
    ]);
    assert_eq!(
        response(&json!({"model": "m", "input": items})),
        prefix(Form::Chat, &json!({"model": "m", "messages": turns}))
    );
}

#[test]
fn items_without_a_role_count_as_they_stand() {
    let of = |arguments: &str| {
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments});
        response(&json!({"model": "m", "input": [{"role": "user", "content": long("x")}, call]}))
    };
    let (a, b) = (of(&long("a")), of(&long("b")));
    assert_eq!((a.blocks[0], a.blocks.len()), (b.blocks[0], b.blocks.len()));
    assert_ne!(a.blocks.last(), b.blocks.last());
    assert_eq!(a.opening.unwrap(), b.opening.unwrap());
    assert!(!a.opening.unwrap().first, "a call is an answer");
}

#[test]
fn what_went_before_is_told_apart_by_its_id() {
    let of = |id: &str| {
        response(&json!({"model": "m", "previous_response_id": id, "input": long("go on ")})).blocks[0]
    };
    assert_ne!(of("resp_1"), of("resp_2"));
    assert_eq!(of("resp_1"), of("resp_1"));
}

#[test]
fn what_is_no_response_has_no_prefix() {
    for body in [
        r#"{"model":"m","input":[1]}"#,
        r#"{"model":"m","input":7}"#,
        r#"{"model":"m","input":[{"role":1}]}"#,
    ] {
        assert_eq!(read(body.as_bytes(), Form::Response, false, |_| 3).unwrap().1, None, "{body}");
    }
    let empty = read(br#"{"model":"m","input":null}"#, Form::Response, false, |_| 3).unwrap().1.unwrap();
    assert_eq!((empty.bytes, empty.opening), (0, None));
}
