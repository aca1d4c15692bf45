//! Spans of requests, as a collector gets them.

use std::sync::Arc;

use axum::body::Body;
use http::Request;
use serde_json::json;

use crate::support::EndpointsFile;
use crate::support::collector::Got;
use crate::support::picker::{Ask, DUPLEX, Picker, said};
use crate::support::{Collector, Does, Engine, Rig, eventually, listed_with, quick};
use strata_scheduler::SchedulerOptions;
use strata_wire::replicas::Endpoints;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced(rig: &Rig, text: &str, stream: bool, parent: &str) -> Request<Body> {
    let mut request = rig.chat_request(text, stream);
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    request.headers_mut().insert("tracestate", "vendor=kept".parse().unwrap());
    request
}

/// The header of the last request that an engine got.
fn told(engine: &Engine, name: &str) -> String {
    let got = engine.got().pop().unwrap();
    got.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn names(spans: &[Got]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

#[tokio::test]
async fn a_request_has_its_parts_and_the_engine_is_told_the_attempts() {
    let engine = Engine::start("m-0");
    engine.says_cached(64, 80);
    let rig = Rig::before(&[&engine], quick()).await;
    let collector = Collector::of(&rig.scheduler).await;
    let mut request = traced(&rig, &"a secret ".repeat(40), true, PARENT);
    request.headers_mut().insert("x-gateway-inference-objective", "priority-3".parse().unwrap());
    let stream = rig.open(request).await;
    let id = stream.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    let spans = collector.request().await;
    assert_eq!(names(&spans), ["route_request", "choose_replica", "ask_replica"]);
    let (whole, choice, attempt) = (&spans[0], &spans[1], &spans[2]);
    assert_eq!((whole.trace.as_str(), whole.parent.as_str(), whole.kind), (TRACE, "b7ad6b7169203331", 2));
    assert!(spans.iter().all(|span| span.trace == TRACE && !span.failed));
    assert_eq!((choice.kind, attempt.kind), (1, 3));
    assert_eq!(
        (told(&engine, "traceparent"), told(&engine, "tracestate")),
        (attempt.header(), "vendor=kept".to_owned())
    );
    let name = engine.url().trim_start_matches("http://").to_owned();
    assert_eq!(
        serde_json::to_value(&whole.said).unwrap(),
        json!({
            "http.request.method": "POST", "url.path": "/v1/chat/completions", "http.response.status_code": 200,
            "gen_ai.request.model": "m", "gen_ai.request.id": id,
            "gen_ai.usage.prompt_tokens": 80, "gen_ai.usage.cached_tokens": 64, "gen_ai.usage.completion_tokens": 1,
            "strata.priority": 3, "strata.replica": name, "strata.attempts": 1, "strata.predicted_cached_tokens": 0,
        })
    );
    assert_eq!((&choice.said["strata.candidates"], &choice.said["strata.blocks"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&attempt.said["strata.replica"], &attempt.said["url.full"]),
        (&json!(name), &json!(engine.url()))
    );
    assert!(spans[1..].iter().all(|part| part.start >= whole.start && part.end <= whole.end));
    assert!(!format!("{spans:?}").contains("secret"));
    assert!(rig.metric("strata_scheduler_trace_spans_exported_total").await >= 3.0);
    assert_eq!(collector.close().await, 0);
}

#[tokio::test]
async fn each_attempt_is_told_apart() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let collector = Collector::of(&rig.scheduler).await;
    a.does(Does::Refuse);
    b.does(Does::Refuse);
    assert_eq!(rig.chat("hello").await.status, 503);
    let spans = collector.request().await;
    assert_eq!(
        names(&spans),
        ["route_request", "choose_replica", "ask_replica", "choose_replica", "ask_replica"]
    );
    let (whole, first, second) = (&spans[0], &spans[2], &spans[4]);
    assert!(whole.failed && first.failed && second.failed && whole.parent.is_empty());
    assert_eq!(
        (&whole.said["strata.attempts"], &whole.said["http.response.status_code"]),
        (&json!(2), &json!(503))
    );
    assert_eq!(first.said["error.type"], "refused");
    assert_ne!(first.said["strata.replica"], second.said["strata.replica"]);
    let mut parents = [told(&a, "traceparent"), told(&b, "traceparent")];
    let mut wanted = [first.header(), second.header()];
    parents.sort();
    wanted.sort();
    assert_eq!(parents, wanted);
}

#[tokio::test]
async fn the_wait_in_the_queue_is_seen() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    let collector = Collector::of(&rig.scheduler).await;
    engine.load(|load| load.waiting = 50.0);
    eventually("it is full", || rig.states("m")[0].waiting > 49.0).await;
    let asking = Arc::clone(&rig);
    let asked = tokio::spawn(async move { asking.chat("hello").await });
    eventually("it is held", || rig.held("m") == 1).await;
    engine.load(|load| load.waiting = 0.0);
    assert_eq!(asked.await.unwrap().status, 200);
    let spans = collector.request().await;
    assert_eq!(names(&spans), ["route_request", "wait_in_queue", "choose_replica", "ask_replica"]);
    let (whole, wait, choice) = (&spans[0], &spans[1], &spans[2]);
    assert!(wait.start >= whole.start && wait.end <= choice.start && choice.end <= whole.end);
    let seconds = whole.said["gen_ai.latency.time_in_queue"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds * 1e9 + 1e6 >= (wait.end - wait.start) as f64);
    // One that is never placed.
    engine.load(|load| load.waiting = 50.0);
    eventually("it is full", || rig.states("m")[0].waiting > 49.0).await;
    let mut request = rig.chat_request("hello", false);
    request.headers_mut().insert("x-strata-deadline-ms", "50".parse().unwrap());
    assert_eq!(rig.send(request).await.status, 504);
    let spans = collector.request().await;
    assert_eq!(names(&spans), ["route_request", "wait_in_queue"]);
    assert!(spans.iter().all(|span| span.failed));
}

#[tokio::test]
async fn what_breaks_or_is_left_has_its_span() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let collector = Collector::of(&rig.scheduler).await;
    engine.does(Does::Break(1));
    rig.stream("hello").await.rest().await;
    let spans = collector.request().await;
    assert!(spans[0].failed && spans[2].failed);
    assert_eq!(
        (&spans[0].said["error.type"], &spans[0].said["http.response.status_code"]),
        (&json!("broken"), &json!(200))
    );
    engine.does(Does::Held);
    engine.let_go(1);
    let mut stream = rig.stream("hello").await;
    stream.event().await.unwrap();
    drop(stream);
    eventually("the engine is told", || engine.open() == 0).await;
    let spans = collector.request().await;
    assert_eq!((&spans[0].said["error.type"], spans[0].failed), (&json!("client_left"), false));
    let request = rig.request("/v1/chat/completions", "{");
    assert_eq!(rig.send(request).await.status, 400);
    let spans = collector.request().await;
    assert_eq!(
        (names(&spans), &spans[0].said["http.response.status_code"]),
        (vec!["route_request"], &json!(400))
    );
    assert!(!spans[0].failed, "it is the client's");
}

