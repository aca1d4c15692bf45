//! A real Envoy, before a picker. Its binary is named by `STRATA_TEST_ENVOY`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use strata_hop::client::Upstream;

use super::picker::Picker;
use super::{PATIENCE, Rig};

/// How one listener's filter is set up.
#[derive(Clone, Copy)]
pub(crate) struct Filter {
    pub(crate) name: &'static str,
    pub(crate) request_body_mode: &'static str,
    pub(crate) response_body_mode: &'static str,
    /// `send_body_without_waiting_for_header_response`.
    pub(crate) early: bool,
    /// Whether Envoy reads the endpoint in the metadata, and not in the header.
    pub(crate) by_metadata: bool,
    /// Whether it reads a list of them, among those that it knows, and tries the next where one fails.
    pub(crate) falls_back: bool,
}

impl Filter {
    pub(crate) const fn new(name: &'static str, request_body_mode: &'static str) -> Self {
        Self {
            name,
            request_body_mode,
            response_body_mode: "NONE",
            early: false,
            by_metadata: false,
            falls_back: false,
        }
    }
}

/// A running Envoy with a listener for each filter.
pub(crate) struct Envoy {
    child: Child,
    /// Where each listens, by its filter's name.
    listeners: Vec<(String, u64)>,
    folder: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    /// Starts it before this picker. `None`, and it says so, where there is no Envoy. `subset` are the
    /// endpoints that it allows.
    pub(crate) async fn before(picker: &Picker, filters: &[Filter], subset: Option<&[&str]>) -> Option<Self> {
        Self::knowing(&[], picker, filters, subset).await
    }

    /// The same, which knows that there are engines at these ports.
    pub(crate) async fn knowing(
        engines: &[u16],
        picker: &Picker,
        filters: &[Filter],
        subset: Option<&[&str]>,
    ) -> Option<Self> {
        let binary = std::env::var("STRATA_TEST_ENVOY").unwrap_or_default();
        if !std::path::Path::new(&binary).is_file() {
            eprintln!("skipped: STRATA_TEST_ENVOY names no Envoy");
            return None;
        }
        let config = json!({"admin": {"address": address(0)}, "static_resources": {
            "listeners": filters.iter().map(|filter| listener(filter, subset)).collect::<Vec<_>>(),
            "clusters": [
                {
                    "name": "picker", "type": "STATIC", "connect_timeout": "5s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        },
                    },
                    "load_assignment": {"cluster_name": "picker", "endpoints": [{"lb_endpoints": [
                        {"endpoint": {"address": address(picker.port)}},
                    ]}]},
                },
                replicas("by-header", &json!({
                    "use_http_header": true,
                    "http_header_name": "x-gateway-destination-endpoint",
                })),
                replicas("by-metadata", &json!({"metadata_key": {
                    "key": "envoy.lb",
                    "path": [{"key": "x-gateway-destination-endpoint"}],
                }})),
                known("listed-by-header", engines, &json!({"header": "x-gateway-destination-endpoint"})),
                known("listed-by-metadata", engines, &json!({"metadata": {
                    "key": "envoy.lb",
                    "path": [{"key": "x-gateway-destination-endpoint"}],
                }})),
            ],
        }});
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("envoy.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let child = Command::new(binary)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level"])
            .arg(std::env::var("STRATA_TEST_ENVOY_LOG").unwrap_or_else(|_| "error".to_owned()))
            .arg("--config-path")
            .arg(&path)
            .arg("--admin-address-path")
            .arg(folder.path().join("admin"))
            .stdout(Stdio::null())
            .spawn()
            .expect("STRATA_TEST_ENVOY names a program");
        let mut envoy = Self { child, listeners: Vec::new(), folder };
        envoy.listens(filters.len()).await;
        Some(envoy)
    }

    /// Waits until it listens for this many filters, on ports that it chose itself: one that is looked
    /// for here could be another's by the time Envoy binds it.
    async fn listens(&mut self, filters: usize) {
        let admin = self.folder.path().join("admin");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.listeners.len() < filters {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("Envoy stopped: {status}; it says why above");
            }
            assert!(tokio::time::Instant::now() < deadline, "Envoy never listened");
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.listeners = listening(&admin).await.unwrap_or_default();
        }
    }

    /// The base URL of the listener with this filter.
    pub(crate) fn url(&self, name: &str) -> String {
        let found = self.listeners.iter().find(|(listener, _)| listener == name);
        format!("http://127.0.0.1:{}", found.expect("a filter of this name").1)
    }

    /// A request for the listener with this filter.
    pub(crate) fn request(&self, name: &str, rig: &Rig, path: &str, body: Vec<u8>) -> Request<Body> {
        let mut request = rig.request(path, body);
        *request.uri_mut() = format!("{}{path}", self.url(name)).parse().unwrap();
        request
    }
}

