//! `crds/` is what the types say, and what Kubernetes accepts.

use std::path::PathBuf;

use serde_json::Value;
use strata_kinds::crd;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crds")
}

#[test]
fn crds_are_as_generated() {
    let update = std::env::var_os("UPDATE_CRDS").is_some();
    for crd in crd::all() {
        let path = folder().join(format!("{}.yaml", crd.spec.names.plural));
        let wanted = crd::yaml(&crd);
        if update {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{} differs from the types: run `UPDATE_CRDS=1 cargo test -p strata-kinds --test crds`",
            path.display()
        );
    }
}

#[test]
fn each_is_small_enough_for_kubectl_apply() {
    for crd in crd::all() {
        let size = serde_json::to_vec(&crd).unwrap().len();
        println!("{}: {size} bytes", crd.spec.names.plural);
        assert!(size < crd::MAX_BYTES, "{} has {size} bytes", crd.spec.names.plural);
    }
}

fn visit(schema: &Value, path: &str, check: &mut dyn FnMut(&Value, &str)) {
    check(schema, path);
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        visit(property, &format!("{path}.{name}"), check);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(inner).filter(|s| s.is_object()) {
            visit(inner, &format!("{path}[]"), check);
        }
    }
}

#[test]
fn schemas_are_structural_and_described() {
    for kind in strata_kinds::schema::Kind::ALL {
        visit(kind.schema(), "", &mut |schema, path| {
            let either = schema.get("x-kubernetes-int-or-string").is_some();
            assert!(
                schema.get("type").is_some_and(Value::is_string) || either,
                "{kind}{path} has no type: {schema}"
            );
            for never in ["nullable", "oneOf", "anyOf", "allOf", "$ref"] {
                assert!(schema.get(never).is_none(), "{kind}{path} has {never}");
            }
            let described = schema.get("description").is_some();
            assert!(
                described || path.ends_with("[]") || path.is_empty() || path == ".metadata",
                "{kind}{path} has no description"
            );
        });
        let spec = &kind.schema()["properties"]["spec"];
        visit(spec, ".spec", &mut |schema, path| {
            assert!(schema.get("default").is_none(), "{kind}{path} has a default: defaults are the code's");
            if schema.get("type").and_then(Value::as_str) == Some("array") {
                assert!(schema.get("x-kubernetes-list-type").is_some(), "{kind}{path} has no list type");
                assert!(schema.get("maxItems").is_some(), "{kind}{path} has no bound");
            }
        });
    }
}

#[test]
fn status_is_unobserved_from_the_first_moment() {
    for kind in strata_kinds::schema::Kind::ALL {
        let status = &kind.schema()["properties"]["status"];
        assert_eq!(status["default"].to_string(), r#"{"observedGeneration":-1}"#);
        assert_eq!(
            status["properties"]["conditions"]["x-kubernetes-list-map-keys"].to_string(),
            r#"["type"]"#
        );
    }
}

#[test]
fn the_rules_compile() {
    for kind in strata_kinds::schema::Kind::ALL {
        let compiled = kube::core::cel::compile_schema(kind.schema());
        let errors: Vec<String> = compiled.compilation_errors().iter().map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{kind}: {errors:?}");
    }
}

#[test]
fn scale_and_columns_are_there() {
    let crd = &crd::all()[0];
    let version = &crd.spec.versions[0];
    let scale = version.subresources.as_ref().and_then(|s| s.scale.clone()).unwrap();
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
    let columns: Vec<_> =
        version.additional_printer_columns.iter().flatten().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["Ready", "Reason", "Replicas", "URL", "Age"]);
}
