//! A Kubernetes API server that lists and watches pods and ModelDeployments, and fails as it is told.
//! Like the engine it runs on a runtime of its own, so that it can be killed with all its connections.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::Engine;

/// The namespace that the scheduler watches.
pub(crate) const NAMESPACE: &str = "team";
/// The names of the kinds in paths.
pub(crate) const PODS: &str = "pods";
pub(crate) const MODELS: &str = "modeldeployments";
pub(crate) const POOLS: &str = "inferencepools";
pub(crate) const OBJECTIVES: &str = "inferenceobjectives";
/// The pods that are asked for as those of schedulers; only of faults and counts.
pub(crate) const SCHEDULERS: &str = "pods of schedulers";

/// What goes wrong with the next request for a kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// This status, with a Status object as the API server sends it.
    Status(u16),
    /// It is taken and never answered.
    Hang,
    /// It is answered so much later.
    Slow(Duration),
}

/// How a watch ends that the server ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// As when its time is over.
    Clean,
    /// In the middle of a chunk.
    Broken,
}

#[derive(Default)]
struct World {
    version: u64,
    /// Watches from before this version are refused.
    oldest: u64,
    /// Whether they are refused by a status, not by an event.
    refuses_by_status: bool,
    objects: BTreeMap<(String, String), Value>,
    events: Vec<(u64, String, Value)>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// How often each kind was listed and watched.
    lists: BTreeMap<String, usize>,
    watches: BTreeMap<String, usize>,
}

struct Inner {
    world: Mutex<World>,
    /// Told of every change, and of the end of all watches by a number that grows.
    changed: watch::Sender<(u64, u64, End)>,
}

pub(crate) struct ApiServer {
    addr: SocketAddr,
    inner: Arc<Inner>,
    runtime: Option<Runtime>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let world = World { version: 100, ..World::default() };
        let changed = watch::Sender::new((0, 0, End::Clean));
        let inner = Arc::new(Inner { world: Mutex::new(world), changed });
        let (runtime, addr) = serve(&inner, "127.0.0.1:0".parse().unwrap());
        Self { addr, inner, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends it with all its connections. What it knows stays.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Starts it again at the same address.
    pub(crate) fn restart(&mut self) {
        let (runtime, _) = serve(&self.inner, self.addr);
        self.runtime = Some(runtime);
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world.lock().unwrap()
    }

    /// Puts an object there, or another in its place.
    pub(crate) fn put(&self, kind: &str, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object["metadata"]["namespace"] = json!(NAMESPACE);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let before = world.objects.insert((kind.to_owned(), name), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        world.events.push((version, kind.to_owned(), json!({"type": what, "object": object})));
        drop(world);
        self.tell(|_| ());
    }

    /// Changes an object that is there.
    pub(crate) fn change(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (kind.to_owned(), name.to_owned());
        let mut object = self.world().objects[&key].clone();
        change(&mut object);
        self.put(kind, object);
    }

    /// Takes an object away.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let mut object = world.objects.remove(&(kind.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        world.events.push((version, kind.to_owned(), json!({"type": "DELETED", "object": object})));
        drop(world);
        self.tell(|_| ());
    }

    /// Lets the next requests for a kind, lists and watches alike, go wrong.
    pub(crate) fn fail(&self, kind: &str, faults: impl IntoIterator<Item = Fault>) {
        self.world().faults.entry(kind.to_owned()).or_default().extend(faults);
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self, how: End) {
        self.tell(|(_, ended, end)| {
            *ended += 1;
            *end = how;
        });
    }

    /// Forgets the past: a watch from before now is told 410, by an event or by a status.
    pub(crate) fn compact(&self, by_status: bool) {
        let mut world = self.world();
        world.version += 1;
        world.oldest = world.version;
        world.refuses_by_status = by_status;
    }

    pub(crate) fn lists(&self, kind: &str) -> usize {
        self.world().lists.get(kind).copied().unwrap_or(0)
    }

    pub(crate) fn watches(&self, kind: &str) -> usize {
        self.world().watches.get(kind).copied().unwrap_or(0)
    }

    fn tell(&self, change: impl FnOnce(&mut (u64, u64, End))) {
        let version = self.world().version;
        self.inner.changed.send_modify(|told| {
            told.0 = version;
            change(told);
        });
    }
}

/// A ModelDeployment that serves a model under its own name.
pub(crate) fn model(name: &str) -> Value {
    json!({
        "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": name, "creationTimestamp": "2026-11-24T00:00:00Z"},
        "spec": {"model": {"name": name, "uri": "file:///m"}},
    })
}

