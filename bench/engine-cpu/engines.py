"""How each engine is started for the benchmark: every flag, and why it is there.

All get the same room: 64 sequences, KV cache for 40,960 tokens (64 sequences of 640), the model's own
context of 8,192 tokens, and as many compute threads as the machine has cores. What is not named is the
engine's default, speculative decoding among it: off for all.
"""

import dataclasses
import os
import pathlib

SEQUENCES = 64
CACHE_TOKENS = SEQUENCES * 640
CONTEXT = 8192
THREADS = len(os.sched_getaffinity(0))
# Of this model in BF16: 30 layers, 3 KV heads of 64, keys and values, 2 bytes each.
CACHE_BYTES_A_TOKEN = 30 * 3 * 64 * 2 * 2
# Weights that each token is multiplied with, and those of the output head.
BODY_WEIGHTS = 30 * (576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536)
HEAD_WEIGHTS = 49152 * 576

INT8 = ("int8_gop_per_s", "int8_tiles_gop_per_s")
BF16 = ("bf16_gflop_per_s", "bf16_tiles_gflop_per_s")


@dataclasses.dataclass(frozen=True)
class Engine:
    name: str
    command: list[str]
    # Answers 200 as soon as it takes requests.
    ready_path: str
    environment: dict[str, str]
    # Bits of a weight as stored: of the layers, and of the output head.
    bits: tuple[float, float]
    # The instructions for its products, by the names of `strata bench roofline`: the fastest counts.
    peaks: tuple[str, ...]

    @property
    def weight_bytes(self) -> float:
        """Read for every step of decoding."""
        return (BODY_WEIGHTS * self.bits[0] + HEAD_WEIGHTS * self.bits[1]) / 8


def strata(name: str, binary: pathlib.Path, model: pathlib.Path, bits: tuple[float, float]) -> Engine:
    command = [
        *(str(binary), "engine", "--model", str(model)),
        *("--kv-cache-blocks", str(CACHE_TOKENS // 16)),  # blocks of 16 tokens: the common room
        *("--max-sequences", str(SEQUENCES)),
        *("--threads", str(THREADS)),
        *("--listen", "127.0.0.1:{port}"),
    ]
    return Engine(name, command, "/ready", {"STRATA_LOG": "warn"}, bits, INT8)


def llama_cpp(name: str, binary: pathlib.Path, model: pathlib.Path, bits: tuple[float, float]) -> Engine:
    command = [
        *(str(binary), "--model", str(model)),
        # One pool for all slots, or each slot would have 640 tokens only, and a long prompt none.
        *("--ctx-size", str(CACHE_TOKENS), "--kv-unified"),
        *("--parallel", str(SEQUENCES)),
        *("--threads", str(THREADS), "--threads-batch", str(THREADS)),
        *("--flash-attn", "on"),  # faster here than without, and what `auto` takes
        # Prefixes are kept in the slots; the second cache in RAM copies them on each change of a slot.
        *("--cache-ram", "0"),
        "--no-webui",
        *("--host", "127.0.0.1", "--port", "{port}"),
    ]
    return Engine(name, command, "/health", {}, bits, INT8)


def vllm(name: str, environment: pathlib.Path, model: pathlib.Path, cache: pathlib.Path) -> Engine:
    command = [
        *(str(environment / "bin" / "vllm"), "serve", str(model)),
        *("--dtype", "bfloat16"),  # what the processor multiplies fastest of what it supports
        *("--max-model-len", str(CONTEXT)),
        *("--max-num-seqs", str(SEQUENCES)),
        *("--kv-cache-memory-bytes", str(CACHE_TOKENS * CACHE_BYTES_A_TOKEN)),
        "--enable-prefix-caching",  # its default, written down
        "--enable-prompt-tokens-details",  # says in the usage what its prefix cache had
        "--disable-uvicorn-access-log",  # a line a request costs time on 2 cores
        *("--host", "127.0.0.1", "--port", "{port}"),
    ]
    variables = {
        # Its guide for CPUs asks for Intel's OpenMP; GNU's is slower.
        "LD_PRELOAD": str(environment / "lib" / "libiomp5.so"),
        # All cores compute: the automatic choice may reserve one for the server.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        # Kernels that were compiled by an earlier start are used again: the kinder case for it.
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        # Nothing is asked of a hub, nothing is reported.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Engine(name, command, "/health", variables, (16, 16), BF16)


def all_of(binary: pathlib.Path, q4_1: pathlib.Path, peers: pathlib.Path) -> list[Engine]:
    """In the order in which they take turns. Strata comes first and its peers after it."""
    stem = q4_1.name.removesuffix(".gguf").removesuffix(".Q4_1")
    q4_0 = peers / "models" / f"{stem}.Q4_0.gguf"
    server = peers / "llama" / "llama-server"
    # Blocks of 32 weights: 18 bytes in Q4_0, 20 in Q4_1, 34 in Q8_0, which holds the output head.
    return [
        strata("strata-q4_0", binary, q4_0, (4.5, 8.5)),
        strata("strata-q4_1", binary, q4_1, (5.0, 8.5)),
        llama_cpp("llama.cpp-q4_0", server, q4_0, (4.5, 8.5)),
        llama_cpp("llama.cpp-q4_1", server, q4_1, (5.0, 8.5)),
        vllm("vllm-bf16", peers / "vllm", peers / "models" / f"{stem}.BF16", peers / "vllm-cache"),
    ]
