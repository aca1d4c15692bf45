"""Two nodes, one of them drained: no stream is cut, and the disruption budget holds."""

from __future__ import annotations

import pytest
from conftest import measured
from serving import MODELS, Serving

pytestmark = [pytest.mark.pods, pytest.mark.nodes(2)]

STAYS, DRAINED = "node-1", "node-2"


@pytest.fixture(scope="module")
def serving(kube, strata):
    if not kube.own:
        pytest.skip("the cluster was given: its nodes are not ours to drain")
    # Entrances of one replica stay put: the test is about engines and schedulers.
    pinned = {"nodeSelector": {"kubernetes.io/hostname": STAYS}}
    values = {c: {**strata.values().get(c, {}), **pinned} for c in ("operator", "gateway", "platform")}
    # The other node is the emptier one, and spreading is a wish: so that both have replicas, it is shut at first.
    kube.kubectl("cordon", DRAINED)
    serving = Serving(kube, strata, replicas=1, values=values)
    kube.kubectl("uncordon", DRAINED)
    kube.kubectl("cordon", STAYS)
    serving.scale(2)
    serving.ready()
    stays = kube.pods(MODELS, component="scheduler")[0]["metadata"]["name"]
    kube.kubectl("delete", "pod", "-n", MODELS, stays)
    kube.kubectl("uncordon", STAYS)
    for component in ("engine", "scheduler"):
        for node in (STAYS, DRAINED):
            kube.wait(f"one {component} on {node}", lambda n=node, c=component: len(on_node(kube, n, c)) == 1, 60)
    serving.ready()
    return serving


def on_node(kube, node: str, component: str) -> list[str]:
    pods = kube.pods(MODELS, component=component)
    return [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") == node]


def on(serving, node: str, component: str) -> list[str]:
    return on_node(serving.kube, node, component)


def test_evictions_beyond_the_budget_are_refused(serving):
    """The eviction API refuses with 429 what the budget does not allow."""
    for component in ("engine", "scheduler"):
        answers = []
        for name in on(serving, STAYS, component) + on(serving, DRAINED, component):
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": MODELS}}
            path = f"/api/v1/namespaces/{MODELS}/pods/{name}/eviction?dryRun=All"
            answers.append(serving.kube.request("POST", path, eviction)[0])
        # Dry runs take nothing from the budget: each alone is allowed.
        assert answers == [201, 201], component
    budgets = serving.kube.items(f"/apis/policy/v1/namespaces/{MODELS}/poddisruptionbudgets")
    assert {b["metadata"]["name"]: b["status"]["disruptionsAllowed"] for b in budgets} == {
        "smol-engine": 1,
        "strata-scheduler": 1,
    }


def test_a_drained_node_cuts_no_stream(serving, request):
    """kthena#1589, aibrix#553: unroute, then preStop, then SIGTERM, and the streams end by themselves."""
    kube = serving.kube
    with serving.load() as load:
        serving.more_streams(load, 4)
        with measured(request.config, "kubectl drain of a node with an engine and a scheduler under load"):
            kube.kubectl("drain", DRAINED, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=170s", timeout=180)
        assert not on(serving, DRAINED, "engine") and not on(serving, DRAINED, "scheduler")
        serving.ready()
        serving.more_streams(load, 4)
        kube.kubectl("uncordon", DRAINED)
    load.assert_whole()


def test_a_second_eviction_waits_for_the_first(serving):
    """With one replica away the budget is spent: 429 until its successor serves."""
    kube = serving.kube
    serving.ready()
    names = [p["metadata"]["name"] for p in kube.pods(MODELS, component="engine")]
    answers = []
    for name in names:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": MODELS}}
        answers.append(kube.request("POST", f"/api/v1/namespaces/{MODELS}/pods/{name}/eviction", eviction)[0])
    assert answers == [201, 429]
    serving.ready()
    assert len(serving.engines()) == 2
