//! The pod template of each component.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle, LifecycleHandler,
    LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, SleepAction,
    TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use strata_kinds::model_deployment::{CacheScope, PodTemplate};
use strata_wire::defaults;

use super::{
    ADAPTERS_ANNOTATION, HANDOVER_LABEL, HostSite, LISTEN_ENV, PICKER_PORT, PORT, ROLE_LABEL, Site, args,
    engine, hop, host, match_labels,
};
use crate::cluster::{ClusterSite, digest};
use crate::workload::{Component, EngineWorkload, Workload};

/// The user and group that containers run as, who own nothing.
const NOBODY: i64 = 65532;

/// What the containers of a pod are.
pub(super) struct Parts {
    pub main: Container,
    pub init: Vec<Container>,
    pub volumes: Vec<Volume>,
}

pub(super) fn template(
    workload: &Workload,
    site: Site<'_>,
    mut labels: BTreeMap<String, String>,
) -> PodTemplateSpec {
    let added = match workload {
        Workload::Engine(engine) => engine.spec.pod_template.clone().unwrap_or_default(),
        _ => PodTemplate::default(),
    };
    labels.extend(role_label(workload));
    labels.extend(handover_label(workload));
    for (key, value) in &added.labels {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let parts = match (workload, site) {
        (Workload::Engine(engine), Site::Cluster(cluster)) => engine::parts(engine, &added, cluster),
        (_, Site::Cluster(cluster)) => scheduler(workload, cluster),
        (_, Site::Host(host)) => on_host(workload, host, &added),
    };
    let annotations = annotations(workload, &parts.main, &added);
    let pod = PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace(&added, site)),
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
        runtime_class_name: added.runtime_class_name.clone(),
        priority_class_name: added.priority_class_name.clone(),
        containers: vec![parts.main],
        init_containers: (!parts.init.is_empty()).then_some(parts.init),
        volumes: (!parts.volumes.is_empty()).then_some(parts.volumes),
        ..PodSpec::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() }),
        spec: Some(match site {
            Site::Cluster(cluster) => on_cluster(pod, workload, &added, cluster),
            Site::Host(_) => pod,
        }),
    }
}

/// Which part of a request the pods do, where others of their model do another.
fn role_label(workload: &Workload) -> Option<(String, String)> {
    let Workload::Engine(engine) = workload else { return None };
    engine.role.map(|role| (ROLE_LABEL.to_owned(), role.to_string()))
}

/// Which others can use what the pods make of a prompt: those of the same model and engine. How they are
/// spread over devices may differ.
fn handover_label(workload: &Workload) -> Option<(String, String)> {
    let Workload::Engine(engine) = workload else { return None };
    let spec = &engine.spec;
    engine.role.map(|_| {
        let alike = json!({
            "model": spec.model, "task": spec.task, "adapters": spec.adapters, "engine": spec.engine,
            "experimental": spec.experimental,
        });
        (HANDOVER_LABEL.to_owned(), digest(&alike))
    })
}

/// The user's own, how metrics are to be asked for where that is not as usual, and the adapters.
fn annotations(
    workload: &Workload,
    main: &Container,
    added: &PodTemplate,
) -> Option<BTreeMap<String, String>> {
    let get = main.readiness_probe.as_ref().and_then(|probe| probe.http_get.as_ref());
    let scheme = get.and_then(|get| get.scheme.as_deref()).map(str::to_lowercase);
    let said = scheme.map(|scheme| ("prometheus.io/scheme".to_owned(), scheme));
    let mut all: BTreeMap<String, String> = said.into_iter().chain(added.annotations.clone()).collect();
    all.remove(ADAPTERS_ANNOTATION);
    if let Workload::Engine(engine) = workload
        && !engine.spec.adapters.is_empty()
    {
        let names: Vec<&str> = engine.spec.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        all.insert(ADAPTERS_ANNOTATION.to_owned(), names.join(","));
    }
    (!all.is_empty()).then_some(all)
}

