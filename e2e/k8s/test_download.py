"""Models that are fetched: once for all replicas, with progress, through interruptions, and without the Internet.

Answers kserve#5611 (a fetch that hangs), #5326 (one that needs more memory than the model has), #4918 (a model
fetched twice), ome#217 (hours without a word), kubeai#176 (all again after an interruption) and
production-stack#838 (air-gapped): nothing outside the cluster is reached, as this machine reaches nothing.
"""

from __future__ import annotations

import pytest
from conftest import measured, note
from hub import Hub
from install import MODEL, NAMESPACE, model

pytestmark = pytest.mark.pods

NAME = "fetched"
CLAIM = "fetched-models"
SECRET = "hub"


@pytest.fixture(scope="module")
def hub(kube, request):
    if not kube.own:
        pytest.skip("the pods of a cluster that was given may not reach this machine")
    with Hub(kube.own.network.host, request.config.getoption("--model")) as served:
        yield served


@pytest.fixture(scope="module")
def ready(kube, strata, hub):
    """Strata, and an empty claim for models that two pods may write to."""
    strata.install()
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
    }
    kube.apply(claim, namespace=NAMESPACE)
    return strata.tenant("reader")


def fetched(hub: Hub, **spec) -> dict:
    source = {"name": MODEL, "uri": hub.uri, "credentialsSecretRef": {"name": SECRET}, "cache": {"claimName": CLAIM}}
    return model(NAME, hub.uri, 2, model=source, **spec)


def status(kube) -> dict:
    return kube.get(kube.path("ModelDeployment", NAMESPACE, NAME)).get("status", {})


def test_a_refusal_is_said(kube, hub, ready):
    """A token that the Hub does not take: the condition says so, and what to do."""
    kube.apply(hub.secret(SECRET, token="wrong"), fetched(hub), namespace=NAMESPACE)
    said = kube.wait(
        "the refusal to be said",
        lambda: (c := kube.condition("ModelDeployment", NAMESPACE, NAME)) and c["reason"] == "DownloadFailed" and c,
        60,
    )
    assert said["status"] == "False" and "401" in said["message"] and "HF_TOKEN" in said["message"], said
    assert hub.refused and not hub.sent


def test_once_for_all_with_progress_through_interruptions(kube, hub, ready, strata, request):
    """Two replicas, one claim: connections break, pods are killed, and the model comes once."""
    hub.bytes_per_s, hub.breaks, hub.stalls = 3_000_000, 3, 1
    with measured(request.config, f"a model of {hub.size / 1e6:.0f} MB fetched at 3 MB/s a connection, with interruptions, until Ready"):
        # The kubelet starts the fetch again with the new token, by and by.
        kube.apply(hub.secret(SECRET), namespace=NAMESPACE)
        for pod in kube.pods(NAMESPACE, component="engine"):
            kube.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}")
        seen = [kube.wait("progress in the status", lambda: status(kube).get("download", {}).get("bytesDone"), 60)]
        further = lambda: (now := status(kube).get("download", {}).get("bytesDone", 0)) > seen[-1] and now  # noqa: E731
        seen.append(kube.wait("more of it", further, 60))
        download = status(kube)["download"]
        assert download["bytesTotal"] == hub.size and 0 < download["bytesDone"] <= hub.size, download
        condition = kube.condition("ModelDeployment", NAMESPACE, NAME)
        assert (condition["status"], condition["reason"]) == ("False", "Downloading"), condition
        # Whoever fetches dies; what is there stays, and another goes on.
        kube.kubectl("delete", "pod", "-n", NAMESPACE, download["pod"], "--grace-period=0", "--force")
        kube.wait("the model to be whole", lambda: "download" not in status(kube) or hub.sent >= hub.size, 120)
        kube.wait_ready(NAMESPACE, NAME, 120)
    assert hub.broken == 3, "the interruptions came"
    assert hub.sent < 1.5 * hub.size, f"{hub.sent} bytes were sent of a model of {hub.size}"
    note(request.config, f"measured bytes sent for two replicas: {hub.sent / hub.size:.2f} times the model")
    assert "download" not in status(kube), "nothing is being fetched any more"
    answer = strata.client("strata-gateway", ready).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
    )
    assert answer.usage.completion_tokens


def test_more_replicas_fetch_nothing(kube, hub, ready):
    sent = hub.sent
    kube.kubectl("scale", "-n", NAMESPACE, f"modeldeployments.strata.dev/{NAME}", "--replicas=3")
    kube.wait_ready(NAMESPACE, NAME, 90)
    assert len(kube.pods(NAMESPACE, component="engine")) == 3
    assert hub.sent == sent
