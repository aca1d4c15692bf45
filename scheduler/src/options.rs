//! What a scheduler can be told.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_hop::{HopToken, ListenError, Mtls};
use strata_trace::{ConfigError, TraceConfig};
use strata_wire::defaults;
use strata_wire::replicas::KvEvents;

use crate::pick::Policy;
use crate::pick::budget::BURST;

/// Most endpoints that a proxy is told.
const MAX_ENDPOINTS: usize = 3;

/// The options of a scheduler. Times are in milliseconds when written as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerOptions {
    /// Where to listen, such as `127.0.0.1:8082`; port 0 takes a free one.
    pub listen: String,
    /// Where to listen for proxies that ask which replica a request should go to, over gRPC
    /// ([`crate::extproc`]); nowhere when absent.
    pub extproc_listen: Option<String>,
    /// Endpoints that such a proxy is told for each request, 1 to 3: the replica that was picked, then those
    /// that it may try if that fails. Only for proxies that read a list: a plain `ORIGINAL_DST` cluster of
    /// Envoy's does not.
    pub extproc_endpoints: usize,
    /// Whether such a proxy is told which replica is to compute a long prompt, in the header
    /// [`crate::extproc::PREFILLER`]. Only where beside each replica that answers there is a sidecar that
    /// reads it, as llm-d's does.
    pub extproc_prefill: bool,
    /// Base URLs of replicas that are always there. Each is asked which models it serves. Either this,
    /// or [`SchedulerOptions::endpoints`], or [`SchedulerOptions::kubernetes`].
    pub replicas: Vec<String>,
    /// The port where those of [`SchedulerOptions::replicas`] that are vLLMs publish what their KV cache holds
    /// (`--kv-events-config`). One that has our own stream of events is followed by that.
    pub vllm_events_port: Option<u16>,
    /// The port where they publish it again. Without it, what is missed means to begin anew.
    pub vllm_replay_port: Option<u16>,
    /// A file that lists models and replicas (`strata_wire::replicas::Endpoints` as JSON) and is
    /// followed as it changes.
    pub endpoints: Option<PathBuf>,
    /// The cluster whose pods are the replicas.
    pub kubernetes: Option<Kubernetes>,
    /// Base URLs of other schedulers of the same replicas: the bounds of what waits are divided by those that
    /// are there. On Kubernetes they are found without.
    pub peers: Vec<String>,
    /// How to choose among replicas of a model that says nothing of it.
    pub policy: Policy,
    /// Callers must show this token, and engines are shown it. Never written or shown.
    #[serde(skip)]
    pub hop_token: Option<HopToken>,
    /// The certificates of this process: with them it speaks TLS alone, callers must show theirs, and
    /// replicas whose address is https are shown its own. One whose address is http (an image that is
    /// not ours) is called plainly.
    #[serde(skip)]
    pub mtls: Option<Mtls>,
    /// Whether an answer that breaks off after its first words is gone on with at another replica, where that is
    /// exact.
    pub continuation: bool,
    /// Where spans of requests are sent; they are not recorded when absent.
    #[serde(skip)]
    pub traces: Option<TraceConfig>,
    /// How often to read a replica's metrics.
    #[serde(with = "millis")]
    pub scrape_interval: Duration,
    /// Longest time to wait for a replica's metrics.
    #[serde(with = "millis")]
    pub scrape_timeout: Duration,
    /// Requests held back for each replica of a model while all are full or unready. This bound and those of
    /// bytes are of all schedulers together: each holds its share.
    pub queue_per_replica: usize,
    /// Bytes of the bodies of a model's requests that are held back, all together.
    pub queue_bytes: usize,
    /// The same of all models: many may be asleep at once.
    pub queue_bytes_all: usize,
    /// Longest time that a request is held back while there are replicas.
    #[serde(with = "millis")]
    pub queue_timeout: Duration,
    /// The same of one whose priority is below zero, while no other waits: a place may be about to come free.
    #[serde(with = "millis")]
    pub shed_after: Duration,
    /// Time over which a replica that is new beside others gets its full share of requests.
    #[serde(with = "millis")]
    pub slow_start: Duration,
    /// Longest time that a request is held back for a model that has no replica: one that is asleep, or
    /// whose first replica starts.
    #[serde(with = "millis")]
    pub wake_timeout: Duration,
    /// Time until the first byte of a response.
    #[serde(with = "millis")]
    pub first_byte_timeout: Duration,
    /// Longest silence within a response.
    #[serde(with = "millis")]
    pub idle_timeout: Duration,
    /// Requests that may be sent a second time in a burst, beside a share of all requests.
    pub retry_burst: u32,
    /// The time to the first token that requests aim at, for models that do not say.
    #[serde(with = "millis")]
    pub first_token_objective: Duration,
    /// The time between two tokens that they aim at, which counts as full latency in scores.
    #[serde(with = "millis")]
    pub inter_token_objective: Duration,
    /// Time after the order to stop in which it says that it is not ready and still takes requests, so
    /// that whoever balances over several schedulers leaves it out before its door is closed.
    #[serde(with = "millis")]
    pub leave_after: Duration,
    /// Time for open requests to finish after the order to stop.
    #[serde(with = "millis")]
    pub drain_grace: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            extproc_listen: None,
            extproc_endpoints: 1,
            extproc_prefill: false,
            replicas: Vec::new(),
            vllm_events_port: None,
            vllm_replay_port: None,
            endpoints: None,
            kubernetes: None,
            peers: Vec::new(),
            policy: Policy::default(),
            hop_token: None,
            mtls: None,
            continuation: false,
            traces: None,
            scrape_interval: defaults::SCRAPE_INTERVAL,
            scrape_timeout: Duration::from_secs(1),
            queue_per_replica: defaults::QUEUE_PER_REPLICA,
            queue_bytes: 8 * defaults::MAX_BODY_BYTES,
            queue_bytes_all: 16 * defaults::MAX_BODY_BYTES,
            queue_timeout: defaults::QUEUE_TIMEOUT,
            shed_after: defaults::SHED_AFTER,
            slow_start: defaults::SLOW_START,
            wake_timeout: defaults::WAKE_TIMEOUT,
            first_byte_timeout: defaults::FIRST_BYTE_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            retry_burst: BURST as u32,
            first_token_objective: Duration::from_secs(1),
            inter_token_objective: Duration::from_millis(100),
            leave_after: Duration::ZERO,
            drain_grace: defaults::DRAIN_GRACE,
        }
    }
}

