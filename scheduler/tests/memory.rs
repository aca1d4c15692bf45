//! What a scheduler takes in memory for the largest body that it accepts, on its way from the client to
//! the engine: little more than the body's bytes.
//!
//! The scheduler runs in a process of its own, this one again, so that nothing else is counted.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use peak_alloc::PeakAlloc;
use serde_json::json;
use strata_hop::{Bound, Upstream};
use strata_scheduler::{Scheduler, SchedulerOptions, router};
use strata_wire::defaults::MAX_BODY_BYTES;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Names the engine to the process that is the scheduler.
const ENGINE: &str = "STRATA_TEST_ENGINE";
const PATIENCE: Duration = Duration::from_secs(60);
/// What the first prompt takes in the index of what was sent where, which is bounded by itself.
const INDEX: usize = 2 * 1024 * 1024;

/// The scheduler. It says where it listens, and at each line that it gets, what it took since the last.
async fn scheduler(engine: String) {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    let stop = CancellationToken::new();
    let options = SchedulerOptions { replicas: vec![engine], ..SchedulerOptions::default() };
    let scheduler = Scheduler::start(options, stop.clone()).await.unwrap();
    let ready = || {
        let report = scheduler.registry.report(scheduler.now());
        report.models.get("m").is_some_and(|states| states.iter().all(|state| state.ready))
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !ready() {
        assert!(tokio::time::Instant::now() < deadline, "the engine is never ready");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::spawn(bound.serve(router(scheduler), stop, Duration::ZERO));
    println!("\nlistens {url}");
    let mut before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lock().lines().for_each(|line| tell.send(line).unwrap()));
    while told.recv().await.is_some() {
        println!("\ntook {}", HEAP.peak_usage().saturating_sub(before));
        before = HEAP.current_usage();
        HEAP.reset_peak_usage();
    }
}

/// An engine that counts what it gets.
async fn engine(stop: CancellationToken) -> String {
    let count = async |body: Body| {
        let mut body = body;
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        axum::Json(json!({ "bytes": bytes }))
    };
    let models =
        json!({"object": "list", "data": [{"id": "m", "object": "model", "created": 5, "owned_by": "x"}]});
    let router = Router::new()
        .route("/health", get(async || "ok"))
        .route("/metrics", get(async || ""))
        .route("/v1/models", get(async move || axum::Json(models)))
        .route("/v1/chat/completions", post(count))
        .layer(DefaultBodyLimit::disable());
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    tokio::spawn(bound.serve(router, stop, Duration::ZERO));
    url
}

/// The largest body, in chunks of this size, without a length and nowhere in memory.
fn largest(chunk: usize) -> Body {
    let head = br#"{"model":"m","messages":[{"role":"user","content":""#;
    let tail = br#""}]}"#;
    let text = MAX_BODY_BYTES - head.len() - tail.len();
    let unit = Bytes::from(vec![b'x'; chunk]);
    let mut chunks = vec![unit.clone(); text / chunk];
    chunks.push(unit.slice(..text % chunk));
    let all = std::iter::once(Bytes::from_static(head)).chain(chunks).chain([Bytes::from_static(tail)]);
    Body::from_stream(futures::stream::iter(all.map(Ok::<_, std::io::Error>)))
}

/// Waits for a line that begins so, and returns the rest.
fn line(lines: &mut impl Iterator<Item = std::io::Result<String>>, begins: &str) -> String {
    let found = lines.find_map(|line| line.unwrap().strip_prefix(begins).map(str::to_owned));
    found.expect("the scheduler ended")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_body_takes_a_tenth_more_than_its_bytes() {
    if let Ok(engine) = std::env::var(ENGINE) {
        return scheduler(engine).await;
    }
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_largest_body_takes_a_tenth_more_than_its_bytes", "--nocapture"])
        .env(ENGINE, engine(stop).await)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = line(&mut lines, "listens ");
    let client = Upstream::new();
    for (chunk, beside) in [(16 * 1024, INDEX), (16 * 1024, 0), (1000, 0)] {
        let request = Request::post(format!("{url}/v1/chat/completions")).body(largest(chunk)).unwrap();
        let response = client.send(request, PATIENCE).await.unwrap();
        assert_eq!(response.status(), 200);
        let told = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(told, format!(r#"{{"bytes":{MAX_BODY_BYTES}}}"#));
        writeln!(says).unwrap();
        let took: usize = line(&mut lines, "took ").parse().unwrap();
        println!(
            "{MAX_BODY_BYTES} bytes in chunks of {chunk}, at most {took} on the heap: {:.3}",
            took as f64 / MAX_BODY_BYTES as f64
        );
        assert!(took > MAX_BODY_BYTES, "it keeps the body for a second try");
        assert!(took <= MAX_BODY_BYTES + MAX_BODY_BYTES / 10 + beside, "{took}");
    }
    drop(says);
    assert!(child.wait().unwrap().success());
}
