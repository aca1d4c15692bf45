"""The operator before a real API server, without one pod: children, conflicts, scale, governance.

Runs on every machine: kwok plays the nodes, and the operator is a process of this machine that acts
under the role which the chart gives it.
"""

from __future__ import annotations

import json
import time

import pytest
from conftest import measured
from host_operator import HostOperator
from install import NAMESPACE, model, policy, tenant

pytestmark = pytest.mark.control_plane

MODELS = "models"
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


def test_governance_is_judged(installed, strata_binary, tmp_path):
    """Tenants and policies without a gateway to ask: a condition that says so, not silence."""
    kube = installed
    with HostOperator(kube, strata_binary, tmp_path, name="c"):
        kube.apply(tenant("alone"), policy("alone", budget={"tokens": 5, "period": "Day"}), namespace=NAMESPACE)
        for kind in ("Tenant", "QuotaPolicy"):
            found = kube.wait(f"{kind} to be judged", lambda kind=kind: kube.condition(kind, NAMESPACE, "alone"), 60)
            assert found["status"] != "True" and found["message"]
