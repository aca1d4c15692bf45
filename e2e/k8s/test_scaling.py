"""Replicas come and go under a streaming load, and no stream is cut."""

from __future__ import annotations

import pytest
from conftest import measured
from install import NAMESPACE
from serving import MODELS, Serving

pytestmark = pytest.mark.pods


@pytest.fixture(scope="module")
def serving(kube, strata):
    return Serving(kube, strata)


def test_one_to_three_to_one_under_load(serving, request):
    """kthena#1589, gateway-api-inference-extension#549, aibrix#553, kserve PR#5485: streams cut at scale-down."""
    kube = serving.kube
    first = serving.engines()
    with serving.load() as load:
        serving.more_streams(load, 4)
        with measured(request.config, "scale 1 to 3 under load, until Ready"):
            serving.scale(3)
            serving.ready()
        assert first.items() <= serving.engines().items(), "scaling restarts no replica"
        assert len(serving.engines()) == 3
        serving.more_streams(load, 8)
        with measured(request.config, "scale 3 to 1 under load, until the last pod is gone"):
            serving.scale(1)
            kube.wait("two engines to be gone", lambda: serving.engines_gone_to(1), 120)
        serving.ready()
        serving.more_streams(load, 4)
    load.assert_whole()


def test_editing_a_policy_restarts_no_pod(serving):
    """Modes and independence: a policy is data of the gateway, not of any pod's template."""
    from install import policy

    kube = serving.kube
    kube.apply(policy("edited", limits=[{"resource": "Requests", "limit": 1000, "window": "1m"}]), namespace=NAMESPACE)
    kube.wait("the policy to be judged", lambda: kube.condition("QuotaPolicy", NAMESPACE, "edited"), 30)
    before = {**kube.uids(NAMESPACE), **kube.uids(MODELS)}
    kube.apply(policy("edited", limits=[{"resource": "Requests", "limit": 1, "window": "1h"}]), namespace=NAMESPACE)
    kube.wait("the change to be judged", lambda: kube.condition("QuotaPolicy", NAMESPACE, "edited"), 30)
    client = serving.strata.client("strata-gateway", serving.key)

    def refused() -> bool:
        import openai

        try:
            client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
            return False
        except openai.RateLimitError:
            return True

    kube.wait("the edited policy to bite", refused, 30)
    kube.delete(kube.path("QuotaPolicy", NAMESPACE, "edited"))
    serving.ask()
    assert {**kube.uids(NAMESPACE), **kube.uids(MODELS)} == before


def test_upgrading_one_component_restarts_no_other(serving):
    """kserve PR#5085: an upgrade of the operator that restarts models."""
    kube, strata = serving.kube, serving.strata

    def components() -> dict[str, dict[str, str]]:
        found = {c: kube.uids(NAMESPACE, component=c) for c in ("operator", "gateway", "platform")}
        return {**found, "engine": kube.uids(MODELS, component="engine"), "scheduler": kube.uids(MODELS, component="scheduler")}

    for changed in ("gateway", "platform", "operator"):
        before = components()
        strata.install(**{changed: {**strata.values().get(changed, {}), "env": [{"name": "STRATA_LOG", "value": "debug"}]}})
        after = components()
        assert after[changed].keys().isdisjoint(before[changed]), f"{changed} did not restart"
        strata.install()
        for other in before.keys() - {changed}:
            assert components()[other] == before[other], f"upgrading {changed} restarted {other}"
    serving.ready()
    serving.ask()
