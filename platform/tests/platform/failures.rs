//! A next layer that fails.

use http::StatusCode;
use serde_json::{Value, json};
use strata_wire::sse;
use tokio::sync::mpsc;

use crate::support::*;

/// Ways to fail in mid-stream, with what the error says.
fn failures() -> Vec<(Reply, &'static str)> {
    let error =
        sse::data(&json!({"error": {"message": "out of memory", "type": "server_error"}}).to_string());
    vec![
        (Reply::Events(vec![text("so "), error]), "out of memory"),
        (Reply::Events(vec![text("so ")]), "ended before the model did"),
        (Reply::Events(vec![text("so "), sse::data("{nonsense")]), "a chunk cannot be read"),
        (
            Reply::Events(vec![
                text("so "),
                chunk(json!({"tool_calls": [{"index": 0, "function": {}}]}), None),
            ]),
            "without naming it",
        ),
    ]
}

#[tokio::test]
async fn a_stream_that_fails_ends_in_an_event_and_is_stored_as_failed() {
    let world = World::new().await;
    for (reply, message) in failures() {
        world.script([reply]);
        let events = world.create_streamed(json!({"model": "m", "input": "1"})).await;
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.failed", "{message}");
        let response = &last["response"];
        assert_eq!(
            (&response["status"], &response["error"]["code"]),
            (&json!("failed"), &json!("server_error"))
        );
        assert!(response["error"]["message"].as_str().unwrap().contains(message), "{response}");
        assert_eq!(output_text(response), "so ");
        assert_eq!(response["output"][0]["status"], "incomplete");
        let (_, stored) = world.get(&format!("/v1/responses/{}", response["id"].as_str().unwrap())).await;
        assert_eq!(&stored, response);
    }
}

#[tokio::test]
async fn an_unstreamed_response_that_fails_is_an_error() {
    let world = World::new().await;
    for (reply, message) in failures() {
        world.script([reply]);
        let (status, body) = world.post("/v1/responses", json!({"model": "m", "input": "1"})).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (502, &json!("upstream_failed")));
        assert!(body["error"]["message"].as_str().unwrap().contains(message), "{body}");
    }
    world.script([Reply::Whole(StatusCode::OK, vec![("content-type", "application/json")], "{}".to_owned())]);
    let (status, body) = world.post("/v1/responses", json!({"model": "m", "input": "1"})).await;
    assert_eq!(status, 502, "{body}");
}

#[tokio::test]
async fn what_failed_does_not_enter_its_conversation() {
    let world = World::new().await;
    let (_, made) = world.post("/v1/conversations", json!({})).await;
    let id = made["id"].as_str().unwrap();
    world.script([Reply::Events(vec![text("so ")]), says(&["ok"])]);
    let body = json!({"model": "m", "input": "1", "conversation": id});
    world.create_streamed(body.clone()).await;
    let items = format!("/v1/conversations/{id}/items");
    assert_eq!(world.get(&items).await.1["data"], json!([]));
    world.create(body).await;
    assert_eq!(world.get(&items).await.1["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_database_that_fails_is_said_so_and_the_process_lives() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::in_folder(strata_platform::UpstreamKind::Ungoverned, folder.path()).await;
    let other = rusqlite::Connection::open(folder.path().join("platform.sqlite")).unwrap();
    other.execute_batch("ALTER TABLE response_items RENAME TO hidden").unwrap();
    world.script([says(&["one"]), says(&["two"]), says(&["three"]), says(&["four"])]);
    let body = json!({"model": "m", "input": "1"});
    let (status, answer) = world.post("/v1/responses", body.clone()).await;
    assert_eq!(status, 500);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("database failed") && message.ends_with("nothing of this request was saved"),
        "{message}"
    );
    let events = world.create_streamed(body.clone()).await;
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["error"]["code"]),
        (&json!("response.failed"), &json!("server_error"))
    );
    assert_eq!(output_text(&last["response"]), "two", "what the model said is not lost");
    let mut unstored = body.clone();
    unstored["store"] = json!(false);
    world.create(unstored).await;
    other.execute_batch("ALTER TABLE hidden RENAME TO response_items").unwrap();
    let stored = world.create(body).await;
    assert_eq!(world.get(&format!("/v1/responses/{}", stored["id"].as_str().unwrap())).await.0, 200);
}

#[tokio::test]
async fn a_connection_that_breaks_fails_the_response() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel();
    world.script([Reply::Held(receive)]);
    send.send(Ok(text("so "))).unwrap();
    let body = json!({"model": "m", "input": "1", "stream": true}).to_string();
    let mut answer = world.send("POST", "/v1/responses", &[], body).await;
    let mut events = Events::default();
    events.until(&mut answer, "response.output_text.delta").await;
    send.send(Err(std::io::Error::other("cut"))).unwrap();
    let failed = events.until(&mut answer, "response.failed").await;
    let message = failed["response"]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the model server broke off in mid-answer"), "{message}");
    assert!(events.next(&mut answer).await.is_none());
}

#[tokio::test]
async fn a_refusal_in_mid_loop_fails_the_response() {
    let world = World::new().await;
    let refusal = || {
        let body: Value =
            json!({"error": {"message": "quota", "type": "rate_limit_error", "param": null, "code": null}});
        Reply::Whole(StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "3")], body.to_string())
    };
    let body = json!({"model": "m", "input": "1", "tools": [{"type": "calculator"}]});
    world.script([
        calls(&[("calculator", &sum("1+1"))]),
        refusal(),
        calls(&[("calculator", &sum("1+1"))]),
        refusal(),
    ]);
    let events = world.create_streamed(body.clone()).await;
    let response = &events.last().unwrap()["response"];
    assert_eq!(response["error"], json!({"code": "rate_limit_exceeded", "message": "quota"}));
    assert_eq!(response["usage"]["output_tokens"], 5, "what was used counts");
    let answer = world.send("POST", "/v1/responses", &[], body.to_string()).await;
    assert_eq!((answer.status.as_u16(), &answer.headers["retry-after"]), (429, &"3".parse().unwrap()));
}

#[tokio::test]
async fn nobody_below_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = strata_platform::PlatformOptions::new(
        "http://127.0.0.1:1",
        strata_platform::UpstreamKind::Ungoverned,
        folder.path(),
    );
    let router = strata_platform::router(strata_platform::App::open(options).unwrap());
    for (path, body) in
        [("/v1/chat/completions", json!({})), ("/v1/responses", json!({"model": "m", "input": "1"}))]
    {
        let request = http::Request::post(path).body(strata_hop::Body::from(body.to_string())).unwrap();
        let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        assert_eq!(response.status(), 503, "{path}");
        assert_eq!(response.headers()["retry-after"], "1");
    }
}