/// Which pods of which cluster are the replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// The namespace of pods and models; the kubeconfig's, or the pod's own, when absent.
    pub namespace: Option<String>,
    /// Base URL of an API server that asks for no credentials, such as `kubectl proxy`. When absent, the
    /// cluster of the kubeconfig, or the pod's own.
    pub server: Option<String>,
    /// The InferencePool of the Gateway API whose pods are the replicas, each of the models that it says
    /// it serves. When absent, the replicas are the engine pods of the namespace's ModelDeployments.
    pub inference_pool: Option<String>,
    /// The pod that this process is in, if it is in one: the other schedulers' pods are told from it.
    pub pod: Option<String>,
    /// How long one watch lasts, in whole seconds. It bounds how long a connection that broke without a
    /// sign goes unnoticed.
    #[serde(with = "millis")]
    pub watch: Duration,
}

impl Default for Kubernetes {
    fn default() -> Self {
        let watch = Duration::from_secs(60);
        Self { namespace: None, server: None, inference_pool: None, pod: None, watch }
    }
}

/// Why a scheduler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The options contradict each other or name something that cannot be.
    #[error("{0}")]
    Options(String),
    /// Its certificate authorities for a collector of spans cannot be read.
    #[error(transparent)]
    Traces(#[from] ConfigError),
    /// Its address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It does not know where the cluster is.
    #[error("no Kubernetes cluster to read models from: {0}; run it in a pod, or set KUBECONFIG")]
    NoCluster(String),
}

