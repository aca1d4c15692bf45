//! A Kubernetes API server as far as listing and watching go, that fails as the test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use strata_hop::{Body, Bound};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One change: its version, what it is of, and the watch event.
#[derive(Clone)]
struct Change {
    version: u64,
    plural: String,
    kind: &'static str,
    object: Value,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<(String, String, String), Value>,
    changes: Vec<Change>,
    version: u64,
    /// Changes up to this version are forgotten.
    compacted: u64,
    requests: Vec<String>,
    /// What every request gets instead of an answer.
    refusal: Option<u16>,
    /// Lists are not answered.
    hang: bool,
    /// Watches end as soon as they have begun.
    end_watches: bool,
    uids: u64,
}

/// The server. Cloning shares it.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    dropped: watch::Sender<u64>,
    addr: std::net::SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

pub fn plural(kind: &str) -> &'static str {
    match kind {
        "Tenant" => "tenants",
        "QuotaPolicy" => "quotapolicies",
        "ModelDeployment" => "modeldeployments",
        "Secret" => "secrets",
        "EndpointSlice" => "endpointslices",
        other => panic!("no such kind: {other}"),
    }
}

impl ApiServer {
    pub async fn start() -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            inner: Arc::default(),
            changed: watch::Sender::new(0),
            dropped: watch::Sender::new(0),
            addr: bound.addr(),
            stop: Arc::default(),
        };
        server.serve(bound);
        server
    }

    fn serve(&self, bound: Bound) {
        let stop = CancellationToken::new();
        *self.stop.lock().unwrap() = stop.clone();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(bound.serve(router, stop, Duration::ZERO));
    }

    /// A kubeconfig for this server.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.addr)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string()
    }

    fn change(&self, kind: &'static str, mut object: Value) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        let plural = plural(object["kind"].as_str().unwrap()).to_owned();
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (plural.clone(), text("/metadata/namespace"), text("/metadata/name"));
        let old = inner.objects.get(&key).cloned();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let uid = old.as_ref().map(|o| o["metadata"]["uid"].clone());
        object["metadata"]["uid"] = uid.unwrap_or_else(|| {
            inner.uids += 1;
            json!(format!("uid-{}", inner.uids))
        });
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] = json!("2026-11-01T00:00:00Z");
        }
        if object.get("spec").is_some() {
            let before = old.as_ref().map_or(0, |o| o["metadata"]["generation"].as_i64().unwrap());
            let same = old.as_ref().is_some_and(|o| o["spec"] == object["spec"]);
            object["metadata"]["generation"] = json!(if same { before } else { before + 1 });
        }
        let kind = match (kind, &old) {
            ("DELETED", _) => {
                inner.objects.remove(&key);
                kind
            }
            (_, old) => {
                let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
                inner.objects.insert(key, object.clone());
                kind
            }
        };
        inner.changes.push(Change { version, plural, kind, object });
        drop(inner);
        self.changed.send_replace(version);
    }

    pub fn apply(&self, object: Value) {
        self.change("APPLIED", object);
    }

    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = (plural(kind).to_owned(), namespace.to_owned(), name.to_owned());
        let object = self.inner.lock().unwrap().objects[&key].clone();
        self.change("DELETED", object);
    }

    /// Every request so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.inner.lock().unwrap().requests.clone()
    }

    pub fn refuse(&self, status: Option<u16>) {
        self.inner.lock().unwrap().refusal = status;
    }

    pub fn hang(&self, hang: bool) {
        self.inner.lock().unwrap().hang = hang;
    }

    pub fn end_watches(&self, end: bool) {
        self.inner.lock().unwrap().end_watches = end;
    }

    /// Breaks every watch that is open.
    pub fn drop_watches(&self) {
        self.dropped.send_modify(|n| *n += 1);
    }

    /// Forgets what has changed so far: who asks for it gets 410.
    pub fn compact(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        inner.compacted = inner.version;
        inner.changes.clear();
    }

    /// Stops listening, and breaks what is open.
    pub fn go_down(&self) {
        self.stop.lock().unwrap().cancel();
        self.drop_watches();
    }

    /// Listens again where it did.
    pub async fn come_back(&self) {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        let bound = loop {
            match Bound::bind(&self.addr.to_string()).await {
                Ok(bound) => break bound,
                Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        self.serve(bound);
    }

    fn since(
        &self,
        plural: &str,
        namespace: Option<&str>,
        labels: &str,
        from: u64,
    ) -> Result<Vec<Change>, ()> {
        let inner = self.inner.lock().unwrap();
        if from < inner.compacted {
            return Err(());
        }
        let wanted = |c: &&Change| {
            c.version > from
                && c.plural == plural
                && is_in(&c.object, namespace)
                && has_labels(&c.object, labels)
        };
        Ok(inner.changes.iter().filter(wanted).cloned().collect())
    }
}

fn is_in(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|n| object["metadata"]["namespace"] == n)
}

