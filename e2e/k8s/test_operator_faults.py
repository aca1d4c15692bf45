"""The operator while the API server refuses, stumbles and forgets.

Answers kserve#2733 (a refusal that nobody is told of) and the neighbours whose watches stay broken.
"""

from __future__ import annotations

import random
import time

import pytest
from conftest import note
from controller import children
from test_operator import NOWHERE, apply, named, namespace, operator, status_of, token  # noqa: F401

pytestmark = pytest.mark.control_plane


def deployments(kube, namespace) -> list[str]:
    return [name for name in children(kube, namespace) if name.startswith("Deployment/") and "scheduler" not in name]


def test_it_gets_there_although_most_writes_fail(kube, operator, namespace, request):
    chance = random.Random(7)

    def unlucky(call) -> bool:
        return call.is_write and not call.is_lease and chance.random() < 0.25

    began = time.monotonic()
    with operator.proxy.fault(unlucky, 500), operator.proxy.fault(unlucky, 409), operator.proxy.fault(unlucky, 503):
        apply(kube, namespace, *(named(f"m{n}", **NOWHERE) for n in range(5)))
        kube.wait("five Deployments and statuses in spite of it",
                  lambda: len(deployments(kube, namespace)) == 5
                  and all(status_of(kube, namespace, f"m{n}").get("observedGeneration") == 1 for n in range(5)), 120)
        failed = sum(c.status >= 400 for c in operator.proxy.writes())
    took = time.monotonic() - began
    note(request.config, f"measured five models while {failed} of {len(operator.proxy.writes())} writes fail: {took:.1f} s")
    # An object that failed all along is left alone for as long as it has been failing, a quarter more at most.
    kube.wait("nothing to be failing any more",
              lambda: operator.metric("strata_operator_queue_depth", state="failing") == 0, 30 + 1.4 * took)
    assert failed > 5
    operator.settle()
    for n in range(5):
        # What failed on the way is not said once it is no more.
        assert "ApplyFailed" not in str(status_of(kube, namespace, f"m{n}")["conditions"])


def test_an_overloaded_server_is_left_alone(kube, operator, namespace):
    operator.settle()
    with operator.proxy.fault(
        lambda c: c.is_write and not c.is_lease, 429, headers={"retry-after": "3"}, body="too many requests", times=1
    ) as fault:
        apply(kube, namespace, *(named(f"m{n}", **NOWHERE) for n in range(6)))
        kube.wait("the server to be overloaded", lambda: fault.hit)
        told = next(c for c in operator.proxy.writes() if c.status == 429)
        kube.wait("six Deployments", lambda: len(deployments(kube, namespace)) == 6, 60)
    # Reconciliations that had begun are finished; none begins before the time is over.
    later = [c.began - told.ended for c in operator.proxy.writes() if c.began > told.ended]
    begun = [after for after in later if after < 2.9]
    assert len(begun) <= 60 and max(begun, default=0) < 2, begun
    assert any(after >= 2.9 for after in later)


def test_a_refusal_is_told_and_healed(kube, operator, namespace):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"count/deployments.apps": "0"}}}
    apply(kube, namespace, quota)
    kube.wait("the quota to count", lambda: kube.get(f"/api/v1/namespaces/{namespace}/resourcequotas/none")["status"].get("hard"))
    apply(kube, namespace, named("m", **NOWHERE))
    condition = kube.wait("the refusal to be told", lambda: _reason(kube, namespace, "m", "ApplyFailed"))
    assert "exceeded quota" in condition["message"] and "Deployment" in condition["message"], condition
    events = kube.items(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    assert any(e["reason"] == "ApplyFailed" and e["regarding"]["kind"] == "ModelDeployment" for e in events)
    assert "Service/m-engine" in children(kube, namespace), "the rest is made all the same"
    kube.delete(f"/api/v1/namespaces/{namespace}/resourcequotas/none")
    kube.wait("the Deployment once it may be", lambda: deployments(kube, namespace), 40)
    kube.wait("the refusal to be taken back", lambda: not _reason(kube, namespace, "m", "ApplyFailed"), 10)


def _reason(kube, namespace, name, reason):
    condition = kube.condition("ModelDeployment", namespace, name)
    return condition if condition.get("reason") == reason else None


def test_a_failing_object_is_tried_ever_more_seldom_and_holds_up_nobody(kube, operator, namespace):
    def unlucky(call) -> bool:
        return call.is_write and call.path.endswith("/deployments/bad-engine")

    with operator.proxy.fault(unlucky, 500) as fault:
        apply(kube, namespace, named("bad", **NOWHERE))
        kube.wait("it to fail four times", lambda: fault.hit >= 4, 40)
        apply(kube, namespace, named("good", **NOWHERE))
        kube.wait("the other to be made meanwhile", lambda: "Deployment/good-engine" in children(kube, namespace), 5)
        tries = [c.began for c in operator.proxy.writes() if c.path.endswith("/deployments/bad-engine")]
    waits = [b - a for a, b in zip(tries, tries[1:], strict=False)]
    assert waits[0] >= 0.7 and waits[2] > waits[0], waits
    # A change of the object itself is not held up by its past.
    began = time.monotonic()
    kube.patch(kube.path("ModelDeployment", namespace, "bad"), {"metadata": {"annotations": {"try": "again"}}})
    kube.wait("the Deployment", lambda: "Deployment/bad-engine" in children(kube, namespace), 10)
    assert time.monotonic() - began < 5


def test_a_watch_that_breaks_or_is_too_old_loses_nothing(kube, operator, namespace, request):
    apply(kube, namespace, named("m", **NOWHERE))
    kube.wait("the Deployment", lambda: deployments(kube, namespace))
    operator.settle()
    gone = ('{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
            '"message":"too old resource version","reason":"Expired","code":410}}\n')
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/m-engine"
    took = []
    for broken in ("dropped", "expired", "refused"):
        uid = kube.get(path)["metadata"]["uid"]
        faults = {
            "dropped": (lambda c: False, 200),
            "expired": (lambda c: c.is_watch and not c.is_lease, 200),
            "refused": (lambda c: c.is_watch or (not c.is_write and not c.is_lease), 503),
        }[broken]
        with operator.proxy.fault(*faults, body=gone if broken == "expired" else None, times=25):
            assert operator.proxy.drop_watches() > 10
            # While nobody watches.
            kube.delete(path)
            began = time.monotonic()
            kube.wait(f"it to come back although watches were {broken}",
                      lambda uid=uid: (kube.find(path) or {}).get("metadata", {}).get("uid") not in (None, uid), 60)
            took.append(f"{broken} {time.monotonic() - began:.1f} s")
    note(request.config, f"measured healing with broken watches: {', '.join(took)}")
    operator.settle()
    assert operator.ready() == "leader"


def test_no_watch_is_left_open_for_ever(kube, operator):
    """A connection that is half dead is noticed when its watch should have ended, within five minutes."""
    watches = [c for c in operator.proxy.calls if c.is_watch]
    assert len(watches) >= 10
    assert all(200 <= int(c.query.get("timeoutSeconds", ["0"])[0]) <= 300 for c in watches)
