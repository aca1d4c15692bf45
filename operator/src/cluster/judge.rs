//! The verdict on one object, beside all others.

use std::sync::Arc;

use kube::ResourceExt;
use strata_kinds::model_deployment::RoutingPolicy;
use strata_kinds::unbuilt::Place;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::ClusterSite;
use crate::Mode;
use crate::plan::{Verdict, World, judge_models, plan};
use crate::workload::EngineWorkload;

/// What is made of a model, and what should run for it when it is accepted. Of the others only those are
/// judged that can stand in its way.
pub fn judge(
    model: &ModelDeployment,
    all: &[Arc<ModelDeployment>],
    site: &ClusterSite,
) -> (Verdict, Option<EngineWorkload>) {
    let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
    let served = || {
        all.iter().map(|m| &**m).filter(|m| site.serves(m.metadata.namespace.as_deref().unwrap_or_default()))
    };
    let here = |m: &ModelDeployment| m.metadata.namespace.as_deref() == Some(namespace.as_str());
    // One scheduler serves a namespace: where all agree on its policy nobody is in the way.
    let disagree = served().any(|m| here(m) && policy(m) != policy(model));
    let matters = |m: &&ModelDeployment| {
        m.spec.model.name == model.spec.model.name || (disagree && here(m)) || site.mode == Mode::Development
    };
    let is_it = |m: &ModelDeployment| here(m) && m.name_any() == name;
    let candidates = served().filter(matters).filter(|m| !is_it(m)).chain([model]);
    let mut judged = Vec::new();
    let engines = judge_models(candidates, Place::Cluster, site.mode, &mut judged);
    let verdict = judged
        .into_iter()
        .find(|j| j.key.namespace == namespace && j.key.name == name)
        .map_or(Verdict::Accepted, |j| j.verdict);
    let engine = engines.into_iter().find(|e| e.namespace == namespace && e.owner.name == name);
    (verdict, engine)
}

fn policy(model: &ModelDeployment) -> RoutingPolicy {
    model.spec.routing.as_ref().and_then(|r| r.policy).unwrap_or_default()
}

/// What is made of a tenant.
pub fn judge_tenant(tenant: &Tenant, site: &ClusterSite) -> Verdict {
    only(std::slice::from_ref(tenant), &[], site)
}

/// What is made of a policy.
pub fn judge_policy(policy: &QuotaPolicy, site: &ClusterSite) -> Verdict {
    only(&[], std::slice::from_ref(policy), site)
}

fn only(tenants: &[Tenant], policies: &[QuotaPolicy], site: &ClusterSite) -> Verdict {
    let world = World { models: &[], tenants, policies, secrets: None, namespace: &site.namespace };
    let mut plan = plan(&world, Place::Cluster, site.mode);
    plan.judged.pop().map_or(Verdict::Accepted, |judged| judged.verdict)
}
