//! Bad checkpoints, made from the golden ones.

use std::path::Path;

use serde_json::{Value, json};

use crate::model::load::{TokenizerSource, load};

/// A copy of a golden checkpoint that may be spoilt.
fn copy(name: &str) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(folder.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    folder
}

fn edit(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

fn refusal(folder: &Path) -> String {
    load(folder).unwrap_err().to_string().replace(&folder.display().to_string(), "DIR")
}

fn with_config(key: &str, value: Value) -> String {
    let folder = copy("golden_qwen2");
    edit(folder.path(), "config.json", key, value);
    refusal(folder.path())
}

#[test]
fn each_bad_configuration_says_what_is_wrong() {
    let messages = [
        with_config("architectures", json!(["MambaForCausalLM"])),
        with_config("hidden_size", Value::Null),
        with_config("hidden_size", json!("wide")),
        with_config("hidden_size", json!(128)),
        with_config("hidden_act", json!("gelu")),
        with_config("quantization_config", json!({"quant_method": "awq"})),
        with_config("rope_parameters", json!({"rope_type": "dynamic", "rope_theta": 10000.0})),
        with_config("num_hidden_layers", json!(3)),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    DIR/config.json: the architecture `MambaForCausalLM` is not supported; supported are LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, SmolLM3ForCausalLM, Gemma3ForConditionalGeneration
    DIR/config.json: the key `hidden_size` is missing
    DIR/config.json: not the JSON that was expected: invalid type: string "wide", expected usize
    DIR/model-00001-of-00002.safetensors: tensor `model.embed_tokens.weight` has the shape [160, 64], expected [160, 128]
    DIR/config.json: the activation `gelu` is not supported, only `silu` and `gelu_pytorch_tanh`
    DIR/config.json: weights quantised by `awq` are not supported; use the unquantised model or a GGUF
    DIR/config.json: rotary scaling of the type `dynamic` is not supported; `default`, `linear`, `llama3`, `yarn` and `longrope` are
    DIR: tensor `model.layers.2.input_layernorm.weight` is missing
    "#);
}

#[test]
fn each_bad_weight_file_says_what_is_wrong() {
    let mut messages = Vec::new();
    let mut spoil = |name: &str, change: &dyn Fn(&Path)| {
        let folder = copy(name);
        change(folder.path());
        messages.push(refusal(folder.path()));
    };
    let truncate = |dir: &Path, len: usize| {
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..len.min(bytes.len() - 1)]).unwrap();
    };
    spoil("golden_llama3", &|dir| truncate(dir, usize::MAX));
    spoil("golden_llama3", &|dir| truncate(dir, 100));
    spoil("golden_llama3", &|dir| truncate(dir, 0));
    spoil("golden_llama3", &|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    spoil("golden_llama3", &|dir| std::fs::write(dir.join("config.json"), "{").unwrap());
    spoil("golden_qwen2", &|dir| {
        edit(dir, "model.safetensors.index.json", "weight_map", json!({"a": "../../etc/passwd"}));
    });
    spoil("golden_qwen2", &|dir| {
        edit(dir, "model.safetensors.index.json", "weight_map", json!({"a": "missing.safetensors"}));
    });
    insta::assert_snapshot!(messages.join("\n"), @r#"
    DIR/model.safetensors: not a whole safetensors file: incomplete metadata, file not fully covered; download it again
    DIR/model.safetensors: not a whole safetensors file: invalid header length; download it again
    DIR/model.safetensors is not a model: expected a GGUF file, a .safetensors file with config.json beside it, or a folder that holds either (an empty file)
    DIR: neither model.safetensors nor model.safetensors.index.json is in the folder
    DIR/config.json: not the JSON that was expected: EOF while parsing an object at line 1 column 1
    DIR/model.safetensors.index.json: the index names "../../etc/passwd", which is not a file beside it
    cannot read DIR/missing.safetensors: No such file or directory (os error 2)
    "#);
}

#[test]
fn a_weights_file_without_its_configuration_is_no_model() {
    let folder = copy("golden_llama3");
    let file = folder.path().join("model.safetensors");
    assert!(load(&file).is_ok());
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let message = load(&file).unwrap_err().to_string();
    assert!(message.ends_with("(no config.json beside it)"), "{message}");
}

#[test]
fn the_tokenizer_the_template_and_the_special_tokens_come_along() {
    let folder = copy("golden_llama3");
    let config = json!({"add_bos_token": true, "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    edit(folder.path(), "generation_config.json", "eos_token_id", json!([2, 7]));
    let model = load(folder.path()).unwrap();
    assert_eq!(model.special.eos, [2, 7]);
    assert!(model.special.bos == Some(1) && model.special.add_bos);
    assert_eq!(model.chat_template.as_deref(), Some("yes"));
    let path = folder.path().join("tokenizer.json");
    assert_eq!(
        model.tokenizer_source,
        TokenizerSource::HuggingFace { tokenizer_json: path, tokenizer_config: config }
    );
    std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(load(folder.path()).unwrap().chat_template.as_deref(), Some("file"));
}
