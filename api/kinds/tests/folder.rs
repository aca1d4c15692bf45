//! Folders of manifests: what is read, and what is said about the rest.

use proptest::prelude::*;
use strata_kinds::manifest::{Folder, ProblemReason, from_texts, keep_last_good, load};

const MODEL: &str = "apiVersion: strata.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: smol
spec:
  model:
    name: smollm2
    uri: file:///models/smol.gguf
  replicas: 2
";
const TENANT: &str = "apiVersion: strata.dev/v1alpha1
kind: Tenant
metadata: { name: acme }
spec: { models: ['smollm2*'] }
";

fn read(texts: &[(&str, &str)]) -> Folder {
    from_texts(texts.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect())
}

fn problems(folder: &Folder) -> String {
    folder.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn many_documents_and_formats() {
    let json = r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"},
        "stringData": {"id": "k1", "hash": "v1$00"}}"#;
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: strata.dev/v1alpha1\n  kind: QuotaPolicy\n  metadata: {name: q}\n  spec: {}\n";
    let folder =
        read(&[("a.yaml", &format!("# the model\n{MODEL}---\n{TENANT}")), ("b.json", json), ("c.yml", list)]);
    assert_eq!(problems(&folder), "");
    assert_eq!((folder.models.len(), folder.tenants.len(), folder.policies.len()), (1, 1, 1));
    assert_eq!(folder.models[0].metadata.namespace.as_deref(), Some("strata"));
    assert_eq!(folder.secret_entry("key", "id").as_deref(), Some("k1"));
    assert_eq!(folder.sources.values().map(|s| s.line).collect::<Vec<_>>(), [2, 4, 1, 12]);
}

#[test]
fn each_problem_says_where_what_and_what_to_do() {
    let folder = read(&[
        ("a.yaml", &MODEL.replace("replicas", "replica")),
        ("b.yaml", &MODEL.replace("replicas: 2", "replicas: many")),
        ("c.yaml", "apiVersion: strata.dev/v1alpha1\nkind: Modeldeployment\nmetadata: {name: x}\n"),
        ("d.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"),
        ("e.yaml", "apiVersion: strata.dev/v1\nkind: Tenant\nmetadata: {name: x}\nspec: {}\n"),
        ("f.yaml", "kind: [Tenant\n"),
        ("g.yaml", "just text\n"),
        ("h.yaml", &MODEL.replace("  name: smol\n", "")),
        ("i.yaml", &MODEL.replace("file:///models/smol.gguf", "pvc://models/smol")),
        ("j.yaml", &MODEL.replace("replicas: 2", "autoscaling:\n    min: 1\n    max: 3")),
        ("k.yaml", &format!("{TENANT}---\n{TENANT}")),
        ("l.json", "{\"kind\": \"Tenant\",\n]"),
        ("m.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {hash: 'no base64!'}\n"),
        ("n.yaml", &TENANT.replace("name: acme", "name: acme, namespace: other")),
        ("o.yaml", &TENANT.replace("acme", "beta").replace("{ models", "{ Models")),
        ("p.yaml", "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {Name: x}\nspec: {}\n"),
    ]);
    insta::assert_snapshot!(problems(&folder));
    assert!(folder.models.is_empty());
    assert_eq!(folder.tenants.len(), 1);
}

#[test]
fn folders_that_hold_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let missing = load(&temp.path().join("nowhere"));
    assert!(missing.problems[0].to_string().contains("does not exist: name a folder with manifests"));
    let empty = load(temp.path());
    assert!(empty.problems[0].to_string().contains("has no *.yaml"), "{}", empty.problems[0]);
    std::fs::write(temp.path().join("a.yaml"), MODEL).unwrap();
    std::fs::write(temp.path().join("b.yaml"), b"\xff\xfe").unwrap();
    std::fs::write(temp.path().join("notes.txt"), "kind: nothing").unwrap();
    let folder = load(temp.path());
    assert_eq!(folder.models.len(), 1);
    assert_eq!(problems(&folder), "b.yaml: is not UTF-8 text");
    let file = load(&temp.path().join("a.yaml"));
    assert!(file.problems[0].to_string().contains("is a file: name the folder"));
}

#[test]
fn a_broken_edit_stops_nothing_that_runs() {
    let good = read(&[("a.yaml", MODEL), ("b.yaml", TENANT)]);
    let broken =
        read(&[("a.yaml", &MODEL.replace("replicas: 2", "replicas: many")), ("b.yaml", "kind: [\n")]);
    assert!(broken.models.is_empty() && broken.tenants.is_empty());
    let kept = keep_last_good(&good, broken);
    assert_eq!(kept.models, good.models);
    assert_eq!(kept.tenants, good.tenants);
    assert_eq!(kept.problems.len(), 2);

    let deleted = keep_last_good(&good, read(&[("b.yaml", TENANT)]));
    assert!(deleted.models.is_empty(), "a deleted manifest is gone");
    assert_eq!(deleted.tenants.len(), 1);

    let changed = keep_last_good(&good, read(&[("a.yaml", &MODEL.replace("replicas: 2", "replicas: 3"))]));
    assert_eq!(changed.models[0].spec.replicas, Some(3));

    let away = keep_last_good(&good, load(std::path::Path::new("/nowhere/at/all")));
    assert_eq!(away.models.len(), 1, "a folder that is away for a moment stops nothing");
}

#[test]
fn a_change_of_what_cannot_change_is_refused() {
    let good = read(&[("a.yaml", MODEL)]);
    let kept = keep_last_good(&good, read(&[("a.yaml", &MODEL.replace("name: smollm2", "name: other"))]));
    assert_eq!(kept.models[0].spec.model.name, "smollm2");
    assert_eq!(kept.problems[0].reason, ProblemReason::Invalid);
    insta::assert_snapshot!(problems(&kept), @"a.yaml:1: ModelDeployment smol: `spec.model.name` cannot be changed: make a new ModelDeployment for the new name");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = from_texts(vec![("a.yaml".into(), text.clone()), ("b.json".into(), text)]);
    }

    #[test]
    fn no_edit_of_a_manifest_panics(at in 0..MODEL.len(), with in "[-a-z0-9:{}\\[\\]\"'&*!|>%@`#,? \n\t]{0,6}", cut in 0usize..40) {
        let mut text = MODEL.to_owned();
        let end = (at + cut).min(text.len());
        text.replace_range(at..end, &with);
        let folder = from_texts(vec![("a.yaml".into(), text)]);
        prop_assert!(folder.models.len() <= 1);
    }
}
