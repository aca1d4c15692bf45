//! NetworkPolicies: who may talk to whom. Policies add up, so that one of your own opens what else you
//! need.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::ClusterSite;
use super::meta::{self, SCHEDULER};
use crate::Mode;
use crate::render::{EVENTS_PORT_NAME, PICKER_PORT, PORT, REPLAY_PORT_NAME, egress_ports, match_labels};
use crate::workload::{Component, EngineWorkload};

/// Engines answer the schedulers of their namespace (the platform, in mode development), the operator, and
/// proxies that ask schedulers where to send a request; they tell schedulers what their caches hold, and
/// call nobody.
pub(super) fn engines(meta: &ObjectMeta, site: &ClusterSite) -> NetworkPolicy {
    let callers = if site.mode == Mode::Development {
        strata(Component::Platform.name(), site)
    } else {
        here(Component::Scheduler)
    };
    let mut rules = vec![ingress(PORT, vec![callers, strata("operator", site)])];
    if site.mode.has_scheduler() {
        rules.push(NetworkPolicyIngressRule {
            from: Some(vec![here(Component::Scheduler)]),
            ports: Some(events()),
        });
        rules.extend(proxies(PORT, site));
    }
    policy(
        meta::named(meta, "strata-engine"),
        match_labels(Component::Engine, None).into_iter().collect(),
        rules,
        Vec::new(),
        site,
    )
}

/// Schedulers answer the layer above, each other and the operator, and call engines and the API server.
pub(super) fn schedulers(meta: &ObjectMeta, site: &ClusterSite) -> NetworkPolicy {
    let above = if site.mode.has_gateway() { Component::Gateway } else { Component::Platform };
    let callers = vec![strata(above.name(), site), strata("operator", site), here(Component::Scheduler)];
    let told = NetworkPolicyEgressRule { to: Some(vec![here(Component::Engine)]), ports: Some(events()) };
    let layers = NetworkPolicyEgressRule {
        to: Some(vec![here(Component::Engine), here(Component::Scheduler)]),
        ports: Some(vec![tcp(IntOrString::String("http".to_owned()))]),
    };
    policy(
        meta::named(meta, SCHEDULER),
        match_labels(Component::Scheduler, None).into_iter().collect(),
        std::iter::once(ingress(PORT, callers)).chain(proxies(PICKER_PORT, site)).collect(),
        vec![layers, told, dns(), api_server(site)],
        site,
    )
}

/// A model that is fetched reaches what it is fetched from.
pub(super) fn fetch(
    engine: &EngineWorkload,
    name: &str,
    meta: &ObjectMeta,
    site: &ClusterSite,
) -> Option<NetworkPolicy> {
    let ports = egress_ports(&engine.spec);
    (site.network_policies && !ports.is_empty()).then(|| NetworkPolicy {
        metadata: meta::named(meta, name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(
                match_labels(Component::Engine, Some(&engine.owner.name)).into_iter().collect(),
            )),
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(vec![dns(), anywhere(&ports)]),
            ingress: None,
        }),
    })
}

/// Engines of a model hand what they made of a prompt to each other. Which port that takes is settled
/// between them: the side channel says where, and UCX takes what it is given.
pub(super) fn peers(
    engine: &EngineWorkload,
    name: &str,
    meta: &ObjectMeta,
    site: &ClusterSite,
) -> Option<NetworkPolicy> {
    let of_model =
        || match_labels(Component::Engine, Some(&engine.owner.name)).into_iter().collect::<Vec<_>>();
    let peers = || Some(vec![peer(None, of_model())]);
    site.network_policies.then(|| NetworkPolicy {
        metadata: meta::named(meta, name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(of_model())),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule { from: peers(), ports: None }]),
            egress: Some(vec![NetworkPolicyEgressRule { to: peers(), ports: None }]),
        }),
    })
}

fn policy(
    metadata: ObjectMeta,
    pods: Vec<(String, String)>,
    mut ingress: Vec<NetworkPolicyIngressRule>,
    egress: Vec<NetworkPolicyEgressRule>,
    site: &ClusterSite,
) -> NetworkPolicy {
    // Metrics are on the one port that there is.
    ingress.extend((!site.metrics_namespaces.is_empty()).then(|| NetworkPolicyIngressRule {
        from: Some(
            site.metrics_namespaces.iter().map(|namespace| peer(Some(namespace), Vec::new())).collect(),
        ),
        ports: Some(vec![tcp(IntOrString::String("http".to_owned()))]),
    }));
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(pods)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            // No rule is no egress. An empty list would be dropped, and missed at each apply.
            egress: (!egress.is_empty()).then_some(egress),
        }),
    }
}

fn ingress(port: i32, from: Vec<NetworkPolicyPeer>) -> NetworkPolicyIngressRule {
    // By number: while a model is fetched it is the container `fetch` that listens.
    NetworkPolicyIngressRule { from: Some(from), ports: Some(vec![tcp(IntOrString::Int(port))]) }
}

/// Proxies that ask schedulers. A rule that names nobody would let everybody in.
fn proxies(port: i32, site: &ClusterSite) -> Option<NetworkPolicyIngressRule> {
    let from = site.picker.as_ref().map(|picker| picker.from.clone())?;
    (!from.is_empty()).then(|| ingress(port, from))
}

/// The ports of an engine that publishes what its cache holds, whatever their numbers.
fn events() -> Vec<NetworkPolicyPort> {
    [EVENTS_PORT_NAME, REPLAY_PORT_NAME].map(|name| tcp(IntOrString::String(name.to_owned()))).into()
}

fn tcp(port: IntOrString) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(port), protocol: Some("TCP".to_owned()), end_port: None }
}

