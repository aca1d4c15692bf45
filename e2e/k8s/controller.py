"""`strata operator` as a process of the tests: outside the cluster, with the rights that the chart gives it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import yaml
from install import ROOT
from kube import Kube
from proxy import Proxy

NAMESPACE = "strata"
RULES = ROOT / "charts/strata/files/rbac-operator.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def install_crds(kube: Kube) -> None:
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    kube.kubectl("wait", "--for=condition=Established", "-f", str(ROOT / "crds"))
    kube.namespace(NAMESPACE)
    # The chart makes it empty: the operator may fill it, and not make it.
    kube.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "strata-hop"}, "type": "Opaque"},
        namespace=NAMESPACE,
    )


def account(kube: Kube, name: str, model_namespaces: list[str] = ()) -> str:
    """A service account with the operator's rights, as the chart grants them. Gives a token of it."""
    rules = yaml.safe_load(RULES.read_text())
    subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}, namespace=NAMESPACE)

    def grant(kind: str, rules: list[dict], suffix: str, namespace: str | None = None) -> None:
        full = f"{name}-{suffix}"
        api = "rbac.authorization.k8s.io/v1"
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": full}
        kube.apply(
            {"apiVersion": api, "kind": kind, "metadata": {"name": full}, "rules": rules},
            {"apiVersion": api, "kind": f"{kind}Binding", "metadata": {"name": full}, "roleRef": reference, "subjects": [subject]},
            namespace=namespace,
        )

    grant("Role", rules["own"], "own", NAMESPACE)
    if model_namespaces:
        for namespace in model_namespaces:
            grant("Role", rules["models"], "models", namespace)
        grant("ClusterRole", rules["cluster"], "cluster")
    else:
        grant("ClusterRole", rules["cluster"] + rules["models"], "cluster")
    asked = kube.call(
        "POST",
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}},
    )
    return asked["status"]["token"]


class Operator:
    """One process. Its calls of the API pass `proxy`."""

    def __init__(self, kube: Kube, binary: pathlib.Path, folder: pathlib.Path, token: str, identity: str, *args: str,
                 mode: str = "development"):
        self.kube, self.identity, self.folder = kube, identity, folder
        self.proxy = Proxy(kube.own.api)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.kubeconfig = folder / f"kubeconfig-{identity}"
        user = {"name": "o", "user": {"token": token}}
        context = {"name": "o", "context": {"cluster": "o", "user": "o"}}
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "o",
            "clusters": [{"name": "o", "cluster": {"server": self.proxy.url}}], "users": [user], "contexts": [context],
        }))
        self.command = [str(binary), "operator", "--image=strata:e2e", f"--mode={mode}", f"--identity={identity}", *args]
        self.log = folder / f"{identity}.log"
        self.process: subprocess.Popen | None = None

    def start(self, wait: bool = True) -> Operator:
        env = {
            **os.environ, "KUBECONFIG": str(self.kubeconfig), "STRATA_NAMESPACE": NAMESPACE,
            "STRATA_LISTEN": f"127.0.0.1:{self.port}", "STRATA_LOG": "info,strata_operator=debug",
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, env=env, stdout=log, stderr=log)
        if wait:
            self.kube.wait(f"operator {self.identity} to be ready", self.ready, 30)
        return self

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ready(self) -> str:
        """`leader`, `standby`, or nothing while the caches are being filled."""
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        status, text = self.get("/ready")
        return text.removeprefix("ready: ").strip() if status == 200 else ""

    def leads(self) -> bool:
        return self.ready() == "leader"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name and all(f'{k}="{v}"' in (found[2] or "") for k, v in labels.items()):
                total += float(found[3])
        return total

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Asks it to end, and waits."""
        self.signal(signal.SIGTERM)
        self.process.wait(timeout=20)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(timeout=5)

    def settle(self, quiet_s: float = 1.0, deadline_s: float = 60) -> None:
        """Waits until it has written nothing for a while."""
        end = time.monotonic() + deadline_s
        while True:
            writes = self.proxy.writes()
            last = max((c.began for c in writes), default=0.0)
            if time.monotonic() - last >= quiet_s and self.metric("strata_operator_queue_depth", state="waiting") == 0:
                return
            assert time.monotonic() < end, f"it still writes: {[str(c) for c in writes[-10:]]}"
            time.sleep(0.05)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.kill()
        self.proxy.close()


def children(kube: Kube, namespace: str) -> dict[str, dict]:
    """Everything that an operator made in a namespace, by kind and name."""
    paths = {
        "Deployment": "/apis/apps/v1", "ControllerRevision": "/apis/apps/v1", "Service": "/api/v1",
        "ServiceAccount": "/api/v1", "Role": RBAC, "RoleBinding": RBAC, "NetworkPolicy": "/apis/networking.k8s.io/v1",
        "PodDisruptionBudget": "/apis/policy/v1", "HorizontalPodAutoscaler": "/apis/autoscaling/v2",
    }
    found = {}
    for kind, group in paths.items():
        plural = {"NetworkPolicy": "networkpolicies"}.get(kind, f"{kind.lower()}s")
        selector = "app.kubernetes.io/managed-by=strata-operator"
        for item in kube.items(f"{group}/namespaces/{namespace}/{plural}", selector):
            found[f"{kind}/{item['metadata']['name']}"] = item
    return found


def versions(kube: Kube, namespace: str) -> dict[str, str]:
    return {name: item["metadata"]["resourceVersion"] for name, item in children(kube, namespace).items()}
