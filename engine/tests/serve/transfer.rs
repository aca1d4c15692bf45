//! One engine computes a prompt, another answers, as the scheduler has them do it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use strata_engine::runtime::Engine;
use strata_engine::serve::router;
use strata_engine::tier::{RamTier, Tiers};
use strata_engine::transfer::{KvTransfer, Transfer};
use strata_hop::{Above, Bound, HopToken, Upstream};
use tokio_util::sync::CancellationToken;

use crate::backend::FakeBackend;
use crate::client::send;
use crate::support::{blocks_of, config, engine, with_transfer};

/// An engine on a socket, that other engines can reach.
struct Server {
    engine: Arc<Engine>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

const TOKEN: [(&str, &str); 1] = [("x-strata-hop-token", "secret")];

fn above() -> Above {
    Above::new(HopToken::new("secret"), None, strata_engine::serve::CALLERS)
}

impl Server {
    async fn start(model: u8, bytes: u64) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let options = KvTransfer { host: "127.0.0.1".into(), port: bound.addr().port(), bytes };
        let transfer =
            Transfer::new(options, [model; 32], 64, Upstream::to(None, &[]), HopToken::new("secret"));
        let tiers = Tiers { ram: Some(RamTier::new(100)), disk: None };
        let backend = FakeBackend::new(blocks_of(1024));
        let engine = with_transfer(backend, config(), tiers, Some(Arc::new(transfer)));
        let stop = CancellationToken::new();
        let serve = bound.serve(router(engine.clone(), above()), stop.clone(), Duration::from_secs(1));
        Self { engine, stop, served: tokio::spawn(serve) }
    }

    async fn ask(&self, body: &Value) -> Value {
        let router = router(self.engine.clone(), above());
        let json = [TOKEN[0], ("content-type", "application/json")];
        send(&router, "POST", "/v1/completions", &json, body.to_string()).await.json().await
    }

    /// Computes a prompt for another engine; returns what that is to be told.
    async fn compute(&self, body: &Value) -> Value {
        let mut body = body.clone();
        body["max_tokens"] = 1.into();
        body["kv_transfer_params"] = json!({"do_remote_decode": true, "do_remote_prefill": false,
            "remote_engine_id": null, "remote_block_ids": null, "remote_host": null, "remote_port": null});
        self.ask(&body).await["kv_transfer_params"].clone()
    }

    /// Answers with what another engine has computed; returns the text and the tokens that came.
    async fn answer(&self, body: &Value, words: &Value) -> (String, u64) {
        let mut body = body.clone();
        body["kv_transfer_params"] = words.clone();
        let answer = self.ask(&body).await;
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (answer["choices"][0]["text"].as_str().unwrap().to_owned(), cached)
    }
}

fn body(family: u32) -> Value {
    let prompt: Vec<u32> = (0..200u32).map(|i| 33 + (i * 7 + family * 13) % 90).collect();
    json!({"model": "test-model", "prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": true})
}

async fn alone(body: &Value) -> String {
    let router = router(engine(FakeBackend::new(blocks_of(1024)), config()), Above::default());
    let answer = crate::client::post(&router, "/v1/completions", body).await.json().await;
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_prompt_is_computed_in_one_engine_and_answered_in_another() {
    let (prefill, decode) = (Server::start(1, 4096).await, Server::start(1, 4096).await);
    let words = prefill.compute(&body(0)).await;
    assert_eq!(words["do_remote_prefill"], true);
    assert_eq!(words["remote_block_ids"].as_array().unwrap().len(), 12);
    assert_eq!(decode.answer(&body(0), &words).await, (alone(&body(0)).await, 192));
    // It was fetched, so it is no longer kept; what is cached by now is found without it.
    assert_eq!(decode.answer(&body(0), &words).await.1, 192);
    let other = Server::start(1, 4096).await;
    assert_eq!(other.answer(&body(0), &words).await, (alone(&body(0)).await, 0));
}

#[tokio::test]
async fn whatever_goes_wrong_the_prompt_is_computed() {
    let (prefill, decode) = (Server::start(1, 4096).await, Server::start(1, 4096).await);
    // The engine that keeps it dies.
    let words = prefill.compute(&body(1)).await;
    prefill.stop.cancel();
    prefill.served.await.unwrap();
    assert_eq!(decode.answer(&body(1), &words).await, (alone(&body(1)).await, 0));
    // It serves another model.
    let other = Server::start(2, 4096).await;
    let words = other.compute(&body(2)).await;
    assert_eq!(decode.answer(&body(2), &words).await, (alone(&body(2)).await, 0));
    // There is no room to keep it: nothing is said, and the scheduler has it computed.
    let small = Server::start(1, 100).await;
    assert_eq!(small.compute(&body(3)).await, Value::Null);
}

#[tokio::test]
async fn transfers_are_for_engines_that_take_part() {
    let router = router(engine(FakeBackend::new(blocks_of(1024)), config()), Above::default());
    let mut asked = body(0);
    asked["kv_transfer_params"] = json!({"do_remote_decode": true});
    let answer = crate::client::post(&router, "/v1/completions", &asked).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().await.contains("--kv-transfer-host"));
    asked["kv_transfer_params"] = json!({"do_remote_decode": false, "do_remote_prefill": false});
    assert_eq!(crate::client::post(&router, "/v1/completions", &asked).await.status, 200);
    let server = Server::start(1, 4096).await;
    let own = strata_engine::serve::router(server.engine.clone(), above());
    let fetch = |headers| send(&own, "GET", "/internal/v1/kv/none", headers, axum::body::Body::empty());
    assert_eq!((fetch(&[]).await.status.as_u16(), fetch(&TOKEN).await.status.as_u16()), (401, 404));
}