/// Name servers, wherever they are: their labels differ, and OpenShift's pods listen on 5353.
fn dns() -> NetworkPolicyEgressRule {
    let port = |protocol: &str, port| NetworkPolicyPort {
        port: Some(IntOrString::Int(port)),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    };
    let ports = [53, 5353].into_iter().flat_map(|n| [port("UDP", n), port("TCP", n)]);
    NetworkPolicyEgressRule { to: None, ports: Some(ports.collect()) }
}

fn anywhere(ports: &[u16]) -> NetworkPolicyEgressRule {
    let ports = ports.iter().map(|port| tcp(IntOrString::Int(i32::from(*port)))).collect();
    NetworkPolicyEgressRule { to: None, ports: Some(ports) }
}

/// The API server, which no label selects.
fn api_server(site: &ClusterSite) -> NetworkPolicyEgressRule {
    let at = |cidr: &String| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: cidr.clone(), except: None }),
        ..NetworkPolicyPeer::default()
    };
    let cidrs: Vec<NetworkPolicyPeer> = site.api_server_cidrs.iter().map(at).collect();
    NetworkPolicyEgressRule { to: (!cidrs.is_empty()).then_some(cidrs), ..anywhere(&site.api_server_ports) }
}

/// A component in the same namespace.
fn here(component: Component) -> NetworkPolicyPeer {
    peer(None, match_labels(component, None).into_iter().collect())
}

/// A component in Strata's namespace.
fn strata(component: &str, site: &ClusterSite) -> NetworkPolicyPeer {
    let labels = [("app.kubernetes.io/name", "strata"), ("app.kubernetes.io/component", component)];
    peer(Some(&site.namespace), labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
}

fn peer(namespace: Option<&str>, pods: Vec<(String, String)>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: namespace
            .map(|name| selector(vec![("kubernetes.io/metadata.name".to_owned(), name.to_owned())])),
        pod_selector: (!pods.is_empty()).then(|| selector(pods)),
        ip_block: None,
    }
}

fn selector(labels: Vec<(String, String)>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels.into_iter().collect()), ..LabelSelector::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::Mode;
    use crate::cluster::{
        Child, ClusterSite, ModelSeen, NamespaceSeen, Picker, judge, model_step, namespace_step,
    };

    /// All policies of a namespace with one model that is there and one that is fetched. The tests of the
    /// charts judge the flows that these snapshots allow (charts/tests/test_network.py).
    fn policies(mode: Mode, picker: Option<Picker>) -> Vec<Value> {
        let site = ClusterSite {
            metrics_namespaces: vec!["monitoring".into()],
            picker,
            ..ClusterSite::new("strata:1", mode, "strata")
        };
        let models: Vec<_> = [("here", "pvc://models/a.gguf"), ("fetched", "hf://owner/name")]
            .into_iter()
            .take(if mode == Mode::Development { 1 } else { 2 })
            .map(|(name, uri)| {
                let object = json!({
                    "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
                    "metadata": { "name": name, "namespace": "models", "uid": name },
                    "spec": { "model": { "name": name, "uri": uri } },
                });
                Arc::new(serde_json::from_value::<strata_kinds::ModelDeployment>(object).unwrap())
            })
            .collect();
        let engines: Vec<_> = models.iter().map(|model| judge(model, &models, &site).1.unwrap()).collect();
        let seen = ModelSeen {
            deployments: &[],
            pods: &[],
            revisions: &[],
            schedulers: &[],
            downloads: &std::collections::BTreeMap::new(),
            autoscaler: None,
            refused: &[],
        };
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let of_models = engines.iter().flat_map(|engine| model_step(engine, &seen, &site, now).apply);
        let shared = namespace_step("models", &engines, &NamespaceSeen { revisions: &[] }, &site);
        let children: Vec<Child> = shared.into_iter().chain(of_models).collect();
        children.into_iter().filter(|c| c.key().kind == "NetworkPolicy").map(|c| c.object).collect()
    }

    #[test]
    fn schedulers_reach_the_api_server_where_it_is() {
        let rule = |ports: &[u16], cidrs: &[&str]| {
            let site = ClusterSite {
                api_server_ports: ports.into(),
                api_server_cidrs: cidrs.iter().map(ToString::to_string).collect(),
                ..ClusterSite::new("strata:1", Mode::Production, "strata")
            };
            serde_json::to_value(super::api_server(&site)).unwrap()
        };
        let port = |n: u16| json!({ "port": n, "protocol": "TCP" });
        assert_eq!(rule(&[443, 6443], &[]), json!({ "ports": [port(443), port(6443)] }));
        assert_eq!(
            rule(&[16443], &["10.0.0.1/32"]),
            json!({ "ports": [port(16443)], "to": [{ "ipBlock": { "cidr": "10.0.0.1/32" } }] })
        );
    }

    #[test]
    fn proxies_reach_what_they_ask_and_where_they_are_sent() {
        let proxies = json!([{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "ingress" } },
            "podSelector": { "matchLabels": { "app": "envoy" } },
        }]);
        let picker: Picker = proxies.to_string().parse().unwrap();
        insta::assert_yaml_snapshot!(
            "policies_with_a_picker",
            policies(Mode::Production, Some(picker.clone()))
        );
        let none = policies(Mode::Production, None);
        assert_eq!(policies(Mode::Production, Some(Picker::default())), none, "nobody is named");
        let development = policies(Mode::Development, None);
        assert_eq!(policies(Mode::Development, Some(picker)), development, "there is no scheduler");
    }

    #[test]
    fn flows_of_each_mode() {
        for mode in [Mode::Development, Mode::Production, Mode::Enterprise] {
            insta::assert_yaml_snapshot!(format!("policies_in_mode_{mode}"), policies(mode, None));
        }
    }
}
