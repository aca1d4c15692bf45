//! The custom resource definitions, as `crds/` holds them.
//!
//! The derive gives the structure; what it cannot say is added here: a status that says "not yet
//! observed" from the first moment, keys of lists, Kubernetes' number formats, and a rule on names.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{ModelDeployment, QuotaPolicy, Tenant, cel};

/// Largest definition that client-side `kubectl apply` can carry in its annotation is 256 KiB; ours
/// stay well below.
pub const MAX_BYTES: usize = 200_000;

/// All definitions, in the order of their files.
pub fn all() -> Vec<CustomResourceDefinition> {
    // Names of models become names of Services, of which the longest has 12 more characters.
    let label =
        |max: usize| format!("self.metadata.name.matches('^[a-z]([-a-z0-9]{{0,{}}}[a-z0-9])?$')", max - 2);
    let message = |max: usize| {
        format!(
            "metadata.name must be lower-case letters, digits and '-', begin with a letter, and have at most {max} characters"
        )
    };
    vec![
        finish(&ModelDeployment::crd(), &label(50), &message(50)),
        finish(&Tenant::crd(), &label(63), &message(63)),
        finish(&QuotaPolicy::crd(), &label(63), &message(63)),
    ]
}

/// The definition as YAML, as its file has it.
pub fn yaml(crd: &CustomResourceDefinition) -> String {
    let header = "# Generated from api/kinds: UPDATE_CRDS=1 cargo test -p strata-kinds\n";
    let body = serde_yaml::to_string(crd).expect("a definition has only string keys and plain values");
    format!("{header}{body}")
}

fn finish(crd: &CustomResourceDefinition, name_rule: &str, name_message: &str) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a definition serializes");
    let root = value
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema")
        .expect("the derive writes one version with a schema");
    polish(root);
    root["x-kubernetes-validations"] = cel::rule(name_rule, name_message);
    // The derive leaves out what every object has; judging a folder needs it.
    root["properties"]["apiVersion"] =
        json!({ "type": "string", "description": "Group and version of the kind." });
    root["properties"]["kind"] = json!({ "type": "string", "description": "The kind." });
    root["properties"]["metadata"] = json!({ "type": "object" });
    root["properties"]["status"]["default"] = json!({ "observedGeneration": -1 });
    serde_json::from_value(value).expect("the polished definition is a definition")
}

/// Makes a derived schema say what Kubernetes expects, at every level.
fn polish(schema: &mut Value) {
    let Value::Object(node) = schema else { return };
    // An optional field is left out, never null.
    node.remove("nullable");
    if let Some(Value::String(format)) = node.get_mut("format") {
        match format.as_str() {
            "uint8" | "uint16" | "uint32" | "uint64" => "int64".clone_into(format),
            _ => {}
        }
    }
    if node.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        if node.get("description").and_then(Value::as_str).is_some_and(|d| d.starts_with("Quantity is")) {
            node.insert("description".to_owned(), json!("A quantity, such as 2, 500m or 4Gi."));
            node.insert(
                "pattern".to_owned(),
                json!("^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"),
            );
        }
        return;
    }
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        for (name, property) in properties.iter_mut() {
            polish(property);
            if name == "conditions" {
                key_by_type(property);
            }
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = node.get_mut(inner) {
            polish(inner);
        }
    }
}

/// Conditions are merged one by one, by type.
fn key_by_type(list: &mut Value) {
    if let Value::Object(list) = list {
        list.insert("x-kubernetes-list-type".to_owned(), json!("map"));
        list.insert("x-kubernetes-list-map-keys".to_owned(), json!(["type"]));
    }
}

/// The schema of a definition's one version.
pub(crate) fn schema_of(crd: &CustomResourceDefinition) -> Value {
    crd.spec
        .versions
        .first()
        .and_then(|v| v.schema.as_ref())
        .and_then(|s| s.open_api_v3_schema.as_ref())
        .and_then(|s| serde_json::to_value(s).ok())
        .unwrap_or(Value::Object(Map::new()))
}
