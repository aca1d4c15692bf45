use std::sync::Mutex;
use std::sync::atomic::AtomicU16;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};

use super::*;
use crate::span::{Kind, Status, Value};

/// A collector of the test: it keeps what it gets and answers as it is told.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    status: Arc<AtomicU16>,
}

type Kept = (Arc<Mutex<Vec<(HeaderMap, Bytes)>>>, Arc<AtomicU16>);

async fn receive(State((got, status)): State<Kept>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let status = StatusCode::from_u16(status.load(Ordering::Relaxed)).unwrap();
    got.lock().unwrap().push((headers, body));
    status
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (got, status) = (Arc::default(), Arc::new(AtomicU16::new(200)));
        let kept: Kept = (Arc::clone(&got), Arc::clone(&status));
        let router = Router::new().route("/v1/traces", post(receive)).with_state(kept);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, got, status }
    }

    fn calls(&self) -> usize {
        self.got.lock().unwrap().len()
    }
}

fn config(url: &str, variables: &'static [(&str, &str)]) -> TraceConfig {
    let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    TraceConfig::read(Some(("flag", url)), "test", find).unwrap().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.expect(what);
}

fn end(tracer: &Tracer, name: &'static str) {
    let mut span = tracer.answer(name, None).unwrap();
    span.set("number", Value::Int(-3));
    span.set("measure", Value::Float(0.5));
    span.set("texts", Value::Texts(vec!["a".into(), String::new()]));
    span.end(Status::Error);
}

