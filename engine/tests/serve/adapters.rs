//! Adapters over HTTP: asked for by name, loaded, replaced and unloaded while others run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use serde_json::{Value, json};
use strata_engine::lora::{Adapters, LoraOptions, RuntimeLora};
use strata_engine::model::load::load;
use strata_engine::runtime::{Engine, Speculation, SpeculativeConfig};
use strata_engine::serve::{CALLERS, router};
use strata_engine::{EngineOptions, assemble};
use strata_hop::{Above, HopToken};

use crate::backend::FakeBackend;
use crate::client::{get, post, send, until};
use crate::events::Follower;
use crate::process::{model, options};
use crate::support::{adapting, blocks_of, config};

/// A folder with adapters for the small model: `a` and `b`, which differ by their scale.
fn folder() -> tempfile::TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_lora_qwen3");
    let folder = tempfile::tempdir().unwrap();
    for (name, alpha) in [("a", 40), ("b", -60)] {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(golden.join(weights), to.join(weights)).unwrap();
        let text = std::fs::read(golden.join("adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["lora_alpha"] = json!(alpha);
        std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    }
    folder
}

fn lora(folder: &Path, modules: &[&str]) -> LoraOptions {
    let module = |name: &&str| format!("{name}={}", folder.join(name).display()).parse().unwrap();
    LoraOptions {
        modules: modules.iter().map(module).collect(),
        max_loras: 2,
        runtime: Some(RuntimeLora { folder: folder.into() }),
        ..LoraOptions::default()
    }
}

/// The small model with these adapters.
fn small(lora: Option<LoraOptions>) -> Arc<Engine> {
    let folder = model();
    assemble(&EngineOptions { lora, ..options(folder.path()) }, 0).unwrap()
}

/// A backend without a model, with these adapters.
fn fake(backend: FakeBackend, lora: LoraOptions, speculation: Option<Speculation>) -> Arc<Engine> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_qwen3");
    let spec = load(&golden).unwrap().spec;
    let adapters = Adapters::open(spec, "test-model", lora, 7).unwrap();
    adapting(backend, config(), speculation, adapters)
}

fn ask(model: &str, first: u32, tokens: usize) -> Value {
    let prompt: Vec<u32> = (0..40).map(|i| 35 + (first + i * 7) % 50).collect();
    json!({"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": true,
           "return_token_ids": true})
}

async fn complete(router: &Router, body: &Value) -> Value {
    post(router, "/v1/completions", body).await.json().await
}

fn tokens(answer: &Value) -> &Value {
    &answer["choices"][0]["token_ids"]
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

async fn load_adapter(router: &Router, name: &str, path: &str, in_place: bool) -> (StatusCode, String) {
    let body = json!({"lora_name": name, "lora_path": path, "load_inplace": in_place});
    let answer = post(router, "/v1/load_lora_adapter", &body).await;
    (answer.status, answer.text().await)
}

async fn unload_adapter(router: &Router, name: &str) -> (StatusCode, String) {
    let answer = post(router, "/v1/unload_lora_adapter", &json!({"lora_name": name})).await;
    (answer.status, answer.text().await)
}

#[tokio::test]
async fn each_name_answers_as_itself_alone_and_beside_others() {
    let folder = folder();
    let (plain, adapted) = (small(None), small(Some(lora(folder.path(), &["a", "b"]))));
    let (plain, adapted) = (router(plain, Above::default()), router(adapted, Above::default()));
    let list = get(&adapted, "/v1/models").await.json().await;
    let listed: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["parent"])).collect();
    let (id, base) = (|name: &str| json!(name), json!("small"));
    assert_eq!(listed, [(&id("small"), &Value::Null), (&id("a"), &base), (&id("b"), &base)]);
    assert_eq!(get(&adapted, "/v1/models/b").await.json().await["parent"], "small");

    let mut alone = Vec::new();
    for first in 0..3 {
        let base = complete(&plain, &ask("small", first, 12)).await;
        assert_eq!(tokens(&complete(&adapted, &ask("small", first, 12)).await), tokens(&base));
        for name in ["a", "b"] {
            let answer = complete(&adapted, &ask(name, first, 12)).await;
            assert_eq!(answer["model"], name);
            assert_ne!(tokens(&answer), tokens(&base));
            alone.push((name, first, tokens(&answer).clone()));
        }
        alone.push(("small", first, tokens(&base).clone()));
    }
    post(&adapted, "/reset_prefix_cache", &json!({})).await.json().await;
    let together = alone.iter().map(async |(name, first, want)| {
        let answer = complete(&adapted, &ask(name, *first, 12)).await;
        assert_eq!(tokens(&answer), want, "{name} beside others");
    });
    futures::future::join_all(together).await;
    let absent = |router: Router| async move {
        let answer = post(&router, "/v1/completions", &ask("c", 0, 1)).await;
        (answer.status, answer.text().await)
    };
    assert_eq!(absent(adapted.clone()).await, absent(plain).await, "as without adapters");
    let count = post(&adapted, "/tokenize", &json!({"model": "a", "prompt": "Hi"})).await.json().await;
    assert_eq!(count["count"], 3);
}

