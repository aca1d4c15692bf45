//! The verdict on one object, beside all others.

use std::sync::Arc;

use kube::ResourceExt;
use strata_kinds::model_deployment::Runtime;
use strata_kinds::unbuilt::Place;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::{ClusterSite, Trust};
use crate::Mode;
use crate::condition::Reason;
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
    let matters = |m: &&ModelDeployment| m.spec.shares_a_name(&model.spec) || site.mode == Mode::Development;
    let is_it = |m: &ModelDeployment| here(m) && m.name_any() == name;
    let candidates = served().filter(matters).filter(|m| !is_it(m)).chain([model]);
    let mut judged = Vec::new();
    let engines = judge_models(candidates, Place::Cluster, site.mode, &mut judged);
    let verdict = judged
        .into_iter()
        .find(|j| j.key.namespace == namespace && j.key.name == name)
        .map_or(Verdict::Accepted, |j| j.verdict);
    if verdict == Verdict::Accepted
        && let Some(message) = no_entrance(model, site)
    {
        return (Verdict::Refused { reason: Reason::ModeLimit, message }, None);
    }
    let engine = engines.into_iter().find(|e| e.namespace == namespace && e.owner.name == name);
    (verdict, engine)
}

/// Why nobody could call the model, in a mode in which one platform is all the entrance there is.
fn no_entrance(model: &ModelDeployment, site: &ClusterSite) -> Option<String> {
    if site.mode.has_gateway() {
        return None;
    }
    if let Some(platforms) = &site.platform_namespace
        && model.metadata.namespace.as_deref() != Some(platforms)
    {
        return Some(format!(
            "in mode {} the platform serves the models of the namespace `{platforms}` alone: move it there, install the chart with platform.modelNamespace, or use mode enterprise",
            site.mode
        ));
    }
    let by_tls = site.mode == Mode::Development && site.trust == Trust::Mtls;
    (by_tls && model.spec.runtime() != Runtime::Native).then(|| {
        "in mode development the platform calls engines by TLS, and an image that is not Strata's has no certificate: install the chart with internalTls=false, or use mode production".to_owned()
    })
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