/// A ready pod of a model, which is this engine.
pub(crate) fn pod(engine: &Engine, model: &str, track: &str) -> Value {
    let (host, port) = engine
        .url()
        .strip_prefix("http://")
        .unwrap()
        .rsplit_once(':')
        .map(|(h, p)| (h.to_owned(), p.parse::<u16>().unwrap()))
        .unwrap();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": engine.name(), "labels": {
            "app.kubernetes.io/component": "engine",
            "strata.dev/model-deployment": model,
            "strata.dev/track": track,
        }},
        "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "podIP": host,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "engine", "started": true}],
        },
    })
}

fn serve(inner: &Arc<Inner>, addr: SocketAddr) -> (Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = super::engine::listen(addr);
    let addr = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/api/v1/namespaces/{namespace}/{kind}", get(read))
        .route("/apis/strata.dev/v1alpha1/namespaces/{namespace}/{kind}", get(read))
        .route("/apis/inference.networking.k8s.io/v1/namespaces/{namespace}/{kind}", get(read))
        .route("/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/{namespace}/{kind}", get(read))
        .with_state(Arc::clone(inner));
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    (runtime, addr)
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("told to say {code}"), "reason": reason, "code": code})
}

fn answer(code: u16, body: &Value) -> Response {
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
        .into_response()
}

async fn read(
    State(inner): State<Arc<Inner>>,
    Path((namespace, kind)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    assert_eq!(namespace, NAMESPACE);
    let fault =
        inner.world.lock().unwrap().faults.get_mut(asked(&kind, &query)).and_then(VecDeque::pop_front);
    match fault {
        Some(Fault::Status(code)) => return answer(code, &status(code, "InternalError")),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Slow(by)) => tokio::time::sleep(by).await,
        None => {}
    }
    if query.contains_key("watch") { watch(&inner, kind, &query) } else { list(&inner, &kind, &query) }
}

/// The kind, for faults and counts.
fn asked<'a>(kind: &'a str, query: &BTreeMap<String, String>) -> &'a str {
    let of_schedulers =
        query.get("labelSelector").is_some_and(|selector| selector.ends_with("component=scheduler"));
    if of_schedulers { SCHEDULERS } else { kind }
}

/// Whether an object has the labels asked for, which are `key=value` with commas between.
fn is_selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let labels = &object["metadata"]["labels"];
    query.get("labelSelector").is_none_or(|selector| {
        selector.split(',').all(|part| part.split_once('=').is_some_and(|(key, value)| labels[key] == value))
    })
}

fn list(inner: &Inner, kind: &str, query: &BTreeMap<String, String>) -> Response {
    let mut world = inner.world.lock().unwrap();
    *world.lists.entry(asked(kind, query).to_owned()).or_default() += 1;
    let of_kind = world.objects.iter().filter(|((k, _), object)| k == kind && is_selected(object, query));
    let items: Vec<&Value> = of_kind.map(|(_, object)| object).collect();
    let metadata = json!({"resourceVersion": world.version.to_string()});
    answer(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn watch(inner: &Arc<Inner>, kind: String, query: &BTreeMap<String, String>) -> Response {
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let seconds: u64 = query["timeoutSeconds"].parse().unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut world = inner.world.lock().unwrap();
    *world.watches.entry(asked(&kind, query).to_owned()).or_default() += 1;
    let expired = status(410, "Expired");
    match from < world.oldest {
        true if world.refuses_by_status => return answer(410, &expired),
        true => return answer(200, &json!({"type": "ERROR", "object": expired})),
        false => {}
    }
    drop(world);
    let changed = inner.changed.subscribe();
    let ended = changed.borrow().1;
    let state = (Arc::clone(inner), changed, from, kind, query.clone());
    let lines = futures::stream::unfold(state, move |(inner, mut changed, from, kind, query)| async move {
        loop {
            let (_, now_ended, how) = *changed.borrow_and_update();
            if now_ended > ended {
                return match how {
                    End::Clean => None,
                    End::Broken => {
                        let broken = std::io::Error::other("told to break");
                        Some((Err(broken), (inner, changed, from, kind, query)))
                    }
                };
            }
            let (version, lines) = {
                let world = inner.world.lock().unwrap();
                let news = world.events.iter().filter(|(version, k, event)| {
                    *version > from && *k == kind && is_selected(&event["object"], &query)
                });
                let lines: Vec<String> = news.map(|(_, _, event)| format!("{event}\n")).collect();
                (world.version, lines.concat())
            };
            if !lines.is_empty() {
                return Some((Ok(Bytes::from(lines)), (inner, changed, version, kind, query)));
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}
