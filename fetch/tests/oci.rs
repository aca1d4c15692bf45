//! Registries: a fake that gives tokens which expire. A real registry is asked elsewhere.
#![allow(clippy::unwrap_used)]

mod fake;

use std::io::Write;

use fake::{Fake, Fault, fetch, models, noise, options, sha256};
use serde_json::{Value, json};
use strata_fetch::{Credentials, FetchError, FetchOptions};

fn with_user(fake: &Fake, reference: &str, to: &std::path::Path) -> FetchOptions {
    let credentials =
        Credentials::from_pairs([("REGISTRY_USERNAME", "ada"), ("REGISTRY_PASSWORD", "secret")]);
    let uri = format!("oci://127.0.0.1:{}/{reference}", fake.port);
    FetchOptions { credentials: credentials.unwrap(), ..options(uri, to) }
}

fn layer(fake: &Fake, media_type: &str, title: Option<&str>, bytes: &[u8]) -> Value {
    let digest = format!("sha256:{}", sha256(bytes));
    fake.put(&format!("/v2/team/model/blobs/{digest}"), bytes.to_vec());
    let annotations = title.map_or(json!({}), |t| json!({ "org.opencontainers.image.title": t }));
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations })
}

fn manifest(fake: &Fake, tag: &str, body: &Value) -> String {
    let body = body.to_string();
    let digest = format!("sha256:{}", sha256(body.as_bytes()));
    for reference in [tag, &digest] {
        fake.put(&format!("/v2/team/model/manifests/{reference}"), body.clone());
    }
    digest
}