#[tokio::test]
async fn no_adapter_finds_what_another_has_computed() {
    let folder = folder();
    let engine = small(Some(lora(folder.path(), &["a", "b"])));
    let router = router(engine, Above::default());
    let ask_of = |name: &str| ask(name, 3, 4);
    let mut first = Vec::new();
    for name in ["small", "a", "b"] {
        let answer = complete(&router, &ask_of(name)).await;
        assert_eq!(cached(&answer), 0, "{name}");
        let again = complete(&router, &ask_of(name)).await;
        assert_eq!((cached(&again), tokens(&again)), (32, tokens(&answer)), "{name}");
        first.push(tokens(&answer).clone());
    }
    // The name stands for other weights, and then for its own again.
    assert_eq!(load_adapter(&router, "a", "b", true).await.0, StatusCode::OK);
    let replaced = complete(&router, &ask_of("a")).await;
    assert_eq!((cached(&replaced), tokens(&replaced)), (0, &first[2]), "b's weights under a's name");
    assert_eq!(load_adapter(&router, "a", "a", true).await.0, StatusCode::OK);
    let restored = complete(&router, &ask_of("a")).await;
    assert_eq!((cached(&restored), tokens(&restored)), (32, &first[1]));
}

#[tokio::test]
async fn a_router_is_not_told_of_what_a_name_stood_for() {
    let folder = folder();
    let engine = fake(FakeBackend::new(64), lora(folder.path(), &["a"]), None);
    let router = router(engine, Above::default());
    let mut follower = Follower::new(&router, "").await;
    let body = json!({"model": "a", "temperature": 0, "max_tokens": 1,
        "messages": [{"role": "user", "content": "k".repeat(400)}]});
    post(&router, "/v1/chat/completions", &body).await.json().await;
    follower.until(|f| f.cached(&body) > 0).await;
    assert_eq!(load_adapter(&router, "a", "b", true).await.0, StatusCode::OK);
    follower.until(|f| f.cached(&body) == 0).await;
    post(&router, "/v1/chat/completions", &body).await.json().await;
    follower.until(|f| f.cached(&body) > 0).await;
    assert_eq!(unload_adapter(&router, "a").await.0, StatusCode::OK);
    follower.until(|f| f.cached(&body) == 0).await;
}

