//! An engine as a process is run: options in, a socket, a stop. The model is a small random one of
//! Hugging Face's form, with a tokenizer made here.

use std::path::Path;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use strata_engine::transfer::KvTransfer;
use strata_engine::{EngineError, EngineOptions, KvCache, assemble, run, run_on};
use strata_hop::{Bound, HopToken, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::client::DEADLINE;

/// A folder with the small model's weights, and a tokenizer of single printable characters.
pub(crate) fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_qwen3");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.path().join(file)).unwrap();
    }
    let mut vocab = Map::new();
    for special in ["<unk>", "<s>", "</s>"] {
        vocab.insert(special.into(), vocab.len().into());
    }
    for c in ('!'..='~').chain(['Ġ', 'Ċ']) {
        vocab.insert(c.into(), vocab.len().into());
    }
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": null},
    });
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let config = json!({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

pub(crate) fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        listen: "127.0.0.1:0".into(),
        threads: 1,
        kv_cache: KvCache::Blocks(64),
        served_model_name: Some("small".into()),
        ..EngineOptions::new(format!("file://{}", folder.display()))
    }
}

async fn call(
    upstream: &Upstream,
    url: &str,
    path: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> (u16, String) {
    let mut request = Request::builder().uri(format!("{url}{path}"));
    if let Some(token) = token {
        request = request.header("x-strata-hop-token", token);
    }
    let request = match body {
        Some(body) => request.method("POST").body(body.to_string().into()),
        None => request.body(axum::body::Body::empty()),
    };
    let response = upstream.send(request.unwrap(), DEADLINE).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn it_serves_and_stops_only_when_its_streams_have_ended() {
    let folder = model();
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    let shutdown = CancellationToken::new();
    let options = EngineOptions { hop_token: HopToken::new("secret"), ..options(folder.path()) };
    let engine = tokio::spawn(run_on(bound, options, shutdown.clone()));
    let upstream = Upstream::new();
    let (status, _) = call(&upstream, &url, "/health", None, None).await;
    assert_eq!(status, 200);
    assert_eq!(call(&upstream, &url, "/v1/models", None, None).await.0, 401);
    let (_, models) = call(&upstream, &url, "/v1/models", Some("secret"), None).await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("small"), &json!(256))
    );

    let (_, tokens) =
        call(&upstream, &url, "/tokenize", Some("secret"), Some(json!({"prompt": "Hi !?"}))).await;
    let tokens: Value = serde_json::from_str(&tokens).unwrap();
    assert_eq!(
        tokens["tokens"],
        json!([1, 42, 75, 97, 3, 33]),
        "the file's own beginning, and no truncation"
    );

    let ask = json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200,
                     "ignore_eos": true, "seed": 1, "stream": true, "stream_options": {"include_usage": true}});
    let running: Vec<_> = (0..4)
        .map(|_| {
            let (upstream, url, ask) = (upstream.clone(), url.clone(), ask.clone());
            tokio::spawn(async move {
                call(&upstream, &url, "/v1/chat/completions", Some("secret"), Some(ask)).await
            })
        })
        .collect();
    crate::client::until(async || {
        let (_, text) = call(&upstream, &url, "/metrics", Some("secret"), None).await;
        text.lines().any(|l| l.starts_with("vllm:generation_tokens_total") && !l.ends_with(" 0"))
    })
    .await;
    shutdown.cancel();
    let mut texts = Vec::new();
    for stream in running {
        let (status, text) = stream.await.unwrap();
        assert_eq!(status, 200);
        assert!(text.contains("\"completion_tokens\":200") && text.ends_with("data: [DONE]\n\n"), "{text}");
        texts.push(text.lines().filter_map(|l| l.split("\"delta\":").nth(1)).collect::<Vec<_>>().join("\n"));
    }
    assert!(texts.iter().all(|t| *t == texts[0]), "the same seed gives the same answer, batched or not");
    tokio::time::timeout(DEADLINE, engine).await.unwrap().unwrap().unwrap();
    let gone = Request::builder().uri(format!("{url}/health")).body(axum::body::Body::empty()).unwrap();
    assert!(upstream.send(gone, Duration::from_secs(2)).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_is_open_when_the_grace_ends_is_told_so() {
    let folder = model();
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, shutdown) = (bound.url(), CancellationToken::new());
    let options = EngineOptions { drain_grace: Duration::from_secs(6), ..options(folder.path()) };
    let engine = tokio::spawn(run_on(bound, options, shutdown.clone()));
    let upstream = Upstream::new();
    assert_eq!(call(&upstream, &url, "/pause?mode=keep", None, Some(json!({}))).await.0, 200);
    let ask = |stream: bool| {
        let mut ask = json!({"model": "small", "prompt": "Hi", "max_tokens": 9, "stream": stream});
        if stream {
            ask["stream_options"] = json!({"include_usage": true});
        }
        let (upstream, url) = (upstream.clone(), url.clone());
        tokio::spawn(async move { call(&upstream, &url, "/v1/completions", None, Some(ask)).await })
    };
    let (streamed, whole) = (ask(true), ask(false));
    crate::client::until(async || {
        let (_, text) = call(&upstream, &url, "/metrics", None, None).await;
        text.lines().any(|l| l.starts_with("vllm:num_requests_waiting{") && l.ends_with(" 2"))
    })
    .await;
    shutdown.cancel();
    let (status, text) = streamed.await.unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains(r#""finish_reason":"abort""#) && text.contains(r#""completion_tokens":0"#),
        "{text}"
    );
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let (status, text) = whole.await.unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &whole["choices"][0]["finish_reason"]), (200, &json!("abort")));
    tokio::time::timeout(DEADLINE, engine).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_is_never_whole_does_not_hold_the_drain() {
    let folder = model();
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, addr, shutdown) = (bound.url(), bound.addr(), CancellationToken::new());
    // Longer than the test may take.
    let options = EngineOptions { drain_grace: Duration::from_secs(600), ..options(folder.path()) };
    let engine = tokio::spawn(run_on(bound, options, shutdown.clone()));
    assert_eq!(call(&Upstream::new(), &url, "/health", None, None).await.0, 200);
    let mut upload = tokio::net::TcpStream::connect(addr).await.unwrap();
    let half =
        "POST /v1/completions HTTP/1.1\r\nhost: e\r\nexpect: 100-continue\r\ncontent-length: 99\r\n\r\n{";
    upload.write_all(half.as_bytes()).await.unwrap();
    // It is being read: the server has asked for it.
    let mut begun = [0; 12];
    upload.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 100");
    shutdown.cancel();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("HTTP/1.1 503") && answer.contains("draining"), "{answer}");
    tokio::time::timeout(DEADLINE, engine).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_said_before_the_model_is_opened() {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let listen = bound.addr().to_string();
    let options = EngineOptions { listen, ..EngineOptions::new("/nonexistent.gguf") };
    let error = run(options, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, EngineError::Listen(_)), "{error}");
}

