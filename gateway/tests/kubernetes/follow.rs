//! What the gateway does as objects come, change and go.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use strata_gateway::{KeyStore, Ledger};
use strata_hop::Bound;

use crate::common::api_server::ApiServer;
use crate::common::{Mock, answer, eventually, eventually_every, serve_mock};
use crate::world::{KEY, SECOND, World, base64, governed, keyed, model, object, secret, slice, tenant};
#[tokio::test]
async fn requests_go_to_the_schedulers_of_their_models_namespace() {
    let api = governed().await;
    let (one, two) = (Mock::new(), Mock::new());
    let (one_url, _one) = serve_mock(&one).await;
    let (two_url, _two) = serve_mock(&two).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(model("team-b", "big", "big"));
    api.apply(slice("team-a", &[(&one_url, true)]));
    api.apply(slice("team-b", &[(&two_url, true)]));
    let world = World::new(api, &[]).await;
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    assert_eq!((one.seen().len(), two.seen().len()), (1, 0));
    assert_eq!(world.chat("big").await.status, StatusCode::OK);
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1));
    assert_eq!(one.last().headers["x-strata-hop-token"], "hop-secret");
    // Listed by the scheduler, declared by nobody.
    assert_eq!(world.chat("org/deep").await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.models().await, ["big", "m"]);
    let shown = world.get("/v1/models/big", KEY).await.json();
    assert_eq!(shown["max_model_len"], 8192, "the scheduler's own entry: {shown}");
    assert_eq!(world.get("/v1/models/org/deep", KEY).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_load_is_shared_and_one_that_is_away_costs_nothing() {
    let api = governed().await;
    let mocks = [Mock::new(), Mock::new()];
    let (one, _one) = serve_mock(&mocks[0]).await;
    let (two, two_stops) = serve_mock(&mocks[1]).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&one, true)]));
    api.apply(slice("team-a", &[(&two, true)]));
    let gone = Bound::bind("127.0.0.1:0").await.unwrap().url();
    api.apply(slice("team-a", &[(&gone, true)]));
    let world = World::new(api, &["team-a"]).await;
    let spread = || mocks.each_ref().map(|m| m.seen().len());
    for _ in 0..20 {
        assert_eq!(world.chat("m").await.status, StatusCode::OK);
    }
    assert_eq!(spread().iter().sum::<usize>(), 20);
    assert!(spread().iter().all(|n| *n >= 5), "{:?}", spread());
    // One goes away between two requests: whoever asks does not notice.
    drop(two_stops);
    for _ in 0..10 {
        assert_eq!(world.chat("m").await.status, StatusCode::OK);
    }
    let rows: Vec<_> =
        Ledger::open(&world.folder.path().join("ledger.db")).unwrap().rows_after(0, 0).unwrap();
    assert_eq!(rows.len(), 30, "one request is one row, however many endpoints it took");
}

