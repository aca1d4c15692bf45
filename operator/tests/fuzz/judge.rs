//! What must hold for every object.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use strata_kinds::schema::Kind;
use strata_kinds::validate::{validate, validate_update};
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};
use strata_operator::Mode;
use strata_operator::cluster::{
    Capabilities, ClusterSite, ModelSeen, NamespaceSeen, Trust, judge as judge_model, model_status,
    model_step, namespace_step, policy_status, tenant_status, workload,
};
use strata_operator::render::{HostSite, Site, render};
use strata_operator::workload::Workload;

/// Bytes that an object's children may have beside a multiple of its own.
const CHILDREN: usize = 64 * 1024;

/// Why an object fails, if it does.
pub(crate) fn judge(kind: Kind, object: &Value) -> Result<(), String> {
    let errors = validate(kind, object);
    if errors != validate(kind, object) {
        return Err("validated twice, two answers".to_owned());
    }
    let _ = validate_update(kind, object, object);
    for mode in [Mode::Development, Mode::Enterprise] {
        let mut site = ClusterSite::new("strata:1", mode, "strata");
        if mode == Mode::Enterprise {
            site.capabilities = Capabilities::found(|_| true, true);
            site.trust = Trust::Mtls;
        }
        match kind {
            Kind::ModelDeployment => model(object, &site, errors.is_empty())?,
            Kind::Tenant => {
                if let Ok(tenant) = serde_json::from_value::<Tenant>(object.clone()) {
                    let status = || tenant_status(&tenant, &site, &[], Timestamp::UNIX_EPOCH);
                    same(&status(), &status())?;
                }
            }
            Kind::QuotaPolicy => {
                if let Ok(policy) = serde_json::from_value::<QuotaPolicy>(object.clone()) {
                    let status = || policy_status(&policy, &site, &[], Timestamp::UNIX_EPOCH);
                    same(&status(), &status())?;
                }
            }
        }
    }
    // What the schema accepts, the types read.
    let reads = match kind {
        Kind::ModelDeployment => serde_json::from_value::<ModelDeployment>(object.clone()).map(drop),
        Kind::Tenant => serde_json::from_value::<Tenant>(object.clone()).map(drop),
        Kind::QuotaPolicy => serde_json::from_value::<QuotaPolicy>(object.clone()).map(drop),
    };
    match reads {
        Err(error) if errors.is_empty() => Err(format!("valid, and cannot be read: {error}")),
        _ => Ok(()),
    }
}

fn same<T: PartialEq>(first: &T, second: &T) -> Result<(), String> {
    if first == second { Ok(()) } else { Err("asked twice, two answers".to_owned()) }
}

fn model(object: &Value, site: &ClusterSite, valid: bool) -> Result<(), String> {
    let Ok(model) = serde_json::from_value::<ModelDeployment>(object.clone()) else { return Ok(()) };
    let now = Timestamp::UNIX_EPOCH;
    let (verdict, engine) = judge_model(&model, &[Arc::new(model.clone())], site);
    let forced = workload(&model);
    let host = HostSite::default();
    let rendered = render(&Workload::Engine(forced.clone()), Site::Host(&host));
    same(&rendered, &render(&Workload::Engine(forced.clone()), Site::Host(&host)))?;

    let downloads = BTreeMap::new();
    let look = |deployments: &[Arc<Deployment>], revisions: &[Arc<ControllerRevision>]| {
        let seen = ModelSeen {
            deployments,
            pods: &[],
            revisions,
            schedulers: &[],
            downloads: &downloads,
            autoscaler: None,
            refused: &[],
        };
        let step = model_step(&forced, &seen, site, now);
        let status = model_status(&model, &verdict, engine.as_ref(), &seen, site, now);
        (step, status)
    };
    let (step, status) = look(&[], &[]);
    same(&(step.clone(), status), &look(&[], &[]))?;
    let shared = namespace_step("models", std::slice::from_ref(&forced), &NamespaceSeen::default(), site);
    let size: usize = step.apply.iter().chain(&shared).map(|c| c.object.to_string().len()).sum();
    if valid && size > CHILDREN + 16 * object.to_string().len() {
        return Err(format!("{size} bytes of children"));
    }
    // What was applied is found again, and is applied as it was.
    let typed = |kind: &'static str| {
        step.apply.iter().filter(move |c| c.key().kind == kind).map(|c| c.object.clone())
    };
    let deployments: Vec<Arc<Deployment>> = typed("Deployment")
        .map(|o| serde_json::from_value(o).map(Arc::new).map_err(|e| format!("Deployment: {e}")))
        .collect::<Result<_, _>>()?;
    let revisions: Vec<Arc<ControllerRevision>> = typed("ControllerRevision")
        .map(|o| serde_json::from_value(o).map(Arc::new).map_err(|e| format!("ControllerRevision: {e}")))
        .collect::<Result<_, _>>()?;
    let (again, _) = look(&deployments, &revisions);
    let template = |of: &strata_operator::cluster::ModelStep| {
        let deployment = of.apply.iter().find(|c| c.key().kind == "Deployment");
        deployment.map(|c| c.object["spec"]["template"].clone())
    };
    same(&template(&step), &template(&again))?;
    if again.apply.iter().any(|c| c.key().kind == "ControllerRevision") {
        return Err("a second look records the revision again".to_owned());
    }
    let accepted = verdict == strata_operator::plan::Verdict::Accepted;
    if valid && accepted && deployments.len() != 1 + usize::from(forced.spec.prefill.is_some()) {
        return Err("a valid model has not its Deployments".to_owned());
    }
    Ok(())
}