fn holds(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

#[tokio::test]
async fn spans_come_in_batches_with_the_resource_and_the_headers() {
    let receiver = Receiver::start().await;
    let config = config(
        &receiver.url,
        &[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ],
    );
    let exporter = Exporter::start(config).unwrap();
    let tracer = exporter.tracer().clone();
    for name in ["first", "second", "third"] {
        end(&tracer, name);
    }
    until("all three come", || tracer.exported() == 3).await;
    let got = receiver.got.lock().unwrap().clone();
    assert_eq!(got.len(), 2, "two, and one that had waited long enough");
    let (headers, body) = &got[0];
    assert_eq!(
        (headers["content-type"].as_bytes(), headers["x-key"].as_bytes()),
        (&b"application/x-protobuf"[..], &b"secret"[..])
    );
    assert!(holds(body, b"service.name") && holds(body, b"first") && holds(body, b"second"));
    assert!(holds(&got[1].1, b"third") && !holds(&got[1].1, b"second"));
    exporter.close(Duration::from_secs(5)).await;
    end(&tracer, "late");
    assert_eq!((tracer.exported(), tracer.dropped()), (3, 1));
}

#[tokio::test]
async fn what_is_queued_is_sent_at_the_end() {
    let receiver = Receiver::start().await;
    let exporter = Exporter::start(config(&receiver.url, &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")])).unwrap();
    let tracer = exporter.tracer().clone();
    end(&tracer, "waits");
    exporter.close(Duration::from_secs(5)).await;
    assert_eq!((receiver.calls(), tracer.exported(), tracer.dropped()), (1, 1, 0));
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_waited_and_the_rest_is_counted() {
    let receiver = Receiver::start().await;
    receiver.status.store(503, Ordering::Relaxed);
    let config =
        config(&receiver.url, &[("OTEL_BSP_MAX_QUEUE_SIZE", "4"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")]);
    let exporter = Exporter::start(config).unwrap();
    let tracer = exporter.tracer().clone();
    end(&tracer, "tried");
    until("it is tried", || receiver.calls() == 1).await;
    let begun = Instant::now();
    for _ in 0..10 {
        end(&tracer, "more");
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "nobody waits for the collector");
    assert_eq!(tracer.dropped(), 6, "four wait");
    receiver.status.store(200, Ordering::Relaxed);
    until("the others come", || tracer.exported() == 5).await;
    exporter.close(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_refusal_that_will_not_pass_is_not_tried_again() {
    let receiver = Receiver::start().await;
    receiver.status.store(400, Ordering::Relaxed);
    let exporter = Exporter::start(config(&receiver.url, &[("OTEL_BSP_SCHEDULE_DELAY", "1")])).unwrap();
    let tracer = exporter.tracer().clone();
    end(&tracer, "bad");
    until("it is dropped", || tracer.dropped() == 1).await;
    assert_eq!(receiver.calls(), 1);
    exporter.close(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_end_does_not_wait_for_a_collector_that_is_away() {
    // Nobody listens on a port that was just given back.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let exporter =
        Exporter::start(config(&format!("http://{port}"), &[("OTEL_BSP_SCHEDULE_DELAY", "1")])).unwrap();
    let tracer = exporter.tracer().clone();
    end(&tracer, "lost");
    let begun = Instant::now();
    exporter.close(Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((tracer.exported(), tracer.dropped()), (0, 1));
}

#[tokio::test]
async fn a_callers_decision_and_trace_are_taken_over() {
    let exporter = Exporter::start(config("http://127.0.0.1:9", &[])).unwrap();
    let tracer = exporter.tracer();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let span = tracer.answer("s", Some(parent)).unwrap();
    assert_eq!(span.context().trace, TraceContext::parse(parent).unwrap().trace);
    assert_ne!(span.context().span, TraceContext::parse(parent).unwrap().span);
    assert!(tracer.answer("s", Some(&parent.replace("-01", "-00"))).is_none());
    assert!(tracer.answer("s", Some("nonsense")).is_some(), "a trace of its own");
}

#[tokio::test]
async fn a_part_of_a_span_lies_in_its_trace_and_its_time() {
    let (queue, mut spans) = mpsc::channel(8);
    let shared = |queue| Shared {
        sampler: Sampler::default(),
        queue,
        exported: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
    };
    let tracer = Tracer(Arc::new(shared(queue)));
    let arrived = std::time::Instant::now();
    let whole = tracer.answer("whole", None).unwrap();
    let part = whole.child("part", Kind::Client).unwrap().since(arrived);
    let over = std::time::Instant::now();
    part.end_at(over, Status::Unset);
    let again = whole.child("again", Kind::Internal).unwrap();
    let context = whole.context();
    again.end(Status::Error);
    whole.since(arrived).end(Status::Unset);
    let mut next = || spans.try_recv().unwrap();
    let (part, again, whole) = (next(), next(), next());
    assert_eq!((part.name, part.kind, part.parent), ("part", Kind::Client, Some(context.span)));
    assert_eq!((again.name, again.kind, again.parent), ("again", Kind::Internal, Some(context.span)));
    assert!([&part, &again].iter().all(|span| span.context.trace == context.trace && span.context.sampled));
    assert!(part.context.span != again.context.span && part.context.span != context.span);
    assert_eq!(part.end.duration_since(part.start).unwrap(), over - arrived, "by the clock that never jumps");
    assert!(whole.end >= part.end && whole.end >= again.end);
}

#[tokio::test]
async fn who_does_not_record_says_so_to_those_that_it_calls() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let receiver = Receiver::start().await;
    let exporter = Exporter::start(config(&receiver.url, &[("OTEL_TRACES_SAMPLER", "always_off")])).unwrap();
    let tracer = exporter.tracer();
    assert!(tracer.answer("a", Some(PARENT)).is_none());
    let told = |parent| tracer.decline(parent).map(|context| context.header());
    assert_eq!(told(Some(PARENT)), Some(PARENT.replace("-01", "-00")));
    let unsampled = PARENT.replace("-01", "-00");
    assert_eq!(told(Some(&unsampled)), None, "it has said so itself");
    assert!(told(None).unwrap().ends_with("-00"));
    assert_ne!(told(None), told(Some("nonsense")));
}
