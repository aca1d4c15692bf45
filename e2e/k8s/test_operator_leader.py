"""Several operators: one writes, another takes over, and never do two write at once."""

from __future__ import annotations

import signal
import time

import pytest
from conftest import note
from controller import NAMESPACE, Operator, children
from test_operator import NOWHERE, apply, named, namespace, token  # noqa: F401

pytestmark = pytest.mark.control_plane


@pytest.fixture
def two(kube, strata_binary, tmp_path, token):
    processes = [Operator(kube, strata_binary, tmp_path, token, name, mode="production") for name in ("one", "two")]
    processes[0].start()
    kube.wait("the first to lead", processes[0].leads, 30)
    processes[1].start()
    assert processes[1].ready() == "standby"
    yield processes
    for process in processes:
        process.close()


def keep_busy(kube, namespace, turn: int) -> None:
    """Something to write for whoever leads."""
    kube.patch(kube.path("ModelDeployment", namespace, "m"), {"spec": {"replicas": turn % 3 + 1}})


def spans(process: Operator) -> list[tuple[float, float]]:
    return [(c.began, c.ended) for c in process.proxy.writes() if 0 < c.status < 300]


def assert_never_both(one: Operator, two: Operator) -> None:
    overlaps = [(a, b) for a in spans(one) for b in spans(two) if a[0] < b[1] and b[0] < a[1]]
    assert overlaps == []


def takeover(kube, namespace, other: Operator, act) -> float:
    """Keeps changing a model while `act` ends a leader; gives the seconds to the other's first write."""
    began = time.monotonic()
    act()
    turn = 0
    while not other.proxy.writes(began):
        keep_busy(kube, namespace, turn := turn + 1)
        assert time.monotonic() - began < 40, "nobody took over"
        time.sleep(0.05)
    return min(c.began for c in other.proxy.writes(began)) - began


def test_a_standby_writes_nothing_and_takes_over_at_once(kube, two, namespace, request):
    one, other = two
    apply(kube, namespace, named("m", **NOWHERE))
    kube.wait("the Deployment", lambda: "Deployment/m-engine" in children(kube, namespace))
    one.settle()
    assert other.proxy.writes() == [] and [c for c in other.proxy.calls if c.is_lease and c.is_write] == []
    seconds = takeover(kube, namespace, other, one.stop)
    note(request.config, f"measured takeover when the leader is asked to end: {seconds:.2f} s to the other's first write")
    assert seconds < 3, "a second on a quiet machine"
    assert_never_both(one, other)
    kube.wait("what changed to be done", lambda: children(kube, namespace)["Deployment/m-engine"]["spec"]["replicas"]
              == kube.get(kube.path("ModelDeployment", namespace, "m"))["spec"]["replicas"])


def test_a_leader_that_is_killed_is_succeeded(kube, two, namespace, request):
    one, other = two
    apply(kube, namespace, named("m", **NOWHERE))
    one.settle()
    seconds = takeover(kube, namespace, other, one.kill)
    note(request.config, f"measured takeover after kill -9 of the leader: {seconds:.1f} s to the other's first write")
    assert 10 < seconds < 20
    assert_never_both(one, other)
    lease = kube.get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/strata-operator")["spec"]
    assert lease["holderIdentity"] == "two" and lease["leaseTransitions"] >= 1


def test_a_leader_that_slept_does_not_write_when_it_wakes(kube, two, namespace):
    one, other = two
    apply(kube, namespace, named("m", **NOWHERE))
    one.settle()
    takeover(kube, namespace, other, lambda: one.signal(signal.SIGSTOP))
    for turn in range(20):
        keep_busy(kube, namespace, turn)
    woke = time.monotonic()
    one.signal(signal.SIGCONT)
    kube.wait("it to find that it leads no more", lambda: one.ready() == "standby", 20)
    for turn in range(20):
        keep_busy(kube, namespace, turn)
    other.settle()
    assert [str(c) for c in one.proxy.writes(woke)] == []
    assert_never_both(one, other)


def test_a_leader_that_cannot_renew_stops_before_another_may_begin(kube, two, namespace, request):
    one, other = two
    apply(kube, namespace, named("m", **NOWHERE))
    one.settle()
    began = time.monotonic()
    with one.proxy.fault(lambda c: c.is_lease and c.is_write, 503):
        seconds = takeover(kube, namespace, other, lambda: None)
        last = max((c.ended for c in one.proxy.writes(began)), default=began) - began
        note(request.config, f"measured a leader that cannot renew: its last write after {last:.1f} s, "
                             f"the other's first after {seconds:.1f} s")
        assert last < seconds and last < 11
        assert_never_both(one, other)
    # It stands by again, and takes over when its turn comes.
    kube.wait("it to stand by", lambda: one.ready() == "standby", 20)
    other.stop()
    kube.wait("it to lead again", one.leads, 20)
