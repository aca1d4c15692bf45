//! How others judge our objects: kstatus (Helm 4, Flux, Argo's wait) and `kubectl wait`.

use serde_json::{Value, json};

/// kstatus' verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    InProgress,
    Failed,
    Current,
    Terminating,
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// The rules of kstatus for custom resources, in its order.
pub fn kstatus(object: &Value) -> Health {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Health::Terminating;
    }
    let observed = object["status"].get("observedGeneration").and_then(Value::as_i64);
    if observed.is_some_and(|observed| Some(observed) != object["metadata"]["generation"].as_i64()) {
        return Health::InProgress;
    }
    let is = |kind: &str, status: &str| condition(object, kind).is_some_and(|c| c["status"] == status);
    if is("Reconciling", "True") {
        return Health::InProgress;
    }
    if is("Stalled", "True") {
        return Health::Failed;
    }
    if is("Ready", "False") || is("Ready", "Unknown") {
        return Health::InProgress;
    }
    Health::Current
}

/// `kubectl wait --for=condition=Ready`: a condition that speaks of an older generation does not count.
pub fn kubectl_wait(object: &Value) -> bool {
    let generation = object["metadata"]["generation"].as_i64();
    condition(object, "Ready").is_some_and(|c| {
        c["status"] == "True" && c["observedGeneration"].as_i64().is_none_or(|g| Some(g) >= generation)
    })
}

#[test]
fn an_object_that_nobody_has_looked_at_is_in_progress() {
    let new = json!({ "metadata": { "generation": 1 }, "status": { "observedGeneration": -1 } });
    assert_eq!(kstatus(&new), Health::InProgress, "the schema's default says so");
    assert!(!kubectl_wait(&new));
}
