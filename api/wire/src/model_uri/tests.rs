use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parsed(uri: &str) -> ModelUri {
    ModelUri::parse(uri, None).unwrap_or_else(|e| panic!("{uri}: {e}"))
}

fn refusal(uri: &str, revision: Option<&str>) -> String {
    match ModelUri::parse(uri, revision) {
        Ok(uri) => panic!("taken: {uri:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_path_for_each_form() {
    let https = format!("https://h.example:8443/a%20b/m%2Bx.gguf?sig=1#sha256={DIGEST}");
    let oci = format!("oci://r.example:5000/team/model:v1@sha256:{DIGEST}");
    let cases = [
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf://a/b@refs/pr/1",
        "hf://bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf",
        "hf://a/b/sub/c.gguf@v1.0",
        "oci://registry.example/models/llama",
        "oci://registry.example/models/llama:3-8b",
        oci.as_str(),
        "s3://my-bucket/llama-3",
        "s3://my-bucket/llama-3/",
        "s3://my-bucket/deep/er/model.GGUF",
        https.as_str(),
        "pvc://models",
        "pvc://models/",
        "pvc://models/smollm2.gguf",
        "file:///models/a.gguf",
        "file://~/a.gguf",
        "/models/llama",
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|uri| {
            let path = model_path(uri, None).unwrap_or_else(|e| panic!("{uri}: {e}"));
            assert_eq!(path, parsed(uri).path());
            format!("{uri}\n  {}\n  {}", parsed(uri), path.under("/models/"))
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_revision_may_stand_in_the_uri_or_beside_it() {
    for (uri, revision, same) in [
        ("hf://a/b", Some("v1"), "hf://a/b@v1"),
        ("hf://a/b@v1", Some("v1"), "hf://a/b@v1"),
        ("hf://a/b", None, "hf://a/b@main"),
        ("oci://r/m", Some("v1"), "oci://r/m:v1"),
        ("oci://r/m", None, "oci://r/m:latest"),
    ] {
        assert_eq!(ModelUri::parse(uri, revision).unwrap(), parsed(same));
    }
    let digest = format!("sha256:{DIGEST}");
    let by_digest = ModelUri::parse("oci://r/m", Some(&digest)).unwrap();
    assert_eq!(by_digest, parsed(&format!("oci://r/m@{digest}")));
    assert_eq!(by_digest, parsed(&format!("oci://r/m:moved@{digest}")));
    assert_eq!(model_path("s3://bkt/m", None), model_path("s3://bkt/m/", None));
}

#[test]
fn refusals_say_what_to_do() {
    let long = format!("hf://a/{}", "b".repeat(97));
    let cases: &[(&str, Option<&str>)] = &[
        ("", None),
        ("a.gguf", None),
        ("ftp://h/p", None),
        ("hf://", None),
        ("hf://a", None),
        ("hf://a/", None),
        ("hf://a/b/", None),
        ("hf://a/b//c", None),
        ("hf://a/b@", None),
        ("hf://a/b@x y", None),
        ("hf://a/../b", None),
        ("hf://a/..", None),
        ("hf://a/b@..", None),
        ("hf://-a/b", None),
        (&long, None),
        ("hf://a/b", Some("../x")),
        ("hf://a/b", Some("")),
        ("hf://a/b@v1", Some("v2")),
        ("oci://r", None),
        ("oci://r/Name", None),
        ("oci://r/n:", None),
        ("oci://r/n@sha256:12", None),
        ("oci://r:x/n", None),
        ("oci://r/n", Some("sha256:zz")),
        ("s3://b/p", None),
        ("s3://bucket", None),
        ("s3://bucket//p", None),
        ("s3://bucket/../p", None),
        ("s3://bucket/p", Some("v1")),
        ("pvc://Claim/p", None),
        ("pvc://c/p/../../etc", None),
        ("pvc://c//p", None),
        ("file://a", None),
        ("file:// a", None),
        ("file:///a/../b", None),
        ("/a b", None),
        ("file:///a", Some("v1")),
        ("http://h/p", None),
        ("https://user:pw@h/p", None),
        ("https://h/", None),
        ("https://h", None),
        ("https:///p", None),
        ("https://h/a b", None),
        ("https://h/p#md5=1", None),
        ("https://h/p?q=<", None),
        ("https://h/..", None),
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|(uri, revision)| format!("{uri} {revision:?}\n  {}", refusal(uri, *revision)))
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_password_in_a_uri_is_not_repeated() {
    assert!(!refusal("https://user:hunter2@h/p", None).contains("hunter2"));
}

#[test]
fn plain_http_needs_leave() {
    let plain = ModelUri::parse_with("http://127.0.0.1:8/a.gguf", None, PlainHttp::Accepted).unwrap();
    assert_eq!(plain.to_string(), "http://127.0.0.1:8/a.gguf");
    assert_eq!(plain.path().entry, format!("{}/a.gguf", plain.path().dir));
}

/// URIs of every form, right and nearly right.
fn uris() -> impl Strategy<Value = String> {
    let segment = "[A-Za-z0-9._@:?#~%+ -]{0,6}";
    let path = prop::collection::vec(segment, 0..4).prop_map(|parts| parts.join("/"));
    ("(hf|oci|s3|pvc|file|https|http|)(://|:|/)?", path, "(@[a-z/.]{0,4}|:[a-z]{0,3}|)")
        .prop_map(|(scheme, path, tail)| format!("{scheme}{path}{tail}"))
}

proptest! {
    #[test]
    fn whatever_is_parsed_has_a_path_that_stays_inside(uri in uris(), any in any::<String>()) {
        for uri in [uri, any] {
            let Ok(parsed) = ModelUri::parse(&uri, None) else { continue };
            let path = parsed.path();
            prop_assert!(Path::new(&path.entry).components().all(|c| c != Component::ParentDir));
            if parsed.source() == ModelSource::Fetched {
                prop_assert!(path.dir.len() <= 96, "{}", path.dir);
                prop_assert!(!path.dir.contains('/') && !path.dir.starts_with('.'));
                let inside = path.entry.strip_prefix(&path.dir).is_some_and(|r| r.is_empty() || r.starts_with('/'));
                prop_assert!(inside, "{}", path.entry);
            } else {
                prop_assert!(path.dir.is_empty());
            }
        }
    }

    #[test]
    fn the_canonical_form_is_parsed_to_the_same(uri in uris()) {
        if let Ok(parsed) = ModelUri::parse(&uri, None) {
            prop_assert_eq!(ModelUri::parse(&parsed.to_string(), None), Ok(parsed));
        }
    }

    #[test]
    fn other_files_are_elsewhere(a in uris(), b in uris()) {
        if let (Ok(a), Ok(b)) = (ModelUri::parse(&a, None), ModelUri::parse(&b, None))
            && a.source() == ModelSource::Fetched && b.source() == ModelSource::Fetched
        {
            prop_assert_eq!(a.to_string() == b.to_string(), a.path() == b.path());
        }
    }
}
