"""A node with one GPU, which is all that there is: a rollout must not wait for a second one for ever."""

from __future__ import annotations

import image as images
import pytest
from install import MODEL
from serving import MODELS, Serving

pytestmark = pytest.mark.pods

DEVICE = "nvidia.com/gpu"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
JSON_PATCH = "application/json-patch+json"


def advertise(kube, count: int) -> None:
    """Makes a node say that it has devices; nothing of the engine's uses them."""
    path = "/api/v1/nodes/node-1/status"
    kube.patch(path, [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(count)}], JSON_PATCH)
    kube.wait(
        "the node to have devices", lambda: kube.get(path)["status"]["allocatable"].get(DEVICE) == str(count), 30
    )


@pytest.fixture(scope="module")
def serving(kube, strata):
    if not kube.own:
        pytest.skip("the cluster was given: its nodes' devices are not ours to invent")
    advertise(kube, 1)
    limits = {DEVICE: 1, "memory": "1Gi"}
    return Serving(kube, strata, engine=engine(2048), podTemplate={"resources": {"limits": limits}})


def engine(length: int) -> dict:
    """Our engine as someone's own: it uses no GPU, but to Kubernetes the device is as scarce as a real one."""
    args = ["--model", f"/models/{FILE}", "--served-model-name", MODEL, "--max-model-len", str(length)]
    return {
        "runtime": "Custom",
        "image": f"strata:{images.version()}",
        "command": ["strata", "engine"],
        "args": [*args, "--listen", "0.0.0.0:8000", "--kv-cache-memory", str(128 << 20), "--threads", "1"],
    }


def test_a_rollout_without_a_spare_device(serving):
    """kueue#8769, LLMKube#192, airunway#400: the new pod waits for the old one's GPU, the old one for the new pod."""
    kube = serving.kube
    old = serving.engines()
    serving.apply(engine=engine(1024))
    said = kube.wait(
        "the condition to say that no device is spare",
        lambda: (c := serving.condition()) and c["reason"] == "NoSpareDevice" and c,
        60,
    )
    # While the freed device finds its pod, no pod names the one that it lacks.
    assert "there is no spare" in said["message"] and "one at a time" in said["message"]
    serving.ready(120)
    assert serving.engines().keys().isdisjoint(old)
    # With the rollout over, the wish is what it was: a spare device would be used the next time.
    deployment = kube.get(f"/apis/apps/v1/namespaces/{MODELS}/deployments/smol-engine")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1
    serving.ask()


def test_a_rollout_with_a_spare_device(serving):
    """With a second device the old replica serves until the new one does."""
    kube = serving.kube
    advertise(kube, 2)
    with serving.load(clients=2) as load:
        serving.more_streams(load, 2)
        serving.apply(engine=engine(512))
        serving.ready(120)
        serving.more_streams(load, 2)
        kube.wait("the old engine to be gone", lambda: serving.engines_gone_to(1), 120)
    load.assert_whole()
    advertise(kube, 1)


def test_too_few_devices_say_so(serving):
    """kserve#6072: a replica that no node has room for; the condition says what is lacking, and the rest serves."""
    kube = serving.kube
    serving.scale(2)
    said = kube.wait(
        "the condition to name the device",
        lambda: (c := serving.condition()) and c["reason"] == "Unschedulable" and c,
        60,
    )
    assert said["status"] == "False" and DEVICE in said["message"]
    serving.ask()
    serving.scale(1)
    serving.ready()