#[tokio::test]
async fn what_runs_is_finished_with_what_it_began_with() {
    // Long enough to run while adapters are read.
    const TOKENS: usize = 800;
    let folder = folder();
    let (backend, gate) = FakeBackend::new(blocks_of(4096)).gated();
    let remote = backend.remote();
    let engine = fake(backend, lora(folder.path(), &["a"]), None);
    let router = router(engine.clone(), Above::default());
    let start = |name: &'static str| {
        let router = router.clone();
        tokio::spawn(async move { complete(&router, &ask(name, 1, TOKENS)).await })
    };
    let step = || {
        let _ = gate.send(());
    };
    let while_open = async |change: tokio::task::JoinHandle<(StatusCode, String)>| {
        until(async || {
            step();
            change.is_finished()
        })
        .await;
        change.await.unwrap()
    };
    let running = async |sequences: usize| {
        until(async || {
            step();
            remote.batches().last().is_some_and(|batch| batch.spans.len() == sequences)
        })
        .await;
    };
    let told = || {
        let text = engine.metrics().render();
        text.lines().find(|l| l.starts_with("vllm:lora_requests_info{")).unwrap().to_owned()
    };
    let old = start("a");
    running(1).await;
    // Replaced: the first goes on with what it has, the next gets the other.
    let changing = tokio::spawn({
        let router = router.clone();
        async move { load_adapter(&router, "a", "b", true).await }
    });
    let (status, text) = while_open(changing).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "Success: LoRA adapter 'a' added successfully."));
    assert_eq!(remote.adapters().len(), 2, "the old one is still in use");
    let new = start("a");
    running(2).await;
    let line = told();
    assert!(line.contains("max_lora=\"2\"") && line.contains("running_lora_adapters=\"a\""), "{line}");
    let changing = tokio::spawn({
        let router = router.clone();
        async move { unload_adapter(&router, "a").await }
    });
    let (status, text) = while_open(changing).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "Success: LoRA adapter 'a' removed successfully."));
    assert_eq!(post(&router, "/v1/completions", &ask("a", 1, 1)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(unload_adapter(&router, "a").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&router, "/v1/models").await.json().await["data"].as_array().unwrap().len(), 1);
    drop(gate);
    let (old, new) = (old.await.unwrap(), new.await.unwrap());
    engine.idle().await;
    assert_eq!(remote.adapters(), [], "nobody runs with them any more");
    let line = told();
    assert!(
        line.contains("running_lora_adapters=\"\"") && line.contains("waiting_lora_adapters=\"\""),
        "{line}"
    );

    let alone = fake(FakeBackend::new(blocks_of(4096)), lora(folder.path(), &["a", "b"]), None);
    let alone = crate::adapters::router(alone, Above::default());
    for (got, name) in [(&old, "a"), (&new, "b")] {
        let want = complete(&alone, &ask(name, 1, TOKENS)).await;
        assert_eq!(tokens(got), tokens(&want), "{name}'s to the end");
        assert_eq!(tokens(got).as_array().unwrap().len(), TOKENS);
    }
}

#[tokio::test]
async fn a_crowd_survives_adapters_that_come_and_go() {
    let folder = folder();
    let engine = small(Some(lora(folder.path(), &["b"])));
    let router = router(engine.clone(), Above::default());
    assert_eq!(load_adapter(&router, "a", "a", false).await.0, StatusCode::OK);
    let mut want = Vec::new();
    for first in 0..4 {
        for name in ["small", "a", "b"] {
            want.push((name, first, tokens(&complete(&router, &ask(name, first, 20)).await).clone()));
        }
    }
    let crowd = (0..3).flat_map(|_| &want).map(async |(name, first, want)| {
        let answer = post(&router, "/v1/completions", &ask(name, *first, 20)).await;
        if answer.status == StatusCode::NOT_FOUND {
            assert_eq!(*name, "a");
            return false;
        }
        assert_eq!(tokens(&answer.json().await), want, "{name}");
        true
    });
    let comings = async {
        for _ in 0..10 {
            assert_eq!(unload_adapter(&router, "a").await.0, StatusCode::OK);
            assert_eq!(load_adapter(&router, "a", "a", false).await.0, StatusCode::OK);
            assert_eq!(load_adapter(&router, "b", "b", true).await.0, StatusCode::OK);
        }
    };
    let (answered, ()) = tokio::join!(futures::future::join_all(crowd), comings);
    assert!(answered.iter().filter(|answered| **answered).count() >= 24, "{answered:?}");
    engine.idle().await;
}

