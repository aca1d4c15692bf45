"""The operator before a real API server, without one pod: children, drift, faults, failover, idleness.

Runs on every machine: kwok plays the nodes, and the operator is a process of this machine that acts
under the role which the chart gives it.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest
from conftest import measured
from driver import binaries
from faulty_api import FaultyApi
from host_operator import HostOperator
from install import NAMESPACE, model, policy, tenant

pytestmark = pytest.mark.control_plane

MODELS = "models"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:strata-operator"
LABEL = "strata.dev/model-deployment"


@pytest.fixture(scope="module")
def installed(kube, strata):
    kube.namespace(MODELS)
    strata.install(wait=False)
    return kube


@pytest.fixture(scope="module")
def operator(installed, strata_binary, tmp_path_factory):
    with HostOperator(installed, strata_binary, tmp_path_factory.mktemp("operator")) as running:
        yield running


def deployment(name: str) -> str:
    return f"/apis/apps/v1/namespaces/{MODELS}/deployments/{name}"


def children(kube, name: str) -> set[str]:
    kinds = "deployments,services,poddisruptionbudgets,horizontalpodautoscalers,controllerrevisions"
    shown = kube.kubectl("get", kinds, "-n", MODELS, "-l", f"{LABEL}={name}", "-o", "json")
    return {f"{i['kind']} {i['metadata']['name']}" for i in json.loads(shown)["items"] if i["kind"] != "ControllerRevision"}


def apply_and_wait(kube, operator, thing: dict) -> None:
    kube.apply(thing, namespace=MODELS)
    name = thing["metadata"]["name"]
    try:
        kube.wait(f"the Deployment of {name}", lambda: kube.find(deployment(f"{name}-engine")), 30)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{operator.tail()}") from None


def test_a_model_becomes_its_children(installed, operator, request):
    kube = installed
    with measured(request.config, "a new model to its Deployment"):
        apply_and_wait(kube, operator, model("first", "pvc://models/a.gguf"))
    # One replica has no disruption budget: it could only block a drain for ever.
    want = {"Deployment first-engine", "Service first-engine"}
    kube.wait("its other children", lambda: children(kube, "first") >= want, 10)
    assert children(kube, "first") == want
    kube.wait("the scheduler", lambda: kube.find(deployment("strata-scheduler")), 10)
    made = kube.get(deployment("first-engine"))
    owner = made["metadata"]["ownerReferences"]
    assert [(o["kind"], o["name"], o.get("controller")) for o in owner] == [("ModelDeployment", "first", True)]
    # One manager owns what it applied.
    assert "strata-operator" in {m["manager"] for m in made["metadata"].get("managedFields", [])}


def test_not_ready_says_why(installed, operator):
    """kserve#1859: here pods claim to be ready and no engine answers, so Ready must not be True."""
    kube = installed
    found = kube.wait("a condition", lambda: kube.condition("ModelDeployment", MODELS, "first"), 30)
    assert found["status"] != "True" and found["reason"] and found["message"]
    status = kube.get(kube.path("ModelDeployment", MODELS, "first"))["status"]
    shown = {c["type"] for c in status["conditions"] if c["status"] == "True"}
    assert shown & {"Reconciling", "Stalled"}, "kstatus must see that it goes on, or that someone must act"


def test_drift_is_undone_and_what_is_others_stays(installed, operator):
    """Server-side apply: our fields come back, those of another manager are left alone."""
    kube = installed
    path = deployment("first-engine")
    foreign = {"metadata": {"annotations": {"example.com/note": "kept"}}}
    kube.patch(path, foreign)
    kube.patch(path, {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 77}}}})
    kube.wait(
        "the changed field to be put back",
        lambda: kube.get(path)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] != 77,
        10,
    )
    assert kube.get(path)["metadata"]["annotations"]["example.com/note"] == "kept"
    kube.delete(f"/api/v1/namespaces/{MODELS}/services/first-engine")
    kube.wait("the deleted Service to be made again", lambda: kube.find(f"/api/v1/namespaces/{MODELS}/services/first-engine"), 10)


