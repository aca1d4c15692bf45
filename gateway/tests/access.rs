//! Who is let in, and to what.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{TENANT, World, eventually, question};
use http::{Method, StatusCode};
use serde_json::json;
use strata_gateway::keys::KeyHash;
use strata_gateway::{Role, Source};
use strata_hop::Body;

#[tokio::test]
async fn no_key_and_bad_keys_are_401() {
    let world = World::new(TENANT).await;
    let good = world.key("acme", Role::Member).await;
    let forged = format!("{}x", &good[..good.len() - 1]);
    for key in ["", "nonsense", "sk-strata-aaaa_bbbb", forged.as_str()] {
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
            let answer = world.post(path, key, &question(1)).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            assert_eq!(answer.code(), "invalid_api_key");
            assert!(!String::from_utf8_lossy(&answer.body).contains("bbbb"));
        }
    }
    // Two keys: whichever one believes, another proxy may believe the other.
    for keys in [[&good, &forged], [&forged, &good], [&good, &good]] {
        let mut request = http::Request::post(format!("{}/v1/chat/completions", world.url));
        for key in keys {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Body::from(question(1).to_string())).unwrap();
        assert_eq!(world.send_request(request).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert!(world.mock.seen().is_empty(), "nothing reached the upstream");
    assert_eq!(world.chat(&good, &question(1)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_hidden_model_and_one_that_does_not_exist_are_the_same_404() {
    let world = World::new(
        r#"
apiVersion: strata.dev/v1alpha1
kind: Tenant
metadata: {name: free}
spec: {tier: free, models: ["m", "big"]}
---
apiVersion: strata.dev/v1alpha1
kind: ModelDeployment
metadata: {name: big}
spec: {model: {name: big, uri: "file:///models/big.gguf"}, access: {tiers: [gold]}}
"#,
    )
    .await;
    let key = world.key("free", Role::Member).await;
    let ask = async |model: &str| world.chat(&key, &json!({"model": model, "messages": []})).await;
    assert_eq!(ask("m").await.status, StatusCode::OK);
    let mut bodies = Vec::new();
    for model in ["big", "org/deep", "nowhere"] {
        let answer = ask(model).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "model_not_found"));
        bodies.push(String::from_utf8(answer.body.to_vec()).unwrap().replace(model, "X"));
        let shown = world.get(&format!("/v1/models/{model}"), &key).await;
        assert_eq!(String::from_utf8(shown.body.to_vec()).unwrap().replace(model, "X"), bodies[0]);
    }
    assert!(bodies.iter().all(|b| *b == bodies[0]), "{bodies:?}");
    let models = world.get("/v1/models", &key).await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    assert_eq!(models["data"][0]["extra"]["kept"], true, "what is not known passes");
    assert_eq!(world.get("/v1/models/m", &key).await.json()["id"], "m");
}

#[tokio::test]
async fn a_model_whose_name_has_a_slash_is_found() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    assert_eq!(world.get("/v1/models/org/deep", &key).await.json()["id"], "org/deep");
}

#[tokio::test]
async fn what_is_not_listed_does_not_exist() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Admin).await;
    for path in [
        "/sleep",
        "/pause",
        "/reset_prefix_cache",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/internal/v1/abort/x",
        "/v1/chat/completions/",
    ] {
        let answer = world.post(path, &key, &json!({})).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.json()["error"]["message"].is_string());
    }
    assert_eq!(world.get("/v1/chat/completions", &key).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(world.mock.seen().is_empty());
}

#[tokio::test]
async fn litellm_25553_a_revoked_key_is_refused_everywhere_within_a_second() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let id = world.keys.list(None).unwrap()[0].id.clone();
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    // By another connection to the ledger, as the command line has it.
    let started = Instant::now();
    assert!(strata_gateway::KeyStore::open(&world.state).unwrap().revoke(&id).unwrap());
    eventually("the key is refused", async || {
        world.chat(&key, &question(1)).await.status == StatusCode::UNAUTHORIZED
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_key_made_by_another_process_works_at_once() {
    let world = World::new(TENANT).await;
    let made = strata_gateway::KeyStore::open(&world.state).unwrap();
    for n in 0..20 {
        let (key, _) = made.create("acme", &format!("key-{n}"), Role::Member, None).unwrap();
        assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK, "key {n}");
    }
}

#[tokio::test]
async fn a_key_expires_on_time() {
    let world = World::new(TENANT).await;
    let soon = world.clock.now_ms() / 1000 + 60;
    let key = world.keys.create("acme", "short", Role::Member, Some(soon)).unwrap().0;
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    world.clock.advance(60_000);
    let answer = world.chat(&key, &question(1)).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "invalid_api_key"));
}

