//! Tiers below the KV cache: an answer is the same whether its prompt is computed, or comes from memory
//! or from a disk.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use strata_engine::runtime::{Engine, EngineConfig};
use strata_engine::serve::router;
use strata_engine::tier::{Disk, KvDisk, RamTier, Tiers};
use strata_engine::{EngineOptions, KvCache, assemble};
use strata_hop::Above;

use crate::backend::FakeBackend;
use crate::client::{metric, post, until};
use crate::real_model::real_model;
use crate::support::{blocks_of, config, engine, with_tiers};

fn ask(family: u32, length: usize) -> Value {
    let prompt: Vec<u32> = (0..length as u32).map(|i| 33 + (i * 7 + family * 13) % 90).collect();
    json!({"model": "test-model", "prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": true})
}

/// The text, and the prompt's tokens that were not computed.
async fn answer(engine: &Arc<Engine>, ask: &Value) -> (String, u64) {
    let router = router(engine.clone(), Above::default());
    let answer = post(&router, "/v1/completions", ask).await.json().await;
    let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    (text, answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
}

async fn alone(ask: &Value) -> String {
    let plain = EngineConfig { prefix_cache: false, ..config() };
    answer(&engine(FakeBackend::new(blocks_of(1024)), plain), ask).await.0
}

fn disk(folder: &Path, copy: &str) -> KvDisk {
    let key_file = folder.join("key");
    std::fs::write(&key_file, [7; 32]).unwrap();
    KvDisk { folder: folder.join(copy), bytes: 1 << 30, key_file }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Blocks that are on the disk as a whole.
fn stored(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let is_block = |path: &Path| path.file_name().is_some_and(|name| name.len() == 64);
    let count =
        |path: std::path::PathBuf| if path.is_dir() { stored(&path) } else { usize::from(is_block(&path)) };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}

#[tokio::test]
async fn what_was_evicted_comes_up_from_memory() {
    let tiers = Tiers { ram: Some(RamTier::new(40)), disk: None };
    let limits = EngineConfig { max_model_len: Some(256), ..config() };
    let engine = with_tiers(FakeBackend::new(16), limits, tiers);
    let asked: Vec<Value> = (0..3).map(|family| ask(family, 200)).collect();
    for round in 0..3 {
        for ask in &asked {
            let (text, cached) = answer(&engine, ask).await;
            assert_eq!(text, alone(ask).await);
            assert_eq!(cached, if round == 0 { 0 } else { 192 }, "round {round}");
        }
    }
    // All at once, with preemptions.
    let both = futures::future::join_all(asked.iter().cycle().take(9).map(|ask| answer(&engine, ask))).await;
    for (ask, (text, _)) in asked.iter().cycle().zip(both) {
        assert_eq!(text, alone(ask).await);
    }
    engine.idle().await;
    let router = router(engine, Above::default());
    assert!(metric(&router, "vllm:kv_cache_usage_perc").await.abs() < 1e-9, "no block is lost");
}

#[tokio::test]
async fn what_an_engine_has_computed_outlives_it() {
    let temp = tempfile::tempdir().unwrap();
    let start = |copy: &str, model: u8, ram: Option<RamTier>| {
        let disk = Disk::open(&disk(temp.path(), copy), [model; 32], 64).unwrap();
        let limits = EngineConfig { max_model_len: Some(256), ..config() };
        with_tiers(FakeBackend::new(16), limits, Tiers { ram, disk: Some(disk) })
    };
    let first = start("a", 1, None);
    let (text, _) = answer(&first, &ask(0, 200)).await;
    until(async || stored(&temp.path().join("a")) == 13).await;
    // As it is found after a kill: nothing was closed, and the engine still runs.
    copy(&temp.path().join("a"), &temp.path().join("b"));
    copy(&temp.path().join("a"), &temp.path().join("c"));
    let second = start("b", 1, Some(RamTier::new(20)));
    assert_eq!(answer(&second, &ask(0, 200)).await, (text.clone(), 192));
    let salted = json!({"cache_salt": "other", "model": "test-model", "prompt": ask(0, 200)["prompt"],
                        "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    assert_eq!(answer(&second, &salted).await, (text.clone(), 0), "another scope finds nothing");
    assert_eq!(answer(&start("c", 2, None), &ask(0, 200)).await, (text, 0), "nor does another model");
}

fn small(folder: &Path, change: impl FnOnce(&mut EngineOptions)) -> Option<Arc<Engine>> {
    let mut options = EngineOptions {
        served_model_name: Some("test-model".into()),
        kv_cache: KvCache::Blocks(24),
        max_model_len: Some(384),
        kv_disk: Some(disk(folder, "a")),
        ..EngineOptions::new(real_model()?.to_str().unwrap())
    };
    change(&mut options);
    Some(assemble(&options, 0).unwrap())
}

#[tokio::test]
async fn a_real_model_says_the_same_from_memory_and_from_disk() {
    let temp = tempfile::tempdir().unwrap();
    let Some(plain) = small(temp.path(), |options| options.kv_disk = None) else { return };
    let asked = [ask(0, 300), ask(1, 300)];
    let expected = [answer(&plain, &asked[0]).await.0, answer(&plain, &asked[1]).await.0];
    drop(plain);
    let tiered = small(temp.path(), |options| options.kv_offloading_bytes = 256 << 20).unwrap();
    for round in 0..2 {
        for (ask, text) in asked.iter().zip(&expected) {
            let cached = if round == 0 { 0 } else { 288 };
            assert_eq!(answer(&tiered, ask).await, (text.clone(), cached));
        }
    }
    until(async || stored(&temp.path().join("a")) == 2 * 19).await;
    copy(&temp.path().join("a"), &temp.path().join("b"));
    let again = small(temp.path(), |options| options.kv_disk = Some(disk(temp.path(), "b"))).unwrap();
    assert_eq!(answer(&again, &asked[0]).await, (expected[0].clone(), 288));
}
