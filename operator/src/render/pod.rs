//! The pod template of each component.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    Lifecycle, LifecycleHandler, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretKeySelector, SecurityContext, SleepAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use strata_kinds::model_deployment::PodTemplate;
use strata_wire::defaults;

use super::{ENDPOINTS_CONFIG, ENDPOINTS_FOLDER, LISTEN_ENV, PORT, Site, args};
use crate::workload::{Component, Workload};

/// The user that containers run as, who owns nothing.
const NOBODY: i64 = 65532;

pub(super) fn template(
    workload: &Workload,
    site: &Site,
    mut labels: BTreeMap<String, String>,
) -> PodTemplateSpec {
    let component = workload.component();
    let added = match workload {
        Workload::Engine(engine) => engine.spec.pod_template.clone().unwrap_or_default(),
        _ => PodTemplate::default(),
    };
    for (key, value) in &added.labels {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let reads_endpoints = component == Component::Scheduler && matches!(site, Site::Cluster { .. });
    let volumes = reads_endpoints.then(|| {
        vec![Volume {
            name: "endpoints".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: ENDPOINTS_CONFIG.to_owned(),
                optional: Some(true),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        }]
    });
    let grace = defaults::PRE_STOP + defaults::DRAIN_GRACE;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!added.annotations.is_empty()).then(|| added.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(seconds(grace)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(NOBODY),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            node_selector: (!added.node_selector.is_empty()).then(|| added.node_selector.clone()),
            tolerations: (!added.tolerations.is_empty()).then(|| added.tolerations.clone()),
            service_account_name: added.service_account_name.clone(),
            containers: vec![container(workload, site, &added, reads_endpoints)],
            volumes,
            ..PodSpec::default()
        }),
    }
}

fn container(workload: &Workload, site: &Site, added: &PodTemplate, reads_endpoints: bool) -> Container {
    let component = workload.component();
    let image = match site {
        Site::Cluster { image } => Some(image.clone()),
        Site::Host(_) => None,
    };
    // A scheduler that has no replica yet holds requests back until one comes: that is ready enough.
    let ready_path = if component == Component::Scheduler { "/health" } else { "/ready" };
    Container {
        name: component.name().to_owned(),
        image,
        command: Some(vec!["strata".to_owned(), component.name().to_owned()]),
        args: Some(args::args(workload, site)),
        env: Some(environment(site, added)),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: PORT,
            ..ContainerPort::default()
        }]),
        resources: added.resources.as_ref().map(|r| ResourceRequirements {
            limits: (!r.limits.is_empty()).then(|| r.limits.clone()),
            requests: (!r.requests.is_empty()).then(|| r.requests.clone()),
            ..ResourceRequirements::default()
        }),
        // Loading a model takes as long as it takes: ten minutes until it counts as stuck.
        startup_probe: Some(probe("/health", 1, 2, 600)),
        readiness_probe: Some(probe(ready_path, 1, 2, 2)),
        liveness_probe: Some(probe("/health", 10, 5, 3)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: seconds(defaults::PRE_STOP) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: reads_endpoints.then(|| {
            vec![VolumeMount {
                name: "endpoints".to_owned(),
                mount_path: ENDPOINTS_FOLDER.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            }]
        }),
        ..Container::default()
    }
}

fn environment(site: &Site, added: &PodTemplate) -> Vec<EnvVar> {
    // On a host each process is told its own address when it starts.
    let listen = matches!(site, Site::Cluster { .. }).then(|| EnvVar {
        name: LISTEN_ENV.to_owned(),
        value: Some(format!("0.0.0.0:{PORT}")),
        value_from: None,
    });
    let added = added.env.iter().map(|variable| EnvVar {
        name: variable.name.clone(),
        value: variable.value.clone(),
        value_from: variable.value_from.as_ref().map(|source| EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: source.secret_key_ref.name.clone(),
                key: source.secret_key_ref.key.clone(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    });
    listen.into_iter().chain(added).collect()
}

fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn seconds(duration: Duration) -> i64 {
    duration.as_secs() as i64
}
