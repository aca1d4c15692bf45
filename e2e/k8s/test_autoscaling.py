"""Scaled by load through the Kubernetes autoscaler, and to zero and back by the operator."""

from __future__ import annotations

import time

import pytest
from conftest import measured
from external_metrics import ExternalMetrics
from serving import MODELS, Serving
from streams import one_stream

pytestmark = pytest.mark.pods

DEPLOYMENT = f"/apis/apps/v1/namespaces/{MODELS}/deployments/smol-engine"
HPA = f"/apis/autoscaling/v2/namespaces/{MODELS}/horizontalpodautoscalers/smol-engine"


@pytest.fixture(scope="module")
def metrics(kube, tmp_path_factory):
    if not kube.own:
        pytest.skip("the cluster was given: it may have metrics of its own")
    with ExternalMetrics(kube.own.network.host, tmp_path_factory.mktemp("metrics")) as served:
        kube.apply(*served.manifests())
        kube.kubectl("wait", "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io", "--timeout=60s")
        yield served


@pytest.fixture(scope="module")
def serving(kube, strata, metrics):
    return Serving(kube, strata, replicas=None, autoscaling={"min": 1, "max": 3, "targetWaiting": 4})


def replicas(kube) -> int:
    return kube.get(DEPLOYMENT)["spec"]["replicas"]


def test_load_adds_replicas(serving, metrics):
    """LLMKube#484, kserve#5196, aibrix#2780: the autoscaler's number stands; nobody writes another over it."""
    kube = serving.kube
    asked = kube.wait("the autoscaler to ask for a metric", lambda: metrics.asked, 60)[-1]
    assert asked[0] == MODELS and "smol" in asked[2]

    def trouble() -> dict:
        conditions = kube.get(serving.path)["status"]["conditions"]
        return next((c for c in conditions if c["type"] == "Autoscaling"), {})

    # kserve#6072: nobody gives the metric yet. The model serves, and says that it cannot be scaled.
    told = kube.wait("the autoscaler's trouble to be told", trouble, 60)
    assert (told["status"], told["reason"]) == ("False", "AutoscalerFailing") and asked[1] in told["message"], told
    assert serving.condition()["status"] == "True"
    metrics.values[asked[0], asked[1]] = "12"
    kube.wait("the autoscaler to want three", lambda: replicas(kube) == 3, 90)
    serving.ready(120)
    assert not trouble(), "it scales now"
    kube.patch(serving.path, {"metadata": {"annotations": {"e2e/touched": "yes"}}})
    seen = set()
    end = time.monotonic() + 8
    while time.monotonic() < end:
        seen.add(replicas(kube))
        time.sleep(0.2)
    assert seen == {3}
    assert "replicas" not in kube.get(serving.path)["spec"], "the operator wrote into spec"
    events = kube.kubectl("events", "-n", MODELS, "--for", "horizontalpodautoscalers/smol-engine")
    assert events.count("SuccessfulRescale") == 1


def test_asleep_is_ready(serving, metrics):
    """Nobody asks: no replica, Ready, and the reason says so."""
    kube = serving.kube
    serving.apply(None, autoscaling={"min": 0, "max": 3, "targetWaiting": 4, "sleepAfter": "5s"})
    metrics.values = {key: "0" for key in metrics.values}
    kube.wait("no replica to be wanted", lambda: replicas(kube) == 0, 90)
    kube.wait("ScaledToZero", lambda: (c := serving.condition()) and c["reason"] == "ScaledToZero" and c, 60)
    assert serving.condition()["status"] == "True"
    kube.wait("the pods to be gone", lambda: serving.engines_gone_to(0), 120)


def test_a_request_wakes_it(serving, metrics, request):
    """kthena#1019, ai-gateway#2327, kubeai#25, #73: the first request is held, not refused, and answered."""
    kube = serving.kube
    with measured(request.config, "an answer from a sleeping model, its replica's start included"):
        stream = one_stream(serving.base, serving.key, "smollm2-135m", "Wake up.", 8)
    assert stream.is_whole(8), stream
    # sie#293: scaled down again while it loads, or at once after the answer.
    assert replicas(kube) >= 1
    serving.ready()
    kube.wait("it to fall asleep again", lambda: replicas(kube) == 0, 120)
