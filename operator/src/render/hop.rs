//! What a component of Strata needs in its pod to prove who it is, and to know who calls.

use k8s_openapi::api::core::v1::{
    EnvVar, EnvVarSource, Probe, SecretKeySelector, SecretVolumeSource, Volume, VolumeMount,
};

use super::pod::{self, variable};
use crate::Mode;
use crate::cluster::{ClusterSite, Trust};
use crate::workload::Component;

/// The Secret with the token of internal hops, in Strata's namespace and in each with models.
pub const HOP_SECRET: &str = "strata-hop";
const FOLDER: &str = "/var/run/strata/hop";

/// How a listener is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// What listeners of Strata's engines and schedulers speak.
    pub(crate) fn of(site: &ClusterSite) -> Self {
        match site.trust {
            Trust::Token => Self::Http,
            Trust::Mtls => Self::Https,
        }
    }

    /// As URLs and `appProtocol` have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// A probe. The kubelet shows no certificate and needs none for it.
    pub(super) fn probe(self, path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
        let mut probe = pod::probe(path, period, timeout, failures);
        if let (Self::Https, Some(get)) = (self, &mut probe.http_get) {
            get.scheme = Some("HTTPS".to_owned());
        }
        probe
    }
}

/// Additions to a container and its pod.
pub(super) struct Hop {
    pub scheme: Scheme,
    pub env: Vec<EnvVar>,
    pub mounts: Vec<VolumeMount>,
    pub volumes: Vec<Volume>,
}

/// What a component's container gets.
pub(super) fn of(component: Component, site: &ClusterSite) -> Hop {
    let scheme = Scheme::of(site);
    match site.trust {
        Trust::Token => Hop { scheme, env: vec![token(false)], mounts: Vec::new(), volumes: Vec::new() },
        Trust::Mtls => Hop {
            scheme,
            env: [variable("STRATA_HOP_DIR", FOLDER)]
                .into_iter()
                .chain(callers(component, site.mode))
                // For engines from before the layers had certificates.
                .chain((component == Component::Scheduler).then(|| token(true)))
                .collect(),
            mounts: vec![VolumeMount {
                name: "hop".to_owned(),
                mount_path: FOLDER.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            }],
            volumes: vec![Volume {
                name: "hop".to_owned(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(format!("{HOP_SECRET}-{component}")),
                    default_mode: Some(0o440),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            }],
        },
    }
}

/// The token that engines without a certificate are shown.
fn token(optional: bool) -> EnvVar {
    let source = EnvVarSource {
        secret_key_ref: Some(SecretKeySelector {
            name: HOP_SECRET.to_owned(),
            key: "token".to_owned(),
            optional: optional.then_some(true),
        }),
        ..EnvVarSource::default()
    };
    EnvVar { name: "STRATA_HOP_TOKEN".to_owned(), value: None, value_from: Some(source) }
}

/// Who may call a component, where that depends on the mode. Engines keep their template when the mode
/// changes: they answer all layers that may stand above them, and NetworkPolicy narrows it.
fn callers(component: Component, mode: Mode) -> Option<EnvVar> {
    let above = if mode.has_gateway() { "gateway" } else { "platform" };
    (component == Component::Scheduler)
        .then(|| variable("STRATA_HOP_CALLERS", format!("{above},operator,scheduler")))
}