/// What only a cluster has: an account, groups, Secrets of registries, nodes to spread over.
fn on_cluster(mut pod: PodSpec, workload: &Workload, added: &PodTemplate, site: &ClusterSite) -> PodSpec {
    if let Some(security) = &mut pod.security_context {
        security.run_as_group = Some(NOBODY);
        security.fs_group = Some(NOBODY);
        security.fs_group_change_policy = Some("OnRootMismatch".to_owned());
    }
    let own = added.image_pull_secrets.iter().map(|s| s.name.clone());
    let mut names: Vec<String> = own.chain(site.image_pull_secrets.iter().cloned()).collect();
    names.sort();
    names.dedup();
    pod.image_pull_secrets =
        (!names.is_empty()).then(|| names.into_iter().map(|name| LocalObjectReference { name }).collect());
    if workload.component() == Component::Scheduler {
        pod.service_account_name = Some(workload.name());
        pod.automount_service_account_token = Some(true);
    }
    let on_one_node = |engine: &EngineWorkload| {
        engine.spec.model.cache.as_ref().and_then(|c| c.scope) == Some(CacheScope::Node)
    };
    let (model, spreads) = match workload {
        Workload::Engine(engine) => (Some(engine.owner.name.as_str()), !on_one_node(engine)),
        _ => (None, true),
    };
    pod.topology_spread_constraints = spreads.then(|| {
        ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            .map(|key| spread(key, workload, model))
            .into()
    });
    pod
}

/// Replicas go to different nodes and zones where that can be had; those of one template among
/// themselves, so that a rollout is spread like what it replaces.
fn spread(key: &str, workload: &Workload, model: Option<&str>) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(
                match_labels(workload.component(), model).into_iter().chain(role_label(workload)).collect(),
            ),
            ..LabelSelector::default()
        }),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

/// Seconds from un-routing to the kill. On a cluster a stream may take its whole time: a pod that has
/// none left goes at once.
fn grace(added: &PodTemplate, site: Site<'_>) -> i64 {
    let streams = match site {
        Site::Cluster(_) => defaults::STREAM_TIMEOUT,
        Site::Host(_) => defaults::DRAIN_GRACE,
    };
    added.termination_grace_period_seconds.unwrap_or_else(|| seconds(defaults::PRE_STOP + streams))
}

/// What is left of the grace after the pod has left its Service, in seconds.
pub(super) fn stream_seconds(added: &PodTemplate) -> i64 {
    let pre_stop = seconds(defaults::PRE_STOP);
    let asked = added.termination_grace_period_seconds.map(|grace| grace.saturating_sub(pre_stop).max(1));
    asked.unwrap_or_else(|| seconds(defaults::STREAM_TIMEOUT))
}

/// The same, for the process to know.
pub(super) fn drain_grace(added: &PodTemplate) -> EnvVar {
    variable("STRATA_DRAIN_GRACE", stream_seconds(added).to_string())
}

fn on_host(workload: &Workload, site: &HostSite, added: &PodTemplate) -> Parts {
    let component = workload.component();
    // A scheduler that has no replica yet holds requests back until one comes: that is ready enough.
    let ready_path = if component == Component::Scheduler { "/health" } else { "/ready" };
    let main = Container {
        args: Some(args::args(workload, Site::Host(site))),
        env: Some(added_env(added)),
        resources: resources(added),
        startup_probe: Some(probe("/health", 1, 2, 600)),
        readiness_probe: Some(probe(ready_path, 1, 2, 2)),
        liveness_probe: Some(probe("/health", 10, 5, 3)),
        ..strata(component, None)
    };
    let init = match workload {
        Workload::Engine(engine) => host::fetch(&engine.spec, site),
        _ => Vec::new(),
    };
    Parts { main, init, volumes: Vec::new() }
}

