//! `objects/good` and `objects/bad`: every rule of the schemas, with objects that keep it and objects
//! that break it. The first line of a bad one says which message to expect: `# refused: MESSAGE`, or
//! `# refused on update: MESSAGE` over two documents, of which the second is to replace the first. The
//! tests against an API server apply the same files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use strata_kinds::schema::Kind;
use strata_kinds::validate::{FieldError, validate, validate_update};

fn files(folder: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/objects").join(folder);
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read_to_string(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn documents(text: &str) -> Vec<Value> {
    text.split("---\n").map(|document| serde_yaml::from_str(document).unwrap()).collect()
}

fn kind(object: &Value) -> Kind {
    Kind::named(object["kind"].as_str().unwrap()).unwrap()
}

/// The expected message of a bad object, and what is said of it.
fn judge_bad(name: &str, text: &str) -> (String, Vec<FieldError>) {
    let head = text.lines().next().unwrap();
    let documents = documents(text);
    if let Some(message) = head.strip_prefix("# refused: ") {
        assert_eq!(documents.len(), 1, "{name}");
        (message.to_owned(), validate(kind(&documents[0]), &documents[0]))
    } else {
        let message = head.strip_prefix("# refused on update: ").unwrap_or_else(|| panic!("{name}: {head}"));
        let [old, new] = &documents[..] else { panic!("{name} needs two documents") };
        assert_eq!(validate(kind(old), old), [], "{name}");
        (message.to_owned(), validate_update(kind(new), new, old))
    }
}

#[test]
fn the_good_ones_are_accepted() {
    let files = files("good");
    assert!(files.len() > 20);
    for (name, text) in files {
        for object in documents(&text) {
            assert_eq!(validate(kind(&object), &object), [], "{name}");
        }
    }
}

#[test]
fn the_bad_ones_are_refused_for_one_reason() {
    let files = files("bad");
    assert!(files.len() > 60);
    for (name, text) in files {
        let (message, errors) = judge_bad(&name, &text);
        assert_eq!(errors.len(), 1, "{name}: {errors:?}");
        assert!(errors[0].message.contains(&message), "{name}: wanted {message}, got {errors:?}");
    }
}

/// Field and message of every rule in a schema.
fn rules(schema: &Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        found.insert((path.to_owned(), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        rules(property, &inner, found);
    }
    if let Some(items) = schema.get("items") {
        rules(items, &format!("{path}[]"), found);
    }
}

#[test]
fn every_rule_is_broken_by_one() {
    let broken: BTreeSet<(Kind, String, String)> = files("bad")
        .into_iter()
        .flat_map(|(name, text)| {
            let kind = kind(&documents(&text)[0]);
            let errors = judge_bad(&name, &text).1;
            errors.into_iter().map(move |error| {
                let path = regex::Regex::new(r"\[[0-9]+\]").unwrap().replace_all(&error.path, "[]");
                (kind, path.into_owned(), error.message)
            })
        })
        .collect();
    for kind in Kind::ALL {
        let mut all = BTreeSet::new();
        rules(kind.schema(), "", &mut all);
        assert!(all.len() > 5);
        // A prefill workload's pods have the rules of the model's own, from the same type.
        let unbroken: Vec<_> = all
            .into_iter()
            .filter(|(path, _)| !path.starts_with("spec.prefill.podTemplate."))
            .filter(|(path, message)| !broken.contains(&(kind, path.clone(), message.clone())))
            .collect();
        assert!(unbroken.is_empty(), "{kind}: no object in objects/bad breaks {unbroken:#?}");
    }
}
