"""Writes engine/tests/data/tokenizer.json: token ids by implementations that are not ours.

    python engine/scripts/tokenizer_golden.py MODEL.gguf

needs `transformers`, `gguf`, `tokenizers` and `llama-cpp-python`. MODEL is SmolLM2-135M-Instruct.

- `smollm`: Hugging Face's tokenizer of the file. transformers drops the splitting of digits when it
  reads a GGUF file, so it is put back as in the model's own tokenizer.json; llama.cpp must agree.
- `pre`: the same vocabulary under other pre-tokenizers, by llama.cpp.
- `spm`: a small vocabulary with scores and byte tokens, by llama.cpp.
"""

import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXTS = [
    "Hello, world!",
    "The capital of France is Paris.",
    " leading space",
    "trailing spaces   ",
    "two  three   four    spaces",
    "tabs\tand\n\nnewlines\r\n  indented",
    "1234567890 3.14159 1,000,000 2026-11-23",
    "x=1;y=22;z=333",
    "don't we'll THEY'RE I'd it's",
    "Grüße aus Köln, señor; naïve façade",
    "日本語のテキスト、中文文本",
    "Привет, мир! مرحبا بالعالم שלום",
    "👍🏽 emoji 👨‍👩‍👧‍👦 and 🇫🇷",
    "def f(x):\n    return {k: v for k, v in x.items()}  # comment\n",
    "<div class=\"a\">&amp;</div>",
    "https://example.org/path?query=1&b=%20#frag",
    "a_snake_case camelCase SCREAMING_CASE kebab-case",
    "!!! ??? ... --- *** ###",
    "½ ² Ⅷ ٣",
    "\u00a0non-breaking\u2003em space\u200bzero width",
    "",
    " ",
    "\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]
SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b",
    "<|im_start|><|im_start|>",
    "<|im_start |> is not special",
]
CORPUS = "the quick brown fox jumps over the lazy dog and then the other foxes jump too, hello world, naïve café\n" * 4


def copy_vocab(source, target, changes):
    """Writes the metadata of a GGUF file, without its tensors."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = changes.get(field.name, field.contents())
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    write(writer)


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokenize_all(path, texts):
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    return [{"text": t, "ids": model.tokenize(t.encode(), add_bos=False, special=True) if t else []} for t in texts]


def small_spm():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=160, show_progress=False))
    words = sorted(trained.get_vocab().items(), key=lambda kv: kv[1])
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for rank, (word, _) in enumerate(words):
        tokens.append(word)
        types.append(1)
        # Longer tokens come later in training and score lower, single characters lowest.
        scores.append(-float(rank) if len(word) > 1 else -1000.0 - rank)
    return tokens, types, scores


def main(model):
    folder = pathlib.Path(tempfile.mkdtemp())
    hf = AutoTokenizer.from_pretrained(str(pathlib.Path(model).parent), gguf_file=pathlib.Path(model).name)
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    smollm = [{"text": t, "ids": hf(t, add_special_tokens=False)["input_ids"]} for t in TEXTS + SPECIAL]
    agreed = tokenize_all(model, TEXTS + SPECIAL)
    for ours, theirs in zip(smollm, agreed, strict=True):
        if ours["ids"] != theirs["ids"]:
            print("transformers and llama.cpp differ on", repr(ours["text"]), ours["ids"], theirs["ids"])

    pre = {}
    for name in ["gpt-2", "llama-bpe", "qwen2"]:
        path = str(folder / f"{name}.gguf")
        copy_vocab(model, path, {"tokenizer.ggml.pre": name})
        pre[name] = tokenize_all(path, TEXTS + SPECIAL)

    tokens, types, scores = small_spm()
    path = str(folder / "spm.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"]:
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    write(writer)
    texts = ["hello world", "the quick  brown fox", "naïve café 👍", " lead", "a\nb", "jumps over", "<s>the", "日本", "the the"]
    spm = {"tokens": tokens, "types": types, "scores": scores, "cases": tokenize_all(path, texts)}

    out = pathlib.Path(__file__).parent.parent / "tests" / "data" / "tokenizer.json"
    out.write_text(json.dumps({"smollm": smollm, "pre": pre, "spm": spm}, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