def test_one_name_two_models(installed, operator):
    """Decision 5: the older wins, the younger says NameConflict, and takes over when the older goes."""
    kube = installed
    kube.apply(model("second", "pvc://models/b.gguf"), namespace=MODELS)
    refused = kube.wait("a refusal", lambda: kube.condition("ModelDeployment", MODELS, "second"), 30)
    assert refused["status"] == "False" and refused["reason"] == "NameConflict" and "first" in refused["message"]
    assert not children(kube, "second")
    kube.patch(kube.path("ModelDeployment", MODELS, "second"), {"metadata": {"labels": {"still": "there"}}})
    kube.delete(kube.path("ModelDeployment", MODELS, "second"))


def test_scale_subresource_reaches_the_deployment(installed, operator):
    kube = installed
    kube.kubectl("scale", "-n", MODELS, "modeldeployments.strata.dev/first", "--replicas=3")
    kube.wait("three replicas", lambda: kube.get(deployment("first-engine"))["spec"]["replicas"] == 3, 10)
    kube.wait("a disruption budget", lambda: "PodDisruptionBudget first-engine" in children(kube, "first"), 10)
    kube.kubectl("scale", "-n", MODELS, "modeldeployments.strata.dev/first", "--replicas=1")
    kube.wait("one replica", lambda: kube.get(deployment("first-engine"))["spec"]["replicas"] == 1, 10)


def test_an_autoscaler_alone_owns_replicas(installed, operator):
    """LLMKube#484: two owners of one number, 41 rescales in 14 minutes."""
    kube = installed
    scaled = model("scaled", "pvc://models/a.gguf", None, model={"name": "scaled"}, autoscaling={"min": 1, "max": 5})
    apply_and_wait(kube, operator, scaled)
    kube.patch(f"{deployment('scaled-engine')}/scale", {"spec": {"replicas": 4}})
    kube.patch(kube.path("ModelDeployment", MODELS, "scaled"), {"metadata": {"annotations": {"touch": "1"}}})
    time.sleep(3)
    made = kube.get(deployment("scaled-engine"))
    assert made["spec"]["replicas"] == 4, "the operator wrote a number that is not its own"
    kube.delete(kube.path("ModelDeployment", MODELS, "scaled"))


def audited(kube, since: int) -> tuple[int, Counter]:
    """The operator's API calls since an offset of the audit log, by verb and resource."""
    calls: Counter = Counter()
    with kube.own.audit_log.open() as log:
        log.seek(since)
        for line in log:
            if not line.endswith("\n"):
                break
            event = json.loads(line)
            if event["user"]["username"] == OPERATOR:
                calls[f"{event['verb']} {event.get('objectRef', {}).get('resource', event['requestURI'])}"] += 1
        return log.tell(), calls


def test_idle_is_idle(installed, operator):
    """No timed requeue in a watch's stead: at rest the operator calls for its lease, and to watch."""
    kube = installed
    if not kube.own:
        pytest.skip("the audit log of a given cluster is not ours to read")
    kube.wait("all to come to rest", lambda: quiet(kube), 60)
    start = kube.own.audit_log.stat().st_size
    time.sleep(20)
    _, calls = audited(kube, start)
    working = {k: n for k, n in calls.items() if not k.endswith(" leases") and not k.startswith("watch ")}
    assert not working, f"API calls of an idle operator in 20 s: {dict(calls)}"
    assert 0 < sum(n for k, n in calls.items() if k.endswith(" leases")) <= 20


def quiet(kube) -> bool:
    start = kube.own.audit_log.stat().st_size
    time.sleep(3)
    return not any(not k.endswith(" leases") and not k.startswith("watch ") for k in audited(kube, start)[1])