#[tokio::test]
async fn who_is_not_recorded_is_not_recorded_further_down() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let send = async |parent: &str| {
        assert_eq!(rig.send(traced(&rig, "hello", false, parent)).await.status, 200);
        (told(&engine, "traceparent"), told(&engine, "tracestate"))
    };
    let kept = |parent: &str| (parent.to_owned(), "vendor=kept".to_owned());
    let unsampled = PARENT.replace("-01", "-00");
    // Without a collector all goes on as it came.
    assert_eq!(send(PARENT).await, kept(PARENT));
    let collector = Collector::start().await;
    collector.follow(&rig.scheduler, Some("parentbased_always_off"));
    assert_eq!(send(&unsampled).await, kept(&unsampled));
    let (parent, state) = send("nonsense").await;
    assert!(parent.ends_with("-00") && !parent.contains(TRACE) && state.is_empty(), "{parent} {state}");
    assert_eq!(collector.close().await, 0);
}

#[tokio::test]
async fn a_prompt_that_is_computed_elsewhere_has_a_part_of_its_own() {
    let (decode, prefill) = (Engine::start("m-0"), Engine::start("p-0"));
    let file = EndpointsFile::new();
    file.write(&Endpoints { models: [("m".to_owned(), listed_with(&[&decode], &[&prefill]))].into() });
    let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..quick() }).await;
    rig.ready("m", 2).await;
    let collector = Collector::of(&rig.scheduler).await;
    assert_eq!(rig.chat(&"long ".repeat(1000)).await.status, 200);
    let spans = collector.request().await;
    assert_eq!(names(&spans), ["route_request", "choose_replica", "compute_prompt", "ask_replica"]);
    assert_eq!(told(&prefill, "traceparent"), spans[2].header());
    assert_eq!(told(&decode, "traceparent"), spans[3].header());
    assert!(spans[2].end <= spans[3].start && spans.iter().all(|span| !span.failed));
}

#[tokio::test]
async fn a_proxy_that_asks_is_told_the_attempt() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let collector = Collector::of(&rig.scheduler).await;
    let picker = Picker::of(&rig.scheduler).await;
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=kept")];
    let mut asking = picker.ask(&Ask { headers: &headers, ..Ask::new(DUPLEX) }).await;
    asking.send_body(br#"{"model":"m","messages":[]}"#, 1000);
    let passed = said(&asking.answer().await);
    let parent = passed.set["traceparent"].to_str().unwrap().to_owned();
    assert!(!passed.removed.iter().any(|name| name.starts_with("trace")), "{:?}", passed.removed);
    asking.answer().await;
    asking.send_response("200");
    asking.answer().await;
    drop(asking);
    let spans = collector.request().await;
    assert_eq!(names(&spans), ["route_request", "choose_replica", "ask_replica"]);
    assert_eq!((spans[0].parent.as_str(), parent), ("b7ad6b7169203331", spans[2].header()));
    assert_eq!(spans[0].said["http.response.status_code"], 200);
    let mut refused = picker.ask(&Ask::new(DUPLEX)).await;
    refused.send_body(br#"{"model":"unknown","messages":[]}"#, 1000);
    refused.answer().await;
    let spans = collector.request().await;
    assert_eq!((names(&spans), spans[0].failed), (vec!["route_request"], false));
    assert_ne!(spans[0].said["http.response.status_code"], 200);
}
