//! The endpoint-picker protocol, asked as a proxy asks.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use strata_hop::HopToken;
use strata_scheduler::SchedulerOptions;
use strata_scheduler::extproc::SERVICE;
use strata_scheduler::extproc::proto::{
    Answer, HttpBody, HttpTrailers, Mutation, NOT_SERVING, Part, SERVING,
};
use strata_wire::replicas::Endpoints;
use tokio_util::sync::CancellationToken;

use crate::support::picker::{
    Ask, BUFFERED, DUPLEX, NONE, PARTIAL, Picker, STREAMED, message, refused, said,
};
use crate::support::{EndpointsFile, Engine, Rig, eventually, listed_with, quick};

/// A chat of this many bytes and a few.
fn chat(bytes: usize) -> Vec<u8> {
    let content = "x".repeat(bytes);
    json!({"model": "m", "messages": [{"role": "user", "content": content}]}).to_string().into_bytes()
}

fn endpoint(engine: &Engine) -> String {
    engine.url().trim_start_matches("http://").to_owned()
}

fn in_flight(rig: &Rig) -> usize {
    rig.states("m").iter().map(|state| state.in_flight as usize).sum()
}

/// A replica that says that much waits at it.
async fn crowded(engine: &Engine, rig: &Rig, waiting: f64) {
    engine.load(|load| load.waiting = waiting);
    eventually("the metrics are read", || (rig.states("m")[0].waiting - waiting).abs() < 1e-9).await;
}

#[tokio::test]
async fn every_body_mode_gets_a_replica() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let body = chat(1_500_000);
    for mode in [BUFFERED, PARTIAL, STREAMED, DUPLEX] {
        let mut asking = picker.ask(&Ask::new(mode)).await;
        let at_once = matches!(mode, BUFFERED | PARTIAL);
        if at_once {
            let first = said(&asking.answer().await);
            assert_eq!((first.to, first.set.len(), first.metadata), ("headers", 0, None));
        }
        let piece = if at_once { body.len() } else { 64 * 1024 };
        asking.send_body(&body, piece);
        let named = said(&asking.answer().await);
        assert_eq!(named.to, if at_once { "body" } else { "headers" }, "mode {mode}");
        assert_eq!(named.metadata, Some(endpoint(&engine)));
        assert_eq!(named.set["x-gateway-destination-endpoint"], endpoint(&engine).as_str());
        let minted = named.set["x-strata-request-id"].to_str().unwrap();
        assert_eq!(uuid::Uuid::parse_str(minted).unwrap().get_version_num(), 7);
        assert_eq!(named.body, None);
        match mode {
            STREAMED => {
                for _ in 0..body.len().div_ceil(piece) {
                    let answer = said(&asking.answer().await);
                    assert_eq!((answer.to, answer.body), ("body", None));
                }
            }
            DUPLEX => {
                let mut back = Vec::new();
                loop {
                    let Some(Mutation::Streamed(piece)) = said(&asking.answer().await).body else {
                        panic!("no piece")
                    };
                    back.extend_from_slice(&piece.body);
                    if piece.end_of_stream {
                        break;
                    }
                }
                assert!(back == body, "the body came back as it was");
            }
            _ => {}
        }
        assert_eq!(in_flight(&rig), 1, "mode {mode}");
        asking.send_response("200");
        assert_eq!(said(&asking.answer().await).to, "response headers");
        assert_eq!(in_flight(&rig), 1, "the response still comes");
        drop(asking);
        eventually("the place is given back", || in_flight(&rig) == 0).await;
    }
    assert!((rig.metric("inference_objective_request_total{model_name=\"m\"}").await - 4.0).abs() < 1e-9);
    assert!(engine.got().is_empty(), "the proxy sends requests, not the scheduler");
}

