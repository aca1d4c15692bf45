//! The schema accepts the model URIs that `strata_wire::model_uri` parses, and no others.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;
use strata_kinds::schema::Kind;
use strata_kinds::validate::validate;
use strata_wire::model_uri::ModelUri;

fn is_valid(uri: &str, revision: Option<&str>) -> bool {
    let mut model = json!({ "name": "m", "uri": uri });
    if let Some(revision) = revision {
        model["revision"] = json!(revision);
    }
    let object = json!({
        "apiVersion": Kind::api_version(), "kind": "ModelDeployment",
        "metadata": { "name": "a" }, "spec": { "model": model },
    });
    validate(Kind::ModelDeployment, &object).is_empty()
}

#[test]
fn the_same_uris() {
    let hex = "0123456789abcdef".repeat(4);
    let digest = format!("oci://r:5000/a/b:t@sha256:{hex}");
    let checked = format!("https://h:1/a//b%20?x=/?y#sha256={hex}");
    for uri in [
        "hf://a/b",
        "hf://a/b/c/d.gguf@refs/pr/1",
        "oci://r/n",
        "oci://r.x:5000/a/b_c--d:V1",
        digest.as_str(),
        "s3://bucket/a/b/",
        "pvc://c",
        "pvc://c/",
        "pvc://c/a.b/c@d",
        "file:///",
        "/",
        "/ü/x@y",
        "file://~/a",
        "https://h/a",
        checked.as_str(),
    ] {
        assert!(ModelUri::parse(uri, None).is_ok(), "{uri} is not parsed");
        assert!(is_valid(uri, None), "{uri} is not valid");
    }
}

#[test]
fn the_same_revisions() {
    for (uri, revision) in [("hf://a/b", "refs/pr/1"), ("oci://r/n", "v1"), ("oci://r/n", "_x")] {
        assert!(
            ModelUri::parse(uri, Some(revision)).is_ok() && is_valid(uri, Some(revision)),
            "{uri} {revision}"
        );
    }
    for (uri, revision) in
        [("s3://bucket/p", "v1"), ("hf://a/b", ""), ("hf://a/b", "a b"), ("hf://a/b", "x/../y")]
    {
        assert!(
            ModelUri::parse(uri, Some(revision)).is_err() && !is_valid(uri, Some(revision)),
            "{uri} {revision}"
        );
    }
}

/// Right and nearly right URIs: one of each scheme's parts, one of them perhaps spoilt.
fn uris() -> impl Strategy<Value = String> {
    let segment = "[A-Za-z0-9._@:?#~%+ü\\n/ =-]{0,4}";
    let host = "([a-z0-9]{1,4}|[A-Za-z0-9.:_-]{0,4})";
    let tail = prop::collection::vec(segment, 0..4).prop_map(|parts| parts.join("/"));
    ("(hf|oci|s3|pvc|file|https|http|S3|)(://|:|/|)", host, "/{0,2}", tail, "(@[a-z0-9/.]{0,4}|:[a-z]{0,3}|)")
        .prop_map(|(scheme, host, slash, tail, end)| format!("{scheme}{host}{slash}{tail}{end}"))
        .prop_filter("the schema wants some text", |uri| !uri.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn whatever_is_valid_is_parsed_and_the_other_way_round(uri in uris()) {
        prop_assert_eq!(is_valid(&uri, None), ModelUri::parse(&uri, None).is_ok(), "{}", uri);
    }
}