#[test]
fn what_cannot_run_says_why() {
    let folder = model();
    let good = options(folder.path());
    let error = |options: &EngineOptions| assemble(options, 0).unwrap_err().to_string();
    let with = |change: fn(&mut EngineOptions)| {
        let mut options = good.clone();
        change(&mut options);
        error(&options)
    };
    let errors = [
        with(|o| o.model = "s3://bucket/model".into()),
        with(|o| o.max_model_len = Some(100_000)),
        with(|o| o.max_model_len = Some(0)),
        with(|o| {
            o.kv_cache = KvCache::Blocks(4);
            o.max_model_len = Some(256);
        }),
        with(|o| o.step_tokens = 8),
        with(|o| o.max_sequences = 0),
        with(|o| {
            o.kv_cache = KvCache::Auto;
            o.max_sequences = 0;
        }),
        with(|o| {
            o.kv_cache = KvCache::Auto;
            o.max_model_len = Some(0);
        }),
        with(|o| o.threads = 1_000_000_000),
        with(|o| o.served_model_name = Some(" ".into())),
        with(|o| o.max_waiting = 0),
        with(|o| o.kv_cache = KvCache::Blocks(0)),
        {
            std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
            error(&good)
        },
        {
            std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
            error(&good).replace(&folder.path().display().to_string(), "FOLDER")
        },
        {
            std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
            error(&good).replace(&folder.path().display().to_string(), "FOLDER")
        },
    ];
    insta::assert_snapshot!("cannot_run", errors.join("\n"));

    let kept = model();
    for bytes in [1 << 50, u64::MAX] {
        let refused = error(&EngineOptions { kv_offloading_bytes: bytes, ..options(kept.path()) });
        let told = format!("kv_cache: kv_offloading of {bytes} bytes (");
        assert!(refused.starts_with(&told) && refused.ends_with("lower --kv-offloading-size"), "{refused}");
        let transfer = KvTransfer { host: "here".into(), port: 1, bytes };
        let refused = error(&EngineOptions { kv_transfer: Some(transfer), ..options(kept.path()) });
        assert!(
            refused.starts_with("kv_cache: kv_transfer of") && refused.contains(" is more than the "),
            "{refused}"
        );
    }

    let small = EngineOptions { kv_cache: KvCache::Blocks(4), ..options(kept.path()) };
    let small = EngineOptions { model: kept.path().display().to_string(), ..small };
    assert_eq!(
        assemble(&small, 0).unwrap().max_model_len(),
        64,
        "without a wish the context is cut to the cache"
    );
}