impl SchedulerOptions {
    /// Checks what can be checked before anything starts. Returns the replicas' base URLs, without a
    /// slash at the end.
    pub fn check(&self) -> Result<Vec<String>, SchedulerError> {
        let refuse = |message: String| Err(SchedulerError::Options(message));
        let sources = [!self.replicas.is_empty(), self.endpoints.is_some(), self.kubernetes.is_some()];
        match sources.iter().filter(|given| **given).count() {
            0 => {
                return refuse(
                    "no replicas: name them with --replicas http://HOST:PORT,…, or a file with --endpoints, or say --kubernetes"
                        .to_owned(),
                );
            }
            1 => {}
            _ => {
                return refuse("give one of --replicas, --endpoints and --kubernetes, not more".to_owned());
            }
        }
        match (self.vllm_events_port, self.vllm_replay_port) {
            (None, Some(_)) => {
                return refuse("--vllm-replay-port is of no use without --vllm-events-port".to_owned());
            }
            (Some(_), _) if self.replicas.is_empty() => {
                return refuse(
                    "--vllm-events-port goes with --replicas; in a file of endpoints each replica has its own `kv_events`, on Kubernetes a port named kv-events"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if !(1..=MAX_ENDPOINTS).contains(&self.extproc_endpoints) {
            return refuse(format!(
                "--extproc-endpoints is {}; a proxy is told 1 to {MAX_ENDPOINTS} endpoints",
                self.extproc_endpoints
            ));
        }
        for url in &self.peers {
            base_url(url).map_err(|error| SchedulerError::Options(format!("--peers: {error}")))?;
        }
        if !self.peers.is_empty() && self.kubernetes.is_some() {
            return refuse("--peers is of no use with --kubernetes: there the pods tell".to_owned());
        }
        if self.scrape_interval.is_zero() {
            return refuse("the scrape interval must be longer than zero".to_owned());
        }
        let mut urls = Vec::new();
        for url in &self.replicas {
            let base = base_url(url).map_err(SchedulerError::Options)?;
            if urls.contains(&base) {
                return refuse(format!("--replicas names {base} twice; name it once"));
            }
            urls.push(base);
        }
        Ok(urls)
    }

    /// Where a replica with this base URL publishes what its KV cache holds.
    pub(crate) fn kv_events(&self, url: &str) -> Option<KvEvents> {
        let uri = url.parse::<http::Uri>().ok()?;
        let socket = |port: u16| Some(format!("tcp://{}:{port}", uri.host()?));
        let publish = socket(self.vllm_events_port?)?;
        Some(KvEvents { publish, replay: self.vllm_replay_port.and_then(socket) })
    }

    /// How old metrics may be and still count: several scrapes, for one may be late.
    pub fn stale_after(&self) -> Duration {
        self.scrape_interval * 5 + self.scrape_timeout
    }
}

/// A replica's base URL, checked: `http://HOST:PORT`, or https for one that speaks mutual TLS.
pub fn base_url(url: &str) -> Result<String, String> {
    let wrong = |what: &str| Err(format!("`{url}` is no replica's address: {what}; write http://HOST:PORT"));
    let Ok(uri) = url.trim().parse::<http::Uri>() else {
        return wrong("it is no URL");
    };
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        Some(_) => return wrong("replicas are reached by http or https"),
        None => return wrong("it has no http:// in front"),
    };
    if uri.path() != "/" || uri.query().is_some() {
        return wrong("it has a path");
    }
    let Some(authority) = uri.authority().filter(|a| !a.host().is_empty() && !a.as_str().contains('@'))
    else {
        return wrong("it has no host");
    };
    Ok(format!("{scheme}://{authority}"))
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_millis() as u64)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(replicas: &[&str]) -> SchedulerOptions {
        SchedulerOptions {
            replicas: replicas.iter().map(|s| (*s).to_owned()).collect(),
            ..SchedulerOptions::default()
        }
    }

    #[test]
    fn replicas_are_checked() {
        let urls = with(&["http://127.0.0.1:1/", " https://engine:8000"]).check().unwrap();
        assert_eq!(urls, ["http://127.0.0.1:1", "https://engine:8000"]);
        let message = |o: SchedulerOptions| o.check().unwrap_err().to_string();
        insta::assert_snapshot!(message(with(&[])), @"no replicas: name them with --replicas http://HOST:PORT,…, or a file with --endpoints, or say --kubernetes");
        insta::assert_snapshot!(message(with(&["127.0.0.1:1"])), @"`127.0.0.1:1` is no replica's address: it has no http:// in front; write http://HOST:PORT");
        insta::assert_snapshot!(message(with(&["ftp://a"])), @"`ftp://a` is no replica's address: replicas are reached by http or https; write http://HOST:PORT");
        insta::assert_snapshot!(message(with(&["http://a/v1"])), @"`http://a/v1` is no replica's address: it has a path; write http://HOST:PORT");
        insta::assert_snapshot!(message(with(&["http://a:1", "http://a:1/"])), @"--replicas names http://a:1 twice; name it once");
        let many = SchedulerOptions { extproc_endpoints: 4, ..with(&["http://a"]) };
        insta::assert_snapshot!(message(many), @"--extproc-endpoints is 4; a proxy is told 1 to 3 endpoints");
        let both = SchedulerOptions { endpoints: Some("x".into()), ..with(&["http://a"]) };
        insta::assert_snapshot!(message(both), @"give one of --replicas, --endpoints and --kubernetes, not more");
    }

    #[test]
    fn ports_of_kv_events_are_those_of_each_replicas_host() {
        let ports =
            SchedulerOptions { vllm_events_port: Some(5557), ..with(&["http://a:1", "https://[::1]:2"]) };
        assert!(ports.check().is_ok());
        let at = |options: &SchedulerOptions, url| options.kv_events(url).map(|e| (e.publish, e.replay));
        assert_eq!(at(&ports, "http://a:1"), Some(("tcp://a:5557".to_owned(), None)));
        let both = SchedulerOptions { vllm_replay_port: Some(5558), ..ports };
        let six = ("tcp://[::1]:5557".to_owned(), Some("tcp://[::1]:5558".to_owned()));
        assert_eq!(at(&both, "https://[::1]:2"), Some(six));
        assert_eq!(at(&with(&["http://a:1"]), "http://a:1"), None);
        let message = |o: SchedulerOptions| o.check().unwrap_err().to_string();
        insta::assert_snapshot!(message(SchedulerOptions { vllm_events_port: None, ..both.clone() }), @"--vllm-replay-port is of no use without --vllm-events-port");
        let file = SchedulerOptions { replicas: vec![], endpoints: Some("x".into()), ..both };
        insta::assert_snapshot!(message(file), @"--vllm-events-port goes with --replicas; in a file of endpoints each replica has its own `kv_events`, on Kubernetes a port named kv-events");
    }

    #[test]
    fn secrets_are_not_written() {
        let options = SchedulerOptions { hop_token: HopToken::new("very-secret"), ..with(&["http://a:1"]) };
        let text = serde_json::to_string(&options).unwrap();
        assert!(!text.contains("very-secret") && !format!("{options:?}").contains("very-secret"));
        let back: SchedulerOptions = serde_json::from_str(&text).unwrap();
        assert_eq!((back.queue_timeout, back.policy), (options.queue_timeout, options.policy));
    }
}
