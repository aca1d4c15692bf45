"""A new revision of a model: good ones replace the old without a gap, bad ones take nothing down."""

from __future__ import annotations

import time

import pytest
from conftest import measured
from install import NAMESPACE
from serving import MODELS, Serving

pytestmark = pytest.mark.pods


@pytest.fixture(scope="module")
def serving(kube, strata):
    return Serving(kube, strata)


def revisions(serving) -> set[str]:
    pods = serving.kube.pods(MODELS, component="engine")
    return {p["metadata"]["labels"]["strata.dev/revision"] for p in pods}


def test_a_new_revision_under_load(serving, request):
    """dynamo#3567: success reported on the old pods. Ready again means that all are of the new revision."""
    old = revisions(serving)
    with serving.load() as load:
        serving.more_streams(load, 4)
        with measured(request.config, "rollout of a revision under load, until Ready"):
            serving.apply(engine={"maxModelLen": 1024})
            serving.ready()
        assert revisions(serving).isdisjoint(old)
        serving.more_streams(load, 4)
        serving.kube.wait("the old engine to be gone", lambda: serving.engines_gone_to(1), 120)
    load.assert_whole()


def test_a_bad_revision_takes_nothing_down(serving):
    """kaito#1493, LLMKube#192: a model that does not load. The old revision serves on, and the condition says why."""
    good = serving.engines()
    with serving.load(clients=2) as load:
        serving.more_streams(load, 2)
        serving.apply(model={"uri": serving.uri.rsplit("/", 1)[0] + "/absent.gguf"})
        bad = serving.kube.wait(
            "the new engine to fail and the condition to say so",
            lambda: (c := serving.condition()) and c["status"] == "False" and "absent.gguf" in c["message"] and c,
            90,
        )
        assert good.items() <= serving.engines().items(), "the old revision was taken down"
        serving.more_streams(load, 4)
        # It stays so: nothing gives up, and nothing takes the old one down later.
        assert bad["reason"]
        serving.apply(engine={"maxModelLen": 1024})
        serving.ready()
        serving.kube.wait("the failed engine to be gone", lambda: serving.engines_gone_to(1), 120)
        assert serving.engines() == good, "recovery needs no restart: the good revision never stopped"
        serving.more_streams(load, 2)
    load.assert_whole()


def test_the_operator_killed_in_the_middle(serving):
    """dynamo#13620, lws#225: a rollout that is lost or undone when its controller dies."""
    kube = serving.kube
    old = revisions(serving)
    with serving.load(clients=2) as load:
        serving.apply(engine={"maxModelLen": 512})
        kube.wait("the rollout to have begun", lambda: len(revisions(serving)) == 2, 60)
        for pod in kube.pods(NAMESPACE, component="operator"):
            kube.kubectl("delete", "pod", "-n", NAMESPACE, pod["metadata"]["name"], "--grace-period=0", "--force")
        began = time.monotonic()
        serving.ready(120)
        assert revisions(serving).isdisjoint(old)
        serving.more_streams(load, 2)
        kube.wait("the old engine to be gone", lambda: serving.engines_gone_to(1), 120)
    load.assert_whole()
    assert time.monotonic() - began < 180


def test_a_rollout_writes_once(serving):
    """A second reconcile writes nothing: the resource versions of all children stand still."""
    kube = serving.kube

    def versions() -> dict[str, str]:
        out = kube.kubectl(
            *("get", "deployments,services,poddisruptionbudgets,networkpolicies,roles,rolebindings,serviceaccounts"),
            *("-n", MODELS, "-l", "app.kubernetes.io/part-of=strata", "-o"),
            "custom-columns=K:.kind,N:.metadata.name,V:.metadata.resourceVersion",
        )
        return dict(line.rsplit(None, 1) for line in out.splitlines()[1:])

    kube.wait("children to come to rest", lambda: (v := versions()) and time.sleep(2) is None and versions() == v, 60)
    before, began = versions(), kube.get(serving.path)["metadata"]["resourceVersion"]
    assert before
    # Something that the operator watches, but that changes nothing of the model.
    kube.patch(serving.path, {"metadata": {"annotations": {"e2e/touched": "yes"}}})
    kube.wait("the touch", lambda: kube.get(serving.path)["metadata"]["resourceVersion"] != began, 10)
    time.sleep(3)
    assert versions() == before


def test_a_canary_gets_its_share_and_is_promoted(serving):
    """A new revision on a quarter of the requests; the old one's pods stay until it is promoted."""
    kube, old = serving.kube, serving.engines()

    def finished(pod: str) -> int:
        """Streams that an engine finished, by its own metrics."""
        scheme = pod_scheme(kube, pod)
        text = kube.request("GET", f"/api/v1/namespaces/{MODELS}/pods/{scheme}:{pod}:8000/proxy/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith("vllm:request_success_total") and '"length"' in line]
        return int(float(lines[0].rsplit(" ", 1)[1]))

    serving.apply(engine={"maxModelLen": 768}, rollout={"canary": {"weight": 25}})
    kube.wait("the canary to serve", lambda: serving.condition().get("reason") == "CanaryServing", 90)
    assert old.items() <= serving.engines().items(), "the old revision serves on"
    (canary,) = serving.engines().keys() - old.keys()
    assert kube.get(serving.path)["status"]["canary"]["readyReplicas"] == 1
    before = finished(canary)
    with serving.load(clients=2, tokens=4) as load:
        serving.more_streams(load, 40)
    load.assert_whole()
    got, asked = finished(canary) - before, load.finished()
    # By chance a quarter of these may be so far off.
    assert abs(got - asked / 4) <= 2 * (asked * 3 / 16) ** 0.5 + 2, f"{got} of {asked}"

    with serving.load(clients=2) as load:
        serving.more_streams(load, 2)
        serving.apply(engine={"maxModelLen": 768})
        serving.ready()
        kube.wait("the others to be gone", lambda: serving.engines_gone_to(1), 120)
        serving.more_streams(load, 2)
    load.assert_whole()
    assert "canary" not in kube.get(serving.path)["status"] and old.keys().isdisjoint(serving.engines())


def pod_scheme(kube, pod: str) -> str:
    found = kube.get(f"/api/v1/namespaces/{MODELS}/pods/{pod}")
    return found["spec"]["containers"][0]["readinessProbe"]["httpGet"].get("scheme", "HTTP").lower()