/// The listeners that have an address, asked for at the one in this file. `None` until Envoy has written it
/// and answers there.
async fn listening(admin: &Path) -> Option<Vec<(String, u64)>> {
    let address = std::fs::read_to_string(admin).ok()?;
    let request = Request::get(format!("http://{}/listeners?format=json", address.trim()));
    let request = request.body(Body::empty()).ok()?;
    let reply = Upstream::new().send(request, Duration::from_secs(5)).await.ok()?;
    let body: Value = serde_json::from_slice(&reply.into_body().collect().await.ok()?.to_bytes()).ok()?;
    let each = body["listener_statuses"].as_array()?.iter().map(|listener| {
        let port = listener["local_address"]["socket_address"]["port_value"].as_u64()?;
        Some((listener["name"].as_str()?.to_owned(), port)).filter(|_| port != 0)
    });
    each.collect()
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn replicas(name: &str, read: &Value) -> Value {
    json!({
        "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
        "original_dst_lb_config": read,
    })
}

/// A cluster of these, of which each request names those that it may go to.
fn known(name: &str, engines: &[u16], read: &Value) -> Value {
    let policy = |name: &str, config: Value| {
        json!({"policies": [{"typed_extension_config": {
            "name": format!("envoy.load_balancing_policies.{name}"),
            "typed_config": config,
        }}]})
    };
    let of = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let otherwise = policy("round_robin", json!({"@type": format!("{of}.round_robin.v3.RoundRobin")}));
    let endpoints: Vec<Value> =
        engines.iter().map(|port| json!({"endpoint": {"address": address(*port)}})).collect();
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_balancing_policy": policy("override_host", json!({
            "@type": format!("{of}.override_host.v3.OverrideHost"),
            "override_host_sources": [read],
            "fallback_policy": otherwise,
        })),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

fn listener(filter: &Filter, subset: Option<&[&str]>) -> Value {
    let duplex = filter.request_body_mode == "FULL_DUPLEX_STREAMED";
    let picks = json!({
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
            "message_timeout": "30s",
            "send_body_without_waiting_for_header_response": filter.early,
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": filter.request_body_mode,
                "request_trailer_mode": if duplex { "SEND" } else { "SKIP" },
                "response_header_mode": "SEND",
                "response_body_mode": filter.response_body_mode,
                // Keeps the stream open until the response has ended.
                "response_trailer_mode": "SEND",
            },
            "metadata_options": {
                "forwarding_namespaces": {"untyped": ["envoy.lb.subset_hint"]},
                "receiving_namespaces": {"untyped": ["envoy.lb"]},
            },
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let hint = subset.map(|endpoints| {
        json!({
            "name": "envoy.filters.http.set_metadata",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": [{
                    "metadata_namespace": "envoy.lb.subset_hint",
                    "value": {"x-gateway-destination-endpoint-subset": endpoints},
                }],
            },
        })
    });
    let filters: Vec<Value> = hint.into_iter().chain([picks, router]).collect();
    let cluster = match (filter.falls_back, filter.by_metadata) {
        (false, false) => "by-header",
        (false, true) => "by-metadata",
        (true, false) => "listed-by-header",
        (true, true) => "listed-by-metadata",
    };
    let mut route = json!({"cluster": cluster, "timeout": "0s"});
    if filter.falls_back {
        route["retry_policy"] = json!({
            "retry_on": "connect-failure,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": 2,
        });
    }
    json!({
        "name": filter.name,
        "address": address(0),
        // A body that waits for its replica must fit, where the proxy keeps it: Envoy's default is 1 MiB.
        "per_connection_buffer_limit_bytes": if duplex { 1 } else { 32 } * 1024 * 1024,
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": filter.name,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": route},
                ]}]},
                "http_filters": filters,
            },
        }]}],
    })
}
