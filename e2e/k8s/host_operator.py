"""The operator as a process of this machine, under its own role: where no pod runs, or to stand between it and the API."""

from __future__ import annotations

import json
import pathlib
import signal
import socket
import subprocess
import urllib.request

import image as images
from install import NAMESPACE
from kube import Kube


class HostOperator:
    """Acts with the chart's service account, so it may no more than it may in a pod."""

    def __init__(self, kube: Kube, binary: pathlib.Path, folder: pathlib.Path, server: str | None = None, name: str = "0"):
        self.kube = kube
        self.log = folder / f"operator-{name}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        config = folder / f"kubeconfig-{name}"
        token = kube.kubectl("create", "token", "strata-operator", "-n", NAMESPACE, "--duration=3h").strip()
        given = json.loads(kube.kubectl("config", "view", "--raw", "-o", "json"))
        if server:
            given["clusters"][0]["cluster"] = {"server": server}
        given["users"][0]["user"] = {"token": token}
        config.write_text(json.dumps(given))
        env = {
            "PATH": "/usr/bin:/bin",
            "KUBECONFIG": str(config),
            "STRATA_NAMESPACE": NAMESPACE,
            "STRATA_LISTEN": self.url.removeprefix("http://"),
            "STRATA_LOG": "info",
            # The lease's holder: two on one machine must differ.
            "HOSTNAME": f"operator-{name}",
        }
        command = [str(binary), "operator", "--mode=enterprise", "--internal-tls", f"--image=strata:{images.version()}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> HostOperator:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=5).read().decode()
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