def test_kinds_that_appear_later_are_picked_up(installed, operator):
    """kserve#6043: optional kinds watched only if they are there at the start, and never Ready else."""
    kube = installed
    for name in binaries.CRD_MODULES:
        kube.kubectl("apply", "--server-side", "-f", str(binaries.crds(name)))
    pool = f"/apis/inference.networking.k8s.io/v1/namespaces/{MODELS}/inferencepools/first"
    try:
        kube.wait("an InferencePool of the model", lambda: kube.find(pool), 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{operator.tail()}") from None
    assert kube.get(pool)["metadata"]["ownerReferences"][0]["name"] == "first"


def test_faults_of_the_api(installed, operator, strata_binary, tmp_path):
    """409, 429, 5xx and cut watches for a while: all converges, and nothing is asked without end."""
    kube = installed
    if not kube.own:
        pytest.skip("the API of a given cluster is not put behind a proxy")
    dice = random.Random(7)
    storm = [False]

    def fault(method: str, path: str) -> int | None:
        if not storm[0] or "/leases/" in path or dice.random() > 0.3:
            return None
        return dice.choice([409, 429, 500, 503] if method in ("PATCH", "POST", "PUT", "DELETE") else [429, 500, 503])

    operator.kill()
    api = kube.own.api
    names = [f"storm-{n}" for n in range(8)]
    with FaultyApi(api.server, str(api.ca), fault) as faulty:
        with HostOperator(kube, strata_binary, tmp_path, faulty.url, "faulty") as unlucky:
            kube.wait("the operator to lead", lambda: faulty.passed["PATCH"], 60)
            storm[0] = True
            for name in names:
                kube.apply(model(name, "pvc://models/a.gguf", model={"name": name}), namespace=MODELS)
            cuts = 0
            for _ in range(4):
                time.sleep(4)
                cuts += faulty.drop_watches()
            storm[0] = False
            try:
                for name in names:
                    kube.wait(f"the children of {name}", lambda name=name: len(children(kube, name)) == 2, 60)
                    kube.wait(
                        f"the status of {name}", lambda name=name: kube.condition("ModelDeployment", MODELS, name), 60
                    )
                changed = names[0]
                kube.kubectl("scale", "-n", MODELS, f"modeldeployments.strata.dev/{changed}", "--replicas=2")
                kube.wait("a change after the storm", lambda: kube.get(deployment(f"{changed}-engine"))["spec"]["replicas"] == 2, 30)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{unlucky.tail(40)}") from None
            assert unlucky.process.poll() is None, f"it ended:\n{unlucky.tail()}"
            assert cuts and set(faulty.injected) == {409, 429, 500, 503}
            assert sum(faulty.passed.values()) < 5000, faulty.passed
    for name in names:
        kube.delete(kube.path("ModelDeployment", MODELS, name))
    kube.wait("all to be collected", lambda: not any(children(kube, n) for n in names), 60)


def test_a_standby_takes_over(installed, strata_binary, tmp_path, request):
    """Killed without a goodbye: the standby, whose caches are warm, leads when the lease runs out."""
    kube = installed
    with HostOperator(kube, strata_binary, tmp_path, name="a") as one:
        kube.apply(model("before", "pvc://models/a.gguf", model={"name": "before"}), namespace=MODELS)
        kube.wait("the first to lead", lambda: kube.find(deployment("before-engine")), 60)
        with HostOperator(kube, strata_binary, tmp_path, name="b") as two:
            kube.wait("the standby to be ready", lambda: answers(two), 30)
            one.kill()
            kube.apply(model("after", "pvc://models/a.gguf", model={"name": "after"}), namespace=MODELS)
            with measured(request.config, "a killed leader's successor to apply a new model"):
                try:
                    kube.wait("the standby to lead", lambda: kube.find(deployment("after-engine")), 60)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{two.tail()}") from None


def answers(operator: HostOperator) -> bool:
    try:
        return operator.metric("process_start_time_seconds") >= 0
    except OSError:
        return False


def test_governance_is_judged(installed, strata_binary, tmp_path):
    """Tenants and policies without a gateway to ask: a condition that says so, not silence."""
    kube = installed
    with HostOperator(kube, strata_binary, tmp_path, name="c"):
        kube.apply(tenant("alone"), policy("alone", budget={"tokens": 5, "period": "Day"}), namespace=NAMESPACE)
        for kind in ("Tenant", "QuotaPolicy"):
            found = kube.wait(f"{kind} to be judged", lambda kind=kind: kube.condition(kind, NAMESPACE, "alone"), 60)
            assert found["status"] != "True" and found["message"]
