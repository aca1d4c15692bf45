//! The text part of models that read more than text: their configuration holds the decoder's in
//! `text_config`, without what is the class's default.

use serde_json::{Map, Value, json};

/// What the whole model's configuration says of its decoder, too.
const SHARED: [&str; 5] =
    ["architectures", "bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config"];

/// The configuration of the decoder; all of it where there is nothing else.
pub(super) fn text_part(mut config: Value) -> Value {
    let Some(Value::Object(mut text)) = config.get_mut("text_config").map(Value::take) else { return config };
    for key in SHARED {
        if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    let kind = text.get("model_type").and_then(Value::as_str).unwrap_or_default();
    for (key, value) in defaults(kind) {
        text.entry(key).or_insert(value);
    }
    Value::Object(text)
}

/// The sizes that a class of transformers has when its configuration is silent.
fn defaults(model_type: &str) -> Map<String, Value> {
    let sizes = match model_type {
        "gemma3_text" => json!({
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "max_position_embeddings": 131_072,
        }),
        _ => Value::Null,
    };
    match sizes {
        Value::Object(sizes) => sizes,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_within_says_its_part_and_what_is_said_above_it() {
        let plain = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 8});
        assert_eq!(text_part(plain.clone()), plain);
        // As the 4-billion model's file has it.
        let gemma = json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "boi_token_index": 7,
            "text_config": {"hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "sliding_window": 1024},
        });
        let text = text_part(gemma);
        assert_eq!((&text["hidden_size"], &text["num_attention_heads"]), (&json!(2560), &json!(8)));
        assert_eq!((&text["eos_token_id"], &text["vocab_size"]), (&json!([1, 106]), &json!(262_208)));
        assert_eq!(text["architectures"][0], "Gemma3ForConditionalGeneration");
        assert!(text.get("boi_token_index").is_none());
    }
}