#[tokio::test]
async fn a_model_without_a_scheduler_is_503_and_says_so() {
    let api = governed().await;
    api.apply(model("team-a", "m", "m"));
    let world = World::new(api, &[]).await;
    let refused = world.chat("m").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        refused.json()["error"]["message"].as_str().unwrap().contains("no scheduler"),
        "{:?}",
        refused.body
    );
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(world.models().await, ["m"], "listed all the same");
    let (url, _stop) = serve_mock(&Mock::new()).await;
    world.api.apply(slice("team-a", &[(&url, false)]));
    world.api.apply(slice("team-a", &[(&url, true)]));
    eventually("the scheduler is known", async || world.chat("m").await.status == StatusCode::OK).await;
    world.api.apply(slice("team-a", &[(&url, false)]));
    eventually("the scheduler is not ready", async || {
        world.chat("m").await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
}

#[tokio::test]
async fn of_two_models_with_one_name_the_older_serves() {
    let api = governed().await;
    let (one, two) = (Mock::new(), Mock::new());
    let (one_url, _one) = serve_mock(&one).await;
    let (two_url, _two) = serve_mock(&two).await;
    let at = |mut object: Value, time: &str| {
        object["metadata"]["creationTimestamp"] = json!(time);
        object
    };
    api.apply(at(model("team-a", "m", "m"), "2026-11-02T00:00:00Z"));
    api.apply(at(model("team-b", "m", "m"), "2026-11-01T00:00:00Z"));
    api.apply(slice("team-a", &[(&one_url, true)]));
    api.apply(slice("team-b", &[(&two_url, true)]));
    let world = World::new(api, &[]).await;
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    assert_eq!((one.seen().len(), two.seen().len()), (0, 1));
    assert_eq!(world.models().await, ["m"]);
    world.api.delete("ModelDeployment", "team-b", "m");
    eventually("the younger takes over", async || {
        world.chat("m").await;
        !one.seen().is_empty()
    })
    .await;
    // Equally old: by namespace and name.
    world.api.apply(at(model("team-0", "m", "m"), "2026-11-02T00:00:00Z"));
    eventually("the first by name serves, and has no scheduler", async || {
        world.chat("m").await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
}

#[tokio::test]
async fn litellm_25553_a_key_ends_within_a_second_of_its_secret_or_tenant() {
    let api = governed().await;
    let (url, _stop) = serve_mock(&Mock::new()).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &[]).await;
    let store = KeyStore::open(&world.folder.path().join("ledger.db")).unwrap();
    let runtime = store.create("acme", "ci", strata_gateway::Role::Member, None).unwrap().0;
    let api = &world.api;
    let soon = async |what: &str, change: &dyn Fn(), key: &str, known: bool| {
        let began = Instant::now();
        change();
        let mut asked = Instant::now();
        eventually_every(Duration::from_millis(20), what, async || {
            asked = Instant::now();
            world.knows(key).await == known
        })
        .await;
        // By when it was asked: whoever comes with bad keys waits longer and longer for the refusal.
        assert!(known || asked - began < SECOND, "{what}: {:?}", asked - began);
    };
    let good = secret("strata", "team1", "team1", "s3cret");
    assert!(world.knows(KEY).await);
    soon("deleted", &|| api.delete("Secret", "strata", "team1"), KEY, false).await;
    soon("made again", &|| api.apply(good.clone()), KEY, true).await;
    soon("rotated", &|| api.apply(secret("strata", "team1", "team1", "other")), KEY, false).await;
    soon("rotated back", &|| api.apply(good.clone()), KEY, true).await;
    let mut spoilt = good.clone();
    spoilt["data"]["hash"] = base64("revoked");
    soon("overwritten", &|| api.apply(spoilt.clone()), KEY, false).await;
    soon("restored", &|| api.apply(good.clone()), KEY, true).await;
    let mut unlabelled = good.clone();
    unlabelled["metadata"]["labels"] = json!({});
    // A real API server tells a watch with a selector that the object is gone.
    soon(
        "unlabelled",
        &|| {
            api.delete("Secret", "strata", "team1");
            api.apply(unlabelled.clone());
        },
        KEY,
        false,
    )
    .await;
    soon("labelled", &|| api.apply(good.clone()), KEY, true).await;
    soon("taken from the tenant", &|| api.apply(tenant(json!({"models": ["*"]}))), KEY, false).await;
    soon("given to the tenant", &|| api.apply(tenant(keyed())), KEY, true).await;
    assert!(world.knows(&runtime).await);
    soon("the tenant is deleted", &|| api.delete("Tenant", "strata", "acme"), &runtime, false).await;
    assert!(!world.knows(KEY).await);
    soon("the tenant is made again", &|| api.apply(tenant(keyed())), &runtime, true).await;
    // Fewer models.
    let began = Instant::now();
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    let mut fewer = keyed();
    fewer["models"] = json!([]);
    api.apply(tenant(fewer));
    eventually("the model is out of reach", async || world.chat("m").await.status == StatusCode::NOT_FOUND)
        .await;
    assert!(began.elapsed() < 2 * SECOND);
}

#[tokio::test]
async fn a_malformed_object_stops_only_itself() {
    let api = governed().await;
    let (url, _stop) = serve_mock(&Mock::new()).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(object("ModelDeployment", "team-a", "worse", json!({"model": "a string"})));
    api.apply(object("Tenant", "strata", "odd", json!({"models": 7})));
    api.apply(object(
        "QuotaPolicy",
        "strata",
        "odd",
        json!({"limits": [{"resource": "Tokens", "limit": 5, "window": "soon"}]}),
    ));
    api.apply(object(
        "QuotaPolicy",
        "strata",
        "few",
        json!({"limits": [{"resource": "Requests", "limit": 3, "window": "1h"}]}),
    ));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &[]).await;
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    // Its last good version holds.
    world.api.apply(object(
        "QuotaPolicy",
        "strata",
        "few",
        json!({"limits": [{"resource": "Requests", "limit": -3, "window": "1h"}]}),
    ));
    world.api.apply(tenant(json!({"models": {"not": "a list"}})));
    world.api.apply(object("ModelDeployment", "team-a", "m", json!({"model": []})));
    // What comes after them in each watch is taken over.
    world.api.apply(model("team-a", "next", "big"));
    eventually("the next model is known", async || world.models().await == ["big", "m"]).await;
    for _ in 0..2 {
        assert_eq!(world.chat("m").await.status, StatusCode::OK);
    }
    assert_eq!(world.chat("m").await.code(), "rate_limit_exceeded");
}

#[tokio::test]
async fn the_last_state_holds_while_the_server_is_away_and_is_caught_up_with() {
    let api = governed().await;
    let (url, _stop) = serve_mock(&Mock::new()).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &[]).await;
    let failures = async || {
        let text = String::from_utf8(world.get("/metrics", "").await.body.to_vec()).unwrap();
        let line = text.lines().find(|l| l.starts_with("strata_gateway_watch_failures_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let with_tier = |tier: &str| {
        let mut spec = keyed();
        spec["tier"] = json!(tier);
        tenant(spec)
    };
    for (n, (what, fault, heal)) in [
        (
            "500",
            &(|a: &ApiServer| {
                a.refuse(Some(500));
                a.drop_watches();
            }) as &dyn Fn(&ApiServer),
            &(|a: &ApiServer| a.refuse(None)) as &dyn Fn(&ApiServer),
        ),
        (
            "429",
            &|a: &ApiServer| {
                a.refuse(Some(429));
                a.drop_watches();
            },
            &|a: &ApiServer| a.refuse(None),
        ),
        (
            "403",
            &|a: &ApiServer| {
                a.refuse(Some(403));
                a.drop_watches();
            },
            &|a: &ApiServer| a.refuse(None),
        ),
        (
            "410",
            &|a: &ApiServer| {
                a.drop_watches();
                a.compact();
            },
            &|_: &ApiServer| {},
        ),
        ("dropped", &ApiServer::drop_watches, &|_: &ApiServer| {}),
        (
            "ended at once",
            &|a: &ApiServer| {
                a.end_watches(true);
                a.drop_watches();
            },
            &|a: &ApiServer| a.end_watches(false),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let before = failures().await;
        fault(&world.api);
        if ["500", "403"].contains(&what) {
            eventually(what, async || failures().await > before).await;
        }
        assert_eq!(world.chat("m").await.status, StatusCode::OK, "{what}");
        assert_eq!(world.get("/ready", "").await.status, StatusCode::OK, "{what}");
        // Missed, and caught up with.
        let name = format!("key{n}");
        let mut spec = keyed();
        spec["apiKeys"] = json!([{"name": "git", "secretRef": {"name": "team1"}}, {"name": "new", "secretRef": {"name": name}}]);
        world.api.apply(secret("strata", &name, &name, "x"));
        world.api.apply(tenant(spec));
        heal(&world.api);
        let key = format!("sk-strata-{name}_x");
        eventually(what, async || world.knows(&key).await).await;
        world.api.apply(with_tier("gold"));
        eventually(what, async || !world.knows(&key).await).await;
    }
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_server_may_restart() {
    let api = governed().await;
    let (url, _stop) = serve_mock(&Mock::new()).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &[]).await;
    world.api.go_down();
    world.api.delete("Secret", "strata", "team1");
    assert_eq!(world.chat("m").await.status, StatusCode::OK, "the last state stays in force");
    assert_eq!(world.get("/health", "").await.status, StatusCode::OK);
    assert_eq!(world.get("/ready", "").await.status, StatusCode::OK);
    world.api.compact();
    world.api.come_back().await;
    eventually("what happened meanwhile takes effect", async || !world.knows(KEY).await).await;
}

#[tokio::test]
async fn a_gateway_is_ready_when_everything_was_listed_once() {
    let api = governed().await;
    api.hang(true);
    let world = World::starting(api, &["team-a"]).await;
    let not_yet = world.get("/ready", "").await;
    assert_eq!(not_yet.status, StatusCode::SERVICE_UNAVAILABLE);
    let text = String::from_utf8(not_yet.body.to_vec()).unwrap();
    for what in
        ["tenants in strata", "secrets in strata", "modeldeployments in team-a", "endpointslices in team-a"]
    {
        assert!(text.contains(what), "{text}");
    }
    assert_eq!(world.get("/health", "").await.status, StatusCode::OK, "liveness asks nobody");
    // No 401: a good key is not known yet, and a client must try again.
    let early = world.chat("m").await;
    assert_eq!(early.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!early.header("retry-after").is_empty());
    // A list that is never answered is given up, and asked for again.
    eventually("it says so", async || {
        let body = world.get("/ready", "").await.body;
        String::from_utf8_lossy(&body).contains("no list within 1s")
    })
    .await;
    world.api.hang(false);
    eventually("it is ready", async || world.get("/ready", "").await.status == StatusCode::OK).await;
    drop(world);

    let api = governed().await;
    api.refuse(Some(403));
    let world = World::starting(api, &[]).await;
    eventually("it says what it may not read", async || {
        let body = world.get("/ready", "").await.body;
        String::from_utf8_lossy(&body).contains("may not read tenants in strata")
    })
    .await;
    world.api.refuse(None);
    eventually("it is ready", async || world.get("/ready", "").await.status == StatusCode::OK).await;
    assert!(world.knows(KEY).await);
}

#[tokio::test]
async fn only_what_is_needed_is_read_and_nothing_is_written() {
    let api = governed().await;
    // In other namespaces: not the gateway's business.
    api.apply(object("Tenant", "team-a", "thief", keyed()));
    api.apply(secret("team-a", "team1", "thief", "x"));
    api.apply(object("QuotaPolicy", "team-a", "none", json!({"concurrency": {"requests": 1}, "limits": [{"resource": "Requests", "limit": 0, "window": "1h"}]})));
    api.apply(model("team-c", "m", "m"));
    let (url, _stop) = serve_mock(&Mock::new()).await;
    api.apply(model("team-a", "big", "big"));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &["team-a", "team-b"]).await;
    assert_eq!(world.models().await, ["big"]);
    assert_eq!(
        world.chat("big").await.status,
        StatusCode::OK,
        "the policy of another namespace holds for nobody"
    );
    assert!(!world.knows("sk-strata-thief_x").await);
    world.api.drop_watches();
    world.api.compact();
    world.api.apply(model("team-b", "m", "m"));
    eventually("it listed again", async || world.models().await == ["big", "m"]).await;
    let mut kinds = std::collections::BTreeSet::new();
    for request in world.api.requests() {
        let (method, uri) = request.split_once(' ').unwrap();
        let (path, query) = uri.split_once('?').unwrap();
        assert_eq!(method, "GET", "{request}");
        kinds.insert(path.to_owned());
        if path.ends_with("/secrets") {
            assert!(query.contains("labelSelector=strata.dev%2Fapi-key%3Dtrue"), "{request}");
        }
        if path.ends_with("/endpointslices") {
            assert!(
                query.contains("labelSelector=kubernetes.io%2Fservice-name%3Dstrata-scheduler"),
                "{request}"
            );
        }
    }
    insta::assert_snapshot!(kinds.into_iter().collect::<Vec<_>>().join("\n"), @r"
    /api/v1/namespaces/strata/secrets
    /apis/discovery.k8s.io/v1/namespaces/team-a/endpointslices
    /apis/discovery.k8s.io/v1/namespaces/team-b/endpointslices
    /apis/strata.dev/v1alpha1/namespaces/strata/quotapolicies
    /apis/strata.dev/v1alpha1/namespaces/strata/tenants
    /apis/strata.dev/v1alpha1/namespaces/team-a/modeldeployments
    /apis/strata.dev/v1alpha1/namespaces/team-b/modeldeployments
    ");
}

#[tokio::test]
async fn a_changed_limit_counts_from_its_change() {
    let api = governed().await;
    let mock = Mock::new();
    mock.script(|_| answer(10, 5));
    let (url, _stop) = serve_mock(&mock).await;
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&url, true)]));
    let world = World::new(api, &[]).await;
    for _ in 0..3 {
        assert_eq!(world.chat("m").await.status, StatusCode::OK);
    }
    let limit = |n: u64| {
        object(
            "QuotaPolicy",
            "strata",
            "p",
            json!({"limits": [{"resource": "Requests", "limit": n, "window": "1h"}]}),
        )
    };
    world.api.apply(limit(3));
    eventually("the limit holds", async || world.chat("m").await.status == StatusCode::TOO_MANY_REQUESTS)
        .await;
    world.api.apply(limit(1000));
    eventually("the limit is lifted", async || world.chat("m").await.status == StatusCode::OK).await;
    world.api.apply(limit(3));
    eventually("the limit holds", async || world.chat("m").await.status == StatusCode::TOO_MANY_REQUESTS)
        .await;
    world.api.delete("QuotaPolicy", "strata", "p");
    eventually("the limit is gone", async || world.chat("m").await.status == StatusCode::OK).await;
    world.gateway.stop().await;
}
