//! One request through the full chain, recorded at every hop and compared with the table in
//! `strata_wire::hops`: nothing crosses a boundary that the table does not list, nobody's identity
//! goes below the gateway, and no layer changes a body beyond its patches.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use strata_e2e::process::{self, Layer};
use strata_e2e::recorder::{Exchange, Recorder};
use strata_hop::Upstream;
use strata_wire::hops::{self, Hop};
use strata_wire::patch::Allowed;
use strata_wire::toplevel::TopLevel;

const TOKEN: &str = "hop-token-of-this-run";
const MANIFESTS: &str = "
apiVersion: strata.dev/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {name: tiny, uri: 'file:///unused.gguf'}
  replicas: 1
---
apiVersion: strata.dev/v1alpha1
kind: Tenant
metadata: {name: acme-corporation}
spec: {models: ['*']}
";

/// Everything that an application may send and that must not travel further than the table allows.
const BODY: &str = r#"{ "messages" : [ {"role":"user","content":"Say  hello, caf\u00e9."} ],
  "user":"user-4711", "metadata":{"who":"user-4711"}, "safety_identifier":"user-4711",
  "cache_salt":"forged-salt", "priority":-7, "model":"tiny", "temperature":0, "max_tokens":4 }"#;

struct Chain {
    platform: Layer,
    hops: [(Hop, Recorder); 3],
    key: String,
    _below: [Layer; 3],
    _state: tempfile::TempDir,
}

async fn chain(model: &std::path::Path) -> Chain {
    let state = tempfile::tempdir().unwrap();
    let path = |name: &str| state.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("manifests")).unwrap();
    std::fs::write(path("manifests/all.yaml"), MANIFESTS).unwrap();
    let made = Command::new(process::binary())
        .args([
            "keys",
            "create",
            "--tenant",
            "acme-corporation",
            "--admin",
            "-o",
            "json",
            "--state",
            &path("state"),
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();

    let engine = [
        "engine",
        "--model",
        model.to_str().unwrap(),
        "--served-model-name",
        "tiny",
        "--max-model-len",
        "512",
    ];
    let engine = Layer::start(&engine, TOKEN).await;
    let to_engine = Recorder::start(&engine.url).await;
    let scheduler = Layer::start(&["scheduler", "--replicas", &to_engine.url], TOKEN).await;
    let to_scheduler = Recorder::start(&scheduler.url).await;
    let gateway =
        ["gateway", "--upstream", &to_scheduler.url, "-f", &path("manifests"), "--state", &path("state")];
    let gateway = Layer::start(&gateway, TOKEN).await;
    let to_gateway = Recorder::start(&gateway.url).await;
    let platform =
        ["platform", "--upstream", &to_gateway.url, "--upstream-kind", "gateway", "--state", &path("state")];
    let platform = Layer::start(&platform, TOKEN).await;
    Chain {
        platform,
        hops: [
            (Hop::PlatformToGateway, to_gateway),
            (Hop::GatewayToScheduler, to_scheduler),
            (Hop::SchedulerToEngine, to_engine),
        ],
        key: made["key"].as_str().unwrap().to_owned(),
        _below: [engine, scheduler, gateway],
        _state: state,
    }
}

async fn post(chain: &Chain, path: &str, body: &str) -> (http::StatusCode, HeaderMap, Bytes) {
    let mut request = Request::post(format!("{}{path}", chain.platform.url))
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {}", chain.key))
        .header("x-request-id", "from-the-application")
        .header("x-session-id", "from-the-application")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    for forged in [
        "cookie",
        "baggage",
        "x-api-key",
        "x-forwarded-for",
        "openai-organization",
        "x-strata-cache-scope",
        "x-strata-hop-token",
        "x-strata-request-id",
        "x-gateway-inference-fairness-id",
        "x-gateway-inference-objective",
        "user-agent",
    ] {
        request = request.header(forged, "forged-by-the-application");
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = Upstream::new().send(request, Duration::from_secs(120)).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

fn text(exchange: &Exchange) -> String {
    let headers =
        exchange.headers.iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes())));
    headers.collect::<String>() + &String::from_utf8_lossy(&exchange.body)
}