fn has_labels(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|s| !s.is_empty()).all(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        object["metadata"]["labels"][name] == value
    })
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": "as the test says", "reason": "Fault", "code": code})
}

async fn answer(
    State(server): State<ApiServer>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    let (refusal, hang, ends) = {
        let mut inner = server.inner.lock().unwrap();
        inner.requests.push(format!("{} {}", request.method(), request.uri()));
        (inner.refusal, inner.hang, inner.end_watches)
    };
    if let Some(code) = refusal {
        return (StatusCode::from_u16(code).unwrap(), axum::Json(failure(code))).into_response();
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let (namespace, plural) = match rest {
        ["namespaces", namespace, plural] => (Some((*namespace).to_owned()), (*plural).to_owned()),
        [plural] => (None, (*plural).to_owned()),
        other => panic!("not asked for by any list or watch: {other:?}"),
    };
    let labels = query.get("labelSelector").cloned().unwrap_or_default();
    if query.get("watch").is_some_and(|w| w == "true") {
        let from = query["resourceVersion"].parse().unwrap();
        return if ends {
            Body::empty().into_response()
        } else {
            events(server, plural, namespace, labels, from)
        };
    }
    if hang {
        std::future::pending::<()>().await;
    }
    let inner = server.inner.lock().unwrap();
    let mut items: Vec<&Value> = inner
        .objects
        .iter()
        .filter(|((p, _, _), o)| *p == plural && is_in(o, namespace.as_deref()) && has_labels(o, &labels))
        .map(|(_, object)| object)
        .collect();
    let start: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let more = items.len() > start.saturating_add(limit);
    items = items.into_iter().skip(start).take(limit).collect();
    let next = if more { (start + limit).to_string() } else { String::new() };
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "items": items,
                      "metadata": {"resourceVersion": inner.version.to_string(), "continue": next}}))
    .into_response()
}

fn events(
    server: ApiServer,
    plural: String,
    namespace: Option<String>,
    labels: String,
    from: u64,
) -> Response {
    let (changed, dropped) = (server.changed.subscribe(), server.dropped.subscribe());
    let state = (server, changed, dropped, from);
    let line = |value: &Value| Bytes::from(format!("{value}\n"));
    let stream = futures::stream::unfold(Some(state), move |state| {
        let (plural, namespace, labels) = (plural.clone(), namespace.clone(), labels.clone());
        async move {
            let (server, mut changed, mut dropped, from) = state?;
            loop {
                changed.mark_unchanged();
                let Ok(new) = server.since(&plural, namespace.as_deref(), &labels, from) else {
                    let gone = json!({"type": "ERROR", "object": failure(410)});
                    return Some((Ok::<_, std::io::Error>(line(&gone)), None));
                };
                if let Some(last) = new.last() {
                    let last = last.version;
                    let lines: Vec<String> = new
                        .iter()
                        .map(|c| format!("{}\n", json!({"type": c.kind, "object": c.object})))
                        .collect();
                    return Some((Ok(lines.concat().into()), Some((server, changed, dropped, last))));
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = dropped.changed() => return None,
                }
            }
        }
    });
    Body::from_stream(stream).into_response()
}
