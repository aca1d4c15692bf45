//! Damaged files and requests: each reader says what is wrong, and none panics, hangs or takes memory
//! without bound.
//!
//! `FUZZ_SECONDS` says for how long (a few inputs without it), `FUZZ_SEED` where to begin. An input
//! that fails is kept in `target/fuzz/`.

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use jiff::Zoned;
use strata_hop::Above;
use strata_wire::chat::Message;
use tower::ServiceExt;

use self::mutate::{Random, mutate};
use crate::lora::{LoraOptions, Read, RuntimeLora, read, tests as lora};
use crate::model::load::load;
use crate::options::{EngineOptions, KvCache};
use crate::runtime::Engine;
use crate::serve;
use crate::template::{ChatTemplate, Prompt};
use crate::tokenizer::Tokenizer;

/// Inputs that every run of the tests looks at.
const A_FEW: u64 = 60;
/// Longest time that one input may take, on a machine that does other things as well.
const LONGEST: Duration = Duration::from_secs(20);
/// What the process may grow by while it reads small files.
const MEMORY: usize = 1 << 30;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Most memory that this process has had at once.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap_or(0) * 1024
}

/// Damages one of `whole` again and again; `read` returns whether it was taken.
fn fuzz(name: &str, whole: &[Vec<u8>], read: impl Fn(&[u8]) -> bool) {
    let seconds = number("FUZZ_SECONDS");
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
    let before = peak();
    let (mut runs, mut taken) = (0u64, 0u64);
    while runs < seconds.map_or(A_FEW, |_| u64::MAX) && Instant::now() < until {
        let own = seed.wrapping_add(runs);
        let mut random = Random(own.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let which = random.below(whole.len());
        let input = mutate(&mut random, &whole[which]);
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let grown = peak().saturating_sub(before);
        if outcome.is_err() || begun.elapsed() > LONGEST || grown > MEMORY {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("engine-{name}-{own}"));
            std::fs::write(&path, &input).unwrap();
            panic!(
                "{name}, seed {own}: panicked: {}, {:?}, {grown} bytes more; kept in {}",
                outcome.is_err(),
                begun.elapsed(),
                path.display()
            );
        }
        taken += u64::from(outcome.unwrap_or(false));
        runs += 1;
    }
    println!("fuzz {name}: {runs} inputs, {taken} taken");
    assert!(runs > 0);
}

