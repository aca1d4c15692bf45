"""Starts `strata up` for a test and gives it back as an object: its address, keys, status, edits."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import threading
import time

import openai
import yaml

MODEL = "smollm2-135m"


def wait_for(what: str, condition, deadline_s: float = 60.0):
    """Polls until `condition` returns something true, and returns that."""
    end = time.monotonic() + deadline_s
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.05)


def model(name: str, uri: str, replicas: int = 1, **spec) -> dict:
    body = {"model": {"name": name, "uri": uri}, "replicas": replicas}
    for key, value in spec.items():
        body[key] = {**body.get(key, {}), **value} if isinstance(value, dict) else value
    return {
        "apiVersion": "strata.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name.replace(".", "-")},
        "spec": body,
    }


def tenant(name: str, models: list[str], **spec) -> dict:
    return {
        "apiVersion": "strata.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"models": models, **spec},
    }


def policy(name: str, **spec) -> dict:
    return {"apiVersion": "strata.dev/v1alpha1", "kind": "QuotaPolicy", "metadata": {"name": name}, "spec": spec}


class Up:
    """A running `strata up` on a folder of its own."""

    def __init__(self, strata: pathlib.Path, root: pathlib.Path, objects: list[dict], *args: str):
        self.strata, self.folder, self.state = strata, root / "manifests", root / "state"
        self.folder.mkdir(parents=True)
        for thing in objects:
            self.apply(thing)
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [strata, "up", "-f", self.folder, "--state", self.state, "--listen", "127.0.0.1:0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read_log, daemon=True).start()
        self.base = None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.base = line.split()[1]
                break
        if self.base is None:
            self.process.wait()
            raise AssertionError("strata up stopped before it was ready:\n" + "".join(self.log))

    def _read_log(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)

    def path(self, thing: dict) -> pathlib.Path:
        return self.folder / f"{thing['kind'].lower()}-{thing['metadata']['name']}.yaml"

    def apply(self, thing: dict) -> None:
        part = self.path(thing).with_suffix(".part")
        part.write_text(yaml.safe_dump(thing))
        os.replace(part, self.path(thing))

    def delete(self, thing: dict) -> None:
        self.path(thing).unlink()

    def key(self, name: str) -> str:
        path = self.state / "keys" / name
        wait_for(f"the key of {name}", path.exists, 20)
        assert path.stat().st_mode & 0o777 == 0o600
        return path.read_text().strip()

    def client(self, name: str | None = None, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.base, api_key=key or (self.key(name) if name else "none"), max_retries=0, timeout=120
        )

    def run(self, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.strata, *args, "--state", self.state], capture_output=True, text=True, timeout=60, check=False
        )

    def status(self) -> dict:
        out = self.run("status", "-o", "json")
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout)

    def stop(self) -> None:
        """Stops as Ctrl-C does, and checks that nothing that it started is left."""
        pids = [layer["pid"] for layer in self.status()["layers"] if layer.get("pid")]
        assert pids
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=90)
        left = [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]
        assert not left, f"still running: {left}"
        assert self.process.returncode == 0, "".join(self.log[-20:])
