"""The image, and the cluster that the other tests stand on: an engine by hand, without the operator."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import image as images
import pytest
from driver.node import PAUSE
from install import MODEL

NAMESPACE = "by-hand"
# The engine's binary, what it links to, certificates and time zones; a debug build is the larger one.
LIMIT_BYTES = 40e6
TOKEN = "a-credential-of-this-test"
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": images.USER,
    "runAsGroup": images.USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def layer(archive: bytes) -> tarfile.TarFile:
    outer = tarfile.open(fileobj=io.BytesIO(archive))
    docker = json.load(outer.extractfile("manifest.json"))[0]
    return tarfile.open(fileobj=outer.extractfile(docker["Layers"][0]))


def test_the_image_is_reproducible(strata_binary, archive, tmp_path, record_property):
    """The same inputs give the same bytes, so that anyone can check what an image was made from."""
    again = tmp_path / "again.tar"
    images.strata_image(strata_binary, again, strip=True)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(archive.read_bytes()).digest()
    assert archive.stat().st_size < LIMIT_BYTES


def test_the_image_has_no_more_than_it_needs(archive):
    """No shell, nothing setuid, no owner but root, and a user that is not root."""
    with layer(archive.read_bytes()) as files:
        members = files.getmembers()
        names = {m.name for m in members if m.isfile()}
        assert "usr/local/bin/strata" in names and "etc/ssl/certs/ca-certificates.crt" in names
        assert not [n for n in names if n.rsplit("/", 1)[-1] in ("sh", "bash", "busybox")]
        assert not [m.name for m in members if m.mode & 0o6000]
        assert {(m.uid, m.gid) for m in members} == {(0, 0)}
        assert str(images.USER) in files.extractfile("etc/passwd").read().decode()


def engine_pod(claim: str, file: str) -> dict:
    container = {
        "name": "engine",
        "image": f"strata:{images.version()}",
        "imagePullPolicy": "Never",
        "command": ["strata", "engine", "--model", f"file:///models/{file}", "--served-model-name", MODEL],
        "args": ["--listen", "0.0.0.0:8000", "--kv-cache-memory", str(128 << 20)],
        "env": [{"name": "STRATA_HOP_TOKEN", "value": TOKEN}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
        "securityContext": RESTRICTED,
    }
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "engine", "labels": {"app": "engine"}},
        "spec": {"containers": [container], "volumes": [volume], "securityContext": POD_SECURITY},
    }


def asking_pod(name: str, *arguments: str) -> dict:
    container = {
        "name": "probe",
        "image": PAUSE,
        "imagePullPolicy": "Never",
        "args": ["request", "-retry", "10s", *arguments],
        "securityContext": RESTRICTED,
    }
    spec = {"containers": [container], "restartPolicy": "Never", "securityContext": POD_SECURITY}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def outcome(kube, name: str) -> tuple[str, str]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
    phase = kube.wait(
        f"pod {name} to end", lambda: (p := kube.get(path)["status"]["phase"]) in ("Succeeded", "Failed") and p, 60
    )
    return phase, kube.kubectl("logs", "-n", NAMESPACE, name)


@pytest.mark.pods
def test_an_engine_by_hand(kube, strata):
    """The image runs as a restricted pod, reads its model from a claim, and answers by its Service's name."""
    if not kube.own:
        pytest.skip("the cluster was given: its nodes have no test images")
    uri = strata.uri(NAMESPACE)
    kube.patch(
        f"/api/v1/namespaces/{NAMESPACE}",
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    ports = [{"name": "http", "port": 8000, "targetPort": "http"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "engine"},
        "spec": {"selector": {"app": "engine"}, "ports": ports},
    }
    kube.apply(engine_pod("models", uri.rsplit("/", 1)[1]), service, namespace=NAMESPACE)
    kube.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/engine", "--timeout=60s")
    url = f"http://engine.{NAMESPACE}.svc.cluster.local:8000/v1/chat/completions"
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    body = ["-d", json.dumps(question)]
    kube.apply(asking_pod("friend", "-H", f"x-strata-hop-token: {TOKEN}", *body, url), namespace=NAMESPACE)
    kube.apply(asking_pod("stranger", *body, url), namespace=NAMESPACE)
    phase, said = outcome(kube, "friend")
    assert phase == "Succeeded", said
    assert json.loads(said)["usage"]["completion_tokens"] == 8
    # An engine answers nobody without the credential of internal hops, whatever the network allows.
    phase, said = outcome(kube, "stranger")
    assert phase == "Failed" and "401" in said, said
    assert "strata " in kube.kubectl("exec", "-n", NAMESPACE, "engine", "--", "strata", "--version")
