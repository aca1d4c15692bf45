//! What is stored, and chains of responses.

use serde_json::json;
use strata_platform::UpstreamKind;

use crate::support::*;

#[tokio::test]
async fn a_chain_repeats_everything_but_the_instructions() {
    let world = World::new().await;
    world.script([says(&["one"]), says(&["two"]), says(&["three"])]);
    let first = world
        .create(json!({"model": "m", "input": "1", "instructions": "count", "temperature": 0.5, "metadata": {"k": "v"}}))
        .await;
    let second = world.create(json!({"model": "m", "input": "2", "previous_response_id": first["id"]})).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    assert_eq!((&second["instructions"], &first["metadata"]["k"]), (&json!(null), &json!("v")));
    world
        .create(
            json!({"model": "m", "input": "3", "previous_response_id": second["id"], "instructions": "stop"}),
        )
        .await;
    let said = |chat: &serde_json::Value| {
        chat["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| format!("{}:{}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let chats = world.chats();
    assert_eq!(said(&chats[0]), "system:count user:1");
    assert_eq!(chats[0]["temperature"], 0.5);
    assert_eq!(said(&chats[1]), "user:1 assistant:one user:2");
    assert_eq!(said(&chats[2]), "system:stop user:1 assistant:one user:2 assistant:two user:3");
}

#[tokio::test]
async fn a_long_chain_takes_linear_room_and_is_walked_without_recursion() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::in_folder(UpstreamKind::Ungoverned, folder.path()).await;
    let mut previous = json!(null);
    for n in 0..120 {
        world.script([says(&["answer"])]);
        let response = world
            .create(json!({"model": "m", "input": format!("{n}"), "previous_response_id": previous}))
            .await;
        previous = response["id"].clone();
    }
    assert_eq!(world.chats()[119]["messages"].as_array().unwrap().len(), 239);
    let database = rusqlite::Connection::open(folder.path().join("platform.sqlite")).unwrap();
    let items: i64 = database.query_row("SELECT count(*) FROM response_items", [], |r| r.get(0)).unwrap();
    assert_eq!(items, 240, "each response holds its own two items");
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_breaks_its_chain() {
    let world = World::new().await;
    world.script([says(&["one"]), says(&["two"])]);
    let first = world.create(json!({"model": "m", "input": "1"})).await;
    let second = world.create(json!({"model": "m", "input": "2", "previous_response_id": first["id"]})).await;
    let path = format!("/v1/responses/{}", first["id"].as_str().unwrap());
    let (status, body) = world.delete(&path).await;
    assert_eq!((status.as_u16(), &body["deleted"], &body["id"]), (200, &json!(true), &first["id"]));
    for (status, _) in
        [world.delete(&path).await, world.get(&path).await, world.get(&format!("{path}/input_items")).await]
    {
        assert_eq!(status, 404);
    }
    let (status, _) = world.get(&format!("/v1/responses/{}", second["id"].as_str().unwrap())).await;
    assert_eq!(status, 200);
    let (status, body) = world
        .post("/v1/responses", json!({"model": "m", "input": "3", "previous_response_id": second["id"]}))
        .await;
    assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!("previous_response_id")));
    let (status, body) = world
        .post("/v1/responses", json!({"model": "m", "input": "3", "previous_response_id": first["id"]}))
        .await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("previous_response_not_found")));
    assert_eq!(world.seen().len(), 2, "the model is not asked");
}

#[tokio::test]
async fn store_false_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::in_folder(UpstreamKind::Ungoverned, folder.path()).await;
    world.script([says(&["one"]), says(&["two"])]);
    let whole = world.create(json!({"model": "m", "input": "1", "store": false})).await;
    let events = world.create_streamed(json!({"model": "m", "input": "1", "store": false})).await;
    assert_eq!(whole["store"], false);
    for id in [&whole["id"], &events[0]["response"]["id"]] {
        assert_eq!(world.get(&format!("/v1/responses/{}", id.as_str().unwrap())).await.0, 404);
    }
    let database = rusqlite::Connection::open(folder.path().join("platform.sqlite")).unwrap();
    let rows: i64 = database
        .query_row(
            "SELECT (SELECT count(*) FROM responses) + (SELECT count(*) FROM response_items)",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn input_items_are_paged() {
    let world = World::new().await;
    world.script([says(&["ok"])]);
    let input: Vec<_> = (0..5).map(|n| json!({"role": "user", "content": format!("{n}")})).collect();
    let response = world.create(json!({"model": "m", "input": input})).await;
    let path = format!("/v1/responses/{}/input_items", response["id"].as_str().unwrap());
    let texts = |list: &serde_json::Value| {
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["content"][0]["text"].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    let (_, all) = world.get(&path).await;
    assert_eq!((texts(&all).as_str(), &all["has_more"]), ("43210", &json!(false)));
    let (_, page) = world.get(&format!("{path}?order=asc&limit=2")).await;
    assert_eq!((texts(&page).as_str(), &page["has_more"]), ("01", &json!(true)));
    assert_eq!(page["last_id"], page["data"][1]["id"]);
    let last = page["last_id"].as_str().unwrap();
    let (_, page) = world.get(&format!("{path}?order=asc&limit=3&after={last}")).await;
    assert_eq!((texts(&page).as_str(), &page["has_more"]), ("234", &json!(false)));
    let (_, page) = world.get(&format!("{path}?order=desc&after={last}")).await;
    assert_eq!(texts(&page), "0");
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=msg_0", "after"),
        ("include=a", "include"),
        ("x=1", "x"),
    ] {
        let (status, body) = world.get(&format!("{path}?{query}")).await;
        assert_eq!((status.as_u16(), &body["error"]["param"]), (400, &json!(param)), "{query}");
    }
}

#[tokio::test]
async fn what_was_sent_survives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (id, before) = {
        let world = World::in_folder(UpstreamKind::Ungoverned, folder.path()).await;
        world.script([says(&["one"])]);
        let response = world.create(json!({"model": "m", "input": "1"})).await;
        // What is on disk at this moment, as after a kill: nothing was closed or checkpointed.
        for file in ["platform.sqlite", "platform.sqlite-wal"] {
            std::fs::create_dir_all(folder.path().join("copy")).unwrap();
            std::fs::copy(folder.path().join(file), folder.path().join("copy").join(file)).unwrap();
        }
        (response["id"].as_str().unwrap().to_owned(), response)
    };
    let world = World::in_folder(UpstreamKind::Ungoverned, &folder.path().join("copy")).await;
    assert_eq!(world.get(&format!("/v1/responses/{id}")).await.1, before);
    world.script([says(&["two"])]);
    world.create(json!({"model": "m", "input": "2", "previous_response_id": id})).await;
    assert_eq!(world.chats()[0]["messages"].as_array().unwrap().len(), 3);
}
