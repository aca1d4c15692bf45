//! Repositories of the Hub: a fake of its API, with the store of large files on another host.
#![allow(clippy::unwrap_used)]

mod fake;

use std::collections::BTreeMap;

use fake::{Fake, Fault, fetch, git_sha1, models, noise, options, sha256};
use serde_json::{Value, json};
use strata_fetch::{Credentials, FetchError, FetchOptions};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LISTING: &str = "/api/models/org/model/revision/main?blobs=true";

/// A hub with one repository, and the other host that it sends us to for large files.
struct Hub {
    api: Fake,
    store: Fake,
    files: BTreeMap<String, Vec<u8>>,
}

impl Hub {
    async fn start() -> Self {
        let hub = Self { api: Fake::start().await, store: Fake::start().await, files: BTreeMap::new() };
        let store = hub.store.url.clone();
        hub.api.script(move |seen| {
            let file = seen.path.strip_prefix("/org/model/resolve/")?.split_once('/')?.1;
            file.ends_with(".safetensors").then(|| {
                let to = format!("{store}/blob/{file}?signature=s");
                Fault::Answer(302, vec![("location", to)], String::new())
            })
        });
        hub
    }

    fn file(&mut self, path: &str, bytes: Vec<u8>) {
        self.api.put(&format!("/org/model/resolve/{COMMIT}/{path}"), bytes.clone());
        self.store.put(&format!("/blob/{path}?signature=s"), bytes.clone());
        self.files.insert(path.to_owned(), bytes);
        let siblings: Vec<Value> = self
            .files
            .iter()
            .map(|(path, bytes)| {
                if path.ends_with(".safetensors") {
                    json!({ "rfilename": path, "size": bytes.len(), "blobId": git_sha1(b"pointer"),
                            "lfs": { "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 } })
                } else {
                    json!({ "rfilename": path, "size": bytes.len(), "blobId": git_sha1(bytes) })
                }
            })
            .collect();
        self.api.put(LISTING, json!({ "sha": COMMIT, "siblings": siblings }).to_string());
    }

    async fn with_model() -> Self {
        let mut hub = Self::start().await;
        hub.file("config.json", b"{}".to_vec());
        hub.file("tokenizer.json", noise(9000, 3));
        hub.file("model-00001-of-00002.safetensors", noise(700_000, 1));
        hub.file("model-00002-of-00002.safetensors", noise(300_000, 2));
        hub.file("pytorch_model.bin", b"pickle".to_vec());
        hub.file("onnx/model.onnx", b"onnx".to_vec());
        hub
    }

    fn options(&self, uri: &str, to: &std::path::Path) -> FetchOptions {
        let credentials =
            Credentials::from_pairs([("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", &self.api.url)]).unwrap();
        FetchOptions { credentials, ..options(uri, to) }
    }
}

#[tokio::test]
async fn what_an_engine_needs_of_a_repository() {
    let hub = Hub::with_model().await;
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(hub.options("hf://org/model", to.path())).await.unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&fetched.path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            ".strata-model.json",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "tokenizer.json"
        ]
    );
    for name in &names[1..] {
        assert!(std::fs::read(fetched.path.join(name)).unwrap() == hub.files[name], "{name}");
    }
    assert_eq!(models(to.path()).len(), 1);
    let marker: Value =
        serde_json::from_slice(&std::fs::read(fetched.path.join(&names[0])).unwrap()).unwrap();
    assert_eq!(marker["revision"], COMMIT);
}

#[tokio::test]
async fn the_token_is_for_the_hub_alone() {
    let hub = Hub::with_model().await;
    let to = tempfile::tempdir().unwrap();
    fetch(hub.options("hf://org/model", to.path())).await.unwrap();
    assert!(hub.api.seen().iter().all(|s| s.header("authorization") == Some("Bearer hf_secret")));
    let stored = hub.store.seen();
    assert!(stored.len() >= 4 && stored.iter().all(|s| s.header("authorization").is_none()));
    // The hub is asked once a file, not once a part.
    let asked = hub.api.seen().iter().filter(|s| s.path.contains("model-00001")).count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_link_that_expires_is_had_anew() {
    let hub = Hub::with_model().await;
    // Each link works once and for one part of the first file.
    hub.store.script(|seen| {
        (seen.path.contains("model-00001") && seen.nth % 2 == 1)
            .then(|| Fault::Answer(403, vec![], String::new()))
    });
    let to = tempfile::tempdir().unwrap();
    let fetched =
        fetch(FetchOptions { connections: 1, ..hub.options("hf://org/model", to.path()) }).await.unwrap();
    let name = "model-00001-of-00002.safetensors";
    assert!(std::fs::read(fetched.path.join(name)).unwrap() == hub.files[name]);
}

#[tokio::test]
async fn a_link_that_never_works_says_who_denies_it() {
    let hub = Hub::with_model().await;
    hub.store.script(|_| Some(Fault::Answer(403, vec![], String::new())));
    let to = tempfile::tempdir().unwrap();
    let error = fetch(hub.options("hf://org/model", to.path())).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("127.0.0.1:{} denies", hub.store.port)), "{error}");
    assert!(!error.contains("signature"), "{error}");
}

