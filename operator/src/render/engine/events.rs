//! The ports at which a vLLM tells the scheduler what its KV cache holds.
//!
//! The scheduler finds them by their names in the pod. What is told has the tokens of all prompts: where no
//! NetworkPolicy keeps others out, only who asks for it in `engine.args` gets it.

use k8s_openapi::api::core::v1::ContainerPort;
use serde_json::{Value, json};
use strata_kinds::ModelDeploymentSpec;
use strata_kinds::model_deployment::Runtime;

use crate::cluster::ClusterSite;
use crate::render::{EVENTS_PORT_NAME, REPLAY_PORT_NAME};

/// The flag of vLLM.
const FLAG: &str = "--kv-events-config";
/// vLLM's own default for what happens, and the next for what has happened.
const PUBLISH: &str = "tcp://*:5557";
const REPLAY: &str = "tcp://*:5558";

/// What an engine's container has for it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Events {
    /// Arguments.
    pub args: Vec<String>,
    /// Ports.
    pub ports: Vec<ContainerPort>,
}

/// What it has by the user's own arguments, or is given.
pub(super) fn of(spec: &ModelDeploymentSpec, site: &ClusterSite) -> Events {
    let own = spec.engine.as_ref().map_or(&[][..], |engine| &engine.args);
    if own.iter().any(|arg| arg.starts_with(FLAG)) {
        return Events {
            args: Vec::new(),
            ports: configured(own).map(|config| ports(&config)).unwrap_or_default(),
        };
    }
    if spec.runtime() != Runtime::Vllm || !is_followed(spec, site) {
        return Events::default();
    }
    let config = json!({
        "enable_kv_cache_events": true, "publisher": "zmq", "endpoint": PUBLISH, "replay_endpoint": REPLAY,
    });
    Events { args: vec![FLAG.to_owned(), config.to_string()], ports: ports(&config) }
}

/// Whether there is somebody to tell, and something that can be followed: of several data-parallel ranks
/// only the first is.
fn is_followed(spec: &ModelDeploymentSpec, site: &ClusterSite) -> bool {
    let cache = spec.engine.as_ref().and_then(|e| e.kv_cache.as_ref());
    let ranks = spec.parallelism.as_ref().and_then(|p| p.data).unwrap_or(1);
    site.mode.has_scheduler()
        && site.network_policies
        && ranks <= 1
        && cache.and_then(|c| c.prefix_caching) != Some(false)
}

/// The value of the flag, of which the last one counts.
fn configured(args: &[String]) -> Option<Value> {
    let at = args
        .iter()
        .rposition(|arg| arg.strip_prefix(FLAG).is_some_and(|r| r.is_empty() || r.starts_with('=')))?;
    let text = match args[at].split_once('=') {
        Some((_, text)) => text,
        None => args.get(at + 1)?,
    };
    serde_json::from_str(text).ok()
}

/// The ports of a configuration; none when it publishes nothing, or not by ZeroMQ over TCP.
fn ports(config: &Value) -> Vec<ContainerPort> {
    let publishes = config["enable_kv_cache_events"] == true
        && config.get("publisher").is_none_or(|publisher| publisher == "zmq");
    let port = |name: &str, endpoint: Option<&str>| {
        let (_, number) = endpoint?.strip_prefix("tcp://")?.rsplit_once(':')?;
        let number: u16 = number.parse().ok()?;
        Some(ContainerPort {
            name: Some(name.to_owned()),
            container_port: number.into(),
            ..ContainerPort::default()
        })
    };
    let publish = port(EVENTS_PORT_NAME, Some(config["endpoint"].as_str().unwrap_or(PUBLISH)));
    let Some(publish) = publish.filter(|_| publishes) else { return Vec::new() };
    std::iter::once(publish).chain(port(REPLAY_PORT_NAME, config["replay_endpoint"].as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;

    fn events(spec: &Value, site: &ClusterSite) -> (bool, Vec<(String, i32)>) {
        let mut all = json!({ "model": { "name": "m", "uri": "/m" } });
        for (name, value) in spec.as_object().unwrap() {
            all[name] = value.clone();
        }
        let found = of(&serde_json::from_value(all).unwrap(), site);
        let ports = found.ports.into_iter().map(|port| (port.name.unwrap(), port.container_port));
        (!found.args.is_empty(), ports.collect())
    }

    fn vllm(args: &[&str]) -> Value {
        json!({ "engine": { "runtime": "Vllm", "image": "x", "args": args } })
    }

    fn both(publish: i32, replay: i32) -> Vec<(String, i32)> {
        vec![("kv-events".to_owned(), publish), ("kv-replay".to_owned(), replay)]
    }

    #[test]
    fn a_vllm_publishes_where_schedulers_alone_can_read() {
        let site = ClusterSite::new("strata:1", Mode::Enterprise, "strata");
        assert_eq!(events(&vllm(&[]), &site), (true, both(5557, 5558)));
        let nothing = (false, Vec::new());
        assert_eq!(events(&json!({}), &site), nothing, "Strata's engine has a stream of its own");
        assert_eq!(events(&json!({ "engine": { "runtime": "Custom", "image": "x" } }), &site), nothing);
        let open = ClusterSite { network_policies: false, ..site.clone() };
        assert_eq!(events(&vllm(&[]), &open), nothing);
        let alone = ClusterSite { mode: Mode::Development, ..site.clone() };
        assert_eq!(events(&vllm(&[]), &alone), nothing);
        let mut ranks = vllm(&[]);
        ranks["parallelism"] = json!({ "data": 2 });
        assert_eq!(events(&ranks, &site), nothing);
        let mut forgets = vllm(&[]);
        forgets["engine"]["kvCache"] = json!({ "prefixCaching": false });
        assert_eq!(events(&forgets, &site), nothing);
    }

    #[test]
    fn what_the_user_says_holds() {
        let site = ClusterSite::new("strata:1", Mode::Enterprise, "strata");
        let own =
            r#"{"enable_kv_cache_events":true,"endpoint":"tcp://*:7000","replay_endpoint":"tcp://*:7001"}"#;
        assert_eq!(events(&vllm(&[FLAG, own]), &site), (false, both(7000, 7001)));
        let open = ClusterSite { network_policies: false, ..site.clone() };
        assert_eq!(events(&vllm(&[&format!("{FLAG}={own}")]), &open), (false, both(7000, 7001)));
        let custom = json!({ "engine": { "runtime": "Custom", "image": "x", "args": [FLAG, own] } });
        assert_eq!(events(&custom, &site), (false, both(7000, 7001)));
        let first = vec![("kv-events".to_owned(), 5557)];
        assert_eq!(events(&vllm(&[FLAG, r#"{"enable_kv_cache_events":true}"#]), &site), (false, first));
        for none in [
            r#"{"enable_kv_cache_events":false}"#,
            r#"{"enable_kv_cache_events":true,"publisher":"null"}"#,
            r#"{"enable_kv_cache_events":true,"endpoint":"ipc:///tmp/events"}"#,
            "{",
        ] {
            assert_eq!(events(&vllm(&[FLAG, none]), &site), (false, Vec::new()), "{none}");
        }
        assert_eq!(events(&vllm(&[FLAG]), &site), (false, Vec::new()));
    }
}
