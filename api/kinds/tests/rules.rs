//! Every rule of the schemas, with an object that keeps it and one that breaks it. No API server.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use strata_kinds::schema::Kind;
use strata_kinds::validate::{validate, validate_update};

fn good(kind: Kind) -> Value {
    let spec = match kind {
        Kind::ModelDeployment => {
            json!({ "model": { "name": "smollm2-135m", "uri": "file:///models/a.gguf" } })
        }
        Kind::Tenant => json!({ "models": ["*"] }),
        Kind::QuotaPolicy => json!({
            "limits": [{ "resource": "Requests", "limit": 10, "window": "1m" }],
            "budget": { "tokens": 1_000_000, "period": "Month" },
        }),
    };
    json!({ "apiVersion": Kind::api_version(), "kind": kind.name(), "metadata": { "name": "a" }, "spec": spec })
}

/// The good object of a kind with the value at `pointer` set, or taken away when it is null.
fn with(kind: Kind, pointer: &str, value: Value) -> Value {
    let mut object = good(kind);
    set(&mut object, pointer, value);
    object
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    if object.pointer(parent).is_none() {
        set(object, parent, json!({}));
    }
    match object.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => {
            map.remove(key);
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        other => panic!("{pointer} is inside {other}"),
    }
}

#[track_caller]
fn accepted(object: &Value) {
    let kind = Kind::named(object["kind"].as_str().unwrap()).unwrap();
    let errors = validate(kind, object);
    assert!(errors.is_empty(), "{object}\n{errors:?}");
}

#[track_caller]
fn refused(object: &Value, path: &str, message: &str) {
    let kind = Kind::named(object["kind"].as_str().unwrap()).unwrap();
    let errors = validate(kind, object);
    assert!(
        errors.iter().any(|e| e.path == path && e.message.contains(message)),
        "{object}\nwanted {path}: {message}\ngot {errors:?}"
    );
}

const MODEL: Kind = Kind::ModelDeployment;
const TENANT: Kind = Kind::Tenant;
const POLICY: Kind = Kind::QuotaPolicy;

#[test]
fn the_plainest_objects_are_good() {
    for kind in Kind::ALL {
        accepted(&good(kind));
    }
}

#[test]
fn structure_is_judged_with_advice() {
    for (object, path, message) in [
        (with(MODEL, "/spec/replica", json!(2)), "spec.replica", "did you mean `replicas`?"),
        (with(MODEL, "/spec/banana", json!(2)), "spec.banana", "the fields here are access, adapters"),
        (
            with(MODEL, "/spec/replicas", json!("2")),
            "spec.replicas",
            "must be an integer, not \"2\": remove the quotes",
        ),
        (with(MODEL, "/spec/replicas", json!(1.5)), "spec.replicas", "must be an integer, not 1.5"),
        (with(MODEL, "/spec/replicas", json!(-1)), "spec.replicas", "must be at least 0, not -1"),
        (
            with(MODEL, "/status", json!({ "replicas": 1_i64 << 40 })),
            "status.replicas",
            "must be between -2147483648 and 2147483647",
        ),
        (
            with(MODEL, "/spec/model/name", json!(7)),
            "spec.model.name",
            "must be a string, not 7: put it in quotes",
        ),
        (with(MODEL, "/spec/model/uri", Value::Null), "spec.model.uri", "is missing (Where the weights are"),
        (with(MODEL, "/spec/model", json!([])), "spec.model", "must be a mapping of fields, not a list"),
        (
            with(MODEL, "/spec/engine", json!({ "runtime": "native" })),
            "spec.engine.runtime",
            "did you mean Native?",
        ),
        (with(MODEL, "/spec", Value::Null), "spec", "is missing"),
        (with(MODEL, "/spec/model/name", json!("")), "spec.model.name", "must not be empty"),
        (with(TENANT, "/spec/priority", json!(5000)), "spec.priority", "must be at most 1000"),
        (with(TENANT, "/spec/models", json!("*")), "spec.models", "must be a list, not \"*\""),
        (
            with(TENANT, "/spec/models", json!(["a", "a"])),
            "spec.models[1]",
            "repeats \"a\" of `spec.models[0]`",
        ),
        (with(TENANT, "/spec/tier", json!(null)).clone(), "", ""),
    ] {
        if path.is_empty() {
            accepted(&object);
        } else {
            refused(&object, path, message);
        }
    }
    let null = json!({ "apiVersion": Kind::api_version(), "kind": "Tenant", "metadata": {"name": "a"}, "spec": { "tier": null } });
    refused(&null, "spec.tier", "not nothing: give it a value or remove the field");
}

#[test]
fn names_of_objects() {
    accepted(&with(MODEL, "/metadata/name", json!("smollm2-135m")));
    for bad in ["Smol", "2models", "a.b", "-a", "a-"] {
        refused(&with(MODEL, "/metadata/name", json!(bad)), "", "metadata.name must be lower-case");
    }
    refused(&with(MODEL, "/metadata/name", json!("a".repeat(51))), "", "at most 50 characters");
    accepted(&with(TENANT, "/metadata/name", json!("a".repeat(63))));
    refused(&with(TENANT, "/metadata/name", json!("a".repeat(64))), "", "at most 63 characters");
}