const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],
"special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},
"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"vocab":{"<s>":0,"a":1,"b":2,"c":3,"ab":4,"abc":5,"Ġ":6,"d":7},"merges":["a b","ab c"]}}"#;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content | trim }}{% else %}\
    {{ raise_exception('no') }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<a>' ~ bos_token }}\
    {% endif %}{% set n = namespace(x=1) %}{{ n.x + messages | length }}{{ messages | tojson }}";

/// A folder with a small model.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_qwen3");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.path().join(file)).unwrap();
    }
    let config = serde_json::json!({"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "d"});
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

/// Opens a model as an engine does, and uses what was read.
fn opens(path: &Path) -> bool {
    let Ok(model) = load(path) else { return false };
    if let Ok(tokenizer) = Tokenizer::build(&model.tokenizer_source, &model.special) {
        let ids = tokenizer.encode("abc d é\u{0}", true).unwrap_or_default();
        let _ = tokenizer.decode(&ids, true);
        let _ = tokenizer.decode(&[0, 5, u32::MAX], false);
    }
    renders(&model.chat_template.unwrap_or_default());
    true
}

fn renders(template: &str) -> bool {
    let Ok(template) = ChatTemplate::new(template.to_owned(), "<s>".into(), "</s>".into()) else {
        return false;
    };
    let messages = [Message::text("user", "hello"), Message::text("user", "")];
    let prompt = Prompt { messages: &messages, add_generation_prompt: true, ..Prompt::default() };
    template.render(&prompt, &Zoned::now()).is_ok()
}

#[test]
fn gguf() {
    let whole = crate::gguf::tests::tiny().bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fuzz("gguf", &[whole], |bytes| {
        std::fs::write(&path, bytes).unwrap();
        opens(&path)
    });
}

#[test]
fn safetensors_and_configuration() {
    let folder = folder();
    for file in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        fuzz(file, std::slice::from_ref(&whole), |bytes| {
            std::fs::write(&path, bytes).unwrap();
            opens(folder.path())
        });
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn adapters() {
    let (spec, folder) = (lora::spec(), lora::folder());
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        fuzz(file, std::slice::from_ref(&whole), |bytes| {
            std::fs::write(&path, bytes).unwrap();
            let how = Read { spec: &spec, max_rank: 8, within: None };
            // What is taken can be run.
            read(folder.path(), how)
                .is_ok_and(|weights| weights.check(&spec).map(|()| weights.digest()).is_ok())
        });
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn templates() {
    fuzz("template", &[TEMPLATE.into()], |bytes| renders(&String::from_utf8_lossy(bytes)));
}

/// Sends a body; whether it was taken. Statuses that say that the engine is at fault are failures.
fn answers(runtime: &tokio::runtime::Runtime, engine: &Arc<Engine>, path: &str, body: &[u8]) -> bool {
    let router = serve::router(engine.clone(), Above::default());
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .unwrap();
    runtime.block_on(async move {
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success() || status.is_client_error(), "{status}: {text:?}");
        assert!(!text.windows(8).any(|w| w == b"a defect"), "{text:?}");
        status == StatusCode::OK
    })
}

#[test]
fn requests() {
    let folder = folder();
    let options = EngineOptions {
        kv_cache: KvCache::Blocks(32),
        threads: 1,
        served_model_name: Some("m".into()),
        lora: Some(LoraOptions {
            runtime: Some(RuntimeLora { folder: folder.path().into() }),
            ..LoraOptions::default()
        }),
        ..EngineOptions::new(folder.path().display().to_string())
    };
    let engine = crate::assemble(&options, 0).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"abc d"},{"role":"user","content":[{"type":"text","text":"a"}]}],"max_tokens":4,"temperature":0.5,"top_p":0.9,"top_k":5,"min_p":0.1,"seed":1,"n":2,"stop":["ab","d"],"logit_bias":{"1":-5},"logprobs":true,"top_logprobs":2,"stream":true,"stream_options":{"include_usage":true},"frequency_penalty":0.5,"presence_penalty":-0.5,"repetition_penalty":1.1,"min_tokens":1,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"none","cache_salt":"s","priority":-1}"#;
    let completion = r#"{"model":"m","prompt":[[1,2,3],[4,5]],"max_tokens":3,"logprobs":2,"stop_token_ids":[3],"ignore_eos":true,"echo":false,"skip_special_tokens":false,"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"type":"object","properties":{"a":{"type":"integer"}}}}}}"#;
    let tokenize = r#"{"model":"m","prompt":"abc d","add_special_tokens":true}"#;
    let cases = [
        ("/v1/chat/completions", chat),
        ("/v1/completions", completion),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":"abc","max_tokens":3,"guided_regex":"[ab]+","bad_words":["ab"]}"#,
        ),
        ("/tokenize", tokenize),
        ("/detokenize", r#"{"model":"m","tokens":[1,2,5]}"#),
        ("/abort_requests", r#"{"request_ids":["a","b"]}"#),
        ("/v1/load_lora_adapter", r#"{"lora_name":"l","lora_path":"a","load_inplace":true}"#),
        ("/v1/unload_lora_adapter", r#"{"lora_name":"l"}"#),
    ];
    for (path, whole) in cases {
        fuzz(path.trim_matches('/').replace('/', "-").as_str(), &[whole.into()], |body| {
            answers(&runtime, &engine, path, body)
        });
    }
    assert!(answers(&runtime, &engine, "/v1/completions", br#"{"model":"m","prompt":[1,2],"max_tokens":2}"#));
}