#[tokio::test]
async fn admins_manage_the_keys_of_their_own_tenant_only() {
    let other = TENANT.replace("acme", "zeta");
    let world = World::new(&format!("{TENANT}---{other}")).await;
    let (admin, stranger) = (world.key("acme", Role::Admin).await, world.key("zeta", Role::Admin).await);
    let made = world.post("/v1/keys", &admin, &json!({"name": "ci"})).await.json();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!(made["role"], "member");
    assert_eq!(world.chat(key, &question(1)).await.status, StatusCode::OK, "it works at once");

    for (method, path) in
        [(Method::GET, "/v1/keys"), (Method::POST, "/v1/keys"), (Method::DELETE, "/v1/keys/x")]
    {
        let refused = world.ask(method, path, key, "{\"name\":\"x\"}").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
    }
    let path = format!("/v1/keys/{id}");
    assert_eq!(
        world.ask(Method::DELETE, &path, &stranger, Body::empty()).await.status,
        StatusCode::NOT_FOUND
    );
    let listed = world.get("/v1/keys", &admin).await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(key.split_once('_').unwrap().1));
    assert_eq!(listed.json()["data"].as_array().unwrap().len(), 2);

    let rotated = world.post(&format!("{path}/rotate"), &admin, &json!({"overlap_seconds": 60})).await.json();
    let new = rotated["key"].as_str().unwrap();
    for key in [key, new] {
        assert_eq!(world.chat(key, &question(1)).await.status, StatusCode::OK);
    }
    world.clock.advance(60_000);
    assert_eq!(world.chat(key, &question(1)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.ask(Method::DELETE, &path, &admin, Body::empty()).await.json()["deleted"], true);
    assert_eq!(world.chat(new, &question(1)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.ask(Method::DELETE, &path, &admin, Body::empty()).await.status, StatusCode::NOT_FOUND);

    for (body, param) in [
        (json!({"name": ""}), "name"),
        (json!({"name": "x", "role": "root"}), "role"),
        (json!({"name": "x", "expires_at": 5}), "expires_at"),
    ] {
        let refused = world.post("/v1/keys", &admin, &body).await;
        assert_eq!(
            (refused.status, refused.json()["error"]["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some(param))
        );
    }
}

#[tokio::test]
async fn an_owner_outlives_its_keys_and_names_nobody() {
    let other = TENANT.replace("acme", "zeta");
    let mut world = World::new(&format!("{TENANT}---{other}")).await;
    let (one, two) = (world.key("acme", Role::Admin).await, world.key("acme", Role::Member).await);
    let foreign = world.key("zeta", Role::Member).await;
    let first = world.get("/internal/v1/whoami", &one).await.json();
    let second = world.get("/internal/v1/whoami", &two).await.json();
    assert_eq!(first["owner"], second["owner"]);
    assert_eq!((&first["roles"], &second["roles"]), (&json!(["admin"]), &json!(["member"])));
    assert_ne!(world.get("/internal/v1/whoami", &foreign).await.json()["owner"], first["owner"]);
    assert!(!first["owner"].as_str().unwrap().contains("acme"));
    world.restart().await;
    assert_eq!(world.get("/internal/v1/whoami", &one).await.json()["owner"], first["owner"]);
    assert_eq!(world.get("/internal/v1/whoami", "").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn one_tenant_adopts_what_was_made_without_a_gateway() {
    let other = TENANT.replace("acme", "zeta");
    let mut world = World::new(&format!("{TENANT}---{other}")).await;
    let (acme, zeta) = (world.key("acme", Role::Member).await, world.key("zeta", Role::Admin).await);
    let whoami = async |world: &World, key: &str| world.get("/internal/v1/whoami", key).await.json();
    assert!(whoami(&world, &acme).await.get("adopts").is_none());
    let owner = whoami(&world, &acme).await["owner"].clone();
    world.adopt_local = Some("acme".to_owned());
    world.restart().await;
    assert_eq!(whoami(&world, &acme).await["adopts"], json!(["local"]));
    assert_eq!(whoami(&world, &acme).await["owner"], owner);
    assert!(whoami(&world, &zeta).await.get("adopts").is_none());
}

#[tokio::test]
async fn edits_of_the_folder_are_taken_over_and_broken_ones_are_not() {
    let hash = KeyHash::of("team1", "s3cret").to_text();
    let with_key =
        TENANT.replace("tier: gold,", "tier: gold, apiKeys: [{name: git, secretRef: {name: team1}}],");
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: team1}}\nstringData: {{id: team1, hash: \"{hash}\"}}\n"
    );
    let world = World::new(&format!("{with_key}{secret}")).await;
    let (key, runtime) = ("sk-strata-team1_s3cret", world.key("acme", Role::Member).await);
    let status = async |key: &str| world.chat(key, &question(1)).await.status;
    assert_eq!(status(key).await, StatusCode::OK);

    world.edit("kind: [broken");
    let metrics = async || String::from_utf8(world.get("/metrics", "").await.body.to_vec()).unwrap();
    eventually("the broken edit is noticed", async || !metrics().await.contains("config_rejected_total 0"))
        .await;
    assert_eq!(status(key).await, StatusCode::OK, "the last good state holds");

    world.edit(TENANT);
    eventually("the key is gone", async || status(key).await == StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(&runtime).await, StatusCode::OK);

    world.edit(&TENANT.replace("acme", "zeta"));
    eventually("a deleted tenant's key is refused", async || {
        status(&runtime).await == StatusCode::UNAUTHORIZED
    })
    .await;
}

#[tokio::test]
async fn a_gateway_does_not_start_on_a_broken_policy() {
    let world = World::new(TENANT).await;
    let mut options = world.options();
    let folder = tempfile::tempdir().unwrap();
    options.source = Source::Folder { upstream: world.upstream(), folder: folder.path().to_owned() };
    options.state = folder.path().join("l.db");
    let start = async || strata_gateway::Gateway::start(&options, strata_gateway::Clock::System).await;
    let empty = start().await.unwrap_err().to_string();
    assert!(empty.contains("add a ModelDeployment"), "{empty}");
    std::fs::write(
        folder.path().join("a.yaml"),
        format!(
            "{TENANT}{}",
            common::policy("p", &json!({"limits": [{"resource": "Tokens", "limit": 5, "window": "soon"}]}))
        ),
    )
    .unwrap();
    let broken = start().await.unwrap_err().to_string();
    assert!(broken.contains("a.yaml") && broken.contains("window"), "{broken}");
}
