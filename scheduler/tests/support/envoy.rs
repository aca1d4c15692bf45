//! A real Envoy, before a picker. Its binary is named by `STRATA_TEST_ENVOY`.

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

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
}

impl Filter {
    pub(crate) const fn new(name: &'static str, request_body_mode: &'static str) -> Self {
        Self { name, request_body_mode, response_body_mode: "NONE", early: false, by_metadata: false }
    }
}

/// A running Envoy with a listener for each filter.
pub(crate) struct Envoy {
    child: Mutex<Child>,
    listeners: Vec<(&'static str, u16)>,
    _config: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Envoy {
    /// Starts it before this picker. `None`, and it says so, where there is no Envoy. `subset` are the
    /// endpoints that it allows.
    pub(crate) async fn before(picker: &Picker, filters: &[Filter], subset: Option<&[&str]>) -> Option<Self> {
        let binary = std::env::var("STRATA_TEST_ENVOY").unwrap_or_default();
        if !std::path::Path::new(&binary).is_file() {
            eprintln!("skipped: STRATA_TEST_ENVOY names no Envoy");
            return None;
        }
        let listeners: Vec<_> = filters.iter().map(|filter| (filter.name, free_port())).collect();
        let config = json!({"static_resources": {
            "listeners": filters
                .iter()
                .zip(&listeners)
                .map(|(filter, (_, port))| listener(filter, *port, subset))
                .collect::<Vec<_>>(),
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
            .stdout(Stdio::null())
            .spawn()
            .expect("STRATA_TEST_ENVOY names a program");
        let envoy = Self { child: Mutex::new(child), listeners, _config: folder };
        envoy.listens().await;
        Some(envoy)
    }

    async fn listens(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for (name, port) in &self.listeners {
            while tokio::net::TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
                let ended = self.child.lock().unwrap().try_wait().unwrap();
                if let Some(status) = ended {
                    panic!("Envoy stopped: {status}; it says why above");
                }
                assert!(tokio::time::Instant::now() < deadline, "Envoy never listened for {name}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }

    /// The base URL of the listener with this filter.
    pub(crate) fn url(&self, name: &str) -> String {
        let found = self.listeners.iter().find(|(listener, _)| *listener == name);
        format!("http://127.0.0.1:{}", found.expect("a filter of this name").1)
    }

    /// A request for the listener with this filter.
    pub(crate) fn request(&self, name: &str, rig: &Rig, path: &str, body: Vec<u8>) -> Request<Body> {
        let mut request = rig.request(path, body);
        *request.uri_mut() = format!("{}{path}", self.url(name)).parse().unwrap();
        request
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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

fn listener(filter: &Filter, port: u16, subset: Option<&[&str]>) -> Value {
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
    let cluster = if filter.by_metadata { "by-metadata" } else { "by-header" };
    json!({
        "name": filter.name,
        "address": address(port),
        // A body that waits for its replica must fit, where the proxy keeps it: Envoy's default is 1 MiB.
        "per_connection_buffer_limit_bytes": if duplex { 1 } else { 32 } * 1024 * 1024,
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": filter.name,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}},
                ]}]},
                "http_filters": filters,
            },
        }]}],
    })
}
