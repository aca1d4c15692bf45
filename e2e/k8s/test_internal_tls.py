"""A cluster that changes from the shared token to certificates and back goes on serving."""

from __future__ import annotations

import time

import pytest
from conftest import note
from install import NAMESPACE
from serving import MODELS, Serving

pytestmark = pytest.mark.pods


@pytest.fixture(scope="module")
def serving(kube, strata):
    return Serving(kube, strata, values={"internalTls": False})


def schemes(kube) -> set[str]:
    """How the engine pods that stay are spoken to."""
    pods = [p for p in kube.pods(MODELS, component="engine") if not p["metadata"].get("deletionTimestamp")]
    return {p["spec"]["containers"][0]["readinessProbe"]["httpGet"].get("scheme", "HTTP") for p in pods}


@pytest.mark.parametrize("tls,scheme", [(True, "HTTPS"), (False, "HTTP"), (True, "HTTPS")])
def test_a_change_over(kube, strata, serving, request, tls, scheme):
    before = serving.engines()
    began = time.monotonic()
    strata.install(internalTls=tls)
    serving.ask(60)
    note(request.config, f"measured helm upgrade to internalTls={str(tls).lower()}, to an answer: {time.monotonic() - began:.1f} s")
    kube.wait("new engines", lambda: schemes(kube) == {scheme} and not set(before) & set(serving.engines()), 120)
    serving.ready()
    serving.ask(10)
    assert bool(kube.find(f"/api/v1/namespaces/{NAMESPACE}/secrets/strata-hop-gateway")) is tls, "the chart's Secrets"


def test_certificates_change_under_load(kube, serving):
    """Every certificate beside the models is made anew while streams run: none of them is cut."""
    path = f"/api/v1/namespaces/{MODELS}/secrets/strata-hop-"
    key = lambda component: (kube.find(path + component) or {}).get("data", {}).get("tls.key")  # noqa: E731
    pods = {**serving.engines(), **kube.uids(MODELS, component="scheduler")}
    with serving.load(clients=2) as load:
        serving.more_streams(load, 2)
        for component in ("engine", "scheduler"):
            old = key(component)
            kube.delete(path + component)
            kube.wait(f"another certificate of the {component}", lambda c=component, o=old: key(c) not in (None, o), 10)
        for pod in pods:
            # The kubelet brings it into a pod by and by.
            log = lambda p=pod: kube.kubectl("logs", "-n", MODELS, p)  # noqa: E731
            kube.wait(f"{pod} to take its certificate over", lambda read=log: "certificates taken over" in read(), 150)
        serving.more_streams(load, 4)
    load.assert_whole()
    assert {**serving.engines(), **kube.uids(MODELS, component="scheduler")} == pods, "a pod was restarted"