/// A container with a component of Strata in it.
pub(super) fn strata(component: Component, image: Option<&ClusterSite>) -> Container {
    Container {
        name: component.name().to_owned(),
        command: Some(vec!["strata".to_owned(), component.name().to_owned()]),
        image: image.map(|site| site.image.clone()),
        image_pull_policy: image.and_then(|site| site.image_pull_policy.clone()),
        ports: Some(vec![port()]),
        lifecycle: Some(drain()),
        security_context: Some(restricted()),
        // The last words of a container that ends are in its status.
        termination_message_policy: image.map(|_| "FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// The scheduler of a namespace. It is ready when it knows the models and pods, with no replica too: it
/// holds requests back until one is there.
fn scheduler(workload: &Workload, site: &ClusterSite) -> Parts {
    let component = workload.component();
    let hop = hop::of(component, site);
    let mut env = environment(site);
    env.push(drain_grace(&PodTemplate::default()));
    env.push(from_field("STRATA_NAMESPACE", "metadata.namespace"));
    env.push(variable("STRATA_DRAIN_SECONDS", defaults::STREAM_TIMEOUT.as_secs().to_string()));
    env.extend(hop.env);
    let probe = |path, period, timeout, failures| Some(hop.scheme.probe(path, period, timeout, failures));
    let mut args = vec!["--kubernetes".to_owned()];
    let mut ports = vec![port()];
    if site.picker.is_some() {
        args.extend(["--extproc-listen".to_owned(), format!("0.0.0.0:{PICKER_PORT}")]);
        ports.push(ContainerPort { name: Some("picker".to_owned()), container_port: PICKER_PORT, ..port() });
    }
    let main = Container {
        args: Some(args),
        ports: Some(ports),
        env: Some(env),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&[("cpu", "50m"), ("memory", "64Mi")])),
            limits: Some(quantities(&[("memory", "1Gi")])),
            ..ResourceRequirements::default()
        }),
        startup_probe: probe("/health", 1, 2, 120),
        readiness_probe: probe("/ready", 2, 2, 2),
        liveness_probe: probe("/health", 10, 5, 3),
        volume_mounts: (!hop.mounts.is_empty()).then_some(hop.mounts),
        ..strata(component, Some(site))
    };
    Parts { main, init: Vec::new(), volumes: hop.volumes }
}

/// What every container of Strata is told on a cluster.
pub(super) fn environment(site: &ClusterSite) -> Vec<EnvVar> {
    let mut env = vec![variable(LISTEN_ENV, format!("0.0.0.0:{PORT}"))];
    env.extend(site.log_format.as_ref().map(|format| variable("STRATA_LOG_FORMAT", format.clone())));
    env
}

pub(super) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// A variable that has the value of one of the pod's own fields.
pub(super) fn from_field(name: &str, field: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: field.to_owned(), api_version: None }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// The user's own variables.
pub(super) fn added_env(added: &PodTemplate) -> Vec<EnvVar> {
    let from_secret = |name: &str, key: &str| EnvVarSource {
        secret_key_ref: Some(SecretKeySelector {
            name: name.to_owned(),
            key: key.to_owned(),
            optional: None,
        }),
        ..EnvVarSource::default()
    };
    added
        .env
        .iter()
        .map(|variable| EnvVar {
            name: variable.name.clone(),
            value: variable.value.clone(),
            value_from: variable
                .value_from
                .as_ref()
                .map(|source| from_secret(&source.secret_key_ref.name, &source.secret_key_ref.key)),
        })
        .collect()
}

/// The user's resources.
pub(super) fn resources(added: &PodTemplate) -> Option<ResourceRequirements> {
    added.resources.as_ref().map(|r| ResourceRequirements {
        limits: (!r.limits.is_empty()).then(|| r.limits.clone()),
        requests: (!r.requests.is_empty()).then(|| r.requests.clone()),
        ..ResourceRequirements::default()
    })
}

/// Resources by name.
pub(super) fn quantities(
    of: &[(&str, &str)],
) -> BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
    let quantity = |text: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    of.iter().map(|(name, text)| ((*name).to_owned(), quantity(text))).collect()
}

pub(super) fn port() -> ContainerPort {
    ContainerPort { name: Some("http".to_owned()), container_port: PORT, ..ContainerPort::default() }
}

/// The pod has left its Service and the schedulers' lists before it is told to stop.
pub(super) fn drain() -> Lifecycle {
    Lifecycle {
        pre_stop: Some(LifecycleHandler {
            sleep: Some(SleepAction { seconds: seconds(defaults::PRE_STOP) }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    }
}

/// As PodSecurity's profile `restricted` has it, and no writable root.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

pub(super) fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
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

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
