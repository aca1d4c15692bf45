#!/usr/bin/env python3
"""Get the routers that ours is measured beside.

    peers.py [--dir ~/.cache/strata/peers] [--check]

- smg, sglang-router and vllm-router: from PyPI, each in a virtual environment of its own, for two of them
  bring a program of the same name;
- nginx: Debian's package, when it is missing and this may install it.

What is there already is left alone. `--check` gets nothing and says what is missing.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import venv

CACHE = pathlib.Path.home() / ".cache" / "strata"
# The newest of each when this was written.
ROUTERS = {"smg": "1.13.0", "sglang-router": "0.3.2", "vllm-router": "0.1.17"}


def has_nginx() -> bool:
    return shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") is not None


def is_there(folder: pathlib.Path, name: str, version: str) -> bool:
    about = f"lib/python*/site-packages/{name.replace('-', '_')}-{version}.dist-info"
    return any((folder / name).glob(about)) and (folder / name / "bin" / name).is_file()


def missing(folder: pathlib.Path) -> list[str]:
    absent = [f"{name} {version}" for name, version in ROUTERS.items() if not is_there(folder, name, version)]
    return absent + ([] if has_nginx() else ["nginx"])


def get(folder: pathlib.Path) -> None:
    for name, version in ROUTERS.items():
        if is_there(folder, name, version):
            continue
        print(f"{name} {version}: to be made", flush=True)
        place = folder / name
        venv.create(place, with_pip=True, clear=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{name}=={version}"], check=True)
    if not has_nginx():
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise SystemExit("nginx is missing: install it ('apt-get install nginx-light')")
        # Debian starts a server when it is installed; this one is not wanted.
        policy = pathlib.Path("/usr/sbin/policy-rc.d")
        guarded = not policy.exists()
        if guarded:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "nginx-light"], check=True)
        finally:
            if guarded:
                policy.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, default=CACHE / "peers", help="where the routers go")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    args = parser.parse_args()
    if not args.check:
        args.dir.mkdir(parents=True, exist_ok=True)
        get(args.dir)
    absent = missing(args.dir)
    for name in absent:
        print(f"missing: {name}", file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
