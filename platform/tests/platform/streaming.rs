//! Streams: their events, their order, and that they are streams.

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn a_text_is_streamed_in_openais_events() {
    let world = World::new().await;
    world.script([says(&["Hel", "lo"])]);
    let events =
        world.create_streamed(json!({"model": "m", "input": "hi", "instructions": "be brief"})).await;
    insta::assert_snapshot!(transcript(&events));
    let id = events[0]["response"]["id"].as_str().unwrap();
    let last = &events.last().unwrap()["response"];
    let (status, stored) = world.get(&format!("/v1/responses/{id}")).await;
    assert_eq!((status, &stored), (http::StatusCode::OK, last), "what is stored is what was sent");
    insta::assert_snapshot!(normal(&serde_json::to_string_pretty(&stored).unwrap()));
}

#[tokio::test]
async fn each_piece_comes_while_the_model_is_held_before_the_next() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel();
    world.script([Reply::Held(receive)]);
    send.send(Ok(chunk(json!({"role": "assistant", "content": ""}), None))).unwrap();
    let body = json!({"model": "m", "input": "hi", "stream": true}).to_string();
    let mut answer = world.send("POST", "/v1/responses", &[], body).await;
    let mut events = Events::default();
    assert_eq!(events.next(&mut answer).await.unwrap()["type"], "response.created");
    for k in 0..20 {
        send.send(Ok(text(&format!("piece {k}")))).unwrap();
        let delta = events.until(&mut answer, "response.output_text.delta").await;
        assert_eq!(delta["delta"], format!("piece {k}"));
    }
    send.send(Ok(chunk(json!({}), Some("stop")))).unwrap();
    events.until(&mut answer, "response.output_item.done").await;
    send.send(Ok(ending(1, 0, 20))).unwrap();
    let end = events.until(&mut answer, "response.completed").await;
    assert_eq!(end["response"]["usage"]["output_tokens"], 20);
    assert!(events.next(&mut answer).await.is_none());
}

#[tokio::test]
async fn a_function_call_is_streamed() {
    let world = World::new().await;
    world.script([calls(&[("weather", r#"{"city":"Oslo"}"#), ("weather", r#"{"city":"Rome"}"#)])]);
    let tool =
        json!({"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true});
    let events = world.create_streamed(json!({"model": "m", "input": "hi", "tools": [tool]})).await;
    insta::assert_snapshot!(transcript(&events));
}

#[tokio::test]
async fn the_calculators_loop_is_streamed() {
    let world = World::new().await;
    world.script([calls(&[("calculator", &sum("0.1+0.2"))]), says(&["It is ", "0.3."])]);
    let events = world
        .create_streamed(json!({"model": "m", "input": "0.1+0.2?", "tools": [{"type": "calculator"}]}))
        .await;
    insta::assert_snapshot!(transcript(&events));
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_model() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel();
    world.script([Reply::Held(receive)]);
    send.send(Ok(text("so far"))).unwrap();
    let body = json!({"model": "m", "input": "hi", "stream": true}).to_string();
    let mut answer = world.send("POST", "/v1/responses", &[], body).await;
    let mut events = Events::default();
    let created = events.next(&mut answer).await.unwrap();
    events.until(&mut answer, "response.output_text.delta").await;
    drop(answer);
    tokio::time::timeout(LONG, send.closed()).await.expect("the connection to the model is dropped");
    let path = format!("/v1/responses/{}", created["response"]["id"].as_str().unwrap());
    let stored = eventually("the cancelled response is stored", || async {
        let (status, stored) = world.get(&path).await;
        (status == 200).then_some(stored)
    })
    .await;
    assert_eq!((&stored["status"], output_text(&stored).as_str()), (&json!("cancelled"), "so far"));
}

#[tokio::test]
async fn a_client_that_leaves_an_unstreamed_response_stops_the_model_too() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel();
    world.script([Reply::Held(receive)]);
    send.send(Ok(text("so far"))).unwrap();
    let mut pending =
        Box::pin(world.send("POST", "/v1/responses", &[], json!({"model": "m", "input": "hi"}).to_string()));
    let asked = eventually("the model is asked", || async { (!world.seen().is_empty()).then_some(()) });
    tokio::select! {
        _ = &mut pending => panic!("it cannot be done"),
        () = asked => {}
    }
    drop(pending);
    tokio::time::timeout(LONG, send.closed()).await.expect("the connection to the model is dropped");
}

#[tokio::test]
async fn a_slow_reader_holds_the_model_instead_of_filling_memory() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    world.script([Reply::Held(receive)]);
    let body = json!({"model": "m", "input": "hi", "stream": true}).to_string();
    let mut answer = world.send("POST", "/v1/responses", &[], body).await;
    let piece = "x".repeat(10_000);
    for _ in 0..1000 {
        send.send(Ok(text(&piece))).unwrap();
    }
    send.send(Ok(chunk(json!({}), Some("stop")))).unwrap();
    drop(send);
    let mut events = Events::default();
    let end = events.until(&mut answer, "response.completed").await;
    assert_eq!(output_text(&end["response"]).len(), 10_000_000);
}