#[test]
fn names_of_models_and_their_places() {
    for ok in ["gpt-4o", "meta/llama-3:8b", "a", "A_b.c"] {
        accepted(&with(MODEL, "/spec/model/name", json!(ok)));
    }
    for bad in ["-a", "a b", "a/", "ü"] {
        refused(&with(MODEL, "/spec/model/name", json!(bad)), "spec.model.name", "must be letters, digits");
    }
    for ok in [
        "/a.gguf",
        "file:///a.gguf",
        "file://~/a.gguf",
        "hf://a/b",
        "oci://r/a:1",
        "s3://bkt/p",
        "pvc://c/p",
        "https://h/p",
    ] {
        accepted(&with(MODEL, "/spec/model/uri", json!(ok)));
    }
    for bad in ["a.gguf", "http://h/p", "hf://", "file:// a", "ftp://h/p"] {
        refused(&with(MODEL, "/spec/model/uri", json!(bad)), "spec.model.uri", "must be file://PATH");
    }
}

#[test]
fn a_model_keeps_its_name() {
    let old = good(MODEL);
    let renamed = with(MODEL, "/spec/model/name", json!("other"));
    let errors = validate_update(MODEL, &renamed, &old);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].path, "spec.model.name");
    assert!(errors[0].message.contains("make a new ModelDeployment"));
    assert!(validate_update(MODEL, &with(MODEL, "/spec/replicas", json!(3)), &old).is_empty());
}

#[test]
fn replicas_or_autoscaling() {
    let scaling = json!({ "min": 1, "max": 3 });
    accepted(&with(MODEL, "/spec/replicas", json!(3)));
    accepted(&with(MODEL, "/spec/autoscaling", scaling.clone()));
    let mut both = with(MODEL, "/spec/replicas", json!(3));
    set(&mut both, "/spec/autoscaling", scaling);
    refused(&both, "spec", "`replicas` or `autoscaling`, not both");
    let upside_down = with(MODEL, "/spec/autoscaling", json!({ "min": 4, "max": 3 }));
    refused(&upside_down, "spec.autoscaling", "`min` must not be larger than `max`");
    let sleepy = with(MODEL, "/spec/autoscaling", json!({ "min": 0, "max": 3, "sleepAfter": "soon" }));
    refused(&sleepy, "spec.autoscaling.sleepAfter", "such as 500ms or 5m");
}

#[test]
fn engines() {
    accepted(&with(MODEL, "/spec/engine", json!({ "runtime": "Vllm", "image": "vllm/vllm-openai:v1" })));
    accepted(&with(
        MODEL,
        "/spec/engine",
        json!({ "runtime": "Custom", "image": "x", "command": ["serve"] }),
    ));
    refused(&with(MODEL, "/spec/engine", json!({ "runtime": "Vllm" })), "spec.engine", "need `image`");
    let native = with(MODEL, "/spec/engine", json!({ "runtime": "Native", "image": "x" }));
    refused(&native, "spec", "`engine.image` is for the runtimes Vllm and Custom");
    let command =
        with(MODEL, "/spec/engine", json!({ "runtime": "Vllm", "image": "x", "command": ["serve"] }));
    refused(&command, "spec.engine", "`command` is for the runtime Custom");
    accepted(&with(MODEL, "/spec/engine", json!({ "kvCache": { "memory": "2Gi" } })));
    for bad in ["2 GB", "0", "two", "-1Gi"] {
        let object = with(MODEL, "/spec/engine", json!({ "kvCache": { "memory": bad } }));
        refused(&object, "spec.engine.kvCache.memory", "must be a number of bytes");
    }
    let both = with(MODEL, "/spec/engine", json!({ "kvCache": { "memory": "2Gi", "blocks": 7 } }));
    refused(&both, "spec.engine.kvCache", "`memory` or `blocks`, not both");
}

#[test]
fn pod_templates() {
    let template = |t: Value| with(MODEL, "/spec/podTemplate", t);
    accepted(&template(
        json!({ "env": [{ "name": "A", "value": "b" }], "resources": { "limits": { "cpu": 2, "memory": "4Gi" } } }),
    ));
    accepted(&template(
        json!({ "env": [{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }] }),
    ));
    refused(
        &template(json!({ "env": [{ "name": "A" }] })),
        "spec.podTemplate.env[0]",
        "`value` or `valueFrom`",
    );
    refused(
        &template(json!({ "env": [{ "name": "1A", "value": "" }] })),
        "spec.podTemplate.env[0].name",
        "begin with no digit",
    );
    refused(
        &template(json!({ "env": [{ "name": "STRATA_LISTEN", "value": "" }] })),
        "spec.podTemplate.env[0].name",
        "Strata's own",
    );
    let adapters = json!([{ "name": "a", "uri": "/a" }, { "name": "a", "uri": "/b" }]);
    refused(&with(MODEL, "/spec/adapters", adapters), "spec.adapters[1]", "repeats \"a\"");
    let twice = template(json!({ "env": [{ "name": "A", "value": "" }, { "name": "A", "value": "x" }] }));
    refused(&twice, "spec.podTemplate.env[1]", "repeats \"A\"");
    refused(
        &template(json!({ "labels": { "strata.dev/x": "y" } })),
        "spec.podTemplate.labels",
        "Strata's own",
    );
    let quantity = template(json!({ "resources": { "limits": { "cpu": "two" } } }));
    refused(&quantity, "spec.podTemplate.resources.limits.cpu", "A quantity, such as 2, 500m or 4Gi");
    refused(
        &template(json!({ "serviceAccountName": "A" })),
        "spec.podTemplate.serviceAccountName",
        "lower-case",
    );
}

