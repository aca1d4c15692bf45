//! Owners.

use serde_json::{Value, json};
use strata_hop::Body;
use strata_platform::{Platform, PlatformError, PlatformOptions, UpstreamKind};

use crate::support::*;

async fn as_user(world: &World, key: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let bearer = format!("Bearer {key}");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let (status, body) = world.send(method, path, &[("authorization", &bearer)], body).await.json().await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn objects_of_one_owner_do_not_exist_for_another() {
    let world = World::of(UpstreamKind::Gateway).await;
    world.script([says(&["one"])]);
    let (_, conversation) = as_user(&world, "ann", "POST", "/v1/conversations", json!({})).await;
    let conversation = conversation["id"].as_str().unwrap();
    let body = json!({"model": "m", "input": "1", "conversation": conversation, "user": "u1"});
    let (status, response) = as_user(&world, "ann", "POST", "/v1/responses", body).await;
    assert_eq!(status, 200, "{response}");
    let response = response["id"].as_str().unwrap();
    let (_, items) =
        as_user(&world, "ann", "GET", &format!("/v1/conversations/{conversation}/items"), Value::Null).await;
    let item = items["data"][0]["id"].as_str().unwrap();
    for (method, path) in [
        ("GET", format!("/v1/responses/{response}")),
        ("GET", format!("/v1/responses/{response}/input_items")),
        ("DELETE", format!("/v1/responses/{response}")),
        ("GET", format!("/v1/conversations/{conversation}")),
        ("POST", format!("/v1/conversations/{conversation}")),
        ("GET", format!("/v1/conversations/{conversation}/items")),
        ("GET", format!("/v1/conversations/{conversation}/items/{item}")),
        ("DELETE", format!("/v1/conversations/{conversation}/items/{item}")),
        ("DELETE", format!("/v1/conversations/{conversation}")),
    ] {
        let (status, body) = as_user(&world, "bob", method, &path, Value::Null).await;
        assert_eq!(status, 404, "{method} {path}: {body}");
    }
    let add = json!({"items": [{"role": "user", "content": "x"}]});
    let (status, _) =
        as_user(&world, "bob", "POST", &format!("/v1/conversations/{conversation}/items"), add).await;
    assert_eq!(status, 404);
    for continued in [json!({"previous_response_id": response}), json!({"conversation": conversation})] {
        let mut body = json!({"model": "m", "input": "2"});
        body.as_object_mut().unwrap().extend(continued.as_object().unwrap().clone());
        assert_eq!(as_user(&world, "bob", "POST", "/v1/responses", body).await.0, 404);
    }
    assert_eq!(world.seen().len(), 1, "the model was never asked for the other owner");
    let (status, _) = as_user(&world, "ann", "GET", &format!("/v1/responses/{response}"), Value::Null).await;
    assert_eq!(status, 200);
    let chat = &world.seen()[0];
    assert_eq!(chat.headers["authorization"], "Bearer ann", "the gateway gets the caller's key");
    assert_eq!(chat.headers["x-strata-hop-token"], "run-token");
    assert_eq!(chat.json()["user"], "u1");
}

#[tokio::test]
async fn a_gateways_refusal_is_passed_on_and_its_answer_is_kept_for_a_moment() {
    let world = World::of(UpstreamKind::Gateway).await;
    let (status, body) = as_user(&world, "bad", "GET", "/v1/responses/resp_x", Value::Null).await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(world.get("/v1/responses/resp_x").await.0, 401, "no key at all");
    let asked = world.asked_who();
    for _ in 0..20 {
        as_user(&world, "ann", "GET", "/v1/responses/resp_x", Value::Null).await;
    }
    assert!((asked + 1..asked + 20).contains(&world.asked_who()));
}

#[tokio::test]
async fn without_a_gateway_keys_end_here() {
    let world = World::new().await;
    world.script([says(&["one"])]);
    let body = json!({"model": "m", "input": "1", "user": "u1", "safety_identifier": "s"});
    let (status, response) = as_user(&world, "ann", "POST", "/v1/responses", body).await;
    assert_eq!((status, &response["user"]), (200, &json!("u1")));
    let chat = &world.seen()[0];
    assert!(!chat.headers.contains_key("authorization"));
    assert!(chat.json().get("user").is_none() && chat.json().get("safety_identifier").is_none());
    let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
    assert_eq!(as_user(&world, "bob", "GET", &path, Value::Null).await.0, 200, "all belongs to `local`");
    assert_eq!(world.asked_who(), 0);
    assert_eq!(world.get("/v1/keys").await.0, 404);
}

#[tokio::test]
async fn what_was_made_without_a_gateway_goes_to_the_tenant_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::in_folder(UpstreamKind::Ungoverned, folder.path()).await;
    world.script([says(&["one"]), says(&["two"])]);
    let (_, conversation) = world.post("/v1/conversations", json!({"metadata": {"a": "b"}})).await;
    let conversation = conversation["id"].as_str().unwrap().to_owned();
    let first = world.create(json!({"model": "m", "input": "1", "conversation": conversation})).await;
    let second = world.create(json!({"model": "m", "input": "2"})).await;
    let ids = [&first, &second].map(|r| r["id"].as_str().unwrap().to_owned());
    drop(world);

    let world = World::in_folder(UpstreamKind::Gateway, folder.path()).await;
    let mut paths: Vec<String> = ids.iter().map(|id| format!("/v1/responses/{id}")).collect();
    paths.extend(ids.iter().map(|id| format!("/v1/responses/{id}/input_items")));
    paths.extend(["", "/items"].map(|end| format!("/v1/conversations/{conversation}{end}")));
    let sees = async |world: &World, key: &str| {
        let mut seen = Vec::new();
        for path in &paths {
            seen.push(as_user(world, key, "GET", path, Value::Null).await.0);
        }
        seen
    };
    let (all, none) = (vec![200; paths.len()], vec![404; paths.len()]);
    assert_eq!(sees(&world, "bob").await, none, "another tenant came first");
    // Many first requests at once.
    let asked = (0..8).map(|n| {
        let (world, path) = (&world, &paths[n % paths.len()]);
        async move { as_user(world, "heir", "GET", path, Value::Null).await.0 }
    });
    assert_eq!(futures::future::join_all(asked).await, [200; 8]);
    assert_eq!(sees(&world, "heir").await, all);
    assert_eq!(sees(&world, "bob").await, none);
    assert_eq!(sees(&world, "heir-of-nothing").await, none, "it was given away once");
    world.script([says(&["three"]), says(&["four"])]);
    for go_on in [json!({"previous_response_id": ids[1]}), json!({"conversation": conversation})] {
        let mut body = json!({"model": "m", "input": "3"});
        body.as_object_mut().unwrap().extend(go_on.as_object().unwrap().clone());
        assert_eq!(as_user(&world, "heir", "POST", "/v1/responses", body).await.0, 200);
    }
    assert_eq!(world.chats()[0]["messages"].as_array().unwrap().len(), 3, "the chain goes on");
    drop(world);

    let world = World::in_folder(UpstreamKind::Gateway, folder.path()).await;
    assert_eq!(sees(&world, "heir").await, all, "after a restart");
    assert_eq!(sees(&world, "bob").await, none);
}

#[tokio::test]
async fn an_open_address_needs_a_gateway_or_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = PlatformOptions::new("http://127.0.0.1:1", UpstreamKind::Ungoverned, folder.path());
    options.listen = "0.0.0.0:0".to_owned();
    let refused = Platform::bind(options.clone()).await.err().unwrap();
    assert!(matches!(refused, PlatformError::Unprotected { .. }), "{refused}");
    options.insecure_no_auth = true;
    assert!(Platform::bind(options.clone()).await.is_ok());
    options.insecure_no_auth = false;
    options.upstream_kind = UpstreamKind::Gateway;
    assert!(Platform::bind(options).await.is_ok());
}
