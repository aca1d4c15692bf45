//! What the operator is told about the cluster that it works in.

use std::collections::BTreeSet;
use std::str::FromStr;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::core::ApiResource;

use super::child::resource;
use crate::Mode;

/// Kinds that a cluster may have or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
// Each is a fact of its own.
#[allow(clippy::struct_excessive_bools)]
pub struct Capabilities {
    /// `httproutes.gateway.networking.k8s.io/v1`.
    pub http_route: bool,
    /// `inferencepools.inference.networking.k8s.io/v1`.
    pub inference_pool: bool,
    /// `inferenceobjectives.inference.networking.x-k8s.io/v1alpha2`.
    pub inference_objective: bool,
    /// `scaledobjects.keda.sh/v1alpha1`.
    pub scaled_object: bool,
    /// The API group `external.metrics.k8s.io`.
    pub external_metrics: bool,
}

impl Capabilities {
    /// The kinds that a cluster may have or not, and that the operator applies where it has them.
    pub fn kinds() -> [ApiResource; 4] {
        [
            resource("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
            resource("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools"),
            resource(
                "inference.networking.x-k8s.io",
                "v1alpha2",
                "InferenceObjective",
                "inferenceobjectives",
            ),
            resource("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
        ]
    }

    /// Whether this is one of [`Capabilities::kinds`] that is not there: nothing is rendered of it, and
    /// so nothing of it is superfluous.
    pub fn lacks(self, kind: &ApiResource) -> bool {
        let has = [self.http_route, self.inference_pool, self.inference_objective, self.scaled_object];
        Self::kinds().iter().zip(has).any(|(k, has)| !has && k.group == kind.group && k.kind == kind.kind)
    }

    /// Those of [`Capabilities::kinds`] for which `has` says yes, and whether the API group
    /// `external.metrics.k8s.io` is served.
    pub fn found(has: impl Fn(&ApiResource) -> bool, external_metrics: bool) -> Self {
        let [http_route, inference_pool, inference_objective, scaled_object] =
            Self::kinds().map(|kind| has(&kind));
        Self { http_route, inference_pool, inference_objective, scaled_object, external_metrics }
    }
}

/// How the layers know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By the token in the Secret `strata-hop`.
    #[default]
    Token,
    /// By the certificates in the Secrets `strata-hop-COMPONENT`.
    Mtls,
}

/// Lets proxies of a Gateway ask schedulers where a request should go, and send it there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picker {
    /// Who the proxies are, as NetworkPolicies have it; none is let in when empty.
    pub from: Vec<NetworkPolicyPeer>,
}

impl FromStr for Picker {
    type Err = String;

    /// Reads a JSON list of peers.
    fn from_str(text: &str) -> Result<Self, String> {
        let from: Vec<NetworkPolicyPeer> = serde_json::from_str(text).map_err(|error| {
            format!("{error}; expected a list of peers, such as [{{\"namespaceSelector\":{{\"matchLabels\":{{}}}}}}]")
        })?;
        if from.contains(&NetworkPolicyPeer::default()) {
            return Err(
                "a peer is empty; each needs a namespaceSelector, a podSelector or an ipBlock".to_owned()
            );
        }
        Ok(Self { from })
    }
}

/// What the operator is told, and what it found.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSite {
    /// Image of Strata's containers.
    pub image: String,
    /// When it is pulled: `Always`, `IfNotPresent` or `Never`; Kubernetes' default when absent.
    pub image_pull_policy: Option<String>,
    /// Secrets of each model namespace with the credentials to pull it.
    pub image_pull_secrets: Vec<String>,
    /// Form of the logs of Strata's containers, as `STRATA_LOG_FORMAT` has it.
    pub log_format: Option<String>,
    /// Whether NetworkPolicies are made.
    pub network_policies: bool,
    /// Ports of the API server, before and after its Service's address is translated.
    pub api_server_ports: Vec<u16>,
    /// Where the API server is; anywhere when empty.
    pub api_server_cidrs: Vec<String>,
    /// How the layers know each other.
    pub trust: Trust,
    /// Which layers the chart installed.
    pub mode: Mode,
    /// Strata's own namespace.
    pub namespace: String,
    /// Namespaces whose ModelDeployments are served; all when empty.
    pub model_namespaces: Vec<String>,
    /// The namespace whose models the platform uses in the modes without a gateway, where that is known:
    /// those of other namespaces would have no entrance.
    pub platform_namespace: Option<String>,
    /// Namespaces from which metrics may be read, such as that of Prometheus or KEDA.
    pub metrics_namespaces: Vec<String>,
    /// Priorities of the accepted tenants; 0 counts always.
    pub priorities: BTreeSet<i32>,
    /// The Gateway of the Gateway API, as `NAMESPACE/NAME`, that HTTPRoutes attach to.
    pub gateway: Option<String>,
    /// Whether schedulers are asked by proxies, too.
    pub picker: Option<Picker>,
    /// Kinds that the cluster has.
    pub capabilities: Capabilities,
}

impl ClusterSite {
    /// Where an API server usually listens.
    pub const API_SERVER_PORTS: [u16; 2] = [443, 6443];

    /// A site with nothing but what must be known.
    pub fn new(image: impl Into<String>, mode: Mode, namespace: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            log_format: None,
            network_policies: true,
            api_server_ports: Self::API_SERVER_PORTS.into(),
            api_server_cidrs: Vec::new(),
            trust: Trust::Token,
            mode,
            namespace: namespace.into(),
            model_namespaces: Vec::new(),
            platform_namespace: None,
            metrics_namespaces: Vec::new(),
            priorities: BTreeSet::new(),
            gateway: None,
            picker: None,
            capabilities: Capabilities::default(),
        }
    }

    /// Whether models of this namespace are served.
    pub fn serves(&self, namespace: &str) -> bool {
        self.model_namespaces.is_empty() || self.model_namespaces.iter().any(|n| n == namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_told_as_policies_have_them() {
        let text = r#"[{"namespaceSelector":{"matchLabels":{"a":"b"}}},{"ipBlock":{"cidr":"10.0.0.0/8"}}]"#;
        let picker: Picker = text.parse().unwrap();
        assert_eq!(serde_json::to_string(&picker.from).unwrap(), text);
        assert_eq!("[]".parse(), Ok(Picker::default()));
        for (wrong, why) in [("{}", "expected a list of peers"), ("[{}]", "a peer is empty"), ("", "EOF")] {
            let error = wrong.parse::<Picker>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
