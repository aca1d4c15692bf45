//! What children have in common: names, labels, owners, and the Services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use strata_kinds::ModelDeployment;
use strata_wire::replicas::Role;

use super::{ClusterSite, TRACK_LABEL};
use crate::render::{PICKER_PORT, PORT, ROLE_LABEL, Scheme, labels, match_labels, protocol};
use crate::workload::{Component, EngineWorkload, Owner, Workload};

/// The scheduler's name, and that of its account, role and the like.
pub(super) const SCHEDULER: &str = "strata-scheduler";

/// What all children of a model have.
pub(super) fn of_model(engine: &EngineWorkload) -> ObjectMeta {
    let owner = owner(&engine.owner, true);
    ObjectMeta {
        namespace: Some(engine.namespace.clone()),
        labels: Some(labels(Component::Engine, Some(&engine.owner.name))),
        owner_references: owner.map(|o| vec![o]),
        ..ObjectMeta::default()
    }
}

/// What all children of a namespace have: they belong to every model there, and go with the last.
pub(super) fn of_namespace(namespace: &str, component: Component, engines: &[EngineWorkload]) -> ObjectMeta {
    let owners = shared_owners(engines);
    ObjectMeta {
        namespace: Some(namespace.to_owned()),
        labels: Some(labels(component, None)),
        owner_references: (!owners.is_empty()).then_some(owners),
        ..ObjectMeta::default()
    }
}

/// References to every model of a namespace, none of which controls.
pub fn shared_owners(engines: &[EngineWorkload]) -> Vec<OwnerReference> {
    let mut owners: Vec<OwnerReference> = engines.iter().filter_map(|e| owner(&e.owner, false)).collect();
    owners.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    owners
}

pub(super) fn named(meta: &ObjectMeta, name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..meta.clone() }
}

/// An address for the replicas of a workload. Those that compute prompts for others answer nobody.
pub(super) fn service(workload: &Workload, site: &ClusterSite, meta: &ObjectMeta, name: &str) -> Service {
    let port = |name: &str, port, protocol: &str| ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        app_protocol: Some(protocol.to_owned()),
        ..ServicePort::default()
    };
    let scheme = protocol(workload, site);
    let mut ports = vec![port("http", PORT, scheme.as_str())];
    if site.picker.is_some() && workload.component() == Component::Scheduler {
        let grpc = if scheme == Scheme::Https { "https" } else { "kubernetes.io/h2c" };
        ports.push(port("picker", PICKER_PORT, grpc));
    }
    Service {
        metadata: named(meta, name),
        spec: Some(ServiceSpec {
            selector: Some(match workload {
                Workload::Engine(engine) => answering(engine),
                _ => match_labels(workload.component(), workload.model()),
            }),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The labels by which a track's Deployment knows its pods.
pub(super) fn of_track(engine: &EngineWorkload, track: &str) -> BTreeMap<String, String> {
    let mut labels = match_labels(Component::Engine, Some(&engine.owner.name));
    labels.insert(TRACK_LABEL.to_owned(), track.to_owned());
    labels
}

/// The labels of a model's pods that answer requests.
pub(super) fn answering(engine: &EngineWorkload) -> BTreeMap<String, String> {
    let mut labels = match_labels(Component::Engine, Some(&engine.owner.name));
    labels.extend(engine.role.map(|_| (ROLE_LABEL.to_owned(), Role::Decode.to_string())));
    labels
}

fn owner(owner: &Owner, controller: bool) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: ModelDeployment::api_version(&()).into_owned(),
        kind: ModelDeployment::kind(&()).into_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone()?,
        controller: controller.then_some(true),
        block_owner_deletion: controller.then_some(true),
    })
}
