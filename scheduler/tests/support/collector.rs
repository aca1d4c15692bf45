//! A collector of spans, and what it got by OTLP over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use prost::{Message, Oneof};
use serde_json::Value;
use strata_scheduler::Scheduler;
use strata_trace::{Exporter, TraceConfig};

use super::eventually;

#[derive(Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resource>,
}

#[derive(Message)]
struct Resource {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scope>,
}

#[derive(Message)]
struct Scope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Sent>,
}

#[derive(Message)]
struct Sent {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Pair>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Message)]
struct Any {
    #[prost(oneof = "Kind", tags = "1, 3, 4")]
    kind: Option<Kind>,
}

#[derive(Oneof)]
enum Kind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Float(f64),
}

/// A span.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for none.
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: i32,
    /// In nanoseconds since 1970.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) failed: bool,
    pub(crate) said: BTreeMap<String, Value>,
}

impl Got {
    /// As a `traceparent` names it.
    pub(crate) fn header(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn read(body: &[u8]) -> Vec<Got> {
    let export = Export::decode(body).unwrap();
    let sent = export.resources.into_iter().flat_map(|r| r.scopes).flat_map(|scope| scope.spans);
    let value = |pair: Pair| {
        let value = match pair.value.and_then(|any| any.kind) {
            Some(Kind::Text(text)) => text.into(),
            Some(Kind::Int(number)) => number.into(),
            Some(Kind::Float(number)) => number.into(),
            None => Value::Null,
        };
        (pair.key, value)
    };
    sent.map(|sent| Got {
        trace: hex(&sent.trace),
        id: hex(&sent.id),
        parent: hex(&sent.parent),
        name: sent.name,
        kind: sent.kind,
        start: sent.start,
        end: sent.end,
        failed: sent.status.is_some_and(|status| status.code == 2),
        said: sent.attributes.into_iter().map(value).collect(),
    })
    .collect()
}

/// A collector on a free port.
pub(crate) struct Collector {
    url: String,
    got: Arc<Mutex<Vec<Got>>>,
    exporter: Mutex<Option<Exporter>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let kept = Arc::clone(&got);
        let take = move |body: Bytes| {
            kept.lock().unwrap().extend(read(&body));
            async {}
        };
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, got, exporter: Mutex::default() }
    }

    /// The same, which gets what this scheduler records.
    pub(crate) async fn of(scheduler: &Scheduler) -> Self {
        let collector = Self::start().await;
        collector.follow(scheduler, None);
        collector
    }

    /// Gets what this scheduler records, of the traces that this sampler takes.
    pub(crate) fn follow(&self, scheduler: &Scheduler, sampler: Option<&str>) {
        let variable = |name: &str| match name {
            "OTEL_BSP_SCHEDULE_DELAY" => Some("10".to_owned()),
            "OTEL_TRACES_SAMPLER" => sampler.map(str::to_owned),
            _ => None,
        };
        let config = TraceConfig::read(Some(("flag", &self.url)), "test", variable).unwrap().unwrap();
        let exporter = Exporter::start(config).unwrap();
        scheduler.trace(exporter.tracer().clone());
        *self.exporter.lock().unwrap() = Some(exporter);
    }

    /// The spans of the first request whose own has come, that first, then its parts as they began.
    pub(crate) async fn request(&self) -> Vec<Got> {
        let is_whole = |got: &Got| got.name == "route_request";
        eventually("a request's span", || self.got.lock().unwrap().iter().any(is_whole)).await;
        let mut all = self.got.lock().unwrap();
        let whole = all.iter().find(|got| is_whole(got)).unwrap().clone();
        let (mut parts, others) = all.drain(..).partition::<Vec<_>, _>(|got| got.parent == whole.id);
        *all = others.into_iter().filter(|got| got.id != whole.id).collect();
        parts.sort_by_key(|part| part.start);
        parts.insert(0, whole);
        parts
    }

    /// Ends, and returns how many spans nobody asked for.
    pub(crate) async fn close(self) -> usize {
        let exporter = self.exporter.lock().unwrap().take();
        if let Some(exporter) = exporter {
            exporter.close(Duration::from_secs(10)).await;
        }
        self.got.lock().unwrap().len()
    }
}
