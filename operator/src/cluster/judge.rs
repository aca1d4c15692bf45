//! The verdict on one object, beside all others.

use std::sync::Arc;

use kube::ResourceExt;
use strata_kinds::unbuilt::Place;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::ClusterSite;
use crate::plan::{Plan, Verdict, World, plan};
use crate::workload::{EngineWorkload, Owner, Workload};

/// What is made of a model, and what should run for it when it is accepted.
pub fn judge(
    model: &ModelDeployment,
    all: &[Arc<ModelDeployment>],
    site: &ClusterSite,
) -> (Verdict, Option<EngineWorkload>) {
    let models: Vec<ModelDeployment> = all.iter().map(|m| (**m).clone()).collect();
    let plan = planned(&models, &[], &[], site);
    let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
    let verdict = plan
        .judged
        .iter()
        .find(|j| j.key.namespace == namespace && j.key.name == name)
        .map_or(Verdict::Accepted, |j| j.verdict.clone());
    let engine = plan.workloads.into_iter().find_map(|workload| match workload {
        Workload::Engine(e) if e.namespace == namespace && e.owner.name == name => Some(e),
        _ => None,
    });
    (verdict, engine)
}

/// What a model asks to run, whatever the verdict on it. A refused model keeps the children that it has:
/// an edit that is refused takes nothing down.
pub fn workload(model: &ModelDeployment) -> EngineWorkload {
    EngineWorkload {
        namespace: model.namespace().unwrap_or_default(),
        owner: Owner { name: model.name_any(), uid: model.uid() },
        spec: Box::new(model.spec.clone()),
    }
}

/// What is made of a tenant.
pub fn judge_tenant(tenant: &Tenant, site: &ClusterSite) -> Verdict {
    only(planned(&[], std::slice::from_ref(tenant), &[], site))
}

/// What is made of a policy.
pub fn judge_policy(policy: &QuotaPolicy, site: &ClusterSite) -> Verdict {
    only(planned(&[], &[], std::slice::from_ref(policy), site))
}

fn only(mut plan: Plan) -> Verdict {
    plan.judged.pop().map_or(Verdict::Accepted, |judged| judged.verdict)
}

fn planned(
    models: &[ModelDeployment],
    tenants: &[Tenant],
    policies: &[QuotaPolicy],
    site: &ClusterSite,
) -> Plan {
    let world = World { models, tenants, policies, secrets: None, namespace: &site.namespace };
    plan(&world, Place::Cluster, site.mode)
}
