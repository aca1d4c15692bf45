"""Installing Strata with its charts, making models, tenants and policies, and asking questions."""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import secrets
import urllib.parse

import image as images
import openai
import yaml
from driver import volumes
from kube import GROUP, Kube

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAMESPACE = "strata"
MODEL = "smollm2-135m"


def model(name: str, uri: str, replicas: int | None = 1, **spec) -> dict:
    """A small ModelDeployment; `spec` is merged over it, one level deep."""
    body = {
        "model": {"name": MODEL, "uri": uri},
        "engine": {"maxModelLen": 2048, "kvCache": {"memory": "128Mi"}, "threads": 1},
        **({} if replicas is None else {"replicas": replicas}),
    }
    for key, value in spec.items():
        # Of another engine Strata knows no flags: nothing of the small one's is kept.
        whole = key == "engine" and value.get("runtime") == "Custom"
        body[key] = {**body[key], **value} if isinstance(value, dict) and key in body and not whole else value
    return {"apiVersion": GROUP, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": body}


def tenant(name: str, **spec) -> dict:
    return {"apiVersion": GROUP, "kind": "Tenant", "metadata": {"name": name}, "spec": {"models": ["*"], **spec}}


def policy(name: str, **spec) -> dict:
    return {"apiVersion": GROUP, "kind": "QuotaPolicy", "metadata": {"name": name}, "spec": spec}


def image_values(reference: str) -> dict:
    """The chart's values for an image: REPOSITORY[:TAG][@DIGEST]."""
    name, _, digest = reference.partition("@")
    # A colon before the last slash is that of the registry's port.
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    # Without either, what every tool takes, and not the chart's own version.
    return {"repository": folder + slash + last, "tag": tag or ("" if digest else "latest"), "digest": digest}


def answers(address: str, path: str) -> bool:
    """Whether a listener says that it is well."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    finally:
        connection.close()


class Strata:
    """One installation in one cluster."""

    def __init__(self, kube: Kube, model_file: pathlib.Path):
        self.kube, self._model_file = kube, model_file

    def uri(self, namespace: str) -> str:
        """Where pods of a namespace find the test model; makes the claim `models` there."""
        if not self.kube.own:
            given = os.environ.get("STRATA_MODEL_URI")
            assert given, "set STRATA_MODEL_URI to where the pods of this cluster can fetch SmolLM2-135M-Instruct (GGUF)"
            self.kube.namespace(namespace)
            return given
        volumes.models_claim(self.kube.own, namespace, self._model_file)
        return f"pvc://{volumes.CLAIM}/{self._model_file.name}"

    def values(self) -> dict:
        """What tests set of the chart: the image, and no pause at the end of pods that serve no one any more."""
        given = os.environ.get("STRATA_IMAGE") if not self.kube.own else None
        image = image_values(given or f"strata:{images.version()}")
        return {
            "image": {**image, "pullPolicy": "IfNotPresent"},
            "gateway": {"preStopSeconds": 0, "persistence": {"size": "1Gi"}},
            "platform": {"preStopSeconds": 0, "persistence": {"size": "1Gi"}},
        }

    def install_crds(self, helm: int = 4) -> None:
        self.kube.helm(
            *("upgrade", "--install", "strata-crds", str(ROOT / "charts/strata-crds"), "--namespace", NAMESPACE),
            *("--create-namespace", "--wait", "--timeout", "60s"),
            version=helm,
        )

    def install(self, helm: int = 4, namespace: str = NAMESPACE, wait: bool = True, **values) -> str:
        """`helm upgrade --install` of both charts; `values` by their top keys, merged over the tests' own."""
        self.install_crds(helm)
        merged = self.values()
        for key, value in values.items():
            merged[key] = {**merged[key], **value} if isinstance(value, dict) and key in merged else value
        path = pathlib.Path(self.kube.env["HELM_CACHE_HOME"]).parent / f"values-{namespace}.yaml"
        path.write_text(yaml.safe_dump(merged))
        waiting = ["--wait", "--timeout", "120s"] if wait else []
        said = self.kube.helm(
            *("upgrade", "--install", "strata", str(ROOT / "charts/strata"), "--namespace", namespace),
            *("--create-namespace", "-f", str(path), *waiting),
            version=helm,
        )
        if wait and self.kube.own:
            self._entrances_answer(namespace)
        return said

    def _entrances_answer(self, namespace: str) -> None:
        """Helm waits for pods; the nodes hear a moment later that one took another's place behind a Service."""
        for service in ("strata-platform", "strata-gateway"):
            if not self.kube.find(f"/api/v1/namespaces/{namespace}/services/{service}"):
                continue
            address = urllib.parse.urlsplit(self.kube.url(namespace, service)).netloc
            self.kube.wait(f"{service} to answer", lambda at=address: answers(at, "/health"), 30)

    def uninstall(self, namespace: str = NAMESPACE, helm: int = 4) -> None:
        self.kube.helm("uninstall", "strata", "--namespace", namespace, "--wait", "--timeout", "120s", version=helm)

    def client(self, service: str = "strata-platform", key: str | None = None, namespace: str = NAMESPACE) -> openai.OpenAI:
        base = f"{self.kube.url(namespace, service)}/v1"
        return openai.OpenAI(base_url=base, api_key=key or "none", max_retries=0, timeout=120)

    def tenant(self, name: str, namespace: str = NAMESPACE, **spec) -> str:
        """Applies a Tenant with one key in a Secret, as GitOps does it, and gives the key."""
        ident, secret = f"{name}e2e", secrets.token_hex(16)
        digest = hashlib.sha256(f"{ident}{secret}".encode()).hexdigest()
        holder = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{name}-key", "labels": {"strata.dev/api-key": "true"}},
            "stringData": {"id": ident, "hash": f"v1${digest}"},
        }
        keyed = {"apiKeys": [{"name": "e2e", "secretRef": {"name": f"{name}-key"}}], **spec}
        self.kube.apply(holder, tenant(name, **keyed), namespace=namespace)
        return f"sk-strata-{ident}_{secret}"