#[tokio::test]
async fn the_body_is_patched_in_every_mode_that_sees_it() {
    let engine = Engine::start("m-0");
    let token = HopToken::new("one-run").unwrap();
    let rig = Rig::before(&[&engine], SchedulerOptions { hop_token: Some(token), ..quick() }).await;
    let picker = Picker::of(&rig.scheduler).await.showing("one-run");
    let body = br#"{"model":"m","priority":-9,"prompt":"hi","kv_transfer_params":{"host":"evil"}}"#;
    let internal = [
        ("x-strata-cache-scope", "scope"),
        ("x-strata-request-id", "0198-gateway"),
        ("x-strata-deadline-ms", "60000"),
        ("authorization", "Bearer secret"),
        ("baggage", "user=1"),
    ];
    let proven: Vec<(&str, &str)> =
        internal.iter().copied().chain([("x-strata-hop-token", "one-run")]).collect();
    for headers in [&internal[..], &proven] {
        let trusted = headers.len() > internal.len();
        for mode in [BUFFERED, PARTIAL, STREAMED, DUPLEX] {
            let ask = Ask { headers, path: "/v1/completions", ..Ask::new(mode) };
            let mut asking = picker.ask(&ask).await;
            if matches!(mode, BUFFERED | PARTIAL) {
                asking.answer().await;
            }
            asking.send_body(body, body.len());
            let mut named = said(&asking.answer().await);
            let set = named.set.clone();
            for name in ["authorization", "baggage"] {
                assert!(named.removed.iter().any(|removed| removed == name), "{name}: {:?}", named.removed);
            }
            assert!(!named.removed.iter().any(|removed| removed == "content-type"));
            if matches!(mode, STREAMED | DUPLEX) {
                named = said(&asking.answer().await);
            }
            let got = match named.body.unwrap() {
                Mutation::Body(bytes) => bytes,
                Mutation::Streamed(piece) => piece.body,
                Mutation::Clear(_) => Bytes::new(),
            };
            let wanted = if trusted {
                r#"{"model":"m","prompt":"hi","cache_salt":"scope"}"#
            } else {
                r#"{"model":"m","prompt":"hi"}"#
            };
            assert_eq!(got, wanted, "mode {mode}");
            assert_eq!(set["x-strata-hop-token"], "one-run");
            assert_eq!(set["x-strata-request-id"] == "0198-gateway", trusted);
            assert_eq!(set.contains_key("x-strata-deadline-ms"), trusted);
            if mode == BUFFERED {
                assert_eq!(set["content-length"], wanted.len().to_string().as_str());
            }
        }
    }
}