/// Every member is either the same to the byte, or one that this layer may change.
fn assert_patched_only(before: &[u8], after: &[u8], allowed: Allowed) {
    let (old, new) = (TopLevel::scan(before).unwrap(), TopLevel::scan(after).unwrap());
    let may_set = |key: &str| allowed.set.iter().any(|s| s.split('.').next() == Some(key));
    for m in &new.members {
        let same = old.raw(before, &m.key) == new.raw(after, &m.key);
        assert!(same || may_set(&m.key), "`{}` was changed", m.key);
    }
    for m in &old.members {
        let kept = new.get(&m.key).is_some();
        assert!(kept || allowed.remove.contains(&m.key.as_str()), "`{}` was removed", m.key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_table_lists_crosses_each_boundary() {
    let Some(model) = process::model() else { return };
    let chain = chain(&model).await;

    let (status, headers, answer) = post(&chain, "/v1/chat/completions", BODY).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    for name in headers.keys() {
        let framing = ["transfer-encoding", "connection"].contains(&name.as_str());
        assert!(framing || hops::returns(name.as_str(), true), "`{name}` came back to the application");
    }

    let mut before = Bytes::from_static(BODY.as_bytes());
    for (hop, recorder) in &chain.hops {
        let crossed = recorder.exchanges("POST /v1/chat/completions");
        assert_eq!(crossed.len(), 1, "{hop:?}");
        let crossed = &crossed[0];
        for name in crossed.headers.keys() {
            assert!(hop.allows(name.as_str()), "`{name}` crossed {hop:?}");
        }
        for needed in hop.added() {
            let optional = ["authorization", "x-request-id", "x-gateway-inference-objective"];
            assert!(
                crossed.headers.contains_key(*needed) || optional.contains(needed),
                "`{needed}` is missing at {hop:?}"
            );
        }
        assert_patched_only(&before, &crossed.body, hop.patches());
        assert!(!text(crossed).contains("forged-by"), "{hop:?}:\n{}", text(crossed));
        if *hop != Hop::PlatformToGateway {
            for secret in ["user-4711", "acme-corporation", &chain.key, "from-the-application", "forged-salt"]
            {
                assert!(!text(crossed).contains(secret), "`{secret}` crossed {hop:?}:\n{}", text(crossed));
            }
        }
        before = crossed.body.clone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_asked_of_the_layers_below_by_the_same_table() {
    let Some(model) = process::model() else { return };
    let chain = chain(&model).await;
    let body = r#"{"model":"tiny","input":"Say hello.","max_output_tokens":4,"user":"user-4711","metadata":{"who":"user-4711"}}"#;
    let (status, _, answer) = post(&chain, "/v1/responses", body).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    for (hop, recorder) in &chain.hops {
        assert_eq!(recorder.exchanges("POST /v1/chat/completions").len(), 1, "{hop:?}");
        for crossed in recorder.exchanges("") {
            for name in crossed.headers.keys() {
                assert!(hop.allows(name.as_str()), "`{name}` crossed {hop:?} on {}", crossed.what);
            }
            assert!(!text(&crossed).contains("forged-by"), "{hop:?}:\n{}", text(&crossed));
            let below_gateway = *hop != Hop::PlatformToGateway;
            for secret in ["user-4711", "acme-corporation", &chain.key] {
                assert!(!below_gateway || !text(&crossed).contains(secret), "`{secret}` crossed {hop:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_refuses_whoever_is_not_the_layer_above() {
    let Some(model) = process::model() else { return };
    let chain = chain(&model).await;
    for (hop, recorder) in &chain.hops[1..] {
        let request =
            Request::post(format!("{}/v1/chat/completions", recorder.url)).body(Body::from(BODY)).unwrap();
        let response = Upstream::new().send(request, Duration::from_secs(30)).await.unwrap();
        assert_eq!(response.status(), 401, "{hop:?}");
    }
}
