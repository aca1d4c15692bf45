//! Spans of requests, as a collector gets them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::post as on_post;
use bytes::Bytes;
use serde_json::{Value, json};
use strata_engine::EngineOptions;
use strata_engine::runtime::Engine;
use strata_engine::serve::router;
use strata_hop::Above;
use strata_trace::{Exporter, TraceConfig};
use tokio_util::sync::CancellationToken;

use crate::backend::FakeBackend;
use crate::client::{DEADLINE, metric, post, send, until};
use crate::process;
use crate::support::{config, engine};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A protobuf field: its number, and what it holds.
#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = *rest.split_off_first().unwrap();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn fields(mut rest: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut rest)),
            1 => Field::Number(u64::from_le_bytes(rest.split_off(..8).unwrap().try_into().unwrap())),
            2 => {
                let size = varint(&mut rest) as usize;
                Field::Bytes(rest.split_off(..size).unwrap())
            }
            5 => Field::Number(u32::from_le_bytes(rest.split_off(..4).unwrap().try_into().unwrap()).into()),
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, field));
    }
    fields
}

/// The messages of a field.
fn inner(message: &[u8], number: u64) -> Vec<&[u8]> {
    let of = |(n, field)| match field {
        Field::Bytes(bytes) if n == number => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(of).collect()
}

fn number(message: &[u8], number: u64) -> Option<u64> {
    fields(message).into_iter().find_map(|(n, field)| match field {
        Field::Number(value) if n == number => Some(value),
        _ => None,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn value(any: &[u8]) -> Value {
    match fields(any).pop().unwrap() {
        (1, Field::Bytes(bytes)) => text(bytes).into(),
        (3, Field::Number(number)) => (number as i64).into(),
        (4, Field::Number(bits)) => f64::from_bits(bits).into(),
        (5, Field::Bytes(array)) => inner(array, 1).into_iter().map(value).collect(),
        other => panic!("{other:?}"),
    }
}

fn attributes(message: &[u8], field: u64) -> BTreeMap<String, Value> {
    inner(message, field).iter().map(|pair| (text(inner(pair, 1)[0]), value(inner(pair, 2)[0]))).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

#[derive(Clone, Debug)]
struct Got {
    trace: String,
    span: String,
    parent: Option<String>,
    name: String,
    nanoseconds: u64,
    status: u64,
    attributes: BTreeMap<String, Value>,
    service: String,
}

fn decode(request: &[u8]) -> Vec<Got> {
    let mut spans = Vec::new();
    for resource in inner(request, 1) {
        let service = attributes(inner(resource, 1)[0], 1)["service.name"].as_str().unwrap().to_owned();
        for span in inner(resource, 2).into_iter().flat_map(|scope| inner(scope, 2)) {
            spans.push(Got {
                trace: hex(inner(span, 1)[0]),
                span: hex(inner(span, 2)[0]),
                parent: inner(span, 4).first().map(|id| hex(id)),
                name: text(inner(span, 5)[0]),
                nanoseconds: number(span, 8).unwrap() - number(span, 7).unwrap(),
                status: inner(span, 15).first().and_then(|status| number(status, 3)).unwrap_or(0),
                attributes: attributes(span, 9),
                service: service.clone(),
            });
        }
    }
    spans
}

/// A collector, and what it got.
async fn collector() -> (String, Arc<Mutex<Vec<Got>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let got: Arc<Mutex<Vec<Got>>> = Arc::default();
    let kept = got.clone();
    let take = move |body: Bytes| {
        kept.lock().unwrap().extend(decode(&body));
        async {}
    };
    let router = Router::new().route("/v1/traces", on_post(take));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, got)
}

fn traced(url: &str) -> TraceConfig {
    let soon = |name: &str| (name == "OTEL_BSP_SCHEDULE_DELAY").then(|| "10".to_owned());
    TraceConfig::read(Some(("flag", url)), "strata-engine", soon).unwrap().unwrap()
}

fn serve(backend: FakeBackend, url: &str) -> (Router, Arc<Engine>, Exporter) {
    let engine = engine(backend, config());
    let exporter = Exporter::start(traced(url)).unwrap();
    engine.trace(exporter.tracer().clone());
    (router(engine.clone(), Above::default()), engine, exporter)
}

fn secret() -> Value {
    json!({"model": "test-model", "messages": [{"role": "user", "content": "a-secret-prompt"}], "n": 2,
           "temperature": 0.5, "top_p": 0.9, "seed": 1, "max_tokens": 30})
}

#[tokio::test]
async fn one_span_a_request_tells_how_it_went_and_no_text() {
    let (url, got) = collector().await;
    let says = "a-secret-answer".bytes().map(u32::from).collect();
    let (router, _engine, exporter) = serve(FakeBackend::says(256, says), &url);
    let minted = ("x-strata-request-id", "minted-1");
    let headers = [JSON, ("traceparent", PARENT), minted, ("authorization", "Bearer a-secret-key")];
    let answer = send(&router, "POST", "/v1/chat/completions", &headers, secret().to_string()).await;
    let usage = answer.json().await["usage"].clone();
    until(async || got.lock().unwrap().len() == 1).await;
    let span = got.lock().unwrap()[0].clone();
    assert_eq!((span.name.as_str(), span.service.as_str(), span.status), ("llm_request", "strata-engine", 0));
    assert_eq!(span.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent.as_deref(), Some("b7ad6b7169203331"));
    assert!(span.span.len() == 16 && span.span != "b7ad6b7169203331");
    let of = |name: &str| span.attributes[&format!("gen_ai.{name}")].clone();
    assert_eq!((of("request.model"), of("response.model")), (json!("test-model"), json!("test-model")));
    assert_eq!((of("request.id"), of("request.n")), (json!("minted-1"), json!(2)));
    assert_eq!(of("request.max_tokens"), 30);
    assert!((of("request.temperature").as_f64().unwrap() - 0.5).abs() < 1e-6);
    assert!((of("request.top_p").as_f64().unwrap() - 0.9).abs() < 1e-6);
    assert_eq!(of("usage.prompt_tokens"), usage["prompt_tokens"], "of the prompt, not of each answer");
    assert_eq!(of("usage.completion_tokens"), usage["completion_tokens"]);
    assert_eq!(of("response.finish_reasons").as_array().unwrap().len(), 2);
    let latency = |name: &str| of(&format!("latency.{name}")).as_f64().unwrap();
    let (queue, first, whole) = (latency("time_in_queue"), latency("time_to_first_token"), latency("e2e"));
    let (prefill, decode, inference) = (
        latency("time_in_model_prefill"),
        latency("time_in_model_decode"),
        latency("time_in_model_inference"),
    );
    assert!((queue + prefill - first).abs() < 1e-6 && (prefill + decode - inference).abs() < 1e-6);
    assert!((queue + inference - whole).abs() < 1e-6 && whole * 1e9 <= span.nanoseconds as f64 + 1e6);
    assert_eq!(span.attributes.len(), 16, "{:?}", span.attributes.keys());
    assert!(!format!("{span:?}").contains("secret"));
    // Counted once the collector's answer is back.
    until(async || metric(&router, "strata:trace_spans_exported_total").await >= 1.0).await;
    exporter.close(DEADLINE).await;
}

#[tokio::test]
async fn a_caller_that_does_not_record_has_no_span_and_an_odd_one_gets_its_own_trace() {
    let (url, got) = collector().await;
    let (router, _engine, exporter) = serve(FakeBackend::new(256), &url);
    let body = json!({"model": "test-model", "prompt": ["a", "b"], "max_tokens": 3}).to_string();
    let unsampled = PARENT.replace("-01", "-00");
    for parent in [unsampled.as_str(), "nonsense"] {
        let headers = [JSON, ("traceparent", parent)];
        send(&router, "POST", "/v1/completions", &headers, body.clone()).await.json().await;
    }
    send(&router, "POST", "/v1/completions", &[JSON, ("traceparent", PARENT), ("traceparent", PARENT)], body)
        .await
        .json()
        .await;
    exporter.close(DEADLINE).await;
    let got = got.lock().unwrap();
    assert_eq!(got.len(), 2);
    assert!(got.iter().all(|span| span.parent.is_none() && !PARENT.contains(&span.trace)));
    assert_ne!(got[0].trace, got[1].trace);
    assert_eq!(got[0].attributes["gen_ai.response.finish_reasons"], json!(["length", "length"]));
    assert_eq!(got[0].attributes["gen_ai.usage.prompt_tokens"], 2, "one of each prompt");
}

#[tokio::test]
async fn a_failed_or_abandoned_request_has_its_span() {
    let (url, got) = collector().await;
    let (backend, gate) = FakeBackend::new(256).gated();
    let remote = backend.remote();
    let (router, engine, exporter) = serve(backend, &url);
    let body = json!({"model": "test-model", "prompt": "a", "max_tokens": 900, "stream": true});
    remote.fail_next();
    gate.send(()).unwrap();
    assert_eq!(post(&router, "/v1/completions", &body).await.status, 500);
    // One step gives the first event; the next waits until the client has left.
    gate.send(()).unwrap();
    let mut stream = post(&router, "/v1/completions", &body).await;
    assert!(stream.event().await.is_some());
    drop(stream);
    drop(gate);
    engine.idle().await;
    exporter.close(DEADLINE).await;
    let got = got.lock().unwrap();
    let told: Vec<_> =
        got.iter().map(|s| (s.status, s.attributes["gen_ai.response.finish_reasons"].clone())).collect();
    assert_eq!(told, [(2, json!(["error"])), (0, json!(["abort"]))]);
    assert!(!got[0].attributes.contains_key("gen_ai.latency.time_to_first_token"));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_no_request() {
    // Nobody listens on a port that was just given back.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (router, _engine, exporter) = serve(FakeBackend::new(256), &format!("http://{port}"));
    for _ in 0..5 {
        post(&router, "/v1/chat/completions", &secret()).await.json().await;
    }
    exporter.close(DEADLINE).await;
    assert!(metric(&router, "strata:trace_spans_dropped_total").await >= 5.0);
}

#[tokio::test]
async fn a_process_sends_its_last_spans_before_it_ends() {
    let (url, got) = collector().await;
    let folder = process::model();
    let slow = |name: &str| (name == "OTEL_BSP_SCHEDULE_DELAY").then(|| "3600000".to_owned());
    let traces = TraceConfig::read(Some(("flag", &url)), "mine", slow).unwrap();
    let options = EngineOptions { traces, ..process::options(folder.path()) };
    let bound = strata_hop::Bound::bind("127.0.0.1:0").await.unwrap();
    let base = bound.url();
    let stop = CancellationToken::new();
    let running = tokio::spawn(strata_engine::run_on(bound, options, stop.clone()));
    let request = http::Request::post(format!("{base}/v1/completions"))
        .body(json!({"model": "small", "prompt": "abc", "max_tokens": 2}).to_string().into())
        .unwrap();
    let response = strata_hop::Upstream::new().send(request, Duration::from_secs(20)).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    stop.cancel();
    tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    let got = got.lock().unwrap();
    assert_eq!((got.len(), got[0].service.as_str()), (1, "mine"));
}