#[tokio::test]
async fn without_a_body_the_model_is_named_or_the_only_one() {
    let (a, b) = (Engine::start("m-0"), Engine::serving("n-0", "n"));
    let rig = Rig::before(&[&a], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    for mode in [NONE, STREAMED] {
        let mut asking = picker.ask(&Ask { early: false, ..Ask::new(mode) }).await;
        let named = said(&asking.answer().await);
        assert_eq!((named.to, named.metadata), ("headers", Some(endpoint(&a))));
        if mode == STREAMED {
            asking.send_body(b"{}", 1);
            for _ in 0..2 {
                assert_eq!(said(&asking.answer().await).to, "body");
            }
        }
    }
    let rig = Rig::start(SchedulerOptions { replicas: vec![a.url(), b.url()], ..quick() }).await;
    rig.ready("m", 1).await;
    rig.ready("n", 1).await;
    let picker = Picker::of(&rig.scheduler).await;
    let refusal = picker.ask(&Ask::new(NONE)).await.refusal().await;
    assert_eq!(refused(&refusal).0, 400);
    assert!(String::from_utf8_lossy(&refusal.body).contains("set request_body_mode to FULL_DUPLEX_STREAMED"));
    let headers = [("x-gateway-model-name", "n")];
    let named = said(&picker.ask(&Ask { headers: &headers, ..Ask::new(NONE) }).await.answer().await);
    assert_eq!(named.metadata, Some(endpoint(&b)));
    let headers = [("x-gateway-model-name", "none")];
    let refusal = picker.ask(&Ask { headers: &headers, ..Ask::new(NONE) }).await.refusal().await;
    assert_eq!(refused(&refusal), (404, "model_not_found".to_owned(), "-".to_owned()));
}

#[tokio::test]
async fn refusals_have_openais_shape() {
    let mut engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_timeout: Duration::from_millis(150), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    let picker = Picker::of(&rig.scheduler).await;
    let ask = async |body: &[u8]| {
        let asking = picker.ask(&Ask::new(DUPLEX)).await;
        asking.send_body(body, body.len().max(1));
        refused(&asking.refusal().await)
    };
    let error = |status: i32, code: &str, after: &str| (status, code.to_owned(), after.to_owned());
    assert_eq!(ask(br#"{"model":"gpt-9"}"#).await, error(404, "model_not_found", "-"));
    assert_eq!(ask(br#"{"model":"m","messages":["#).await, error(400, "-", "-"));
    assert_eq!(ask(b"").await, error(400, "-", "-"));
    crowded(&engine, &rig, 50.0).await;
    assert_eq!(ask(&chat(10)).await, error(429, "capacity_exceeded", "1"));
    crowded(&engine, &rig, 0.0).await;
    engine.kill();
    rig.ready("m", 0).await;
    assert_eq!(ask(&chat(10)).await, error(503, "overloaded", "1"));
    let failed = "inference_objective_request_error_total{model_name=\"m\",error_code=\"503\"}";
    assert!((rig.metric(failed).await - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_body_that_was_cut_is_told_of() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let body = Bytes::from(chat(1000));
    for (bytes, whole) in [(body.slice(..500), false), (body, true)] {
        let mut asking = picker.ask(&Ask::new(PARTIAL)).await;
        asking.answer().await;
        asking.send(message(Part::RequestBody(HttpBody { body: bytes, end_of_stream: false })));
        if whole {
            assert_eq!(said(&asking.answer().await).metadata, Some(endpoint(&engine)));
        } else {
            let refusal = asking.refusal().await;
            assert_eq!(refused(&refusal).0, 413);
            assert!(String::from_utf8_lossy(&refusal.body).contains("passed on 500 bytes"));
        }
    }
}

#[tokio::test]
async fn the_subset_is_kept_to() {
    let engines: Vec<Engine> = (0..3).map(|n| Engine::start(&format!("m-{n}"))).collect();
    let rig = Rig::before(&engines.iter().collect::<Vec<_>>(), quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let body = chat(5000);
    for engine in engines.iter().chain(&engines) {
        let only = endpoint(engine);
        let subset = [only.as_str(), "10.9.9.9:8000"];
        let mut asking = picker.ask(&Ask { subset: Some(&subset), ..Ask::new(DUPLEX) }).await;
        asking.send_body(&body, 2000);
        assert_eq!(said(&asking.answer().await).metadata, Some(only), "whoever has the prompt");
    }
    for subset in [&["10.9.9.9:8000"][..], &[]] {
        let asking = picker.ask(&Ask { subset: Some(subset), ..Ask::new(DUPLEX) }).await;
        asking.send_body(&body, 2000);
        assert_eq!(refused(&asking.refusal().await).0, 503);
    }
}

#[tokio::test]
async fn others_are_named_to_fall_back_to_where_the_proxy_can() {
    let engines: Vec<Engine> = (0..4).map(|n| Engine::start(&format!("m-{n}"))).collect();
    let options = SchedulerOptions { extproc_endpoints: 3, ..quick() };
    let rig = Rig::before(&engines.iter().collect::<Vec<_>>(), options).await;
    let picker = Picker::of(&rig.scheduler).await;
    let named = async |ask: &Ask<'_>| {
        let mut asking = picker.ask(ask).await;
        asking.send_body(&chat(5000), 6000);
        let named = said(&asking.answer().await);
        let list = named.metadata.unwrap();
        assert_eq!(named.set["x-gateway-destination-endpoint"], list.as_str());
        list.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let list = named(&Ask::new(DUPLEX)).await;
    let all: Vec<String> = engines.iter().map(endpoint).collect();
    let distinct: std::collections::BTreeSet<_> = list.iter().collect();
    assert!(list.len() == 3 && distinct.len() == 3 && list.iter().all(|one| all.contains(one)), "{list:?}");
    assert_eq!(named(&Ask::new(DUPLEX)).await[0], list[0], "who has the prompt comes first");
    // Neither one that is full nor one that is not allowed.
    let full = engines.iter().position(|engine| endpoint(engine) == list[1]).unwrap();
    engines[full].load(|load| load.waiting = 50.0);
    let states = || rig.states("m").into_iter().filter(|state| state.waiting > 40.0).count();
    eventually("the metrics are read", || states() == 1).await;
    let allowed = [list[0].as_str(), list[1].as_str(), list[2].as_str()];
    assert_eq!(named(&Ask { subset: Some(&allowed), ..Ask::new(DUPLEX) }).await, [&*list[0], &*list[2]]);
}

/// A sidecar beside the replica that answers lets another compute the prompt, and needs to know which.
#[tokio::test]
async fn who_computes_a_long_prompt_is_named_where_a_sidecar_asks_for_it() {
    let (answers, computes) = (Engine::start("m-0"), Engine::start("m-p"));
    let file = EndpointsFile::new();
    file.write(&Endpoints { models: [("m".to_owned(), listed_with(&[&answers], &[&computes]))].into() });
    for asked in [true, false] {
        let endpoints = Some(file.path());
        let rig = Rig::start(SchedulerOptions { endpoints, extproc_prefill: asked, ..quick() }).await;
        rig.ready("m", 2).await;
        let picker = Picker::of(&rig.scheduler).await;
        let headers = [("x-prefiller-host-port", "10.9.9.9:1")];
        let ask = Ask { headers: &headers, ..Ask::new(DUPLEX) };
        let mut long = picker.ask(&ask).await;
        long.send_body(&chat(20_000), 30_000);
        let named = said(&long.answer().await);
        assert_eq!(named.metadata, Some(endpoint(&answers)));
        let by = named.set.get("x-prefiller-host-port").map(|at| at.to_str().unwrap().to_owned());
        assert_eq!(by, asked.then(|| endpoint(&computes)));
        assert_eq!(named.removed.contains(&"x-prefiller-host-port".to_owned()), !asked, "never a client's");
        let under_way = |name: &str| rig.states("m").iter().find(|s| s.name == name).unwrap().in_flight;
        assert_eq!((under_way("m-0"), under_way("m-p")), (1, u64::from(asked)));
        long.send_response("200");
        eventually("the prompt is done", || under_way("m-p") == 0).await;
        assert_eq!(under_way("m-0"), 1);
        let mut short = picker.ask(&ask).await;
        short.send_body(&chat(100), 1000);
        assert!(!said(&short.answer().await).set.contains_key("x-prefiller-host-port"));
        if asked {
            let outcome = "strata_scheduler_prefills_total{model_name=\"m\",outcome=\"named\"}";
            assert!((rig.metric(outcome).await - 1.0).abs() < 1e-9);
        }
    }
}

#[tokio::test]
async fn a_request_is_held_and_its_client_may_leave() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    crowded(&engine, &rig, 50.0).await;
    let mut stays = picker.ask(&Ask::new(DUPLEX)).await;
    stays.send_body(&chat(10), 10);
    let leaves = picker.ask(&Ask::new(BUFFERED)).await;
    leaves.send_body(&chat(10), 1000);
    eventually("both are held", || rig.held("m") == 2).await;
    drop(leaves);
    eventually("one has left", || rig.held("m") == 1).await;
    crowded(&engine, &rig, 0.0).await;
    assert_eq!(said(&stays.answer().await).metadata, Some(endpoint(&engine)));
    eventually("nobody is held", || rig.held("m") == 0 && in_flight(&rig) == 1).await;
    drop(stays);
    eventually("the place is given back", || in_flight(&rig) == 0).await;
}

#[tokio::test]
async fn a_replica_that_a_proxy_gets_503_from_is_out_until_its_next_scrape() {
    let engine = Engine::start("m-0");
    // Not scraped again before the test is over, unless the picker asks for it.
    let options = SchedulerOptions { scrape_interval: Duration::from_secs(60), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    let picker = Picker::of(&rig.scheduler).await;
    let epoch = || rig.scheduler.registry.pool("m").unwrap().replicas.load()[0].epoch();
    let before = epoch();
    let mut asking = picker.ask(&Ask::new(DUPLEX)).await;
    asking.send_body(&chat(10), 1000);
    asking.answer().await;
    asking.send_response("503");
    eventually("it was out and has come back", || epoch() > before).await;
    rig.ready("m", 1).await;
}

#[tokio::test]
async fn what_no_engine_is_asked_is_answered_here() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let tell = async |method: &'static str, path: &'static str| {
        let ask = Ask { method, path, end_of_stream: method == "GET", ..Ask::new(DUPLEX) };
        let reply = picker.ask(&ask).await.refusal().await;
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.status.unwrap().code, body)
    };
    let (status, list) = tell("GET", "/v1/models?all=1").await;
    assert_eq!((status, list["data"][0]["id"].as_str()), (200, Some("m")));
    assert_eq!(tell("GET", "/v1/models/m").await.1["id"], "m");
    assert_eq!(tell("GET", "/v1/models/n").await.0, 404);
    for path in
        ["/sleep", "/pause", "/v1/load_lora_adapter", "//sleep", "/v1/chat/completions/", "*", "http://x"]
    {
        assert_eq!(tell("POST", path).await.0, 404, "{path}");
    }
    assert_eq!(tell("GET", "/v1/chat/completions").await.0, 405);
}

#[tokio::test]
async fn trailers_come_after_the_body() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let mut asking = picker.ask(&Ask::new(DUPLEX)).await;
    let body = Bytes::from(chat(10));
    asking.send(message(Part::RequestBody(HttpBody { body: body.clone(), end_of_stream: false })));
    asking.send(message(Part::RequestTrailers(HttpTrailers {})));
    assert_eq!(said(&asking.answer().await).to, "headers");
    let Some(Mutation::Streamed(piece)) = said(&asking.answer().await).body else { panic!("no piece") };
    assert_eq!((piece.body, piece.end_of_stream), (body, false));
    assert!(matches!(asking.answer().await.answer, Some(Answer::RequestTrailers(_))));
}

#[tokio::test]
async fn health_and_the_token() {
    let mut engine = Engine::start("m-0");
    let token = HopToken::new("one-run").unwrap();
    let rig = Rig::before(&[&engine], SchedulerOptions { hop_token: Some(token), ..quick() }).await;
    let picker = Picker::of(&rig.scheduler).await;
    let stranger = match picker.open().await {
        Ok(mut asking) => asking.next().await.expect("a refusal").unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(stranger.code(), tonic::Code::Unauthenticated);
    for service in ["", "liveness", "readiness", SERVICE] {
        assert_eq!(picker.health(service).await, Ok(SERVING), "{service}");
    }
    assert_eq!(picker.health("other").await, Err(tonic::Code::NotFound));
    engine.kill();
    rig.ready("m", 0).await;
    assert_eq!([picker.health("readiness").await, picker.health(SERVICE).await], [Ok(NOT_SERVING); 2]);
    assert_eq!(picker.health("liveness").await, Ok(SERVING));
    let mut asking = picker.showing("one-run").ask(&Ask::new(BUFFERED)).await;
    assert_eq!(said(&asking.answer().await).to, "headers");
}

#[tokio::test]
async fn a_proxy_that_breaks_the_protocol_is_told() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let picker = Picker::of(&rig.scheduler).await;
    let mut asking = picker.ask(&Ask::new(DUPLEX)).await;
    asking.send(Ask::new(DUPLEX).first());
    let status = asking.next().await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::InvalidArgument, "the headers of a request came twice")
    );
    assert!(asking.next().await.is_none());
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_with_its_option() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = SchedulerOptions {
        replicas: vec!["http://127.0.0.1:9".to_owned()],
        extproc_listen: Some(taken.local_addr().unwrap().to_string()),
        ..quick()
    };
    let error = strata_scheduler::run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(
        error.ends_with(
            "is in use by another process; stop it, or choose another address with --extproc-listen"
        ),
        "{error}"
    );
}