fn tar(entries: &[(&str, &[u8])], is_gzip: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    if !is_gzip {
        return bytes;
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    gzip.finish().unwrap()
}

#[tokio::test]
async fn an_artifact_with_titles() {
    let fake = Fake::start().await;
    let weights = noise(700_000, 1);
    let layers = [
        layer(&fake, "application/vnd.oci.image.layer.v1.tar", Some("model.safetensors"), &weights),
        layer(&fake, "application/json", Some("config.json"), b"{}"),
        layer(&fake, "application/json", None, b"no title"),
    ];
    let digest = manifest(&fake, "v1", &json!({ "schemaVersion": 2, "layers": layers }));
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(with_user(&fake, "team/model:v1", to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path.join("model.safetensors")).unwrap() == weights);
    assert_eq!(std::fs::read(fetched.path.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read_dir(&fetched.path).unwrap().count(), 3);

    let by_digest = fetch(with_user(&fake, &format!("team/model@{digest}"), to.path())).await.unwrap();
    assert_ne!(by_digest.path, fetched.path);
    let marker: Value =
        serde_json::from_slice(&std::fs::read(by_digest.path.join(".strata-model.json")).unwrap()).unwrap();
    assert_eq!(marker["revision"], json!(digest));
}

#[tokio::test]
async fn tokens_are_had_by_challenge_and_again_when_they_expire() {
    let fake = Fake::start().await;
    let weights = noise(900_000, 1);
    let layers = [layer(&fake, "application/octet-stream", Some("m.gguf"), &weights)];
    manifest(&fake, "latest", &json!({ "layers": layers }));
    let realm = format!("{}/token", fake.url);
    fake.script(move |seen| {
        if seen.path.starts_with("/token?") {
            assert_eq!(seen.header("authorization"), Some("Basic YWRhOnNlY3JldA=="));
            assert!(
                seen.path.contains("service=reg")
                    && seen.path.contains("scope=repository%3Ateam%2Fmodel%3Apull")
            );
            return Some(Fault::Answer(
                200,
                vec![],
                json!({ "token": format!("t{}", seen.nth) }).to_string(),
            ));
        }
        // Tokens expire with every second part.
        let token = seen
            .header("authorization")
            .and_then(|a| a.strip_prefix("Bearer t"))
            .and_then(|n| n.parse::<u64>().ok());
        let part = seen.range().map_or(0, |(first, _)| first / (512 * 1024));
        if token.is_none_or(|t| t < part) {
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:team/model:pull\"");
            return Some(Fault::Answer(401, vec![("www-authenticate", challenge)], String::new()));
        }
        None
    });
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(with_user(&fake, "team/model", to.path())).await.unwrap();
    assert!(std::fs::read(fetched.path.join("m.gguf")).unwrap() == weights);
}

#[tokio::test]
async fn a_wrong_password_says_what_to_set() {
    let fake = Fake::start().await;
    fake.script(|_| {
        let headers = vec![("www-authenticate", "Basic realm=\"r\"".to_owned())];
        let body = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
        Some(Fault::Answer(401, headers, body.to_string()))
    });
    let to = tempfile::tempdir().unwrap();
    let error = fetch(with_user(&fake, "team/model", to.path())).await.unwrap_err().to_string();
    assert!(
        error.contains("UNAUTHORIZED: authentication required") && error.contains("REGISTRY_PASSWORD"),
        "{error}"
    );
}

#[tokio::test]
async fn the_models_folder_of_an_image() {
    let fake = Fake::start().await;
    let weights = noise(500_000, 7);
    let base = tar(&[("bin/sh", b"no"), ("models/config.json", b"old")], true);
    let model = tar(&[("models/config.json", b"new"), ("models/model.safetensors", &weights)], false);
    let layers = [
        layer(&fake, "application/vnd.oci.image.layer.v1.tar+gzip", None, &base),
        layer(&fake, "application/vnd.oci.image.layer.v1.tar", None, &model),
    ];
    let image = json!({ "layers": layers });
    let digest = manifest(&fake, "image", &image);
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = json!({ "manifests": [
        { "digest": "sha256:0", "size": 1, "platform": { "os": "linux", "architecture": "s390x" } },
        { "digest": digest, "size": image.to_string().len(), "platform": { "os": "linux", "architecture": machine } },
    ] });
    manifest(&fake, "v1", &index);
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(with_user(&fake, "team/model:v1", to.path())).await.unwrap();
    assert_eq!(std::fs::read(fetched.path.join("config.json")).unwrap(), b"new");
    assert!(std::fs::read(fetched.path.join("model.safetensors")).unwrap() == weights);
    assert!(!to.path().join(".fetch").join(fetched.path.file_name().unwrap()).join("archives").exists());
}

#[tokio::test]
async fn what_is_no_model_is_refused() {
    let fake = Fake::start().await;
    let no_models = tar(&[("bin/sh", b"no")], true);
    let evil = tar(&[("a/x", b"x")], false);
    let mut evil = evil;
    evil[..6].copy_from_slice(b"../../");
    let header = 148..156;
    evil[header.clone()].copy_from_slice(b"        ");
    let sum: u32 = evil[..512].iter().map(|b| u32::from(*b)).sum();
    evil[header].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    for (tag, layers, wanted) in [
        ("none", vec![], "no layer with a model"),
        (
            "base",
            vec![layer(&fake, "application/vnd.oci.image.layer.v1.tar+gzip", None, &no_models)],
            "folder /models",
        ),
        ("title", vec![layer(&fake, "application/json", Some("../x"), b"{}")], "cannot be a file of a model"),
        (
            "evil",
            vec![layer(&fake, "application/vnd.kitops.modelkit.model.v1.tar", None, &evil)],
            "cannot be a file of a model",
        ),
        ("zstd", vec![layer(&fake, "application/vnd.oci.image.layer.v1.tar+zstd", None, b"x")], "zstd"),
        (
            "twice",
            vec![layer(&fake, "a/b", Some("x"), b"1"), layer(&fake, "a/b", Some("x"), b"2")],
            "it is there twice",
        ),
    ] {
        manifest(&fake, tag, &json!({ "layers": layers }));
        let to = tempfile::tempdir().unwrap();
        let error =
            fetch(with_user(&fake, &format!("team/model:{tag}"), to.path())).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{tag}: {error}");
        assert!(models(to.path()).is_empty());
    }
}

#[tokio::test]
async fn blobs_and_manifests_are_checked() {
    let fake = Fake::start().await;
    let layers = [layer(&fake, "a/b", Some("m.gguf"), &noise(600_000, 1))];
    manifest(&fake, "v1", &json!({ "layers": layers }));
    fake.script(|seen| seen.path.contains("/blobs/").then_some(Fault::Flip));
    let to = tempfile::tempdir().unwrap();
    let error = fetch(with_user(&fake, "team/model:v1", to.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::Mismatch { .. }), "{error}");
    let digest = format!("sha256:{}", "0".repeat(64));
    fake.put(&format!("/v2/team/model/manifests/{digest}"), json!({ "layers": layers }).to_string());
    let error =
        fetch(with_user(&fake, &format!("team/model@{digest}"), to.path())).await.unwrap_err().to_string();
    assert!(error.contains("a manifest whose digest is"), "{error}");
}