#[tokio::test]
async fn each_refusal_says_what_to_do_in_vllm_s_words() {
    let folder = folder();
    std::fs::write(folder.path().join("b/adapter_config.json"), r#"{"r": 64}"#).unwrap();
    let limits = LoraOptions { max_cpu_loras: Some(2), ..lora(folder.path(), &["a"]) };
    let engine = small(Some(limits));
    let router = router(engine, Above::default());
    let mut said = Vec::new();
    let mut note = |(status, text): (StatusCode, String)| {
        let text = text.replace(&folder.path().display().to_string(), "DIR");
        said.push(format!("{} {text}", status.as_u16()));
    };
    note(load_adapter(&router, "", "a", false).await);
    note(load_adapter(&router, "x", "", false).await);
    note(load_adapter(&router, "small", "a", false).await);
    note(load_adapter(&router, "a", "a", false).await);
    note(load_adapter(&router, "x", "absent", false).await);
    note(load_adapter(&router, "x", "/etc", false).await);
    note(load_adapter(&router, "x", "../..", false).await);
    note(load_adapter(&router, "x", "b", false).await);
    note(load_adapter(&router, "x\n", "a", false).await);
    note(load_adapter(&router, "x", "a", false).await);
    note(load_adapter(&router, "y", "a", false).await);
    note(unload_adapter(&router, "").await);
    note(unload_adapter(&router, "y").await);
    let wrong = post(&router, "/v1/load_lora_adapter", &json!({"lora_name": 1, "lora_path": "a"})).await;
    note((wrong.status, wrong.text().await));
    let fixed = small(Some(LoraOptions { runtime: None, ..lora(folder.path(), &["a"]) }));
    for engine in [fixed, small(None)] {
        let router = crate::adapters::router(engine, Above::default());
        note(load_adapter(&router, "x", "a", false).await);
        note(unload_adapter(&router, "a").await);
    }
    insta::assert_snapshot!("refused_adapters", said.join("\n"));
}

#[tokio::test]
async fn only_the_layer_above_loads_and_unloads() {
    let folder = folder();
    let engine = fake(FakeBackend::new(8), lora(folder.path(), &[]), None);
    let router = router(engine, Above::new(HopToken::new("secret"), None, CALLERS));
    let token = [("x-strata-hop-token", "secret")];
    for (path, body) in [
        ("/v1/load_lora_adapter", r#"{"lora_name": "a", "lora_path": "a"}"#),
        ("/v1/unload_lora_adapter", r#"{"lora_name": "a"}"#),
    ] {
        assert_eq!(send(&router, "POST", path, &[], body).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(send(&router, "POST", path, &token, body).await.status, StatusCode::OK);
    }
}

#[test]
fn adapters_that_cannot_be_served_are_said_at_start() {
    let (folder, base) = (folder(), model());
    let error = |lora: LoraOptions| {
        let options = EngineOptions { lora: Some(lora), ..options(base.path()) };
        let error = assemble(&options, 0).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "DIR")
    };
    let named = |text: String| LoraOptions { modules: vec![text.parse().unwrap()], ..LoraOptions::default() };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let errors = [
        error(LoraOptions { max_loras: 0, ..LoraOptions::default() }),
        error(named(format!("a={}", path("absent")))),
        error(named(format!("small={}", path("a")))),
        error(named(json!({"name": "a", "path": path("a"), "base_model_name": "large"}).to_string())),
        error(LoraOptions {
            runtime: Some(RuntimeLora { folder: PathBuf::from(path("absent")) }),
            ..LoraOptions::default()
        }),
    ];
    insta::assert_snapshot!("unserved_adapters", errors.join("\n"));
}

#[tokio::test]
async fn an_adapter_is_there_again_after_a_sleep() {
    let (folder, base) = (folder(), model());
    let options = EngineOptions { lora: Some(lora(folder.path(), &["a"])), ..options(base.path()) };
    let router = router(assemble(&options, 0).unwrap(), Above::default());
    let before = complete(&router, &ask("a", 0, 12)).await;
    for level in [1, 2] {
        let path = format!("/sleep?level={level}");
        assert_eq!(send(&router, "POST", &path, &[], "").await.status, StatusCode::OK);
        assert_eq!(load_adapter(&router, "b", "b", level == 2).await.0, StatusCode::OK, "while it sleeps");
        assert_eq!(send(&router, "POST", "/wake_up", &[], "").await.status, StatusCode::OK);
        assert_eq!(tokens(&complete(&router, &ask("a", 0, 12)).await), tokens(&before));
        assert_ne!(tokens(&complete(&router, &ask("b", 0, 12)).await), tokens(&before));
    }
}

#[tokio::test]
async fn guesses_change_no_answer_of_an_adapter() {
    let folder = folder();
    let guess: SpeculativeConfig =
        r#"{"method": "ngram", "adaptive": false, "prompt_lookup_min": 1}"#.parse().unwrap();
    let guessing = Speculation::new(&guess, None).unwrap();
    let modules = lora(folder.path(), &["a", "b"]);
    let plain = fake(FakeBackend::new(blocks_of(1024)), modules.clone(), None);
    let guessing = fake(FakeBackend::new(blocks_of(1024)), modules, Some(guessing));
    let (plain, guesses) = (router(plain, Above::default()), router(guessing.clone(), Above::default()));
    for name in ["test-model", "a", "b"] {
        let want = complete(&plain, &ask(name, 2, 80)).await;
        assert_eq!(tokens(&complete(&guesses, &ask(name, 2, 80)).await), tokens(&want), "{name}");
    }
    let text = guessing.metrics().render();
    let drafted = text.lines().find(|l| l.starts_with("vllm:spec_decode_num_draft_tokens_total")).unwrap();
    assert!(!drafted.ends_with(" 0"), "{drafted}");
}
