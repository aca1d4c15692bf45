"""From nothing to an answer with the guide's own commands, and back to nothing."""

from __future__ import annotations

import openai
import pytest
from conftest import measured
from driver.node import PAUSE
from install import MODEL, NAMESPACE, ROOT

pytestmark = pytest.mark.pods

EXAMPLES = ROOT / "examples/kubernetes"
NAME = "smollm2"


@pytest.fixture(scope="module")
def quickstart(kube, strata, request):
    """The guide's commands; gives a key of the tenant acme."""
    if not kube.own:
        pytest.skip("the examples need the claim `models`, which only a cluster started here is given")
    with measured(request.config, "helm install --wait of both charts"):
        strata.install()
    strata.uri(NAMESPACE)
    with measured(request.config, "kubectl apply of the examples, to kubectl wait for the model"):
        kube.kubectl("apply", "--namespace", NAMESPACE, "-f", str(EXAMPLES))
        ready = ["--for=condition=Ready", "--timeout=120s"]
        kube.kubectl("wait", "--namespace", NAMESPACE, *ready, f"modeldeployments.strata.dev/{NAME}")
    keys = ["strata", "keys", "create", "--tenant", "acme", "--name", "first"]
    return kube.kubectl("exec", "--namespace", NAMESPACE, "deploy/strata-gateway", "--", *keys).strip()


@pytest.mark.parametrize("service", ["strata-platform", "strata-gateway"])
def test_a_completion_through_every_layer(strata, quickstart, service):
    """dynamo#13622: Ready, and not routable. The first request after `kubectl wait` is answered."""
    answer = strata.client(service, quickstart).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )
    assert answer.usage.completion_tokens > 0 and answer.choices[0].message.content
    with pytest.raises(openai.AuthenticationError):
        strata.client(service, "sk-strata-no_key").models.list()


def test_a_stream_has_its_usage(strata, quickstart):
    stream = strata.client("strata-gateway", quickstart).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count to five."}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 12
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_status_says_what_is(kube, quickstart):
    """kserve#1859 (Ready that lies) and #6043 (never Ready): every condition speaks of this generation."""
    for kind, name in (("ModelDeployment", NAME), ("Tenant", "acme"), ("QuotaPolicy", "gold")):
        found = kube.wait(
            f"{kind} {name} to be judged",
            lambda kind=kind, name=name: kube.condition(kind, NAMESPACE, name).get("status") == "True"
            and kube.get(kube.path(kind, NAMESPACE, name)),
            30,
        )
        generation = found["metadata"]["generation"]
        assert found["status"]["observedGeneration"] == generation
        assert {c.get("observedGeneration") for c in found["status"]["conditions"]} == {generation}
        working = [c["type"] for c in found["status"]["conditions"] if c["type"] in ("Reconciling", "Stalled")]
        assert not working, "kstatus takes an object with one of these for one that is not finished"
    assert kube.get(kube.path("Tenant", NAMESPACE, "acme"))["status"]["policies"] == ["gold"]
    replicas = kube.get(kube.path("ModelDeployment", NAMESPACE, NAME) + "/scale")["status"]
    selected = kube.items(f"/api/v1/namespaces/{NAMESPACE}/pods", replicas["selector"])
    assert replicas["replicas"] == len(selected) == 1
    events = kube.kubectl("events", "--namespace", NAMESPACE, "--for", f"modeldeployments.strata.dev/{NAME}")
    assert "Serving" in events, "a transition gives an event"


@pytest.fixture
def call(kube, quickstart):
    """What a pod of our own gets from a layer, with the certificate of a Secret or without one."""

    def call(url: str, certificate: str | None = None) -> str:
        arguments = ["request", "-timeout", "5s"]
        container = {"name": "stranger", "image": PAUSE, "imagePullPolicy": "Never"}
        spec = {"automountServiceAccountToken": False, "restartPolicy": "Never"}
        if certificate:
            container["volumeMounts"] = [{"name": "hop", "mountPath": "/hop"}]
            spec["volumes"] = [{"name": "hop", "secret": {"secretName": certificate}}]
            arguments += ["-certificate", "/hop"]
        spec["containers"] = [{**container, "args": [*arguments, url]}]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}, "spec": spec}
        kube.apply(pod, namespace=NAMESPACE)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/stranger"
        kube.wait("the stranger to end", lambda: kube.get(path)["status"]["phase"] in ("Succeeded", "Failed"), 60)
        said = kube.kubectl("logs", "-n", NAMESPACE, "stranger")
        kube.kubectl("delete", "pod", "-n", NAMESPACE, "stranger", "--grace-period=0", "--force")
        return said

    return call


@pytest.mark.parametrize(
    "service,above", [(f"{NAME}-engine", "strata-hop-scheduler"), ("strata-scheduler", "strata-hop-gateway")]
)
def test_nobody_gets_past_the_layers(call, service, above):
    """Decision 12: engines and schedulers answer only the layer above, known by its certificate."""
    url = f"{service}.{NAMESPACE}.svc:8000/v1/models"
    assert '"object"' not in call(f"http://{url}"), "a layer answered in the clear"
    stranger = call(f"https://{url}")
    assert "401" in stranger and "shows no certificate" in stranger, stranger
    # An engine shows a good certificate, of a layer that stands below.
    other = call(f"https://{url}", "strata-hop-engine")
    assert "401" in other and f"spiffe://strata/ns/{NAMESPACE}/engine is not" in other, other
    # The layer above may: what was refused is who called, and nothing else.
    assert '"object"' in call(f"https://{url}", above)


def left_of_strata(kube) -> set[str]:
    """Every object, of any kind that can be listed, that bears Strata's label."""
    kinds = kube.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    # Events tell of objects that are gone, for an hour.
    kinds = [k for k in kinds if not k.startswith(("events", "componentstatuses"))]
    shown = kube.kubectl(
        *("get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/part-of=strata", "--ignore-not-found"),
        *("-o", "custom-columns=KIND:.kind,NAME:.metadata.name,UNTIL:.metadata.deletionTimestamp", "--no-headers"),
    )
    return {" ".join(line.split()[:2]) for line in shown.splitlines()}


def test_uninstall_leaves_nothing(kube, strata, quickstart):
    """kserve#2119, #4710, #5025: an uninstall that hangs in Terminating or leaves things behind.

    The chart goes first, so no operator is there to help: nothing may wait for it.
    """
    strata.uninstall()
    kube.delete(kube.path("ModelDeployment", NAMESPACE, NAME))
    kept = {"PersistentVolumeClaim strata-gateway", "PersistentVolumeClaim strata-platform"}
    definitions = {f"CustomResourceDefinition {k}.strata.dev" for k in ("modeldeployments", "tenants", "quotapolicies")}

    def only_the_kept() -> bool:
        return left_of_strata(kube) - definitions == kept

    try:
        kube.wait("everything of Strata to be gone", only_the_kept, 90)
    except AssertionError:
        raise AssertionError(f"left: {sorted(left_of_strata(kube) - definitions - kept)}") from None
    kube.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
