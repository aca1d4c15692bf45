use bytes::Bytes;
use futures::StreamExt;
use http::HeaderValue;
use proptest::prelude::*;
use serde_json::{Value, json};
use strata_hop::HopToken;
use strata_scheduler::SchedulerOptions;
use strata_wire::hops::Hop;
use strata_wire::toplevel::TopLevel;

use crate::support::{Engine, Rig, quick};

fn with_headers(
    mut request: http::Request<axum::body::Body>,
    headers: &[(&str, &str)],
) -> http::Request<axum::body::Body> {
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

const HOSTILE: &[(&str, &str)] = &[
    ("authorization", "Bearer secret"),
    ("cookie", "a=b"),
    ("baggage", "user=1"),
    ("x-forwarded-for", "1.2.3.4"),
    ("x-gateway-inference-fairness-id", "f"),
    ("x-gateway-inference-objective", "o"),
    ("x-strata-decision", "forged"),
    ("x-request-id", "mine"),
    ("user-agent", "curl"),
    ("accept-encoding", "gzip"),
    ("traceparent", "00-1-2-01"),
    ("x-strata-request-id", "forged"),
];

#[tokio::test]
async fn only_what_the_table_lists_reaches_the_engine() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let reply = rig.send(with_headers(rig.chat_request("hello", true), HOSTILE)).await;
    assert_eq!(reply.status, 200);
    let got = engine.got().remove(0);
    for name in got.headers.keys() {
        assert!(Hop::SchedulerToEngine.allows(name.as_str()), "{name} crossed");
    }
    assert_eq!(got.headers["traceparent"], "00-1-2-01");
    let minted = got.headers["x-strata-request-id"].to_str().unwrap();
    assert_eq!(uuid::Uuid::parse_str(minted).unwrap().get_version_num(), 7, "a stranger's id is not taken");
    assert_eq!(reply.header("x-request-id"), minted);
    let mut back: Vec<&str> = reply.headers.keys().map(http::HeaderName::as_str).collect();
    back.sort_unstable();
    assert_eq!(
        back,
        [
            "content-type",
            "date",
            "transfer-encoding",
            "x-request-id",
            "x-strata-decision",
            "x-strata-replica"
        ]
    );
    assert!(!reply.header("x-strata-decision").contains("forged"));
}

#[tokio::test]
async fn the_hop_token_is_asked_for_and_shown() {
    let engine = Engine::start("m-0");
    let token = HopToken::new("one-run").unwrap();
    let rig = Rig::before(&[&engine], SchedulerOptions { hop_token: Some(token), ..quick() }).await;
    assert_eq!(rig.chat("hello").await.error().0, 401);
    assert_eq!(rig.get("/v1/models").await.status, 401);
    assert_eq!(rig.get("/replicas").await.status, 401);
    for open in ["/health", "/ready", "/version", "/metrics"] {
        assert_eq!(rig.get(open).await.status, 200, "{open}");
    }
    let trusted = [("x-strata-hop-token", "one-run"), ("x-strata-request-id", "0198-gateway")];
    let reply = rig.send(with_headers(rig.chat_request("hello", false), &trusted)).await;
    assert_eq!(reply.status, 200);
    let got = engine.got().remove(0);
    assert_eq!(got.headers["x-strata-hop-token"], "one-run");
    assert_eq!(got.headers["x-strata-request-id"], "0198-gateway");
    assert!(reply.headers.get("x-strata-hop-token").is_none());
}