#[tokio::test]
async fn small_files_are_checked_by_gits_hash() {
    let hub = Hub::with_model().await;
    let wrong = hub.files["tokenizer.json"].iter().map(|b| b ^ 1).collect::<Vec<u8>>();
    hub.api.put(&format!("/org/model/resolve/{COMMIT}/tokenizer.json"), wrong);
    let to = tempfile::tempdir().unwrap();
    let error = fetch(hub.options("hf://org/model", to.path())).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Mismatch { algorithm: "Git SHA-1", file, .. } if file == "tokenizer.json"),
        "{error}"
    );
}

#[tokio::test]
async fn one_file_and_a_revision_with_a_slash() {
    let mut hub = Hub::start().await;
    hub.file("q/a.gguf", noise(10_000, 5));
    hub.file("q/b.gguf", noise(10_000, 6));
    let body = json!({ "sha": COMMIT, "siblings": [
        { "rfilename": "q/a.gguf", "size": 10_000, "lfs": { "sha256": sha256(&hub.files["q/a.gguf"]), "size": 10_000 } },
        { "rfilename": "q/b.gguf", "size": 10_000 },
    ] });
    hub.api.put("/api/models/org/model/revision/refs%2Fpr%2F1?blobs=true", body.to_string());
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(hub.options("hf://org/model/q/a.gguf@refs/pr/1", to.path())).await.unwrap();
    assert!(fetched.path.ends_with("q/a.gguf"));
    assert!(std::fs::read(&fetched.path).unwrap() == hub.files["q/a.gguf"]);

    let error = fetch(hub.options("hf://org/model", to.path())).await.unwrap_err().to_string();
    assert!(error.contains("several GGUF models") && error.contains("q/a.gguf, q/b.gguf"), "{error}");
    let error = fetch(hub.options("hf://org/model/c.gguf", to.path())).await.unwrap_err().to_string();
    assert!(error.contains("no file c.gguf"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_tells_less_is_asked_for_each_file() {
    let hub = Hub::with_model().await;
    let names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let siblings: Vec<Value> = names.iter().map(|name| json!({ "rfilename": name })).collect();
    hub.api.put(LISTING, json!({ "sha": COMMIT, "siblings": siblings }).to_string());
    let store = hub.store.url.clone();
    let tags: BTreeMap<String, (String, usize)> =
        hub.files.iter().map(|(name, bytes)| (name.clone(), (sha256(bytes), bytes.len()))).collect();
    hub.api.script(move |seen| {
        let file = seen.path.strip_prefix("/org/model/resolve/")?.split_once('/')?.1;
        file.ends_with(".safetensors").then(|| {
            let (tag, size) = &tags[file];
            let headers = vec![
                ("location", format!("{store}/blob/{file}?signature=s")),
                ("x-linked-etag", format!("\"{tag}\"")),
                ("x-linked-size", size.to_string()),
            ];
            Fault::Answer(302, headers, String::new())
        })
    });
    let to = tempfile::tempdir().unwrap();
    let fetched = fetch(hub.options("hf://org/model", to.path())).await.unwrap();
    for name in names {
        assert!(std::fs::read(fetched.path.join(name)).unwrap() == hub.files[name], "{name}");
    }
    hub.store.script(|_| Some(Fault::Flip));
    let other = tempfile::tempdir().unwrap();
    let error = fetch(hub.options("hf://org/model", other.path())).await.unwrap_err();
    assert!(matches!(error, FetchError::Mismatch { algorithm: "SHA-256", .. }), "{error}");
}

#[tokio::test]
async fn gated_and_missing_models_say_what_to_do() {
    let hub = Hub::with_model().await;
    for (status, code, advice) in [
        (401, "RepoNotFound", "set HF_TOKEN"),
        (401, "GatedRepo", "accept its license"),
        (403, "GatedRepo", "accept its license"),
        (404, "RevisionNotFound", "check owner, name, file and revision"),
    ] {
        hub.api.forget();
        hub.api.script(move |_| {
            let headers = vec![("x-error-code", code.to_owned()), ("x-error-message", "Sorry.".to_owned())];
            Some(Fault::Answer(status, headers, String::new()))
        });
        let to = tempfile::tempdir().unwrap();
        let error = fetch(hub.options("hf://org/model", to.path())).await.unwrap_err().to_string();
        assert!(error.contains(advice) && error.contains("Sorry."), "{error}");
        assert!(!error.contains("hf_secret"), "{error}");
        assert_eq!(hub.api.seen().len(), 1);
    }
}

#[tokio::test]
async fn names_that_would_leave_the_folder_are_refused() {
    for name in
        ["../model.safetensors", "/etc/model.safetensors", "a/../../model.safetensors", ".strata-model.json"]
    {
        let hub = Hub::start().await;
        let siblings =
            json!([{ "rfilename": name, "size": 1 }, { "rfilename": "model.safetensors", "size": 1 }]);
        hub.api.put(LISTING, json!({ "sha": COMMIT, "siblings": siblings }).to_string());
        hub.api.script(|_| None);
        let to = tempfile::tempdir().unwrap();
        // Names with a folder are not chosen at all; a name at the top that is not plain is refused.
        let error = fetch(hub.options("hf://org/model", to.path())).await.unwrap_err();
        let was_refused = matches!(error, FetchError::BadName { .. } | FetchError::NotFound { .. });
        assert!(was_refused, "{name}: {error}");
        assert!(models(to.path()).is_empty());
    }
}
