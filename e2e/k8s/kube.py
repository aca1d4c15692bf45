"""The tests' hands on a cluster: kubectl, helm, the API, waiting, and what to print when a wait fails."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.parse

import yaml
from driver import binaries

GROUP = "strata.dev/v1alpha1"
KINDS = {"ModelDeployment": "modeldeployments", "Tenant": "tenants", "QuotaPolicy": "quotapolicies"}
# The condition that says how an object is, where it is not Ready.
MAIN_CONDITION = {"QuotaPolicy": "Enforced"}
DUMPED_LINES = 25


class ApiError(AssertionError):
    def __init__(self, status: int, body: str):
        super().__init__(f"{status}: {body[:2000]}")
        self.status, self.body = status, body

    @property
    def message(self) -> str:
        return json.loads(self.body).get("message", "") if self.body.startswith("{") else self.body


class Kube:
    """One cluster as its administrator sees it. `own` is the cluster that the tests started, or None."""

    def __init__(self, kubeconfig: pathlib.Path, own=None):
        self.kubeconfig, self.own = kubeconfig, own
        # Namespaces that `namespace` made.
        self.made: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="strata-e2e-")
        self.env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            # Helm writes nowhere else, and takes no plugin of the user's.
            **{f"HELM_{name}_HOME": f"{self._folder.name}/helm-{name.lower()}" for name in ("CACHE", "CONFIG", "DATA")},
        }
        self._processes: list[subprocess.Popen] = []
        proxy = self._spawn([str(binaries.path_of("kubectl")), "proxy", "--port=0"])
        started = re.search(r":(\d+)", proxy.stdout.readline())
        assert started, f"kubectl proxy did not start: {proxy.stderr.read()}"
        self._proxy_port = int(started[1])

    def _spawn(self, command: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()

    # Commands

    def run(self, command: list[str], check: bool = True, stdin: str | None = None, timeout: float = 180) -> str:
        ran = subprocess.run(
            command, env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and ran.returncode != 0:
            raise AssertionError(f"{' '.join(command)}\nexit {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout if check else ran.stdout + ran.stderr

    def kubectl(self, *args: str, check: bool = True, stdin: str | None = None, timeout: float = 180) -> str:
        return self.run([str(binaries.path_of("kubectl")), *args], check, stdin, timeout)

    def helm(self, *args: str, version: int = 4, check: bool = True, timeout: float = 300) -> str:
        return self.run([str(binaries.path_of(f"helm{version}")), *args], check, timeout=timeout)

    # The API

    def request(self, method: str, path: str, body=None, content_type: str = "application/json") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy_port, timeout=60)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": content_type})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def call(self, method: str, path: str, body=None, content_type: str = "application/json") -> dict:
        status, text = self.request(method, path, body, content_type)
        deadline = time.monotonic() + 30
        while status == 429 and time.monotonic() < deadline:
            # The API server asks to come again, as it does while a definition has just changed.
            time.sleep(1)
            status, text = self.request(method, path, body, content_type)
        if status // 100 != 2:
            raise ApiError(status, text)
        return json.loads(text)

    def get(self, path: str) -> dict:
        return self.call("GET", path)

    def find(self, path: str) -> dict | None:
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str, selector: str | dict = "") -> list[dict]:
        if isinstance(selector, dict):
            selector = ",".join(f"{k}={v}" for k, v in selector.items())
        return self.get(f"{path}?labelSelector={urllib.parse.quote(selector)}")["items"]

    def patch(self, path: str, body: object, content_type: str = "application/merge-patch+json") -> dict:
        return self.call("PATCH", path, body, content_type)

    def delete(self, path: str) -> None:
        status, text = self.request("DELETE", path, {"propagationPolicy": "Background"})
        if status // 100 != 2 and status != 404:
            raise ApiError(status, text)

    def apply(self, *objects: dict, namespace: str | None = None) -> None:
        """Server-side apply, as `kubectl apply` users and GitOps tools do it."""
        text = yaml.safe_dump_all(objects, sort_keys=False)
        where = ["--namespace", namespace] if namespace else []
        self.kubectl("apply", "--server-side", "--field-manager=e2e", *where, "-f", "-", stdin=text)

    def namespace(self, name: str) -> None:
        if not self.find(f"/api/v1/namespaces/{name}"):
            self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            self.made.append(name)

    @staticmethod
    def path(kind: str, namespace: str, name: str = "") -> str:
        """The path of one of Strata's objects, or of their list."""
        return f"/apis/{GROUP}/namespaces/{namespace}/{KINDS[kind]}" + (f"/{name}" if name else "")

    def condition(self, kind: str, namespace: str, name: str) -> dict:
        """The main condition as it stands for the newest generation; {} when it speaks of an older one."""
        condition = MAIN_CONDITION.get(kind, "Ready")
        found = self.get(self.path(kind, namespace, name))
        for one in found.get("status", {}).get("conditions", []):
            if one["type"] == condition and one.get("observedGeneration") == found["metadata"]["generation"]:
                return one
        return {}

    def pods(self, namespace: str, **labels: str) -> list[dict]:
        """Pods that are not on their way out, by labels without their prefix: component=, model=, track=, revision=."""
        names = {
            "component": "app.kubernetes.io/component",
            "model": "strata.dev/model-deployment",
            "track": "strata.dev/track",
            "revision": "strata.dev/revision",
        }
        found = self.items(f"/api/v1/namespaces/{namespace}/pods", {names[k]: v for k, v in labels.items()})
        return [p for p in found if not p["metadata"].get("deletionTimestamp")]

    def uids(self, namespace: str, **labels: str) -> dict[str, str]:
        return {p["metadata"]["name"]: p["metadata"]["uid"] for p in self.pods(namespace, **labels)}

    # Waiting

    def wait(self, what: str, condition, deadline_s: float = 60):
        """Polls until `condition` gives something true and returns that; else fails and says how things stand."""
        end, last = time.monotonic() + deadline_s, None
        while True:
            try:
                got = condition()
                if got:
                    return got
                last = None
            except (ApiError, OSError, http.client.HTTPException) as error:
                last = error
            if time.monotonic() > end:
                after = f"; the last try failed: {last}" if last else ""
                raise AssertionError(f"waited {deadline_s:.0f} s for {what}{after}")
            time.sleep(0.1)

    def wait_ready(self, namespace: str, name: str, deadline_s: float = 90) -> dict:
        self.wait(
            f"ModelDeployment {namespace}/{name} to be Ready",
            lambda: self.condition("ModelDeployment", namespace, name).get("status") == "True",
            deadline_s,
        )
        return self.get(self.path("ModelDeployment", namespace, name))

    # Reaching a Service

    def url(self, namespace: str, service: str, port: int = 8000) -> str:
        """Where this machine reaches a Service: its address in a cluster of ours, else a forwarded port."""
        if self.own:
            spec = self.get(f"/api/v1/namespaces/{namespace}/services/{service}")["spec"]
            return f"http://{spec['clusterIP']}:{port}"
        kubectl = str(binaries.path_of("kubectl"))
        forward = self._spawn([kubectl, "port-forward", "-n", namespace, f"service/{service}", f":{port}"])
        found = re.search(r":(\d+) ->", forward.stdout.readline())
        assert found, f"no port could be forwarded to {namespace}/{service}: {forward.stderr.read()}"
        return f"http://127.0.0.1:{found[1]}"

    # What to print when a test failed

    def dump(self) -> str:
        """How the cluster stands: Strata's objects, pods, what is wrong with them, events, the operator's log."""
        out = [self.kubectl("get", "strata,deployments,pods", "-A", "-o", "wide", check=False)]
        for listed in ("modeldeployments", "tenants", "quotapolicies"):
            found = self.request("GET", f"/apis/{GROUP}/{listed}")
            for item in json.loads(found[1]).get("items", []) if found[0] == 200 else []:
                name = f"{listed} {item['metadata']['namespace']}/{item['metadata']['name']}"
                out.append(f"{name}: {json.dumps(item.get('status', {}))[:3000]}")
        for pod in self.get("/api/v1/pods")["items"]:
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            labels = pod["metadata"].get("labels", {})
            if ready and labels.get("app.kubernetes.io/component") != "operator":
                continue
            if not ready:
                out.append(f"pod {namespace}/{name}: {json.dumps(pod['status'])[:1500]}")
            tail = f"--tail={DUMPED_LINES}"
            for extra in [[], ["--previous"]]:
                log = self.kubectl("logs", "-n", namespace, name, "--all-containers", tail, *extra, check=False, timeout=20)
                if log.strip() and "not found" not in log:
                    out.append(f"log of {namespace}/{name} {' '.join(extra)}:\n{log}")
        events = self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False).splitlines()
        out.append("\n".join(["last events:", *events[-DUMPED_LINES:]]))
        if self.own:
            out.append(f"logs of the cluster's own daemons: {self.own.daemons.logs}")
        return "\n\n".join(out)