#[tokio::test]
async fn the_scope_becomes_the_salt_and_the_clients_own_go() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let body = r#"{"cache_salt":"theirs","model":"m","priority":-9,"prompt":"hi","kv_transfer_params":{"host":"evil"}}"#;
    let send = async |path: &str, headers: &[(&str, &str)]| {
        assert_eq!(rig.send(with_headers(rig.request(path, body), headers)).await.status, 200);
        String::from_utf8(engine.got().last().unwrap().body.to_vec()).unwrap()
    };
    let scope = [("x-strata-cache-scope", "sc\"ope")];
    assert_eq!(
        send("/v1/completions", &scope).await,
        r#"{"cache_salt":"sc\"ope","model":"m","prompt":"hi"}"#
    );
    assert_eq!(send("/v1/completions", &[]).await, r#"{"model":"m","prompt":"hi"}"#);
    assert_eq!(send("/tokenize", &scope).await, r#"{"model":"m","prompt":"hi"}"#);
    let mut request = rig.request("/v1/completions", body);
    request.headers_mut().insert("x-strata-cache-scope", HeaderValue::from_bytes(b"\xff").unwrap());
    assert_eq!(rig.send(request).await.status, 400, "a scope is never dropped in silence");
}

#[tokio::test]
async fn all_routes_are_routed_and_the_engines_others_are_out_of_reach() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    for (path, _) in strata_scheduler::call::ROUTES.iter().copied() {
        let reply = rig.send(rig.request(path, r#"{"model":"m","input":"x"}"#)).await;
        assert_eq!((reply.status.as_u16(), engine.got().last().unwrap().path.as_str()), (200, path));
        assert!(reply.header("x-strata-decision").starts_with("replica="));
    }
    let count = engine.got().len();
    for path in [
        "/sleep",
        "/pause",
        "/reset_prefix_cache",
        "/abort_requests",
        "/v1/load_lora_adapter",
        "/v1/chat/completions/",
        "//sleep",
        "/v1/../sleep",
    ] {
        let reply = rig.send(rig.request(path, r#"{"model":"m"}"#)).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.json()["error"]["message"].is_string());
    }
    assert_eq!(rig.get("/v1/chat/completions").await.status, 405);
    assert_eq!(engine.got().len(), count);
}

#[tokio::test]
async fn models_replicas_and_version_are_told() {
    let (a, b) = (Engine::start("m-0"), Engine::serving("n-0", "org/n"));
    let options = SchedulerOptions { replicas: vec![a.url(), b.url()], ..quick() };
    let rig = Rig::start(options).await;
    rig.ready("m", 1).await;
    rig.ready("org/n", 1).await;
    let list = rig.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["m", "org/n"]));
    assert_eq!(
        (&list["data"][0]["max_model_len"], &list["data"][0]["template_overhead"]),
        (&json!(2048), &json!(24))
    );
    assert_eq!(rig.get("/v1/models/org/n").await.json()["id"], "org/n");
    assert_eq!(rig.get("/v1/models/none").await.error().1, "model_not_found");
    let report = rig.get("/replicas").await.json();
    let replica = &report["models"]["m"][0];
    assert_eq!(
        (&replica["ready"], &replica["url"], &replica["prefix_hits"]),
        (&json!(true), &json!(a.url()), &json!(30.0))
    );
    assert_eq!(rig.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    let reply = rig.send(rig.request("/v1/completions", r#"{"model":"org/n","prompt":"x"}"#)).await;
    assert_eq!(reply.header("x-strata-replica"), b.url().trim_start_matches("http://"));
    let reply = rig.send(rig.request("/v1/completions", r#"{"model":"none","prompt":"x"}"#)).await;
    assert_eq!(reply.error(), (404, "model_not_found".to_owned(), "invalid_request_error".to_owned()));
}

#[tokio::test]
async fn bad_bodies_are_refused_with_words() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let say = async |body: &str| {
        let reply = rig.send(rig.request("/v1/chat/completions", body.to_owned())).await;
        let param = reply.json()["error"]["param"].as_str().unwrap_or("-").to_owned();
        format!("{} {param}: {}", reply.status.as_u16(), reply.json()["error"]["message"].as_str().unwrap())
    };
    insta::assert_snapshot!(say("").await, @"400 -: the body must be a JSON object, and it starts with something else at byte 0");
    insta::assert_snapshot!(say("[1]").await, @"400 -: the body must be a JSON object, and it starts with something else at byte 0");
    insta::assert_snapshot!(say(r#"{"model":"m","messages":["#).await, @"400 -: the body is not valid JSON: the end where a value should be at byte 25");
    insta::assert_snapshot!(say(r#"{"model":"m","model":"n"}"#).await, @"400 model: the body has the member `model` twice; send it once");
    insta::assert_snapshot!(say(r#"{"model":"m","mod\u0065l":"n"}"#).await, @"400 model: the body has the member `model` twice; send it once");
    insta::assert_snapshot!(say(r#"{"model":7}"#).await, @"400 model: `model` must be a string");
    insta::assert_snapshot!(say(r#"{"messages":[]}"#).await, @"400 model: the body names no `model`; GET /v1/models lists those that can be asked");
    insta::assert_snapshot!(say(r#"{"model":"gpt-9"}"#).await, @"404 model: the model `gpt-9` does not exist; GET /v1/models lists those that do");
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(30_000));
    insta::assert_snapshot!(say(&long).await, @"400 model: `model` is longer than the 4096 bytes that a name may have; GET /v1/models lists those that can be asked");
    // A fault at the beginning of a body that takes long to send: the client is heard out, and told.
    let wrong = format!("[{}]", " ".repeat(20 << 20));
    insta::assert_snapshot!(say(&wrong).await, @"400 -: the body must be a JSON object, and it starts with something else at byte 0");
    assert!(engine.got().is_empty());
}

#[tokio::test]
async fn fifty_megabytes_are_refused() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let mib = Bytes::from(vec![b'x'; 1024 * 1024]);
    // With a length and without one.
    let whole = Bytes::from(mib.repeat(50));
    let chunked = futures::stream::iter((0..50).map(move |_| Ok::<_, std::io::Error>(mib.clone())));
    for body in [axum::body::Body::from(whole), axum::body::Body::from_stream(chunked.boxed())] {
        let reply = rig.send(rig.request("/v1/chat/completions", body)).await;
        assert_eq!(reply.error(), (413, "request_too_large".to_owned(), "invalid_request_error".to_owned()));
    }
    assert!(engine.got().is_empty());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

/// Whatever the body: outside the patch list it reaches the engine to the byte.
#[test]
fn bodies_are_identical_outside_the_patch_list() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let engine = Engine::start("m-0");
    let rig = runtime.block_on(Rig::before(&[&engine], quick()));
    let patched = ["cache_salt", "priority", "kv_transfer_params"];
    let keys = [
        "messages",
        "prompt",
        "tools",
        "temperature",
        "user",
        "é\"\\",
        "cache_salt",
        "priority",
        "kv_transfer_params",
    ];
    let members = prop::sample::subsequence(keys.to_vec(), 0..=keys.len()).prop_shuffle();
    let strategy =
        (members, prop::collection::vec(any_json(), keys.len()), 0usize..4, any::<bool>(), "[ \n\t]{0,3}");
    let config = ProptestConfig { cases: 128, ..ProptestConfig::default() };
    proptest!(config, |((members, values, at, scoped, space) in strategy)| {
        let mut parts: Vec<String> = members
            .iter()
            .zip(&values)
            .map(|(key, value)| format!("{space}{}{space}:{value}{space}", Value::from(*key)))
            .collect();
        parts.insert(at.min(parts.len()), "\"model\": \"m\"".to_owned());
        let sent = format!("{space}{{{}}}{space}", parts.join(","));
        let headers: &[(&str, &str)] = if scoped { &[("x-strata-cache-scope", "s1")] } else { &[] };
        let request = with_headers(rig.request("/v1/chat/completions", sent.clone()), headers);
        let reply = runtime.block_on(rig.send(request));
        prop_assert_eq!(reply.status.as_u16(), 200, "{}", sent);
        let got = engine.got().pop().unwrap().body;
        let (before, after) = (TopLevel::scan(sent.as_bytes()).unwrap(), TopLevel::scan(&got).unwrap());
        let rest = |top: &TopLevel, body: &[u8]| -> Vec<(Vec<u8>, Vec<u8>)> {
            top.members
                .iter()
                .filter(|m| !patched.contains(&m.key.as_str()))
                .map(|m| (body[m.key_at.clone()].to_vec(), body[m.value_at.clone()].to_vec()))
                .collect()
        };
        prop_assert_eq!(rest(&before, sent.as_bytes()), rest(&after, &got));
        prop_assert!(after.get("priority").is_none() && after.get("kv_transfer_params").is_none());
        prop_assert_eq!(after.raw(&got, "cache_salt"), scoped.then_some(&b"\"s1\""[..]));
        if !scoped && !members.iter().any(|m| patched.contains(m)) {
            prop_assert_eq!(&got[..], sent.as_bytes());
        }
    });
}
