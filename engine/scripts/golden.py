#!/usr/bin/env python3
"""Makes the golden vectors that engine/tests/golden*.rs compare Strata with, from independent code.

    python engine/scripts/golden.py dequant            every quantisation, by gguf's own dequantise
    python engine/scripts/golden.py tiny [NAME…]       small random models, by transformers' own classes
    python engine/scripts/golden.py lora               random adapters of some of these, by PEFT
    python engine/scripts/golden.py smollm2 MODEL.gguf the real model, by transformers in float32
    python engine/scripts/golden.py encoders           small random encoders, by transformers' own classes
    python engine/scripts/golden.py decoders           small random decoders that read, likewise
    python engine/scripts/golden.py reads MODEL.gguf   the real model's texts as vectors, in float32
    python engine/scripts/golden.py minilm FOLDER      the real encoder, by sentence-transformers in float32

Needs torch, transformers, tokenizers, safetensors, gguf and numpy, and peft for adapters. Written to engine/tests/data/; the
files are kept in the repository, so that testing needs none of those. Made with transformers 5.23 and
torch 2.15. The same seeds give the same weights; logits may differ in the last bits between versions.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def dequant():
    """Random blocks of each type, with the float32 bits that they stand for."""
    import gguf

    # Where the half-precision scales lie in a block; random bits there would make NaN and infinities.
    scales = {
        "F32": [], "F16": [], "BF16": [],
        "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
        "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    }
    rng = np.random.default_rng(7)
    cases = []
    for name, offsets in scales.items():
        kind = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if block_len == 1:
            values = rng.normal(size=64).astype(np.float32)
            raw = gguf.quants.quantize(values, kind).view(np.uint8).reshape(1, -1)
        else:
            raw = rng.integers(0, 256, size=(3, block_bytes), dtype=np.uint8)
            for at in offsets:
                raw[:, at : at + 2] = rng.normal(scale=0.1, size=3).astype(np.float16).view(np.uint8).reshape(3, 2)
            raw = raw.reshape(1, -1)
        values = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(-1)
        cases.append({
            "kind": name,
            "ggml_id": int(kind),
            "bytes": raw.tobytes().hex(),
            "bits": values.view(np.uint32).tobytes().hex(),
        })
    write("golden_dequant.json", {"cases": cases})


def tiny(wanted):
    """A random model of each architecture, saved as transformers saves it, with its logits."""
    import torch
    import transformers as t

    shape = dict(vocab_size=160, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                 bos_token_id=1, eos_token_id=2)
    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                  high_freq_factor=4.0, original_max_position_embeddings=32)
    qwen3 = shape | dict(hidden_size=48, head_dim=24, intermediate_size=72)
    models = {
        "llama3": (t.LlamaForCausalLM, t.LlamaConfig(**shape, rope_parameters=llama3, tie_word_embeddings=False),
                   torch.bfloat16, "10MB"),
        "mistral": (t.MistralForCausalLM, t.MistralConfig(**shape, sliding_window=8, tie_word_embeddings=False),
                    torch.float16, "10MB"),
        # In two shards, to have an index.
        "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**shape, tie_word_embeddings=True), torch.float16, "80KB"),
        "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**qwen3, tie_word_embeddings=True), torch.bfloat16, "10MB"),
    }
    # These are written as GGUF too, by gguf's own writer and names.
    small = shape | dict(hidden_size=48, intermediate_size=48, head_dim=16, pad_token_id=0)
    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
    long_rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.02, 1.1, 1.2, 1.3, 1.4],
                     long_factor=[1.1, 1.5, 2.0, 3.5, 5.0, 7.0])
    both = dict(full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0))
    models |= {
        "gemma2": (t.Gemma2ForCausalLM, t.Gemma2Config(
            **small, sliding_window=8, query_pre_attn_scalar=16, attn_logit_softcapping=4.0,
            final_logit_softcapping=20.0), torch.float16, "10MB"),
        "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(
            **small | dict(num_hidden_layers=3), sliding_window=8, query_pre_attn_scalar=16, rope_parameters=both,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"]), torch.float16, "10MB"),
        "phi3": (t.Phi3ForCausalLM, t.Phi3Config(
            **small | dict(hidden_size=64), sliding_window=40, original_max_position_embeddings=32,
            partial_rotary_factor=0.75, rope_parameters=long_rope), torch.float16, "10MB"),
        "smollm3": (t.SmolLM3ForCausalLM, t.SmolLM3Config(
            **small | dict(num_hidden_layers=4)), torch.float16, "10MB"),
        "mixtral": (t.MixtralForCausalLM, t.MixtralConfig(
            **small | dict(intermediate_size=32), num_local_experts=4, num_experts_per_tok=2), torch.float16, "10MB"),
        "qwen3moe": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(
            **small, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True),
            torch.float16, "10MB"),
        # The first layer dense, weights as the softmax gives them: neither can be said in a GGUF.
        "qwen3moe_mixed": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(
            **small, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False,
            mlp_only_layers=[0]), torch.float16, "10MB"),
        "yarn": (t.Qwen3ForCausalLM, t.Qwen3Config(**small, rope_parameters=yarn), torch.float16, "10MB"),
        # A decoder inside a model that sees images.
        "gemma3_vision": (t.Gemma3ForConditionalGeneration, t.Gemma3Config(
            text_config=t.Gemma3TextConfig(
                **small | dict(num_hidden_layers=3), sliding_window=8, query_pre_attn_scalar=16, rope_parameters=both,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
            vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                               image_size=28, patch_size=14),
            mm_tokens_per_image=4, image_token_index=150, boi_token_index=151, eoi_token_index=152),
            torch.float16, "10MB"),
    }
    for seed, (name, (cls, config, dtype, shard)) in enumerate(models.items()):
        if wanted and name not in wanted:
            continue
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = cls(config).eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.dim() >= 2:
                    p.normal_(std=1.0 if "embed" in key else p.shape[-1] ** -0.5)
                elif key.endswith("bias"):
                    p.normal_(std=0.5)
                elif "gemma" in name:
                    p.uniform_(-0.4, 0.4)
                else:
                    p.uniform_(0.6, 1.4)
        folder = DATA / f"golden_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        # The reference runs on what was saved, in float32.
        model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        # Without the tokens that stand for images.
        tokens = torch.randint(0, 150 if "vision" in name else config.vocab_size, (1, 100))
        write(f"golden_{name}/golden.json", tiny_logits(model, tokens, [0, 9, 40, 99]))
        if name == "phi3":
            # Within its first context, where the other factors apply.
            write(f"golden_{name}/golden_short.json", tiny_logits(model, tokens[:, :32], [0, 9, 31]))
        if name in GGUF_KEYS:
            write_gguf(name, folder, config)


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Of which golden model, and how: what PEFT's LoraConfig says, and the precision that it is saved in.
ADAPTERS = {
    "llama3": (dict(r=4, lora_alpha=8, target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"]), "bfloat16"),
    # Its GGUF has the rows of queries and keys in another order, also in layers without positions.
    "smollm3": (dict(r=9, lora_alpha=3, target_modules=ATTENTION, use_rslora=True), "float16"),
    "phi3": (dict(r=5, lora_alpha=7, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), "float32"),
    # In one of its layers only, named by a pattern.
    "qwen3": (dict(r=1, lora_alpha=2, target_modules=r".*\.1\..*(q_proj|down_proj)"), "float32"),
}


def lora():
    """A random adapter of some of the small models, saved as PEFT saves it, with its logits."""
    import torch
    import transformers as t
    from peft import LoraConfig, PeftModel, get_peft_model

    for seed, (name, (how, dtype)) in enumerate(ADAPTERS.items()):
        base = lambda: t.AutoModelForCausalLM.from_pretrained(
            DATA / f"golden_{name}", dtype=torch.float32, attn_implementation="eager").eval()
        torch.manual_seed(100 + seed)
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **how))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_" in key:
                    p.normal_(std=p.shape[-1] ** -0.5)
                    p.copy_(p.to(getattr(torch, dtype)))
        model.peft_config["default"].base_model_name_or_path = f"golden_{name}"
        folder = DATA / f"golden_lora_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        state = {k: p.to(getattr(torch, dtype)) for k, p in model.state_dict().items() if "lora_" in k}
        model.save_pretrained(folder, state_dict=state)
        (folder / "README.md").unlink()
        # The reference runs on what was saved, in float32.
        model = PeftModel.from_pretrained(base(), folder).eval()
        tokens = torch.randint(0, model.config.vocab_size, (1, 60))
        write(f"golden_lora_{name}/golden.json", tiny_logits(model, tokens, [0, 11, 59]))


def tiny_logits(model, tokens, places):
    """The logits at some places of one pass over all tokens."""
    import torch

    with torch.no_grad():
        logits = model(tokens).logits[0]
    return {
        "tokens": tokens[0].tolist(),
        "positions": [{"position": i, "logits": rounded(logits[i].numpy())} for i in places],
    }


# What each architecture says in a GGUF beyond the sizes, as llama.cpp's converter writes it.
GGUF_KEYS = {
    "gemma2": ("gemma2", lambda w, c: (
        w.add_attn_logit_softcapping(c.attn_logit_softcapping),
        w.add_final_logit_softcapping(c.final_logit_softcapping),
        w.add_sliding_window(c.sliding_window))),
    "gemma3": ("gemma3", lambda w, c: (
        w.add_sliding_window(c.sliding_window),
        w.add_sliding_window_pattern([t == "sliding_attention" for t in c.layer_types]),
        w.add_rope_freq_base(1e6), w.add_rope_scaling_type(linear_scaling()), w.add_rope_scaling_factor(8.0))),
    "phi3": ("phi3", lambda w, c: (
        w.add_sliding_window(c.sliding_window), w.add_rope_dimension_count(12),
        w.add_rope_scaling_orig_ctx_len(32),
        w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(256 / 32) / np.log(32)))),
        w.add_tensor("rope_factors_long.weight", np.array(c.rope_parameters["long_factor"], np.float32)),
        w.add_tensor("rope_factors_short.weight", np.array(c.rope_parameters["short_factor"], np.float32)))),
    "smollm3": ("smollm3", lambda w, c: w.add_rope_freq_base(c.rope_parameters["rope_theta"])),
    "mixtral": ("llama", lambda w, c: (
        w.add_rope_freq_base(c.rope_parameters["rope_theta"]), w.add_expert_count(c.num_local_experts),
        w.add_expert_used_count(c.num_experts_per_tok))),
    "qwen3moe": ("qwen3moe", lambda w, c: (
        w.add_rope_freq_base(c.rope_parameters["rope_theta"]), w.add_expert_count(c.num_experts),
        w.add_expert_used_count(c.num_experts_per_tok),
        w.add_expert_feed_forward_length(c.moe_intermediate_size))),
    "yarn": ("qwen3", lambda w, c: (
        w.add_rope_freq_base(10000.0), w.add_rope_scaling_type(yarn_scaling()), w.add_rope_scaling_factor(4.0),
        w.add_rope_scaling_orig_ctx_len(32))),
}


def linear_scaling():
    import gguf

    return gguf.RopeScalingType.LINEAR


def yarn_scaling():
    import gguf

    return gguf.RopeScalingType.YARN


def write_gguf(name, folder, config):
    """The saved checkpoint as a GGUF, under the names that gguf's own table gives its tensors."""
    import gguf
    from safetensors.numpy import load_file

    arch, keys = GGUF_KEYS[name]
    w = gguf.GGUFWriter(folder / "model.gguf", arch)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(16)
    w.add_value_length(16)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("default")
    w.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    w.add_token_merges(["t 1"])
    keys(w, config)
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    experts = {}
    for key, values in load_file(folder / "model.safetensors").items():
        parts = key.split(".")
        if "experts" in parts:
            expert = int(parts[parts.index("experts") + 1])
            parts.pop(parts.index("experts") + 1)
            experts.setdefault(".".join(parts), {})[expert] = values
            continue
        if arch in ("llama", "smollm3") and ("q_proj" in parts or "k_proj" in parts):
            # GGUF interleaves the two halves that transformers rotates together.
            rows, cols = values.shape
            values = values.reshape(rows // 16, 2, 8, cols).swapaxes(1, 2).reshape(rows, cols)
        if values.ndim == 1:
            values = values.astype(np.float32) + (1 if "gemma" in name else 0)
        w.add_tensor(names.get_name(key, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    for key, stack in experts.items():
        values = np.stack([stack[i] for i in range(len(stack))])
        w.add_tensor(names.get_name(key, try_suffixes=(".weight",)), values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{name}/model.gguf", (folder / "model.gguf").stat().st_size, "bytes")


PROMPTS = [
    "The capital of France is",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the largest planet of the solar system?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    \"\"\"Returns the first n Fibonacci numbers.\"\"\"\n    a, b = 0, 1\n    out = []\n"
    "    for _ in range(n):\n",
    "A lighthouse keeper wrote in his book every evening. On the first day he wrote about the wind, which came "
    "from the west and brought rain. On the second day he wrote about the ships: three fishing boats, a ferry "
    "and a tall ship with white sails. On the third day the fog came, and he wrote nothing but the number of "
    "times that he sounded the horn, which was 412. On the fourth day a gull with a broken wing sat on the "
    "stairs; he fed it bread and fish, and named it after his sister. When the supply boat came at the end of "
    "the week, the captain asked him what had happened. The keeper opened his book and read: on the first day",
]


def smollm2(path):
    """The real model's logits, and what it writes when always taking the likeliest token."""
    import torch

    model, tokenizer = smollm2_model(path)
    rng = np.random.default_rng(11)
    sample = sorted(rng.choice(model.config.vocab_size, 64, replace=False).tolist())
    prompts = []
    for text in PROMPTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            out = model(torch.tensor([tokens]), use_cache=True)
            logits = out.logits[0, -1]
            top = torch.topk(logits, 64).indices.tolist()
            greedy, row = [], logits
            for _ in range(32):
                best = torch.topk(row, 2)
                token = int(best.indices[0])
                greedy.append({"token": token, "margin": round(float(best.values[0] - best.values[1]), 4)})
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                row = out.logits[0, -1]
        ids = top + sample
        prompts.append({
            "text": text, "tokens": tokens, "ids": ids,
            "logits": rounded(logits[ids].numpy()), "greedy": greedy,
            "greedy_text": tokenizer.decode([g["token"] for g in greedy], skip_special_tokens=False),
        })
        print(len(tokens), repr(prompts[-1]["greedy_text"]))
    write("golden_smollm2.json", {"model": Path(path).name, "prompts": prompts})


def smollm2_reads(path):
    """The last row of each text, of length one."""
    import torch

    model, tokenizer = smollm2_model(path)
    cases = []
    for text in PROMPTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            row = model.model(torch.tensor([tokens])).last_hidden_state[0, -1]
        vector = torch.nn.functional.normalize(row, dim=0)
        cases.append({"text": text, "tokens": tokens, "vector": rounded(vector.numpy())})
    write("golden_smollm2_reads.json", {"cases": cases})


def smollm2_model(path):
    """The GGUF's weights in transformers' own class in float32, and its tokenizer."""
    import gguf
    import torch
    import transformers as t

    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = t.LlamaConfig(
        vocab_size=field("llama.vocab_size"), hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"), num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                # GGUF interleaves the two halves that transformers rotates together.
                n = heads if parts[2] == "attn_q" else kv_heads
                rows, cols = values.shape
                values = values.reshape(n, rows // n // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
            name = f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = t.LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=True)

    tokenizer = bpe(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges"),
                    field("tokenizer.ggml.token_type"))
    return model, tokenizer


def bpe(tokens, merges, kinds):
    """SmolLM2's tokenizer, out of the GGUF's lists."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds) if k == 3])
    return tokenizer


WORDS = "the a cat dog sat ran on under mat hill is was what why who capital of france paris blue green sky".split()


def encoders():
    """A random encoder of each head, with a WordPiece tokenizer of a few words."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, decoders

    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "##ing"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    shape = dict(vocab_size=len(vocab), hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_size=56, max_position_embeddings=64, type_vocab_size=2)
    kinds = {
        "bert": (t.BertModel, {}),
        "bert_rank": (t.BertForSequenceClassification, dict(num_labels=1)),
        "bert_classes": (t.BertForSequenceClassification, dict(id2label={0: "calm", 1: "angry", 2: "glad"},
                                                               label2id={"calm": 0, "angry": 1, "glad": 2})),
    }
    texts = ["what is the capital of france", "paris", "the cats sat on the mat under the blue sky " * 5]
    pairs = [["what is the capital of france", "the capital of france is paris"], ["who ran", "a dog sat"]]
    for seed, (name, (cls, more)) in enumerate(kinds.items()):
        torch.manual_seed(100 + seed)
        model = cls(t.BertConfig(**shape, **more)).eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.dim() == 2:
                    p.normal_(std=0.7 if "embed" in key else p.shape[-1] ** -0.5)
                elif key.endswith("bias"):
                    p.normal_(std=0.3)
                else:
                    p.uniform_(0.6, 1.4)
        folder = DATA / f"golden_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.float16).save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        cases = []
        for text in [*texts, *pairs]:
            encoding = tokenizer.encode(*(text if isinstance(text, list) else [text]))
            with torch.no_grad():
                out = model(input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))
            # Without a head: the first row, of length one.
            vector = out.logits[0] if more else torch.nn.functional.normalize(out.last_hidden_state[0, 0], dim=0)
            cases.append({"text": text, "tokens": encoding.ids, "vector": rounded(vector.numpy())})
        write(f"golden_{name}/golden.json", {"cases": cases})


def decoders():
    """A random decoder of each ending, with a byte-level tokenizer that ends every text."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<|pad|>", "<|end|>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", pair="$A $B:1 <|end|>:1", special_tokens=[("<|end|>", 1)])
    shape = dict(vocab_size=len(alphabet) + 2, hidden_size=48, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
                 bos_token_id=None, eos_token_id=1, pad_token_id=0)
    labels = dict(id2label={0: "calm", 1: "angry", 2: "glad"}, label2id={"calm": 0, "angry": 1, "glad": 2})
    kinds = {
        # As Qwen3-Embedding: a class that generates, and modules that say otherwise.
        "reader_last": (t.Qwen3ForCausalLM, t.Qwen3Config(**shape, tie_word_embeddings=True), ("lasttoken", True)),
        "reader_mean": (t.MistralModel, t.MistralConfig(**shape, sliding_window=16), ("mean_tokens", False)),
        "reader_plain": (t.LlamaModel, t.LlamaConfig(**shape), None),
        "reader_rank": (t.Qwen3ForSequenceClassification, t.Qwen3Config(**shape, num_labels=1), None),
        "reader_classes": (t.LlamaForSequenceClassification, t.LlamaConfig(**shape, **labels), None),
    }
    texts = ["what is the capital of france", "paris", "the cats sat on the mat under the blue sky; " * 4]
    pairs = [["what is the capital of france", "the capital of france is paris"], ["who ran", "a dog sat"]]
    for seed, (name, (cls, config, modules)) in enumerate(kinds.items()):
        torch.manual_seed(200 + seed)
        config._attn_implementation = "eager"
        model = cls(config).eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.dim() == 2:
                    p.normal_(std=1.0 if "embed" in key else p.shape[-1] ** -0.5)
                else:
                    p.uniform_(0.6, 1.4)
        folder = DATA / f"golden_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.float16).save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        if modules:
            kind = lambda name: f"sentence_transformers.models.{name}"
            listed = [dict(idx=0, name="0", path="", type=kind("Transformer")),
                      dict(idx=1, name="1", path="1_Pooling", type=kind("Pooling"))]
            listed += [dict(idx=2, name="2", path="2_Normalize", type=kind("Normalize"))] * modules[1]
            write(f"golden_{name}/modules.json", listed)
            modes = ["cls_token", "mean_tokens", "lasttoken"]
            write(f"golden_{name}/1_Pooling/config.json",
                  {"word_embedding_dimension": 48} | {f"pooling_mode_{m}": m == modules[0] for m in modes})
        model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        cases = []
        for text in [*texts, *pairs]:
            tokens = tokenizer.encode(*(text if isinstance(text, list) else [text])).ids
            with torch.no_grad():
                ids = torch.tensor([tokens])
                rows = getattr(model, "model", model)(input_ids=ids).last_hidden_state[0]
                scores = model(input_ids=ids).logits[0] if hasattr(model, "score") else None
            if scores is not None:
                vector = scores
            else:
                pooling, normalise = modules or ("lasttoken", True)
                vector = rows.mean(0) if pooling == "mean_tokens" else rows[-1]
                vector = torch.nn.functional.normalize(vector, dim=0) if normalise else vector
            cases.append({"text": text, "tokens": tokens, "vector": rounded(vector.numpy())})
        write(f"golden_{name}/golden.json", {"cases": cases})


def minilm(folder):
    """The real encoder's embeddings: short, long, cut, other scripts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day", "naïve Café, 東京 42!",
             "x", PROMPTS[3]]
    vectors = model.encode(texts, batch_size=1, convert_to_numpy=True)
    write("golden_minilm.json", {"cases": [
        {"text": text, "tokens": model.tokenizer(text, truncation=True, max_length=256)["input_ids"],
         "vector": rounded(vector)} for text, vector in zip(texts, vectors)]})


def rounded(values):
    """Seven digits, which is what a float32 has."""
    return [float(f"{v:.7g}") for v in values]


def write(name, value):
    path = DATA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(path.relative_to(DATA.parent.parent), path.stat().st_size, "bytes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["dequant"]:
            dequant()
        case ["tiny", *names]:
            tiny(names)
        case ["lora"]:
            lora()
        case ["encoders"]:
            encoders()
        case ["decoders"]:
            decoders()
        case ["reads", path]:
            smollm2_reads(path)
        case ["minilm", folder]:
            minilm(folder)
        case ["smollm2", path]:
            smollm2(path)
        case _:
            sys.exit(__doc__)
