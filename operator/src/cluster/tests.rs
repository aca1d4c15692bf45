use serde_json::json;

use super::*;
use crate::Mode;
use crate::plan::Verdict;

#[test]
fn a_model_has_a_service_and_a_deployment() {
    let model: strata_kinds::ModelDeployment = serde_json::from_value(json!({
        "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": { "name": "a", "namespace": "models", "uid": "1" },
        "spec": { "model": { "name": "m", "uri": "/m.gguf" } },
    }))
    .unwrap();
    let site = ClusterSite::new("strata:1", Mode::Production, "strata");
    let all = [Arc::new(model.clone())];
    let (verdict, engine) = judge(&model, &all, &site);
    assert_eq!(verdict, Verdict::Accepted);
    let downloads = BTreeMap::new();
    let seen = ModelSeen {
        deployments: &[],
        pods: &[],
        revisions: &[],
        schedulers: &[],
        downloads: &downloads,
        autoscaler: None,
        refused: &[],
    };
    let step = model_step(&engine.unwrap(), &seen, &site, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let kinds: Vec<_> = step.apply.iter().map(|c| c.key().kind).collect();
    assert_eq!(kinds, ["ControllerRevision", "Service", "Deployment"]);
}
