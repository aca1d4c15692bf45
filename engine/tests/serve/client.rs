//! A client of a router, in process: no socket, the same bodies.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use strata_wire::sse::{Event, Splitter};
use tower::ServiceExt;

/// Longest time that anything in a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A response, its body not read.
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: http::HeaderMap,
    body: Body,
    splitter: Splitter,
}

/// Sends a request with these headers.
pub(crate) async fn send(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    let response = tokio::time::timeout(DEADLINE, router.clone().oneshot(request))
        .await
        .expect("no answer in time")
        .unwrap();
    let (parts, body) = response.into_parts();
    Answer { status: parts.status, headers: parts.headers, body, splitter: Splitter::default() }
}

/// Posts JSON.
pub(crate) async fn post(router: &Router, path: &str, body: &Value) -> Answer {
    send(router, "POST", path, &[("content-type", "application/json")], body.to_string()).await
}

/// Gets a path.
pub(crate) async fn get(router: &Router, path: &str) -> Answer {
    send(router, "GET", path, &[], Body::empty()).await
}

impl Answer {
    /// The next chunk of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<bytes::Bytes> {
        let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("no chunk in time")?;
        Some(frame.unwrap().into_data().unwrap())
    }

    /// The next event of a stream; `None` at its end.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.splitter.next_event() {
                return Some(event);
            }
            let chunk = self.chunk().await?;
            self.splitter.push(&chunk);
        }
    }

    /// The next event's JSON, `null` for `[DONE]`.
    pub(crate) async fn json_event(&mut self) -> Option<Value> {
        let event = self.event().await?;
        Some(if event.data == "[DONE]" { Value::Null } else { serde_json::from_str(&event.data).unwrap() })
    }

    /// All events that are left.
    pub(crate) async fn events(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.json_event().await {
            events.push(event);
        }
        events
    }

    /// The whole body as text.
    pub(crate) async fn text(mut self) -> String {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await {
            whole.extend_from_slice(&chunk);
        }
        String::from_utf8(whole).unwrap()
    }

    /// The whole body as JSON; the status must be 200.
    pub(crate) async fn json(self) -> Value {
        let status = self.status;
        let text = self.text().await;
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// The text of a stream's first answer.
pub(crate) fn streamed_text(events: &[Value]) -> String {
    let piece = |e: &Value| {
        let choice = &e["choices"][0];
        choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default().to_owned()
    };
    events.iter().map(piece).collect()
}

/// Waits until something is so.
pub(crate) async fn until(mut so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !so().await {
        assert!(tokio::time::Instant::now() < deadline, "it did not come to be so in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A metric's value, by its name, or the beginning of its line after the name.
pub(crate) async fn metric(router: &Router, name: &str) -> f64 {
    let text = get(router, "/metrics").await.text().await;
    let line = text
        .lines()
        .find(|l| {
            l.starts_with(name) && !l[name.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