#[test]
fn tenants() {
    let key = |k: Value| with(TENANT, "/spec/apiKeys", json!([k]));
    accepted(&key(
        json!({ "name": "ci", "secretRef": { "name": "ci-key" }, "expiresAt": "2030-01-31T12:00:00Z" }),
    ));
    refused(
        &key(json!({ "name": "ci", "secretRef": { "name": "s" }, "expiresAt": "tomorrow" })),
        "spec.apiKeys[0].expiresAt",
        "RFC 3339",
    );
    refused(
        &key(json!({ "name": "C I", "secretRef": { "name": "s" } })),
        "spec.apiKeys[0].name",
        "lower-case letters",
    );
    refused(
        &key(json!({ "name": "ci", "secretRef": { "name": "S!" } })),
        "spec.apiKeys[0].secretRef.name",
        "name of an object",
    );
    let twice = with(
        TENANT,
        "/spec/apiKeys",
        json!([
            { "name": "ci", "secretRef": { "name": "a" } },
            { "name": "ci", "secretRef": { "name": "b" } },
        ]),
    );
    refused(&twice, "spec.apiKeys[1]", "repeats \"ci\"");
    refused(&with(TENANT, "/spec/tier", json!("Gold")), "spec.tier", "lower-case letters");
    accepted(&with(TENANT, "/spec/timeZone", json!("America/Argentina/Buenos_Aires")));
    refused(&with(TENANT, "/spec/timeZone", json!("Berlin time")), "spec.timeZone", "IANA time zone");
    refused(&with(TENANT, "/spec/models", json!(["a b"])), "spec.models", "with * for any run");
}

#[test]
fn policies() {
    let limit = |k: &str, v: Value| with(POLICY, &format!("/spec/limits/0/{k}"), v);
    for bad in ["1", "0m", "1 m", "m", "1w", "-1m", "1m1s"] {
        refused(&limit("window", json!(bad)), "spec.limits[0].window", "such as 1m");
    }
    refused(&limit("onExceed", json!("Fallback")), "spec.limits[0]", "go together");
    refused(&limit("fallbackModel", json!("small")), "spec.limits[0]", "go together");
    let mut both = limit("onExceed", json!("Fallback"));
    set(&mut both, "/spec/limits/0/fallbackModel", json!("small"));
    accepted(&both);
    refused(&limit("limit", json!(-1)), "spec.limits[0].limit", "at least 0");
    refused(&limit("resource", json!("Request")), "spec.limits[0].resource", "did you mean Requests?");
    accepted(&with(POLICY, "/spec/budget", json!({ "amount": "100.50", "period": "Month" })));
    for bad in [json!({ "period": "Day" }), json!({ "tokens": 1, "amount": "1", "period": "Day" })] {
        refused(&with(POLICY, "/spec/budget", bad), "spec.budget", "exactly one of `tokens` and `amount`");
    }
    refused(
        &with(POLICY, "/spec/budget", json!({ "amount": "1e3", "period": "Day" })),
        "spec.budget.amount",
        "decimal number",
    );
    let price = |p: Value| with(POLICY, "/spec/pricing", json!([p]));
    accepted(&price(json!({ "model": "*", "currency": "EUR", "input": "0.1", "output": "0.4" })));
    refused(
        &price(json!({ "model": "*", "currency": "eur", "input": "0.1", "output": "0.4" })),
        "spec.pricing[0].currency",
        "three letters",
    );
    refused(
        &price(json!({ "model": "*", "currency": "EUR", "input": "ten", "output": "0.4" })),
        "spec.pricing[0].input",
        "decimal",
    );
    refused(
        &with(POLICY, "/spec/objectives", json!({ "ttft": "fast" })),
        "spec.objectives.ttft",
        "such as 500ms",
    );
    refused(
        &with(POLICY, "/spec/objectives", json!({ "availability": "often" })),
        "spec.objectives.availability",
        "percent",
    );
    refused(
        &with(POLICY, "/spec/concurrency", json!({ "requests": 0 })),
        "spec.concurrency.requests",
        "at least 1",
    );
    refused(
        &with(POLICY, "/spec/selector", json!({ "tiers": ["a b"] })),
        "spec.selector.tiers",
        "with * for any run",
    );
}
