//! Conversations and their items.

use serde_json::{Value, json};

use crate::support::*;

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

#[tokio::test]
async fn a_conversation_is_made_read_changed_and_deleted() {
    let world = World::new().await;
    let (status, made) = world
        .post(
            "/v1/conversations",
            json!({"metadata": {"topic": "x"}, "items": [{"role": "user", "content": "hi"}]}),
        )
        .await;
    assert_eq!(
        (status.as_u16(), &made["object"], &made["metadata"]["topic"]),
        (200, &json!("conversation"), &json!("x"))
    );
    let path = format!("/v1/conversations/{}", id(&made));
    assert_eq!(world.get(&path).await.1, made);
    let (_, changed) = world.post(&path, json!({"metadata": {"topic": "y"}})).await;
    assert_eq!((&changed["metadata"], id(&changed)), (&json!({"topic": "y"}), id(&made)));
    let (_, gone) = world.delete(&path).await;
    assert_eq!((&gone["object"], &gone["deleted"]), (&json!("conversation.deleted"), &json!(true)));
    assert_eq!(world.get(&path).await.0, 404);
    assert_eq!(world.get(&format!("{path}/items")).await.0, 404);
    assert_eq!(world.post("/v1/conversations", json!({})).await.1["metadata"], json!({}));
    let empty = world.send("POST", "/v1/conversations", &[], "").await.json().await;
    assert_eq!(empty.0, 200, "the SDK may send no body at all");
}

#[tokio::test]
async fn items_are_added_listed_read_and_deleted() {
    let world = World::new().await;
    let (_, made) = world.post("/v1/conversations", json!({})).await;
    let path = format!("/v1/conversations/{}/items", id(&made));
    let items = json!([
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]);
    let (status, added) = world.post(&path, json!({ "items": items })).await;
    assert_eq!((status.as_u16(), added["data"].as_array().unwrap().len()), (200, 3));
    let (_, list) = world.get(&format!("{path}?order=asc")).await;
    assert_eq!(list["data"], added["data"]);
    let second = id(&list["data"][1]).to_owned();
    assert_eq!(world.get(&format!("{path}/{second}")).await.1, list["data"][1]);
    let (_, after) = world.delete(&format!("{path}/{second}")).await;
    assert_eq!(after, made, "the conversation comes back");
    assert_eq!(world.get(&format!("{path}/{second}")).await.0, 404);
    assert_eq!(world.delete(&format!("{path}/{second}")).await.0, 404);
    assert_eq!(world.get(&path).await.1["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn responses_read_and_extend_their_conversation() {
    let world = World::new().await;
    let (_, made) =
        world.post("/v1/conversations", json!({"items": [{"role": "system", "content": "be kind"}]})).await;
    world.script([says(&["one"]), says(&["two"]), says(&["aside"])]);
    let first = world.create(json!({"model": "m", "input": "1", "conversation": id(&made)})).await;
    assert_eq!(first["conversation"], json!({"id": id(&made)}));
    world.create(json!({"model": "m", "input": "2", "conversation": {"id": id(&made)}})).await;
    // A chain from the first response sees the conversation as it stood then.
    world.create(json!({"model": "m", "input": "3", "previous_response_id": id(&first)})).await;
    let said = |chat: &Value| {
        chat["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["content"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(",")
    };
    let chats = world.chats();
    assert_eq!(said(&chats[0]), "be kind,1");
    assert_eq!(said(&chats[1]), "be kind,1,one,2");
    assert_eq!(said(&chats[2]), "be kind,1,one,3");
    let (_, items) = world.get(&format!("/v1/conversations/{}/items?limit=100&order=asc", id(&made))).await;
    assert_eq!(items["data"].as_array().unwrap().len(), 5);
    let (status, body) =
        world.post("/v1/responses", json!({"model": "m", "input": "1", "conversation": "conv_none"})).await;
    assert_eq!((status.as_u16(), &body["error"]["param"]), (404, &json!("conversation")));
}
