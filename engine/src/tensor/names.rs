//! What file formats call a model's parameters.

/// The names in one file format. Those of a layer follow `{layers}{index}.`; a matrix is `….weight`, a
/// bias `….bias`.
pub(crate) struct Names {
    pub(super) embedding: &'static str,
    pub(super) output_norm: &'static str,
    pub(super) output: &'static str,
    pub(super) layers: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) attention_post_norm: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    /// Query, key and value in one matrix, one below the other.
    pub(super) query_key_value: &'static str,
    pub(super) query_norm: &'static str,
    pub(super) key_norm: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) feed_forward_norm: &'static str,
    pub(super) feed_forward_post_norm: &'static str,
    pub(super) gate: &'static str,
    pub(super) up: &'static str,
    /// Gate and up projection in one matrix, one below the other.
    pub(super) gate_up: &'static str,
    pub(super) down: &'static str,
    pub(super) router: &'static str,
    pub(super) experts: ExpertNames,
    /// Added to every norm's weights: Gemma's checkpoints hold what they exceed one by.
    pub(super) norm_offset: f32,
}

/// How the matrices of a layer's experts lie in a file: gate, up and down projections.
pub(super) struct ExpertNames {
    /// All experts' in one tensor of three dimensions.
    pub(super) stacked: Option<[&'static str; 3]>,
    /// Each by itself: what stands before and after `.{expert}`.
    pub(super) each: [(&'static str, &'static str); 3],
}

/// GGUF's names.
pub(crate) const GGUF: Names = Names {
    embedding: "token_embd",
    output_norm: "output_norm",
    output: "output",
    layers: "blk.",
    attention_norm: "attn_norm",
    attention_post_norm: "post_attention_norm",
    query: "attn_q",
    key: "attn_k",
    value: "attn_v",
    query_key_value: "attn_qkv",
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    attention_output: "attn_output",
    feed_forward_norm: "ffn_norm",
    feed_forward_post_norm: "post_ffw_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    // Without a gate beside it, the up projection holds both.
    gate_up: "ffn_up",
    down: "ffn_down",
    router: "ffn_gate_inp",
    experts: ExpertNames {
        stacked: Some(["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]),
        // The first files of Mixtral.
        each: [("ffn_gate", ""), ("ffn_up", ""), ("ffn_down", "")],
    },
    // Its converters add Gemma's one themselves.
    norm_offset: 0.0,
};

/// The names of Hugging Face's `…ForCausalLM` classes.
pub(crate) const HUGGING_FACE: Names = Names {
    embedding: "model.embed_tokens",
    output_norm: "model.norm",
    output: "lm_head",
    layers: "model.layers.",
    attention_norm: "input_layernorm",
    attention_post_norm: "",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    query_key_value: "self_attn.qkv_proj",
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    attention_output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    feed_forward_post_norm: "",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
    router: "mlp.gate",
    experts: ExpertNames {
        stacked: None,
        each: [("mlp.experts", ".gate_proj"), ("mlp.experts", ".up_proj"), ("mlp.experts", ".down_proj")],
    },
    norm_offset: 0.0,
};

/// Those of the Gemma classes, where a norm follows attention and frames the feed-forward layer.
pub(crate) const HUGGING_FACE_GEMMA: Names = Names {
    attention_post_norm: "post_attention_layernorm",
    feed_forward_norm: "pre_feedforward_layernorm",
    feed_forward_post_norm: "post_feedforward_layernorm",
    norm_offset: 1.0,
    ..HUGGING_FACE
};

/// Those of Mixtral.
pub(crate) const HUGGING_FACE_MIXTRAL: Names = Names {
    router: "block_sparse_moe.gate",
    experts: ExpertNames {
        stacked: None,
        each: [
            ("block_sparse_moe.experts", ".w1"),
            ("block_sparse_moe.experts", ".w3"),
            ("block_sparse_moe.experts", ".w2"),
        ],
    },
    ..HUGGING_FACE
};
