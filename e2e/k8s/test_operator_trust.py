"""The layers' certificates, made and kept by the operator on a real API server.

Answers what users of hand-made certificates complain of: they end unnoticed, and one that is lost stays lost.
"""

from __future__ import annotations

import base64
import time

import pytest
from conftest import note
from controller import NAMESPACE, Operator, account, install_crds
from install import model
from kube import Kube

pytestmark = pytest.mark.control_plane

MODELS = "certified"
URI = "file:///models/a.gguf"
FILES = {"ca.crt", "tls.crt", "tls.key"}
CENTRAL = ["gateway", "operator", "platform"]


@pytest.fixture(scope="module")
def token(kube) -> str:
    install_crds(kube)
    # As the chart makes them.
    names = ["strata-ca", *(f"strata-hop-{component}" for component in CENTRAL)]
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    for name in names:
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": {"name": name, "labels": labels}}
        kube.apply(secret, namespace=NAMESPACE)
    kube.namespace(MODELS)
    return account(kube, "operator")


@pytest.fixture
def operator(kube, strata_binary, tmp_path, token):
    process = Operator(kube, strata_binary, tmp_path, token, "one", "--internal-tls", mode="enterprise").start()
    kube.wait("it to lead", process.leads, 30)
    yield process
    process.close()


def secret(kube: Kube, namespace: str, name: str) -> dict:
    found = kube.find(f"/api/v1/namespaces/{namespace}/secrets/{name}") or {}
    return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}


def owners(kube: Kube, component: str) -> list[str]:
    """The models that a certificate goes away with."""
    found = kube.find(f"/api/v1/namespaces/{MODELS}/secrets/strata-hop-{component}") or {}
    return [owner["name"] for owner in found.get("metadata", {}).get("ownerReferences", [])]


def certificates(kube: Kube, namespace: str, *components: str) -> dict[str, dict]:
    """The files of each component; empty until all are there."""
    found = {c: secret(kube, namespace, f"strata-hop-{c}") for c in components}
    return found if all(set(files) == FILES for files in found.values()) else {}


def everybody(kube: Kube) -> dict[str, dict]:
    beside, central = certificates(kube, MODELS, "engine", "scheduler"), certificates(kube, NAMESPACE, *CENTRAL)
    return {**beside, **central} if beside and central else {}


def named(name: str) -> dict:
    return model(name, URI, model={"name": name, "uri": URI}, podTemplate={"nodeSelector": {"nowhere": "1"}})


def test_everybody_gets_one_and_keeps_it(kube, operator, strata_binary, tmp_path, token):
    kube.apply(named("a"), named("b"), namespace=MODELS)
    made = kube.wait("everybody to have a certificate", lambda: everybody(kube), 20)
    assert len({files["ca.crt"] for files in made.values()}) == 1, "all trust the same authority"
    assert len({files["tls.key"] for files in made.values()}) == len(made), "each has a key of its own"
    # The authority's key is nowhere but with the operator.
    kept = secret(kube, NAMESPACE, "strata-ca")
    (key,) = (value for name, value in kept.items() if name.endswith(".key"))
    assert all(key not in files.values() for files in made.values())
    chart_made = kube.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/strata-hop-platform")["metadata"]
    assert chart_made["labels"] == {"app.kubernetes.io/managed-by": "Helm"}, "Helm's labels are Helm's"
    kube.wait("both models to own theirs", lambda: owners(kube, "engine") == ["a", "b"], 20)

    # A second look writes nothing, nor does another process that takes over.
    operator.settle()
    began = time.monotonic()
    kube.patch(kube.path("ModelDeployment", MODELS, "a"), {"metadata": {"annotations": {"look": "again"}}})
    operator.settle()
    assert [str(c) for c in operator.proxy.writes(began)] == []
    operator.stop()
    other = Operator(kube, strata_binary, tmp_path, token, "two", "--internal-tls", mode="enterprise").start()
    try:
        kube.wait("the other to lead", other.leads, 20)
        kube.wait("it to have looked", lambda: other.metric("strata_operator_reconciles_total", kind="Trust") >= 1)
        other.settle()
        assert everybody(kube) == made
    finally:
        other.close()


@pytest.mark.parametrize("component,namespace", [("engine", MODELS), ("platform", NAMESPACE)])
def test_one_that_is_spoilt_or_lost_is_made_anew(kube, operator, request, component, namespace):
    kube.apply(named("a"), namespace=MODELS)
    made = kube.wait("everybody to have a certificate", lambda: everybody(kube), 20)
    operator.settle()
    path = f"/api/v1/namespaces/{namespace}/secrets/strata-hop-{component}"

    def renewed() -> dict:
        now = everybody(kube)
        return now if now and now[component]["tls.key"] not in (b"spoilt", made[component]["tls.key"]) else {}

    began = time.monotonic()
    kube.patch(path, {"data": {"tls.key": base64.b64encode(b"spoilt").decode()}}, "application/merge-patch+json")
    now = kube.wait("another in the place of the spoilt one", renewed, 10)
    took = time.monotonic() - began
    if namespace == MODELS:
        # The chart's own would have to be made by the chart.
        made, began = now, time.monotonic()
        kube.delete(path)
        now = kube.wait("another in the place of the lost one", renewed, 10)
        took = max(took, time.monotonic() - began)
    note(request.config, f"measured mending of the {component}'s certificate: at most {took:.2f} s")
    others = {c: f for c, f in now.items() if c != component}
    assert others == {c: f for c, f in made.items() if c != component}, "nobody else's changed"
    assert now[component]["ca.crt"] == made[component]["ca.crt"]
    operator.settle()
    began = time.monotonic()
    operator.settle(2)
    assert [str(c) for c in operator.proxy.writes(began)] == [], "nobody fights"


def test_they_go_with_the_last_model(kube, operator):
    kube.apply(named("a"), named("b"), namespace=MODELS)
    kube.wait("everybody to have a certificate", lambda: everybody(kube), 20)
    kube.delete(kube.path("ModelDeployment", MODELS, "b"))
    kube.wait("one owner", lambda: owners(kube, "engine") == ["a"], 20)
    kube.delete(kube.path("ModelDeployment", MODELS, "a"))
    beside = [f"/api/v1/namespaces/{MODELS}/secrets/strata-hop-{c}" for c in ("engine", "scheduler")]
    # Kubernetes' collector looks only every half minute whether there is a new kind.
    kube.wait("them to go", lambda: not any(kube.find(path) for path in beside), 90)
    operator.settle()
    assert not any(kube.find(path) for path in beside), "the operator makes none for a namespace without a model"
    assert certificates(kube, NAMESPACE, *CENTRAL)
