#!/usr/bin/env python3
"""`strata fetch` against servers that others wrote: an OCI registry, and an S3 server that checks signatures.

Builds crane (go-containerregistry's registry and client), oras and versitygw from their Go modules into
~/.cache/strata/peers, pushes a model of noise in each way, fetches it, and compares. Needs Go and curl.
"""

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import tarfile
import tempfile
import time

MODULES = {
    "crane": "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
    "oras": "oras.land/oras/cmd/oras@v1.3.6",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
}
KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1"}


def built(cache: pathlib.Path) -> dict[str, str]:
    for name, module in MODULES.items():
        if not (cache / name).exists():
            print(f"building {module}", flush=True)
            subprocess.run(["go", "install", module], check=True, env={**os.environ, "GOBIN": str(cache)})
    return {name: str(cache / name) for name in MODULES}


def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(at: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", at), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Check:
    def __init__(self, strata: pathlib.Path, root: pathlib.Path, model: dict[str, bytes]):
        self.strata, self.root, self.model, self.count = strata, root, model, 0

    def fetch(self, uri: str, **env: str) -> subprocess.CompletedProcess:
        command = [self.strata, "fetch", "--uri", uri, "--to", self.root / "to"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "REGISTRY_"))}
        return subprocess.run(command, env={**clean, **env}, capture_output=True, text=True, timeout=120)

    def same(self, what: str, uri: str, names: list[str], **env: str) -> None:
        done = self.fetch(uri, **env)
        assert done.returncode == 0, f"{what}: {done.stderr}"
        path = pathlib.Path(done.stdout.strip())
        for name in names:
            found = (path / name if path.is_dir() else path).read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(self.model[name]).digest(), f"{what}: {name}"
        self.count += 1
        print(f"ok: {what}")

    def refused(self, what: str, uri: str, words: str, **env: str) -> None:
        done = self.fetch(uri, **env)
        assert done.returncode != 0 and words in done.stderr, f"{what}: {done.stdout}{done.stderr}"
        self.count += 1
        print(f"ok: {what}")


def registry(check: Check, tools: dict[str, str], files: pathlib.Path, host: str) -> None:
    def run(*command: object, cwd: pathlib.Path = files) -> None:
        subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True)

    names = list(check.model)
    run(tools["oras"], "push", "--plain-http", f"{host}/team/files:v1", *names)
    check.same("files with titles, by oras", f"oci://{host}/team/files:v1", names)
    run(tools["oras"], "push", "--plain-http", f"{host}/team/folder:v1", files.name, cwd=files.parent)
    check.same("a folder, by oras", f"oci://{host}/team/folder:v1", names)
    layer = check.root / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(files, "models")
    run(tools["crane"], "append", "--insecure", "-f", layer, "-t", f"{host}/team/image:v1")
    check.same("an image with /models, by crane", f"oci://{host}/team/image:v1", names)
    check.refused("a tag that is not there", f"oci://{host}/team/image:none", "check name and tag")


def bucket(check: Check, files: pathlib.Path, url: str) -> None:
    def put(path: str, *more: str) -> None:
        # curl's own signatures, so that none of ours makes what it is checked against.
        user = f"{KEYS['AWS_ACCESS_KEY_ID']}:{KEYS['AWS_SECRET_ACCESS_KEY']}"
        command = ["curl", "-sSf", "--noproxy", "*", "--aws-sigv4", "aws:amz:us-east-1:s3", "-u", user, "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]
        subprocess.run([*command, "-X", "PUT", *more, f"{url}{path}"], check=True, capture_output=True)

    put("/models")
    for name in check.model:
        put(f"/models/a/llama/{name}", "-T", str(files / name))
    env = {**KEYS, "AWS_ENDPOINT_URL": url}
    check.same("all objects of a prefix", "s3://models/a/llama", list(check.model), **env)
    check.same("one object", "s3://models/a/llama/m.gguf", ["m.gguf"], **env)
    wrong = {**env, "AWS_SECRET_ACCESS_KEY": "wrong"}
    check.refused("a wrong secret", "s3://models/a", "SignatureDoesNotMatch", **wrong)
    check.refused("a prefix that is not there", "s3://models/b", "has no objects", **env)
    check.refused("a bucket that is not there", "s3://none/b", "NoSuchBucket", **env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strata", type=pathlib.Path, default=pathlib.Path("target/release/strata"))
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/strata/peers")
    args = parser.parse_args()
    tools = built(args.cache)
    model = {"config.json": json.dumps({"a": 1}).encode(), "m.gguf": os.urandom(80 << 20)}
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        files = root / "llama"
        files.mkdir()
        (root / "buckets").mkdir()
        for name, content in model.items():
            (files / name).write_bytes(content)
        check = Check(args.strata.resolve(), root, model)
        at, gate = port(), port()
        secrets = {"ROOT_ACCESS_KEY_ID": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_ACCESS_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        servers = [
            subprocess.Popen([tools["crane"], "registry", "serve", "--address", f"127.0.0.1:{at}"], **quiet),
            subprocess.Popen(
                [tools["versitygw"], "--port", f"127.0.0.1:{gate}", "posix", str(root / "buckets")],
                env={**os.environ, **secrets}, **quiet,
            ),
        ]
        try:
            answers(at)
            answers(gate)
            registry(check, tools, files, f"127.0.0.1:{at}")
            bucket(check, files, f"http://127.0.0.1:{gate}")
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    print(f"{check.count} checks passed")


if __name__ == "__main__":
    main()
