//! What a namespace with models has once: its scheduler, and who may talk to whom.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::meta::{self, SCHEDULER};
use super::revision::{History, Revision, scheduler_inputs};
use super::{Child, ClusterSite, REVISION_LABEL, policy, route, step};
use crate::render::{Site, match_labels, render};
use crate::workload::{Component, EngineWorkload, Owner, SchedulerWorkload, Workload};

/// What is seen of a namespace's own children: those that belong to no single model.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespaceSeen<'a> {
    /// ControllerRevisions of the scheduler.
    pub revisions: &'a [Arc<ControllerRevision>],
}

/// Pods of a scheduler: one may go while the other serves.
const REPLICAS: i32 = 2;

/// The objects that the accepted models of a namespace share; none when there is no model.
///
/// A model that is refused now and has children from before counts as well: see [`super::workload`].
pub fn namespace_step(
    namespace: &str,
    engines: &[EngineWorkload],
    seen: &NamespaceSeen<'_>,
    site: &ClusterSite,
) -> Vec<Child> {
    if engines.is_empty() {
        return Vec::new();
    }
    let mut apply = Vec::new();
    if site.network_policies {
        let of_engines = meta::of_namespace(namespace, Component::Engine, engines);
        apply.push(Child::of(&policy::engines(&of_engines, site)));
    }
    if !site.mode.has_scheduler() {
        return apply;
    }
    let meta = meta::of_namespace(namespace, Component::Scheduler, engines);
    let workload = Workload::Scheduler(SchedulerWorkload {
        namespace: namespace.to_owned(),
        owners: engines.iter().map(|e| e.owner.clone()).collect::<Vec<Owner>>(),
    });
    if site.network_policies {
        apply.push(Child::of(&policy::schedulers(&meta, site)));
    }
    apply.push(Child::of(&ServiceAccount {
        metadata: meta::named(&meta, SCHEDULER),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }));
    apply.push(Child::of(&role(&meta)));
    apply.push(Child::of(&binding(&meta, namespace)));
    apply.push(Child::of(&meta::service(&workload, site, &meta, SCHEDULER)));
    apply.push(Child::of(&step::budget(SCHEDULER, Component::Scheduler, None, &meta)));
    let history = History::of(SCHEDULER, seen.revisions);
    let settled =
        history.settle(&scheduler_inputs(site), || render(&workload, Site::Cluster(site)).template());
    // Older ones are not kept: a scheduler follows its image, back as well.
    let revision = settled.revision;
    apply.push(Child::of(&revision.object(SCHEDULER, &meta)));
    apply.push(deployment(&revision, &meta));
    apply.extend(route::of_namespace(namespace, engines, site));
    apply
}

fn deployment(revision: &Revision, meta: &ObjectMeta) -> Child {
    let mut object =
        Child::of(&Deployment { metadata: meta::named(meta, SCHEDULER), ..Deployment::default() });
    object.object["spec"] = json!({
        "replicas": REPLICAS,
        "selector": { "matchLabels": match_labels(Component::Scheduler, None) },
        "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "revisionHistoryLimit": 2,
        "template": revision.labelled(&[(REVISION_LABEL, &revision.hash)]),
    });
    object
}

/// What a scheduler reads: the models of its namespace, their pods and its own, and priorities by name. It
/// writes nothing.
fn role(meta: &ObjectMeta) -> Role {
    let reads = |group: &str, resource: &str| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: ["get", "list", "watch"].map(str::to_owned).into(),
        ..PolicyRule::default()
    };
    Role {
        metadata: meta::named(meta, SCHEDULER),
        rules: Some(vec![
            reads("", "pods"),
            reads(strata_kinds::GROUP, "modeldeployments"),
            reads("inference.networking.x-k8s.io", "inferenceobjectives"),
        ]),
    }
}

fn binding(meta: &ObjectMeta, namespace: &str) -> RoleBinding {
    RoleBinding {
        metadata: meta::named(meta, SCHEDULER),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: SCHEDULER.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: SCHEDULER.to_owned(),
            namespace: Some(namespace.to_owned()),
            api_group: None,
        }]),
    }
}
